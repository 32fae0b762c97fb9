"""Waiting lists: who waits for seats that come back, in order of joining, and is offered them before the public.

`WAITING → OFFERED → TAKEN | LAPSED`, any of them `→ LEFT`. While somebody waits, whatever frees a seat of the sale
makes it BLOCKED for the list. The sale's owner gives such seats to the first whose wish they fill whole, as a hold of
that user's with a time of its own, and to the public what nobody who waits can use.

An entry knows from its first day the id that its offer will have. So an offer is made once, whoever makes it and
however often, and what became of it is read from its reservation instead of being told a second time.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import asyncpg
import msgspec

from engine import ids, offers, sales, seats
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale, SaleBook
from engine.seats import (
    HoldKnown,
    OfferUnknown,
    PaymentRunning,
    SaleNotOpen,
    SeatTaken,
    SeatUnknown,
)
from engine.shelf import FreedSeat, Wish, accepts, fill
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleRebuilding, Unavailable
from engine.stores.scripts import Gate, Script

SQL = queries.load("waiting_lists")

# Entries of one user that may wait, or be offered something, in one sale.
ENTRIES_MAX: Final = 5
# What is freed stays so long on the shelf while it may yet become part of what somebody who waits could use; then the
# public has it, because a seat that nobody may buy is a seat that is not sold.
GATHER_MS: Final = 10_000
# Seats that one pass looks at, entries that it reads at a time, seats that one script gives to the public.
SHELF_MAX: Final = 500
ENTRIES_AT_ONCE: Final = 500
PUBLISHED_AT_ONCE: Final = 100

LAST_NO: Final = 2**63 - 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One who waits, how many wait before, and what was offered: `reservation_id` from then on, until `expires_at`."""

    entry_id: str
    entry_no: int
    sale_id: str
    schedule_id: str
    user_id: str
    wish: Wish
    status: str
    reason: str | None
    ahead: int
    reservation_id: str
    expires_at: datetime | None
    created_at: datetime
    repeated: bool = False


class NeverFits(msgspec.Struct, frozen=True):
    """No more than so many seats are as wished, sold or not."""

    seats: int


# --- replies ----------------------------------------------------------------------------------------------------------


class Freed(Reply, frozen=True):
    """What the waiting list has, each seat with the moment it was freed; `left` are more."""

    now_ms: int
    left: int
    rows: tuple[str, ...]

    @property
    def since(self) -> dict[str, int]:
        """When each seat was freed, in milliseconds."""
        return {seat_no: int(ms) for seat_no, ms in (row.rsplit(" ", 1) for row in self.rows)}


class Offered(Reply, frozen=True):
    """The seats are held for whoever waited."""

    expires_at_ms: int
    fence: int
    amount: int


class Published(Reply, frozen=True):
    """So many seats are the public's now."""

    count: int


class FreedUnits(Reply, frozen=True):
    """What the waiting list has of a sale of stock, each row `variant_id:quantity`; `left` variants are more."""

    left: int
    rows: tuple[str, ...]


class PublishedUnits(Reply, frozen=True):
    """So many units are the public's now."""

    count: int


NotOffered = (
    HoldKnown | SeatTaken | SeatUnknown | LimitReached | SaleNotOpen | SaleClosed | SlowDown | Busy | Unavailable
)
OfferedAnswer = Offered | NotOffered

FREED = Script("waiting_lists/freed", SaleKeys, Freed | Unavailable)
OFFER = Script("waiting_lists/offer", SaleKeys, OfferedAnswer)
PUBLISH = Script("waiting_lists/publish", SaleKeys, Published | Unavailable)
FREED_UNITS = Script("waiting_lists/freed_units", SaleKeys, FreedUnits | Unavailable)
PUBLISH_UNITS = Script("waiting_lists/publish_units", SaleKeys, PublishedUnits | Unavailable)


# --- who waits --------------------------------------------------------------------------------------------------------


async def join(
    stores: Stores, book: SaleBook, sale: Sale, *, entry_id: str, user_id: str, wish: Wish
) -> Entry | NeverFits | OfferUnknown | LimitReached | SaleNotOpen | SaleClosed | IdempotencyKeyReused | NotFound:
    """Wait for seats of a sale of seats; the same id again is told how its entry stands.

    When this answers, what is freed from now on is kept for the list, and nobody who joins later comes before.
    """
    known = await _find(stores.postgres, entry_id, wish)
    if known is not None:
        return known
    never = await _judge(stores.postgres, sale, wish)
    if never is not None:
        return never
    async with stores.postgres.acquire() as connection, connection.transaction():
        refusal, is_first = await _add(connection, sale, entry_id, user_id, wish)
    if refusal is not None:
        return refusal
    if is_first:
        await offers.send(stores.gate, stores.postgres, await book.read(sale.sale_id) or sale)
    entry = await _find(stores.postgres, entry_id, wish, repeated=False)
    assert entry is not None  # noqa: S101 - it was just added, and none is ever removed
    return entry


