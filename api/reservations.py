"""Reservations: hold seats, keep them longer, give them back, see what became of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, TypeVar

from msgspec import UNSET, Meta, UnsetType

from api import problems
from api.answers import Answer, Document, answer
from api.callers import USER
from api.clock import Time, rfc3339
from api.operations import Body, Empty, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import Refused
from api.waiting_room import QUEUE_TOKEN, place_in_line
from engine import cancellations, ids, reservations, seats
from engine.cancellations import Cancellation, CancellationClosed
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SlowDown
from engine.reservations import Reservation
from engine.sales import Sale
from engine.seats import (
    SEATS_MAX,
    ExtensionSpent,
    HoldEnded,
    PaymentRunning,
    SaleClosed,
    SaleNotOpen,
    SeatTaken,
    SeatUnknown,
)
from engine.stores.replies import SaleRebuilding

routes = Routes("Tickets")

R = TypeVar("R")

SeatNo = Annotated[str, Meta(pattern=r"^[^|,=\x00-\x1f\x7f]{5,20}$", description="section-row-number")]
SeatNos = Annotated[list[SeatNo], Meta(min_length=1, max_length=SEATS_MAX)]


class Line(Body, frozen=True):
    """One seat that is wanted."""

    seat_no: SeatNo


class NewReservation(Body, frozen=True):
    """The seats to hold, all of them or none: by their numbers, or as lines."""

    seats: SeatNos | UnsetType = UNSET
    lines: Annotated[list[Line], Meta(min_length=1, max_length=SEATS_MAX)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse a wish that is told twice or not at all."""
        if (self.seats is UNSET) == (self.lines is UNSET):
            raise ValueError("Expected either `seats` or `lines`")

    @property
    def seat_nos(self) -> list[str]:
        """The seats, each once."""
        wanted = [line.seat_no for line in self.lines] if self.lines else self.seats or []
        return list(dict.fromkeys(wanted))


class Releases(Body, frozen=True):
    """The seats to give back."""

    seats: SeatNos


class ReservedSeat(Document, frozen=True):
    """A seat of a reservation."""

    seat_no: str
    price: int
    status: Literal["HELD", "SOLD", "RELEASED"]
    ticket_no: str | UnsetType = UNSET


class RunningPayment(Document, frozen=True):
    """The payment of a reservation, to be asked for by its id."""

    payment_id: str


class ReservationDocument(Document, frozen=True, kw_only=True):
    """A reservation as it stands; from `expires_at` on an unpaid one has ended."""

    reservation_id: str
    schedule_id: str
    sale_id: str
    status: Annotated[str, Meta(extra_json_schema={"enum": ["PENDING", "CONFIRMED", "CANCELLED"]})]
    reason: str | UnsetType = UNSET
    seats: list[ReservedSeat]
    amount: int
    currency: str
    created_at: Time
    expires_at: Time
    confirmed_at: Time | UnsetType = UNSET
    payment: RunningPayment | UnsetType = UNSET
    version: int
    server_time: Time


# Hold -----------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/schedules/{schedule_id}/reservations",
    {201: ReservationDocument},
    caller=USER,
    keyed=True,
    reads=(QUEUE_TOKEN,),
    refusals=(
        SeatTaken,
        SeatUnknown,
        LimitReached,
        problems.NotAdmitted,
        SaleNotOpen,
        SaleClosed,
        IdempotencyKeyReused,
        SlowDown,
        Busy,
        SaleRebuilding,
    ),
)
async def hold(request: Request, schedule_id: str, body: NewReservation) -> Answer:
    """Hold seats, all of them or none, until `expires_at`."""
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    seat_nos = body.seat_nos
    hold_id = ids.derive_in(sale.sale_id, request.caller_id, request.method, request.path, request.key)
    fingerprint = ids.fingerprint(*sorted(seat_nos))
    held = await seats.hold(
        house.gate,
        sale,
        hold_id=hold_id,
        buyer_id=request.caller_id,
        fingerprint=fingerprint,
        seat_nos=seat_nos,
        queue_no=await place_in_line(request, sale),
    )
    match held:
        case seats.Held():
            return answer(_held(held, sale, hold_id, seat_nos, house.currency), 201, version=1)
        case seats.HoldKnown():
            return await _answer(request, hold_id, 201, repeated=True)
        case seats.NotAdmitted():
            raise Refused(problems.not_admitted(sale.sale_id))
        case refusal:
            raise Refused(refusal)


