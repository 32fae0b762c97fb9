"""The waiting room: a line that is kept in Redis, one script a verb, and what Postgres keeps of it.

A queue number comes from one counter; the line is a sorted set of owners scored by it, and a tick calls its head.
How a process answers polls without asking Redis is in `rooms`.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec
from redis.exceptions import RedisError

from engine import sales
from engine.refusals import Busy, NotFound
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.outbox import Entry
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, Reply, Unavailable
from engine.stores.scripts import Gate, Script

SQL = queries.load("waiting_room")

# Numbers are given out this far beyond the last checkpoint in Postgres: a counter that was lost goes on from there.
CEILING_STEP: Final = 1_000_000

# What a client is told to wait before it asks again: at most, and while its token is ACTIVE.
POLL_MAX_MS: Final = 30_000
POLL_ACTIVE_MS: Final = 20_000
# A poll may be this late before its person counts as absent.
GRACE_MS: Final = 15_000

SCANNED_AT_ONCE: Final = 1_000


class Joined(Reply, frozen=True):
    """The owner's place in line; `created` is 1 for a number that was just given out."""

    queue_no: int
    created: int
    status: str


class AdmittedWithoutNumber(Reply, frozen=True):
    """The room is off or in bypass: everybody may go in."""


class QueueClosed(Refusal, frozen=True):
    """The line takes nobody any more."""


class Token(Reply, frozen=True):
    """How a token stands; `expires_at_ms` is 0 unless it is ACTIVE."""

    status: str
    queue_no: int
    ahead: int
    expires_at_ms: int


class Left(Reply, frozen=True):
    """The token has ended, and how."""

    queue_no: int
    status: str


class PutBack(Reply, frozen=True):
    """The number is in line again, or as it has ended."""

    queue_no: int
    status: str


class Tied(Reply, frozen=True):
    """The number that stands for the user now."""

    queue_no: int
    status: str


class Admitted(Reply, frozen=True):
    """What one pass of admission did, and who is still in line; `more` is 1 when another one has work at once."""

    count: int
    serving: int
    skipped: int
    expired: int
    waiting: int
    more: int


class Signs(Reply, frozen=True):
    """So many signs of life were noted."""

    count: int


class Snapshot(Reply, frozen=True):
    """A room as it stands; of `queue_nos` the first `gone_count` left the line, the rest have ended."""

    epoch: int
    now_ms: int
    room: str
    serving: int
    queue_no: int
    draining_no: int
    waiting: int
    behind: int
    returned: int
    active: int
    active_max: int
    admitted_per_minute_max: int
    admitted: int
    admitted_in_s: int
    gone_seq: int
    more: int
    gone_count: int
    queue_nos: tuple[str, ...]


JOIN = Script("waiting_room/join", SaleKeys, Joined | AdmittedWithoutNumber | QueueClosed | Busy | Unavailable)
ENTER = Script("waiting_room/enter", SaleKeys, Token | AdmittedWithoutNumber | NotFound | Unavailable)
LEAVE = Script("waiting_room/leave", SaleKeys, Left | NotFound | Unavailable)
TIE = Script("waiting_room/tie", SaleKeys, Tied | NotFound | Unavailable)
PUT_BACK = Script("waiting_room/put_back", SaleKeys, PutBack | AdmittedWithoutNumber | NotFound | Busy | Unavailable)
ADMIT = Script("waiting_room/admit", SaleKeys, Admitted | Unavailable)
SIGNS = Script("waiting_room/signs", SaleKeys, Signs | Unavailable)
SNAPSHOT = Script("waiting_room/snapshot", SaleKeys, Snapshot | Unavailable)


def is_on(sale: Sale) -> bool:
    """Whether this sale has a line at all."""
    return sale.room not in {"off", "bypass"}


# What people do -------------------------------------------------------------------------------------------------------


async def join(
    gate: Gate, sale: Sale, *, owner: str
) -> Joined | AdmittedWithoutNumber | QueueClosed | Busy | Unavailable:
    """Give an owner a place at the back, or the place it has: joining again changes nothing."""
    return await sales.ask(gate, sale, JOIN, owner=owner)


