"""Coupons: users get one each, first come first served; operators make, edit and remove their sources."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api import bodies
from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.offers import Moment
from api.operations import Body, Empty, Request, Routes, changes_of
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.payment_methods import ASK_AGAIN_S
from api.problems import BUSY, Refused, invalid
from api.product_tables import Name
from engine import accounts, coupons, ids, rebuild
from engine.coupons import (
    AMOUNT_MAX,
    QUANTITY_MAX,
    SHOWN,
    STATUSES,
    Coupon,
    CouponsGone,
    Issued,
    NotIssuing,
    Plan,
    QuantityTaken,
    Status,
    Terms,
    Type,
    UserCoupon,
)
from engine.refusals import Busy, IdempotencyKeyReused, NotFound
from engine.sales import StaleVersion
from engine.stores.replies import SaleRebuilding
from engine.till import ANSWER_WITHIN_S

routes = Routes("Coupons")

Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]
Rate = Annotated[int, Meta(ge=1, le=100, description="Whole percent.")]
Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX, description="All that there ever are of it.")]
Told = Annotated[str, Meta(extra_json_schema={"enum": list(STATUSES)})]
Shown = Annotated[str, Meta(extra_json_schema={"enum": list(SHOWN)})]

# What an operator says under another name than the engine.
NAMES: Final = {"quantity": "initial_quantity"}


class NewCoupon(Body, frozen=True, kw_only=True):
    """A source: FIXED takes off an amount, RATE whole percent, up to a maximum; windows are `from ≤ now < to`."""

    name: Name
    type: Type
    discount_amount: Amount | None = None
    discount_rate: Rate | None = None
    max_discount_amount: Amount | None = None
    minimum_spend: Amount | None = None
    quantity: Quantity
    status: Literal["DRAFT", "ISSUING", "PAUSED"] = "ISSUING"
    issue_from: Moment | None = None
    issue_to: Moment | None = None
    usable_from: Moment
    usable_to: Moment


class EditedCoupon(Body, frozen=True):
    """What changes of a source; what is left out stays. What was issued before keeps its terms."""

    name: Name | UnsetType = UNSET
    discount_amount: Amount | UnsetType = UNSET
    discount_rate: Rate | UnsetType = UNSET
    max_discount_amount: Amount | UnsetType | None = UNSET
    minimum_spend: Amount | UnsetType | None = UNSET
    quantity: Quantity | UnsetType = UNSET
    status: Literal["ISSUING", "PAUSED", "CLOSED"] | UnsetType = UNSET
    issue_from: Moment | UnsetType | None = UNSET
    issue_to: Moment | UnsetType | None = UNSET
    usable_from: Moment | UnsetType = UNSET
    usable_to: Moment | UnsetType = UNSET


class CouponMade(Document, frozen=True):
    """The source."""

    coupon_id: str


class CouponTerms(Document, frozen=True, kw_only=True):
    """What a coupon takes off, of how much at least, and when: `usable_from ≤ now < usable_to`."""

    name: str
    type: Type
    discount_amount: int | UnsetType = UNSET
    discount_rate: int | UnsetType = UNSET
    max_discount_amount: int | UnsetType = UNSET
    minimum_spend: int | UnsetType = UNSET
    usable_from: Time
    usable_to: Time


class CouponDocument(CouponTerms, frozen=True, kw_only=True):
    """A source: of `initial_quantity` coupons `quantity` are left."""

    coupon_id: str
    quantity: int
    initial_quantity: int
    status: Shown
    issue_from: Time | None
    issue_to: Time | None


class OperatorsCoupon(CouponDocument, frozen=True, kw_only=True):
    """A source in whatever status."""

    status: Told
    version: int
    created_at: Time
    updated_at: Time


class IssueDocument(Document, frozen=True):
    """The coupon, which is yours alone."""

    user_coupon_id: str


class UserCouponDocument(CouponTerms, frozen=True, kw_only=True):
    """A coupon as its user has it, with the terms that it was issued with."""

    user_coupon_id: str
    coupon_id: str
    status: Annotated[str, Meta(extra_json_schema={"enum": ["AVAILABLE", "RESERVED", "USED"]})]
    order_id: str | UnsetType = UNSET
    reservation_id: str | UnsetType = UNSET
    created_at: Time
    used_at: Time | UnsetType = UNSET


# Users ----------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/v1/coupons", {200: Listed[CouponDocument]})
async def list_coupons(request: Request, query: Page) -> Answer:
    """What there is, those made last first."""
    found = await _list(request, query, SHOWN)
    return answer(page_of([_document(coupon) for coupon in found], _places(found), query))


@routes.add("GET", "/v1/coupons/{coupon_id}", {200: CouponDocument})
async def find_coupon(request: Request, coupon_id: str) -> Answer:
    """A source of coupons, and what is left of it."""
    coupon = await coupons.find(request.house.postgres, coupon_id)
    if coupon is None or coupon.status not in SHOWN:
        raise Refused(NotFound())
    return answer(_document(coupon))


@routes.add(
    "POST",
    "/v1/coupons/{coupon_id}/issues",
    {200: IssueDocument, 201: IssueDocument, 202: IssueDocument},
    caller=USER,
    keyed=True,
    sends=("Location", "Retry-After"),
    refusals=(CouponsGone, NotIssuing, SaleRebuilding),
)
async def issue(request: Request, coupon_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Get a coupon, one whatever the key: 201 once it is durable, 200 if it was mine before.

    202 with its address while it is not known to be durable; it may turn out to be gone. Asking again tells.
    """
    house, user_id = request.house, request.caller_id
    sale = await request.source(coupon_id)
    issued = await coupons.issue(house.gate, sale, user_id=user_id)
    if not isinstance(issued, Issued):
        raise Refused(issued)
    user_coupon_id = coupons.user_coupon_id_of(coupon_id, user_id)
    document = IssueDocument(user_coupon_id=user_coupon_id)
    if issued.repeated and await coupons.find_mine(house.postgres, user_coupon_id, user_id):
        return answer(document)
    if await house.waiters.issued(sale, user_coupon_id, issued.n, within_s=ANSWER_WITHIN_S):
        return answer(document, 200 if issued.repeated else 201)
    return answer(document, 202, location=f"/v1/user-coupons/{user_coupon_id}", retry_after_s=ASK_AGAIN_S)