async def _find(
    connection: Any, entry_id: str, wish: Wish, *, repeated: bool = True
) -> Entry | IdempotencyKeyReused | None:
    row = await SQL.find_entry.fetchrow(connection, entry_id)
    if row is None:
        return None
    if row["fingerprint"] != wish.fingerprint:
        return IdempotencyKeyReused()
    return _entry(row, repeated=repeated)


async def _judge(postgres: asyncpg.Pool, sale: Sale, wish: Wish) -> NeverFits | OfferUnknown | None:
    """Whether the hall has what is wished for at all."""
    names = await SQL.find_names.fetchrow(postgres, sale.sale_id, wish.category, wish.section)
    assert names is not None  # noqa: S101 - it answers one row
    unknown = [f"{kind} {getattr(wish, kind)}" for kind in ("category", "section") if not names[kind]]
    if unknown:
        return OfferUnknown(tuple(unknown))
    known = _measured(sale.sale_id)
    question = msgspec.structs.replace(wish, quantity=0, adjacent=False, accessible=min(wish.accessible, 1))
    if question not in known:
        if len(known) >= _MEASURES_MAX:
            known.clear()
        row = await SQL.measure.fetchrow(
            postgres, sale.sale_id, wish.category, wish.section, wish.price_max, wish.accessible > 0
        )
        assert row is not None  # noqa: S101 - it answers one row
        known[question] = (row["seats"], row["adjacent"])
    in_all, side_by_side = known[question]
    most = side_by_side if wish.adjacent else in_all
    return NeverFits(most) if wish.quantity > most else None


# What a hall has never changes, and thousands ask the same of it; a price somebody thought of is asked once.
_MEASURES_MAX: Final = 256


@lru_cache(256)
def _measured(_sale_id: str) -> dict[Wish, tuple[int, int]]:
    return {}


async def _add(
    connection: Connection, sale: Sale, entry_id: str, user_id: str, wish: Wish
) -> tuple[LimitReached | SaleNotOpen | SaleClosed | NotFound | None, bool]:
    """Add an entry, unless a repeat of this request was quicker; and whether it is the first of the list."""
    row = await SQL.lock_sale.fetchrow(connection, sale.sale_id)
    if row is None or sale.schedule_id is None:
        return NotFound(), False
    if await SQL.find_entry.fetchrow(connection, entry_id) is not None:
        return None, False
    now = row["now"]
    if row["opens_at"] is not None and now < row["opens_at"]:
        return SaleNotOpen(sales.milliseconds(row["opens_at"])), False
    if now >= min(row["start_at"], row["closes_at"] or row["start_at"]):
        return SaleClosed(), False
    mine = await SQL.count_mine.fetchrow(connection, sale.sale_id, user_id)
    assert mine is not None  # noqa: S101 - it answers one row
    if mine["entries"] >= ENTRIES_MAX:
        return LimitReached(ENTRIES_MAX, mine["entries"]), False
    limit = row["per_buyer_max"]
    if limit is not None and mine["seats"] + wish.quantity > limit:
        return LimitReached(limit, mine["seats"]), False
    await SQL.add_entry.execute(
        connection,
        entry_id,
        sale.sale_id,
        sale.schedule_id,
        user_id,
        wish.quantity,
        wish.adjacent,
        wish.category,
        wish.section,
        wish.price_max,
        wish.accessible,
        ids.derive_in(sale.sale_id, "offer", entry_id),
        wish.fingerprint,
    )
    return None, await SQL.open_lists.execute(connection, [sale.sale_id]) > 0


async def list_mine(postgres: asyncpg.Pool, user_id: str, *, before: int = LAST_NO, limit: int = 20) -> list[Entry]:
    """A user's entries, newest first, from after the cursor."""
    return [_entry(row) for row in await SQL.list_mine.fetch(postgres, user_id, before, limit)]


async def leave(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, *, entry_id: str, user_id: str
) -> Entry | PaymentRunning | SaleRebuilding | NotFound:
    """Wait no more, and give back what was offered, unless it is being paid; harmless to repeat."""
    row = await SQL.find_entry.fetchrow(postgres, entry_id)
    if row is None or row["user_id"] != user_id:
        return NotFound()
    if row["status"] in {"WAITING", "OFFERED"}:
        sale = await book.find(row["sale_id"])
        assert sale is not None  # noqa: S101 - sales are never deleted
        released = await _release(gate, sale, entry_id, row["reservation_id"], user_id)
        if isinstance(released, PaymentRunning):
            return released
        if isinstance(released, Unavailable):
            return SaleRebuilding()
        if await SQL.leave.execute(postgres, entry_id) and isinstance(released, NotFound):
            # It may have been offered between the two; if it is offered from now on, whoever offers it sees this.
            await _release(gate, sale, entry_id, row["reservation_id"], user_id)
        row = await SQL.find_entry.fetchrow(postgres, entry_id)
        assert row is not None  # noqa: S101 - none is ever removed
    return _entry(row)


