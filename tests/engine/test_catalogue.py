"""Concerts and schedules stand whole, once, and are edited by version."""

import asyncio
from datetime import UTC, datetime

import asyncpg

from engine import catalogue
from engine.catalogue import Concert, Poster, Schedule, Seat
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import StaleVersion, Terms

START = datetime(2027, 5, 1, 10, tzinfo=UTC)
SEATS = [Seat(section="A", row="1", number=number, category="R", price=5, blocked=number == 3) for number in (1, 2, 3)]


async def concert(postgres: asyncpg.Pool, concert_id: str = "c" * 32, title: str = "Winterreise") -> object:
    return await catalogue.create_concert(postgres, concert_id=concert_id, poster=Poster(title=title))


async def schedule(postgres: asyncpg.Pool, fingerprint: str = "f", seats: list[Seat] = SEATS) -> object:
    return await catalogue.create_schedule(
        postgres,
        schedule_id="d" * 32,
        concert_id="c" * 32,
        start_at=START,
        terms=Terms(name="Winterreise"),
        seats=seats,
        fingerprint=fingerprint,
    )


async def test_a_concert_is_made_once(postgres: asyncpg.Pool) -> None:
    made = [await concert(postgres) for _ in range(2)]
    assert [isinstance(one, tuple) and one[1] for one in made] == [False, True]
    assert await concert(postgres, title="Another") == IdempotencyKeyReused()


async def test_one_of_two_edits_of_a_version_stands(postgres: asyncpg.Pool) -> None:
    await concert(postgres)
    edits = [
        await catalogue.edit_concert(postgres, concert_id="c" * 32, version=1, changes={"title": title})
        for title in ("A", "B")
    ]
    assert isinstance(edits[0], Concert)
    assert edits[1] == StaleVersion(2)
    assert (await catalogue.find_concert(postgres, "c" * 32)) == edits[0]
    missing = await catalogue.edit_concert(postgres, concert_id="0" * 32, version=1, changes={})
    assert missing == NotFound()


async def test_a_schedule_makes_its_sale_and_its_seats(postgres: asyncpg.Pool) -> None:
    await concert(postgres)
    made = await schedule(postgres)
    assert isinstance(made, tuple)
    found: Schedule = made[0]
    assert (found.seats_total, found.seats_available, found.start_at, made[1]) == (3, 2, START, False)
    assert [seat["seat_no"] for seat in await catalogue.list_seats(postgres, found.sale_id)] == [
        "A-1-1",
        "A-1-2",
        "A-1-3",
    ]
    assert await postgres.fetchval("SELECT store_state FROM sales WHERE sale_id = $1", found.sale_id) == "new"
    assert await catalogue.list_schedules(postgres, ["c" * 32]) == [found]


async def test_a_schedule_is_made_once(postgres: asyncpg.Pool) -> None:
    await concert(postgres)
    made = await asyncio.gather(*(schedule(postgres) for _ in range(4)))
    assert sum(isinstance(one, tuple) and not one[1] for one in made) == 1
    assert await schedule(postgres, "other") == IdempotencyKeyReused()
    assert await postgres.fetchval("SELECT count(*) FROM seats") == 3


async def test_a_schedule_of_no_concert_is_not_made(postgres: asyncpg.Pool) -> None:
    assert await schedule(postgres) == NotFound()
    assert await postgres.fetchval("SELECT count(*) FROM sales") == 0
