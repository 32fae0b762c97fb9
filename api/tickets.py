"""Tickets: what a buyer shows, and what a door does with it."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import USER, operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.pages import Listed, Number, Page, page_of
from api.problems import Refused
from engine import accounts, tickets
from engine.refusals import IdempotencyKeyReused
from engine.tickets import AlreadyRedeemed, Redemption, TicketCancelled

routes = Routes("Tickets")

Status = Annotated[str, Meta(extra_json_schema={"enum": ["VALID", "REDEEMED", "CANCELLED"]})]
Code = Annotated[str, Meta(min_length=1, max_length=1024, description="What the visitor shows.")]


class TicketDocument(Document, frozen=True):
    """A ticket; its `code` is what a visitor shows at the door."""

    ticket_no: str
    reservation_id: str
    schedule_id: str
    seat_no: str
    code: str
    status: Status


class NewRedemption(Body, frozen=True):
    """The code that was scanned, where it is to be compared here."""

    code: Code | UnsetType = UNSET


class RedemptionDocument(Document, frozen=True):
    """A ticket that has opened the door; `status` is how it stands now."""

    ticket_no: str
    schedule_id: str
    seat_no: str
    status: Status
    at: Time


@routes.add("GET", "/v1/tickets", {200: Listed[TicketDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """My tickets, the newest first."""
    house = request.house
    before = query.after(Number)
    found = await tickets.list_mine(
        house.postgres,
        request.caller_id,
        limit=query.limit + 1,
        **({} if before is None else {"before": before}),
    )
    items = [
        TicketDocument(
            ticket_no=str(ticket.ticket_no),
            reservation_id=ticket.reservation_id,
            schedule_id=ticket.schedule_id,
            seat_no=ticket.seat_no,
            code=house.ticket_codes.of(ticket),
            status=ticket.status,
        )
        for ticket in found
    ]
    return answer(page_of(items, [ticket.ticket_no for ticket in found], query))


@routes.add(
    "POST",
    "/v1/admin/tickets/{ticket_no}/redemptions",
    {200: RedemptionDocument},
    caller=operator(accounts.TICKETS),
    keyed=True,
    refusals=(AlreadyRedeemed, TicketCancelled, IdempotencyKeyReused),
)
async def redeem(request: Request, ticket_no: str, body: NewRedemption) -> Answer:
    """Let the holder of a ticket in, once.

    With a `code`, one that is not this ticket's is answered like a number that nobody has.
    """
    redeemed = await tickets.redeem(
        request.house.postgres,
        request.house.ticket_codes,
        ticket_no=int(ticket_no),
        redemption_id=request.new_id(),
        api_key_id=request.caller_id,
        code=body.code or None,
    )
    if not isinstance(redeemed, Redemption):
        raise Refused(redeemed)
    document = RedemptionDocument(
        ticket_no=ticket_no,
        schedule_id=redeemed.schedule_id,
        seat_no=redeemed.seat_no,
        status=redeemed.status,
        at=rfc3339(redeemed.at),
    )
    return answer(document, repeated=redeemed.repeated)