async def leave_all(postgres: asyncpg.Pool, user_id: str) -> None:
    """Somebody who is no more waits for nothing; what was offered lapses."""
    await SQL.leave_all.execute(postgres, user_id)


async def _release(gate: Gate, sale: Sale, entry_id: str, hold_id: str, user_id: str) -> seats.ReleasedAnswer:
    return await seats.release(
        gate,
        sale,
        hold_id=hold_id,
        buyer_id=user_id,
        release_id=ids.derive("left", entry_id),
        fingerprint=ids.fingerprint("left"),
    )


def _entry(row: asyncpg.Record, *, repeated: bool = False) -> Entry:
    return Entry(
        wish=Wish(**{name: row[name] for name in Wish.__struct_fields__}),
        repeated=repeated,
        **{name: row[name] for name in Entry.__struct_fields__ if name not in {"wish", "repeated"}},
    )


# --- who is served ----------------------------------------------------------------------------------------------------


class Served(msgspec.Struct, frozen=True):
    """So many were offered what they wait for, so many seats went to the public; `more` can be done at once."""

    offered: int = 0
    published: int = 0
    more: bool = False


async def serve(stores: Stores, sale: Sale) -> Served:
    """Give what was freed to those who wait, in order of joining, and the rest to the public.

    For the sale's owner alone, again and again. It may stop anywhere: an offer is a hold under an id that does not
    change, and whoever finds it made notes it.
    """
    freed = await sales.ask(stores.gate, sale, FREED, most=SHELF_MAX)
    if not isinstance(freed, Freed):
        return Served()
    if not freed.rows:
        await _close_unless_awaited(stores, sale)
        return Served()
    rows = await SQL.find_seats.fetch(stores.postgres, sale.sale_id, list(freed.since))
    shelf = {row["seat_no"]: FreedSeat(**row) for row in rows}
    offers_made, unserved = await _offer_in_order(stores, sale, shelf)
    await _note(stores, sale, [offer.entry for offer in offers_made])
    if unserved is None:
        return Served(len(offers_made))
    held = {seat_no for offer in offers_made for seat_no in offer.seat_nos}
    kept = {
        seat_no
        for seat_no, seat in shelf.items()
        if freed.now_ms - freed.since[seat_no] < GATHER_MS and any(accepts(wish, seat) for wish in unserved)
    }
    published = await _publish(stores.gate, sale, [each for each in freed.since if each not in held | kept])
    return Served(len(offers_made), published, more=freed.left > 0 and bool(offers_made or published))


class _Offer(msgspec.Struct, frozen=True):
    """An entry that has its offer: of these seats, or of none of the shelf's when it had been made before."""

    entry: asyncpg.Record
    seat_nos: Sequence[str] = ()


async def _offer_in_order(
    stores: Stores, sale: Sale, shelf: dict[str, FreedSeat]
) -> tuple[list[_Offer], set[Wish] | None]:
    """Offer the shelf to one after the other; who has an offer, and wishes that what is left does not fill.

    Of the wishes there is nothing to say (None) where the store has no time now; there are none where the sale is over.
    """
    made: list[_Offer] = []
    unserved: set[Wish] = set()
    async for entry in _waiting(stores.postgres, sale, shelf):
        wish = Wish(**{name: entry[name] for name in Wish.__struct_fields__})
        if entry["is_offered"]:
            made.append(_Offer(entry))
            continue
        if wish in unserved:  # there is less on the shelf than when the same was wished for before
            continue
        seat_nos, answer = await _offer(stores.gate, sale, entry, wish, shelf)
        match answer:
            case None:
                unserved.add(wish)
            case Offered():
                made.append(_Offer(entry, seat_nos))
            case HoldKnown():
                made.append(_Offer(entry))
            case SaleNotOpen() | SaleClosed():
                return made, set()
            case LimitReached() | SlowDown():
                pass  # this one may have no more just now, and stays where it is in line
            case _:
                return made, None
    return made, unserved


