"""What the listeners of one sale are told in this process: each event is written once, as bytes, for all of them.

Nobody makes us keep more for them than a place among the events of the last moments.
"""

import asyncio
from collections import deque
from itertools import islice

import msgspec

from api.answers import Document, encode
from api.clock import rfc3339
from api.messages import MessageDocument
from api.waiting_room import QueueDocument
from engine.messages import Lately, Told
from engine.rooms import Room
from engine.seat_maps import epoch_of

# Listeners who are woken before other requests have their turn.
WOKEN_AT_ONCE = 100

# What was told last is kept for those who are a little behind.
FRAMES_KEPT_MAX = 256
BYTES_KEPT_MAX = 1024 * 1024


class Reset(Document, frozen=True):
    """The map must be fetched again; it had this version."""

    map_version: int


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One event as bytes; `version` is that of the map it leads to, 0 where it is about something else."""

    content: bytes
    version: int = 0


def write(event: bytes, document: Document, version: int = 0) -> Frame:
    """Write an event; one about the map has an id, by which a client goes on where it was."""
    named = b"id: %d-%d\n" % (epoch_of(version), version) if version else b""
    return Frame(b"%bevent: %b\ndata: %b\n\n" % (named, event, encode(document)), version)


class Listener:
    """Somebody who listens: how far they were told, and whether they wait to be."""

    __slots__ = ("_task", "_woken", "at", "ended", "given_up", "sends_since", "version")

    def __init__(self, at: int, version: int) -> None:
        self.at = at
        # What they know of the map: another process may have told them more than this one has seen.
        self.version = version
        self.ended = self.given_up = False
        self.sends_since: float | None = None
        self._task = asyncio.current_task()
        self._woken: asyncio.Future[None] | None = None

    async def sleep(self) -> None:
        """Wait until there is something to tell, or an end."""
        self._woken = asyncio.get_running_loop().create_future()
        await self._woken

    def wake(self) -> None:
        """There is something to tell."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def end(self) -> None:
        """Tell nothing more."""
        self.ended = True
        self.wake()

    def give_up(self) -> None:
        """Do not even wait until what is being sent is taken."""
        self.given_up = True
        if self._task is not None:
            self._task.cancel()


class Notices:
    """Which messages to everybody were told here, and the last of them for who comes later."""

    def __init__(self) -> None:
        self.message_no = 0
        self._told: set[str] | None = None
        self._last: tuple[Frame, float] | None = None

    def take(self, lately: Lately) -> list[Frame]:
        """What is to be told: the last message to those who have just come, and then each that is new."""
        now = asyncio.get_running_loop().time()
        self.message_no = lately.message_no
        new = (
            lately.told[-1:]
            if self._told is None
            else [each for each in lately.told if each.message_id not in self._told]
        )
        self._told = (self._told or set()) | {each.message_id for each in lately.told}
        frames = [_notice(each) for each in new]
        if frames:
            self._last = frames[-1], now + new[-1].told_for_ms / 1000
        return frames

    def last(self) -> bytes:
        """The last message, for somebody who was told none."""
        if self._last is None or self._last[1] <= asyncio.get_running_loop().time():
            return b""
        return self._last[0].content


def _notice(told: Told) -> Frame:
    document = MessageDocument(message_id=told.message_id, text=told.text, at=rfc3339(told.at_ms))
    return write(b"message", document)


class Channel:
    """The events of one sale in this process, and who listens to them."""

    def __init__(self, sale_id: str, version: int) -> None:
        self.sale_id = sale_id
        self.version = version
        self.listeners: set[Listener] = set()
        self.room: Room | None = None
        self.queue: QueueDocument | None = None
        self.notices = Notices()
        # Frames are numbered from 0; of the first `_forgotten` nothing is kept.
        self._frames: deque[Frame] = deque()
        self._forgotten = 0
        self._bytes = 0

    @property
    def next_no(self) -> int:
        """The number of the frame that comes next."""
        return self._forgotten + len(self._frames)

    def publish(self, frame: Frame) -> None:
        """Tell everybody, once they are woken."""
        self.version = frame.version or self.version
        self._frames.append(frame)
        self._bytes += len(frame.content)
        while len(self._frames) > FRAMES_KEPT_MAX or (self._bytes > BYTES_KEPT_MAX and len(self._frames) > 1):
            self._bytes -= len(self._frames.popleft().content)
            self._forgotten += 1

    def take(self, listener: Listener) -> bytes:
        """What this listener was not told yet."""
        if listener.at < self._forgotten:
            listener.at, listener.version = self.next_no, self.version
            return write(b"reset", Reset(self.version), self.version).content + self.notices.last()
        new = islice(self._frames, listener.at - self._forgotten, None)
        listener.at = self.next_no
        return b"".join([frame.content for frame in new if not 0 < frame.version <= listener.version])

    async def wake_all(self) -> None:
        """Wake everybody who waits, a few at a time."""
        for n, listener in enumerate(tuple(self.listeners), start=1):
            listener.wake()
            if n % WOKEN_AT_ONCE == 0:
                await asyncio.sleep(0)
