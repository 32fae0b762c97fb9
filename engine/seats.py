"""Seats: FREE → HELD → PAYING → SOLD, decided in Redis by one script a verb, all seats of a request or none.

Every function names the sale and answers with a reply or a refusal. A hold's id is made by the request that holds and
is used once; its fence grows with every hold of the sale, and confirm, abandon and restore present it.
"""

from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec
from redis.exceptions import RedisError

from engine import sales
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale
from engine.stores.connections import StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.replies import Refusal, Reply, Unavailable
from engine.stores.scripts import Gate, Script

# Seats in one request, at most.
SEATS_MAX: Final = 20


class Line(msgspec.Struct, frozen=True):
    """One seat of a hold, with the price and the tier that were frozen when it was held."""

    seat_no: str
    price: int
    tier: str | None = None


def lines_of(seats: str, prices: str, tiers: str = "") -> tuple[Line, ...]:
    """Pair comma-separated lists; of tiers there is none, or one a seat, `-` for its own price."""
    seat_nos, price_list = seats.split(","), prices.split(",")
    tier_list = tiers.split(",") if tiers else ["-"] * len(seat_nos)
    return tuple(
        [
            Line(seat_no, int(price), None if tier == "-" else tier)
            for seat_no, price, tier in zip(seat_nos, price_list, tier_list, strict=True)
        ]
    )


def joined_tiers(tiers: Sequence[str | None]) -> str:
    """The tiers of seats as the store keeps them: nothing when none has one."""
    return ",".join([tier or "-" for tier in tiers]) if any(tiers) else ""


def is_seat_no(text: str) -> bool:
    """Whether a seat may be called so: what separates lists and lines stands in no seat's number."""
    return not ("|" in text or "=" in text or "," in text)


# --- replies ----------------------------------------------------------------------------------------------------------


class Held(Reply, frozen=True):
    """The seats are held."""

    expires_at_ms: int
    fence: int
    amount: int
    created_at_ms: int
    prices: tuple[str, ...]


class HeldLines(Reply, frozen=True):
    """The seats and places are held."""

    expires_at_ms: int
    fence: int
    amount: int
    created_at_ms: int
    seats: str
    prices: str
    tiers: str

    @property
    def lines(self) -> tuple[Line, ...]:
        """What is held, place for place."""
        return lines_of(self.seats, self.prices, self.tiers)


class LookOn(Reply, frozen=True):
    """The store has done a bounded part of this request; it is asked the same again, and told where it was."""

    at: str


class HoldKnown(Reply, frozen=True):
    """The same request has held before; its hold stands in this state."""

    state: str


class Found(Reply, frozen=True):
    """The hold stands like this; `find` answers it as a `Hold`."""

    state: str
    buyer_id: str
    fence: int
    queue_no: int
    fingerprint: str
    created_at_ms: int
    expires_at_ms: int
    payment_id: str
    pay_deadline_ms: int
    reason: str
    now_ms: int
    amount: int
    seats: str
    prices: str
    tiers: str


class Extended(Reply, frozen=True):
    """The hold has until then; `repeated` 1 where this extension was made before."""

    expires_at_ms: int
    repeated: int


class Released(Reply, frozen=True):
    """The seats were given back; `repeated` 1 where this very request did it before."""

    repeated: int
    seat_nos: tuple[str, ...]


