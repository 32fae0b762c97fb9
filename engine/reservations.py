"""Reservations: what Postgres says of a hold, from the first entry of the journal to the last.

One id from hold to end. A row is PENDING, then CONFIRMED or CANCELLED; one that has ended is never revived. While a
hold runs, Redis knows more than the row (the journal comes a moment later); CONFIRMED is a word of Postgres alone.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from engine import seats
from engine.sales import Sale, SaleBook
from engine.stores import queries
from engine.stores.outbox import BadEntry, Entry
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate

SQL = queries.load("reservations")

LATEST = datetime(9999, 1, 1, tzinfo=UTC)
LAST_ID = "f" * 32


class Line(msgspec.Struct, frozen=True):
    """One seat of a reservation; HELD, CLAIMED or ENDED."""

    seat_no: str
    price: int
    status: str
    ticket_no: int | None = None
    tier: str | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation as it stands; amounts in minor units, `status` PENDING, CONFIRMED or CANCELLED."""

    reservation_id: str
    sale_id: str
    schedule_id: str
    user_id: str
    fingerprint: str
    status: str
    reason: str | None
    lines: tuple[Line, ...]
    amount: int
    created_at: datetime
    expires_at: datetime
    confirmed_at: datetime | None
    version: int
    payment_id: str | None
    server_time: datetime


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a row needs to know of a hold."""

    reservation_id: str
    sale_id: str
    schedule_id: str
    user_id: str
    epoch: int
    fence: int
    queue_no: int
    fingerprint: str
    amount: int
    expires_at_ms: int
    created_at_ms: int
    seat_nos: tuple[str, ...]
    prices: tuple[int, ...]
    # Of each seat, or of none.
    tiers: tuple[str | None, ...] = ()


def holding_of(sale: Sale, reservation_id: str, user_id: str, paying: seats.Paying) -> Holding:
    """What transaction A needs to know of a hold that is PAYING."""
    return Holding(
        reservation_id=reservation_id,
        sale_id=sale.sale_id,
        schedule_id=str(sale.schedule_id),
        user_id=user_id,
        epoch=sale.epoch,
        fence=paying.fence,
        queue_no=paying.queue_no,
        fingerprint=paying.fingerprint,
        amount=paying.amount,
        expires_at_ms=paying.expires_at_ms,
        created_at_ms=paying.created_at_ms,
        seat_nos=tuple([line.seat_no for line in paying.lines]),
        prices=tuple([line.price for line in paying.lines]),
        tiers=tuple([line.tier for line in paying.lines]),
    )


class Standing(msgspec.Struct):
    """A row that is locked: how it stands, and the seats that it holds or claims."""

    user_id: str
    status: str
    fence: int
    seat_nos: list[str]


# Writing --------------------------------------------------------------------------------------------------------------


async def add(connection: Connection, holdings: Sequence[Holding]) -> None:
    """Write PENDING rows with their seats; what is there already, however it stands, stays."""
    if not holdings:
        return
    rows = await SQL.add_reservations.fetch(
        connection,
        *[
            [getattr(holding, name) for holding in holdings]
            for name in (
                "reservation_id",
                "sale_id",
                "schedule_id",
                "user_id",
                "epoch",
                "fence",
                "queue_no",
                "fingerprint",
                "amount",
                "expires_at_ms",
                "created_at_ms",
            )
        ],
    )
    added = {row["reservation_id"] for row in rows}
    lines = [
        (holding.reservation_id, seat_no, holding.sale_id, price, tier)
        for holding in holdings
        if holding.reservation_id in added
        for seat_no, price, tier in zip(
            holding.seat_nos, holding.prices, holding.tiers or (None,) * len(holding.seat_nos), strict=True
        )
    ]
    if lines:
        await SQL.add_lines.execute(connection, *map(list, zip(*lines, strict=True)))


async def release(connection: Connection, released: Sequence[tuple[str, str]]) -> None:
    """End single seats of rows that still wait, given as (reservation_id, seat_no), and sum up what is left."""
    if released:
        reservation_ids, seat_nos = map(list, zip(*released, strict=True))
        await SQL.end_lines.execute(connection, reservation_ids, seat_nos)
        await SQL.sum_lines.execute(connection, list(set(reservation_ids)))


async def end(connection: Connection, endings: dict[str, str]) -> None:
    """End rows that still wait, each with its reason, and their seats."""
    if endings:
        rows = await SQL.end_reservations.fetch(connection, list(endings), list(endings.values()))
        await SQL.end_lines_of.execute(connection, [row["reservation_id"] for row in rows])


async def record(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Write what the journal says of holds: held, extended, released, expired; other kinds are passed over.

    The facts of one hold are folded, so that each row is written by one statement of a kind, in the order in which
    a hold can live: it begins, it is extended, it gives seats back, it ends. Raises BadEntry.
    """
    held: dict[str, Holding] = {}
    extended: dict[str, int] = {}
    released: list[tuple[str, str]] = []
    endings: dict[str, str] = {}
    for entry in entries:
        match entry.kind:
            case "held":
                held[entry.id("hold_id")] = _holding(sale, entry)
            case "extended":
                extended[entry.id("hold_id")] = entry.number("expires_at_ms")
            case "released" if entry.text("whole") == "1":
                endings[entry.id("hold_id")] = "USER"
            case "released":
                released.extend((entry.id("hold_id"), seat_no) for seat_no in entry.text("seats").split(","))
            case "expired":
                endings[entry.id("hold_id")] = "EXPIRED"
            case _:
                pass
    await add(connection, list(held.values()))
    if extended:
        await SQL.extend_reservations.execute(connection, list(extended), list(extended.values()))
    await release(connection, released)
    await end(connection, endings)


