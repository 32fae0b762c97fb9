"""Sales as every process sees them: a book of their rows, one way to ask their scripts, edits of their terms.

A sale is the unit of contention: one hash tag in Redis, one epoch in Postgres. The epoch says which copy in Redis
counts; a process that asks with an older one is told so, reads the new one here and asks again, once.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeVar

import asyncpg
import msgspec

from engine.ids import SALE_PREFIX
from engine.refusals import IdempotencyKeyReused
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.connections import Stores
from engine.stores.keys import CouponKeys, SaleKeys
from engine.stores.outbox import Ends
from engine.stores.replies import Refusal, Reply, SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Argument, Gate, Script

SQL = queries.load("sales")

# A transaction that began this long ago may still commit a row that carries its beginning as `updated_at`.
COMMITS_WITHIN = timedelta(seconds=15)

# Who asks for what this process must read in Postgres first waits so long for it: a poll has no other deadline, and
# many of them would leave no room for requests that need nothing of Postgres.
FIND_WITHIN_S: Final = 5.0

# Numbers in line that are allowed ahead of those given out. A rebuild skips as many, so it is no more than a few
# seconds of the fastest joining that was measured.
QUEUE_NO_STEP = 200_000

R = TypeVar("R")


class StaleVersion(Refusal, frozen=True):
    """The record was changed in between."""

    version: int


RoomState = Literal["off", "prequeue", "open", "paused", "draining", "closed", "bypass"]

# What decides whether a sale sells: of one whose event is off, nobody changes these any more.
SELLING: Final = frozenset({"opens_at", "closes_at", "room"})

# What a waiting room may be set to at most: people inside or a minute, seconds, and a number in line, which is exact
# wherever numbers are doubles.
PEOPLE_MAX: Final = 10_000_000
SECONDS_MAX: Final = 86_400
QUEUE_NO_MAX: Final = 2**53 - 1


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decides of a sale and of its waiting room; times that end in `_s` are seconds."""

    name: str = ""
    opens_at: datetime | None = None
    closes_at: datetime | None = None
    per_buyer_max: int | None = None
    hold_s: int = 300
    hold_max_s: int = 900
    extensions_max: int = 2
    pay_s: int = 600
    refund_policy: tuple[dict[str, int], ...] = ()
    room: str = "off"
    active_max: int = 1000
    admitted_per_minute_max: int = 6000
    entry_s: int = 120
    session_s: int = 600
    recall_s: int = 300
    draining_no: int | None = None
    release_jitter_s: int = 0
    offer_s: int = 900


