"""Concerts and schedules stand whole, once, and are edited by version."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from engine import catalogue, offers, rebuild, sales, seats
from engine.catalogue import Area, Block, Concert, Offering, Offerings, Poster, Schedule, Seat, Tier
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import SaleBook, StaleVersion, Terms
from engine.stores.connections import Stores

START = datetime(2027, 5, 1, 10, tzinfo=UTC)
SEATS = [Seat(section="A", row="1", number=number, category="R", price=5, blocked=number == 3) for number in (1, 2, 3)]


async def concert(postgres: asyncpg.Pool, concert_id: str = "c" * 32, title: str = "Winterreise") -> object:
    return await catalogue.create_concert(postgres, concert_id=concert_id, poster=Poster(title=title))


PIT = Area(area="Pit", category="STANDING", price=3, quantity=4)
LAWN = Area(area="Lawn", category="STANDING", price=2, quantity=2, block="fans")
CHILD = Tier(tier="child", category="STANDING", price=1, max=2)
FANS = Block(block="fans", access_code="LIED", opens_at=START - timedelta(days=9))


async def schedule(postgres: asyncpg.Pool, fingerprint: str = "f", seats: list[Seat] = SEATS, **offer: Any) -> object:
    return await catalogue.create_schedule(
        postgres,
        schedule_id="d" * 32,
        concert_id="c" * 32,
        start_at=START,
        terms=Terms(name="Winterreise"),
        seats=seats,
        fingerprint=fingerprint,
        **offer,
    )


async def whole_schedule(postgres: asyncpg.Pool) -> Schedule:
    """A schedule with one of everything: nine seats and places, one of them blocked, three in a block."""
    await concert(postgres)
    seats = [*SEATS[:2], SEATS[2], Seat(section="A", row="1", number=4, category="R", price=5, block="fans")]
    made = await schedule(postgres, seats=seats, areas=[PIT, LAWN], tiers=[CHILD], blocks=[FANS])
    assert isinstance(made, tuple)
    found: Schedule = made[0]
    return found


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


# What a sale offers ---------------------------------------------------------------------------------------------------


async def test_areas_tiers_and_blocks_stand_beside_the_seats(postgres: asyncpg.Pool) -> None:
    made = await whole_schedule(postgres)
    assert (made.seats_total, made.seats_available) == (10, 9)
    offerings = await catalogue.find_offerings(postgres, [made.sale_id, "0" * 32])
    assert offerings["0" * 32] == Offering()
    found = offerings[made.sale_id]
    assert [(area.area, area.quantity, area.available, area.block) for area in found.areas] == [
        ("Pit", 4, 4, None),
        ("Lawn", 2, 2, "fans"),
    ]
    assert (found.tiers, found.blocks) == ((CHILD,), (FANS,))
    assert await catalogue.count_blocks(postgres, made.sale_id) == {"fans": 3}
    # Buyers are shown numbered seats; an operator is shown each place.
    assert len(await catalogue.list_seats(postgres, made.sale_id)) == 4
    every = await catalogue.list_every_seat(postgres, made.sale_id, after="", most=100)
    assert [seat.seat_no for seat in every] == sorted(
        [f"A-1-{number}" for number in (1, 2, 3, 4)]
        + [f"Pit-GA-{number}" for number in (1, 2, 3, 4)]
        + [f"Lawn-GA-{number}" for number in (1, 2)]
    )
    assert {seat.seat_no: seat.block for seat in every if seat.block} == {
        "A-1-4": "fans",
        "Lawn-GA-1": "fans",
        "Lawn-GA-2": "fans",
    }
    after = await catalogue.list_every_seat(postgres, made.sale_id, after="Lawn-GA-2", most=1)
    assert [(seat.seat_no, seat.area, seat.price) for seat in after] == [("Pit-GA-1", "Pit", 3)]


async def test_seats_keep_the_order_in_which_they_were_listed(postgres: asyncpg.Pool) -> None:
    await concert(postgres)
    # More than one statement inserts.
    seats = [Seat(section="A", row=str(n), number=1, category="R", price=5) for n in range(6001, 0, -1)]
    made = await schedule(postgres, seats=seats, areas=[PIT])
    assert isinstance(made, tuple)
    assert await catalogue.list_seats_in_order(postgres, made[0].sale_id) == seats


async def test_what_is_left_of_an_area_is_neither_sold_nor_blocked(postgres: asyncpg.Pool) -> None:
    made = await whole_schedule(postgres)
    offerings = Offerings(postgres)
    found = await asyncio.gather(*[offerings.find(made.sale_id) for _ in range(20)])
    assert {offering.areas[0].available for offering in found} == {4}
    await postgres.execute("UPDATE seats SET sold = true WHERE seat_no = 'Pit-GA-2'")
    await postgres.execute("UPDATE seats SET blocked = true WHERE seat_no = 'Pit-GA-3'")
    assert (await offerings.find(made.sale_id)).areas[0].available == 4  # at most a second old
    offerings.forget(made.sale_id)
    assert (await offerings.find(made.sale_id)).areas[0].available == 2
    assert await offerings.find("0" * 32) == Offering()


async def test_places_and_blocks_are_kept_back_from_who_names_a_seat(stores: Stores) -> None:
    made = await whole_schedule(stores.postgres)
    assert await rebuild.ensure_open(stores, made.sale_id)
    sale = await SaleBook(stores.postgres).find(made.sale_id)
    assert sale is not None
    standing = await stores.redis.hgetall(sale.keys.seats)  # type: ignore[misc]
    assert standing == {b"A-1-3": b"BLOCKED - 0"}
    named: dict[str, Any] = {"hold_id": "a" * 32, "buyer_id": "b" * 32, "fingerprint": "f"}
    blocked = await seats.hold(stores.gate, sale, seat_nos=("A-1-4",), **named)
    assert blocked == seats.SeatTaken(("A-1-4 blocked",))
    place = await seats.hold(stores.gate, sale, seat_nos=(PIT.seat_nos[0],), **named)
    assert place == seats.SeatUnknown((PIT.seat_nos[0],))
    prices = await stores.redis.hgetall(sale.keys.prices)  # type: ignore[misc]
    assert (len(prices), prices[b"Pit-GA-1"]) == (10, b"3|2|0||10000001|P")


async def test_caps_and_blocks_are_edited_with_the_schedule(stores: Stores) -> None:
    postgres, book = stores.postgres, SaleBook(stores.postgres)
    made = await whole_schedule(postgres)
    assert await rebuild.ensure_open(stores, made.sale_id)
    before = await book.read(made.sale_id)
    tier = Tier(tier="child", category="STANDING", price=1, max=None)
    block = Block(block="fans", channel="bank", closes_at=START)
    edits: dict[str, Any] = {"start_at": None, "changes": {"release_jitter_s": 30}, "tiers": [tier], "blocks": [block]}
    edited = await catalogue.edit_schedule(stores.postgres, schedule_id=made.schedule_id, version=1, **edits)
    assert isinstance(edited, Schedule)
    assert (edited.version, edited.release_jitter_s) == (2, 30)
    found = (await catalogue.find_offerings(postgres, [made.sale_id]))[made.sale_id]
    assert (found.tiers, found.blocks) == ((tier,), (block,))
    after = await book.read(made.sale_id)
    assert before is not None
    assert after is not None
    assert after.version == before.version + 1
    # The sale's owner sees that its copy is behind, and sends everything that was edited.
    await offers.send(stores.gate, postgres, after)
    term = await stores.redis.hget(after.keys.sale, "release_jitter_ms")  # type: ignore[misc]
    assert term == b"30000"
    assert await stores.redis.hgetall(after.keys.tiers) == {b"child|2": b"1|"}  # type: ignore[misc]
    assert await stores.redis.hget(after.keys.blocks, "1") == b"|bank|0|%d" % sales.milliseconds(START)  # type: ignore[misc]
    stale = await catalogue.edit_schedule(stores.postgres, schedule_id=made.schedule_id, version=1, **edits)
    assert stale == StaleVersion(2)


async def test_an_edit_that_was_not_sent_comes_with_the_next_one(stores: Stores) -> None:
    made = await whole_schedule(stores.postgres)
    assert await rebuild.ensure_open(stores, made.sale_id)
    tier = Tier(tier="child", category="STANDING", price=1, max=1)
    edits: dict[str, Any] = {"start_at": None, "changes": {}, "tiers": [tier]}
    await catalogue.edit_schedule(stores.postgres, schedule_id=made.schedule_id, version=1, **edits)
    # Whoever edited it died here; the room is opened before the owner of the sale has looked.
    sale = await offers.configure(stores, SaleBook(stores.postgres), sale_id=made.sale_id, changes={"room": "open"})
    assert isinstance(sale, sales.Sale)
    assert await stores.redis.hgetall(sale.keys.tiers) == {b"child|2": b"1|1"}  # type: ignore[misc]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE blocks SET channel = 'bank'",
        "UPDATE blocks SET access_code = NULL",
        "UPDATE blocks SET closes_at = opens_at",
        "UPDATE areas SET quantity = 0",
        "UPDATE areas SET price = -1",
        "UPDATE areas SET block = 'nobody'",
        "UPDATE tiers SET max = -1",
        "UPDATE seats SET area = 'Pit' WHERE seat_no = 'A-1-1'",
        "UPDATE seats SET area = NULL, block = 'nobody' WHERE area = 'Pit'",
        "UPDATE seats SET section = 'Nowhere', area = 'Nowhere' WHERE seat_no = 'Pit-GA-1'",
        "UPDATE sales SET release_jitter_s = -1",
        "DELETE FROM blocks",
    ],
)
async def test_what_must_never_be_offered_is_refused_by_the_database(postgres: asyncpg.Pool, statement: str) -> None:
    await whole_schedule(postgres)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await postgres.execute(statement)


async def test_a_schedule_that_cannot_be_made_whole_is_not_made(postgres: asyncpg.Pool) -> None:
    await concert(postgres)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await schedule(postgres, areas=[PIT, LAWN], tiers=[CHILD])
    for table in ("sales", "schedules", "areas", "seats", "tiers"):
        assert await postgres.fetchval(f"SELECT count(*) FROM {table}") == 0
