"""The line of a sale: join it, ask for one's place, enter, leave; and what everybody may know of it."""

from functools import lru_cache
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, encode
from api.callers import PERSON, visitor_of
from api.clock import Time, rfc3339
from api.operations import KNOWN, Empty, Header, Request, Routes
from api.problems import NotAdmitted, Refused, invalid, not_admitted
from engine import seats, waiting_room, wares
from engine.refusals import Busy, NotFound
from engine.rooms import Eta, Place, Room
from engine.sales import RoomState, Sale
from engine.stores.replies import Reply, SaleRebuilding
from engine.tokens import Passes, QueueToken
from engine.waiting_room import POLL_MAX_MS, AdmittedWithoutNumber, Joined, Left, QueueClosed, Tied

routes = Routes("The line")

QUEUE_TOKEN = Header("Queue-Token", "The token of a place in line, from `POST …/queue/tokens`.")
OWN_TOKEN = Header(QUEUE_TOKEN.name, QUEUE_TOKEN.says, required=True)

STATUS = {"enum": ["WAITING", "ACTIVE", "PROCESSED", "EXPIRED", "LEFT"]}
STATE = {"enum": list(get_args(RoomState))}

# A pass lives for a minute and is renewed by polls: each is shown for half of that.
PASS_SHOWN_MS = 30_000
PASSES_KEPT_MAX = 65_536


class TokenDocument(Document, frozen=True, kw_only=True):
    """A place in line; `queue_no` is 0 where no line is kept, and `pass` tells other sites who was let in."""

    token: str
    queue_no: int
    status: Annotated[str, Meta(extra_json_schema=STATUS)]
    position: int
    ahead: int
    eta: Eta
    expires_at: Time | UnsetType = UNSET
    pass_: str | UnsetType = msgspec.field(default=UNSET, name="pass")
    poll_after_ms: int
    server_time: Time


class QueueDocument(Document, frozen=True, kw_only=True):
    """What everybody may know of a line."""

    state: Annotated[str, Meta(extra_json_schema=STATE)]
    opens_at: Time | None
    serving: int
    last_queue_no: int
    waiting: int
    active: int
    rate_per_minute: int
    updated_at: Time
    server_time: Time


class KeySet(Document, frozen=True):
    """The public keys of passes and of tickets."""

    keys: list[dict[str, Any]]


class PassDesk:
    """Gives out passes, the same one to the same place for half a minute: to sign one costs more than a poll."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._issued = lru_cache(PASSES_KEPT_MAX)(self._issue)

    @property
    def key_set(self) -> dict[str, Any]:
        """The public keys."""
        return self._passes.jwks

    def find(self, sale_id: str, owner: str, place: Place) -> str:
        """A pass for somebody who was let in."""
        return self._issued(sale_id, owner, place.queue_no, place.expires_at_ms, place.now_ms // PASS_SHOWN_MS)

    def _issue(self, sale_id: str, owner: str, queue_no: int, until_ms: int, half_minute: int) -> str:
        return self._passes.issue(
            sale_id=sale_id, owner=owner, queue_no=queue_no, now_ms=half_minute * PASS_SHOWN_MS, until_ms=until_ms
        )


# A person's own place -------------------------------------------------------------------------------------------------


class Presented(msgspec.Struct, frozen=True):
    """A token that came along and is the caller's; `visitor` is whose it was before its owner signed in."""

    token: QueueToken
    text: str
    visitor: str = ""


