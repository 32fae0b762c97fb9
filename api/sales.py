"""Sales: what is on sale, and the operators' hand on its waiting room and on its copy in Redis."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api import bodies
from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, in_ms, rfc3339
from api.offers import Moment, check_moments
from api.operations import Body, Empty, Header, Request, Routes, changes_of
from api.problems import BUSY, Refused
from engine import accounts, ids, offers, rebuild, sales
from engine.refusals import Busy, IdempotencyKeyReused, NotFound, SaleClosed
from engine.sales import PEOPLE_MAX, QUEUE_NO_MAX, SECONDS_MAX, RoomState, Sale, StaleVersion, Terms
from engine.stores.replies import SaleRebuilding

routes = Routes("Sales")

Count = Annotated[int, Meta(ge=1, le=PEOPLE_MAX)]
Seconds = Annotated[int, Meta(ge=1, le=SECONDS_MAX)]
HoldSeconds = Annotated[int, Meta(ge=10, le=SECONDS_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=bodies.whole(r"[^\x00-\x1f\x7f]*"))]
REBUILT_WITHIN_S = 30.0

# Terms that a request says under the same name.
SALE_TERMS = ("opens_at", "closes_at", "per_buyer_max", "hold_s", "pay_s", "release_jitter_s", "offer_s")


class SaleDocument(Document, frozen=True):
    """A sale, and whether it sells now."""

    sale_id: str
    kind: Literal["seats", "stock"]
    name: str
    opens_at: Time | None
    closes_at: Time | None
    state: Literal["upcoming", "open", "closed", "rebuilding"]
    server_time: Time


class RefundRule(Body, frozen=True):
    """Until so many hours before the start, so much of the price is paid back."""

    hours_before: Annotated[int, Meta(ge=0, le=100_000)]
    percent: Annotated[int, Meta(ge=0, le=100)]


RefundPolicy = Annotated[tuple[RefundRule, ...], Meta(max_length=20)]


class SaleTerms(Body, frozen=True):
    """The terms of a sale; what is left out stays, or has its default."""

    opens_at: Moment | UnsetType | None = UNSET
    closes_at: Moment | UnsetType | None = UNSET
    per_buyer_max: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType | None = UNSET
    hold_s: HoldSeconds | UnsetType = UNSET
    pay_s: HoldSeconds | UnsetType = UNSET
    release_jitter_s: (
        Annotated[
            int,
            Meta(ge=0, le=3600, description="What a lapsed hold had is free again up to so many seconds later."),
        ]
        | UnsetType
    ) = UNSET
    offer_s: HoldSeconds | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse moments that do not fit to each other or to a calendar."""
        check_moments(self)


class NewSale(SaleTerms, frozen=True, kw_only=True):
    """A drop: goods that are sold from `opens_at` on, with a line of their own and a limit for each buyer."""

    name: Name
    refund_policy: RefundPolicy | UnsetType = UNSET


class SaleMade(Document, frozen=True):
    """The sale."""

    sale_id: str


class EditedRoom(Body, frozen=True):
    """What changes of a waiting room; what is left out stays."""

    state: RoomState | UnsetType = UNSET
    active_max: Count | UnsetType = UNSET
    admitted_per_minute_max: Count | UnsetType = UNSET
    entry_s: Seconds | UnsetType = UNSET
    session_s: Seconds | UnsetType = UNSET
    recall_s: Seconds | UnsetType = UNSET
    draining_no: Annotated[int, Meta(ge=0, le=QUEUE_NO_MAX)] | UnsetType = UNSET


class RoomDocument(Document, frozen=True):
    """A waiting room as it is set; `draining_no` is the last number that a draining room lets in."""

    sale_id: str
    state: Annotated[str, Meta(extra_json_schema={"enum": list(get_args(RoomState))})]
    active_max: int
    admitted_per_minute_max: int
    entry_s: int
    session_s: int
    recall_s: int
    draining_no: int | None
    version: int


@routes.add("GET", "/v1/sales/{sale_id}", {200: SaleDocument})
async def find(request: Request, sale_id: str) -> Answer:
    """What is on sale, and whether it sells now."""
    sale = await request.sale(sale_id)
    now_ms = request.house.clock.now_ms
    document = SaleDocument(
        sale_id=sale.sale_id,
        kind="stock" if sale.kind == "stock" else "seats",
        name=sale.name,
        opens_at=rfc3339(sale.opens_at),
        closes_at=rfc3339(sale.closes_at),
        state=_state(sale, now_ms),
        server_time=rfc3339(now_ms),
    )
    return answer(document)


