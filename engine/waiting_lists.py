"""Waiting lists: who waits for what comes back, in order of joining, and is offered it before the public.

`WAITING → OFFERED → TAKEN | LAPSED`, any of them `→ LEFT`. While somebody waits, whatever is freed in the sale is kept
for the list. The sale's owner gives it to the first whose wish it fills whole, as a hold of that user's with a time of
its own, and to the public what nobody who waits can use.

An entry knows from its first day the id that its offer will have. So an offer is made once, whoever makes it and
however often, and what became of it is read from its reservation or order instead of being told a second time.

What may be wished for, what was freed and what fills a wish is of seats (`seat_waiting_lists`) or of units
(`variant_waiting_lists`); each says so in a `Kind`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import asyncpg
import msgspec

from engine import ids, offers, sales, seats, stock, wares
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale, SaleBook
from engine.seats import HoldKnown, PaymentRunning, SaleNotOpen
from engine.shelf import UnitWish, Wish, wish_of
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleRebuilding, Unavailable
from engine.stores.scripts import Gate

SQL = queries.load("waiting_lists")

# Entries of one user that may wait, or be offered something, in one sale.
ENTRIES_MAX: Final = 5
# What is freed stays so long on the shelf while it may yet become part of what somebody who waits could use; then the
# public has it, because what nobody may buy is not sold.
GATHER_MS: Final = 10_000
# Entries that one pass reads at a time.
ENTRIES_AT_ONCE: Final = 500

LAST_NO: Final = 2**63 - 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One who waits, how many wait before, and what was offered: `hold_id` from then on, until `expires_at`."""

    entry_id: str
    entry_no: int
    sale_id: str
    schedule_id: str | None
    user_id: str
    wish: Wish | UnitWish
    status: str
    reason: str | None
    ahead: int
    hold_id: str
    expires_at: datetime | None
    created_at: datetime
    repeated: bool = False


class Newcomer(msgspec.Struct, frozen=True, kw_only=True):
    """Who joins, and the id that the offer will have."""

    entry_id: str
    user_id: str
    hold_id: str


class Offered(Reply, frozen=True):
    """What was waited for is held for whoever waited."""

    expires_at_ms: int
    fence: int
    amount: int


# How an offer ended that the shelf could have filled.
Answer = Offered | HoldKnown | LimitReached | SaleNotOpen | SaleClosed | SlowDown | Busy | Unavailable

Refused = LimitReached | SaleNotOpen | SaleClosed | IdempotencyKeyReused | NotFound


class Shelf(Protocol):
    """What was freed in a sale and not given on yet, while one pass gives it on."""

    @property
    def was_empty(self) -> bool:
        """Whether there was nothing on it at all."""

    @property
    def more(self) -> bool:
        """Whether there was more than one pass looks at."""

    def is_bare(self) -> bool:
        """Whether nothing is left that anybody could be offered."""

    async def list_waiting(self, postgres: asyncpg.Pool, *, after: int, most: int) -> Sequence[asyncpg.Record]:
        """List who waits and may be helped by what is here, in order of joining, after an entry."""

    async def offer(self, gate: Gate, entry: asyncpg.Record) -> Answer | None:
        """Offer this one what fills the wish whole; None where nothing here does."""

    async def publish(self, stores: Stores, *, keep: bool) -> int:
        """Give the public what is left; `keep` what somebody who waits could yet use. Returns how much."""


class Kind(msgspec.Struct, frozen=True):
    """What is of seats or of units, where people wait for either.

    `count_bought` says how much of the sale somebody has, `add` writes an entry, and `look` what was freed: None where
    the store has no time now.
    """

    count_bought: Callable[[Connection, str, str], Awaitable[int]]
    add: Callable[[Connection, Sale, Newcomer, Any], Awaitable[None]]
    look: Callable[[Stores, Sale], Awaitable[Shelf | None]]


# --- who waits --------------------------------------------------------------------------------------------------------


async def find(
    connection: Any, entry_id: str, wish: Wish | UnitWish, *, repeated: bool = True
) -> Entry | IdempotencyKeyReused | None:
    """Find what an earlier request with this id made of the same wish."""
    row = await SQL.find_entry.fetchrow(connection, entry_id)
    if row is None:
        return None
    if row["fingerprint"] != wish.fingerprint:
        return IdempotencyKeyReused()
    return _entry(row, repeated=repeated)


async def join(
    stores: Stores, book: SaleBook, sale: Sale, kind: Kind, *, entry_id: str, user_id: str, wish: Wish | UnitWish
) -> Entry | Refused:
    """Wait for what this sale may have; the same id again is told how its entry stands.

    When this answers, what is freed from now on is kept for the list, and nobody who joins later comes before.
    """
    newcomer = Newcomer(entry_id=entry_id, user_id=user_id, hold_id=ids.derive_in(sale.sale_id, "offer", entry_id))
    async with stores.postgres.acquire() as connection, connection.transaction():
        refusal, is_first = await _add(connection, sale, kind, newcomer, wish)
    if refusal is not None:
        return refusal
    if is_first:
        await offers.send(stores.gate, stores.postgres, await book.read(sale.sale_id) or sale)
    entry = await find(stores.postgres, entry_id, wish, repeated=False)
    assert entry is not None  # noqa: S101 - it was just added, and none is ever removed
    return entry