async def enter(
    gate: Gate, sale: Sale, *, owner: str, queue_no: int, overdue_in_ms: int = POLL_ACTIVE_MS + GRACE_MS
) -> Token | AdmittedWithoutNumber | NotFound | Unavailable:
    """Use a token in person: an ACTIVE one begins its session, once; a skipped one is back in line."""
    return await sales.ask(gate, sale, ENTER, owner=owner, queue_no=queue_no, overdue_in_ms=overdue_in_ms)


async def leave(gate: Gate, sale: Sale, *, owner: str, queue_no: int) -> Left | NotFound | Unavailable:
    """Give a token up; harmless to repeat."""
    return await sales.ask(gate, sale, LEAVE, owner=owner, queue_no=queue_no)


async def tie(gate: Gate, sale: Sale, *, visitor: str, user: str, queue_no: int) -> Tied | NotFound | Unavailable:
    """Make a visitor's token the token of the user who signed in with it."""
    return await sales.ask(gate, sale, TIE, visitor=visitor, user=user, queue_no=queue_no)


async def put_back(
    gate: Gate, sale: Sale, *, owner: str, queue_no: int, visitor: str = ""
) -> PutBack | AdmittedWithoutNumber | NotFound | Busy | Unavailable:
    """Put a signed number of an older epoch back in line, after the store was lost."""
    return await sales.ask(gate, sale, PUT_BACK, owner=owner, queue_no=queue_no, visitor=visitor)


async def admit(gate: Gate, sale: Sale, *, most: int) -> Admitted | Unavailable:
    """Call the head of the line within both caps, and end what has lapsed; at most `most` of each."""
    return await sales.ask(gate, sale, ADMIT, most=most, poll_max_ms=POLL_MAX_MS, grace_ms=GRACE_MS)


# What a process asks, for everybody who polls it ----------------------------------------------------------------------


async def snapshot(gate: Gate, sale: Sale, *, gone_seq: int, ended_since_ms: int, most: int) -> Snapshot | Unavailable:
    """Read a room as it stands, with at most `most` departures after `gone_seq` and numbers ended since then."""
    return await sales.ask(gate, sale, SNAPSHOT, gone_seq=gone_seq, ended_since_ms=ended_since_ms, most=most)


async def note_signs(gate: Gate, sale: Sale, *, signs: Sequence[tuple[str, int, int]]) -> Signs | Unavailable:
    """Note who polled near the front, each as owner, queue number and milliseconds until the next poll is overdue."""
    return await sales.ask(gate, sale, SIGNS, signs=[value for sign in signs for value in sign])


# What Postgres keeps --------------------------------------------------------------------------------------------------


class _Fate(msgspec.Struct):
    """What a batch says of one number, folded."""

    owner: str | None = None
    status: str | None = None
    created_at_ms: int | None = None
    admitted_at_ms: int | None = None
    ended_at_ms: int | None = None
    returned: bool = False