class Sale(Terms, frozen=True, kw_only=True):
    """One sale as this process last read its row; a source of coupons has such a row, too."""

    sale_id: str
    kind: str = "seats"
    schedule_id: str | None = None
    epoch: int = 1
    store_state: str = "open"
    fingerprint: str | None = None
    version: int = 1
    # Counts the changes of its products: what the store must have been told of.
    product_changes: int = 0
    # Somebody waits for seats that come back.
    waiting_list: bool = False
    # The last checkpoint of the line, and the numbers that it is allowed.
    serving: int = 0
    queue_no_ceiling: int = 0
    book: "SaleBook | None" = None

    @property
    def keys(self) -> SaleKeys:
        """The keys of this sale in Redis."""
        return CouponKeys(self.sale_id) if self.kind == "coupon" else SaleKeys(self.sale_id)


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A sale as operators list it; what is left of it is None where it sells no seats."""

    sale_id: str
    name: str
    room: str
    store_state: str
    opens_at: datetime | None
    closes_at: datetime | None
    seats_available: int | None
    seats_total: int | None
    schedule_id: str | None


class Configured(Reply, frozen=True):
    """The store has these terms, or newer ones."""

    version: int


class Checkpoint(Ends, frozen=True):
    """What its owner looks at of a sale: its line, its streams, the terms that the store has, and what is due.

    `stranded` seats, or variants some of whose units, were freed for a waiting list that is over. `product_changes` is
    the last change of its products that the store was told of. `lapsed` holds are to end or to be forgotten, `overdue`
    payments are past their deadline.
    """

    version: int
    serving: int
    queue_no: int
    queue_no_ceiling: int
    outbox_behind: int
    journal_behind: int
    stranded: int
    product_changes: int
    lapsed: int
    overdue: int


CHECKPOINT = Script("sales/checkpoint", SaleKeys, Checkpoint | SaleUnknown | StaleEpoch | SaleRebuilding)
CONFIGURE = Script("sales/configure", SaleKeys, Configured | SaleUnknown | StaleEpoch | SaleRebuilding)


async def ask(gate: Gate, sale: Sale, script: Script[R], **arguments: Argument | Sequence[Argument]) -> R:
    """Call a script of a sale; told that the epoch is stale, read the new one and ask again, once."""
    reply = await script(gate, sale.keys, epoch=sale.epoch, **arguments)
    if isinstance(reply, StaleEpoch) and sale.book is not None:
        newer = await sale.book.find_newer(sale)
        if newer is not None:
            reply = await script(gate, newer.keys, epoch=newer.epoch, **arguments)
    return reply


class SaleBook:
    """The sales a process knows: all that stood at its first refresh, all changed since, all that were asked for."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self._sales: dict[str, Sale] = {}
        self._by_schedule: dict[str, str] = {}
        self._by_prefix: dict[str, list[str]] = {}
        self._read_until = datetime.min.replace(tzinfo=UTC)
        # However many unknown ids are asked for, they cost one small read at a time.
        self._by_id = Coalescer(self._read_by_id, most=256, in_flight_max=1)
        self._by_schedule_id = Coalescer(self._read_by_schedule_id, most=256, in_flight_max=1)
        self._refreshes = Coalescer(self._refresh_for_all, most=256, in_flight_max=1)

    def sales(self) -> list[Sale]:
        """Every sale in the book."""
        return list(self._sales.values())

    async def find(self, sale_id: str) -> Sale | None:
        """The sale, from the book or else from its row, so that one which another process just made is found.

        Raises TimeoutError.
        """
        if (known := self._sales.get(sale_id)) is not None:
            return known
        async with asyncio.timeout(FIND_WITHIN_S):
            return await self._by_id.submit(sale_id)

    async def find_schedule(self, schedule_id: str) -> Sale | None:
        """The sale of a schedule, from the book or else from its row."""
        sale_id = self._by_schedule.get(schedule_id)
        return self._sales[sale_id] if sale_id else await self._by_schedule_id.submit(schedule_id)

    async def find_by_prefix(self, hold_id: str) -> list[Sale]:
        """The sales that an id made by `ids.derive_in` can belong to: nearly always one.

        Where none is known, another process may have made it a moment ago; however many ask for such ids, that is one
        read at a time. Raises TimeoutError.
        """
        if hold_id[:SALE_PREFIX] not in self._by_prefix:
            async with asyncio.timeout(FIND_WITHIN_S):
                await self._refreshes.submit(None)
        return [self._sales[sale_id] for sale_id in self._by_prefix.get(hold_id[:SALE_PREFIX], [])]

    async def find_newer(self, sale: Sale) -> Sale | None:
        """The same sale in a newer epoch, from the book or else from its row; None when there is none."""
        known = self._sales.get(sale.sale_id)
        if known is None or known.epoch <= sale.epoch:
            known = await self._by_id.submit(sale.sale_id)
        return known if known is not None and known.epoch > sale.epoch else None

    async def read(self, sale_id: str) -> Sale | None:
        """The sale as its row stands now; the book keeps it."""
        return await self._by_id.submit(sale_id)

    async def refresh(self) -> list[str]:
        """Read what was made or changed since the last refresh; each process does so about once a second.

        Returns the sales that are others now than this book knew.
        """
        rows = await SQL.list_changed_sales.fetch(self._postgres, self._read_until)
        known = {row["sale_id"]: self._sales.get(row["sale_id"]) for row in rows}
        self._keep(rows)
        if rows:
            # The database's clock alone decides; a quiet second reads the same few rows again.
            self._read_until = rows[-1]["updated_at"] - COMMITS_WITHIN
        return [sale_id for sale_id, sale in known.items() if self._sales[sale_id] != sale]

    async def _refresh_for_all(self, askers: list[None]) -> Sequence[None]:
        await self.refresh()
        return askers

    async def _read_by_id(self, sale_ids: list[str]) -> Sequence[Sale | None]:
        rows = await SQL.find_sales.fetch(self._postgres, list(set(sale_ids)))
        found = {sale.sale_id: sale for sale in self._keep(rows)}
        return [found.get(sale_id) for sale_id in sale_ids]

    async def _read_by_schedule_id(self, schedule_ids: list[str]) -> Sequence[Sale | None]:
        rows = await SQL.find_sales_of_schedules.fetch(self._postgres, list(set(schedule_ids)))
        found = {sale.schedule_id: sale for sale in self._keep(rows)}
        return [found.get(schedule_id) for schedule_id in schedule_ids]

    def _keep(self, rows: Iterable[asyncpg.Record]) -> list[Sale]:
        sales = [from_row(row, self) for row in rows]
        for sale in sales:
            known = self._sales.get(sale.sale_id)
            if known is None:
                self._by_prefix.setdefault(sale.sale_id[:SALE_PREFIX], []).append(sale.sale_id)
            # Two reads may be under way at once, and the older may end last.
            if known is None or _age(known) <= _age(sale):
                self._sales[sale.sale_id] = sale
            if sale.schedule_id:
                self._by_schedule[sale.schedule_id] = sale.sale_id
        return sales


async def list_newest(postgres: asyncpg.Pool, *, limit: int = 20) -> list[Listing]:
    """The sales that were made last, the newest first, each with what is left of it."""
    rows = await SQL.list_newest_sales.fetch(postgres, limit)
    return [Listing(**row) for row in rows]


def from_row(row: asyncpg.Record, book: SaleBook | None = None) -> Sale:
    """Make a sale of its row."""
    values = {name: row[name] for name in Sale.__struct_fields__ if name != "book"}
    return Sale(**values | {"refund_policy": tuple(row["refund_policy"])}, book=book)


