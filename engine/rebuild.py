"""Rebuild: write a sale to Redis from Postgres alone, after the store was lost, lies, or never had it.

1. Close the copy in Redis, if it answers.
2. Apply what still follows the watermarks without a break.
3. Raise the epoch in Postgres: nothing older is accepted any more. The same transaction decides what stands.
4. Clear the sale's keys and write what stands, in chunks.
5. Compare the counts.
6. Open.

A rebuild belongs to the owner of the sale's streams. Step 3 locks the watermarks with that owner's generation, and
all that is written to Redis after it names the epoch that it made. So two rebuilds cannot mix, and one that stopped
anywhere is simply begun again, in another epoch.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import msgspec

from engine import coupons, errands, ids, messages, offers, reservations, sales, seats, settlement, waiting_room
from engine.coupons import CountedCoupons
from engine.errands import Leg
from engine.sales import Sale
from engine.stores import outbox, queries
from engine.stores.connections import Stores
from engine.stores.keys import CouponKeys, SaleKeys
from engine.stores.outbox import Divergence, Entry, Handler, OwnershipLost, Reader, Stream
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Argument, Gate, Script

logger = logging.getLogger(__name__)

Row: TypeAlias = asyncpg.Record | Mapping[str, Any]

SQL = queries.load("rebuild")

# Rows in one call, so that no call keeps other sales of the shard waiting for more than a few milliseconds.
SEATS_AT_ONCE = 1000
HOLDS_AT_ONCE = 200
TOKENS_AT_ONCE = 1000
COUPONS_AT_ONCE = 1000


class Closed(Reply, frozen=True):
    """No script changes the sale any more."""


class Cleared(Reply, frozen=True):
    """The sale has terms and nothing else, in the new epoch."""


class Loaded(Reply, frozen=True):
    """So many rows were written."""

    count: int


class SaleOpen(Reply, frozen=True):
    """The sale is open: nothing may be written into it any more."""


class Counted(Reply, frozen=True):
    """What stands in the store."""

    seats: int
    blocked: int
    held: int
    paying: int
    sold: int
    holds: int
    held_holds: int
    paying_holds: int
    ended_holds: int
    buyers: int
    bought: int
    ended_tokens: int


class CountedStock(Reply, frozen=True):
    """What stands in the store, of a sale of stock: units left, freed for its waiting list, running and bought."""

    variants: int
    left: int
    freed: int
    running: int
    holds: int
    held_holds: int
    paying_holds: int
    ended_holds: int
    buyers: int
    bought: int
    ended_tokens: int


class Opened(Reply, frozen=True):
    """The sale is open."""


CLOSE = Script("sales/close", SaleKeys, Closed | SaleUnknown | StaleEpoch)
CLEAR = Script("sales/clear", SaleKeys, Cleared | StaleEpoch)
LOAD_SEATS = Script("sales/load_seats", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_OFFER = Script("sales/load_offer", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_HOLDS = Script("sales/load_holds", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_STOCK = Script("sales/load_stock", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_STOCK_HOLDS = Script("sales/load_stock_holds", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_BUYERS = Script("sales/load_buyers", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
LOAD_TOKENS = Script("sales/load_tokens", SaleKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)
COUNT = Script("sales/count", SaleKeys, Counted | SaleUnknown | StaleEpoch)
COUNT_STOCK = Script("sales/count_stock", SaleKeys, CountedStock | SaleUnknown | StaleEpoch)
OPEN = Script("sales/open", SaleKeys, Opened | SaleUnknown | StaleEpoch)
CLEAR_COUPONS = Script("coupons/clear", CouponKeys, Cleared | StaleEpoch)
LOAD_COUPONS = Script("coupons/load", CouponKeys, Loaded | SaleOpen | SaleUnknown | StaleEpoch)


class RebuildFailed(Exception):
    """A rebuild stopped: the sale stays closed, and the next attempt begins from the first step."""


class Verdict(msgspec.Struct, frozen=True):
    """What stands of the holds that Postgres has, and what becomes of the rest."""

    standing: frozenset[str]
    voided_payment_ids: tuple[str, ...]
    endings: Mapping[str, str]


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A new copy of a sale, as step 3 decided it: everything that step 4 writes."""

    sale: Sale
    is_first: bool
    queue_no: int
    queue_no_ceiling: int
    serving: int
    holds: Sequence[asyncpg.Record]
    # Seats of holds that end here: whatever frees a seat makes it the waiting list's, where there is one.
    given_up: AbstractSet[str]


