"""Seats that operators take off a running sale, and put on it again."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, rfc3339
from api.operations import Body, Request, Routes
from api.problems import Refused
from api.reservations import SeatNo
from api.seat_tables import Part
from engine import accounts, seat_blocks
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound
from engine.seat_blocks import SEATS_MAX, Asked
from engine.seats import OfferUnknown, SeatTaken
from engine.stores.replies import SaleRebuilding

routes = Routes("Tickets")


class NewSeatBlock(Body, frozen=True):
    """Seats by their numbers, or all of a section that are not so yet, and whether they are to be blocked."""

    blocked: bool
    seats: Annotated[list[SeatNo], Meta(min_length=1, max_length=SEATS_MAX)] | UnsetType = UNSET
    section: Part | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse what says too little or too much."""
        if (self.seats is UNSET) == (self.section is UNSET):
            raise ValueError("Expected either seats or section")


class SeatBlockDocument(Document, frozen=True):
    """The seats that were asked for: all of them are blocked now, or none is."""

    seat_block_id: str
    schedule_id: str
    blocked: bool
    seats: list[str]
    created_at: Time


@routes.add(
    "POST",
    "/v1/admin/schedules/{schedule_id}/seat-blocks",
    {201: SeatBlockDocument},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(SeatTaken, OfferUnknown, LimitReached, IdempotencyKeyReused, Busy, SaleRebuilding),
)
async def create_seat_block(request: Request, schedule_id: str, body: NewSeatBlock) -> Answer:
    """Take seats off a sale that runs, or put them on it again: all of them, or none.

    Only a free seat can be blocked, and what is blocked already stays so. A seat that somebody holds, pays or has
    bought, one that the waiting list has, one that is kept for a code or a channel and one that does not exist are each
    named, with the reason, and nothing is changed. The buyers' map shows a blocked seat as BLOCKED; it is one of
    `seats_total` and not of `seats_available`.
    """
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    changed = await seat_blocks.change(
        house.stores,
        sale,
        Asked(
            seat_block_id=request.new_id(),
            seat_nos=tuple(body.seats or ()),
            section=body.section or None,
            blocked=body.blocked,
        ),
    )
    if not isinstance(changed, tuple):
        raise Refused(changed)
    seat_block, repeated = changed
    house.offerings.forget(sale.sale_id)
    document = SeatBlockDocument(
        seat_block_id=seat_block.seat_block_id,
        schedule_id=schedule_id,
        blocked=seat_block.blocked,
        seats=list(seat_block.seat_nos),
        created_at=rfc3339(seat_block.created_at),
    )
    return answer(document, 201, repeated=repeated)
