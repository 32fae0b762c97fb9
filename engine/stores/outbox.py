"""The outbox: facts that Redis decided, applied to Postgres in order, each once.

A sale has two streams. Each entry carries the sale's epoch, the stream's next number, and the id of the entry before
it. One owner reads a stream from the watermark that Postgres keeps, and an entry is applied only if its number is the
watermark's plus one *and* it names the watermark's entry as its predecessor. Anything else is another history than the
one Postgres knows: the sale is frozen and rebuilt.

There is no consumer group: nothing is pending, nothing has to be claimed or acknowledged, and the watermark moves in
the transaction that applies the entries.
"""

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg
import msgspec
from redis.exceptions import RedisError

from engine.stores import queries
from engine.stores.connections import POSTGRES_CROSSED, StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate, Script, ScriptFault

logger = logging.getLogger(__name__)

SQL = queries.load("outbox")

LEASE_S = 15.0
# How far Postgres is, for who waits; and which stream has something new, for who reads it: `lua/shared/streams.lua`.
CHANNEL = "lastseat:persisted"
WRITTEN = "lastseat:written"
# Entries in one transaction.
BATCH_MAX: Mapping["Stream", int] = {"outbox": 500, "journal": 2000}

Stream = Literal["outbox", "journal"]
STREAMS: tuple[Stream, ...] = ("outbox", "journal")
# Kinds of the journal that are about holds, as `lua/shared/streams.lua` says it; the rest are about the room.
ABOUT_HOLDS = frozenset({"held", "extended", "released", "expired"})

_ID = re.compile(r"[0-9a-f]{32}")


class BadEntry(Exception):
    """An entry lacks a field of its kind, or has one that cannot be what it should be."""


class Entry(msgspec.Struct, frozen=True):
    """One entry of a stream; `fields` are the pairs of its kind.

    `text`, `number`, `numbers` and `id` read a field and raise BadEntry for one that is not there or not of that form:
    then the entry is dead-lettered like one that Postgres refuses.
    """

    entry_id: str
    epoch: int
    n: int
    before: str
    kind: str
    fields: dict[str, str]

    def text(self, name: str) -> str:
        """Read a field."""
        try:
            return self.fields[name]
        except KeyError:
            raise BadEntry(f"{self.kind} has no {name}") from None

    def number(self, name: str) -> int:
        """Read a field that is a whole number."""
        try:
            return int(self.text(name))
        except ValueError:
            raise BadEntry(f"{self.kind}: {name} is {self.fields[name]!r} and no number") from None

    def numbers(self, name: str) -> list[int]:
        """Read a field that is a list of whole numbers."""
        try:
            return [int(number) for number in self.text(name).split(",")]
        except ValueError:
            raise BadEntry(f"{self.kind}: {name} is {self.fields[name]!r} and no list of numbers") from None

    def id(self, name: str) -> str:
        """Read a field that is an id."""
        if not _ID.fullmatch(self.text(name)):
            raise BadEntry(f"{self.kind}: {name} is {self.fields[name]!r} and no id")
        return self.fields[name]


class Watermark(msgspec.Struct, frozen=True):
    """How far a stream was applied, and by which generation of owner; `held_entry_id` is the last one about a hold."""

    epoch: int
    generation: int
    n: int
    entry_id: str
    held_entry_id: str = "0-0"


class Divergence(Exception):
    """Redis and Postgres tell different histories of a sale; it must be rebuilt."""

    def __init__(self, says: str, *, entry: Entry | None = None) -> None:
        super().__init__(says)
        self.entry = entry


class OwnershipLost(Exception):
    """Another worker owns this sale now, or it was rebuilt: nothing was written."""


Apply = Callable[[Connection, Sequence[Entry]], Awaitable[None]]
Bury = Callable[[Connection, Entry], Awaitable[str | None]]
Write = Callable[[Connection], Awaitable[None]]
Resync = Callable[[Gate, Connection], Awaitable[None]]


