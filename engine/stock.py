"""Stock: units of variants, held, paid and sold by the same verbs as seats, all lines of an order or none.

Nothing stands on a unit: units are counted, and what a hold has is in its record alone. Where a verb never looks at
what is held (find, extend, pay, overdue) one script serves both, and so does its answer.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from engine import sales, seats
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale
from engine.seats import (
    Abandoned,
    Confirmed,
    Expired,
    ExtendedAnswer,
    HoldEnded,
    HoldKnown,
    HoldSold,
    HoldUnknown,
    LookOn,
    NotAdmitted,
    Overdue,
    PayingAnswer,
    PaymentMismatch,
    PaymentRunning,
    PriceChanged,
    Restored,
    SaleNotOpen,
)
from engine.stores.keys import SaleKeys
from engine.stores.replies import Refusal, Reply, Unavailable
from engine.stores.scripts import Gate, Script

# Lines in one request, and units in one line, at most.
LINES_MAX: Final = 100
QUANTITY_MAX: Final = 10**9

# Repeats of one request, at most: each has ended lapsed holds.
REPEATS_MAX: Final = 2000


class Units(msgspec.Struct, frozen=True):
    """So many units of a variant."""

    variant_id: str
    quantity: int

    @property
    def told(self) -> str:
        """As the store is told."""
        return f"{self.variant_id}:{self.quantity}"


class Line(msgspec.Struct, frozen=True):
    """Units of a variant in a hold, and the price of one that was frozen when they were held."""

    variant_id: str
    quantity: int
    price: int


def units_of(lines: Sequence[str]) -> tuple[Units, ...]:
    """Read `variant_id:quantity` of each."""
    found = [line.split(":") for line in lines]
    return tuple([Units(variant_id, int(quantity)) for variant_id, quantity in found])


def lines_of(units: str, prices: str) -> tuple[Line, ...]:
    """Pair the lists of a record, of an entry `held`, or of what `pay` answers: there the units are called `seats`."""
    pairs = zip(units_of(units.split(",")), prices.split(","), strict=True)
    return tuple([Line(each.variant_id, each.quantity, int(price)) for each, price in pairs])


# --- replies ----------------------------------------------------------------------------------------------------------


class Held(Reply, frozen=True):
    """The units are held."""

    expires_at_ms: int
    fence: int
    amount: int
    created_at_ms: int
    units: str
    prices: str

    @property
    def lines(self) -> tuple[Line, ...]:
        """What is held, each variant once."""
        return lines_of(self.units, self.prices)


class Left(Reply, frozen=True):
    """So many units of each are left."""

    quantities: tuple[str, ...]


class Released(Reply, frozen=True):
    """The units were given back; `repeated` 1 where this very request did it before."""

    repeated: int
    lines: tuple[str, ...]

    @property
    def units(self) -> tuple[Units, ...]:
        """What was given back."""
        return units_of(self.lines)


# --- refusals ---------------------------------------------------------------------------------------------------------


class UnitUnknown(Refusal, frozen=True):
    """This sale or this hold has no such units."""

    variant_ids: tuple[str, ...]


class Shortage(msgspec.Struct, frozen=True):
    """Of a variant: how many units were asked for, and how many are left."""

    variant_id: str
    requested: int
    available: int


class SoldOut(Refusal, frozen=True):
    """There is not enough left of what this request asks for."""

    shortages: tuple[str, ...]

    @property
    def lines(self) -> tuple[Shortage, ...]:
        """Every variant that falls short."""
        rows = [shortage.split(" ") for shortage in self.shortages]
        return tuple([Shortage(variant_id, int(requested), int(left)) for variant_id, requested, left in rows])


class AmountTooLarge(Refusal, frozen=True):
    """All of this together costs more than one order may."""

    most: int


class OrderedAgain(Reply, frozen=True):
    """The same buyer holds units of these, or has bought some since."""

    variant_ids: tuple[str, ...]


# Why nothing is held.
NotHeld = (
    HoldKnown
    | IdempotencyKeyReused
    | UnitUnknown
    | SoldOut
    | LimitReached
    | AmountTooLarge
    | NotAdmitted
    | SaleNotOpen
    | SaleClosed
    | SlowDown
    | Busy
    | Unavailable
)
HeldAnswer = Held | LookOn | NotHeld
HeldAgainAnswer = (
    Held
    | LookOn
    | HoldKnown
    | IdempotencyKeyReused
    | OrderedAgain
    | UnitUnknown
    | PriceChanged
    | SoldOut
    | LimitReached
    | SaleNotOpen
    | SaleClosed
    | Busy
    | Unavailable
)
ReleasedAnswer = (
    Released | UnitUnknown | HoldEnded | PaymentRunning | SlowDown | IdempotencyKeyReused | NotFound | Unavailable
)

LEFT = Script("stock/left", SaleKeys, Left | Unavailable)
HOLD = Script("stock/hold", SaleKeys, HeldAnswer)
HOLD_AGAIN = Script("stock/hold_again", SaleKeys, HeldAgainAnswer)
RELEASE = Script("stock/release", SaleKeys, ReleasedAnswer)
CONFIRM = Script("stock/confirm", SaleKeys, Confirmed | PaymentMismatch | HoldUnknown | Unavailable)
ABANDON = Script("stock/abandon", SaleKeys, Abandoned | HoldSold | HoldUnknown | Unavailable)
EXPIRE = Script("stock/expire", SaleKeys, Expired | Unavailable)
RESTORE = Script("stock/restore", SaleKeys, Restored | HoldUnknown | Unavailable)


# --- what anybody may know --------------------------------------------------------------------------------------------


async def left(gate: Gate, sale: Sale, variant_ids: Sequence[str]) -> dict[str, int] | Unavailable:
    """How many units of these variants anybody may have now."""
    found = await sales.ask(gate, sale, LEFT, variant_ids=tuple(variant_ids))
    if not isinstance(found, Left):
        return found
    return dict(zip(variant_ids, map(int, found.quantities), strict=True))


# --- what a buyer does ------------------------------------------------------------------------------------------------


async def hold(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    fingerprint: str,
    units: Sequence[Units],
    queue_no: int = 0,
) -> Held | NotHeld:
    """Hold the units of 1 to 100 lines for one buyer, all of them or none; a variant named twice is one line.

    `queue_no` is the buyer's place in line, 0 without one. An id holds once: `HoldKnown` sends the caller to `find`.
    """
    if not 0 < len(units) <= LINES_MAX:
        raise ValueError(f"a hold takes 1 to {LINES_MAX} lines, not {len(units)}")
    _check_quantities(units)
    if strange := tuple([each.variant_id for each in units if not _is_variant_id(each.variant_id)]):
        return UnitUnknown(strange)
    lines = tuple([each.told for each in units])
    for _ in range(REPEATS_MAX):
        held = await sales.ask(
            gate,
            sale,
            HOLD,
            hold_id=hold_id,
            buyer_id=buyer_id,
            queue_no=queue_no,
            fingerprint=fingerprint,
            lines=lines,
        )
        if not isinstance(held, LookOn):
            return held
    return Busy(retry_after_ms=1000)


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

    Lines are those of `hold` as the store is told them, and `prices` what a unit of each cost. LookOn: ask again.
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

    SOLD is a word of Redis: only the order's row says whether it was bought. `now_ms` is the store's clock.
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
    found = await sales.ask(gate, sale, seats.FIND, hold_id=hold_id)
    if not isinstance(found, seats.Found):
        return found
    return Hold(
        hold_id=hold_id,
        buyer_id=found.buyer_id,
        state=found.state,
        reason=found.reason or None,
        lines=lines_of(found.seats, found.prices),
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
    return await seats.find_open(gate, sale, buyer_id=buyer_id)


async def extend(
    gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, extension_id: str, fingerprint: str
) -> ExtendedAnswer:
    """Give a hold the time of a new one on top, as often as the sale allows and to at most its absolute lifetime."""
    return await seats.extend(
        gate, sale, hold_id=hold_id, buyer_id=buyer_id, extension_id=extension_id, fingerprint=fingerprint
    )


async def release(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    release_id: str,
    fingerprint: str,
    units: Sequence[Units] = (),
) -> ReleasedAnswer:
    """Give back units that are held and not being paid: those named, or the whole hold when none is."""
    _check_quantities(units)
    if strange := tuple([each.variant_id for each in units if not _is_variant_id(each.variant_id)]):
        return UnitUnknown(strange)
    return await sales.ask(
        gate,
        sale,
        RELEASE,
        hold_id=hold_id,
        buyer_id=buyer_id,
        release_id=release_id,
        fingerprint=fingerprint,
        lines=tuple([each.told for each in units]),
    )


async def pay(gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, payment_id: str) -> PayingAnswer:
    """Begin a payment: the hold is PAYING until this payment is confirmed or abandoned.

    `lines_of(paying.seats, paying.prices)` are its lines.
    """
    return await seats.pay(gate, sale, hold_id=hold_id, buyer_id=buyer_id, payment_id=payment_id)


# --- how it ends ------------------------------------------------------------------------------------------------------


async def confirm(
    gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
) -> Confirmed | PaymentMismatch | HoldUnknown | Unavailable:
    """Sell what this payment pays, however late; the same again gets the number of the first."""
    return await sales.ask(gate, sale, CONFIRM, hold_id=hold_id, fence=fence, payment_id=payment_id)


async def abandon(
    gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
) -> Abandoned | HoldSold | HoldUnknown | Unavailable:
    """Give a payment up: the units are held again if the hold's own deadline lies ahead, otherwise free."""
    return await sales.ask(gate, sale, ABANDON, hold_id=hold_id, fence=fence, payment_id=payment_id)