async def _offer(
    gate: Gate, sale: Sale, entry: asyncpg.Record, wish: Wish, shelf: dict[str, FreedSeat]
) -> tuple[Sequence[str], OfferedAnswer | None]:
    """Offer seats of the shelf to one who waits; None when it has none that fill the wish whole."""
    while (seat_nos := fill(wish, shelf.values())) is not None:
        answer = await sales.ask(
            gate,
            sale,
            OFFER,
            hold_id=entry["reservation_id"],
            buyer_id=entry["user_id"],
            fingerprint=wish.fingerprint,
            seat_nos=seat_nos,
        )
        match answer:
            case SeatTaken():
                gone = [conflict.seat_no for conflict in answer.seats]
            case SeatUnknown():
                gone = list(answer.seat_nos)
            case Offered():
                for seat_no in seat_nos:
                    del shelf[seat_no]
                return seat_nos, answer
            case _:
                return (), answer
        for seat_no in gone:
            del shelf[seat_no]
    return (), None


async def _waiting(postgres: asyncpg.Pool, sale: Sale, shelf: dict[str, FreedSeat]) -> AsyncIterator[asyncpg.Record]:
    """Who waits and might be helped by what is on the shelf, in order of joining, for as long as something is."""
    after = 0
    while shelf:
        rows = await SQL.list_waiting.fetch(
            postgres,
            sale.sale_id,
            after,
            list({seat.category for seat in shelf.values()}),
            list({seat.section for seat in shelf.values()}),
            min(seat.price for seat in shelf.values()),
            ENTRIES_AT_ONCE,
        )
        for row in rows:
            if not shelf:
                return
            yield row
        if len(rows) < ENTRIES_AT_ONCE:
            return
        after = rows[-1]["entry_no"]


async def _note(stores: Stores, sale: Sale, entries: Sequence[asyncpg.Record]) -> None:
    """Note who has an offer; who left in the same moment has it taken back."""
    if not entries:
        return
    entry_ids = [entry["entry_id"] for entry in entries]
    if await SQL.note_offers.execute(stores.postgres, entry_ids) == len(entry_ids):
        return
    left = {row["entry_id"] for row in await SQL.list_left.fetch(stores.postgres, entry_ids)}
    for entry in entries:
        if entry["entry_id"] in left:
            await _release(stores.gate, sale, entry["entry_id"], entry["reservation_id"], entry["user_id"])


async def _publish(gate: Gate, sale: Sale, seat_nos: Sequence[str]) -> int:
    published = 0
    for at in range(0, len(seat_nos), PUBLISHED_AT_ONCE):
        answer = await sales.ask(gate, sale, PUBLISH, seat_nos=seat_nos[at : at + PUBLISHED_AT_ONCE])
        if not isinstance(answer, Published):
            break
        published += answer.count
    return published


# --- the list as a whole ----------------------------------------------------------------------------------------------


async def _close_unless_awaited(stores: Stores, sale: Sale) -> None:
    """End the list of a sale in which nobody waits: in its row, then in the store, then for what is on the shelf."""
    if await SQL.is_awaited.fetchval(stores.postgres, sale.sale_id):
        return
    async with stores.postgres.acquire() as connection, connection.transaction():
        await SQL.lock_sale.fetchrow(connection, sale.sale_id)
        if not await SQL.close_list.execute(connection, sale.sale_id):
            return
    [row] = await sales.SQL.find_sales.fetch(stores.postgres, [sale.sale_id])
    await offers.send(stores.gate, stores.postgres, sales.from_row(row))
    await give_back(stores, sale)


async def give_back(stores: Stores, sale: Sale) -> int:
    """Give the public everything that was freed for a list that is over; returns how many seats or units."""
    if sale.kind == "stock":
        return await _give_back_units(stores, sale)
    given = 0
    while isinstance(freed := await sales.ask(stores.gate, sale, FREED, most=SHELF_MAX), Freed) and freed.rows:
        given += await _publish(stores.gate, sale, list(freed.since))
    return given


async def _give_back_units(stores: Stores, sale: Sale) -> int:
    given = 0
    while (
        isinstance(freed := await sales.ask(stores.gate, sale, FREED_UNITS, most=PUBLISHED_AT_ONCE), FreedUnits)
        and freed.rows
    ):
        published = await sales.ask(stores.gate, sale, PUBLISH_UNITS, lines=freed.rows)
        if not isinstance(published, PublishedUnits):
            break
        given += published.count
    return given


async def follow(postgres: asyncpg.Pool) -> None:
    """Note what became of all that was offered, in every sale, and that nobody waits for an event that is over."""
    moved = await SQL.follow.fetch(postgres)
    again = {row["sale_id"] for row in moved if row["status"] == "WAITING"}
    if again:
        await SQL.open_lists.execute(postgres, list(again))
    await SQL.dismiss.execute(postgres)


async def note_forgotten(postgres: asyncpg.Pool) -> int:
    """Note offers that were made by somebody who died before noting them; it looks at everybody who waits."""
    return await SQL.note_forgotten.execute(postgres)