@dataclass(frozen=True)
class Handler:
    """What is done with the entries of one stream of one sale.

    Args:
        apply: writes the entries, in the transaction that moves the watermark. Raises Divergence when they cannot be
            true.
        bury: leaves the rows of an entry that cannot be applied in a state that an operator can resolve, in the same
            transaction as its dead letter, and returns the payment it concerns.
        resync: writes the room's rows from what Redis says now, after entries were lost that were about the room alone.
    """

    apply: Apply
    bury: Bury
    resync: Resync | None = None


# Ownership ------------------------------------------------------------------------------------------------------------


async def take_ownership(
    postgres: asyncpg.Pool,
    owner: str,
    *,
    sale_ids: Sequence[str] | None = None,
    most: int = 1000,
    lease_s: float = LEASE_S,
) -> dict[str, int]:
    """Take up to `most` sales that nobody owns, of these or of all; returns the generation of each by sale id."""
    async with postgres.acquire() as connection, connection.transaction():
        rows = await SQL.take_ownership.fetch(connection, owner, most, lease_s, sale_ids)
        taken = {row["sale_id"]: row["generation"] for row in rows}
        await SQL.fence_watermarks.execute(connection, list(taken), list(taken.values()))
    return taken


async def renew_ownership(
    postgres: asyncpg.Pool, owner: str, owned: Mapping[str, int], *, lease_s: float = LEASE_S
) -> dict[str, int]:
    """Keep owning these sales; returns those that are still owned."""
    rows = await SQL.renew_ownership.fetch(postgres, owner, list(owned), list(owned.values()), lease_s)
    return {row["sale_id"]: row["generation"] for row in rows}


async def give_back_ownership(postgres: asyncpg.Pool, owner: str, owned: Mapping[str, int]) -> None:
    """Stop owning these sales, so that another worker need not wait for the lease to lapse."""
    await SQL.give_back_ownership.execute(postgres, owner, list(owned), list(owned.values()))


async def find_watermark(postgres: asyncpg.Pool | Connection, sale_id: str, stream: Stream) -> Watermark | None:
    """How far a stream of a sale was applied."""
    row = await SQL.find_watermark.fetchrow(postgres, sale_id, stream)
    return Watermark(**row) if row else None


# Reading --------------------------------------------------------------------------------------------------------------


def parse_entries(raw: Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]) -> Iterator[Entry]:
    """Make entries of what XRANGE answered, one after the other.

    Raises Divergence for an entry that no script of ours wrote, after those that stand before it.
    """
    for entry_id, pairs in raw:
        try:
            fields = {name.decode(): value.decode() for name, value in (pairs or {}).items()}
            epoch, n = int(fields.pop("epoch")), int(fields.pop("n"))
            before, kind = fields.pop("before"), fields.pop("kind")
        except (KeyError, ValueError) as fault:
            raise Divergence(f"entry {entry_id.decode()} is not of a stream's form: {fault!r}") from fault
        yield Entry(entry_id.decode(), epoch, n, before, kind, fields)


async def read(
    redis: Any, keys: SaleKeys, stream: Stream, watermark: Watermark, *, most: int | None = None
) -> list[Entry]:
    """Read what follows the watermark, checked to be its unbroken continuation.

    Raises Divergence where an entry is not the successor of the one before it. Entries before the break are lost to
    this call: a rebuild reads them with `read_unbroken`.
    """
    entries, fault = await read_unbroken(redis, keys, stream, watermark, most=most)
    if fault is not None and not entries:
        raise fault
    return entries


