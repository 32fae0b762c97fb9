"""What happens in a sale, told as it happens: seats that change, how the line stands, and what operators have to say.

They are server-sent events. One poller a process and sale looks at the map and the room that this process keeps
anyway. Whoever reads so slowly that what they were not told is kept no longer (`api/channels.py`) is told to fetch the
map again, and whoever takes nothing at all for half a minute is given up.
"""

import asyncio
import logging
import re
from functools import partial

import msgspec
from litestar.types import HTTPResponseBodyEvent, Receive, Send

from api.answers import Stream
from api.channels import Channel, Frame, Listener, Reset, write
from api.operations import Header, Request, Routes
from api.problems import BUSY, FAULTS, Refused
from api.seats import Since, document_of
from api.waiting_room import queue_document
from engine import messages
from engine.messages import Lately
from engine.refusals import Busy
from engine.rooms import Room, Rooms
from engine.sales import FIND_WITHIN_S, Sale, SaleBook
from engine.seat_maps import Changes, Maps, SeatMap, epoch_of
from engine.stores.replies import SaleRebuilding
from engine.stores.scripts import Gate

logger = logging.getLogger(__name__)

routes = Routes("Events")

MEDIA_TYPE = "text/event-stream"

# The map is read a few times a second and says itself when; looking costs nothing until then.
LOOKS_EVERY_S = 0.1
QUEUE_EVERY_S = 1.0
COMMENTS_EVERY_S = 15.0
TRIES_AGAIN_AFTER_S = 1.0
# A connection that takes nothing of what was sent to it for so long is dead, or its reader is.
STUCK_AFTER_S = 30.0

RETRY = b"retry: 3000\n\n"
COMMENT = b":\n\n"

_ID = re.compile(rb"(\d{1,10})-(\d{1,18})")


