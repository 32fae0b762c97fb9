"""Payments: pay a reservation or an order, see how payments stand."""

import logging
from collections.abc import Sequence
from typing import Annotated, Literal

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.bodies import whole
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.house import House
from api.late_payments import LateDocument, late_of
from api.operations import Body, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.payment_methods import ASK_AGAIN_S, CARD_DEADLINE_S, Action, Card, ReturnUrl
from api.problems import Refused, invalid
from api.shards import in_shard
from engine import accounts, coupons, ids, late_payments, payments, resolutions, wares
from engine.cards import is_asked
from engine.catalogue import PRICE_MAX
from engine.late_payments import LatePayment
from engine.payments import CardDeclined, CouponPending, CouponUnusable, InsufficientBalance, Payment, State, Tender
from engine.refusals import Busy, IdempotencyKeyReused, NotFound, SlowDown
from engine.resolutions import NotInDoubt, Resolution, StillInDoubt
from engine.seats import HoldEnded, PaymentRunning
from engine.stores.outbox import BadEntry, Divergence
from engine.stores.replies import Refusal, SaleRebuilding

logger = logging.getLogger(__name__)

routes = Routes("Payments")

Id = Annotated[str, Meta(pattern=whole("[0-9a-f]{32}"))]

STATUS = {"enum": ["PENDING", "SUCCESS", "FAILED", "PARTIALLY_REFUNDED", "REFUNDED"]}


class NewPayment(Body, frozen=True):
    """How to pay: from the balance, by card, or split, with `balance_amount` from the balance and the rest by card."""

    method: Literal["BALANCE", "CARD", "SPLIT"]
    balance_amount: Annotated[int, Meta(ge=1, le=PRICE_MAX)] | UnsetType = UNSET
    card: Card | UnsetType = UNSET
    return_url: ReturnUrl | UnsetType = UNSET
    user_coupon_id: Id | UnsetType = UNSET

    def tender(self) -> Tender:
        """What the till is told; raises Refused for a method without what it needs, or with what it does not."""
        for name, methods in (("card", ("CARD", "SPLIT")), ("balance_amount", ("SPLIT",))):
            if (getattr(self, name) is not UNSET) != (self.method in methods):
                verb = "Expected it" if self.method in methods else "Expected nothing"
                raise invalid(name, f"{verb} with the method {self.method}")
        if self.return_url is not UNSET and self.card is UNSET:
            raise invalid("return_url", f"Expected nothing with the method {self.method}")
        return Tender(
            method=self.method,
            balance_amount=self.balance_amount or 0,
            payment_method_id=self.card.payment_method_id if self.card else None,
            return_url=self.return_url or None,
        )


class Parts(Document, frozen=True):
    """The two legs of a split payment."""

    balance: int
    card: int


class PaymentDocument(Document, frozen=True, kw_only=True):
    """A payment as it stands."""

    payment_id: str
    # What it pays: one of the two.
    reservation_id: str | UnsetType = UNSET
    order_id: str | UnsetType = UNSET
    user_id: str
    user_coupon_id: str | UnsetType = UNSET
    method: str
    status: Annotated[str, Meta(extra_json_schema=STATUS)]
    reason: str | UnsetType = UNSET
    original_amount: int
    discount_amount: int
    final_amount: int
    refunded_amount: int
    parts: Parts | UnsetType = UNSET
    currency: str
    created_at: Time
    paid_at: Time | UnsetType = UNSET
    action: Action | UnsetType = UNSET
    # Only of one that had ended when its card paid after all.
    late: LateDocument | UnsetType = UNSET
    version: int
    server_time: Time


class OperatorsPayment(PaymentDocument, frozen=True, kw_only=True):
    """A payment with its inner state."""

    state: str


class NewResolution(Body, frozen=True, rename={"as_": "as"}):
    """What became of a payment in doubt, and how its operator knows."""

    as_: Literal["AUTHORISED", "FAILED"]
    note: Annotated[str, Meta(min_length=1, max_length=1000, pattern=whole(r"[^\x00]+"))]


class InState(Page, frozen=True, kw_only=True):
    """Payments in which inner state."""

    state: State = "IN_DOUBT"