class Paying(Reply, frozen=True):
    """The hold is being paid: until it is confirmed or abandoned, no deadline frees its seats."""

    fence: int
    amount: int
    pay_deadline_ms: int
    created_at_ms: int
    expires_at_ms: int
    queue_no: int
    fingerprint: str
    seats: str
    prices: str
    repeated: int
    tiers: str = ""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The seats of the hold, each with its price and tier."""
        return lines_of(self.seats, self.prices, self.tiers)


class PaymentEnded(Reply, frozen=True):
    """This payment has ended; its row says how."""


class HoldSold(Reply, frozen=True):
    """This payment has bought the hold; its row says whether Postgres has it."""

    payment_id: str


class Confirmed(Reply, frozen=True):
    """The seats are SOLD, and entry `n` of the outbox says so; 0 where Postgres had it before a rebuild."""

    n: int


class PaymentMismatch(Reply, frozen=True):
    """The hold is, or was, paid by another payment."""


class HoldUnknown(Reply, frozen=True):
    """No hold of this id and fence is being paid; what was authorised for it is voided."""


class Abandoned(Reply, frozen=True):
    """The payment is given up; the seats are `held` again, or `free`."""

    to: str


class Expired(Reply, frozen=True):
    """A sweep ended `count` holds and forgot `trimmed` old ones; `left` have lapsed and wait for the next."""

    count: int
    left: int
    trimmed: int


class OverduePayment(msgspec.Struct, frozen=True):
    """A hold whose payment is past its deadline."""

    hold_id: str
    fence: int
    payment_id: str


class Overdue(Reply, frozen=True):
    """These payments are past their deadline."""

    payments: tuple[str, ...]

    @property
    def holds(self) -> tuple[OverduePayment, ...]:
        """Each of them, with its hold."""
        found = [payment.split(" ") for payment in self.payments]
        return tuple([OverduePayment(hold_id, int(fence), payment_id) for hold_id, fence, payment_id in found])


class Restored(Reply, frozen=True):
    """The seats are what Postgres says; `count` of them were not."""

    count: int


# --- refusals ---------------------------------------------------------------------------------------------------------


class Conflict(msgspec.Struct, frozen=True):
    """A seat that cannot be held, and why: held, paying, sold, blocked or yours.

    What an operator cannot block may also be unknown, kept for a code or a channel, or the waiting list's.
    """

    seat_no: str
    reason: str


class SeatTaken(Refusal, frozen=True):
    """A seat of this request is not free."""

    conflicts: tuple[str, ...]

    @property
    def seats(self) -> tuple[Conflict, ...]:
        """Every seat in conflict."""
        return tuple([Conflict(*conflict.rsplit(" ", 1)) for conflict in self.conflicts])


class SeatUnknown(Refusal, frozen=True):
    """A seat of this request is no seat of this sale or hold."""

    seat_nos: tuple[str, ...]


class OfferUnknown(Refusal, frozen=True):
    """The sale offers no such area, tier, category or section."""

    names: tuple[str, ...]

    @property
    def offers(self) -> tuple[tuple[str, str], ...]:
        """What is unknown: its kind and its name."""
        return tuple([(kind, name) for kind, _, name in (each.partition(" ") for each in self.names)])


class Shortage(msgspec.Struct, frozen=True):
    """Of an area, a tier, or seats as a whole: how much was asked for, and how much is left."""

    kind: str
    name: str
    requested: int
    available: int


class SoldOut(Refusal, frozen=True):
    """There is not enough left of what this request asks for."""

    shortages: tuple[str, ...]

    @property
    def lines(self) -> tuple[Shortage, ...]:
        """Everything that falls short."""
        rows = [shortage.split(" ", 3) for shortage in self.shortages]
        return tuple([Shortage(kind, name, int(requested), int(left)) for requested, left, kind, name in rows])


class NotAdmitted(Refusal, frozen=True):
    """It is not your turn: your place in line is not active."""


class SaleNotOpen(Refusal, frozen=True):
    """The sale has not begun."""

    temporary: ClassVar[bool] = True
    opens_at_ms: int


class HoldEnded(Refusal, frozen=True):
    """The hold has ended."""

    reason: str


class ExtensionSpent(Refusal, frozen=True):
    """The hold has had all the time it may have."""


class PaymentRunning(Refusal, frozen=True):
    """A payment of this hold is running."""

    payment_id: str


class PriceChanged(Reply, frozen=True):
    """Something costs something else now than it did when it was held before."""


# Why nothing is held.
NotHeld = (
    HoldKnown
    | IdempotencyKeyReused
    | SeatTaken
    | SeatUnknown
    | OfferUnknown
    | SoldOut
    | LimitReached
    | NotAdmitted
    | SaleNotOpen
    | SaleClosed
    | SlowDown
    | Busy
    | Unavailable
)
HeldAnswer = Held | HeldLines | LookOn | NotHeld
HeldAgainAnswer = (
    HeldLines
    | LookOn
    | HoldKnown
    | IdempotencyKeyReused
    | SeatTaken
    | SeatUnknown
    | OfferUnknown
    | SoldOut
    | LimitReached
    | PriceChanged
    | SaleNotOpen
    | SaleClosed
    | Busy
    | Unavailable
)
ExtendedAnswer = Extended | ExtensionSpent | HoldEnded | PaymentRunning | IdempotencyKeyReused | NotFound | Unavailable
ReleasedAnswer = Released | SeatUnknown | HoldEnded | PaymentRunning | IdempotencyKeyReused | NotFound | Unavailable
PayingAnswer = Paying | PaymentRunning | PaymentEnded | HoldEnded | HoldSold | SlowDown | NotFound | Unavailable

HOLD = Script("seats/hold", SaleKeys, HeldAnswer)
HOLD_AGAIN = Script("seats/hold_again", SaleKeys, HeldAgainAnswer)
FIND = Script("seats/find", SaleKeys, Found | NotFound | Unavailable)
EXTEND = Script("seats/extend", SaleKeys, ExtendedAnswer)
RELEASE = Script("seats/release", SaleKeys, ReleasedAnswer)
PAY = Script("seats/pay", SaleKeys, PayingAnswer)
CONFIRM = Script("seats/confirm", SaleKeys, Confirmed | PaymentMismatch | HoldUnknown | Unavailable)
ABANDON = Script("seats/abandon", SaleKeys, Abandoned | HoldSold | HoldUnknown | Unavailable)
EXPIRE = Script("seats/expire", SaleKeys, Expired | Unavailable)
OVERDUE = Script("seats/overdue", SaleKeys, Overdue | Unavailable)
RESTORE = Script("seats/restore", SaleKeys, Restored | HoldUnknown | Unavailable)


# --- what a buyer does ------------------------------------------------------------------------------------------------


async def hold(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    fingerprint: str,
    seat_nos: Sequence[str],
    queue_no: int = 0,
) -> Held | NotHeld:
    """Hold 1 to 20 seats for one buyer, all of them or none; a seat named twice is held once.

    `queue_no` is the buyer's place in line, 0 without one. An id holds once: `HoldKnown` sends the caller to `find`.
    """
    wanted = tuple(dict.fromkeys(seat_nos))
    if not 0 < len(wanted) <= SEATS_MAX:
        raise ValueError(f"a hold takes 1 to {SEATS_MAX} seats, not {len(wanted)}")
    if strange := tuple([seat_no for seat_no in wanted if not is_seat_no(seat_no)]):
        return SeatUnknown(strange)
    held = await sales.ask(
        gate,
        sale,
        HOLD,
        hold_id=hold_id,
        buyer_id=buyer_id,
        queue_no=queue_no,
        fingerprint=fingerprint,
        seat_nos=wanted,
    )
    assert not isinstance(held, HeldLines | LookOn)  # noqa: S101 - only more than names is answered so
    return held


async def hold_again(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    fingerprint: str,
    lines: Sequence[str],
    prices: Sequence[int],
) -> HeldAgainAnswer:
    """Hold what a payment was for that came too late, at these prices and without a place in line: all or nothing.

    Lines are those of a wish, and what it was for is what `reservations.find_wanted` says. LookOn: ask again.
    """
    return await sales.ask(
        gate,
        sale,
        HOLD_AGAIN,
        hold_id=hold_id,
        buyer_id=buyer_id,
        fingerprint=fingerprint,
        wanted_prices=",".join(map(str, prices)),
        lines=tuple(lines),
    )


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold as it stands: HELD, PAYING, SOLD or ENDED; an ended one still lists what it last held.

    SOLD is a word of Redis: only the reservation's row says whether it was bought. `now_ms` is the store's clock.
    """

    hold_id: str
    buyer_id: str
    state: str
    reason: str | None
    lines: tuple[Line, ...]
    amount: int
    fence: int
    queue_no: int
    fingerprint: str
    created_at_ms: int
    expires_at_ms: int
    payment_id: str | None
    pay_deadline_ms: int | None
    now_ms: int