async def record(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Write what the journal says of the line: joined, tied, admitted, ended, returned; other kinds are passed over.

    Raises BadEntry.
    """
    fates: dict[int, _Fate] = {}

    def fate_of(queue_no: int) -> _Fate:
        return fates.setdefault(queue_no, _Fate())

    for entry in entries:
        match entry.kind:
            case "joined":
                fate = fate_of(entry.number("queue_no"))
                fate.owner, fate.status, fate.created_at_ms = entry.text("owner"), "WAITING", entry.number("at_ms")
            case "tied":
                fate_of(entry.number("queue_no")).owner = entry.text("owner")
            case "admitted":
                for queue_no in entry.numbers("queue_nos"):
                    fate = fate_of(queue_no)
                    fate.status, fate.admitted_at_ms = "ACTIVE", entry.number("at_ms")
            case "ended":
                fate = fate_of(entry.number("queue_no"))
                fate.status, fate.ended_at_ms = entry.text("status"), entry.number("at_ms")
            case "returned":
                fate = fate_of(entry.number("queue_no"))
                fate.status, fate.ended_at_ms, fate.returned = "WAITING", None, True
            case _:
                pass
    new = {queue_no: fate for queue_no, fate in sorted(fates.items()) if fate.created_at_ms is not None}
    known = {queue_no: fate for queue_no, fate in sorted(fates.items()) if fate.created_at_ms is None}
    if new:
        await SQL.keep_tokens.execute(
            connection,
            sale.sale_id,
            entries[-1].epoch,
            list(new),
            [fate.owner for fate in new.values()],
            [fate.status for fate in new.values()],
            [fate.created_at_ms for fate in new.values()],
            [fate.admitted_at_ms for fate in new.values()],
            [fate.ended_at_ms for fate in new.values()],
        )
    if known:
        await SQL.edit_tokens.execute(
            connection,
            sale.sale_id,
            list(known),
            [fate.owner for fate in known.values()],
            [fate.status for fate in known.values()],
            [fate.admitted_at_ms for fate in known.values()],
            [fate.ended_at_ms for fate in known.values()],
            [fate.returned for fate in known.values()],
        )


async def record_processed(connection: Connection, sale: Sale, processed: Sequence[tuple[int, str]]) -> None:
    """Write that the owners of these numbers have bought, given as (queue_no, owner)."""
    numbers = dict(sorted(processed))
    await SQL.process_tokens.execute(connection, sale.sale_id, sale.epoch, list(numbers), list(numbers.values()))


async def find_ends(postgres: asyncpg.Pool, numbers: Sequence[tuple[str, int, str]]) -> list[Token | NotFound | None]:
    """How these numbers ended, given as (sale_id, queue_no, owner); None for what Postgres does not know as ended."""
    rows = await SQL.find_ends.fetch(postgres, *map(list, zip(*numbers, strict=True)))
    ends: list[Token | NotFound | None] = [None] * len(numbers)
    for row in rows:
        at = row["at"] - 1
        ends[at] = Token(row["status"], numbers[at][1], 0, 0) if row["lately"] else NotFound()
    return ends


async def resync(gate: Gate, connection: Connection, sale: Sale) -> None:
    """Write the line as Redis has it now, because entries about it were lost.

    A number that stands nowhere any more is gone for good, whoever had it. Entries that follow may say again what is
    written here; what has ended stays ended. Raises StoreUnavailable.
    """
    now_ms = 0
    fates: dict[int, _Fate] = {}
    try:
        now_ms = int(await gate.redis.execute_command("HGET", sale.keys.sale, "now_ms") or 0)
        async for owner, queue_no in gate.redis.zscan_iter(sale.keys.waiting, count=SCANNED_AT_ONCE):
            fates[int(queue_no)] = _Fate(owner=owner.decode(), status="WAITING")
        async for owner, record in gate.redis.hscan_iter(sale.keys.tokens, count=SCANNED_AT_ONCE):
            status, queue_no, _entered, admitted_at_ms = record.decode().split("|")
            fates[int(queue_no)] = _Fate(
                owner=owner.decode(),
                status="ACTIVE" if status == "ACTIVE" else "WAITING",
                admitted_at_ms=int(float(admitted_at_ms)) or None,
            )
        async for queue_no, record in gate.redis.hscan_iter(sale.keys.ended_tokens, count=SCANNED_AT_ONCE):
            status, owner, *_ = record.decode().split("|")
            if status in {"PROCESSED", "EXPIRED", "LEFT"}:
                fates[int(queue_no)] = _Fate(owner=owner, status=status, ended_at_ms=now_ms)
    except RedisError as fault:
        raise StoreUnavailable(f"the line of sale {sale.sale_id} cannot be read: {fault}") from fault
    standing = dict(sorted(fates.items()))
    await SQL.keep_tokens.execute(
        connection,
        sale.sale_id,
        sale.epoch,
        list(standing),
        [fate.owner for fate in standing.values()],
        [fate.status for fate in standing.values()],
        [now_ms] * len(standing),
        [fate.admitted_at_ms for fate in standing.values()],
        [fate.ended_at_ms for fate in standing.values()],
    )
