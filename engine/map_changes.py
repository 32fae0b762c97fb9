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
    message_no: int
    rows: tuple[str, ...]


class ChangesUnknown(Reply, frozen=True):
    """What changed since then is not known any more: the map has to be read whole. Its newest version is this."""

    version: int


CHANGES = Script("seats/changes", SaleKeys, Changes | ChangesUnknown | Unavailable)


class MapChanges(msgspec.Struct, frozen=True):
    """The seats that changed after a version and up to this one, each FREE, HELD, SOLD or BLOCKED now.

    `versions` has the version of each one's last change, the oldest first. What one reply said of a seat that changed
    again before the next is said anew by that one: at `version` the map is exactly this. `message_no` is that of the
    last message to everybody who waits for the sale.
    """

    version: int
    statuses: dict[str, str]
    versions: dict[str, int] = msgspec.field(default_factory=dict)
    message_no: int = 0


async def read_changes(
    gate: Gate, sale: Sale, since: int, *, most: int = ROWS_MAX, seats_max: int | None = None
) -> MapChanges | ChangesUnknown | Unavailable:
    """Read all that changed on the map of a sale since a version, `most` seats a call.

    Where more than `seats_max` changed, that is unknown too: they are not worth telling one by one.
    """
    statuses: dict[str, str] = {}
    versions: dict[str, int] = {}
    while True:
        read = await sales.ask(gate, sale, CHANGES, since=since, most=most)
        if not isinstance(read, Changes):
            return read
        if seats_max is not None and len(statuses) + len(read.rows) + read.left > seats_max:
            return ChangesUnknown(read.version)
        for row in read.rows:
            seat_no, status, version = row.rsplit(" ", 2)
            versions.pop(seat_no, None)
            statuses[seat_no], versions[seat_no] = status, int(version)
        since = read.version
        if not read.left:
            return MapChanges(since, statuses, versions, read.message_no)