def _held(held: seats.Held, sale: Sale, hold_id: str, seat_nos: Sequence[str], currency: str) -> ReservationDocument:
    """What was just held, without asking again."""
    created_at = rfc3339(held.created_at_ms)
    return ReservationDocument(
        reservation_id=hold_id,
        schedule_id=sale.schedule_id or "",
        sale_id=sale.sale_id,
        status="PENDING",
        seats=[ReservedSeat(seat_no, int(price), "HELD") for seat_no, price in zip(seat_nos, held.prices, strict=True)],
        amount=held.amount,
        currency=currency,
        created_at=created_at,
        expires_at=rfc3339(held.expires_at_ms),
        version=1,
        server_time=created_at,
    )


# What a buyer does with it --------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/reservations/{reservation_id}/extension",
    {200: ReservationDocument},
    caller=USER,
    keyed=True,
    refusals=(ExtensionSpent, HoldEnded, PaymentRunning, IdempotencyKeyReused, SaleRebuilding),
)
async def extend(request: Request, reservation_id: str, body: Empty) -> Answer:  # noqa: ARG001 - it says nothing
    """Hold the seats longer."""
    extended = await in_shard(
        request,
        reservation_id,
        lambda sale: seats.extend(
            request.house.gate,
            sale,
            hold_id=reservation_id,
            buyer_id=request.caller_id,
            extension_id=request.new_id(),
            fingerprint=ids.fingerprint("extension"),
        ),
    )
    if not isinstance(extended, seats.Extended):
        raise Refused(extended)
    return await _answer(request, reservation_id)


@routes.add(
    "POST",
    "/v1/reservations/{reservation_id}/releases",
    {200: ReservationDocument},
    caller=USER,
    keyed=True,
    refusals=(SeatUnknown, HoldEnded, PaymentRunning, IdempotencyKeyReused, SaleRebuilding),
)
async def release(request: Request, reservation_id: str, body: Releases) -> Answer:
    """Give back some of the seats, or all."""
    released = await _release(request, reservation_id, request.new_id(), body.seats)
    if not isinstance(released, seats.Released):
        raise Refused(released)
    return await _answer(request, reservation_id)


@routes.add(
    "DELETE",
    "/v1/reservations/{reservation_id}",
    {200: ReservationDocument},
    caller=USER,
    refusals=(PaymentRunning, CancellationClosed, SaleRebuilding),
)
async def give_up(request: Request, reservation_id: str) -> Answer:
    """Give all seats back; what is confirmed is refunded by the sale's policy. Harmless to repeat."""
    release_id = ids.derive(request.caller_id, request.method, request.path)
    released = await _release(request, reservation_id, release_id, ())
    if isinstance(released, seats.Released):
        return await _answer(request, reservation_id)
    if isinstance(released, HoldEnded | NotFound | PaymentRunning):
        # Redis forgets and Postgres does not: the row says whether it was bought, given up, or never there.
        found = await _find(request, reservation_id)
        if found.status == "CONFIRMED":
            house = request.house
            cancelled = await cancellations.cancel(
                house.gate,
                house.postgres,
                house.book,
                cancellation_id=release_id,
                reservation_id=reservation_id,
                user_id=request.caller_id,
            )
            if not isinstance(cancelled, Cancellation) and cancelled != CancellationClosed(reason="ENDED"):
                raise Refused(cancelled)
            return await _answer(request, reservation_id)
        if found.status == "CANCELLED":
            return answer(_document(found, request.house.currency), version=found.version)
        released = PaymentRunning(payment_id=found.payment_id or "")
    raise Refused(released)


