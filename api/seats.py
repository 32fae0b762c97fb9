"""The seat map of a schedule: whole, or what changed since a version."""

import asyncio
import gzip
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer, encode
from api.operations import KNOWN, Header, Request, Routes
from api.problems import Refused
from engine import catalogue
from engine.refusals import NotFound
from engine.sales import Sale
from engine.seat_maps import FRESH_MAX_S, Changes, Maps, SeatMap
from engine.stores.replies import SaleRebuilding

routes = Routes("Tickets")

# Seats of all halls that a process keeps as bytes: each takes about 300, and 120 more where somebody takes no gzip.
SEATS_KEPT_MAX = 300_000

# Drawing takes at most this share of a core: what took long to draw is shown for longer.
DRAWING_SHARE = 0.1

# Of a hall of 50,000 seats the slowest level saves a seventh and takes twenty times as long.
GZIP_LEVEL = 1

Status = Annotated[str, Meta(extra_json_schema={"enum": ["FREE", "HELD", "SOLD", "BLOCKED"]})]


_FREE = "FREE"
_BEFORE_STATUS = -len(b'FREE"}')


class Since(msgspec.Struct, frozen=True):
    """Which part of the map is asked for."""

    since: Annotated[int, Meta(ge=0, lt=2**62, description="`map_version` of the map one has.")] | None = None


class SeatDocument(Document, frozen=True):
    """A seat and its status; where only changes are told, nothing else."""

    seat_no: str
    section: str | UnsetType = UNSET
    row: str | UnsetType = UNSET
    number: int | UnsetType = UNSET
    category: str | UnsetType = UNSET
    price: int | UnsetType = UNSET
    accessible: bool | UnsetType = UNSET
    status: Status | UnsetType = UNSET


class SeatMapDocument(Document, frozen=True):
    """The map, `full` or what changed since the version that was named; HELD seats may be being paid."""

    map_version: int
    full: bool
    seats: list[SeatDocument]


class Plan:
    """The seats of a sale as bytes that never change but for the status at the end of each."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        seats = [SeatDocument(**row, status=_FREE) for row in rows]
        self.seats_total = len(seats)
        self._free = [encode(seat) for seat in seats]
        self._at = {seat.seat_no: at for at, seat in enumerate(seats)}

    def write(self, current: SeatMap) -> bytes:
        """The whole map as a document: only what is not FREE is written anew."""
        seats = self._free.copy()
        for seat_no, status in current.statuses.items():
            at = self._at.get(seat_no)
            if at is not None:  # a place of an area has a status, and is not drawn
                seats[at] = b'%b%b"}' % (seats[at][:_BEFORE_STATUS], status.encode())
        return b'{"map_version":%d,"full":true,"seats":[%b]}' % (current.version, b",".join(seats))


class Picture(msgspec.Struct, frozen=True):
    """A whole map, ready to be sent; it may be drawn anew after `fresh_until`, by the clock of the loop."""

    version: int
    content: bytes
    fresh_until: float


class _Board:
    """What a process keeps of one sale: its plan, a picture for each encoding, and what is being drawn."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._pictures: dict[bool, Picture] = {}
        self._drawing: dict[bool, asyncio.Task[Picture]] = {}

    async def show(self, current: SeatMap, *, zipped: bool) -> Picture:
        """The map as a picture, drawn once however many ask; one that took long to draw is shown for a while."""
        picture = self._pictures.get(zipped)
        if picture is not None and (
            picture.version == current.version or asyncio.get_running_loop().time() < picture.fresh_until
        ):
            return picture
        drawing = self._drawing.get(zipped)
        if drawing is None or drawing.done():
            drawing = self._drawing[zipped] = asyncio.create_task(self._draw(current, zipped=zipped))
        # A buyer who goes away must not stop what others wait for.
        return await asyncio.shield(drawing)

    async def _draw(self, current: SeatMap, *, zipped: bool) -> Picture:
        clock = asyncio.get_running_loop().time
        began = clock()
        # In a thread: a hall of 50,000 seats takes a tenth of a second, and this one has polls to answer.
        content = await asyncio.to_thread(_write, self.plan, current, zipped=zipped)
        pause_s = min((clock() - began) / DRAWING_SHARE, FRESH_MAX_S)
        picture = self._pictures[zipped] = Picture(current.version, content, clock() + pause_s)
        return picture


def _write(plan: Plan, current: SeatMap, *, zipped: bool) -> bytes:
    content = plan.write(current)
    return gzip.compress(content, GZIP_LEVEL, mtime=0) if zipped else content