# What callers see -----------------------------------------------------------------------------------------------------


async def rebuild(stores: Stores, sale_id: str, generation: int) -> Sale:
    """Write a sale to Redis anew and open it; the caller owns its streams by this generation.

    Raises OwnershipLost when somebody else owns them, RebuildFailed when what was written is not what was meant, and
    whatever the stores raise: then the sale stays closed, and calling again begins anew.
    """
    sale = await _find(stores, sale_id)
    if not await SQL.begin.execute(stores.postgres, sale_id, generation):
        raise _lost(sale_id)
    found = await CLOSE(stores.gate, sale.keys, epoch=sale.epoch)
    if sale.epoch > 0:
        await _apply_rest(stores, sale, generation)
    copy = await _raise_epoch(stores, sale, generation, found.epoch if isinstance(found, StaleEpoch) else 0)
    if copy.sale.kind == "coupon":
        await _write_coupons(stores, copy.sale)
    else:
        await _compare(stores, copy.sale, await _write(stores, copy))
    _expect(await OPEN(stores.gate, copy.sale.keys, epoch=copy.sale.epoch), Opened)
    if not await SQL.finish.execute(stores.postgres, sale_id, copy.sale.epoch):
        raise _lost(sale_id)
    logger.info("sale %s is open in epoch %d with %d holds", sale_id, copy.sale.epoch, len(copy.holds))
    return copy.sale


async def ensure_open(stores: Stores, sale_id: str, *, within_s: float = 30.0) -> bool:
    """Wait until a sale is open, writing it to Redis here if nobody owns it; False when that took too long.

    A worker opens new sales by itself; this is for whoever made one and wants to sell it at once.
    """
    deadline = asyncio.timeout(within_s)
    try:
        async with deadline:
            while (await _find(stores, sale_id)).store_state != "open":
                async with _owning(stores.postgres, sale_id) as generation:
                    if generation is None:
                        await asyncio.sleep(0.05)
                    # Whoever owned it until now may have opened it.
                    elif (await _find(stores, sale_id)).store_state != "open":
                        await rebuild(stores, sale_id, generation)
    except TimeoutError:
        if deadline.expired():
            return False
        raise
    return True


async def demand(stores: Stores, sale_id: str, *, reason: str, within_s: float = 30.0) -> bool:
    """Have a sale rebuilt that nothing is known to be wrong with, because an operator says so."""
    sale = await _find(stores, sale_id)
    await outbox.freeze(stores.postgres, sale_id, sale.epoch, reason)
    return await ensure_open(stores, sale_id, within_s=within_s)


def handlers(sale: Sale) -> Mapping[Stream, Handler]:
    """What the entries of each stream of a sale mean to Postgres."""
    if sale.kind == "coupon":
        return {"outbox": coupons.handler(sale)}

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await reservations.record(connection, sale, entries)
        await waiting_room.record(connection, sale, entries)

    async def bury(_connection: Connection, _entry: Entry) -> str | None:
        return None

    async def resync(gate: Gate, connection: Connection) -> None:
        await waiting_room.resync(gate, connection, sale)

    return {"outbox": settlement.handler(sale), "journal": Handler(apply=apply, bury=bury, resync=resync)}


# Steps 1 to 3 ---------------------------------------------------------------------------------------------------------


async def _find(stores: Stores, sale_id: str) -> Sale:
    rows = await sales.SQL.find_sales.fetch(stores.postgres, [sale_id])
    if not rows:
        raise LookupError(f"there is no sale {sale_id}")
    return sales.from_row(rows[0])


def _lost(sale_id: str) -> OwnershipLost:
    return OwnershipLost(f"sale {sale_id}: another generation owns its streams")


