"""Every problem of the HTTP face: which refusal is answered with which status, in one table.

A problem's type is the word of its class, `/problems/<word>`, its title the docstring of the class, and it carries the
fields of the class, or what `told` makes of them where a client reads them in another form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType
from redis.exceptions import RedisError

from api.clock import Time, rfc3339
from engine import accounts, cancellations, carts, coupons, payments, resolutions, seats, stock, tickets, waiting_room
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import StaleVersion
from engine.stores.coalesce import Overdue
from engine.stores.connections import POSTGRES_AWAY, POSTGRES_CROSSED, StoreUnavailable
from engine.stores.replies import (
    Refusal,
    Reply,
    SaleRebuilding,
    SaleUnknown,
    StaleEpoch,
    title_of,
    word_of,
)

# What the stores raise when they are away or late: the outcome is unknown, and the same key asks again.
FAULTS = (
    StoreUnavailable,
    Overdue,
    RedisError,
    *POSTGRES_AWAY,
    *POSTGRES_CROSSED,
    asyncpg.ReadOnlySQLTransactionError,
)


class Refused(Exception):
    """Ends a request with a refusal as its answer."""

    def __init__(self, refusal: Reply) -> None:
        super().__init__(word_of(type(refusal)))
        self.refusal = refusal


# Problems that no engine knows ----------------------------------------------------------------------------------------


class Misfit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing wrong with a request: its path, and the line and the column where it came as a table."""

    path: str
    message: str
    line: int | UnsetType = UNSET
    column: str | UnsetType = UNSET


class InvalidRequest(Refusal, frozen=True):
    """The request is not understood."""

    errors: list[Misfit]


class KeyRequired(Refusal, frozen=True):
    """This request needs an Idempotency-Key header."""


class NotSignedIn(Refusal, frozen=True):
    """This needs a valid token."""


class ScopeMissing(Refusal, frozen=True):
    """This key may not do that."""

    scope: str


class MethodNotAllowed(Refusal, frozen=True):
    """This path does not know that method."""


class BodyTooLarge(Refusal, frozen=True):
    """The body is too large."""

    most: int


class MediaType(Refusal, frozen=True):
    """The body has another Content-Type than this route reads."""

    expected: list[str]


class NotAdmitted(Refusal, frozen=True):
    """It is not your turn: your place in line is not active."""

    queue_url: str


class InternalError(Refusal, frozen=True):
    """Something is broken here, and it was logged."""


BUSY = Busy(retry_after_ms=1000)


def invalid(path: str, message: str) -> Refused:
    """Refuse a request for one thing that is wrong with it."""
    return Refused(InvalidRequest(errors=[Misfit(path, message)]))


def not_admitted(sale_id: str) -> "NotAdmitted":
    """Send somebody to the line of this sale."""
    return NotAdmitted(queue_url=f"/v1/sales/{sale_id}/queue")


# The table ------------------------------------------------------------------------------------------------------------


class Opening(msgspec.Struct, frozen=True):
    """When it begins."""

    opens_at: Time


class Nothing(msgspec.Struct, frozen=True):
    """No field: what there is to say stands in the headers."""


@dataclass(frozen=True)
class Problem:
    """How a refusal is answered."""

    status: int
    told: Callable[[Any], msgspec.Struct] | None = None
    """What a client reads in place of the refusal's own fields; the OpenAPI document follows its annotation."""
    known_as: type[Refusal] | None = None
    """The problem that a client knows it by, where that is another word."""


def _nothing(_refusal: Reply) -> Nothing:
    return Nothing()


class TakenSeats(msgspec.Struct, frozen=True):
    """The seats in conflict: held, paying, sold, blocked or yours; for operators also unknown, kept, waiting_list."""

    seats: tuple[seats.Conflict, ...]


def _taken(refusal: seats.SeatTaken) -> TakenSeats:
    return TakenSeats(refusal.seats)


class UnknownOffer(msgspec.Struct, frozen=True):
    """What the sale does not offer: its kind (area, tier, category, section) and its name."""

    kind: str
    name: str


class UnknownOffers(msgspec.Struct, frozen=True):
    """Everything in the request that the sale does not offer."""

    offers: tuple[UnknownOffer, ...]


def _offers(refusal: seats.OfferUnknown) -> UnknownOffers:
    return UnknownOffers(tuple([UnknownOffer(kind, name) for kind, name in refusal.offers]))


class OtherSize(msgspec.Struct, frozen=True):
    """Another size of the same product, and how many there are of it."""

    variant_id: str
    size: str | None
    available: int


class Shortage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a variant, or of an area, a tier or seats as a whole: how much was asked for, and how much is left.

    Of a variant it says, too, what else its product comes in.
    """

    requested: int
    available: int
    variant_id: str | UnsetType = UNSET
    other_sizes: tuple[OtherSize, ...] | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class UnitsSoldOut(Refusal, frozen=True):
    """There is not enough left of what this request asks for."""

    lines: tuple[Shortage, ...]


class Shortages(msgspec.Struct, frozen=True):
    """Everything that falls short."""

    lines: tuple[Shortage, ...]


def _shortages(refusal: seats.SoldOut) -> Shortages:
    return Shortages(
        tuple([Shortage(each.requested, each.available, kind=each.kind, name=each.name) for each in refusal.lines])
    )


def _unit_shortages(refusal: stock.SoldOut) -> Shortages:
    return Shortages(
        tuple([Shortage(each.requested, each.available, variant_id=each.variant_id) for each in refusal.lines])
    )


class Decline(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payment, its gateway's word for why, and until when another may be tried."""

    payment_id: str
    decline_code: str
    expires_at: Time | UnsetType = UNSET


