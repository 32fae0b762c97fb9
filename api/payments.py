"""Payments: pay a reservation, see how payments stand."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.house import House
from api.operations import Body, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import Refused, invalid
from api.reservations import in_shard
from engine import accounts, ids, payments
from engine.payments import InsufficientBalance, Payment
from engine.refusals import IdempotencyKeyReused, NotFound, SlowDown
from engine.seats import HoldEnded, PaymentRunning
from engine.stores.replies import SaleRebuilding

routes = Routes("Payments")

STATUS = {"enum": ["PENDING", "SUCCESS", "FAILED", "PARTIALLY_REFUNDED", "REFUNDED"]}
# How long a client may wait before it asks how a payment went that was not durable in time.
ASK_AGAIN_S = 1


class NewPayment(Body, frozen=True):
    """How to pay; BALANCE is the method there is."""

    method: Annotated[str, Meta(max_length=20, extra_json_schema={"enum": ["BALANCE"]})]


class PaymentDocument(Document, frozen=True, kw_only=True):
    """A payment as it stands."""

    payment_id: str
    reservation_id: str
    user_id: str
    method: str
    status: Annotated[str, Meta(extra_json_schema=STATUS)]
    reason: str | UnsetType = UNSET
    original_amount: int
    discount_amount: int
    final_amount: int
    refunded_amount: int
    currency: str
    created_at: Time
    paid_at: Time | UnsetType = UNSET
    version: int
    server_time: Time


class OperatorsPayment(PaymentDocument, frozen=True, kw_only=True):
    """A payment with its inner state."""

    state: str


class InState(Page, frozen=True, kw_only=True):
    """Payments in which inner state."""

    state: Literal["PENDING", "AUTHORISED", "IN_DOUBT", "SUCCESS", "FAILED", "VOIDED", "UNCOLLECTED"] = "IN_DOUBT"


@routes.add(
    "POST",
    "/v1/reservations/{reservation_id}/payments",
    {201: PaymentDocument, 202: PaymentDocument},
    caller=USER,
    keyed=True,
    sends=("Location", "Retry-After"),
    refusals=(InsufficientBalance, HoldEnded, PaymentRunning, IdempotencyKeyReused, SlowDown, SaleRebuilding),
)
async def pay(request: Request, reservation_id: str, body: NewPayment) -> Answer:
    """Pay for the seats: 201 once it is durable, 202 with its address while that is not known."""
    if body.method != "BALANCE":
        raise invalid("method", "Expected BALANCE: no other method is available here")
    payment_id = request.new_id()
    paid = await in_shard(
        request,
        reservation_id,
        lambda sale: request.house.till.pay(
            sale,
            payment_id=payment_id,
            reservation_id=reservation_id,
            user_id=request.caller_id,
            fingerprint=ids.fingerprint(body.method),
        ),
    )
    if not isinstance(paid, Payment):
        raise Refused(paid)
    refusal = payments.refusal_of(paid)
    if refusal is not None:
        raise Refused(refusal)
    document = _document(paid, request.house)
    if document.status == "PENDING":
        location = f"/v1/payments/{payment_id}"
        return answer(document, 202, version=paid.version, location=location, retry_after_s=ASK_AGAIN_S)
    return answer(document, 201, version=paid.version)


@routes.add("GET", "/v1/payments/{payment_id}", {200: PaymentDocument}, caller=USER)
async def find(request: Request, payment_id: str) -> Answer:
    """One of my payments."""
    payment = await payments.find(request.house.postgres, payment_id, request.caller_id)
    if payment is None:
        raise Refused(NotFound())
    return answer(_document(payment, request.house), version=payment.version)


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
    return answer(page_of([_document(payment, request.house) for payment in found], places, query))


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
    items = [
        OperatorsPayment(**msgspec.structs.asdict(_document(payment, request.house)), state=payment.status)
        for payment in found
    ]
    return answer(page_of(items, [place_of(payment.created_at, payment.payment_id) for payment in found], query))


def _document(payment: Payment, house: House) -> PaymentDocument:
    return PaymentDocument(
        payment_id=payment.payment_id,
        reservation_id=payment.reservation_id,
        user_id=payment.user_id,
        method=payment.method,
        status=payment.public_status,
        reason=payment.reason or UNSET,
        original_amount=payment.original_amount,
        discount_amount=payment.discount_amount,
        final_amount=payment.final_amount,
        refunded_amount=payment.refunded_amount,
        currency=house.currency,
        created_at=rfc3339(payment.created_at),
        paid_at=rfc3339(payment.paid_at) if payment.paid_at else UNSET,
        version=payment.version,
        server_time=rfc3339(house.clock.now_ms),
    )