async def _apply_rest(stores: Stores, sale: Sale, generation: int) -> None:
    for stream, handler in handlers(sale).items():
        reader = Reader(stores.gate, stores.postgres, sale.keys, stream, generation, handler)
        try:
            while await reader.drain():
                pass
        except Divergence as divergence:
            # What follows is another history: whatever of it is true, Postgres has by other ways or undoes.
            logger.warning("sale %s: %s", sale.sale_id, divergence)


async def _raise_epoch(stores: Stores, sale: Sale, generation: int, found_epoch: int) -> Copy:
    """Step 3: begin a new epoch, end what cannot stand in it, and read what does."""
    sale_id = sale.sale_id
    async with stores.postgres.acquire() as connection, connection.transaction():
        if len(await SQL.lock_streams.fetch(connection, sale_id, generation)) < len(outbox.STREAMS):
            raise _lost(sale_id)
        raised = await SQL.raise_epoch.fetchrow(connection, sale_id, found_epoch, sales.QUEUE_NO_STEP)
        assert raised is not None  # noqa: S101 - its watermarks refer to it
        await SQL.reset_streams.execute(connection, sale_id, raised["epoch"])
        claims = {row["seat_no"]: row["reservation_id"] for row in await SQL.list_claims.fetch(connection, sale_id)}
        live_payments = await SQL.list_live_payments.fetch(connection, sale_id)
        unpaid = await SQL.list_unpaid.fetch(connection, sale_id)
        verdict = decide(claims, live_payments, unpaid)
        await _void(connection, verdict.voided_payment_ids)
        await reservations.end(connection, dict(verdict.endings))
        holds = [
            row
            for row in await SQL.list_holds.fetch(connection, sale_id, stores.settings.repeat_window_s)
            # A payment that was authorised this moment for a hold of the lost copy is not known here: its `confirm`
            # will hear that, and it is voided.
            if row["state"] in {"SOLD", "ENDED"} or row["hold_id"] in verdict.standing
        ]
        rows = await sales.SQL.find_sales.fetch(connection, [sale_id])
    return Copy(
        sale=sales.from_row(rows[0]),
        is_first=raised["epoch"] == 1,
        queue_no=raised["queue_no"],
        queue_no_ceiling=raised["queue_no_ceiling"],
        serving=raised["serving"],
        holds=holds,
        given_up={
            seat_no
            for row in (*live_payments, *unpaid)
            if row["reservation_id"] in verdict.endings
            for seat_no in row["seat_nos"]
        },
    )


def decide(claims: Mapping[str, str | None], live_payments: Iterable[Row], unpaid: Iterable[Row]) -> Verdict:
    """Say who keeps which seat: who has bought it, else the first who paid for it, else the first who held it.

    Args:
        claims: seat_no to the reservation that has bought it, None where the operator keeps it back.
        live_payments: payment_id, reservation_id and seat_nos of each, the first authorised first.
        unpaid: reservation_id, seat_nos and lapsed of each, the oldest first.
    """
    taken = dict(claims)
    standing: set[str] = set()
    voided: list[str] = []
    endings: dict[str, str] = {}

    def stands(reservation_id: str, seat_nos: Sequence[str]) -> bool:
        if any(taken.get(seat_no, reservation_id) != reservation_id for seat_no in seat_nos):
            return False
        taken.update(dict.fromkeys(seat_nos, reservation_id))
        standing.add(reservation_id)
        return True

    for payment in live_payments:
        if not stands(payment["reservation_id"], payment["seat_nos"]):
            voided.append(payment["payment_id"])
            endings[payment["reservation_id"]] = "LATE_UNFULFILLABLE"
    for hold in unpaid:
        if hold["lapsed"] or not stands(hold["reservation_id"], hold["seat_nos"]):
            endings[hold["reservation_id"]] = "EXPIRED"
    return Verdict(frozenset(standing), tuple(voided), endings)


async def _void(connection: Connection, payment_ids: Sequence[str]) -> None:
    """Void payments for seats that are somebody else's, and let go what was set aside for them, by cards too."""
    if not payment_ids:
        return
    await SQL.lock_balances.fetch(connection, payment_ids)
    await SQL.lock_payments.fetch(connection, payment_ids)
    voided = await SQL.void_payments.fetch(connection, payment_ids)
    await SQL.free_funds.execute(
        connection, [row["user_id"] for row in voided], [row["balance_amount"] for row in voided]
    )
    legs = [Leg(row["payment_id"], row["card_amount"]) for row in voided if row["decline_code"] is None]
    await errands.add(connection, "VOID", legs)


