"""Messages: what an operator tells everybody who waits for a sale.

Postgres keeps them. Redis has those of the last hour and counts them; every process sees the count whenever it reads
what changed on the map, and then fetches what is new (`lua/seats/changes.lua`). A rebuild puts them back.
"""

from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from engine import sales
from engine.moments import LAST_ID, LATEST
from engine.refusals import IdempotencyKeyReused
from engine.sales import Sale
from engine.stores import queries
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch, Unavailable
from engine.stores.scripts import Gate, Script

SQL = queries.load("messages")

TEXT_MAX: Final = 500

# Who comes later than this after a message is not told it.
TOLD_S: Final = 3600

# So many are kept for who comes later or looks away; what was told to nobody by then would be told in one breath.
KEPT_MAX: Final = 20


class MessageSent(Reply, frozen=True):
    """The store has this message; it was the one of this number, or an earlier one."""

    message_no: int


class Messages(Reply, frozen=True):
    """The messages of the last hour as rows `at_ms message_id text`, the oldest first, and what time it is."""

    message_no: int
    now_ms: int
    rows: tuple[str, ...]


SEND = Script("messages/send", SaleKeys, MessageSent | SaleUnknown | StaleEpoch)
LIST = Script("messages/list", SaleKeys, Messages | Unavailable)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it is kept; `repeated` where an earlier request sent it."""

    message_id: str
    text: str
    created_at: datetime
    repeated: bool = False


class Told(msgspec.Struct, frozen=True):
    """A message as it is told; whoever comes within `told_for_ms` from now on is told it, too."""

    message_id: str
    text: str
    at_ms: int
    told_for_ms: int


class Lately(msgspec.Struct, frozen=True):
    """What was told lately, the oldest first; the last of all had this number."""

    message_no: int
    told: tuple[Told, ...]


async def send(
    gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, message_id: str, text: str, api_key_id: str
) -> Message | IdempotencyKeyReused:
    """Send a message, once for its id.

    The row comes first. A process that dies before Redis has heard leaves one that the repeat of its request sends;
    a copy in Redis that is lost or of another epoch is written anew, and has it then. Raises StoreUnavailable.
    """
    row = await SQL.add_message.fetchrow(postgres, message_id, sale.sale_id, text, api_key_id)
    repeated = row is None
    if row is None:
        row = await SQL.find_message.fetchrow(postgres, message_id)
        if row is None or row["text"] != text:
            return IdempotencyKeyReused()
    message = Message(**row, repeated=repeated)
    await sales.ask(gate, sale, SEND, **_arguments(message))
    return message


async def put_back(gate: Gate, postgres: asyncpg.Pool, sale: Sale) -> None:
    """Write the messages of the last hour to a sale that is written anew.

    After it was cleared: whatever was sent before that has its row by now.
    """
    rows = await SQL.list_told.fetch(postgres, sale.sale_id, TOLD_S, KEPT_MAX)
    for row in reversed(rows):
        await SEND(gate, sale.keys, epoch=sale.epoch, **_arguments(Message(**row)))


async def list_newest(
    postgres: asyncpg.Pool, sale_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Message]:
    """The messages of a sale, newest first, from after the cursor (created_at, message_id)."""
    return [Message(**row) for row in await SQL.list_messages.fetch(postgres, sale_id, *before, limit)]


async def list_lately(gate: Gate, sale: Sale) -> Lately | Unavailable:
    """What was told lately to everybody who waits for a sale. Raises StoreUnavailable."""
    read = await sales.ask(gate, sale, LIST, told_ms=TOLD_S * 1000)
    if not isinstance(read, Messages):
        return read
    return Lately(read.message_no, tuple([_told(row, read.now_ms) for row in read.rows]))


def _told(row: str, now_ms: int) -> Told:
    at_ms, message_id, text = row.split(" ", 2)
    return Told(message_id, text, int(at_ms), int(at_ms) + TOLD_S * 1000 - now_ms)


def _arguments(message: Message) -> dict[str, str | int]:
    """The arguments of lua/messages/send.lua after the epoch."""
    return {
        "message_id": message.message_id,
        # With a fraction, so that two of one millisecond stay in the order in which they were sent.
        "at_ms": f"{message.created_at.timestamp() * 1000:.3f}",
        "most": KEPT_MAX,
        "text": message.text,
    }