@routes.add("GET", "/v1/user-coupons", {200: Listed[UserCouponDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """My coupons, those issued last first."""
    found = await coupons.list_mine(
        request.house.postgres, request.caller_id, before=moment_of(query.after(Place)), most=query.limit + 1
    )
    places = [place_of(mine.created_at, mine.user_coupon_id) for mine in found]
    return answer(page_of([_mine(mine) for mine in found], places, query))


@routes.add("GET", "/v1/user-coupons/{user_coupon_id}", {200: UserCouponDocument}, caller=USER)
async def find_mine(request: Request, user_coupon_id: str) -> Answer:
    """One of my coupons; there is none until its issue is durable."""
    mine = await coupons.find_mine(request.house.postgres, user_coupon_id, request.caller_id)
    if mine is None:
        raise Refused(NotFound())
    return answer(_mine(mine))


# Operators ------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/admin/coupons",
    {201: CouponMade},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused, Busy),
    deadline_s=35.0,
)
async def create_coupon(request: Request, body: NewCoupon) -> Answer:
    """Make a source of `quantity` coupons; it issues them at once, within its window, unless another status is said."""
    house = request.house
    plan = Plan(**{NAMES.get(name, name): value for name, value in msgspec.structs.asdict(body).items()})
    _check(plan)
    made = await coupons.create(
        house.postgres, coupon_id=request.new_id(), plan=plan, fingerprint=ids.fingerprint(bodies.text_of(body))
    )
    if isinstance(made, IdempotencyKeyReused):
        raise Refused(made)
    coupon, repeated = made
    if not await rebuild.ensure_open(house.stores, coupon.coupon_id):
        raise Refused(BUSY)
    await house.book.read(coupon.coupon_id)
    return answer(CouponMade(coupon_id=coupon.coupon_id), 201, version=coupon.version, repeated=repeated)


@routes.add("GET", "/v1/admin/coupons", {200: Listed[OperatorsCoupon]}, caller=operator(accounts.CATALOGUE))
async def list_operators_coupons(request: Request, query: Page) -> Answer:
    """Sources in every status, those made last first; deleted ones are not listed."""
    found = await _list(request, query, STATUSES)
    return answer(page_of([_operators_document(coupon) for coupon in found], _places(found), query))


@routes.add("GET", "/v1/admin/coupons/{coupon_id}", {200: OperatorsCoupon}, caller=operator(accounts.CATALOGUE))
async def find_operators_coupon(request: Request, coupon_id: str) -> Answer:
    """A source in whatever status."""
    coupon = await coupons.find(request.house.postgres, coupon_id)
    if coupon is None:
        raise Refused(NotFound())
    return answer(_operators_document(coupon), version=coupon.version)


@routes.add(
    "PATCH",
    "/v1/admin/coupons/{coupon_id}",
    {200: OperatorsCoupon},
    caller=operator(accounts.CATALOGUE),
    edits=True,
    refusals=(QuantityTaken, NotIssuing, SaleRebuilding),
)
async def edit_coupon(request: Request, coupon_id: str, body: EditedCoupon) -> Answer:
    """Change a source: its name, its terms, its windows, its status, or how many there are.

    No fewer than were issued. CLOSED is for good. A source that is sold out issues again when there are more.
    """
    house, version = request.house, request.if_match()
    coupon = await coupons.find(house.postgres, coupon_id)
    if coupon is None:
        raise Refused(NotFound())
    if coupon.version != version:
        raise Refused(StaleVersion(coupon.version))
    changes = {NAMES.get(name, name): value for name, value in changes_of(body).items()}
    _check(msgspec.structs.replace(coupon, **changes))
    edited = await coupons.edit(house.stores, house.book, coupon_id=coupon_id, version=version, changes=changes)
    if not isinstance(edited, Coupon):
        raise Refused(edited)
    return answer(_operators_document(edited), version=edited.version)


@routes.add("DELETE", "/v1/admin/coupons/{coupon_id}", {204: None}, caller=operator(accounts.CATALOGUE))
async def remove_coupon(request: Request, coupon_id: str) -> Answer:
    """Issue nothing of a source any more, and hide it. What was issued stays usable."""
    if not await coupons.remove(request.house.stores, request.house.book, coupon_id=coupon_id):
        raise Refused(NotFound())
    return Answer(status=204)


def _check(plan: Plan) -> None:
    """Raise Refused for terms that do not fit to each other or to a calendar."""
    needed, unfit = (
        ("discount_amount", "discount_rate") if plan.type == "FIXED" else ("discount_rate", "discount_amount")
    )
    if getattr(plan, needed) is None:
        raise invalid(needed, f"Expected it with the type {plan.type}")
    for name in (unfit, "max_discount_amount") if plan.type == "FIXED" else (unfit,):
        if getattr(plan, name) is not None:
            raise invalid(name, f"Expected nothing with the type {plan.type}")
    for name in ("issue_from", "issue_to", "usable_from", "usable_to"):
        moment: datetime | None = getattr(plan, name)
        if moment is not None and not 2000 <= moment.year < 9000:
            raise invalid(name, "Expected the years 2000 to 8999")
    if plan.issue_from and plan.issue_to and plan.issue_to <= plan.issue_from:
        raise invalid("issue_to", "Expected it after issue_from")
    if plan.usable_to <= plan.usable_from:
        raise invalid("usable_to", "Expected it after usable_from")


# Documents ------------------------------------------------------------------------------------------------------------


async def _list(request: Request, query: Page, statuses: tuple[Status, ...]) -> list[Coupon]:
    return await coupons.list_coupons(
        request.house.postgres, statuses=statuses, before=moment_of(query.after(Place)), most=query.limit + 1
    )


def _places(found: Sequence[Coupon]) -> list[Place]:
    return [place_of(coupon.created_at, coupon.coupon_id) for coupon in found]


def _terms(terms: Terms) -> dict[str, Any]:
    return {
        "name": terms.name,
        "type": terms.type,
        "discount_amount": terms.discount_amount or UNSET,
        "discount_rate": terms.discount_rate or UNSET,
        "max_discount_amount": terms.max_discount_amount or UNSET,
        "minimum_spend": terms.minimum_spend or UNSET,
        "usable_from": rfc3339(terms.usable_from),
        "usable_to": rfc3339(terms.usable_to),
    }


def _told(coupon: Coupon) -> dict[str, Any]:
    return _terms(coupon) | {
        "coupon_id": coupon.coupon_id,
        "quantity": coupon.quantity,
        "initial_quantity": coupon.initial_quantity,
        "status": coupon.status,
        "issue_from": rfc3339(coupon.issue_from),
        "issue_to": rfc3339(coupon.issue_to),
    }


def _document(coupon: Coupon) -> CouponDocument:
    return CouponDocument(**_told(coupon))


def _operators_document(coupon: Coupon) -> OperatorsCoupon:
    return OperatorsCoupon(
        **_told(coupon),
        version=coupon.version,
        created_at=rfc3339(coupon.created_at),
        updated_at=rfc3339(coupon.updated_at),
    )


def _mine(mine: UserCoupon) -> UserCouponDocument:
    return UserCouponDocument(
        **_terms(mine),
        user_coupon_id=mine.user_coupon_id,
        coupon_id=mine.coupon_id,
        status=mine.status,
        order_id=mine.order_id or UNSET,
        reservation_id=mine.reservation_id or UNSET,
        created_at=rfc3339(mine.created_at),
        used_at=rfc3339(mine.used_at) if mine.used_at else UNSET,
    )
