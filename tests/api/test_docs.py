"""The page about the API shows every operation and loads nothing from elsewhere."""

import re
from html.parser import HTMLParser

import httpx

from api.app import operations


class Reader(HTMLParser):
    """Notes what a page asks for, names and links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.names.add(given["id"])
        if given.get("href", "").startswith("#"):
            self.links.add(given["href"][1:])
        elif tag != "a":
            self.asked += [given[name] for name in ("src", "href") if name in given]


async def test_the_page_shows_every_operation(http: httpx.AsyncClient) -> None:
    shown = await http.get("/docs")
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    for operation in operations():
        assert f'data-method="{operation.method}" data-path="{operation.path}"' in shown.text


async def test_the_page_loads_without_the_internet(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs")).text
    assert Reader(page).asked == ["data:,"]
    assert not re.search(r"https?://|//cdn|@import|url\(", page)


async def test_every_link_of_the_page_leads_somewhere(http: httpx.AsyncClient) -> None:
    page = Reader((await http.get("/docs")).text)
    assert page.links
    assert page.links <= page.names
