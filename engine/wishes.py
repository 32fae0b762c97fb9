"""What a buyer wishes to hold beyond seats by their numbers: tiers, places in areas, seats of blocks, the best seats.

A wish is judged and held in one script, all of it or nothing. A script does a bounded part of a long search and says
where it was; the engine asks it the same again until the answer is known.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from engine import ids, sales
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, SaleClosed, SlowDown
from engine.sales import Sale
from engine.seats import (
    HOLD,
    SEATS_MAX,
    Held,
    HeldLines,
    HoldKnown,
    Line,
    LookOn,
    NotAdmitted,
    NotHeld,
    OfferUnknown,
    SaleNotOpen,
    SeatUnknown,
    SoldOut,
    is_seat_no,
    lines_of,
)
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script

# Repeats of one request, at most: each has looked at 64 units of the hall or ended lapsed holds.
REPEATS_MAX: Final = 2000

R = TypeVar("R")


class SeatLine(msgspec.Struct, frozen=True):
    """One seat that is wanted, at its own price or in a tier."""

    seat_no: str
    tier: str | None = None


class AreaLine(msgspec.Struct, frozen=True):
    """So many places of an area, whichever are free, each at the area's price or in a tier."""

    area: str
    quantity: int
    tier: str | None = None


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """So many seats, the best that are free, of which at least `accessible` are accessible; with 0 none is."""

    quantity: int
    category: str | None = None
    section: str | None = None
    tier: str | None = None
    accessible: int = 0


class HeldBest(Reply, frozen=True):
    """The best seats are held; how good they are is their level.

    `level` 1: adjacent, and no single seat is left alone; 2: adjacent; 3: in the fewest rows. `groups` counts the runs
    of adjacent seats among them, `orphans` the single seats that they leave alone.
    """

    expires_at_ms: int
    fence: int
    amount: int
    created_at_ms: int
    level: int
    groups: int
    orphans: int
    seats: str
    prices: str
    tiers: str

    @property
    def lines(self) -> tuple[Line, ...]:
        """What is held."""
        return lines_of(self.seats, self.prices, self.tiers)


BestAnswer = (
    HeldBest
    | HoldKnown
    | IdempotencyKeyReused
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

HOLD_BEST = Script("seats/hold_best", SaleKeys, BestAnswer | LookOn)


async def hold_lines(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    fingerprint: str,
    lines: Sequence[SeatLine | AreaLine],
    access_code: str | None = None,
    channel: str | None = None,
    queue_no: int = 0,
) -> Held | HeldLines | NotHeld:
    """Hold seats and places, 1 to 20 together, all of them or none; a line that is said twice is meant once.

    Seats without a tier, a code and a channel are answered as `seats.hold` answers them. Raises ValueError for a wish
    that no sale could fulfil.
    """
    wanted = tuple(dict.fromkeys(line for line in lines if isinstance(line, SeatLine)))
    areas = [line for line in lines if isinstance(line, AreaLine)]
    if len({line.seat_no for line in wanted}) < len(wanted):
        raise ValueError("a seat is held in one tier")
    if any(line.quantity < 1 for line in areas):
        raise ValueError("an area is asked for at least one place")
    count = len(wanted) + sum(line.quantity for line in areas)
    if not 0 < count <= SEATS_MAX:
        raise ValueError(f"a hold takes 1 to {SEATS_MAX} seats, not {count}")
    _check_names(channel, *(line.tier for line in lines), *(line.area for line in areas))
    if strange := tuple([line.seat_no for line in wanted if not is_seat_no(line.seat_no)]):
        return SeatUnknown(strange)
    access = _access(sale, access_code, channel)
    told = (
        *([f"=={access}"] if access else []),
        *[f"{line.seat_no}|{line.tier}" if line.tier else line.seat_no for line in wanted],
        *[f"={line.area}|{line.quantity}|{line.tier or ''}" for line in areas],
    )

    async def ask(_at: str) -> Held | HeldLines | LookOn | NotHeld:
        return await sales.ask(
            gate,
            sale,
            HOLD,
            hold_id=hold_id,
            buyer_id=buyer_id,
            queue_no=queue_no,
            fingerprint=fingerprint,
            seat_nos=told,
        )

    return await _looking_on(ask)


async def hold_best(
    gate: Gate,
    sale: Sale,
    *,
    hold_id: str,
    buyer_id: str,
    fingerprint: str,
    best: Best,
    access_code: str | None = None,
    channel: str | None = None,
    queue_no: int = 0,
) -> BestAnswer:
    """Pick the best 1 to 20 seats that are free and hold them; sold out is said only when fewer are free.

    A tier is sold within categories whose cap has room for all of the seats. Raises ValueError for a wish that no sale
    could fulfil.
    """
    if not 0 < best.quantity <= SEATS_MAX or not 0 <= best.accessible <= best.quantity:
        raise ValueError(f"a hold takes 1 to {SEATS_MAX} seats, at most all of them accessible: {best}")
    _check_names(channel, best.tier, best.section, best.category)

    async def ask(at: str) -> BestAnswer | LookOn:
        return await sales.ask(
            gate,
            sale,
            HOLD_BEST,
            hold_id=hold_id,
            buyer_id=buyer_id,
            queue_no=queue_no,
            fingerprint=fingerprint,
            access=_access(sale, access_code, channel),
            quantity=best.quantity,
            accessible=best.accessible,
            tier=best.tier or "",
            section=best.section or "",
            category=best.category or "",
            **{"from": at},
        )

    return await _looking_on(ask)


def code_hash(sale_id: str, access_code: str) -> str:
    """What the store keeps of an access code, and what one that is shown is compared by."""
    return ids.fingerprint("access code", sale_id, access_code)


async def _looking_on(ask: Callable[[str], Awaitable[R | LookOn]]) -> R | Busy:
    at = ""
    for _ in range(REPEATS_MAX):
        answer = await ask(at)
        if not isinstance(answer, LookOn):
            return answer
        at = answer.at
    return Busy(retry_after_ms=1000)


def _access(sale: Sale, access_code: str | None, channel: str | None) -> str:
    """What a buyer shows of blocks, or nothing."""
    if access_code is None and channel is None:
        return ""
    return f"{code_hash(sale.sale_id, access_code) if access_code else ''}|{channel or ''}"


def _check_names(*names: str | None) -> None:
    for name in names:
        if name is not None and (not name or name == "-" or set(name) & set("|,=")):
            raise ValueError(f"{name!r} is nobody's name")
