"""Cancellations: give seats back, see what comes back; operators cancel for others, and call events off."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.operations import Body, Empty, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import Refused, invalid
from api.reservations import SeatNos
from engine import accounts, cancellations, seat_cancellations
from engine.cancellations import Cancellation, CancellationClosed, Refund
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.seat_cancellations import CallOff, Quote
from engine.seats import SEATS_MAX, PaymentRunning, SeatUnknown
from engine.stores.replies import SaleRebuilding

routes = Routes("Payments")

REFUSALS = (CancellationClosed, PaymentRunning, SeatUnknown, SaleRebuilding)
# How long a client may wait before it asks again how far an event that is off has come.
ASK_AGAIN_S = 1


class NewCancellation(Body, frozen=True):
    """The seats to give back, all of them when none is named, and where their money goes."""

    seats: SeatNos | UnsetType = UNSET
    refund_to: Annotated[
        Literal["SOURCE", "BALANCE"],
        Meta(
            description="SOURCE: the card as far as it paid, the balance with the rest. BALANCE: all of it, at once, "
            "but what the card has not paid yet."
        ),
    ] = "SOURCE"


class Named(msgspec.Struct, frozen=True):
    """Which seats are asked about."""

    seats: Annotated[
        str, Meta(max_length=SEATS_MAX * 21, description="Their numbers, separated by commas; without it all seats.")
    ] = ""

    @property
    def seat_nos(self) -> list[str]:
        """The seats that are named; raises Refused."""
        try:
            return msgspec.convert(self.seats.split(","), SeatNos) if self.seats else []
        except msgspec.ValidationError as fault:
            raise invalid("seats", f"Expected at most {SEATS_MAX} seat numbers, separated by commas") from fault


class QuoteDocument(Document, frozen=True, kw_only=True):
    """What cancelling now would pay back; the rule asks for so many hours before the start."""

    seats: list[str]
    amount: int
    kept: int
    percent: int
    policy_hours: int
    currency: str
    server_time: Time


class RefundDocument(Document, frozen=True, kw_only=True):
    """Money on its way back."""

    refund_id: str
    payment_id: str
    amount: int
    to: Annotated[str, Meta(extra_json_schema={"enum": ["BALANCE", "CARD"]})]
    status: Annotated[str, Meta(extra_json_schema={"enum": ["PENDING", "DONE", "FAILED"]})]
    reason: str
    currency: str
    created_at: Time
    done_at: Time | UnsetType = UNSET


class CancellationDocument(Document, frozen=True, kw_only=True):
    """Seats that were given back. `refund` is null where nothing was; a split one is in `refunds`, the card first."""

    cancellation_id: str
    reservation_id: str
    seats: list[str]
    reason: Annotated[str, Meta(extra_json_schema={"enum": ["USER", "ADMIN", "EVENT_CANCELLED"]})]
    amount: int
    kept: int
    refund: RefundDocument | None
    refunds: list[RefundDocument]
    currency: str
    created_at: Time


class CallOffDocument(Document, frozen=True, kw_only=True):
    """An event that is off: so many of its reservations are ended and refunded so far."""

    schedule_id: str
    total: int
    done: int
    created_at: Time
    finished_at: Time | UnsetType = UNSET


# Buyers ---------------------------------------------------------------------------------------------------------------


@routes.add(
    "GET",
    "/v1/reservations/{reservation_id}/cancellations/quote",
    {200: QuoteDocument},
    caller=USER,
    refusals=REFUSALS,
)
async def quote(request: Request, reservation_id: str, query: Named) -> Answer:
    """What cancelling these seats now would pay back."""
    house = request.house
    quoted = await seat_cancellations.quote(
        house.gate,
        house.postgres,
        house.book,
        reservation_id=reservation_id,
        user_id=request.caller_id,
        seat_nos=query.seat_nos,
    )
    if not isinstance(quoted, Quote):
        raise Refused(quoted)
    document = QuoteDocument(
        seats=list(quoted.seat_nos),
        amount=quoted.amount,
        kept=quoted.kept,
        percent=quoted.percent,
        policy_hours=quoted.policy_hours,
        currency=house.currency,
        server_time=rfc3339(house.clock.now_ms),
    )
    return answer(document)


@routes.add(
    "POST",
    "/v1/reservations/{reservation_id}/cancellations",
    {201: CancellationDocument},
    caller=USER,
    keyed=True,
    refusals=(*REFUSALS, IdempotencyKeyReused),
)
async def cancel(request: Request, reservation_id: str, body: NewCancellation) -> Answer:
    """Give back what was bought, whole or in part; the sale's policy says what is paid back."""
    return await _cancel(request, reservation_id, request.caller_id, body)