# Steps 4 and 5 --------------------------------------------------------------------------------------------------------


async def _write(stores: Stores, copy: Copy) -> Counted:
    """Step 4: clear and write everything; returns what should stand then."""
    sale, gate = copy.sale, stores.gate
    was_on = sale.room not in {"off", "bypass"} and not copy.is_first
    terms: tuple[Argument, ...] = (
        *sales.stored_terms(sale),
        *("version", sale.version),
        *("repeat_window_ms", stores.settings.repeat_window_s * 1000),
        *("backlog_max", stores.settings.backlog_max),
        *("queue_no", copy.queue_no),
        *("queue_no_ceiling", copy.queue_no_ceiling),
        *("serving", copy.serving),
        *("has_floor", 1),
    )
    admitted = sale.admitted_per_minute_max if was_on else 0
    _expect(await CLEAR(gate, sale.keys, epoch=sale.epoch, admitted=admitted, terms=terms), Cleared)

    taken = {seat_no for hold in copy.holds if hold["state"] != "ENDED" for seat_no in hold["seat_nos"] or ()}
    shelved = copy.given_up - taken if sale.waiting_list else frozenset()
    plan = await offers.read(stores.postgres, sale.sale_id, taken | shelved)
    for name, part in plan.parts():
        _expect(await LOAD_OFFER(gate, sale.keys, epoch=sale.epoch, name=name, rows=part), Loaded)
    seats_total = 0
    blocked: set[str] = set()
    async for rows in _pages(stores.postgres, SQL.list_seats, sale.sale_id, "", "seat_no", SEATS_AT_ONCE):
        flat = [
            value for row in rows for value in (row["seat_no"], plan.prices[row["seat_no"]], _standing(row, shelved))
        ]
        _expect(await LOAD_SEATS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
        seats_total += len(rows)
        blocked.update(row["seat_no"] for row in rows if _standing(row, shelved))
    for held in _chunks(copy.holds, HOLDS_AT_ONCE):
        flat = [value for row in held for value in _hold_values(row)]
        _expect(await LOAD_HOLDS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
    ended_tokens = 0
    async for rows in _pages(stores.postgres, SQL.list_ended_tokens, sale.sale_id, 0, "queue_no", TOKENS_AT_ONCE):
        flat = [value for row in rows for value in (row["queue_no"], _ended_token(row), row["ended_at_ms"])]
        _expect(await LOAD_TOKENS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
        ended_tokens += len(rows)
    await messages.put_back(gate, stores.postgres, sale)
    return expect(copy.holds, seats=seats_total, blocked=blocked, ended_tokens=ended_tokens)


async def _write_coupons(stores: Stores, sale: Sale) -> None:
    """Steps 4 and 5 of a source of coupons: its terms, and who has one."""
    terms = (
        *await coupons.find_stored_terms(stores.postgres, sale.sale_id),
        *("backlog_max", stores.settings.backlog_max),
    )
    _expect(await CLEAR_COUPONS(stores.gate, sale.keys, epoch=sale.epoch, terms=terms), Cleared)
    issued = 0
    first = "0" * 32
    async for rows in _pages(stores.postgres, SQL.list_user_coupons, sale.sale_id, first, "user_id", COUPONS_AT_ONCE):
        user_ids = [row["user_id"] for row in rows]
        _expect(await LOAD_COUPONS(stores.gate, sale.keys, epoch=sale.epoch, user_ids=user_ids), Loaded)
        issued += len(rows)
    counted = await coupons.COUNT(stores.gate, sale.keys, epoch=sale.epoch)
    if not isinstance(counted, CountedCoupons) or counted.issued != issued:
        raise RebuildFailed(f"source {sale.sale_id}: meant to write {issued} coupons, the store has {counted}")


def expect(holds: Iterable[Row], *, seats: int, blocked: set[str], ended_tokens: int) -> Counted:
    """Count what a sale written from these holds must have."""
    seat_nos: dict[str, set[str]] = {"HELD": set(), "PAYING": set(), "SOLD": set()}
    of_state = dict.fromkeys(("HELD", "PAYING", "SOLD", "ENDED"), 0)
    buyers = set()
    for hold in holds:
        buyers.add(hold["buyer_id"])
        of_state[hold["state"]] += hold["remembered"]
        if hold["state"] != "ENDED":
            seat_nos[hold["state"]].update(hold["seat_nos"])
    taken = set().union(*seat_nos.values())
    return Counted(
        seats=seats,
        blocked=len(blocked - taken),
        held=len(seat_nos["HELD"]),
        paying=len(seat_nos["PAYING"]),
        sold=len(seat_nos["SOLD"]),
        holds=sum(of_state.values()),
        held_holds=of_state["HELD"],
        paying_holds=of_state["PAYING"],
        ended_holds=of_state["SOLD"] + of_state["ENDED"],
        buyers=len(buyers),
        bought=len(seat_nos["SOLD"]),
        ended_tokens=ended_tokens,
    )


async def _compare(stores: Stores, sale: Sale, expected: Counted) -> None:
    counted = await COUNT(stores.gate, sale.keys, epoch=sale.epoch)
    if counted != expected:
        raise RebuildFailed(f"sale {sale.sale_id}: meant to write {expected}, the store has {counted}")


def _hold_values(row: Row) -> tuple[Argument, ...]:
    """One row of lua/sales/load_holds.lua."""
    return (
        row["hold_id"],
        int(row["remembered"]),
        row["ended_at_ms"] or 0,
        row["state"],
        row["buyer_id"],
        row["fence"],
        row["queue_no"],
        row["fingerprint"],
        row["created_at_ms"],
        row["expires_at_ms"],
        row["payment_id"] or "",
        row["pay_deadline_ms"] or 0,
        row["reason"],
        row["amount"],
        ",".join(row["seat_nos"] or ()),
        ",".join(map(str, row["prices"] or ())),
        ",".join(row["ended_payment_ids"]),
        seats.joined_tiers(row["tiers"] or ()),
    )


def _standing(row: Row, shelved: AbstractSet[str]) -> int:
    """How a seat stands before holds are written on it, as lua/sales/load_seats.lua has it."""
    return 1 if row["blocked"] else 2 if row["seat_no"] in shelved else 0


def _ended_token(row: Row) -> str:
    """A record of `ended_tokens`, as lua/shared/room.lua describes it."""
    return f"{row['status']}|{row['owner']}"


def _expect(reply: Reply, kind: type[Reply]) -> None:
    if not isinstance(reply, kind):
        raise RebuildFailed(f"expected {kind.__name__}, the store answered {reply}")


def _chunks(rows: Sequence[asyncpg.Record], size: int) -> Iterator[Sequence[asyncpg.Record]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


async def _pages(
    postgres: asyncpg.Pool, query: queries.Query, sale_id: str, after: object, column: str, size: int
) -> AsyncIterator[list[asyncpg.Record]]:
    """Read a long list a page at a time, each from after the last row of the one before."""
    while rows := await query.fetch(postgres, sale_id, after, size):
        yield rows
        after = rows[-1][column]


# Ownership for the length of one rebuild ------------------------------------------------------------------------------


@asynccontextmanager
async def _owning(postgres: asyncpg.Pool, sale_id: str) -> AsyncIterator[int | None]:
    """Own a sale's streams while the block runs; None when somebody else does."""
    owner = f"rebuild-{ids.random_id()}"
    taken = await outbox.take_ownership(postgres, owner, sale_ids=[sale_id])
    if not taken:
        yield None
        return
    renewing = asyncio.create_task(_renew(postgres, owner, taken))
    try:
        yield taken[sale_id]
    finally:
        renewing.cancel()
        await outbox.give_back_ownership(postgres, owner, taken)


async def _renew(postgres: asyncpg.Pool, owner: str, taken: Mapping[str, int]) -> None:
    while True:
        await asyncio.sleep(outbox.LEASE_S / 3)
        await outbox.renew_ownership(postgres, owner, taken)
