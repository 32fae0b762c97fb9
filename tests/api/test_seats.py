"""The seat map as bytes: drawn once however many ask, in both encodings, and sent again only when it changed."""

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api import seats
from api.house import House
from api.seats import Picture, Plan, SeatMaps, takes_gzip
from engine import catalogue
from engine.seat_maps import Maps, SeatMap
from tests.api.calling import Person, Show, hall, put_on


def path_of(show: Show) -> str:
    return f"/v1/schedules/{show.schedule_id}/seats"


async def get(http: httpx.AsyncClient, show: Show, encoding: str = "gzip", **headers: str) -> httpx.Response:
    named = {"Accept-Encoding": encoding} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.get(path_of(show), headers=named)


def forget(house: House, show: Show) -> None:
    """Let the map of this sale be read anew, as if it had grown old."""
    house.seat_maps._maps._watched[show.sale_id].fresh_until = 0.0


@pytest.fixture
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a map be drawn as soon as it changed, however long that took the last time."""
    monkeypatch.setattr(seats, "DRAWING_SHARE", 1e9)


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[object]:
    """Note each call of a function, and make it."""
    calls: list[object] = []
    real: Callable[..., object] = getattr(module, name)

    def call(*args: object, **named: object) -> object:
        calls.append(args)
        return real(*args, **named)

    monkeypatch.setattr(module, name, call)
    return calls


async def test_the_whole_map_is_told_in_both_encodings(people: list[Person], operator: Person) -> None:
    offered = [seat | {"blocked": seat["number"] == 5, "accessible": seat["number"] == 1} for seat in hall(rows=1)]
    show = await put_on(operator, seats=offered)
    await show.reserve(people[0], "A-1-2")
    plain = await get(operator.http, show, "identity")
    zipped = await get(operator.http, show)
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert plain.json() == zipped.json()
    assert plain.headers["etag"] == zipped.headers["etag"] == f'W/"{plain.json()["map_version"]}"'
    assert plain.headers["vary"] == zipped.headers["vary"] == "accept-encoding, origin"
    assert plain.json()["full"] is True
    assert plain.json()["seats"] == [
        {
            "seat_no": f"A-1-{number}",
            "section": "A",
            "row": "1",
            "number": number,
            "category": "R",
            "price": 1000,
            "accessible": number == 1,
            "status": {2: "HELD", 5: "BLOCKED"}.get(number, "FREE"),
        }
        for number in range(1, 6)
    ]


@pytest.mark.usefixtures("drawn_at_once")
async def test_a_map_that_did_not_change_is_not_sent_again(people: list[Person], show: Show, house: House) -> None:
    http = people[0].http
    tag = (await get(http, show)).headers["etag"]
    for encoding in ("gzip", "identity"):
        same = await get(http, show, encoding, If_None_Match=tag)
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    await show.reserve(people[0], "A-1-1")
    forget(house, show)
    newer = await get(http, show, If_None_Match=tag)
    assert newer.status_code == 200
    assert newer.headers["etag"] != tag
    assert [seat["seat_no"] for seat in newer.json()["seats"] if seat["status"] == "HELD"] == ["A-1-1"]
    assert (await get(http, show, If_None_Match='"x"')).status_code == 200


@pytest.mark.usefixtures("drawn_at_once")
async def test_a_map_is_drawn_once_however_many_ask(
    people: list[Person], show: Show, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, drawn = people[0].http, counting(monkeypatch, seats, "_write")
    plans = counting(monkeypatch, catalogue, "list_seats")
    answers = await asyncio.gather(*[get(http, show, ("gzip", "identity")[n % 2]) for n in range(40)])
    assert {answered.status_code for answered in answers} == {200}
    assert len({answered.text for answered in answers}) == 1
    assert (len(drawn), len(plans)) == (2, 1)
    await show.reserve(people[0], "A-1-1")
    forget(house, show)
    for _ in range(3):
        await get(http, show)
    assert (len(drawn), len(plans)) == (3, 1)


async def test_who_goes_away_does_not_stop_the_drawing(people: list[Person], show: Show) -> None:
    first = asyncio.create_task(get(people[0].http, show))
    others = [asyncio.create_task(get(people[0].http, show)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert {answered.status_code for answered in await asyncio.gather(*others)} == {200}


async def test_a_map_that_took_long_to_draw_is_shown_for_a_while(
    people: list[Person], show: Show, house: House
) -> None:
    before = (await get(people[0].http, show)).json()
    board = house.seat_maps._boards[show.sale_id]
    picture = board._pictures[True]
    board._pictures[True] = Picture(picture.version, picture.content, asyncio.get_running_loop().time() + 60)
    await show.reserve(people[0], "A-1-1")
    forget(house, show)
    shown = await get(people[0].http, show)
    assert shown.json() == before
    assert shown.headers["etag"] == f'W/"{before["map_version"]}"'
    # What changed is told from the map itself.
    changes = (await people[0].get(f"{path_of(show)}?since={before['map_version']}")).json()
    assert changes["seats"] == [{"seat_no": "A-1-1", "status": "HELD"}]


async def test_the_halls_that_nobody_looks_at_make_room(
    operator: Person, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "SEATS_KEPT_MAX", 25)
    shows = [await put_on(operator) for _ in range(3)]
    for show in (shows[0], shows[1], shows[0], shows[2]):
        assert (await get(operator.http, show)).status_code == 200
    assert list(house.seat_maps._boards) == [shows[0].sale_id, shows[2].sale_id]
    monkeypatch.setattr(seats, "SEATS_KEPT_MAX", 1)
    assert (await get(operator.http, shows[1])).status_code == 200
    assert list(house.seat_maps._boards) == [shows[1].sale_id]


def test_a_plan_writes_what_stands_on_it() -> None:
    rows = [
        {"seat_no": f"Ä-1-{n}", "section": "Ä", "row": "1", "number": n, "category": "R", "price": 10}
        for n in (1, 2, 3)
    ]
    plan = Plan(rows)
    statuses = {"Ä-1-1": "SOLD", "Ä-1-3": "BLOCKED", "stalls-GA-1": "SOLD"}
    for current in (SeatMap(8, statuses), SeatMap(9, {}), SeatMap(10, statuses)):
        told = json.loads(plan.write(current))
        assert (told["map_version"], told["full"]) == (current.version, True)
        assert told["seats"] == [row | {"status": current.statuses.get(str(row["seat_no"]), "FREE")} for row in rows]


async def test_a_hall_without_seats_has_an_empty_map(house: House) -> None:
    assert isinstance(house.seat_maps, SeatMaps)
    assert json.loads(Plan([]).write(SeatMap(7, {"stalls-GA-1": "SOLD"}))) == {
        "map_version": 7,
        "full": True,
        "seats": [],
    }


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True),
        ("GZIP, deflate, br", True),
        ("deflate, gzip;q=0.5", True),
        ("br;q=1.0, gzip;q=0.001", True),
        ("*", True),
        ("*;q=0.1", True),
        ("", False),
        ("identity", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_sent_to_who_takes_it(accepted: str, takes: bool) -> None:  # noqa: FBT001
    assert takes_gzip(accepted.encode()) is takes


def test_the_same_map_is_the_same_bytes_in_every_process() -> None:
    plan = Plan([{"seat_no": "A-1-1", "section": "A", "row": "1", "number": 1, "category": "R", "price": 10}])
    zipped = [seats._write(plan, SeatMap(8, {}), zipped=True) for _ in range(2)]
    assert zipped[0] == zipped[1]
    assert gzip.decompress(zipped[0]) == plan.write(SeatMap(8, {}))


async def test_closing_waits_for_what_is_being_read(house: House, show: Show) -> None:
    sale = await house.book.find(show.sale_id)
    assert sale is not None
    maps = Maps(house.gate)
    asking = asyncio.create_task(maps.read(sale))
    await asyncio.sleep(0)
    asking.cancel()
    await maps.close()
    assert all(watched.reading is not None and watched.reading.done() for watched in maps._watched.values())
