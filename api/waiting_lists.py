"""Waiting lists: wait for seats that come back, see what one waits for, wait no more."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Number, Page, page_of
from api.problems import Refused, invalid
from api.reservations import Count, Name
from engine import waiting_lists
from engine.catalogue import PRICE_MAX
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound, SaleClosed
from engine.seats import OfferUnknown, PaymentRunning, SaleNotOpen
from engine.shelf import Wish
from engine.stores.replies import SaleRebuilding
from engine.waiting_lists import Entry, NeverFits

routes = Routes("Tickets")

Status = Annotated[str, Meta(extra_json_schema={"enum": ["WAITING", "OFFERED", "TAKEN", "LAPSED", "LEFT"]})]
Reason = Annotated[str, Meta(extra_json_schema={"enum": ["USER", "EVENT_OVER", "EVENT_CANCELLED"]})]


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


class EntryDocument(Document, frozen=True, kw_only=True):
    """A place in a waiting list, and its wish. From OFFERED on there is a reservation, to be paid before it expires.

    `ahead` is how many wait before this one: it may be served before them, with what is of no use to them.
    """

    entry_id: str
    schedule_id: str
    sale_id: str
    status: Status
    reason: Reason | UnsetType = UNSET
    ahead: int
    quantity: int
    adjacent: bool
    category: str | UnsetType = UNSET
    section: str | UnsetType = UNSET
    price_max: int | UnsetType = UNSET
    accessible: bool
    reservation_id: str | UnsetType = UNSET
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
    entry = await waiting_lists.join(
        house.stores, house.book, sale, entry_id=request.new_id(), user_id=request.caller_id, wish=body.wish
    )
    if isinstance(entry, NeverFits):
        together = " side by side" if body.adjacent else ""
        raise invalid("quantity", f"Expected at most {entry.seats}: no more such seats are there{together}")
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
    was_offered = entry.status in {"OFFERED", "TAKEN", "LAPSED"}
    return EntryDocument(
        entry_id=entry.entry_id,
        schedule_id=entry.schedule_id,
        sale_id=entry.sale_id,
        status=entry.status,
        reason=entry.reason or UNSET,
        ahead=entry.ahead if entry.status == "WAITING" else 0,
        quantity=entry.wish.quantity,
        adjacent=entry.wish.adjacent,
        category=entry.wish.category or UNSET,
        section=entry.wish.section or UNSET,
        price_max=UNSET if entry.wish.price_max is None else entry.wish.price_max,
        accessible=entry.wish.accessible > 0,
        reservation_id=entry.reservation_id if was_offered else UNSET,
        expires_at=rfc3339(entry.expires_at) if entry.expires_at else UNSET,
        created_at=rfc3339(entry.created_at),
        server_time=rfc3339(now_ms),
    )
