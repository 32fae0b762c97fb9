"""Reservations: hold seats, keep them longer, give them back, see what became of them."""

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from api import problems
from api.answers import Answer, Document, answer
from api.bodies import text_of, whole
from api.callers import USER
from api.clock import Time, rfc3339
from api.operations import Body, Empty, Request, Routes
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import Refused
from api.shards import in_shard
from api.waiting_room import QUEUE_TOKEN, place_in_line
from engine import ids, reservations, seat_cancellations, seats, wishes
from engine.cancellations import Cancellation, CancellationClosed
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.reservations import Reservation
from engine.sales import Sale
from engine.seats import (
    SEATS_MAX,
    ExtensionSpent,
    HoldEnded,
    OfferUnknown,
    PaymentRunning,
    SaleNotOpen,
    SeatTaken,
    SeatUnknown,
    SoldOut,
)
from engine.stores.replies import SaleRebuilding
from engine.wishes import AreaLine, Best, HeldBest, SeatLine

routes = Routes("Tickets")

SeatNo = Annotated[str, Meta(pattern=whole(r"[^|,=\x00-\x1f\x7f]{5,20}"), description="section-row-number")]
SeatNos = Annotated[list[SeatNo], Meta(min_length=1, max_length=SEATS_MAX)]


# What separates lists and lines in the store stands in nobody's name.
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=whole(r"(?!-$)[^|,=\x00-\x1f\x7f]+"))]
Count = Annotated[int, Meta(ge=1, le=SEATS_MAX)]


class Line(Body, frozen=True):
    """One seat that is wanted, or so many places of an area; in a tier, or at its own price."""

    seat_no: SeatNo | UnsetType = UNSET
    area: Name | UnsetType = UNSET
    quantity: Count | UnsetType = UNSET
    tier: Name | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse a line that names neither, or both."""
        if (self.seat_no is UNSET) == (self.area is UNSET):
            raise ValueError("Expected either `seat_no` or `area`")
        if (self.quantity is UNSET) != (self.area is UNSET):
            raise ValueError("Expected `quantity` with `area`, and only there")

    @property
    def wish(self) -> SeatLine | AreaLine:
        """What the engine is asked for."""
        if self.area is not UNSET:
            return AreaLine(self.area, self.quantity or 1, self.tier or None)
        return SeatLine(self.seat_no or "", self.tier or None)


class BestAvailable(Body, frozen=True):
    """So many seats, the best that are free; with `accessible` one of them is an accessible one, else none is."""

    quantity: Count
    category: Name | UnsetType = UNSET
    section: Name | UnsetType = UNSET
    tier: Name | UnsetType = UNSET
    accessible: bool = False

    @property
    def wish(self) -> Best:
        """What the engine is asked for."""
        return Best(
            quantity=self.quantity,
            category=self.category or None,
            section=self.section or None,
            tier=self.tier or None,
            accessible=int(self.accessible),
        )


class NewReservation(Body, frozen=True):
    """What to hold, all of it or nothing: seats by their numbers, lines, or the best that are free.

    An access code, or the channel a buyer comes through, opens the seats that are kept for it.
    """

    seats: SeatNos | UnsetType = UNSET
    lines: Annotated[list[Line], Meta(min_length=1, max_length=SEATS_MAX)] | UnsetType = UNSET
    best_available: BestAvailable | UnsetType = UNSET
    access_code: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    channel: Name | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse a wish that is told twice or not at all, or that no hold may be."""
        if sum(told is not UNSET for told in (self.seats, self.lines, self.best_available)) != 1:
            raise ValueError("Expected one of `seats`, `lines` and `best_available`")
        lines = self.lines or []
        if sum(line.quantity or 1 for line in lines) > SEATS_MAX:
            raise ValueError(f"Expected at most {SEATS_MAX} seats and places in all")
        named = {(line.seat_no, line.tier or "") for line in lines if line.seat_no is not UNSET}
        if len({seat_no for seat_no, _ in named}) < len(named):
            raise ValueError("Expected each seat in one tier")

    @property
    def seat_nos(self) -> list[str]:
        """The seats that are named, each once."""
        wanted = [line.seat_no for line in self.lines if line.seat_no] if self.lines else self.seats or []
        return list(dict.fromkeys(wanted))

    @property
    def is_plain(self) -> bool:
        """Whether it names seats and says no more: what nearly all requests are."""
        if self.best_available is not UNSET or self.access_code is not UNSET or self.channel is not UNSET:
            return False
        return not self.lines or all(line.area is UNSET and line.tier is UNSET for line in self.lines)

    @property
    def fingerprint(self) -> str:
        """What a key asked for: a repeat that asks for anything else is told so."""
        if self.is_plain:
            return ids.fingerprint(*sorted(self.seat_nos))
        return ids.fingerprint(text_of(self))


