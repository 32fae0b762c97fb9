"""Order cancellations: give goods back, whole or in part, see what would come back; operators do so for others."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.cancellations import RefundDocument, refund_document
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.orders import OrderLine, OrderLines
from api.problems import Refused, invalid
from engine import accounts, order_cancellations
from engine.cancellations import Cancellation, CancellationClosed
from engine.order_cancellations import Quote
from engine.refusals import IdempotencyKeyReused
from engine.seats import PaymentRunning
from engine.stock import LINES_MAX, Units, UnitUnknown
from engine.stores.replies import SaleRebuilding

routes = Routes("Payments")

REFUSALS = (CancellationClosed, PaymentRunning, UnitUnknown, SaleRebuilding)

_NAMED = re.compile(r"([^:]+):(\d{1,10})")


class NewOrderCancellation(Body, frozen=True):
    """The units to give back, all that are left when none is named, and where their money goes."""

    lines: OrderLines | UnsetType = UNSET
    refund_to: Annotated[
        Literal["SOURCE", "BALANCE"],
        Meta(
            description="SOURCE: the card as far as it paid, the balance with the rest. BALANCE: all of it, at once, "
            "but what the card has not paid yet."
        ),
    ] = "SOURCE"


class NamedUnits(msgspec.Struct, frozen=True):
    """Which units are asked about."""

    lines: Annotated[
        str,
        Meta(max_length=LINES_MAX * 44, description="`variant_id:quantity`, separated by commas; without it all."),
    ] = ""

    @property
    def units(self) -> list[Units]:
        """The units that are named; raises Refused."""
        if not self.lines:
            return []
        named = [_NAMED.fullmatch(line) for line in self.lines.split(",")]
        told = [{"variant_id": line[1], "quantity": int(line[2])} if line else None for line in named]
        try:
            lines = msgspec.convert(told, OrderLines)
        except msgspec.ValidationError as fault:
            expected = f"Expected at most {LINES_MAX} of variant_id:quantity, separated by commas"
            raise invalid("lines", expected) from fault
        return _units(lines)


class ReturnedLine(Document, frozen=True):
    """So many units of a variant."""

    variant_id: str
    quantity: int


class OrderQuoteDocument(Document, frozen=True, kw_only=True):
    """What cancelling now would pay back; `policy_hours` is null where the sale has no policy, so all of it is."""

    lines: list[ReturnedLine]
    amount: int
    kept: int
    percent: int
    policy_hours: int | None
    currency: str
    server_time: Time


class OrderCancellationDocument(Document, frozen=True, kw_only=True):
    """Units that were given back. `refund` is null where nothing was; a split one is in `refunds`, the card first."""

    cancellation_id: str
    order_id: str
    lines: list[ReturnedLine]
    reason: Annotated[str, Meta(extra_json_schema={"enum": ["USER", "ADMIN"]})]
    amount: int
    kept: int
    refund: RefundDocument | None
    refunds: list[RefundDocument]
    currency: str
    created_at: Time


@routes.add(
    "GET",
    "/v1/orders/{order_id}/cancellations/quote",
    {200: OrderQuoteDocument},
    caller=USER,
    refusals=REFUSALS,
)
async def quote(request: Request, order_id: str, query: NamedUnits) -> Answer:
    """What cancelling these units now would pay back."""
    house = request.house
    quoted = await order_cancellations.quote(
        house.gate,
        house.postgres,
        house.book,
        order_id=order_id,
        user_id=request.caller_id,
        units=query.units,
    )
    if not isinstance(quoted, Quote):
        raise Refused(quoted)
    document = OrderQuoteDocument(
        lines=[ReturnedLine(each.variant_id, each.quantity) for each in quoted.units],
        amount=quoted.amount,
        kept=quoted.kept,
        percent=quoted.rule.percent if quoted.rule else 100,
        policy_hours=quoted.rule.hours_before if quoted.rule else None,
        currency=house.currency,
        server_time=rfc3339(house.clock.now_ms),
    )
    return answer(document)


@routes.add(
    "POST",
    "/v1/orders/{order_id}/cancellations",
    {201: OrderCancellationDocument},
    caller=USER,
    keyed=True,
    refusals=(*REFUSALS, IdempotencyKeyReused),
)
async def cancel(request: Request, order_id: str, body: NewOrderCancellation) -> Answer:
    """Give back goods that were paid, whole or in part; the sale's policy says what is paid back."""
    return await _cancel(request, order_id, request.caller_id, body)


@routes.add(
    "POST",
    "/v1/admin/orders/{order_id}/cancellations",
    {201: OrderCancellationDocument},
    caller=operator(accounts.PAYMENTS),
    keyed=True,
    refusals=(*REFUSALS, IdempotencyKeyReused),
)
async def cancel_for_somebody(request: Request, order_id: str, body: NewOrderCancellation) -> Answer:
    """Give back what somebody ordered, at any time and refunded in full, whatever the policy says."""
    return await _cancel(request, order_id, None, body)


async def _cancel(request: Request, order_id: str, user_id: str | None, body: NewOrderCancellation) -> Answer:
    house = request.house
    cancelled = await order_cancellations.cancel(
        house.gate,
        house.postgres,
        house.book,
        cancellation_id=request.new_id(),
        order_id=order_id,
        user_id=user_id,
        units=_units(body.lines or ()),
        refund_to=body.refund_to,
    )
    if not isinstance(cancelled, Cancellation):
        raise Refused(cancelled)
    refunds = [refund_document(refund, house.currency) for refund in cancelled.refunds]
    document = OrderCancellationDocument(
        cancellation_id=cancelled.cancellation_id,
        order_id=order_id,
        lines=[ReturnedLine(*line) for line in zip(cancelled.variant_ids, cancelled.quantities, strict=True)],
        reason=cancelled.reason,
        amount=cancelled.refund_amount,
        kept=cancelled.kept_amount,
        refund=refunds[0] if refunds else None,
        refunds=refunds,
        currency=house.currency,
        created_at=rfc3339(cancelled.created_at),
    )
    return answer(document, 201, repeated=cancelled.repeated)


def _units(lines: Sequence[OrderLine]) -> list[Units]:
    return [Units(line.variant_id, line.quantity) for line in lines]
