"""Reservations: what Postgres says of a hold, from the first entry of the journal to the last.

One id from hold to end. A row is PENDING, then CONFIRMED or CANCELLED; one that has ended is never revived. While a
hold runs, Redis knows more than the row (the journal comes a moment later); CONFIRMED is a word of Postgres alone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, cast

import asyncpg
import msgspec

from engine import coupons, seats
from engine.holdings import Beside, Lines, Sold, Standing, Wanted, restore_all
from engine.moments import LAST_ID, LATEST, moment
from engine.sales import Sale, SaleBook
from engine.stores import queries
from engine.stores.outbox import BadEntry, Entry
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate

SQL = queries.load("reservations")
PAYMENTS = queries.load("payments")


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
    """What a row needs to know of a hold of seats."""

    kind: ClassVar[str] = "seats"

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

    @property
    def hold_id(self) -> str:
        """One id from hold to end."""
        return self.reservation_id

    @property
    def lines(self) -> Lines:
        """What is held."""
        return dict.fromkeys(self.seat_nos, 1)


def holding_of(sale: Sale, hold_id: str, user_id: str, paying: seats.Paying) -> Holding:
    """What transaction A needs to know of a hold that is PAYING."""
    return Holding(
        reservation_id=hold_id,
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


# Writing --------------------------------------------------------------------------------------------------------------


async def add(connection: Connection, holdings: Sequence[Any]) -> None:
    """Write PENDING rows with their seats; what is there already, however it stands, stays."""
    if not holdings:
        return
    ours = cast("Sequence[Holding]", holdings)
    rows = await SQL.add_reservations.fetch(
        connection,
        *[
            [getattr(holding, name) for holding in ours]
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
        for holding in ours
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


async def end(connection: Connection, endings: Mapping[str, str]) -> None:
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


# For transactions A and B ---------------------------------------------------------------------------------------------


async def lock(connection: Connection, reservation_ids: Sequence[str]) -> dict[str, Standing]:
    """Lock rows in id order and answer how they stand; their seats are still to be read."""
    return {
        row["reservation_id"]: Standing(row["user_id"], row["status"], row["fence"])
        for row in await SQL.lock_reservations.fetch(connection, reservation_ids)
    }


async def read_beside(
    connection: Connection, rows: Mapping[str, Standing], payment_ids: Sequence[str], reservation_ids: Sequence[str]
) -> list[Beside]:
    """Read what stands beside these payments, and the seats of the locked rows."""
    found = await SQL.find_beside.fetch(connection, payment_ids, reservation_ids)
    for row in found:
        rows[row["reservation_id"]].lines = dict.fromkeys(row["seat_nos"], 1)
    return [Beside(row["payment_id"], row["reservation_id"], row["is_known"], row["live_payment_id"]) for row in found]


async def keep(connection: Connection, kept: Mapping[str, Lines]) -> None:
    """Leave rows that still wait these seats of those they have, and sum up what is left."""
    if kept:
        lines = [(reservation_id, seat_no) for reservation_id, left in kept.items() for seat_no in left]
        await SQL.keep_lines.execute(connection, list(kept), *map(list, zip(*lines, strict=True)))
        await SQL.sum_lines.execute(connection, list(kept))


class _Claims:
    """Whose each seat is while a batch is decided."""

    def __init__(self, owners: dict[str, str]) -> None:
        self._owners = owners

    def allow(self, hold_id: str, lines: Lines) -> bool:
        return all(self._owners.get(seat_no, hold_id) == hold_id for seat_no in lines)

    def take(self, hold_id: str, lines: Lines) -> None:
        self._owners.update(dict.fromkeys(lines, hold_id))


async def read_claims(connection: Connection, sale: Sale, rows: Mapping[str, Standing]) -> _Claims:  # noqa: ARG001
    """Read the seats of locked rows, and who claims those that are claimed."""
    owners = {}
    for line in await SQL.find_lines.fetch(connection, list(rows)):
        rows[line["reservation_id"]].lines[line["seat_no"]] = 1
        if line["claimed_by"]:
            owners[line["seat_no"]] = line["claimed_by"]
    return _Claims(owners)


async def sell(connection: Connection, sale: Sale, sold: Sequence[Sold]) -> None:
    """Write sales that stand: each seat is claimed and has a ticket, reservation and payment are confirmed."""
    reservation_ids = [each.hold_id for each in sold]
    await SQL.sell_seats.execute(connection, sale.sale_id, reservation_ids, [each.user_id for each in sold])
    await _share_discounts(connection, {each.hold_id: each.discount for each in sold if each.discount > 0})
    await SQL.confirm_reservations.execute(connection, reservation_ids, [each.payment_id for each in sold])


async def _share_discounts(connection: Connection, discounts: Mapping[str, int]) -> None:
    """Share the discount of each reservation out among its seats, so that what is refunded of each adds up."""
    if not discounts:
        return
    lines: defaultdict[str, list[asyncpg.Record]] = defaultdict(list)
    for row in await SQL.find_claimed_lines.fetch(connection, list(discounts)):
        lines[row["reservation_id"]].append(row)
    shares = [
        (reservation_id, row["seat_no"], share)
        for reservation_id, rows in lines.items()
        for row, share in zip(
            rows, coupons.spread(discounts[reservation_id], [row["price"] for row in rows]), strict=True
        )
    ]
    await SQL.discount_lines.execute(connection, *map(list, zip(*shares, strict=True)))


async def record_restored(connection: Connection, entries: Sequence[Entry]) -> None:
    """Nothing: a seat says itself whose it is, so nothing here depends on what Redis has caught up with."""


async def restore(gate: Gate, connection: Connection, sale: Sale, *, most: int) -> int:
    """Make seats in Redis what they are here, of at most so many reservations; returns of how many.

    The claims stay locked until Redis has answered: one that was given up in between would come back as SOLD, for ever.
    """
    rows = await SQL.lock_restores.fetch(connection, sale.sale_id, most)
    wanted: dict[str, dict[str, str | None]] = {row["hold_id"]: {} for row in rows}
    for line in await SQL.find_all_lines.fetch(connection, list(wanted)):
        wanted[line["reservation_id"]][line["seat_no"]] = line["tier"]
    seat_nos = [seat_no for lines in wanted.values() for seat_no in lines]
    claimed = {
        row["seat_no"]: (row["reservation_id"], row["fence"])
        for row in await SQL.lock_claims.fetch(connection, sale.sale_id, seat_nos)
    }
    claims = {
        hold_id: [seats.Claim(seat_no, *claimed.get(seat_no, (None, 0)), tier=tier) for seat_no, tier in lines.items()]
        for hold_id, lines in wanted.items()
    }
    done = await restore_all(seats.restore, gate, sale, rows, claims)
    await PAYMENTS.finish_restores.execute(connection, done)
    return len(done)


async def list_forgotten(connection: asyncpg.Pool | Connection, sale: Sale, *, within_s: float, most: int) -> list[str]:
    """List rows long past their deadline that no live payment keeps."""
    rows = await SQL.list_forgotten.fetch(connection, sale.sale_id, within_s, most)
    return [row["reservation_id"] for row in rows]


async def find_wanted(connection: asyncpg.Pool | Connection, payment_id: str) -> Wanted | None:
    """What a payment that has ended was for: the lines that were given back before it are no part of it."""
    rows = await SQL.find_wanted.fetch(connection, payment_id)
    if not 0 < len(rows) <= seats.SEATS_MAX:
        return None
    named = [row for row in rows if row["area"] is None]
    # Any places of an area are the same places.
    placed = sorted([row for row in rows if row["area"] is not None], key=lambda row: (row["area"], row["tier"] or ""))
    return Wanted(
        lines=(
            *[f"{row['seat_no']}|{row['tier']}" if row["tier"] else row["seat_no"] for row in named],
            *[f"={row['area']}|1|{row['tier'] or ''}" for row in placed],
        ),
        prices=tuple([row["price"] for row in (*named, *placed)]),
        amount=sum(row["price"] for row in rows),
    )


async def explain(connection: asyncpg.Pool | Connection, reservation_id: str, user_id: str) -> str | None:
    """Why a user's reservation that Redis has forgotten is over, SOLD where it was bought; None without a row."""
    reason: str | None = await SQL.find_reason.fetchval(connection, reservation_id, user_id)
    return reason


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
    for sale in await book.find_by_prefix(reservation_id):
        if sale.kind != "seats":
            continue
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