REFUSALS = (
    InsufficientBalance,
    CardDeclined,
    CouponUnusable,
    CouponPending,
    HoldEnded,
    PaymentRunning,
    IdempotencyKeyReused,
    SlowDown,
    SaleRebuilding,
)


@routes.add(
    "POST",
    "/v1/reservations/{reservation_id}/payments",
    {201: PaymentDocument, 202: PaymentDocument},
    caller=USER,
    keyed=True,
    sends=("Location", "Retry-After"),
    refusals=REFUSALS,
    deadline_s=CARD_DEADLINE_S,
)
async def pay(request: Request, reservation_id: str, body: NewPayment) -> Answer:
    """Pay for the seats: 201 once it is durable, 202 with its address while that is not known."""
    return await _pay(request, "seats", reservation_id, body)


@routes.add(
    "POST",
    "/v1/orders/{order_id}/payments",
    {201: PaymentDocument, 202: PaymentDocument},
    caller=USER,
    keyed=True,
    sends=("Location", "Retry-After"),
    refusals=REFUSALS,
    deadline_s=CARD_DEADLINE_S,
)
async def pay_order(request: Request, order_id: str, body: NewPayment) -> Answer:
    """Pay for the goods: 201 once it is durable, 202 with its address while that is not known."""
    return await _pay(request, "stock", order_id, body)


async def _pay(request: Request, kind: str, hold_id: str, body: NewPayment) -> Answer:
    tender = body.tender()
    if body.method != "BALANCE" and request.house.gateway is None:
        raise invalid("method", "Expected BALANCE: this installation has no card gateway")
    house, user_coupon_id = request.house, body.user_coupon_id or None
    if user_coupon_id is not None and await coupons.is_on_its_way(
        house.gate, house.postgres, house.book, user_coupon_id=user_coupon_id, user_id=request.caller_id
    ):
        raise Refused(CouponPending())
    payment_id = request.new_id()
    paid = await in_shard(
        request,
        kind,
        hold_id,
        lambda sale: request.house.till.pay(
            sale,
            payment_id=payment_id,
            hold_id=hold_id,
            user_id=request.caller_id,
            fingerprint=_fingerprint(tender, user_coupon_id),
            tender=tender,
            user_coupon_id=user_coupon_id,
        ),
    )
    if not isinstance(paid, Payment):
        raise Refused(paid)
    refusal = payments.refusal_of(paid)
    if isinstance(refusal, CardDeclined):
        raise Refused(await _with_deadline(request, paid, refusal))
    if refusal is not None:
        raise Refused(refusal)
    document = _document(paid, request.house)
    if document.status == "PENDING":
        location = f"/v1/payments/{payment_id}"
        return answer(
            document,
            202,
            version=paid.version,
            location=location,
            retry_after_s=ASK_AGAIN_S,
            repeated=paid.repeated,
        )
    return answer(document, 201, version=paid.version, repeated=paid.repeated)


@routes.add("GET", "/v1/payments/{payment_id}", {200: PaymentDocument}, caller=USER)
async def find(request: Request, payment_id: str) -> Answer:
    """One of my payments."""
    payment = await payments.find(request.house.postgres, payment_id, request.caller_id)
    if payment is None:
        raise Refused(NotFound())
    if is_asked(payment):
        # The buyer may have come back from their bank just now: the gateway knows.
        sale = await request.house.book.find(payment.sale_id)
        if sale is not None:
            payment = await request.house.till.go_on(sale, payment)
    late = await _find_late(request.house, [payment])
    return answer(_document(payment, request.house, late.get(payment_id)), version=payment.version)


