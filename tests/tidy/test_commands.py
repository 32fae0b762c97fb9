"""Every command that a page or a file names is one that exists."""

import re
from pathlib import Path

import pytest

from cli.main import main

ROOT = Path(__file__).parents[2]

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile", ROOT / "Dockerfile"])
IN_CODE = re.compile(r"`([^`\n]+)`|^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(path: Path) -> str:
    """What a page says in code; a file that is no page is all code."""
    text = path.read_text()
    if path.suffix != ".md":
        return text
    return "\n".join(span or block for span, block in IN_CODE.findall(text))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_verb_of_lastseat_exists_with_its_options(path: Path) -> None:
    for verb, rest in re.findall(r"(?<![\w./])(?:[\w$()./]*/)?lastseat ([a-z]\w*)([^\n`#;&|]*)", code_of(path)):
        assert verb in main.commands, f"lastseat {verb}"
        options = {option for parameter in main.commands[verb].params for option in parameter.opts}
        assert set(re.findall(r"(?<=[\s\[])(--[\w-]+)", rest)) <= options, f"lastseat {verb}{rest}"


@pytest.mark.parametrize(
    "path", [page for page in PAGES if page.suffix == ".md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_target_of_make_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|[\s`$])make ([a-z][a-z-]*)\b", code_of(path), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if path.suffix == ".md" else []
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