async def read_unbroken(
    redis: Any, keys: SaleKeys, stream: Stream, watermark: Watermark, *, most: int | None = None
) -> tuple[list[Entry], Divergence | None]:
    """Read what follows the watermark up to the first break, and the break."""
    key = getattr(keys, stream)
    try:
        raw = await redis.xrange(key, min=f"({watermark.entry_id}", count=most or BATCH_MAX[stream])
    except RedisError as fault:
        raise StoreUnavailable(f"the {stream} of sale {keys.sale_id} cannot be read: {fault}") from fault
    previous_n, previous_id = watermark.n, watermark.entry_id
    unbroken: list[Entry] = []
    try:
        for entry in parse_entries(raw):
            if (entry.epoch, entry.n, entry.before) != (watermark.epoch, previous_n + 1, previous_id):
                raise Divergence(
                    f"{stream}: after n {previous_n} ({previous_id}) of epoch {watermark.epoch} comes n {entry.n} "
                    f"({entry.entry_id}) of epoch {entry.epoch}, which names {entry.before} before it",
                    entry=entry,
                )
            unbroken.append(entry)
            previous_n, previous_id = entry.n, entry.entry_id
    except Divergence as divergence:
        return unbroken, divergence
    return unbroken, None


def is_about_the_room(stream: Stream, watermark: Watermark, entry: Entry) -> bool:
    """Whether all that was lost between the watermark and this entry of the journal was about the room.

    So it is when an entry of the same epoch names another predecessor than ours, and the same last entry about a hold.
    A number that was given out and never written is no such thing: there a script failed half-way.
    """
    return (
        stream == "journal"
        and entry.epoch == watermark.epoch
        and entry.n > watermark.n + 1
        and entry.before != watermark.entry_id
        and entry.fields.get("holds") == watermark.held_entry_id
    )


# Applying -------------------------------------------------------------------------------------------------------------

# A transaction that another one crossed, or whose connection went: the same batch again, with the same ids.
_AGAIN = (
    *POSTGRES_CROSSED,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    ConnectionError,
    TimeoutError,
)
# The entry itself is what Postgres refuses (SQLSTATE classes 22 and 23), or what nobody can read.
_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, BadEntry)
ATTEMPTS_MAX = 5


