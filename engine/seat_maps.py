"""The seat maps that a process keeps, so that a crowd looks at a hall without asking Redis.

One reader a sale, a few times a second: it reads the map once whole and then only what has changed. Whoever has an
older version is told what has changed since.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from redis.exceptions import RedisError

from engine import map_changes, sales
from engine.catalogue import Hidden
from engine.map_changes import ChangesUnknown, MapChanges
from engine.sales import Sale
from engine.stores.connections import StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, SaleRebuilding, Unavailable
from engine.stores.scripts import Gate, Script

V = TypeVar("V")

# By the first letter of what stands in the store: HELD, PAYING, SOLD, BLOCKED.
_STATUSES: Final = {b"H": "HELD", b"P": "HELD", b"S": "SOLD", b"B": "BLOCKED"}

# A rebuild goes on at epoch times this: versions of two epochs never meet.
VERSIONS_PER_EPOCH: Final = 10**9

# Seats whose changes are told one by one, which takes 40 bytes each: so many weigh half as much again as the whole map
# of a hall of 20,000, zipped. Where more changed, the map is the shorter answer.
CHANGES_MAX: Final = 5_000

# What changed is read again after this time at the soonest. Reading whole maps takes a twentieth of a process's time at
# most: a hall of 50,000 seats is several megabytes, and every process reads it from the store that sells them.
FRESH_S: Final = 0.25
FRESH_MAX_S: Final = 2.0
READING_SHARE: Final = 0.05


class MapVersion(Reply, frozen=True):
    """The seat map has this version, and so few seats changed after `since` that each of them can be told."""

    version: int
    since: int


MAP = Script("seats/map", SaleKeys, MapVersion | Unavailable)


class Changes(msgspec.Struct, frozen=True):
    """What changed on the map up to `version`: the seats that did, FREE ones too."""

    version: int
    statuses: dict[str, str]


class SeatMap(msgspec.Struct, frozen=True):
    """The status of every seat that is not FREE, as a buyer may see it: HELD (also PAYING), SOLD, BLOCKED.

    `changed` are the seats that changed after version `since`, each with the version in which it last did, the oldest
    first. `message_no` is that of the last message to everybody who waits for the sale.
    """

    version: int
    statuses: dict[str, str]
    since: int = 0
    changed: dict[str, int] = msgspec.field(default_factory=dict)
    message_no: int = 0

    def changes(self, since: int) -> Changes | None:
        """Say what changed after this version; None when only the whole map can tell."""
        if epoch_of(since) != epoch_of(self.version) or since < self.since:
            return None
        told: dict[str, str] = {}
        for seat_no in reversed(self.changed):
            if self.changed[seat_no] <= since:
                break
            told[seat_no] = self.statuses.get(seat_no, "FREE")
        # Another process may have told of a newer version than this one has seen.
        return Changes(max(since, self.version), told)

    def advance(self, changes: MapChanges) -> "SeatMap":
        """This map after these changes; whoever holds this one keeps it as it is."""
        statuses, changed, since = self.statuses.copy(), self.changed.copy(), self.since
        for seat_no, version in changes.versions.items():
            if changes.statuses[seat_no] == "FREE":
                statuses.pop(seat_no, None)
            else:
                statuses[seat_no] = changes.statuses[seat_no]
            changed.pop(seat_no, None)
            changed[seat_no] = version
        while len(changed) > CHANGES_MAX:
            since = changed.pop(next(iter(changed)))
        return SeatMap(changes.version, statuses, since, changed, changes.message_no)


async def read(gate: Gate, sale: Sale) -> SeatMap | Unavailable:
    """Read the map of a sale whole. Raises StoreUnavailable."""
    began = await sales.ask(gate, sale, MAP, most=CHANGES_MAX)
    if not isinstance(began, MapVersion):
        return began
    try:
        standing: dict[bytes, bytes] = await gate.redis.hgetall(sale.keys.seats)
    except RedisError as fault:
        raise StoreUnavailable(f"the map of sale {sale.sale_id} cannot be read: {fault}") from fault
    # The store went on while it was read: what changed since is read again, so that the map is of one version.
    changes = await map_changes.read_changes(gate, sale, began.since)
    match changes:
        case MapChanges():
            statuses = {seat_no.decode(): _STATUSES[value[:1]] for seat_no, value in standing.items()}
            return SeatMap(began.version, statuses, began.since).advance(changes)
        case ChangesUnknown():
            return SaleRebuilding()  # it was, in between
    return changes


class _Watched:
    """One sale's newest map in this process."""

    def __init__(self) -> None:
        self.map: SeatMap | None = None
        self.hidden: Hidden | None = None
        self.fresh_until = 0.0
        # Until then it is not read whole again.
        self.spared_until = 0.0
        self.reading: asyncio.Task[SeatMap | Unavailable] | None = None


