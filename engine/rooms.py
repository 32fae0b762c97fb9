"""The rooms that a process keeps, so that people are polled without asking Redis.

One snapshot per open room is refreshed, a few times a second while anybody asks, and everybody behind `serving` is
answered from it: nothing is sent to the store. At or below `serving` a poll runs `enter`, in batches, and its answer is
kept until its deadline or until the snapshot names its number ended. So store commands grow with time, processes and
admissions, not with polls.
"""

import asyncio
import bisect
import contextlib
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import ClassVar, Final

import asyncpg
import msgspec

from engine import waiting_room
from engine.refusals import Busy, NotFound
from engine.sales import FIND_WITHIN_S, Sale, SaleBook
from engine.stores.coalesce import Coalescer
from engine.stores.connections import StoreUnavailable
from engine.stores.replies import Unavailable
from engine.stores.scripts import Gate
from engine.waiting_room import (
    GRACE_MS,
    POLL_ACTIVE_MS,
    POLL_MAX_MS,
    AdmittedWithoutNumber,
    Joined,
    PutBack,
    Snapshot,
    Token,
)

REFRESH_EVERY_S: Final = 0.1
# A room of which nobody asked for so long is read this often: a shop has many, and most of them are quiet.
QUIET_AFTER_S: Final = 2.0
QUIET_EVERY_S: Final = 1.0

# What a client is told to wait before it asks again: at least, and while nobody knows how long the line takes.
POLL_MIN_MS: Final = 250
POLL_UNKNOWN_MS: Final = 5_000
# Signs of life are written only for people this close to their turn, and for at most so many of a room.
REACH_S: Final = 120
REACH_MAX: Final = 5_000
SIGNS_AT_ONCE: Final = 200

# Departures and ended numbers that one snapshot names.
NAMED_MAX: Final = 1_000
# A process remembers answers of at most so many people; beyond that it asks again.
KEPT_MAX: Final = 100_000
ENDED_KEPT_MS: Final = 60_000


class Eta(msgspec.Struct, frozen=True):
    """How long somebody will wait, in seconds; nothing is known while nobody is being admitted."""

    known: bool
    p50_s: int | None = None
    p90_s: int | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where somebody stands, as a poll is answered.

    `epoch` is the one that the token shall be signed for; `queue_no` is 0 where the room gave out no number.
    """

    epoch: int
    queue_no: int
    status: str
    ahead: int
    eta: Eta
    expires_at_ms: int
    poll_after_ms: int
    now_ms: int

    @property
    def position(self) -> int:
        """1 for whoever is next; 0 for those who wait no more."""
        return self.ahead + 1 if self.status == "WAITING" else 0


class _Kept(msgspec.Struct):
    """An answer of `enter` and the moment, by the store's clock, until which it stands."""

    token: Token
    until_ms: int


