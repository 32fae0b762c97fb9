"""Orders: order goods, all lines or none, give them back, see what became of them and what is owned."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from api import problems
from api.answers import Answer, Document, answer
from api.bodies import whole
from api.callers import USER
from api.clock import Time, rfc3339
from api.operations import Body, Empty, Request, Routes
from api.pages import Listed, Number, Page, Place, moment_of, page_of, place_of
from api.problems import NotSignedIn, OtherSize, Refused, Shortage, UnitsSoldOut
from api.reservations import RunningPayment
from api.shards import in_shard
from api.waiting_room import QUEUE_TOKEN, place_in_line
from engine import carts, ids, order_cancellations, orders, stock
from engine.cancellations import Cancellation, CancellationClosed
from engine.carts import QUANTITY_MAX, CartEmpty, Checkout, MixedSales
from engine.orders import Item, Order
from engine.products import VariantLabel
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale
from engine.seats import (
    Extended,
    ExtensionSpent,
    HoldEnded,
    HoldKnown,
    NotAdmitted,
    PaymentRunning,
    SaleNotOpen,
)
from engine.stock import LINES_MAX, AmountTooLarge, Units, UnitUnknown
from engine.stores.replies import SaleRebuilding

routes = Routes("Goods")

Id = Annotated[str, Meta(pattern=whole("[0-9a-f]{32}"))]
Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class OrderLine(Body, frozen=True):
    """So many units of a variant."""

    variant_id: Id
    quantity: Quantity


OrderLines = Annotated[list[OrderLine], Meta(min_length=1, max_length=LINES_MAX)]


class NewOrder(Body, frozen=True):
    """What to order, all of it or nothing: lines, or what is in the cart; of several sales, what one of them sells."""

    lines: OrderLines | UnsetType = UNSET
    from_cart: Literal[True] | UnsetType = UNSET
    sale_id: Id | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse an order that is told twice or not at all."""
        if (self.lines is UNSET) == (self.from_cart is UNSET):
            raise ValueError("Expected either `lines` or `from_cart`")
        if self.sale_id is not UNSET and self.from_cart is UNSET:
            raise ValueError("Expected `sale_id` with `from_cart`, and only there")


class GivenBack(Body, frozen=True):
    """The units to give back."""

    lines: OrderLines


class OrderItem(Document, frozen=True, kw_only=True):
    """One line of an order; its total is its units at their price less its share of the discount."""

    variant_id: str
    product_id: str
    name: str
    size: str | None
    quantity: int
    unit_price: int
    discount_amount: int
    total_price: int
    refunded_quantity: int | UnsetType = UNSET


class OrderDocument(Document, frozen=True, kw_only=True):
    """An order as it stands; from `expires_at` on an unpaid one has ended."""

    order_id: str
    sale_id: str
    status: Annotated[
        str,
        Meta(extra_json_schema={"enum": ["PENDING", "PAID", "PARTIALLY_REFUNDED", "REFUNDED", "EXPIRED", "CANCELLED"]}),
    ]
    reason: str | UnsetType = UNSET
    items: list[OrderItem]
    original_amount: int
    discount_amount: int
    total_amount: int
    user_coupon_id: str | UnsetType = UNSET
    currency: str
    created_at: Time
    # Null once it is paid.
    expires_at: Time | None
    paid_at: Time | UnsetType = UNSET
    payment: RunningPayment | UnsetType = UNSET
    version: int
    server_time: Time


class OwnedItem(Document, frozen=True, kw_only=True):
    """A unit that I own, or gave back."""

    item_id: str
    order_id: str
    product_id: str
    variant_id: str
    name: str
    size: str | None
    returned_at: Time | UnsetType = UNSET
    created_at: Time