class Events:
    """The channels of one process.

    Args:
        gate: the way into Redis.
        book: the sales that this process knows.
        maps: its seat maps.
        rooms: its rooms.
        most: how many may listen at once.
    """

    def __init__(self, gate: Gate, book: SaleBook, maps: Maps, rooms: Rooms, *, most: int) -> None:
        self._gate = gate
        self._book = book
        self._maps = maps
        self._rooms = rooms
        self._most = most
        self._channels: dict[str, Channel] = {}
        self._pollers: dict[str, asyncio.Task[None]] = {}
        self._ending = False

    def end(self) -> None:
        """End every stream, because the process stops."""
        self._ending = True
        for channel in self._channels.values():
            for listener in channel.listeners:
                if listener.sends_since is None:
                    listener.end()
                else:
                    listener.give_up()

    async def close(self) -> None:
        """End every stream, and wait until nobody looks any more."""
        self.end()
        pollers = list(self._pollers.values())
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)

    async def open(self, sale: Sale, known: int | None) -> Stream:
        """Open the events of a sale to somebody who knows this version of its map.

        Raises Refused where too many listen, or while the sale is rebuilt; and StoreUnavailable.
        """
        self._refuse_if_full()
        async with asyncio.timeout(FIND_WITHIN_S):
            newest = await self._maps.read(sale)
        if not isinstance(newest, SeatMap):
            raise Refused(newest)
        # Again: others came meanwhile. From here on nothing waits until the flow is counted.
        self._refuse_if_full()
        return Stream(
            headers=[(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")],
            media_type=MEDIA_TYPE.encode(),
            flow=partial(self._tell, sale, newest.version, known),
        )

    def _refuse_if_full(self) -> None:
        if self._ending or sum(len(channel.listeners) for channel in self._channels.values()) >= self._most:
            raise Refused(BUSY)

    async def _tell(self, sale: Sale, newest: int, known: int | None, receive: Receive, send: Send) -> None:
        """Tell one listener what happens, until either side ends it."""
        channel = self._channel(sale, newest)
        changes = None if known is None else self._maps.changes(sale, known)
        listener = Listener(channel.next_no, newest if changes is None else changes.version)
        channel.listeners.add(listener)
        gone = asyncio.ensure_future(_hang_up(receive))
        gone.add_done_callback(lambda _: listener.end())
        clock = asyncio.get_running_loop().time
        content = RETRY + self._greet(channel, sale, newest, changes)
        try:
            while not listener.ended:
                if content:
                    listener.sends_since = clock()
                    await send(_body(content, more=True))
                    listener.sends_since = None
                else:
                    await listener.sleep()
                content = channel.take(listener)
            await send(_body(b"", more=False))
        except asyncio.CancelledError:
            if not listener.given_up:
                raise
        finally:
            gone.cancel()
            channel.listeners.discard(listener)
            if not channel.listeners:
                self._close(channel)

    def _greet(self, channel: Channel, sale: Sale, newest: int, changes: Changes | None) -> bytes:
        """What somebody is told first: what they missed, or to fetch the map; the last message; how the line stands."""
        told = b""
        if changes is None:
            told = write(b"reset", Reset(newest), newest).content
        elif changes.statuses:
            told = write(b"seats", document_of(changes), changes.version).content
        told += channel.notices.last()
        queue = queue_document(channel.room, sale) if channel.room is not None else None
        return told if queue is None else told + write(b"queue", queue).content

    # The poller -------------------------------------------------------------------------------------------------------

    def _channel(self, sale: Sale, newest: int) -> Channel:
        channel = self._channels.get(sale.sale_id)
        if channel is None:
            channel = self._channels[sale.sale_id] = Channel(sale.sale_id, newest)
            poller = self._pollers[sale.sale_id] = asyncio.create_task(self._poll(channel))
            poller.add_done_callback(partial(self._stopped, channel))
        return channel

    def _close(self, channel: Channel) -> None:
        if self._channels.get(channel.sale_id) is channel:
            del self._channels[channel.sale_id]
            self._pollers.pop(channel.sale_id).cancel()

    def _stopped(self, channel: Channel, poller: asyncio.Task[None]) -> None:
        """Let nobody listen to a channel that is dead; whoever comes back opens another."""
        if not poller.cancelled() and (fault := poller.exception()) is not None:
            logger.error("the events of sale %s", channel.sale_id, exc_info=fault)
            self._channels.pop(channel.sale_id, None)
            self._pollers.pop(channel.sale_id, None)
        for listener in channel.listeners:
            listener.end()

    async def _poll(self, channel: Channel) -> None:
        clock = asyncio.get_running_loop().time
        asked_at, commented_at = 0.0, clock()
        while True:
            began, pause_s = clock(), LOOKS_EVERY_S
            before = channel.next_no
            try:
                await self._look_at_map(channel)
                if began - asked_at >= QUEUE_EVERY_S:
                    asked_at = began
                    await self._look_at_queue(channel)
            except FAULTS as fault:
                logger.warning("the events of sale %s: %s: %s", channel.sale_id, type(fault).__name__, fault)
                pause_s = TRIES_AGAIN_AFTER_S
            if began - commented_at >= COMMENTS_EVERY_S:
                commented_at = began
                channel.publish(Frame(COMMENT))
                _give_up_the_stuck(channel, before=began - STUCK_AFTER_S)
            if channel.next_no > before:
                await channel.wake_all()
            # Telling takes half of a core at most.
            await asyncio.sleep(max(pause_s, clock() - began))

    async def _look_at_map(self, channel: Channel) -> None:
        sale = await self._book.find(channel.sale_id)
        if sale is None:
            return
        found = await self._maps.read_since(sale, channel.version)
        if isinstance(found, SeatMap):
            channel.publish(write(b"reset", Reset(found.version), found.version))
        elif isinstance(found, Changes) and found.version > channel.version:
            channel.publish(write(b"seats", document_of(found), found.version))
        if self._maps.message_no(sale) != channel.notices.message_no:
            await self._look_at_messages(channel, sale)

    async def _look_at_messages(self, channel: Channel, sale: Sale) -> None:
        lately = await messages.list_lately(self._gate, sale)
        if isinstance(lately, Lately):
            for frame in channel.notices.take(lately):
                channel.publish(frame)

    async def _look_at_queue(self, channel: Channel) -> None:
        sale = await self._book.find(channel.sale_id)
        if sale is None:
            return
        room = await self._rooms.find(sale)
        document = queue_document(room, sale) if isinstance(room, Room) else None
        if not isinstance(room, Room) or document is None:
            return
        channel.room = room
        # Time alone is no news.
        known = msgspec.structs.replace(document, updated_at="", server_time="")
        if known != channel.queue:
            channel.queue = known
            channel.publish(write(b"queue", document))


def _give_up_the_stuck(channel: Channel, *, before: float) -> None:
    for listener in channel.listeners:
        if listener.sends_since is not None and listener.sends_since < before:
            listener.give_up()


async def _hang_up(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(content: bytes, *, more: bool) -> HTTPResponseBodyEvent:
    return {"type": "http.response.body", "body": content, "more_body": more}


@routes.add(
    "GET",
    "/v1/sales/{sale_id}/events",
    {200: MEDIA_TYPE},
    reads=(Header("Last-Event-ID", "The `id` of the last event one was told: what followed it is told first."),),
    sends=("Cache-Control",),
    refusals=(SaleRebuilding, Busy),
    deadline_s=None,
)
async def listen(request: Request, sale_id: str, query: Since) -> Stream:
    """What happens in a sale, as server-sent events; the same for everybody.

    `seats` `{map_version, seats}` is what changed on the map, as `?since=` answers it. `reset` `{map_version}`: fetch
    the map again, and ask with `since` until it has that version; whoever names neither a version nor the id of an
    event begins with one. `queue` is the document of the line. `message` `{message_id, text, at}` is what an operator
    has to say to everybody; who comes within an hour after the last one is told it, too, also who was told it before.
    """
    sale = await request.sale(sale_id)
    last = request.headers.get(b"last-event-id")
    return await request.house.events.open(sale, query.since if last is None else _known(last))


def _known(last_event_id: bytes) -> int | None:
    """The version of the map that an event led to; None where this is no id of ours."""
    said = _ID.fullmatch(last_event_id.strip())
    version = int(said[2]) if said else 0
    return version if said and int(said[1]) == epoch_of(version) else None
