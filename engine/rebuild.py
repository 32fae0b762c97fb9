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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import asyncpg
import msgspec

from engine import (
    coupon_copies,
    coupons,
    ids,
    messages,
    sales,
    seat_copies,
    settlement,
    stock_copies,
    waiting_room,
    wares,
)
from engine.copies import Cleared, Contents, Loaded, LoadedAnswer, RebuildFailed, Row, expect, pages
from engine.sales import Sale
from engine.stores import outbox, queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.outbox import Divergence, Entry, Handler, OwnershipLost, Reader, Stream
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Argument, Gate, Script

logger = logging.getLogger(__name__)

SQL = queries.load("rebuild")

TOKENS_AT_ONCE = 1000


class Closed(Reply, frozen=True):
    """No script changes the sale any more."""


class Opened(Reply, frozen=True):
    """The sale is open."""


CLOSE = Script("sales/close", SaleKeys, Closed | SaleUnknown | StaleEpoch)
CLEAR = Script("sales/clear", SaleKeys, Cleared | StaleEpoch)
LOAD_TOKENS = Script("sales/load_tokens", SaleKeys, LoadedAnswer)
OPEN = Script("sales/open", SaleKeys, Opened | SaleUnknown | StaleEpoch)


class Settle(Protocol):
    """How a kind of sale ends what cannot stand in a new epoch, and reads what does."""

    async def __call__(self, connection: Connection, sale: Sale, *, repeat_window_s: int) -> Contents:
        """Do so in the transaction that begins the epoch."""


SETTLE: Final[Mapping[str, Settle]] = {"seats": seat_copies.settle, "stock": stock_copies.settle}


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A new copy of a sale, as step 3 decided it: everything that step 4 writes."""

    sale: Sale
    is_first: bool
    queue_no: int
    queue_no_ceiling: int
    serving: int
    # None of a source of coupons: nothing in it ends with an epoch.
    contents: Contents | None


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
    if copy.contents is None:
        await coupon_copies.write(stores, copy.sale)
    else:
        await _write(stores, copy, copy.contents)
    expect(await OPEN(stores.gate, copy.sale.keys, epoch=copy.sale.epoch), Opened)
    if not await SQL.finish.execute(stores.postgres, sale_id, copy.sale.epoch):
        raise _lost(sale_id)
    holds = len(copy.contents.holds) if copy.contents else 0
    logger.info("sale %s is open in epoch %d with %d holds", sale_id, copy.sale.epoch, holds)
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
        await wares.of(sale).rows.record(connection, sale, entries)
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
        settle = SETTLE.get(sale.kind)
        contents = await settle(connection, sale, repeat_window_s=stores.settings.repeat_window_s) if settle else None
        await SQL.answer_letters.execute(connection, sale_id)  # it may have voided what was in doubt
        rows = await sales.SQL.find_sales.fetch(connection, [sale_id])
    return Copy(
        sale=sales.from_row(rows[0]),
        is_first=raised["epoch"] == 1,
        queue_no=raised["queue_no"],
        queue_no_ceiling=raised["queue_no_ceiling"],
        serving=raised["serving"],
        contents=contents,
    )


# Steps 4 and 5 --------------------------------------------------------------------------------------------------------


async def _write(stores: Stores, copy: Copy, contents: Contents) -> None:
    """Clear the sale, write everything, and count it."""
    sale, gate = copy.sale, stores.gate
    was_on = sale.room not in {"off", "bypass"} and not copy.is_first
    terms: tuple[Argument, ...] = (
        *sales.stored_terms(sale),
        *("version", sale.version),
        *("product_changes", sale.product_changes),
        *("repeat_window_ms", stores.settings.repeat_window_s * 1000),
        *("backlog_max", stores.settings.backlog_max),
        *("queue_no", copy.queue_no),
        *("queue_no_ceiling", copy.queue_no_ceiling),
        *("serving", copy.serving),
        *("has_floor", int(sale.kind == "seats")),
    )
    admitted = sale.admitted_per_minute_max if was_on else 0
    expect(await CLEAR(gate, sale.keys, epoch=sale.epoch, admitted=admitted, terms=terms), Cleared)
    ended_tokens = 0
    async for rows in pages(stores.postgres, SQL.list_ended_tokens, sale.sale_id, 0, "queue_no", TOKENS_AT_ONCE):
        flat = [value for row in rows for value in (row["queue_no"], _ended_token(row), row["ended_at_ms"])]
        expect(await LOAD_TOKENS(gate, sale.keys, epoch=sale.epoch, rows=flat), Loaded)
        ended_tokens += len(rows)
    await messages.put_back(gate, stores.postgres, sale)
    meant = await contents.write(stores, sale, ended_tokens=ended_tokens)
    counted = await contents.count(gate, sale)
    if counted != meant:
        raise RebuildFailed(f"sale {sale.sale_id}: meant to write {meant}, the store has {counted}")


def _ended_token(row: Row) -> str:
    """A record of `ended_tokens`, as lua/shared/room.lua describes it."""
    return f"{row['status']}|{row['owner']}"


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