async def _add(
    connection: Connection, sale: Sale, kind: Kind, newcomer: Newcomer, wish: Wish | UnitWish
) -> tuple[LimitReached | SaleNotOpen | SaleClosed | NotFound | None, bool]:
    """Add an entry, unless a repeat of this request was quicker; and whether it is the first of the list."""
    row = await SQL.lock_sale.fetchrow(connection, sale.sale_id)
    if row is None:
        return NotFound(), False
    if await SQL.find_entry.fetchrow(connection, newcomer.entry_id) is not None:
        return None, False
    if row["opens_at"] is not None and row["now"] < row["opens_at"]:
        return SaleNotOpen(sales.milliseconds(row["opens_at"])), False
    if row["closes_at"] is not None and row["now"] >= row["closes_at"]:
        return SaleClosed(), False
    entries = await SQL.count_mine.fetchval(connection, sale.sale_id, newcomer.user_id)
    if entries >= ENTRIES_MAX:
        return LimitReached(ENTRIES_MAX, entries), False
    limit = row["per_buyer_max"]
    if limit is not None:
        bought = await kind.count_bought(connection, sale.sale_id, newcomer.user_id)
        if bought + wish.quantity > limit:
            return LimitReached(limit, bought), False
    await kind.add(connection, sale, newcomer, wish)
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
        released = await _release(gate, sale, entry_id, row["hold_id"], user_id)
        if isinstance(released, PaymentRunning):
            return released
        if isinstance(released, Unavailable):
            return SaleRebuilding()
        if await SQL.leave.execute(postgres, entry_id) and isinstance(released, NotFound):
            # It may have been offered between the two; if it is offered from now on, whoever offers it sees this.
            await _release(gate, sale, entry_id, row["hold_id"], user_id)
        row = await SQL.find_entry.fetchrow(postgres, entry_id)
        assert row is not None  # noqa: S101 - none is ever removed
    return _entry(row)


async def leave_all(postgres: asyncpg.Pool, user_id: str) -> None:
    """Somebody who is no more waits for nothing; what was offered lapses."""
    await SQL.leave_all.execute(postgres, user_id)


async def _release(
    gate: Gate, sale: Sale, entry_id: str, hold_id: str, user_id: str
) -> seats.ReleasedAnswer | stock.ReleasedAnswer:
    return await wares.of(sale).scripts.release(
        gate,
        sale,
        hold_id=hold_id,
        buyer_id=user_id,
        release_id=ids.derive("left", entry_id),
        fingerprint=ids.fingerprint("left"),
    )


def _entry(row: asyncpg.Record, *, repeated: bool = False) -> Entry:
    return Entry(
        wish=wish_of(dict(row)),
        repeated=repeated,
        **{name: row[name] for name in Entry.__struct_fields__ if name not in {"wish", "repeated"}},
    )


# --- who is served ----------------------------------------------------------------------------------------------------


class Served(msgspec.Struct, frozen=True):
    """So many were offered what they wait for, so much went to the public; `more` can be done at once."""

    offered: int = 0
    published: int = 0
    more: bool = False


async def serve(stores: Stores, sale: Sale, kind: Kind) -> Served:
    """Give what was freed to those who wait, in order of joining, and the rest to the public.

    For the sale's owner alone, again and again. It may stop anywhere: an offer is a hold under an id that does not
    change, and whoever finds it made notes it.
    """
    shelf = await kind.look(stores, sale)
    if shelf is None:
        return Served()
    if shelf.was_empty:
        await _close_unless_awaited(stores, sale, kind)
        return Served()
    offered, keep = await _offer_in_order(stores, shelf)
    await _note(stores, sale, offered)
    if keep is None:
        return Served(len(offered))
    published = await shelf.publish(stores, keep=keep)
    return Served(len(offered), published, more=shelf.more and bool(offered or published))


async def _offer_in_order(stores: Stores, shelf: Shelf) -> tuple[list[asyncpg.Record], bool | None]:
    """Offer the shelf to one after the other; who has an offer, and whether what is left may be kept for the others.

    Of what is left there is nothing to say (None) where the store has no time now; nobody waits where the sale is over.
    """
    offered: list[asyncpg.Record] = []
    async for entry in _waiting(stores.postgres, shelf):
        if entry["is_offered"]:
            offered.append(entry)
            continue
        match await shelf.offer(stores.gate, entry):
            case Offered() | HoldKnown():
                offered.append(entry)
            case SaleNotOpen() | SaleClosed():
                return offered, False
            case None | LimitReached() | SlowDown():
                pass  # this one may have no more just now, or not of this, and stays in line
            case _:
                return offered, None
    return offered, True


async def _waiting(postgres: asyncpg.Pool, shelf: Shelf) -> AsyncIterator[asyncpg.Record]:
    """Who waits and might be helped by what is on the shelf, in order of joining, for as long as something is."""
    after = 0
    while not shelf.is_bare():
        rows = await shelf.list_waiting(postgres, after=after, most=ENTRIES_AT_ONCE)
        for row in rows:
            if shelf.is_bare():
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
            await _release(stores.gate, sale, entry["entry_id"], entry["hold_id"], entry["user_id"])


# --- the list as a whole ----------------------------------------------------------------------------------------------


async def _close_unless_awaited(stores: Stores, sale: Sale, kind: Kind) -> None:
    """End the list of a sale in which nobody waits: in its row, then in the store, then for what is on the shelf."""
    if await SQL.is_awaited.fetchval(stores.postgres, sale.sale_id):
        return
    async with stores.postgres.acquire() as connection, connection.transaction():
        await SQL.lock_sale.fetchrow(connection, sale.sale_id)
        if not await SQL.close_list.execute(connection, sale.sale_id):
            return
    [row] = await sales.SQL.find_sales.fetch(stores.postgres, [sale.sale_id])
    await offers.send(stores.gate, stores.postgres, sales.from_row(row))
    await give_back(stores, sale, kind)


async def give_back(stores: Stores, sale: Sale, kind: Kind) -> int:
    """Give the public everything that was freed for a list that is over; returns how much."""
    given = 0
    while (shelf := await kind.look(stores, sale)) is not None and not shelf.was_empty:
        given += await shelf.publish(stores, keep=False)
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