class Reader:
    """Reads and applies one stream of one sale, as long as it is the owner.

    Args:
        gate: the way into Redis.
        postgres: the pool that the transactions run on.
        keys: the sale's keys.
        stream: which of its two streams.
        generation: of the ownership; a newer one ends this reader with `OwnershipLost`.
        handler: what is done with the entries.
    """

    def __init__(
        self, gate: Gate, postgres: asyncpg.Pool, keys: SaleKeys, stream: Stream, generation: int, handler: Handler
    ) -> None:
        self._gate = gate
        self._postgres = postgres
        self._keys = keys
        self.stream: Stream = stream
        self.generation = generation
        self._handler = handler
        self.watermark: Watermark | None = None
        self._is_announced = False
        self.applied = 0
        self.dead_lettered = 0

    async def drain(self) -> int:
        """Apply one batch of what follows the watermark; returns how many entries.

        Raises Divergence (the sale must be frozen), OwnershipLost, and whatever the stores raise while they are away:
        then nothing is lost, and the next call goes on where Postgres stands.
        """
        watermark = self.watermark
        if watermark is None:
            watermark = self.watermark = await self._find_watermark()
        try:
            entries = await read(self._gate.redis, self._keys, self.stream, watermark)
        except Divergence as divergence:
            if not await self._pass_over(watermark, divergence):
                raise
            return await self.drain()
        if entries:
            await self.apply(entries)
        elif watermark.n and not self._is_announced:
            await self._announce(watermark)
        return len(entries)

    async def apply(self, entries: Sequence[Entry]) -> None:
        """Apply entries that continue the watermark, then say so to whoever waits."""
        await self._apply_or_bury(entries)
        self.applied += len(entries)
        await self._announce(self.watermark or await self._find_watermark())

    def repeat(self) -> None:
        """The store has forgotten how far Postgres is: say it again at the next look that finds nothing new."""
        self._is_announced = False

    async def _announce(self, watermark: Watermark) -> None:
        """Say how far Postgres is; where it is not heard, the next look at a stream with nothing new says it again."""
        self._is_announced = await announce(self._gate, self._keys, self.stream, watermark)

    async def _find_watermark(self) -> Watermark:
        found = await find_watermark(self._postgres, self._keys.sale_id, self.stream)
        if found is None or found.generation != self.generation:
            raise OwnershipLost(f"sale {self._keys.sale_id}: the {self.stream} is another generation's")
        return found

    async def _pass_over(self, watermark: Watermark, divergence: Divergence) -> bool:
        """Go on behind lost entries that were about the room alone: its rows are written from Redis."""
        entry, resync = divergence.entry, self._handler.resync
        if entry is None or resync is None or not is_about_the_room(self.stream, watermark, entry):
            return False
        after = Watermark(watermark.epoch, watermark.generation, entry.n - 1, entry.before, watermark.held_entry_id)
        await self._move(watermark, after, functools.partial(resync, self._gate))
        logger.error("sale %s: its room was read anew: %s", self._keys.sale_id, divergence)
        return True

    async def _apply_or_bury(self, entries: Sequence[Entry]) -> None:
        try:
            await self._apply_again(entries)
        except _DATA as fault:
            if len(entries) > 1:
                # Somewhere in here is an entry that cannot be: halve until it stands alone.
                middle = len(entries) // 2
                await self._apply_or_bury(entries[:middle])
                await self._apply_or_bury(entries[middle:])
            else:
                await self._bury(entries[0], fault)

    async def _apply_again(self, entries: Sequence[Entry]) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                await self._transact(entries, self._handler.apply)
                return
            except _DATA:
                raise  # the driver's own refusal of a value is an error of its interface, too
            except _AGAIN as fault:
                if attempt == ATTEMPTS_MAX:
                    raise
                logger.warning("%s of sale %s: once more after %r", self.stream, self._keys.sale_id, fault)
                await asyncio.sleep(0.02 * 2**attempt)
            # The commit may have happened and its answer been lost: Postgres knows.
            self.watermark = await self._find_watermark()
            if self.watermark.n >= entries[-1].n:
                return

    async def _bury(self, entry: Entry, fault: Exception) -> None:
        async def letter(connection: Connection, _entries: Sequence[Entry]) -> None:
            payment_id = await self._handler.bury(connection, entry)
            await SQL.add_dead_letter.execute(
                connection, self._keys.sale_id, self.stream, entry.epoch, entry.n, entry.entry_id, entry.kind,
                entry.fields, f"{type(fault).__name__}: {fault}", payment_id,
            )  # fmt: skip

        await self._transact([entry], letter)
        self.dead_lettered += 1
        logger.error("sale %s: %s entry %d was dead-lettered: %s", self._keys.sale_id, self.stream, entry.n, fault)

    async def _transact(self, entries: Sequence[Entry], apply: Apply) -> None:
        watermark, last = self.watermark or await self._find_watermark(), entries[-1]
        if watermark.n + 1 != entries[0].n:
            raise OwnershipLost(f"sale {self._keys.sale_id}: somebody else applied the {self.stream}")
        about_holds = [entry.entry_id for entry in entries if entry.kind in ABOUT_HOLDS]
        after = Watermark(
            watermark.epoch,
            watermark.generation,
            last.n,
            last.entry_id,
            about_holds[-1] if about_holds else watermark.held_entry_id,
        )

        async def write(connection: Connection) -> None:
            await apply(connection, entries)

        await self._move(watermark, after, write)

    async def _move(self, watermark: Watermark, after: Watermark, write: Write) -> None:
        """Write, and move the watermark from where it must stand, in one transaction."""
        self.watermark = None  # until the commit is known, only Postgres knows
        self._is_announced = False
        sale_id = self._keys.sale_id
        async with self._postgres.acquire() as connection, connection.transaction():
            own = await SQL.lock_watermark.fetchval(
                connection, sale_id, self.stream, watermark.epoch, self.generation, watermark.entry_id
            )
            if own is None:
                raise OwnershipLost(f"sale {sale_id}: the {self.stream} has moved on without this worker")
            await write(connection)
            await SQL.move_watermark.execute(
                connection, sale_id, self.stream, after.epoch, watermark.n + 1, after.n, after.entry_id,
                after.held_entry_id,
            )  # fmt: skip
        self.watermark = after