@routes.add(
    "POST",
    "/v1/sales/{sale_id}/queue/tokens",
    {200: TokenDocument, 201: TokenDocument},
    caller=PERSON,
    keyed=True,
    sends=("Retry-After",),
    refusals=(QueueClosed, Busy, SaleRebuilding),
)
async def join(request: Request, sale_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Join the line: 201 with a new number, 200 with the one that is held already."""
    house = request.house
    sale = await request.sale(sale_id)
    joined = await waiting_room.join(house.gate, sale, owner=request.caller_id)
    if not isinstance(joined, Joined | AdmittedWithoutNumber):
        raise Refused(joined)
    room = await _room(request, sale)
    if isinstance(joined, Joined):
        place, created = house.rooms.joined(room, joined), joined.created == 1
    else:
        place, created = house.rooms.without_number(room, sale), True
    return _answer(request, sale, place, None, 201 if created else 200)


@routes.add(
    "GET",
    "/v1/sales/{sale_id}/queue/token",
    {200: TokenDocument, 304: None},
    caller=PERSON,
    deadline_s=None,
    reads=(OWN_TOKEN, KNOWN),
    sends=("ETag", "Retry-After"),
    refusals=(NotAdmitted, SaleRebuilding),
)
async def poll(request: Request, sale_id: str) -> Answer:
    """My place in line; a 304 means that nothing changed and to wait as long again."""
    sale = await request.sale(sale_id)
    presented = await _presented(request, sale)
    place = await _poll(request, sale, presented)
    return _answer(request, sale, place, presented, 200)


@routes.add(
    "POST",
    "/v1/sales/{sale_id}/queue/token/entry",
    {200: TokenDocument},
    caller=PERSON,
    keyed=True,
    reads=(OWN_TOKEN,),
    sends=("ETag", "Retry-After"),
    refusals=(NotAdmitted, SaleRebuilding),
)
async def enter(request: Request, sale_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Enter without holding anything yet, once one's turn has come; until then, one's place."""
    sale = await request.sale(sale_id)
    presented = await _presented(request, sale)
    place = await _poll(request, sale, presented)
    return _answer(request, sale, place, presented, 200)


@routes.add(
    "DELETE",
    "/v1/sales/{sale_id}/queue/token",
    {200: TokenDocument},
    caller=PERSON,
    reads=(OWN_TOKEN,),
    sends=("ETag", "Retry-After"),
    refusals=(NotAdmitted, SaleRebuilding),
)
async def leave(request: Request, sale_id: str) -> Answer:
    """Leave the line and give back what is held; what is being paid goes on. Harmless to repeat."""
    house = request.house
    sale = await request.sale(sale_id)
    presented = await _presented(request, sale)
    await _release_all(request, sale)
    token = presented.token
    left: Reply = Left(queue_no=0, status="LEFT")  # where no line is kept, there is nothing more to leave
    if token.queue_no:
        queue_no = await _number(request, sale, presented)
        left = await waiting_room.leave(house.gate, sale, owner=token.owner, queue_no=queue_no)
    if not isinstance(left, Left):
        raise Refused(left)
    room = await _room(request, sale)
    room.kept.pop((token.owner, token.queue_no), None)
    place = Place(
        epoch=sale.epoch,
        queue_no=left.queue_no,
        status=left.status,
        ahead=0,
        eta=Eta(known=False),
        expires_at_ms=0,
        poll_after_ms=POLL_MAX_MS,
        now_ms=room.now_ms,
    )
    return _answer(request, sale, place, presented, 200)


async def place_in_line(request: Request, sale: Sale) -> int:
    """The queue number of the token that came along, 0 without one; raises Refused for one that is not the caller's."""
    if b"queue-token" not in request.headers:
        return 0
    presented = await _own(request, sale)
    if presented is None:
        raise Refused(not_admitted(sale.sale_id))
    return await _number(request, sale, presented)


async def _number(request: Request, sale: Sale, presented: Presented) -> int:
    """The number that a token stands for in the copy of the sale that counts now."""
    if presented.token.epoch == sale.epoch:
        return presented.token.queue_no
    # The store was lost since this was signed: the place is put back before it counts.
    return (await _poll(request, sale, presented)).queue_no


async def _presented(request: Request, sale: Sale) -> Presented:
    if b"queue-token" not in request.headers:
        raise invalid("Queue-Token", "Expected the token of a place in line")
    presented = await _own(request, sale)
    if presented is None:
        raise Refused(NotFound())
    if not presented.token.queue_no and waiting_room.is_on(sale):
        raise Refused(not_admitted(sale.sale_id))
    return presented


async def _own(request: Request, sale: Sale) -> Presented | None:
    """The token that came along, if it is of this sale and the caller's; a visitor's is tied to who has signed in."""
    house, owner = request.house, request.caller_id
    text = request.headers[b"queue-token"].decode("latin-1")
    token = house.queue_tokens.verify(text)
    if token is None or token.sale_id != sale.sale_id:
        return None
    if token.owner == owner:
        return Presented(token, text)
    visitor = visitor_of(request)
    if token.owner != visitor:
        return None
    if not token.queue_no or token.epoch != sale.epoch:
        return Presented(msgspec.structs.replace(token, owner=owner), "", visitor)
    tied = await waiting_room.tie(house.gate, sale, visitor=visitor, user=owner, queue_no=token.queue_no)
    if isinstance(tied, Tied):
        return Presented(msgspec.structs.replace(token, owner=owner, queue_no=tied.queue_no), "", visitor)
    if isinstance(tied, NotFound):
        newest = await house.book.find(sale.sale_id)
        if newest is None or newest.epoch == token.epoch:
            return None
        # The store was lost since, and this process hears it by that answer.
        return Presented(msgspec.structs.replace(token, owner=owner), "", visitor)
    raise Refused(tied)


async def _poll(request: Request, sale: Sale, presented: Presented) -> Place:
    token = presented.token
    place = await request.house.rooms.poll(
        sale, owner=token.owner, queue_no=token.queue_no, epoch=token.epoch, visitor=presented.visitor
    )
    if not isinstance(place, Place):
        raise Refused(place)
    return place


async def _room(request: Request, sale: Sale) -> Room:
    room = await request.house.rooms.find(sale)
    if not isinstance(room, Room):
        raise Refused(room)
    return room


async def _release_all(request: Request, sale: Sale) -> None:
    """Give back what the caller holds in this sale and does not pay."""
    gate, buyer_id = request.house.gate, request.caller_id
    release = wares.of(sale).scripts.release
    for hold_id in await seats.find_open(gate, sale, buyer_id=buyer_id):
        await release(gate, sale, hold_id=hold_id, buyer_id=buyer_id, release_id=hold_id, fingerprint="")


def _answer(request: Request, sale: Sale, place: Place, presented: Presented | None, status: int) -> Answer:
    """Tell somebody their place, or that it is as they know it."""
    house = request.house
    token = presented.token if presented is not None and presented.text else None
    if presented is not None and token is not None and (token.epoch, token.queue_no) == (place.epoch, place.queue_no):
        text = presented.text
    else:
        text = house.queue_tokens.sign(QueueToken(sale.sale_id, place.epoch, request.caller_id, place.queue_no))
    admitted = place.status == "ACTIVE" and place.expires_at_ms > 0
    shown = house.passes.find(sale.sale_id, request.caller_id, place) if admitted else UNSET
    tag = (
        f'"{place.status}.{place.epoch}.{place.queue_no}.{place.ahead}.{place.eta.p50_s}.{place.eta.p90_s}'
        f'.{place.expires_at_ms}.{shown[-8:] if shown else ""}"'
    ).encode()
    headers = [
        (b"etag", tag),
        (b"retry-after", b"%d" % max(1, -(-place.poll_after_ms // 1000))),
        (b"cache-control", b"private, no-cache"),
    ]
    # A proxy that compresses answers makes the tag a weak one.
    known = request.headers.get(b"if-none-match", b"").removeprefix(b"W/")
    if status == 200 and known == tag and request.method == "GET":
        return Answer(b"", 304, headers)
    document = TokenDocument(
        token=text,
        queue_no=place.queue_no,
        status=place.status,
        position=place.position,
        ahead=place.ahead,
        eta=place.eta,
        expires_at=rfc3339(place.expires_at_ms) if place.expires_at_ms else UNSET,
        pass_=shown,
        poll_after_ms=place.poll_after_ms,
        server_time=rfc3339(place.now_ms),
    )
    return Answer(encode(document), status, headers)


# What everybody may know ----------------------------------------------------------------------------------------------


def queue_document(room: Room, sale: Sale) -> QueueDocument | None:
    """How the line stands, as far as this process has seen it."""
    seen = room.snapshot
    if seen is None:
        return None
    return QueueDocument(
        state=seen.room,
        opens_at=rfc3339(sale.opens_at),
        serving=seen.serving,
        last_queue_no=seen.queue_no,
        waiting=seen.waiting,
        active=seen.active,
        rate_per_minute=round(seen.admitted * 60 / max(1, seen.admitted_in_s)),
        updated_at=rfc3339(seen.now_ms),
        server_time=rfc3339(room.now_ms),
    )


@routes.add(
    "GET", "/v1/sales/{sale_id}/queue", {200: QueueDocument}, sends=("Cache-Control",), refusals=(SaleRebuilding,)
)
async def show_queue(request: Request, sale_id: str) -> Answer:
    """How the line stands: the same for everybody, so that a cache in between can tell it."""
    sale = await request.sale(sale_id)
    document = queue_document(await _room(request, sale), sale)
    if document is None:
        raise Refused(SaleRebuilding())
    return Answer(encode(document), headers=[(b"cache-control", b"public, max-age=1")])


@routes.add("GET", "/.well-known/jwks.json", {200: KeySet}, sends=("Cache-Control",))
async def show_keys(request: Request) -> Answer:
    """The keys with which other sites verify passes, and doors the codes of tickets."""
    house = request.house
    content = encode(KeySet([*house.passes.key_set["keys"], house.ticket_codes.jwk]))
    return Answer(content, headers=[(b"cache-control", b"public, max-age=300")])