def _declined(refusal: payments.CardDeclined) -> Decline:
    expires_at_ms = refusal.expires_at_ms
    return Decline(refusal.payment_id, refusal.decline_code, rfc3339(expires_at_ms) if expires_at_ms else UNSET)


def _opening(refusal: seats.SaleNotOpen) -> Opening:
    return Opening(rfc3339(refusal.opens_at_ms))


class Issuing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why not, and when it begins where it will."""

    reason: str
    starts_at: Time | UnsetType = UNSET


def _issuing(refusal: coupons.NotIssuing) -> Issuing:
    return Issuing(refusal.reason, rfc3339(refusal.starts_at_ms) if refusal.starts_at_ms else UNSET)


class Entrance(msgspec.Struct, frozen=True):
    """When the ticket opened the door."""

    at: Time


def _redeemed(refusal: tickets.AlreadyRedeemed) -> Entrance:
    return Entrance(rfc3339(refusal.at))


PROBLEMS: dict[type[Reply], Problem] = {
    InvalidRequest: Problem(400),
    KeyRequired: Problem(400),
    NotSignedIn: Problem(401),
    payments.InsufficientBalance: Problem(402),
    payments.CardDeclined: Problem(402, _declined),
    payments.CouponUnusable: Problem(409),
    payments.CouponPending: Problem(409),
    ScopeMissing: Problem(403),
    NotAdmitted: Problem(403),
    NotFound: Problem(404),
    seats.SeatUnknown: Problem(404),
    seats.OfferUnknown: Problem(404, _offers),
    stock.UnitUnknown: Problem(404),
    MethodNotAllowed: Problem(405),
    accounts.EmailTaken: Problem(409),
    LimitReached: Problem(409),
    waiting_room.QueueClosed: Problem(409),
    seats.SeatTaken: Problem(409, _taken),
    seats.SoldOut: Problem(409, _shortages),
    stock.SoldOut: Problem(409, _unit_shortages),
    UnitsSoldOut: Problem(409, known_as=seats.SoldOut),
    carts.MixedSales: Problem(409),
    carts.CartEmpty: Problem(409),
    stock.AmountTooLarge: Problem(409),
    seats.SaleNotOpen: Problem(409, _opening),
    SaleClosed: Problem(409),
    seats.HoldEnded: Problem(409),
    seats.ExtensionSpent: Problem(409),
    seats.PaymentRunning: Problem(409),
    cancellations.CancellationClosed: Problem(409),
    coupons.CouponsGone: Problem(409),
    coupons.NotIssuing: Problem(409, _issuing),
    coupons.QuantityTaken: Problem(409),
    resolutions.NotInDoubt: Problem(409),
    resolutions.StillInDoubt: Problem(409),
    tickets.AlreadyRedeemed: Problem(409, _redeemed),
    tickets.TicketCancelled: Problem(409),
    StaleVersion: Problem(412),
    BodyTooLarge: Problem(413),
    MediaType: Problem(415),
    IdempotencyKeyReused: Problem(422),
    SlowDown: Problem(429, _nothing),
    InternalError: Problem(500),
    Busy: Problem(503, _nothing),
    SaleRebuilding: Problem(503),
    SaleUnknown: Problem(503, known_as=SaleRebuilding),
    StaleEpoch: Problem(503, _nothing, known_as=SaleRebuilding),
}


def type_of(kind: type[Reply]) -> str:
    """The address of a problem: what a client compares."""
    return f"/problems/{word_of(PROBLEMS[kind].known_as or kind)}"


def document_of(refusal: Reply) -> dict[str, Any]:
    """The problem document of a refusal."""
    kind = type(refusal)
    problem = PROBLEMS[kind]
    fields = problem.told(refusal) if problem.told else refusal
    return {
        "type": type_of(kind),
        "title": title_of(problem.known_as or kind),
        "status": problem.status,
        **{name: value for name, value in msgspec.structs.asdict(fields).items() if value is not UNSET},
    }


def headers_of(refusal: Reply, now_ms: int) -> list[tuple[bytes, bytes]]:
    """The headers that belong to a problem: when to try again, how to sign in."""
    kind = PROBLEMS[type(refusal)].known_as or type(refusal)
    if isinstance(refusal, NotSignedIn):
        return [(b"www-authenticate", b"Bearer")]
    if not issubclass(kind, Refusal) or not kind.temporary:
        return []
    if isinstance(refusal, seats.SaleNotOpen):
        retry_after_ms = refusal.opens_at_ms - now_ms
    else:
        retry_after_ms = getattr(refusal, "retry_after_ms", 1000)
    return [(b"retry-after", b"%d" % max(1, -(-retry_after_ms // 1000)))]