async def find(gate: Gate, sale: Sale, *, hold_id: str) -> Hold | NotFound | Unavailable:
    """Find a hold by its id, whoever's it is; from its deadline on it is ENDED, sweep or not."""
    found = await sales.ask(gate, sale, FIND, hold_id=hold_id)
    if not isinstance(found, Found):
        return found
    return Hold(
        hold_id=hold_id,
        buyer_id=found.buyer_id,
        state=found.state,
        reason=found.reason or None,
        lines=lines_of(found.seats, found.prices, found.tiers),
        amount=found.amount,
        fence=found.fence,
        queue_no=found.queue_no,
        fingerprint=found.fingerprint,
        created_at_ms=found.created_at_ms,
        expires_at_ms=found.expires_at_ms,
        payment_id=found.payment_id or None,
        pay_deadline_ms=found.pay_deadline_ms or None,
        now_ms=found.now_ms,
    )


async def find_open(gate: Gate, sale: Sale, *, buyer_id: str) -> tuple[str, ...]:
    """List the holds of a buyer that have not ended, those being paid too. Raises StoreUnavailable."""
    try:
        row: bytes | None = await gate.redis.hget(sale.keys.buyers, buyer_id)
    except RedisError as fault:
        raise StoreUnavailable(f"the holds of sale {sale.sale_id} cannot be read: {fault}") from fault
    if row is None:
        return ()
    _sold, _ended, open_holds = row.decode().split(" ")
    return tuple([hold_id for hold_id in open_holds.split(",") if hold_id])