# Order ----------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/orders",
    {201: OrderDocument},
    caller=USER,
    keyed=True,
    reads=(QUEUE_TOKEN,),
    refusals=(
        UnitUnknown,
        UnitsSoldOut,
        LimitReached,
        AmountTooLarge,
        MixedSales,
        CartEmpty,
        problems.NotAdmitted,
        SaleNotOpen,
        SaleClosed,
        IdempotencyKeyReused,
        SlowDown,
        Busy,
        SaleRebuilding,
    ),
)
async def order(request: Request, body: NewOrder) -> Answer:
    """Order goods of one sale, all lines or none, and hold them until `expires_at`."""
    if body.lines is not UNSET:
        return await _order_lines(request, [Units(line.variant_id, line.quantity) for line in body.lines])
    house = request.house
    taken = await carts.check_out(
        house.postgres,
        checkout_id=request.new_id(),
        user_id=request.caller_id,
        sale_id=body.sale_id or None,
    )
    if taken is None:
        raise Refused(NotSignedIn())
    if not isinstance(taken, Checkout):
        raise Refused(taken)
    try:
        units = [Units(*line) for line in taken.lines]
        labels = await house.labels.find([each.variant_id for each in units])
        answered = await _hold(request, taken.sale_id, taken.order_id, units, labels)
    except Refused as refused:
        # What is away for a moment may have held it for an earlier request with this key; and a token that is refused
        # says nothing of what that request has held.
        if not getattr(refused.refusal, "temporary", False) and await _is_unheld(request, taken):
            await carts.call_back(house.postgres, taken.checkout_id)
        raise
    await carts.finish(house.postgres, [taken.order_id])
    return answered


async def _is_unheld(request: Request, taken: Checkout) -> bool:
    sale = await request.sale(taken.sale_id)
    return isinstance(await stock.find(request.house.gate, sale, hold_id=taken.order_id), NotFound)


async def _order_lines(request: Request, units: Sequence[Units]) -> Answer:
    labels = await request.house.labels.find([each.variant_id for each in units])
    if unknown := tuple([each.variant_id for each in units if each.variant_id not in labels]):
        raise Refused(UnitUnknown(unknown))
    sale_ids = {label.sale_id for label in labels.values()}
    if len(sale_ids) > 1:
        raise Refused(MixedSales(carts.group((variant_id, label.sale_id) for variant_id, label in labels.items())))
    (sale_id,) = sale_ids
    order_id = ids.derive_in(sale_id, request.caller_id, request.method, request.path, request.key)
    return await _hold(request, sale_id, order_id, units, labels)


async def _hold(
    request: Request, sale_id: str, order_id: str, units: Sequence[Units], labels: Mapping[str, VariantLabel]
) -> Answer:
    house = request.house
    sale = await request.sale(sale_id)
    held = await stock.hold(
        house.gate,
        sale,
        hold_id=order_id,
        buyer_id=request.caller_id,
        fingerprint=ids.fingerprint(*sorted(each.told for each in units)),
        units=units,
        queue_no=await place_in_line(request, sale),
    )
    match held:
        case stock.Held():
            items = orders.items_of(labels, held.lines, "HELD")
            return answer(_held(held, sale, order_id, items, house.currency), 201, version=1)
        case HoldKnown():
            return await _answer(request, order_id, 201, repeated=True)
        case NotAdmitted():
            raise Refused(problems.not_admitted(sale.sale_id))
        case stock.SoldOut():
            raise Refused(await _sold_out(request, sale, held))
        case refusal:
            raise Refused(refusal)


async def _sold_out(request: Request, sale: Sale, refusal: stock.SoldOut) -> UnitsSoldOut:
    """Every line that falls short, with what is left of the other sizes."""
    labels = await request.house.labels.find([line.variant_id for line in refusal.lines])
    others = sorted({variant_id for label in labels.values() for variant_id, _ in label.siblings})
    left = await stock.left(request.house.gate, sale, others[:LINES_MAX])
    known = left if isinstance(left, dict) else {}
    return UnitsSoldOut(
        tuple(
            [
                Shortage(
                    line.requested,
                    line.available,
                    variant_id=line.variant_id,
                    other_sizes=_others(line.variant_id, labels, known),
                )
                for line in refusal.lines
            ]
        )
    )