class Maps:
    """The seat maps of one process: whoever asks, one reader a sale, and the store is asked a few times a second.

    Args:
        gate: the way into Redis.
        find_hidden: finds what a sale's map does not show as it is; without it everything is shown.
        most: sales whose map is kept; the one that was not asked for longest makes room.
    """

    def __init__(
        self, gate: Gate, find_hidden: Callable[[str], Awaitable[Hidden]] | None = None, *, most: int = 64
    ) -> None:
        self._gate = gate
        self._find_hidden = find_hidden
        self._most = most
        self._watched: dict[str, _Watched] = {}

    async def read(self, sale: Sale) -> SeatMap | Unavailable:
        """Answer the map of a sale, at most two seconds old. Raises StoreUnavailable."""
        watched = self._watched[sale.sale_id] = self._watched.pop(sale.sale_id, _Watched())
        if len(self._watched) > self._most:
            del self._watched[next(iter(self._watched))]
        if watched.map is not None and asyncio.get_running_loop().time() < watched.fresh_until:
            return watched.map
        if watched.reading is None or watched.reading.done():
            watched.reading = asyncio.create_task(self._refresh(sale, watched))
        # A buyer who goes away must not stop the reading that others wait for.
        return await asyncio.shield(watched.reading)

    async def read_since(self, sale: Sale, since: int) -> Changes | SeatMap | Unavailable:
        """Answer what changed after a version, or the whole map when that is too old or of another epoch."""
        newest = await self.read(sale)
        if not isinstance(newest, SeatMap):
            return newest
        return newest.changes(since) or newest

    def changes(self, sale: Sale, since: int) -> Changes | None:
        """Say what changed after a version, as far as the map was read; None when only the whole map can tell."""
        watched = self._watched.get(sale.sale_id)
        return watched.map.changes(since) if watched is not None and watched.map is not None else None

    def message_no(self, sale: Sale) -> int:
        """The number of the last message to everybody, as far as the map was read; 0 when nothing was."""
        watched = self._watched.get(sale.sale_id)
        return watched.map.message_no if watched is not None and watched.map is not None else 0

    async def close(self) -> None:
        """Wait for what is still being read, though nobody asks for it any more."""
        reading = [watched.reading for watched in self._watched.values() if watched.reading is not None]
        await asyncio.gather(*reading, return_exceptions=True)

    async def _refresh(self, sale: Sale, watched: _Watched) -> SeatMap | Unavailable:
        clock = asyncio.get_running_loop().time
        if watched.hidden is None and self._find_hidden is not None:
            watched.hidden = await self._find_hidden(sale.sale_id)
        if watched.map is None:
            newest = await self._read_whole(sale, watched)
        else:
            newest = await self._read_changes(sale, watched, watched.map)
        if isinstance(newest, SeatMap):
            watched.map, watched.fresh_until = newest, clock() + FRESH_S
        return newest

    async def _read_changes(self, sale: Sale, watched: _Watched, known: SeatMap) -> SeatMap | Unavailable:
        changes = await map_changes.read_changes(self._gate, sale, known.version, seats_max=CHANGES_MAX)
        match changes:
            case MapChanges():
                if (changes.version, changes.message_no) == (known.version, known.message_no):
                    return known
                shown = _without(changes.versions, watched.hidden)
                return known.advance(msgspec.structs.replace(changes, versions=shown))
            case ChangesUnknown():
                is_spared = asyncio.get_running_loop().time() < watched.spared_until
                return known if is_spared else await self._read_whole(sale, watched)
        return changes

    async def _read_whole(self, sale: Sale, watched: _Watched) -> SeatMap | Unavailable:
        clock = asyncio.get_running_loop().time
        began = clock()
        newest = await read(self._gate, sale)
        watched.spared_until = clock() + min((clock() - began) / READING_SHARE, FRESH_MAX_S)
        if isinstance(newest, SeatMap) and watched.hidden is not None:
            return _as_public(newest, watched.hidden)
        return newest


def _as_public(current: SeatMap, hidden: Hidden) -> SeatMap:
    """The map as anybody may see it: without places, and with what is kept for somebody as BLOCKED, taken or not."""
    shown = _without(current.statuses, hidden) | dict.fromkeys(hidden.kept, "BLOCKED")
    return msgspec.structs.replace(current, statuses=shown, changed=_without(current.changed, hidden))


def _without(told: dict[str, V], hidden: Hidden | None) -> dict[str, V]:
    """What is told of seats, without those that the map does not show as they are."""
    if hidden is None:
        return told
    return {
        seat_no: each for seat_no, each in told.items() if seat_no not in hidden.places and seat_no not in hidden.kept
    }


def epoch_of(version: int) -> int:
    """The epoch of a sale in which its map had this version."""
    return version // VERSIONS_PER_EPOCH