def _holding(sale: Sale, entry: Entry) -> Holding:
    seat_nos, prices = entry.text("seats").split(","), entry.text("prices").split(",")
    tiers = entry.fields["tiers"].split(",") if "tiers" in entry.fields else []
    if len(seat_nos) != len(prices) or not all(price.isdecimal() for price in prices):
        raise BadEntry(f"{entry.kind}: {prices} are not the prices of {seat_nos}")
    if tiers and len(tiers) != len(seat_nos):
        raise BadEntry(f"{entry.kind}: {tiers} are not the tiers of {seat_nos}")
    return Holding(
        reservation_id=entry.id("hold_id"),
        sale_id=sale.sale_id,
        schedule_id=str(sale.schedule_id),
        user_id=entry.id("buyer_id"),
        epoch=entry.epoch,
        fence=entry.number("fence"),
        queue_no=entry.number("queue_no"),
        fingerprint=entry.text("fingerprint"),
        amount=entry.number("amount"),
        expires_at_ms=entry.number("expires_at_ms"),
        created_at_ms=entry.number("created_at_ms"),
        seat_nos=tuple(seat_nos),
        prices=tuple(map(int, prices)),
        tiers=tuple([None if tier == "-" else tier for tier in tiers]),
    )


async def lock(connection: Connection, reservation_ids: Sequence[str]) -> dict[str, Standing]:
    """Lock rows in id order and answer how they stand; their seats are still to be read."""
    return {
        row["reservation_id"]: Standing(row["user_id"], row["status"], row["fence"], [])
        for row in await SQL.lock_reservations.fetch(connection, reservation_ids)
    }


# Reading --------------------------------------------------------------------------------------------------------------


async def find(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, *, reservation_id: str, user_id: str
) -> Reservation | SaleRebuilding | None:
    """How a user's reservation stands: what Redis knows of the hold, unless the row has the last word."""
    row = await SQL.find_reservation.fetchrow(postgres, reservation_id, user_id)
    known = from_row(row) if row else None
    if row is not None and row["status"] != "PENDING":
        return known
    # A deadline that has passed in the row may have been put off in Redis: the journal comes a moment later.
    found: seats.Hold | Refusal | None = None
    for sale in book.find_by_prefix(reservation_id):
        found = await seats.find(gate, sale, hold_id=reservation_id)
        if isinstance(found, seats.Hold):
            if found.buyer_id != user_id:
                return None
            return _merge(sale, known, found)
    if known is not None:
        return known
    if isinstance(found, SaleRebuilding | SaleUnknown | StaleEpoch):
        return SaleRebuilding()
    return None


def _merge(sale: Sale, row: Reservation | None, hold: seats.Hold) -> Reservation:
    """A hold that Postgres has not ended, as its buyer is told of it."""
    ended = hold.state == "ENDED"
    return Reservation(
        reservation_id=hold.hold_id,
        sale_id=sale.sale_id,
        schedule_id=str(sale.schedule_id),
        user_id=hold.buyer_id,
        fingerprint=hold.fingerprint,
        # SOLD without its row is PENDING: nobody hears "confirmed" before the commit.
        status="CANCELLED" if ended else "PENDING",
        reason=(hold.reason or "EXPIRED") if ended else None,
        lines=tuple(
            [Line(line.seat_no, line.price, "ENDED" if ended else "HELD", tier=line.tier) for line in hold.lines]
        ),
        amount=hold.amount,
        created_at=moment(hold.created_at_ms),
        expires_at=moment(hold.expires_at_ms),
        confirmed_at=None,
        version=row.version if row else 1,
        payment_id=hold.payment_id or (row.payment_id if row else None),
        server_time=moment(hold.now_ms),
    )


async def list_mine(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Reservation]:
    """A user's reservations, newest first, from after the cursor (created_at, reservation_id)."""
    return [from_row(row) for row in await SQL.list_reservations.fetch(postgres, user_id, *before, limit)]


def from_row(row: asyncpg.Record | dict[str, Any]) -> Reservation:
    """Make a reservation of its row; one past its deadline that no payment holds has ended, sweep or not."""
    values = {name: row[name] for name in Reservation.__struct_fields__ if name != "lines"}
    lines = tuple([msgspec.convert(line, Line) for line in row["lines"]])
    if row["status"] == "PENDING" and not row["payment_live"] and row["expires_at"] <= row["server_time"]:
        values |= {"status": "CANCELLED", "reason": "EXPIRED"}
        lines = tuple([msgspec.structs.replace(line, status="ENDED") for line in lines])
    return Reservation(**values, lines=lines)


def moment(ms: int) -> datetime:
    """A moment that a script told in milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC)
