"""The catalogue: concerts, their schedules, and what each schedule's sale offers.

A sale offers numbered seats and areas of places without a number. A tier is another price for seats of a category; a
block keeps seats from the public, for who knows its code or comes through its channel.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from engine import ids, sales
from engine.refusals import IdempotencyKeyReused, NotFound, SaleClosed
from engine.sales import StaleVersion
from engine.stores import queries
from engine.stores.coalesce import Coalescer

PRICE_MAX: Final = 10**12
# Seats and places of one sale together: every change of a sale runs on one core, and its seat map is read whole.
SEATS_MAX: Final = 100_000
# What all seats of a sale may cost together: every sum of its prices is exact wherever numbers are doubles.
VALUE_MAX: Final = 2**53 - 1
# The row of every place in an area.
PLACES_ROW: Final = "GA"

# One statement inserts so many seats: its arguments are encoded on the event loop, a few milliseconds at a time.
_SEATS_AT_ONCE = 5_000
# What is left of an area may be told so much later: it is counted over all its places.
_FRESH_S = 1.0
_OFFERINGS_KEPT_MAX = 1024

SQL = queries.load("catalogue")


class Poster(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of a concert."""

    title: str
    description: str | None = None
    artist: str | None = None
    venue: str | None = None
    poster_image_url: str | None = None