class SeatMaps:
    """The maps of one process, and the pictures that are drawn of them."""

    def __init__(self, maps: Maps, postgres: asyncpg.Pool) -> None:
        self._maps = maps
        self._postgres = postgres
        # The one that was not looked at for longest comes first, and makes room.
        self._boards: dict[str, _Board] = {}
        self._setting_up: dict[str, asyncio.Task[_Board]] = {}

    async def read(self, sale: Sale) -> SeatMap:
        """What stands on the map. Raises Refused while the sale is rebuilt."""
        current = await self._maps.read(sale)
        if not isinstance(current, SeatMap):
            raise Refused(current)
        return current

    async def draw(self, sale: Sale, current: SeatMap, *, zipped: bool) -> Picture:
        """The whole map, of this version or one that was drawn a moment ago."""
        board = self._boards.pop(sale.sale_id, None)
        if board is None:
            setting_up = self._setting_up.get(sale.sale_id)
            if setting_up is None:
                setting_up = self._setting_up[sale.sale_id] = asyncio.create_task(self._set_up(sale.sale_id))
                setting_up.add_done_callback(lambda _: self._setting_up.pop(sale.sale_id, None))
            board = await asyncio.shield(setting_up)
        self._keep(sale.sale_id, board)
        return await board.show(current, zipped=zipped)

    async def since(self, sale: Sale, version: int) -> Changes | None:
        """What changed after this version, or None where only the whole map can tell."""
        changes = await self._maps.read_since(sale, version)
        return changes if isinstance(changes, Changes) else None

    async def _set_up(self, sale_id: str) -> _Board:
        rows = await catalogue.list_seats(self._postgres, sale_id)
        return _Board(await asyncio.to_thread(Plan, rows))

    def _keep(self, sale_id: str, board: _Board) -> None:
        self._boards[sale_id] = board
        while len(self._boards) > 1 and sum(each.plan.seats_total for each in self._boards.values()) > SEATS_KEPT_MAX:
            del self._boards[next(iter(self._boards))]


@routes.add(
    "GET",
    "/v1/schedules/{schedule_id}/seats",
    {200: SeatMapDocument, 304: None},
    reads=(KNOWN, Header("Accept-Encoding", "The whole map is sent as gzip to who takes that.")),
    sends=("ETag", "Content-Encoding"),
    refusals=(SaleRebuilding,),
)
async def find_map(request: Request, schedule_id: str, query: Since) -> Answer:
    """The seat map: every seat, or what changed since the version that is named.

    A map may be two seconds old, and another process may know a newer one: whoever was told of a version asks again,
    with `since`, until it is reached.
    """
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    changes = None if query.since is None else await house.seat_maps.since(sale, query.since)
    if changes is not None:
        return answer(document_of(changes))
    current = await house.seat_maps.read(sale)
    known = request.headers.get(b"if-none-match")
    if known is not None and known == _tag(current.version):
        return Answer(b"", 304, [(b"etag", known), *_SHARED])
    zipped = takes_gzip(request.headers.get(b"accept-encoding", b""))
    picture = await house.seat_maps.draw(sale, current, zipped=zipped)
    tag = _tag(picture.version)
    if known == tag:
        return Answer(b"", 304, [(b"etag", tag), *_SHARED])
    headers = [(b"etag", tag), *_SHARED, *([(b"content-encoding", b"gzip")] if zipped else [])]
    return Answer(picture.content, headers=headers)


def document_of(changes: Changes) -> SeatMapDocument:
    """What changed, as it is told in an answer."""
    seats = [SeatDocument(seat_no=seat_no, status=status) for seat_no, status in changes.statuses.items()]
    return SeatMapDocument(map_version=changes.version, full=False, seats=seats)


# A cache in between may keep a map, for as long as we say that it is the newest.
_SHARED = ((b"cache-control", b"public, no-cache"), (b"vary", b"accept-encoding"))


def _tag(version: int) -> bytes:
    # Weak: both encodings have the same one.
    return b'W/"%d"' % version


def takes_gzip(accepted: bytes) -> bool:
    """Whether a client that accepts these encodings takes gzip (RFC 9110, 12.5.3)."""
    weights = {}
    for part in accepted.lower().split(b","):
        name, _, weight = part.partition(b";")
        weights[name.strip()] = weight.replace(b" ", b"")
    weight = weights.get(b"gzip", weights.get(b"*", b"q=0"))
    return not re.fullmatch(rb"q=0(\.0*)?", weight)