def _others(variant_id: str, labels: dict[str, VariantLabel], left: dict[str, int]) -> tuple[OtherSize, ...]:
    siblings = labels[variant_id].siblings if variant_id in labels else ()
    return tuple(
        [OtherSize(other, size, left[other]) for other, size in siblings if left.get(other) and other != variant_id]
    )


# What a buyer does with it --------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/orders/{order_id}/extension",
    {200: OrderDocument},
    caller=USER,
    keyed=True,
    refusals=(ExtensionSpent, HoldEnded, PaymentRunning, IdempotencyKeyReused, SaleRebuilding),
)
async def extend(request: Request, order_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Hold the goods longer."""
    extended = await in_shard(
        request,
        "stock",
        order_id,
        lambda sale: stock.extend(
            request.house.gate,
            sale,
            hold_id=order_id,
            buyer_id=request.caller_id,
            extension_id=request.new_id(),
            fingerprint=ids.fingerprint("extension"),
        ),
    )
    if not isinstance(extended, Extended):
        raise Refused(extended)
    return await _answer(request, order_id, repeated=extended.repeated == 1)


@routes.add(
    "POST",
    "/v1/orders/{order_id}/releases",
    {200: OrderDocument},
    caller=USER,
    keyed=True,
    refusals=(UnitUnknown, HoldEnded, PaymentRunning, SlowDown, IdempotencyKeyReused, SaleRebuilding),
)
async def release(request: Request, order_id: str, body: GivenBack) -> Answer:
    """Give back some of the units, or all."""
    units = [Units(line.variant_id, line.quantity) for line in body.lines]
    released = await _release(request, order_id, request.new_id(), units)
    if not isinstance(released, stock.Released):
        raise Refused(released)
    return await _answer(request, order_id, repeated=released.repeated == 1)


@routes.add(
    "DELETE",
    "/v1/orders/{order_id}",
    {200: OrderDocument},
    caller=USER,
    refusals=(PaymentRunning, CancellationClosed, SaleRebuilding),
)
async def give_up(request: Request, order_id: str) -> Answer:
    """Give all units back; what is paid is refunded by the sale's policy. Harmless to repeat."""
    release_id = ids.derive(request.caller_id, request.method, request.path)
    released = await _release(request, order_id, release_id, ())
    if isinstance(released, stock.Released):
        return await _answer(request, order_id)
    if isinstance(released, HoldEnded | NotFound | PaymentRunning):
        # Redis forgets and Postgres does not: the row says whether it was bought, given up, or never there.
        found = await _find(request, order_id)
        if found.status in {"PAID", "PARTIALLY_REFUNDED"}:
            house = request.house
            cancelled = await order_cancellations.cancel(
                house.gate,
                house.postgres,
                house.book,
                cancellation_id=release_id,
                order_id=order_id,
                user_id=request.caller_id,
            )
            if not isinstance(cancelled, Cancellation) and cancelled != CancellationClosed(reason="ENDED"):
                raise Refused(cancelled)
            return await _answer(request, order_id)
        if found.status in {"EXPIRED", "CANCELLED", "REFUNDED"}:
            return answer(_document(found, request.house.currency), version=found.version)
        released = PaymentRunning(payment_id=found.payment_id or "")
    raise Refused(released)


async def _release(request: Request, order_id: str, release_id: str, units: Sequence[Units]) -> stock.ReleasedAnswer:
    return await in_shard(
        request,
        "stock",
        order_id,
        lambda sale: stock.release(
            request.house.gate,
            sale,
            hold_id=order_id,
            buyer_id=request.caller_id,
            release_id=release_id,
            fingerprint=ids.fingerprint(*sorted(each.told for each in units)),
            units=units,
        ),
    )


# Look -----------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/v1/orders/{order_id}", {200: OrderDocument}, caller=USER, refusals=(SaleRebuilding,))
async def find(request: Request, order_id: str) -> Answer:
    """One of my orders, from the moment on it was answered."""
    return await _answer(request, order_id)


@routes.add("GET", "/v1/orders", {200: Listed[OrderDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """My orders, the newest first."""
    before = moment_of(query.after(Place))
    found = await orders.list_mine(
        request.house.postgres, request.caller_id, limit=query.limit + 1, **({"before": before} if before else {})
    )
    places = [place_of(each.created_at, each.order_id) for each in found]
    return answer(page_of([_document(each, request.house.currency) for each in found], places, query))


@routes.add("GET", "/v1/items", {200: Listed[OwnedItem]}, caller=USER)
async def list_items(request: Request, query: Page) -> Answer:
    """What I own, one row a unit, the newest first."""
    before = query.after(Number)
    found = await orders.list_items(
        request.house.postgres, request.caller_id, limit=query.limit + 1, **({"before": before} if before else {})
    )
    items = [
        OwnedItem(
            item_id=str(item.item_id),
            order_id=item.order_id,
            product_id=item.product_id,
            variant_id=item.variant_id,
            name=item.name,
            size=item.size,
            returned_at=rfc3339(item.returned_at) if item.returned_at else UNSET,
            created_at=rfc3339(item.created_at),
        )
        for item in found
    ]
    return answer(page_of(items, [item.item_id for item in found], query))


async def _find(request: Request, order_id: str) -> Order:
    house = request.house
    found = await orders.find(
        house.gate, house.postgres, house.book, house.labels, order_id=order_id, user_id=request.caller_id
    )
    if not isinstance(found, Order):
        raise Refused(found or NotFound())
    return found


async def _answer(request: Request, order_id: str, status: int = 200, *, repeated: bool = False) -> Answer:
    found = await _find(request, order_id)
    return answer(_document(found, request.house.currency), status, version=found.version, repeated=repeated)


def _items(lines: Sequence[Item]) -> list[OrderItem]:
    return [
        OrderItem(
            variant_id=line.variant_id,
            product_id=line.product_id,
            name=line.name,
            size=line.size,
            quantity=line.quantity,
            unit_price=line.unit_price,
            discount_amount=line.discount_amount,
            total_price=line.total_price,
            refunded_quantity=line.refunded_quantity or UNSET,
        )
        for line in lines
    ]


def _held(held: stock.Held, sale: Sale, order_id: str, items: Sequence[Item], currency: str) -> OrderDocument:
    """What was just held, without asking again."""
    created_at = rfc3339(held.created_at_ms)
    return OrderDocument(
        order_id=order_id,
        sale_id=sale.sale_id,
        status="PENDING",
        items=_items(items),
        original_amount=held.amount,
        discount_amount=0,
        total_amount=held.amount,
        currency=currency,
        created_at=created_at,
        expires_at=rfc3339(held.expires_at_ms),
        version=1,
        server_time=created_at,
    )


def _document(found: Order, currency: str) -> OrderDocument:
    return OrderDocument(
        order_id=found.order_id,
        sale_id=found.sale_id,
        status=found.status,
        reason=found.reason or UNSET,
        items=_items(found.lines),
        original_amount=found.original_amount,
        discount_amount=found.discount_amount,
        total_amount=found.total_amount,
        user_coupon_id=found.user_coupon_id or UNSET,
        currency=currency,
        created_at=rfc3339(found.created_at),
        expires_at=None if found.paid_at else rfc3339(found.expires_at),
        paid_at=rfc3339(found.paid_at) if found.paid_at else UNSET,
        payment=RunningPayment(payment_id=found.payment_id) if found.payment_id else UNSET,
        version=found.version,
        server_time=rfc3339(found.server_time),
    )