async def extend(
    gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, extension_id: str, fingerprint: str
) -> ExtendedAnswer:
    """Give a hold the time of a new one on top, as often as the sale allows and to at most its absolute lifetime."""
    return await sales.ask(
        gate,
        sale,
        EXTEND,
        hold_id=hold_id,
        buyer_id=buyer_id,
        extension_id=extension_id,
        fingerprint=fingerprint,
    )


async def release(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    release_id: str,
    fingerprint: str,
    seat_nos: Sequence[str] = (),
) -> ReleasedAnswer:
    """Give back seats that are held and not being paid: those named, or the whole hold when none is."""
    return await sales.ask(
        gate,
        sale,
        RELEASE,
        hold_id=hold_id,
        buyer_id=buyer_id,
        release_id=release_id,
        fingerprint=fingerprint,
        seat_nos=tuple(dict.fromkeys(seat_nos)),
    )


async def pay(gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, payment_id: str) -> PayingAnswer:
    """Begin a payment: the hold is PAYING until this payment is confirmed or abandoned."""
    return await sales.ask(gate, sale, PAY, hold_id=hold_id, buyer_id=buyer_id, payment_id=payment_id)


# --- how it ends ------------------------------------------------------------------------------------------------------


async def confirm(
    gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
) -> Confirmed | PaymentMismatch | HoldUnknown | Unavailable:
    """Sell what this payment pays, however late; the same again gets the number of the first."""
    return await sales.ask(gate, sale, CONFIRM, hold_id=hold_id, fence=fence, payment_id=payment_id)


async def abandon(
    gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
) -> Abandoned | HoldSold | HoldUnknown | Unavailable:
    """Give a payment up: the seats are held again if the hold's own deadline lies ahead, otherwise free."""
    return await sales.ask(gate, sale, ABANDON, hold_id=hold_id, fence=fence, payment_id=payment_id)


async def expire(gate: Gate, sale: Sale, *, most: int) -> Expired | Unavailable:
    """End at most `most` lapsed holds and forget at most as many records past the repeat window."""
    return await sales.ask(gate, sale, EXPIRE, most=most)


async def overdue(gate: Gate, sale: Sale, *, most: int) -> Overdue | Unavailable:
    """List at most `most` payments past their deadline, the longest overdue first."""
    return await sales.ask(gate, sale, OVERDUE, most=most)


class Claim(msgspec.Struct, frozen=True):
    """Whose a seat is in Postgres: the hold that bought it with its fence, or nobody's.

    `tier` is that of the seat in the hold which is restored.
    """

    seat_no: str
    hold_id: str | None = None
    fence: int = 0
    tier: str | None = None


async def restore(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    fence: int,
    buyer_id: str,
    reason: str,
    goes_next: bool,
    claims: Sequence[Claim],
) -> Restored | HoldUnknown | Unavailable:
    """Make the seats of a hold what Postgres says they are.

    `claims` names every seat of the reservation. `reason` is why it ended, for the record of a hold that ends here;
    with `goes_next` its buyer's place in line lives again and is admitted first. Both answers mean that it is done.
    """
    return await sales.ask(
        gate,
        sale,
        RESTORE,
        hold_id=hold_id,
        fence=fence,
        buyer_id=buyer_id,
        reason=reason,
        goes_next=int(goes_next),
        claims=tuple(
            [
                f"{claim.seat_no} {claim.hold_id or '-'} {claim.fence}" + (f"|{claim.tier}" if claim.tier else "")
                for claim in claims
            ]
        ),
    )