def _state(sale: Sale, now_ms: int) -> Literal["upcoming", "open", "closed", "rebuilding"]:
    if sale.closes_at and now_ms >= in_ms(sale.closes_at):
        return "closed"
    if sale.opens_at and now_ms < in_ms(sale.opens_at):
        return "upcoming"
    return "open" if sale.store_state == "open" else "rebuilding"


@routes.add(
    "POST",
    "/v1/admin/sales",
    {201: SaleMade},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused,),
    deadline_s=REBUILT_WITHIN_S + 5,
)
async def create_sale(request: Request, body: NewSale) -> Answer:
    """Make a drop: a sale of goods. It sells the products that name it, and its waiting room is off at first."""
    house = request.house
    terms = terms_of(body, body.refund_policy)
    made = await sales.create_drop(
        house.postgres,
        sale_id=request.new_id(),
        terms=Terms(name=body.name, **terms),
        fingerprint=ids.fingerprint(body.name, bodies.text_of(terms)),
    )
    if isinstance(made, IdempotencyKeyReused):
        raise Refused(made)
    sale, repeated = made
    if not await rebuild.ensure_open(house.stores, sale.sale_id):
        raise Refused(BUSY)
    await house.book.read(sale.sale_id)
    return answer(SaleMade(sale_id=sale.sale_id), 201, repeated=repeated)


def terms_of(given: SaleTerms, refund_policy: Sequence[RefundRule] | UnsetType) -> dict[str, Any]:
    """The terms that were given, as the engine names them."""
    changes = changes_of(given)
    terms = {name: changes[name] for name in SALE_TERMS if name in changes}
    if "hold_s" in terms:
        # By extensions a hold lives at most three times as long, and at least as long as by default.
        terms["hold_max_s"] = max(3 * terms["hold_s"], Terms().hold_max_s)
    if refund_policy is not UNSET:
        terms["refund_policy"] = tuple(msgspec.to_builtins(refund_policy))
    return terms


@routes.add(
    "PATCH",
    "/v1/admin/sales/{sale_id}/queue",
    {200: RoomDocument},
    caller=operator(accounts.SALES),
    refusals=(SaleRebuilding, SaleClosed, StaleVersion),
    reads=(Header("If-Match", "Where given: edit only the version of the room that has this ETag."),),
)
async def edit_room(request: Request, sale_id: str, body: EditedRoom) -> Answer:
    """Open, pause, drain or close the waiting room, or set its caps and times.

    Without `If-Match` whatever stands is edited: whoever must pause a room at once has no time to read it first.
    """
    changes = changes_of(body)
    version = request.if_match() if b"if-match" in request.headers else None
    if "state" in changes:
        changes["room"] = changes.pop("state")
    house = request.house
    edited = await offers.configure(house.stores, house.book, sale_id=sale_id, changes=changes, version=version)
    if edited is None:
        raise Refused(NotFound())
    if not isinstance(edited, Sale):
        raise Refused(edited)
    return _room(edited)


@routes.add(
    "GET",
    "/v1/admin/sales/{sale_id}/queue",
    {200: RoomDocument},
    caller=operator(accounts.SALES),
)
async def find_room(request: Request, sale_id: str) -> Answer:
    """How the waiting room is set."""
    await request.sale(sale_id)
    sale = await request.house.book.read(sale_id)
    if sale is None:
        raise Refused(NotFound())
    return _room(sale)


def _room(sale: Sale) -> Answer:
    document = RoomDocument(
        sale_id=sale.sale_id,
        state=sale.room,
        active_max=sale.active_max,
        admitted_per_minute_max=sale.admitted_per_minute_max,
        entry_s=sale.entry_s,
        session_s=sale.session_s,
        recall_s=sale.recall_s,
        draining_no=sale.draining_no,
        version=sale.version,
    )
    return answer(document, version=sale.version)


class Rebuilt(Document, frozen=True):
    """The sale and the epoch of its copy in Redis."""

    sale_id: str
    epoch: int


@routes.add(
    "POST",
    "/v1/admin/sales/{sale_id}/rebuild",
    {200: Rebuilt},
    caller=operator(accounts.SALES),
    keyed=True,
    deadline_s=REBUILT_WITHIN_S + 5,
    refusals=(Busy,),
)
async def rebuild_sale(request: Request, sale_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Write the copy in Redis anew from Postgres; meanwhile the sale answers `sale_rebuilding`.

    A source of coupons is written anew by its own id, in the same way.
    """
    house = request.house
    if await house.book.find(sale_id) is None:
        raise Refused(NotFound())
    if not await rebuild.demand(house.stores, sale_id, reason="an operator asked", within_s=REBUILT_WITHIN_S):
        raise Refused(BUSY)
    rebuilt = await house.book.read(sale_id)
    if rebuilt is None:
        raise Refused(NotFound())
    return answer(Rebuilt(sale_id=sale_id, epoch=rebuilt.epoch))