@routes.add(
    "POST",
    "/v1/admin/reservations/{reservation_id}/cancellations",
    {201: CancellationDocument},
    caller=operator(accounts.PAYMENTS),
    keyed=True,
    refusals=(*REFUSALS, IdempotencyKeyReused),
)
async def cancel_for_somebody(request: Request, reservation_id: str, body: NewCancellation) -> Answer:
    """Give back what somebody bought, at any time and refunded in full, whatever the policy says."""
    return await _cancel(request, reservation_id, None, body)


async def _cancel(request: Request, reservation_id: str, user_id: str | None, body: NewCancellation) -> Answer:
    house = request.house
    cancelled = await seat_cancellations.cancel(
        house.gate,
        house.postgres,
        house.book,
        cancellation_id=request.new_id(),
        reservation_id=reservation_id,
        user_id=user_id,
        seat_nos=body.seats or (),
        refund_to=body.refund_to,
    )
    if not isinstance(cancelled, Cancellation):
        raise Refused(cancelled)
    return answer(_cancellation(cancelled, reservation_id, house.currency), 201, repeated=cancelled.repeated)


@routes.add("GET", "/v1/refunds/{refund_id}", {200: RefundDocument}, caller=USER)
async def find_refund(request: Request, refund_id: str) -> Answer:
    """One of my refunds."""
    refund = await cancellations.find_refund(request.house.postgres, refund_id, request.caller_id)
    if refund is None:
        raise Refused(NotFound())
    return answer(refund_document(refund, request.house.currency))


@routes.add("GET", "/v1/refunds", {200: Listed[RefundDocument]}, caller=USER)
async def list_refunds(request: Request, query: Page) -> Answer:
    """My refunds, the newest first."""
    before = moment_of(query.after(Place))
    found = await cancellations.list_refunds(
        request.house.postgres,
        request.caller_id,
        limit=query.limit + 1,
        **({"before": before} if before else {}),
    )
    places = [place_of(refund.created_at, refund.refund_id) for refund in found]
    return answer(page_of([refund_document(refund, request.house.currency) for refund in found], places, query))


# Operators ------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/admin/schedules/{schedule_id}/cancellation",
    {202: CallOffDocument},
    caller=operator(accounts.SALES),
    keyed=True,
    sends=("Location", "Retry-After"),
)
async def call_off(request: Request, schedule_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """The event is off: its sale closes now, and everybody is refunded in full, a few at a time."""
    called_off = await seat_cancellations.call_off(request.house.stores, request.house.book, schedule_id=schedule_id)
    if not isinstance(called_off, CallOff):
        raise Refused(called_off)
    return answer(
        _call_off(called_off),
        202,
        repeated=called_off.repeated,
        location=f"/v1/admin/schedules/{schedule_id}/cancellation",
        retry_after_s=ASK_AGAIN_S,
    )


@routes.add(
    "GET",
    "/v1/admin/schedules/{schedule_id}/cancellation",
    {200: CallOffDocument},
    caller=operator(accounts.SALES),
)
async def find_call_off(request: Request, schedule_id: str) -> Answer:
    """How far an event that is off has come."""
    called_off = await seat_cancellations.find_call_off(request.house.postgres, schedule_id)
    if called_off is None:
        raise Refused(NotFound())
    return answer(_call_off(called_off))


# Documents ------------------------------------------------------------------------------------------------------------


def _cancellation(cancelled: Cancellation, reservation_id: str, currency: str) -> CancellationDocument:
    refunds = [refund_document(refund, currency) for refund in cancelled.refunds]
    return CancellationDocument(
        cancellation_id=cancelled.cancellation_id,
        reservation_id=reservation_id,
        seats=list(cancelled.seat_nos),
        reason=cancelled.reason,
        amount=cancelled.refund_amount,
        kept=cancelled.kept_amount,
        refund=refunds[0] if refunds else None,
        refunds=refunds,
        currency=currency,
        created_at=rfc3339(cancelled.created_at),
    )


def refund_document(refund: Refund, currency: str) -> RefundDocument:
    """A refund as its buyer is told of it."""
    return RefundDocument(
        refund_id=refund.refund_id,
        payment_id=refund.payment_id,
        amount=refund.amount,
        to=refund.refund_to,
        status=refund.status,
        reason=refund.reason,
        currency=currency,
        created_at=rfc3339(refund.created_at),
        done_at=rfc3339(refund.done_at) if refund.done_at else UNSET,
    )


def _call_off(called_off: CallOff) -> CallOffDocument:
    return CallOffDocument(
        schedule_id=called_off.schedule_id,
        total=called_off.total,
        done=called_off.done,
        created_at=rfc3339(called_off.created_at),
        finished_at=rfc3339(called_off.finished_at) if called_off.finished_at else UNSET,
    )