async def create(
    connection: queries.Connection, *, sale_id: str, kind: str, terms: Terms, fingerprint: str | None = None
) -> bool:
    """Add the row of a new sale, which no store knows yet; False when it was there already."""
    added = await SQL.add_sale.execute(connection, sale_id, kind, fingerprint, *_columns(terms))
    await SQL.add_watermarks.execute(connection, sale_id)
    return added == 1


async def create_drop(
    postgres: asyncpg.Pool, *, sale_id: str, terms: Terms, fingerprint: str
) -> tuple[Sale, bool] | IdempotencyKeyReused:
    """Make a sale of goods; answers it as it now stands, and whether an earlier request made it."""
    async with postgres.acquire() as connection, connection.transaction():
        added = await create(connection, sale_id=sale_id, kind="stock", terms=terms, fingerprint=fingerprint)
        [row] = await SQL.find_sales.fetch(connection, [sale_id])
    sale = from_row(row)
    return (sale, not added) if sale.fingerprint == fingerprint else IdempotencyKeyReused()


async def edit(
    connection: queries.Connection, *, sale_id: str, changes: Mapping[str, object], version: int | None = None
) -> Sale | StaleVersion | None:
    """Change terms in the sale's row, inside the caller's transaction; None when there is no such sale.

    With `version`, only the edit that begins with that version of the row may make it.
    """
    row = await SQL.lock_sale.fetchrow(connection, sale_id)
    if row is None:
        return None
    sale = from_row(row)
    if version is not None and version != sale.version:
        return StaleVersion(sale.version)
    edited = msgspec.structs.replace(sale, **changes)
    edited_version: int = await SQL.edit_sale.fetchval(connection, sale_id, *_columns(edited))
    return msgspec.structs.replace(edited, version=edited_version)


async def would_sell_again(connection: queries.Connection, *, sale_id: str, changes: Mapping[str, object]) -> bool:
    """Whether these changes say when a sale sells, or to whom its room is open, and its event is off.

    It locks the row of the sale: who calls the event off after this does so after the caller's edit, and closes again.
    """
    if not changes.keys() & SELLING:
        return False
    await SQL.lock_sale.fetchrow(connection, sale_id)
    is_called_off: bool = await SQL.is_called_off.fetchval(connection, sale_id)
    return is_called_off


async def look(gate: Gate, sale: Sale) -> Checkpoint | SaleUnknown | StaleEpoch | SaleRebuilding:
    """Look where a sale stands; changes nothing."""
    return await CHECKPOINT(gate, sale.keys, epoch=sale.epoch, queue_no_ceiling=0)


async def keep_checkpoint(stores: Stores, sale: Sale, found: Checkpoint) -> None:
    """Remember in Postgres how far the line has come, and allow it more numbers, there first and then in the store."""
    is_short = found.queue_no_ceiling - found.queue_no < QUEUE_NO_STEP // 2
    if not is_short and found.serving <= sale.serving:
        return
    ceiling = found.queue_no + QUEUE_NO_STEP if is_short else 0
    kept = await SQL.keep_checkpoint.fetchval(stores.postgres, sale.sale_id, sale.epoch, found.serving, ceiling)
    if kept is not None and is_short:
        await CHECKPOINT(stores.gate, sale.keys, epoch=sale.epoch, queue_no_ceiling=kept)


def stored_terms(sale: Sale) -> tuple[Argument, ...]:
    """The terms as `lua/shared/sale.lua` names them: name, value, name, value …; 0 says that there is no such bound."""
    return (
        *("kind", sale.kind),
        *("opens_at_ms", milliseconds(sale.opens_at)),
        *("closes_at_ms", milliseconds(sale.closes_at)),
        *("per_buyer_max", sale.per_buyer_max or 0),
        *("hold_ms", sale.hold_s * 1000),
        *("hold_max_ms", sale.hold_max_s * 1000),
        *("extensions_max", sale.extensions_max),
        *("pay_ms", sale.pay_s * 1000),
        *("room", sale.room),
        *("active_max", sale.active_max),
        *("admitted_per_minute_max", sale.admitted_per_minute_max),
        *("entry_ms", sale.entry_s * 1000),
        *("session_ms", sale.session_s * 1000),
        *("recall_ms", sale.recall_s * 1000),
        *("draining_no", sale.draining_no or 0),
        *("release_jitter_ms", sale.release_jitter_s * 1000),
        *("waiting_list", int(sale.waiting_list)),
        *("offer_ms", sale.offer_s * 1000),
    )


def milliseconds(moment: datetime | None) -> int:
    """A moment as Redis keeps it; 0 when there is none."""
    return round(moment.timestamp() * 1000) if moment else 0


def _age(sale: Sale) -> tuple[int, int, int]:
    """What of a row only rises: of two readings the later one has more."""
    return sale.epoch, sale.version, sale.product_changes


def _columns(terms: Terms) -> tuple[object, ...]:
    values = msgspec.structs.asdict(terms)
    return tuple(values[name] for name in Terms.__struct_fields__)
