"""The seat maps that a process keeps, so that a crowd looks at a hall without asking Redis.

One reader a sale, a few times a second; whoever has an older version is told what has changed since.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from redis.exceptions import RedisError

from engine import sales
from engine.catalogue import Hidden
from engine.sales import Sale
from engine.stores.connections import StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script

# By the first letter of what stands in the store: HELD, PAYING, SOLD, BLOCKED.
_STATUSES: Final = {b"H": "HELD", b"P": "HELD", b"S": "SOLD", b"B": "BLOCKED"}

# A rebuild goes on at epoch times this: versions of two epochs never meet.
VERSIONS_PER_EPOCH: Final = 10**9

# A map is read again after this time at the soonest, and reading takes a twentieth of a process's time at most: a
# hall of 50,000 seats is several megabytes, and every process reads it from the store that sells them.
FRESH_S: Final = 0.25
FRESH_MAX_S: Final = 2.0
READING_SHARE: Final = 0.05


class MapVersion(Reply, frozen=True):
    """The seat map has this version."""

    version: int


MAP = Script("seats/map", SaleKeys, MapVersion | Unavailable)


class SeatMap(msgspec.Struct, frozen=True):
    """The status of every seat that is not FREE, as a buyer may see it: HELD (also PAYING), SOLD, BLOCKED.

    It has every change up to `version` and none after `read_until`: the store went on while it was read.
    """

    version: int
    read_until: int
    statuses: dict[str, str]


async def read(gate: Gate, sale: Sale, known: SeatMap | None = None) -> SeatMap | Unavailable:
    """Read the map of a sale; while `known` is still its newest version, that is the answer and nothing is read.

    Raises StoreUnavailable.
    """
    before = await sales.ask(gate, sale, MAP)
    if not isinstance(before, MapVersion):
        return before
    if known is not None and known.version == before.version and known.read_until == before.version:
        return known
    try:
        standing: dict[bytes, bytes] = await gate.redis.hgetall(sale.keys.seats)
    except RedisError as fault:
        raise StoreUnavailable(f"the map of sale {sale.sale_id} cannot be read: {fault}") from fault
    after = await sales.ask(gate, sale, MAP)
    if not isinstance(after, MapVersion):
        return after
    statuses = {seat_no.decode(): _STATUSES[value[:1]] for seat_no, value in standing.items()}
    return SeatMap(before.version, after.version, statuses)


class Changes(msgspec.Struct, frozen=True):
    """What changed on the map up to `version`: the seats that did, FREE ones too."""

    version: int
    statuses: dict[str, str]


class _Watched:
    """One sale's newest map in this process, and the changes that led to it."""

    def __init__(self) -> None:
        self.map: SeatMap | None = None
        self.hidden: Hidden | None = None
        self.fresh_until = 0.0
        self.reading: asyncio.Task[SeatMap | Unavailable] | None = None
        # (an older map's `read_until`, what changed from it to the next), oldest first.
        self.steps: deque[tuple[int, dict[str, str]]] = deque()

    def advance(self, newer: SeatMap) -> None:
        """Take a newer map, and remember how it differs while that is shorter than the map, or short."""
        older, self.map = self.map, newer
        if older is None or epoch_of(older.version) != epoch_of(newer.version):
            self.steps.clear()
        elif older is not newer:
            before, after = older.statuses, newer.statuses
            changed = {seat_no: status for seat_no, status in after.items() if before.get(seat_no) != status}
            changed |= dict.fromkeys(before.keys() - after.keys(), "FREE")
            self.steps.append((older.read_until, changed))
            while sum(len(step) for _, step in self.steps) > max(len(after), 256):
                self.steps.popleft()

    def changes(self, since: int) -> Changes | None:
        """Merge what changed after this version; None when that is no longer known."""
        if self.map is None or epoch_of(since) != epoch_of(self.map.version):
            return None
        if since >= self.map.version:
            return Changes(since, {})
        # The newest older map that holds nothing beyond `since`: the client may lack all that followed it.
        for at in range(len(self.steps) - 1, -1, -1):
            if self.steps[at][0] <= since:
                merged: dict[str, str] = {}
                for _, step in list(self.steps)[at:]:
                    merged |= step
                return Changes(self.map.version, merged)
        return None


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
        return self.changes(sale, since) or newest

    def changes(self, sale: Sale, since: int) -> Changes | None:
        """Say what changed after a version, as far as the map was read; None when only the whole map can tell."""
        watched = self._watched.get(sale.sale_id)
        return watched.changes(since) if watched is not None else None

    async def close(self) -> None:
        """Wait for what is still being read, though nobody asks for it any more."""
        reading = [watched.reading for watched in self._watched.values() if watched.reading is not None]
        await asyncio.gather(*reading, return_exceptions=True)

    async def _refresh(self, sale: Sale, watched: _Watched) -> SeatMap | Unavailable:
        clock = asyncio.get_running_loop().time
        began = clock()
        if watched.hidden is None and self._find_hidden is not None:
            watched.hidden = await self._find_hidden(sale.sale_id)
        newest = await read(self._gate, sale, watched.map)
        if isinstance(newest, SeatMap) and newest is not watched.map and watched.hidden is not None:
            newest = _as_public(newest, watched.hidden)
        if isinstance(newest, SeatMap):
            watched.advance(newest)
            pause_s = max(FRESH_S, (clock() - began) / READING_SHARE)
            watched.fresh_until = clock() + min(pause_s, FRESH_MAX_S)
        return newest


def _as_public(current: SeatMap, hidden: Hidden) -> SeatMap:
    """The map as anybody may see it: without places, and with what is kept for somebody as BLOCKED, taken or not."""
    if not hidden.places and not hidden.kept:
        return current
    shown = {
        seat_no: status
        for seat_no, status in current.statuses.items()
        if seat_no not in hidden.places and seat_no not in hidden.kept
    }
    return msgspec.structs.replace(current, statuses=shown | dict.fromkeys(hidden.kept, "BLOCKED"))


def epoch_of(version: int) -> int:
    """The epoch of a sale in which its map had this version."""
    return version // VERSIONS_PER_EPOCH