@routes.add("GET", "/v1/payments", {200: Listed[PaymentDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """My payments, the newest first."""
    before = moment_of(query.after(Place))
    found = await payments.list_mine(
        request.house.postgres,
        request.caller_id,
        limit=query.limit + 1,
        **({"before": before} if before else {}),
    )
    places = [place_of(payment.created_at, payment.payment_id) for payment in found]
    late = await _find_late(request.house, found)
    items = [_document(payment, request.house, late.get(payment.payment_id)) for payment in found]
    return answer(page_of(items, places, query))


@routes.add("GET", "/v1/admin/payments", {200: Listed[OperatorsPayment]}, caller=operator(accounts.PAYMENTS))
async def list_in_state(request: Request, query: InState) -> Answer:
    """Payments in one inner state, the newest first: IN_DOUBT are those somebody must decide."""
    before = moment_of(query.after(Place))
    found = await payments.list_in_state(
        request.house.postgres,
        query.state,
        limit=query.limit + 1,
        **({"before": before} if before else {}),
    )
    items = [_operators(payment, request.house) for payment in found]
    return answer(page_of(items, [place_of(payment.created_at, payment.payment_id) for payment in found], query))


async def _find_late(house: House, found: Sequence[Payment]) -> dict[str, LatePayment]:
    """What became of money that came late for these payments; only one by card can have any."""
    ended = [payment.payment_id for payment in found if payment.public_status == "FAILED" and payment.card_amount > 0]
    return await late_payments.find_of(house.postgres, ended)


async def _with_deadline(request: Request, payment: Payment, refusal: CardDeclined) -> CardDeclined:
    """Say until when the buyer may try another card, while the hold stands."""
    sale = await request.house.book.find(payment.sale_id)
    hold = await wares.of(sale).scripts.find(request.house.gate, sale, hold_id=payment.hold_id) if sale else None
    if hold is None or isinstance(hold, Refusal) or hold.state != "HELD":
        return refusal
    return msgspec.structs.replace(refusal, expires_at_ms=hold.expires_at_ms)


@routes.add(
    "POST",
    "/v1/admin/payments/{payment_id}/resolution",
    {200: OperatorsPayment},
    caller=operator(accounts.PAYMENTS),
    keyed=True,
    refusals=(NotInDoubt, StillInDoubt, IdempotencyKeyReused, Busy),
    deadline_s=CARD_DEADLINE_S,
)
async def resolve(request: Request, payment_id: str, body: NewResolution) -> Answer:
    """Decide a payment in doubt, for good.

    AUTHORISED: what waits for it is done. FAILED: it is voided, its funds are free, and its seats are given back.
    """
    house = request.house
    resolution = Resolution(
        resolution_id=request.new_id(),
        payment_id=payment_id,
        word=body.as_,
        note=body.note,
        api_key_id=request.caller_id,
    )
    try:
        resolved = await resolutions.resolve(house.postgres, house.book, house.cards, resolution)
    except (Divergence, BadEntry, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as fault:
        # What stood in the fact's way still does.
        logger.warning("payment %s cannot be taken for authorised: %s", payment_id, fault)
        raise Refused(StillInDoubt()) from fault
    if not isinstance(resolved, tuple):
        raise Refused(resolved)
    payment, repeated = resolved
    logger.info("payment %s was resolved as %s by %s: %r", payment_id, body.as_, request.caller_name, body.note)
    return answer(_operators(payment, house), version=payment.version, repeated=repeated)


def _operators(payment: Payment, house: House) -> OperatorsPayment:
    return OperatorsPayment(**msgspec.structs.asdict(_document(payment, house)), state=payment.status)


def _fingerprint(tender: Tender, user_coupon_id: str | None) -> str:
    """What a payment's key asked for: a repeat that asks for anything else is told so."""
    return ids.fingerprint(
        tender.method,
        str(tender.balance_amount),
        tender.payment_method_id or "",
        tender.return_url or "",
        user_coupon_id or "",
    )


def _document(payment: Payment, house: House, late: LatePayment | None = None) -> PaymentDocument:
    return PaymentDocument(
        payment_id=payment.payment_id,
        reservation_id=payment.reservation_id or UNSET,
        order_id=payment.order_id or UNSET,
        user_id=payment.user_id,
        user_coupon_id=payment.user_coupon_id or UNSET,
        method=payment.method,
        status=payment.public_status,
        reason=payment.reason or UNSET,
        original_amount=payment.original_amount,
        discount_amount=payment.discount_amount,
        final_amount=payment.final_amount,
        refunded_amount=payment.refunded_amount,
        parts=Parts(payment.balance_amount, payment.card_amount) if payment.method == "SPLIT" else UNSET,
        currency=house.currency,
        created_at=rfc3339(payment.created_at),
        paid_at=rfc3339(payment.paid_at) if payment.paid_at else UNSET,
        action=Action("REDIRECT", payment.action_url) if payment.action_url else UNSET,
        late=late_of(late) if late else UNSET,
        version=payment.version,
        server_time=rfc3339(house.clock.now_ms),
    )