class Room:
    """One open room: its last snapshot, who left the line, how fast it moved, and the answers that still stand."""

    RATES_MAX: ClassVar[int] = 300

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.snapshot: Snapshot | None = None
        self._read_at = 0.0
        self._asked_at = clock()
        self._gone: list[int] = []
        self._gone_seq = 0
        # People admitted a second, one sample a second: the slow ones among them say what p90 is.
        self._rates: deque[float] = deque(maxlen=self.RATES_MAX)
        self._rated_at = 0.0
        # The usual and the slow one among them: a crowd asks for them between two samples.
        self._pace: tuple[float, float] | None = None
        self.kept: dict[tuple[str, int], _Kept] = {}
        self.signs: dict[str, tuple[int, int]] = {}

    @property
    def now_ms(self) -> int:
        """The store's clock, as far as the last snapshot tells."""
        if self.snapshot is None:
            return 0
        return self.snapshot.now_ms + round((self._clock() - self._read_at) * 1000)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has asked for a while."""
        return self._clock() - self._asked_at > QUIET_AFTER_S

    @property
    def is_due(self) -> bool:
        """Whether it is time to read it again."""
        return not self.is_quiet or self._clock() - self._read_at >= QUIET_EVERY_S

    def wake(self) -> None:
        """Somebody asks."""
        self._asked_at = self._clock()

    def asks(self) -> dict[str, int]:
        """What this room's next snapshot is asked with."""
        # A second of overlap: what ended in the very millisecond of the last snapshot is named again.
        since = self.snapshot.now_ms - 1000 if self.snapshot else 0
        return {"gone_seq": self._gone_seq, "ended_since_ms": since, "most": NAMED_MAX}

    def take(self, snapshot: Snapshot) -> None:
        """Take over a newer snapshot."""
        self.snapshot, self._read_at = snapshot, self._clock()
        for queue_no in snapshot.queue_nos[: snapshot.gone_count]:
            bisect.insort(self._gone, int(queue_no))
        self._gone_seq = snapshot.gone_seq
        del self._gone[: bisect.bisect_right(self._gone, snapshot.serving)]
        self._forget(snapshot)
        if self._clock() - self._rated_at >= 1.0 and snapshot.room in {"open", "draining"}:
            self._rated_at = self._clock()
            self._rates.append(snapshot.admitted / max(1, snapshot.admitted_in_s))
            rates = sorted(rate for rate in self._rates if rate > 0)
            self._pace = (rates[len(rates) // 2], rates[len(rates) // 10]) if rates else None

    def _forget(self, snapshot: Snapshot) -> None:
        """Drop answers whose number has ended, and those past their time."""
        ended = snapshot.queue_nos[snapshot.gone_count :]
        if len(ended) >= NAMED_MAX or len(self.kept) > KEPT_MAX:
            self.kept.clear()  # more may have ended than were named
        if ended and self.kept:
            numbers = set(map(int, ended))
            now_ms = snapshot.now_ms
            # An answer that the number has ended is what the snapshot says, too.
            self.kept = {
                who: answer
                for who, answer in self.kept.items()
                if answer.until_ms > now_ms
                and (who[1] not in numbers or answer.token.status not in {"WAITING", "ACTIVE"})
            }

    def has_left(self, queue_no: int) -> bool:
        """Whether this number, which is behind `serving`, is known to have left the line."""
        at = bisect.bisect_left(self._gone, queue_no)
        return at < len(self._gone) and self._gone[at] == queue_no

    def ahead_of(self, queue_no: int) -> int:
        """How many people stand before this number, which is behind `serving`.

        That is: the numbers from `serving` on without those that left, and whoever is called before all of them.
        """
        snapshot = self.snapshot
        if snapshot is None:
            return 0
        gone_before = bisect.bisect_left(self._gone, queue_no)
        ahead = queue_no - snapshot.serving - 1 - gone_before
        joined_since = max(0, queue_no - snapshot.queue_no)
        if ahead >= snapshot.behind + joined_since:
            # The store was lost, and the counter went on from the ceiling: nobody has the numbers in between. Then the
            # people after this number are counted instead. (Numbers that were not put back yet may still come back.)
            after = max(0, snapshot.queue_no - queue_no - (len(self._gone) - gone_before))
            most = max(0, snapshot.behind + joined_since - 1)
            ahead = most - after if after <= most else most
        return ahead + snapshot.returned + snapshot.waiting - snapshot.behind

    def eta_of(self, ahead: int) -> Eta:
        """How long this many people take, from the rates of the last minutes."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.room not in {"open", "draining"}:
            return Eta(known=False)
        free = min(snapshot.active_max - snapshot.active, snapshot.admitted_per_minute_max - snapshot.admitted)
        if ahead < free:
            return Eta(known=True, p50_s=1, p90_s=2)
        if self._pace is None or snapshot.admitted == 0:
            return Eta(known=False)
        usual, slow = self._pace
        return Eta(known=True, p50_s=round((ahead + 1) / usual), p90_s=round((ahead + 1) / min(slow, usual * 0.8)) + 1)

    def poll_after_ms(self, eta: Eta) -> int:
        """When to ask again: sooner near the front, spread so that a crowd does not ask at once.

        A rate is believed for no longer than it was seen: the first second of admission may have called a few only, and
        whoever is told by it to come back in half a minute sleeps in a slot that is called a moment later.
        """
        usual = POLL_UNKNOWN_MS
        if eta.p50_s is not None and self.snapshot is not None:
            usual = min(eta.p50_s * 400, max(POLL_UNKNOWN_MS, self.snapshot.admitted_in_s * 1000))
        jittered = usual * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, guards nothing
        return int(min(POLL_MAX_MS, max(POLL_MIN_MS, jittered)))

    def reaches(self, queue_no: int) -> bool:
        """Whether somebody's turn may come within `REACH_S`, so that their signs of life matter.

        The cap decides, not the rate of the moment: with a rate that falls, people would drop out of reach again, go on
        polling unnoted, and count as absent when it rises.
        """
        snapshot = self.snapshot
        if snapshot is None:
            return False
        return queue_no - snapshot.serving <= min(REACH_MAX, snapshot.admitted_per_minute_max * REACH_S // 60)


class Rooms:
    """The open rooms of one process.

    Args:
        gate: the way into Redis.
        book: the sales that this process knows.
        postgres: asked how a number ended, before one of an older epoch is put back.
    """

    def __init__(self, gate: Gate, book: SaleBook, postgres: asyncpg.Pool) -> None:
        self._gate = gate
        self._book = book
        self._rooms: dict[str, Room] = {}
        self._ends = Coalescer(partial(waiting_room.find_ends, postgres), most=256)

    async def refresh(self) -> None:
        """Read a snapshot of each open room that is due and write the signs of life; asked for a few times a second.

        Raises StoreUnavailable, when what is known simply grows older.
        """
        wanted = {sale.sale_id: sale for sale in self._book.sales() if waiting_room.is_on(sale)}
        for sale_id in self._rooms.keys() - wanted.keys():
            del self._rooms[sale_id]
        due = [sale for sale_id, sale in wanted.items() if sale_id not in self._rooms or self._rooms[sale_id].is_due]
        await asyncio.gather(*[self._refresh(sale) for sale in due])

    async def find(self, sale: Sale) -> Room | Unavailable:
        """The room of a sale, read now if this process has not seen it yet, or nobody has asked for a while."""
        room = self._rooms.get(sale.sale_id)
        if room is None:
            return await self._refresh(sale)
        is_quiet = room.is_quiet
        room.wake()
        if is_quiet:
            # One reads it; whoever asks meanwhile, or while the store is away, is answered from what is known.
            with contextlib.suppress(StoreUnavailable):
                found = await self._refresh(sale)
                return found if isinstance(found, Room) else room
        return room

    async def _refresh(self, sale: Sale) -> Room | Unavailable:
        room = self._rooms.get(sale.sale_id)
        if room is None:
            room = Room(asyncio.get_running_loop().time)
        while True:
            found = await waiting_room.snapshot(self._gate, sale, **room.asks())
            if not isinstance(found, Snapshot):
                return found
            if room.snapshot is not None and room.snapshot.epoch != found.epoch:
                # Another copy of the sale: departures and ended numbers are counted anew, so all are asked for again.
                room = Room(asyncio.get_running_loop().time)
                continue
            room.take(found)
            if not found.more:
                break
        self._rooms[sale.sale_id] = room
        await self._write_signs(sale, room)
        return room

    async def _write_signs(self, sale: Sale, room: Room) -> None:
        while room.signs:
            people = dict(islice(room.signs.items(), SIGNS_AT_ONCE))
            signs = [(owner, *sign) for owner, sign in people.items()]
            # Only what was written is dropped: a person whose sign is lost would be passed over as absent.
            await waiting_room.note_signs(self._gate, sale, signs=signs)
            for owner, sign in people.items():
                if room.signs.get(owner) is sign:
                    del room.signs[owner]

    async def poll(
        self, sale: Sale, *, owner: str, queue_no: int, epoch: int, visitor: str = ""
    ) -> Place | NotFound | Busy | Unavailable:
        """Answer a personal poll: from memory for those who wait, by `enter` for those whose turn it is.

        `epoch` is that of the token presented: one of an older epoch is put back in line first.
        """
        room = await self.find(sale)
        if not isinstance(room, Room):
            return room
        snapshot = room.snapshot
        if snapshot is None or snapshot.room in {"off", "bypass"}:
            return self.without_number(room, sale, queue_no=queue_no, epoch=epoch)
        if epoch != snapshot.epoch:
            async with asyncio.timeout(FIND_WITHIN_S):
                ended = await self._ends.submit((sale.sale_id, queue_no, owner))
            if ended is not None:
                return ended if isinstance(ended, NotFound) else self._place(room, ended, POLL_MAX_MS)
            back = await waiting_room.put_back(self._gate, sale, owner=owner, queue_no=queue_no, visitor=visitor)
            if isinstance(back, AdmittedWithoutNumber):
                return self.without_number(room, sale, queue_no=queue_no, epoch=epoch)
            if not isinstance(back, PutBack):
                return back
            queue_no = back.queue_no
            if back.status not in {"WAITING", "ACTIVE"}:
                return self._place(room, Token(back.status, queue_no, 0, 0), POLL_MAX_MS)
        if queue_no > snapshot.serving and not room.has_left(queue_no):
            return self._from_memory(room, owner, queue_no)
        place = await self._by_entering(room, sale, owner, queue_no)
        if isinstance(place, NotFound) and epoch == snapshot.epoch:
            newest = await self._book.find(sale.sale_id)
            if newest is not None and newest.epoch != epoch:
                # The sale was written anew since the snapshot, which nobody here knew until now: it is put back first.
                await self._refresh(newest)
                return await self.poll(newest, owner=owner, queue_no=queue_no, epoch=epoch, visitor=visitor)
        return place

    def _from_memory(self, room: Room, owner: str, queue_no: int) -> Place:
        ahead = room.ahead_of(queue_no)
        place = self._place(room, Token("WAITING", queue_no, ahead, 0), None)
        if room.reaches(queue_no):
            room.signs[owner] = (queue_no, place.poll_after_ms + GRACE_MS)
        return place

    async def _by_entering(self, room: Room, sale: Sale, owner: str, queue_no: int) -> Place | NotFound | Unavailable:
        kept = room.kept.get((owner, queue_no))
        if kept is not None and kept.until_ms > room.now_ms:
            return self._place(room, kept.token, POLL_ACTIVE_MS if kept.token.status == "ACTIVE" else None)
        after_ms = room.poll_after_ms(Eta(known=False))
        token = await waiting_room.enter(
            self._gate, sale, owner=owner, queue_no=queue_no, overdue_in_ms=after_ms + GRACE_MS
        )
        if isinstance(token, AdmittedWithoutNumber):
            return self.without_number(room, sale, queue_no=queue_no)
        if not isinstance(token, Token):
            return token
        if token.status == "ACTIVE":
            until_ms = token.expires_at_ms
        else:
            until_ms = room.now_ms + (after_ms // 2 if token.status == "WAITING" else ENDED_KEPT_MS)
        room.kept[owner, queue_no] = _Kept(token, until_ms)
        return self._place(room, token, POLL_ACTIVE_MS if token.status == "ACTIVE" else after_ms)

    def _place(self, room: Room, token: Token, after_ms: int | None) -> Place:
        eta = room.eta_of(token.ahead) if token.status == "WAITING" else Eta(known=False)
        return Place(
            epoch=room.snapshot.epoch if room.snapshot else 0,
            queue_no=token.queue_no,
            status=token.status,
            ahead=token.ahead,
            eta=eta,
            expires_at_ms=token.expires_at_ms,
            poll_after_ms=room.poll_after_ms(eta) if after_ms is None else after_ms,
            now_ms=room.now_ms,
        )

    def joined(self, room: Room, joined: Joined) -> Place:
        """The place of somebody who just joined, from the same memory that answers the polls."""
        ahead = room.ahead_of(joined.queue_no) if joined.status == "WAITING" else 0
        return self._place(room, Token(joined.status, joined.queue_no, ahead, 0), None)

    def without_number(self, room: Room, sale: Sale, *, queue_no: int = 0, epoch: int | None = None) -> Place:
        """Everybody is let in: there is no line; who has a number keeps it, in case there is one again."""
        return Place(
            epoch=sale.epoch if epoch is None else epoch,
            queue_no=queue_no,
            status="ACTIVE",
            ahead=0,
            eta=Eta(known=False),
            expires_at_ms=0,
            poll_after_ms=POLL_ACTIVE_MS,
            now_ms=room.now_ms,
        )
