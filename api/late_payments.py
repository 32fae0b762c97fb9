"""Late payments: what became of money that a gateway reported for a payment that had ended."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, rfc3339
from api.operations import Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from engine import accounts, late_payments
from engine.late_payments import LatePayment

routes = Routes("Payments")

STATUS = {"enum": ["PENDING", "SOLD", "RETURNED"]}


class LateDocument(Document, frozen=True, kw_only=True):
    """What became of late money: SOLD names what it bought, RETURNED says why it went back."""

    status: Annotated[str, Meta(extra_json_schema=STATUS)]
    reason: str | UnsetType = UNSET
    payment_id: str | UnsetType = UNSET
    reservation_id: str | UnsetType = UNSET
    order_id: str | UnsetType = UNSET


class LatePaymentDocument(Document, frozen=True, kw_only=True):
    """Money that came late: for which payment, and what became of it."""

    gateway_ref: str
    payment_id: str
    user_id: str
    amount: int
    currency: str
    late: LateDocument
    created_at: Time
    done_at: Time | UnsetType = UNSET


@routes.add("GET", "/v1/admin/late-payments", {200: Listed[LatePaymentDocument]}, caller=operator(accounts.PAYMENTS))
async def list_newest(request: Request, query: Page) -> Answer:
    """Money that gateways reported for payments that had ended, the newest first."""
    before = moment_of(query.after(Place))
    found = await late_payments.list_newest(
        request.house.postgres, limit=query.limit + 1, **({"before": before} if before else {})
    )
    places = [place_of(late.created_at, late.new_payment_id) for late in found]
    return answer(page_of([_document(late, request.house.currency) for late in found], places, query))


def late_of(late: LatePayment) -> LateDocument:
    """What a buyer is told of it."""
    has_bought = late.status == "SOLD"
    return LateDocument(
        status=late.status,
        reason=late.reason or UNSET,
        payment_id=late.new_payment_id if has_bought else UNSET,
        reservation_id=late.new_hold_id if has_bought and not late.is_order else UNSET,
        order_id=late.new_hold_id if has_bought and late.is_order else UNSET,
    )


def _document(late: LatePayment, currency: str) -> LatePaymentDocument:
    return LatePaymentDocument(
        gateway_ref=late.gateway_ref,
        payment_id=late.payment_id,
        user_id=late.user_id,
        amount=late.amount,
        currency=currency,
        late=late_of(late),
        created_at=rfc3339(late.created_at),
        done_at=rfc3339(late.done_at) if late.done_at else UNSET,
    )
