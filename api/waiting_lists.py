"""Waiting lists: wait for seats or units that come back, see what one waits for, wait no more."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Number, Page, page_of
from api.problems import Refused, invalid
from api.reservations import Count, Name
from engine import seat_waiting_lists, variant_waiting_lists, waiting_lists
from engine.catalogue import PRICE_MAX
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound, SaleClosed
from engine.seat_waiting_lists import NeverFits
from engine.seats import OfferUnknown, PaymentRunning, SaleNotOpen
from engine.shelf import UnitWish, Wish
from engine.stores.replies import SaleRebuilding
from engine.variant_waiting_lists import QUANTITY_MAX
from engine.waiting_lists import Entry

routes = Routes("Tickets")
goods = Routes("Goods")

Status = Annotated[str, Meta(extra_json_schema={"enum": ["WAITING", "OFFERED", "TAKEN", "LAPSED", "LEFT"]})]
Reason = Annotated[str, Meta(extra_json_schema={"enum": ["USER", "EVENT_OVER", "EVENT_CANCELLED", "SALE_OVER"]})]


class NewEntry(Body, frozen=True):
    """So many seats, side by side unless `adjacent` is false; each of a category, of a section, no dearer than a price.

    With `accessible` one of them is an accessible one, else none is.
    """

    quantity: Count
    adjacent: bool = True
    category: Name | UnsetType = UNSET
    section: Annotated[Name, Meta(description="A section of seats, or an area.")] | UnsetType = UNSET
    price_max: Annotated[int, Meta(ge=0, le=PRICE_MAX, description="Of one seat.")] | UnsetType = UNSET
    accessible: bool = False

    @property
    def wish(self) -> Wish:
        """What the engine is asked for."""
        return Wish(
            quantity=self.quantity,
            adjacent=self.adjacent,
            category=self.category or None,
            section=self.section or None,
            price_max=None if self.price_max is UNSET else self.price_max,
            accessible=int(self.accessible),
        )


class NewUnitEntry(Body, frozen=True):
    """So many units, at once."""

    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class EntryDocument(Document, frozen=True, kw_only=True):
    """A place in a waiting list, and its wish: seats of a schedule, or units of a variant.

    From OFFERED on there is a reservation or an order, to be paid before it expires. `ahead` is how many wait before
    this one, for seats of the sale or for the same variant: it may be served earlier, with what is of no use to them.
    """

    entry_id: str
    schedule_id: str | UnsetType = UNSET
    variant_id: str | UnsetType = UNSET
    sale_id: str
    status: Status
    reason: Reason | UnsetType = UNSET
    ahead: int
    quantity: int
    adjacent: bool | UnsetType = UNSET
    category: str | UnsetType = UNSET
    section: str | UnsetType = UNSET
    price_max: int | UnsetType = UNSET
    accessible: bool | UnsetType = UNSET
    reservation_id: str | UnsetType = UNSET
    order_id: str | UnsetType = UNSET
    expires_at: Time | UnsetType = UNSET
    created_at: Time
    server_time: Time


@routes.add(
    "POST",
    "/v1/schedules/{schedule_id}/waiting-list",
    {201: EntryDocument},
    caller=USER,
    keyed=True,
    refusals=(OfferUnknown, LimitReached, SaleNotOpen, SaleClosed, SaleRebuilding, IdempotencyKeyReused),
)
async def join(request: Request, schedule_id: str, body: NewEntry) -> Answer:
    """Wait for seats that come back: they are offered to those who wait, in order of joining, before the public.

    An offer is a reservation of mine that needs no place in line.
    """
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    entry = await seat_waiting_lists.join(
        house.stores, house.book, sale, entry_id=request.new_id(), user_id=request.caller_id, wish=body.wish
    )
    if isinstance(entry, NeverFits):
        together = " side by side" if body.adjacent else ""
        raise invalid("quantity", f"Expected at most {entry.seats}: no more such seats are there{together}")
    if not isinstance(entry, Entry):
        raise Refused(entry)
    return answer(_document(entry, house.clock.now_ms), 201, repeated=entry.repeated)


@goods.add(
    "POST",
    "/v1/variants/{variant_id}/waiting-list",
    {201: EntryDocument},
    caller=USER,
    keyed=True,
    refusals=(LimitReached, SaleNotOpen, SaleClosed, SaleRebuilding, IdempotencyKeyReused),
)
async def join_for_units(request: Request, variant_id: str, body: NewUnitEntry) -> Answer:
    """Wait for units that come: they are offered to those who wait, in order of joining, before the public.

    An offer is an order of mine that needs no place in line.
    """
    house = request.house
    entry = await variant_waiting_lists.join(
        house.stores,
        house.book,
        entry_id=request.new_id(),
        user_id=request.caller_id,
        wish=UnitWish(variant_id=variant_id, quantity=body.quantity),
    )
    if not isinstance(entry, Entry):
        raise Refused(entry)
    return answer(_document(entry, house.clock.now_ms), 201, repeated=entry.repeated)


@routes.add("GET", "/v1/waiting-list", {200: Listed[EntryDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """What I wait for or waited for, the newest first."""
    house = request.house
    before = query.after(Number)
    found = await waiting_lists.list_mine(
        house.postgres,
        request.caller_id,
        limit=query.limit + 1,
        **({} if before is None else {"before": before}),
    )
    items = [_document(entry, house.clock.now_ms) for entry in found]
    return answer(page_of(items, [entry.entry_no for entry in found], query))


@routes.add(
    "DELETE",
    "/v1/waiting-list/{entry_id}",
    {200: EntryDocument},
    caller=USER,
    refusals=(PaymentRunning, SaleRebuilding),
)
async def leave(request: Request, entry_id: str) -> Answer:
    """Wait no more, and give back what was offered; harmless to repeat, and of what has ended nothing changes."""
    house = request.house
    entry = await waiting_lists.leave(
        house.gate, house.postgres, house.book, entry_id=entry_id, user_id=request.caller_id
    )
    if not isinstance(entry, Entry):
        raise Refused(entry)
    return answer(_document(entry, house.clock.now_ms))


def _document(entry: Entry, now_ms: int) -> EntryDocument:
    hold_id = entry.hold_id if entry.status in {"OFFERED", "TAKEN", "LAPSED"} else UNSET
    return EntryDocument(
        entry_id=entry.entry_id,
        sale_id=entry.sale_id,
        status=entry.status,
        reason=entry.reason or UNSET,
        ahead=entry.ahead if entry.status == "WAITING" else 0,
        quantity=entry.wish.quantity,
        expires_at=rfc3339(entry.expires_at) if entry.expires_at else UNSET,
        created_at=rfc3339(entry.created_at),
        server_time=rfc3339(now_ms),
        **_of_units(entry.wish, hold_id) if isinstance(entry.wish, UnitWish) else _of_seats(entry, entry.wish, hold_id),
    )


def _of_seats(entry: Entry, wish: Wish, reservation_id: str | UnsetType) -> dict[str, Any]:
    return {
        "schedule_id": entry.schedule_id,
        "adjacent": wish.adjacent,
        "category": wish.category or UNSET,
        "section": wish.section or UNSET,
        "price_max": UNSET if wish.price_max is None else wish.price_max,
        "accessible": wish.accessible > 0,
        "reservation_id": reservation_id,
    }


def _of_units(wish: UnitWish, order_id: str | UnsetType) -> dict[str, Any]:
    return {"variant_id": wish.variant_id, "order_id": order_id}
