"""The catalogue: concerts, their schedules, and the numbered seats that each schedule's sale begins with."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from engine import ids, sales
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import SaleBook, StaleVersion
from engine.stores import queries
from engine.stores.connections import Stores

PRICE_MAX: Final = 10**12

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

    @property
    def seat_no(self) -> str:
        """The name under which it is sold."""
        return f"{self.section}-{self.row}-{self.number}"


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
    fingerprint: str,
) -> tuple[Schedule, bool] | IdempotencyKeyReused | NotFound:
    """Make a schedule, its sale and its seats, all or nothing; answers whether an earlier request made it.

    The sale stands in Postgres and is not yet on sale: writing it to Redis is the next step.
    """
    earlier = await find_schedule(postgres, schedule_id)
    if earlier is not None:
        return (earlier, True) if earlier.fingerprint == fingerprint else IdempotencyKeyReused()
    if await find_concert(postgres, concert_id) is None:
        return NotFound()
    sale_id = ids.derive("sale of schedule", schedule_id)
    offered = sum(not seat.blocked for seat in seats)
    async with postgres.acquire() as connection, connection.transaction():
        await sales.create(connection, sale_id=sale_id, kind="seats", terms=terms)
        added = await SQL.add_schedule.fetchval(
            connection, schedule_id, concert_id, sale_id, start_at, len(seats), offered, fingerprint
        )
        if added:
            await SQL.add_seats.execute(connection, sale_id, *_columns(seats))
    schedule = await find_schedule(postgres, schedule_id)
    if schedule is None or schedule.fingerprint != fingerprint:
        return IdempotencyKeyReused()
    return schedule, not added


def _columns(seats: Sequence[Seat]) -> tuple[list[Any], ...]:
    return (
        [seat.seat_no for seat in seats],
        [seat.section for seat in seats],
        [seat.row for seat in seats],
        [seat.number for seat in seats],
        [seat.category for seat in seats],
        [seat.price for seat in seats],
        [seat.accessible for seat in seats],
        [seat.blocked for seat in seats],
    )


async def edit_schedule(
    stores: Stores,
    book: SaleBook,
    *,
    schedule_id: str,
    version: int,
    start_at: datetime | None,
    changes: Mapping[str, object],
) -> Schedule | StaleVersion | NotFound:
    """Change the start of a schedule and the terms of its sale, if the schedule still has this version."""
    schedule = await find_schedule(stores.postgres, schedule_id)
    if schedule is None:
        return NotFound()
    async with stores.postgres.acquire() as connection, connection.transaction():
        start_at = start_at or schedule.start_at
        if not await SQL.edit_schedule.execute(connection, schedule_id, version, start_at):
            return StaleVersion(schedule.version)
        await sales.edit(connection, sale_id=schedule.sale_id, changes=changes)
    sale = await book.read(schedule.sale_id)
    if sale is not None:
        await sales.send_terms(stores.gate, sale)
    return await find_schedule(stores.postgres, schedule_id) or NotFound()


async def find_schedule(postgres: asyncpg.Pool, schedule_id: str) -> Schedule | None:
    """One schedule by id."""
    row = await SQL.find_schedule.fetchrow(postgres, schedule_id)
    return Schedule(**row) if row else None


async def list_schedules(postgres: asyncpg.Pool, concert_ids: Sequence[str]) -> list[Schedule]:
    """The schedules of these concerts, in the order they take place."""
    return [Schedule(**row) for row in await SQL.list_schedules.fetch(postgres, concert_ids)]


async def list_seats(postgres: asyncpg.Pool, sale_id: str) -> list[dict[str, Any]]:
    """What never changes of the seats of a sale, in reading order."""
    return [dict(row) for row in await SQL.list_seats.fetch(postgres, sale_id)]
