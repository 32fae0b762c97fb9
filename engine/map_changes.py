"""What changed on a seat map, read from the store: the seats, not the map.

Places in areas and seats of blocks are no part of it: the map shows the first as counts, the others as BLOCKED.
"""

from typing import Final

import msgspec

from engine import sales
from engine.sales import Sale
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script

# Seats in one reply: half a millisecond of the store's time.
ROWS_MAX: Final = 500


class Changes(Reply, frozen=True):
    """These seats changed up to `version`; `left` others changed after it."""

    version: int
    left: int
    rows: tuple[str, ...]


class ChangesUnknown(Reply, frozen=True):
    """What changed since then is not known any more: the map has to be read whole. Its newest version is this."""

    version: int


CHANGES = Script("seats/changes", SaleKeys, Changes | ChangesUnknown | Unavailable)


class MapChanges(msgspec.Struct, frozen=True):
    """The seats that changed after a version and up to this one, each FREE, HELD, SOLD or BLOCKED now.

    A seat that changed again while they were read has its newest status, which a later answer may repeat.
    """

    version: int
    statuses: dict[str, str]


async def read_changes(
    gate: Gate, sale: Sale, since: int, *, most: int = ROWS_MAX
) -> MapChanges | ChangesUnknown | Unavailable:
    """Read all that changed on the map of a sale since a version, `most` seats a call."""
    statuses: dict[str, str] = {}
    while True:
        read = await sales.ask(gate, sale, CHANGES, since=since, most=most)
        if not isinstance(read, Changes):
            return read
        statuses |= {seat_no: status for seat_no, _, status in (row.rpartition(" ") for row in read.rows)}
        since = read.version
        if not read.left:
            return MapChanges(since, statuses)