class Releases(Body, frozen=True):
    """The seats to give back."""

    seats: SeatNos


class ReservedSeat(Document, frozen=True, kw_only=True):
    """A seat of a reservation."""

    seat_no: str
    tier: str | UnsetType = UNSET
    price: int
    status: Literal["HELD", "SOLD", "RELEASED"]
    ticket_no: str | UnsetType = UNSET


class Picked(Document, frozen=True):
    """How good the best seats are: level 1 leaves no single seat alone, 2 is adjacent, 3 is in the fewest rows."""

    level: int
    adjacent: bool
    orphans: int


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
    # Only in the answer that picked them.
    picked: Picked | UnsetType = UNSET
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
        OfferUnknown,
        SoldOut,
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
    """Hold seats and places, all of them or none, until `expires_at`."""
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    hold_id = ids.derive_in(sale.sale_id, request.caller_id, request.method, request.path, request.key)
    held = await _hold(request, sale, hold_id, body)
    match held:
        case seats.Held():
            prices = zip(body.seat_nos, held.prices, strict=True)
            lines = tuple([seats.Line(seat_no, int(price)) for seat_no, price in prices])
            return answer(_held(held, sale, hold_id, lines, house.currency), 201, version=1)
        case seats.HeldLines() | HeldBest():
            return answer(_held(held, sale, hold_id, held.lines, house.currency), 201, version=1)
        case seats.HoldKnown():
            return await _answer(request, hold_id, 201, repeated=True)
        case seats.NotAdmitted():
            raise Refused(problems.not_admitted(sale.sale_id))
        case refusal:
            raise Refused(refusal)


async def _hold(
    request: Request, sale: Sale, hold_id: str, body: NewReservation
) -> seats.Held | seats.HeldLines | HeldBest | seats.NotHeld:
    gate, buyer_id, fingerprint = request.house.gate, request.caller_id, body.fingerprint
    queue_no = await place_in_line(request, sale)
    if body.is_plain:
        return await seats.hold(
            gate,
            sale,
            hold_id=hold_id,
            buyer_id=buyer_id,
            fingerprint=fingerprint,
            seat_nos=body.seat_nos,
            queue_no=queue_no,
        )
    access_code, channel = body.access_code or None, body.channel or None
    if body.best_available is not UNSET:
        return await wishes.hold_best(
            gate,
            sale,
            hold_id=hold_id,
            buyer_id=buyer_id,
            fingerprint=fingerprint,
            best=body.best_available.wish,
            access_code=access_code,
            channel=channel,
            queue_no=queue_no,
        )
    return await wishes.hold_lines(
        gate,
        sale,
        hold_id=hold_id,
        buyer_id=buyer_id,
        fingerprint=fingerprint,
        lines=[line.wish for line in body.lines] if body.lines else [SeatLine(seat_no) for seat_no in body.seat_nos],
        access_code=access_code,
        channel=channel,
        queue_no=queue_no,
    )


def _held(
    held: seats.Held | seats.HeldLines | HeldBest,
    sale: Sale,
    hold_id: str,
    lines: Sequence[seats.Line],
    currency: str,
) -> ReservationDocument:
    """What was just held, without asking again."""
    created_at = rfc3339(held.created_at_ms)
    return ReservationDocument(
        reservation_id=hold_id,
        schedule_id=sale.schedule_id or "",
        sale_id=sale.sale_id,
        status="PENDING",
        seats=[
            ReservedSeat(seat_no=line.seat_no, tier=line.tier or UNSET, price=line.price, status="HELD")
            for line in lines
        ],
        amount=held.amount,
        currency=currency,
        created_at=created_at,
        expires_at=rfc3339(held.expires_at_ms),
        picked=Picked(held.level, held.groups == 1, held.orphans) if isinstance(held, HeldBest) else UNSET,
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
        "seats",
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
    return await _answer(request, reservation_id, repeated=extended.repeated == 1)


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
    return await _answer(request, reservation_id, repeated=released.repeated == 1)


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
            cancelled = await seat_cancellations.cancel(
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
        "seats",
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
                seat_no=line.seat_no,
                tier=line.tier or UNSET,
                price=line.price,
                status=_PUBLIC[line.status],
                ticket_no=UNSET if line.ticket_no is None else str(line.ticket_no),
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