# After the commit -----------------------------------------------------------------------------------------------------


class Persisted(Reply, frozen=True):
    """The sale knows how far Postgres is."""

    trimmed: int


class Ends(Reply, frozen=True):
    """Where the streams of a sale stand in Redis."""

    outbox_counter: int
    outbox_n: int
    outbox_id: str
    journal_counter: int
    journal_n: int
    journal_id: str

    def of(self, stream: Stream) -> tuple[int, int, str]:
        """The last number that a stream gave out, and number and id of its last entry."""
        if stream == "outbox":
            return self.outbox_counter, self.outbox_n, self.outbox_id
        return self.journal_counter, self.journal_n, self.journal_id


class Head(Ends, frozen=True):
    """Where the streams of a sale stand, and in which of its copies."""

    epoch: int
    state: str


PERSIST = Script("streams/persist", SaleKeys, Persisted | SaleUnknown | StaleEpoch)
HEAD = Script("streams/head", SaleKeys, Head | SaleUnknown)


async def announce(gate: Gate, keys: SaleKeys, stream: Stream, watermark: Watermark) -> bool:
    """Tell whoever waits how far Postgres is, write it into the sale, and forget the entries before it.

    Returns whether the sale heard it. A store that is away is no fault here, as the commit stands: who waits looks for
    himself after a quarter of a second, and the reader says it again.
    """
    try:
        reply = await PERSIST(
            gate,
            keys,
            epoch=watermark.epoch,
            name=stream,
            n=watermark.n,
            entry_id=watermark.entry_id,
            channel=CHANNEL,
            message=f"{keys.sale_id} {watermark.epoch} {watermark.n}" if stream == "outbox" else "",
        )
    except (StoreUnavailable, ScriptFault, RedisError, OSError) as fault:
        logger.warning("sale %s: %s n %d was not announced: %s", keys.sale_id, stream, watermark.n, fault)
        return False
    return isinstance(reply, Persisted)


async def inspect(gate: Gate, postgres: asyncpg.Pool, keys: SaleKeys, epoch: int) -> str | None:
    """Compare the head of each stream with its watermark; returns what is wrong, or None.

    The watermark is read first: in a healthy sale the head is never behind it.
    """
    watermarks = {stream: await find_watermark(postgres, keys.sale_id, stream) for stream in STREAMS}
    head = await HEAD(gate, keys)
    if isinstance(head, SaleUnknown):
        return "the store does not know the sale"
    if head.epoch != epoch:
        return f"the store has epoch {head.epoch}, Postgres {epoch}"
    for stream, watermark in watermarks.items():
        counter, n, entry_id = head.of(stream)
        if watermark is None or watermark.epoch != epoch:
            continue  # a rebuild is under way
        if n < watermark.n:
            return f"the {stream} ends at n {n}, Postgres has n {watermark.n}"
        if n == watermark.n and entry_id != watermark.entry_id:
            return f"n {n} of the {stream} is {entry_id}, Postgres applied {watermark.entry_id}"
        if counter > n:
            return f"the {stream} gave out n {counter} and has no entry after n {n}"
        if n > watermark.n:
            entries, fault = await read_unbroken(gate.redis, keys, stream, watermark, most=1)
            moved = await find_watermark(postgres, keys.sale_id, stream) != watermark
            if entries or moved:
                continue
            if fault is None:
                return f"the {stream} is at n {n}, and nothing follows {watermark.entry_id}"
            if fault.entry is None or not is_about_the_room(stream, watermark, fault.entry):
                return str(fault)
    return None


async def freeze(postgres: asyncpg.Pool | Connection, sale_id: str, epoch: int, reason: str) -> bool:
    """Mark a sale as frozen, so that it is rebuilt; whether it was open until now. Rings the alarm."""
    frozen = await SQL.freeze_sale.execute(postgres, sale_id, epoch, reason) > 0
    if frozen:
        logger.error("sale %s is frozen: %s", sale_id, reason)
    return frozen