async def _release(
    request: Request, reservation_id: str, release_id: str, seat_nos: Sequence[str]
) -> seats.ReleasedAnswer:
    return await in_shard(
        request,
        reservation_id,
        lambda sale: seats.release(
            request.house.gate,
            sale,
            hold_id=reservation_id,
            buyer_id=request.caller_id,
            release_id=release_id,
            fingerprint=ids.fingerprint(*sorted(seat_nos)),
            seat_nos=seat_nos,
        ),
    )


async def in_shard(request: Request, reservation_id: str, ask: Callable[[Sale], Awaitable[R]]) -> R | NotFound:
    """Ask the sale that this id belongs to, by how the id begins: nearly always that is one."""
    book = request.house.book
    known = book.find_by_prefix(reservation_id)
    if not known:
        # Another process may have made the sale a moment ago.
        await book.refresh()
        known = book.find_by_prefix(reservation_id)
    for sale in known:
        answered = await ask(sale)
        if not isinstance(answered, NotFound):
            return answered
    return NotFound()


# Look -----------------------------------------------------------------------------------------------------------------


@routes.add(
    "GET",
    "/v1/reservations/{reservation_id}",
    {200: ReservationDocument},
    caller=USER,
    refusals=(SaleRebuilding,),
)
async def find(request: Request, reservation_id: str) -> Answer:
    """One of my reservations, from the moment on it was answered."""
    return await _answer(request, reservation_id)


@routes.add("GET", "/v1/reservations", {200: Listed[ReservationDocument]}, caller=USER)
async def list_mine(request: Request, query: Page) -> Answer:
    """My reservations, the newest first."""
    before = moment_of(query.after(Place))
    found = await reservations.list_mine(
        request.house.postgres,
        request.caller_id,
        limit=query.limit + 1,
        **({"before": before} if before else {}),
    )
    places = [place_of(reservation.created_at, reservation.reservation_id) for reservation in found]
    return answer(page_of([_document(reservation, request.house.currency) for reservation in found], places, query))


async def _find(request: Request, reservation_id: str) -> Reservation:
    house = request.house
    found = await reservations.find(
        house.gate,
        house.postgres,
        house.book,
        reservation_id=reservation_id,
        user_id=request.caller_id,
    )
    if not isinstance(found, Reservation):
        raise Refused(found or NotFound())
    return found


async def _answer(request: Request, reservation_id: str, status: int = 200, *, repeated: bool = False) -> Answer:
    found = await _find(request, reservation_id)
    return answer(_document(found, request.house.currency), status, version=found.version, repeated=repeated)


_PUBLIC: dict[str, Literal["HELD", "SOLD", "RELEASED"]] = {"HELD": "HELD", "CLAIMED": "SOLD", "ENDED": "RELEASED"}


def _document(found: Reservation, currency: str) -> ReservationDocument:
    return ReservationDocument(
        reservation_id=found.reservation_id,
        schedule_id=found.schedule_id,
        sale_id=found.sale_id,
        status=found.status,
        reason=found.reason or UNSET,
        seats=[
            ReservedSeat(
                line.seat_no,
                line.price,
                _PUBLIC[line.status],
                UNSET if line.ticket_no is None else str(line.ticket_no),
            )
            for line in found.lines
        ],
        amount=found.amount,
        currency=currency,
        created_at=rfc3339(found.created_at),
        expires_at=rfc3339(found.expires_at),
        confirmed_at=rfc3339(found.confirmed_at) if found.confirmed_at else UNSET,
        payment=RunningPayment(payment_id=found.payment_id) if found.payment_id else UNSET,
        version=found.version,
        server_time=rfc3339(found.server_time),
    )