async def expire(gate: Gate, sale: Sale, *, most: int) -> Expired | Unavailable:
    """End at most `most` lapsed holds and forget at most as many records past the repeat window."""
    return await sales.ask(gate, sale, EXPIRE, most=most)


async def overdue(gate: Gate, sale: Sale, *, most: int) -> Overdue | Unavailable:
    """List at most `most` payments past their deadline, the longest overdue first."""
    return await seats.overdue(gate, sale, most=most)


class Claim(msgspec.Struct, frozen=True):
    """Units of a variant that a hold has bought, in Postgres.

    `counted` are those that the store counts for the hold as far as Postgres knows: what it bought at first, or what
    the last `restored` entry that was applied says. It matters where the store has forgotten the hold.
    """

    variant_id: str
    counted: int
    bought: int = 0


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
    """Make a hold what Postgres says that it has bought; the rest of it goes back.

    `claims` names every variant of the order. `reason` is why it ended, for the record of a hold that ends here; with
    `goes_next` its buyer's place in line lives again and is admitted first. Restored and HoldUnknown both mean that it
    is done.

    Claims are of one epoch: in the next one the store counts what Postgres said when it was written. So they are read
    after `sale`, and a stale epoch is not asked again in the new one: the caller reads both anew.
    """
    return await RESTORE(
        gate,
        sale.keys,
        epoch=sale.epoch,
        hold_id=hold_id,
        fence=fence,
        buyer_id=buyer_id,
        reason=reason,
        goes_next=int(goes_next),
        claims=tuple([f"{claim.variant_id} {claim.counted} {claim.bought}" for claim in claims]),
    )


def _check_quantities(units: Sequence[Units]) -> None:
    if strange := [each for each in units if not 0 < each.quantity <= QUANTITY_MAX]:
        raise ValueError(f"a line is of 1 to {QUANTITY_MAX} units: {strange}")


def _is_variant_id(text: str) -> bool:
    """Whether a variant may be called so: what separates lists and lines stands in no variant's id."""
    return bool(text) and not set(text) & set(" ,:|")