class Concert(Poster, frozen=True, kw_only=True):
    """What takes place on one date or on several."""

    concert_id: str
    fingerprint: str
    version: int
    created_at: datetime


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """One date of a concert, with the terms of its sale."""

    schedule_id: str
    concert_id: str
    sale_id: str
    start_at: datetime
    opens_at: datetime | None
    closes_at: datetime | None
    seats_total: int
    seats_available: int
    per_buyer_max: int | None
    hold_s: int
    pay_s: int
    release_jitter_s: int
    offer_s: int
    refund_policy: tuple[dict[str, int], ...]
    fingerprint: str
    version: int


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A numbered seat as an operator describes it."""

    section: str
    row: str
    number: int
    category: str
    price: int
    accessible: bool = False
    blocked: bool = False
    block: str | None = None

    @property
    def seat_no(self) -> str:
        """The name under which it is sold."""
        return f"{self.section}-{self.row}-{self.number}"


class Area(msgspec.Struct, frozen=True, kw_only=True):
    """So many places without a number, of which a buyer gets any."""

    area: str
    category: str
    price: int
    quantity: int
    block: str | None = None

    @property
    def seat_nos(self) -> list[str]:
        """The names of its places, of which only Lastseat itself makes use."""
        return [f"{self.area}-{PLACES_ROW}-{number}" for number in range(1, self.quantity + 1)]


class AreaLeft(Area, frozen=True, kw_only=True):
    """An area, and how many of its places are neither sold nor blocked."""

    available: int


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Another price for seats of a category; at most `max` of it at once, where there is a cap."""

    tier: str
    category: str
    price: int
    max: int | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Seats kept from the public: for who has the code or comes through the channel, within its times."""

    block: str
    access_code: str | None = None
    channel: str | None = None
    opens_at: datetime | None = None
    closes_at: datetime | None = None


class Offering(msgspec.Struct, frozen=True):
    """What a sale offers beside its numbered seats."""

    areas: tuple[AreaLeft, ...] = ()
    tiers: tuple[Tier, ...] = ()
    blocks: tuple[Block, ...] = ()


# Concerts -------------------------------------------------------------------------------------------------------------


async def create_concert(
    postgres: asyncpg.Pool, *, concert_id: str, poster: Poster
) -> tuple[Concert, bool] | IdempotencyKeyReused:
    """Make a concert; answers it as it now stands, and whether an earlier request made it."""
    fingerprint = ids.fingerprint(*(text or "" for text in msgspec.structs.astuple(poster)))
    added = await SQL.add_concert.fetchval(postgres, concert_id, *msgspec.structs.astuple(poster), fingerprint)
    concert = await find_concert(postgres, concert_id)
    if concert is None or concert.fingerprint != fingerprint:
        return IdempotencyKeyReused()
    return concert, not added


async def find_concert(postgres: asyncpg.Pool, concert_id: str) -> Concert | None:
    """One concert by id."""
    row = await SQL.find_concert.fetchrow(postgres, concert_id)
    return Concert(**row) if row else None


async def list_concerts(postgres: asyncpg.Pool, *, before: tuple[datetime, str] | None, most: int) -> list[Concert]:
    """Concerts, newest first, from before a place in that order on."""
    made_at, concert_id = before or (None, None)
    return [Concert(**row) for row in await SQL.list_concerts.fetch(postgres, made_at, concert_id, most)]


async def edit_concert(
    postgres: asyncpg.Pool, *, concert_id: str, version: int, changes: dict[str, Any]
) -> Concert | StaleVersion | NotFound:
    """Change what these fields of a concert say, if it still has this version."""
    concert = await find_concert(postgres, concert_id)
    if concert is None:
        return NotFound()
    edited = msgspec.structs.replace(concert, **changes)
    poster = [getattr(edited, field) for field in Poster.__struct_fields__]
    edited_version = await SQL.edit_concert.fetchval(postgres, concert_id, version, *poster)
    if edited_version is None:
        return StaleVersion(concert.version)
    return msgspec.structs.replace(edited, version=edited_version)


# Schedules ------------------------------------------------------------------------------------------------------------


async def create_schedule(
    postgres: asyncpg.Pool,
    *,
    schedule_id: str,
    concert_id: str,
    start_at: datetime,
    terms: sales.Terms,
    seats: Sequence[Seat],
    areas: Sequence[Area] = (),
    tiers: Sequence[Tier] = (),
    blocks: Sequence[Block] = (),
    fingerprint: str,
) -> tuple[Schedule, bool] | IdempotencyKeyReused | NotFound:
    """Make a schedule, its sale and what that offers, all or nothing; answers whether an earlier request made it.

    Seats are listed best first. The sale stands in Postgres and is not yet on sale: it is written to Redis next.
    """
    earlier = await find_schedule(postgres, schedule_id)
    if earlier is not None:
        return (earlier, True) if earlier.fingerprint == fingerprint else IdempotencyKeyReused()
    if await find_concert(postgres, concert_id) is None:
        return NotFound()
    sale_id = ids.derive("sale of schedule", schedule_id)
    seats_total = len(seats) + sum(area.quantity for area in areas)
    available = seats_total - sum(seat.blocked for seat in seats)
    async with postgres.acquire() as connection, connection.transaction():
        await sales.create(connection, sale_id=sale_id, kind="seats", terms=terms)
        added = await SQL.add_schedule.fetchval(
            connection, schedule_id, concert_id, sale_id, start_at, seats_total, available, fingerprint
        )
        if added:
            # Blocks first: seats and areas refer to them.
            await SQL.add_blocks.execute(connection, sale_id, *_columns(blocks, Block.__struct_fields__))
            await SQL.add_areas.execute(connection, sale_id, *_columns(areas, Area.__struct_fields__))
            await SQL.add_places.execute(connection, sale_id)
            await SQL.add_tiers.execute(connection, sale_id, *_columns(tiers, Tier.__struct_fields__))
            for at in range(0, len(seats), _SEATS_AT_ONCE):
                columns = _columns(seats[at : at + _SEATS_AT_ONCE], ("seat_no", *Seat.__struct_fields__))
                await SQL.add_seats.execute(connection, sale_id, at, *columns)
    schedule = await find_schedule(postgres, schedule_id)
    if schedule is None or schedule.fingerprint != fingerprint:
        return IdempotencyKeyReused()
    return schedule, not added


def _columns(rows: Sequence[object], fields: Sequence[str]) -> list[list[object]]:
    """Rows as Postgres takes many at once: a list for each column."""
    return [[getattr(row, field) for row in rows] for field in fields]


async def edit_schedule(
    postgres: asyncpg.Pool,
    *,
    schedule_id: str,
    version: int,
    start_at: datetime | None,
    changes: Mapping[str, object],
    tiers: Sequence[Tier] = (),
    blocks: Sequence[Block] = (),
) -> Schedule | SaleClosed | StaleVersion | NotFound:
    """Change the start of a schedule and the terms of its sale, if the schedule still has this version.

    Each of `tiers` and `blocks` stands in place of the one of its name: the cap of a tier, for whom and when a block is
    kept. What seats cost and which block they are in never changes. The store is told by `offers.send`.
    """
    schedule = await find_schedule(postgres, schedule_id)
    if schedule is None:
        return NotFound()
    async with postgres.acquire() as connection, connection.transaction():
        if await sales.would_sell_again(connection, sale_id=schedule.sale_id, changes=changes):
            return SaleClosed()
        start_at = start_at or schedule.start_at
        if not await SQL.edit_schedule.execute(connection, schedule_id, version, start_at):
            return StaleVersion(schedule.version)
        # This raises the version of the sale, so that a copy in Redis without the change is seen to be behind.
        await sales.edit(connection, sale_id=schedule.sale_id, changes=changes)
        if tiers:
            await SQL.edit_tiers.execute(connection, schedule.sale_id, *_columns(tiers, ("tier", "category", "max")))
        if blocks:
            await SQL.edit_blocks.execute(connection, schedule.sale_id, *_columns(blocks, Block.__struct_fields__))
    return await find_schedule(postgres, schedule_id) or NotFound()


async def find_schedule(postgres: asyncpg.Pool, schedule_id: str) -> Schedule | None:
    """One schedule by id."""
    row = await SQL.find_schedule.fetchrow(postgres, schedule_id)
    return _schedule(row) if row else None


async def list_schedules(postgres: asyncpg.Pool, concert_ids: Sequence[str]) -> list[Schedule]:
    """The schedules of these concerts, in the order they take place."""
    return [_schedule(row) for row in await SQL.list_schedules.fetch(postgres, concert_ids)]


def _schedule(row: asyncpg.Record) -> Schedule:
    return Schedule(**{**row, "refund_policy": tuple(row["refund_policy"])})


# What a sale offers ---------------------------------------------------------------------------------------------------


class SeatRow(Seat, frozen=True, kw_only=True):
    """A seat or a place as it stands in Postgres; `area` names the one that it is a place of."""

    area: str | None
    sold: bool


async def list_seats(postgres: asyncpg.Pool, sale_id: str) -> list[dict[str, Any]]:
    """What never changes of the numbered seats of a sale, in reading order."""
    return [dict(row) for row in await SQL.list_seats.fetch(postgres, sale_id)]


class Hidden(msgspec.Struct, frozen=True):
    """What a map does not show as it is: places of areas, and seats that are kept for somebody."""

    places: frozenset[str]
    kept: frozenset[str]


async def find_hidden(postgres: asyncpg.Pool, sale_id: str) -> Hidden:
    """What the map of a sale does not show as it is; it never changes."""
    rows = await SQL.list_hidden_seats.fetch(postgres, sale_id)
    places = frozenset(row["seat_no"] for row in rows if row["is_place"])
    return Hidden(places, frozenset(row["seat_no"] for row in rows) - places)


async def list_seats_in_order(postgres: asyncpg.Pool, sale_id: str) -> list[Seat]:
    """The numbered seats of a sale as its operator listed them, the best first."""
    return [Seat(**row) for row in await SQL.list_seats_in_order.fetch(postgres, sale_id)]


async def list_categories(postgres: asyncpg.Pool, sale_id: str) -> list[str]:
    """The categories of a sale in the order in which its seats, and then its areas, name them."""
    return [row["category"] for row in await SQL.list_categories.fetch(postgres, sale_id)]


async def list_every_seat(postgres: asyncpg.Pool, sale_id: str, *, after: str, most: int) -> list[SeatRow]:
    """The seats and places of a sale by number, from after one of them on."""
    return [SeatRow(**row) for row in await SQL.list_every_seat.fetch(postgres, sale_id, after, most)]


async def count_blocks(postgres: asyncpg.Pool, sale_id: str) -> dict[str, int]:
    """How many seats and places each block of a sale keeps back."""
    return {row["block"]: row["seats"] for row in await SQL.count_blocks.fetch(postgres, sale_id)}


async def find_offerings(postgres: asyncpg.Pool, sale_ids: Sequence[str]) -> dict[str, Offering]:
    """What these sales offer beside their numbered seats, counted now."""
    areas, tiers, blocks = (
        _by_sale(rows, kind)
        for rows, kind in (
            (await SQL.list_areas.fetch(postgres, sale_ids), AreaLeft),
            (await SQL.list_tiers.fetch(postgres, sale_ids), Tier),
            (await SQL.list_blocks.fetch(postgres, sale_ids), Block),
        )
    )
    return {sale_id: Offering(areas[sale_id], tiers[sale_id], blocks[sale_id]) for sale_id in sale_ids}


def _by_sale(rows: Sequence[asyncpg.Record], kind: type[Any]) -> "defaultdict[str, tuple[Any, ...]]":
    found: defaultdict[str, tuple[Any, ...]] = defaultdict(tuple)
    for row in rows:
        values = dict(row)
        found[values.pop("sale_id")] += (kind(**values),)
    return found


class Offerings:
    """What sales offer beside their numbered seats, as one process tells it: at most a second old."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self._known: dict[str, tuple[float, Offering]] = {}
        # However many ask at once, one read answers them all.
        self._read = Coalescer(self._read_stale, most=256, in_flight_max=1)

    async def find(self, sale_id: str) -> Offering:
        """What this sale offers beside its numbered seats; of one that does not exist, nothing."""
        return self._fresh(sale_id) or await self._read.submit(sale_id)

    def forget(self, sale_id: str) -> None:
        """Read it anew next time: it was just changed here."""
        self._known.pop(sale_id, None)

    def _fresh(self, sale_id: str) -> Offering | None:
        until, offering = self._known.get(sale_id, (0.0, None))
        return offering if asyncio.get_running_loop().time() < until else None

    async def _read_stale(self, sale_ids: list[str]) -> list[Offering]:
        # Some of them were read by the batch before this one.
        answers = {sale_id: self._fresh(sale_id) for sale_id in sale_ids}
        stale = [sale_id for sale_id, offering in answers.items() if offering is None]
        began = asyncio.get_running_loop().time()
        for sale_id, offering in (await find_offerings(self._postgres, stale) if stale else {}).items():
            answers[sale_id] = offering
            self._known.pop(sale_id, None)
            self._known[sale_id] = began + _FRESH_S, offering
        while len(self._known) > _OFFERINGS_KEPT_MAX:
            del self._known[next(iter(self._known))]
        return [answers[sale_id] or Offering() for sale_id in sale_ids]
