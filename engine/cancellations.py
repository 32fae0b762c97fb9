"""Cancellations: what was bought is given back, whole or in part, and its money with it, exact to the last unit.

One transaction does all of it: what was bought is nobody's any more, the balance has its money at once, and what a card
paid becomes a row for its gateway. The same transaction writes the row by which Redis gives the goods back
(`reconciliation`), so that whoever dies, they become free once.

What is paid back is decided line by line, and rounded down there. So cancelling bit by bit comes to what cancelling at
once would have given, in whatever order. Seats (`seat_cancellations`) and units (`order_cancellations`) differ in their
rows and in what their policy counts its hours to: each says so in a `Kind`, and the rest is here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeVar

import asyncpg
import msgspec

from engine import discounts, ids, reconciliation, wares
from engine.holdings import Lines
from engine.moments import LAST_ID, LATEST
from engine.payments import LIVE
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import SaleBook
from engine.seats import PaymentRunning, SeatUnknown
from engine.stock import UnitUnknown
from engine.stores import queries
from engine.stores.connections import POSTGRES_AWAY, POSTGRES_CROSSED, StoreUnavailable
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding
from engine.stores.scripts import Gate, ScriptFault

logger = logging.getLogger(__name__)

SQL = queries.load("cancellations")

Reason = Literal["USER", "ADMIN", "EVENT_CANCELLED"]
RefundTo = Literal["SOURCE", "BALANCE"]

ATTEMPTS_MAX: Final = 10
# Holds that Redis gives back before a buyer is answered: others' may be due too.
TOLD_AT_ONCE: Final = 20

# Payments that did buy what they paid for.
_PAID: Final = frozenset({"SUCCESS", "PARTIALLY_REFUNDED", "REFUNDED"})

R = TypeVar("R")


class CancellationClosed(Refusal, frozen=True):
    """This cannot be cancelled."""

    # UNPAID | ENDED | STARTED | TOO_LATE | REDEEMED | UNCOLLECTED
    reason: str
    # The seats whose tickets are redeemed.
    seat_nos: tuple[str, ...] = ()


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """Money on its way back, to a balance or to a card; PENDING, DONE or FAILED."""

    refund_id: str
    payment_id: str
    user_id: str
    amount: int
    refund_to: str
    status: str
    reason: str
    created_at: datetime
    done_at: datetime | None


class Cancellation(msgspec.Struct, frozen=True, kw_only=True):
    """Seats of a reservation, or units of an order, that were given back.

    `refunds` has what goes to the card first, then what went to the balance.
    """

    cancellation_id: str
    reservation_id: str | None
    order_id: str | None
    user_id: str
    seat_nos: tuple[str, ...]
    variant_ids: tuple[str, ...]
    quantities: tuple[int, ...]
    reason: str
    refund_amount: int
    kept_amount: int
    refund_to: str
    fingerprint: str
    created_at: datetime
    refunds: tuple[Refund, ...]
    repeated: bool


Refused = CancellationClosed | PaymentRunning | SeatUnknown | UnitUnknown | NotFound | SaleRebuilding


# The policy -----------------------------------------------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True):
    """Until so many hours before, so much of the price is paid back."""

    hours_before: int
    percent: int


# What an operator cancels, or an event that is off.
IN_FULL: Final = Rule(hours_before=0, percent=100)


def first_rule(policy: Sequence[Rule], left: timedelta | None) -> Rule | CancellationClosed:
    """Find the rule that counts: the first, in the order given, of which at least `hours_before` are left.

    Where nothing comes that hours could be counted to, `left` is None, and the first rule counts.
    """
    for rule in policy:
        if left is None or left >= timedelta(hours=rule.hours_before):
            return rule
    return CancellationClosed(reason="TOO_LATE")


def share_of(price: int, percent: int) -> int:
    """What is paid back of one line: rounded down, each line by itself, so that parts add up to the whole."""
    return price * percent // 100


# What is bought -------------------------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True):
    """A seat, or units of a variant: what was paid for all of it, how many went back, and whether it was used."""

    price: int
    quantity: int = 1
    returned: int = 0
    is_redeemed: bool = False

    @property
    def left(self) -> int:
        """How many can still be given back."""
        return self.quantity - self.returned

    def worth(self, quantity: int, percent: int = 100) -> int:
        """What giving so many more back comes to: the share of all that went back then, less that of before."""
        before, after = (
            share_of(self.price * of // self.quantity, percent) for of in (self.returned, self.returned + quantity)
        )
        return after - before


class Payment(msgspec.Struct):
    """What a payment has collected, and what of that went back."""

    payment_id: str
    hold_id: str
    status: str
    balance_amount: int
    card_amount: int
    captured_amount: int
    refunded_amount: int
    refunded_to_card: int

    @property
    def of_card(self) -> int:
        """What the card has paid or will: of a capture that was refused for good, what was taken before."""
        return self.captured_amount if self.status == "UNCOLLECTED" else self.card_amount

    @property
    def left(self) -> int:
        """What can still be given back."""
        return self.balance_amount + self.of_card - self.refunded_amount

    @property
    def in_hand(self) -> int:
        """What of it is there: what the card has still to pay can be let go, and be paid to nobody."""
        return self.left - max(0, self.of_card - self.captured_amount - self.refunded_to_card)


class Bought(msgspec.Struct):
    """The row of a hold that was bought, what it has by name, and the payment that bought it."""

    hold_id: str
    user_id: str
    sale_id: str
    fence: int
    status: str
    lines: dict[str, Line] = {}
    payment: Payment | None = None


class _Balance(msgspec.Struct):
    """A balance while a batch is written: each refund sees what the one before it left."""

    amount: int
    version: int


class Locked(msgspec.Struct, frozen=True):
    """What nobody else changes until this transaction ends, by id."""

    balances: dict[str, _Balance]
    bought: dict[str, Bought]


# A kind of sale -------------------------------------------------------------------------------------------------------


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a hold is, how its row stands, and by which rule its buyer may give it back now; None is in full."""

    user_id: str
    sale_id: str
    status: str
    rule: Rule | CancellationClosed | None
    is_called_off: bool = False


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be given back, all that is left when nothing is named, and where the money should go."""

    cancellation_id: str
    hold_id: str
    lines: Lines
    refund_to: RefundTo
    fingerprint: str


class Part(msgspec.Struct, frozen=True):
    """Of what is called so, so many are given back, and so much is paid back for them."""

    name: str
    quantity: int
    amount: int


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What is given back of a hold, and how much of its price is."""

    parts: tuple[Part, ...]
    amount: int
    kept: int
    rule: Rule | None
    is_whole: bool


class GivenBack(msgspec.Struct, frozen=True):
    """A wish that is granted."""

    wish: Wish
    reason: Reason
    bought: Bought
    share: Share


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind of sale takes back what it sold.

    Args:
        name: the kind, as the sale has it.
        bought: rows in these states have something that can be given back.
        unknown: refuses what a hold does not have.
        find_terms: reads the terms of a hold; None where there is no such row.
        lock: locks rows in id order, and reads what each has once it is locked.
        write: writes what holds of one sale do not have any more, and the records of it.
    """

    name: str
    bought: frozenset[str]
    unknown: Callable[[tuple[str, ...]], SeatUnknown | UnitUnknown]
    find_terms: Callable[[asyncpg.Pool | Connection, str], Awaitable[Terms | None]]
    lock: Callable[[Connection, Sequence[str]], Awaitable[dict[str, Bought]]]
    write: Callable[[Connection, str, Sequence[GivenBack]], Awaitable[None]]


# Quote and cancel -----------------------------------------------------------------------------------------------------


async def quote(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, kind: Kind, *, hold_id: str, user_id: str, lines: Lines
) -> Share | Refused:
    """Say what cancelling this of a user's hold now would pay back, all that is left when nothing is named."""
    terms = await kind.find_terms(postgres, hold_id)
    if terms is not None and terms.user_id != user_id:
        return NotFound()
    if terms is None or terms.status not in kind.bought:
        return await _why_unsold(gate, postgres, book, kind, hold_id, user_id, terms)

    async def judge_it(connection: Connection) -> Share | Refused:
        # Read as `cancel` reads, locks and all, so that it says what that would do.
        locked = await lock(connection, kind, [hold_id])
        return judge(kind, locked.bought[hold_id], *_terms_for(terms, user_id), lines)

    return await transact(postgres, judge_it)


async def cancel(
    gate: Gate, postgres: asyncpg.Pool, book: SaleBook, kind: Kind, wish: Wish, *, user_id: str | None
) -> Cancellation | IdempotencyKeyReused | Refused:
    """Give back what was bought; refund what the policy says.

    Without a `user_id` it is an operator's wish: anybody's, at any time, refunded in full. So is what a buyer cancels
    of an event that is off. The same id acts once: asked again it answers what it did, as its refunds now stand. Redis
    is told at once, and by the reconciler if it does not hear.
    """
    terms = await kind.find_terms(postgres, wish.hold_id)
    if terms is not None and user_id not in {None, terms.user_id}:
        return NotFound()
    if terms is None:
        return await _why_unsold(gate, postgres, book, kind, wish.hold_id, user_id, terms)

    async def give_back(connection: Connection) -> Cancellation | IdempotencyKeyReused | Refused | None:
        locked = await lock(connection, kind, [wish.hold_id])
        # Copies of one wish are all about one buyer's balance, so each finds the row of the one before it.
        earlier = await _find_cancellation(connection, wish.cancellation_id, repeated=True)
        if earlier is not None:
            return earlier if earlier.fingerprint == wish.fingerprint else IdempotencyKeyReused()
        bought = locked.bought[wish.hold_id]
        if bought.status == "PENDING":
            return None
        # Read anew: the lock may have been waited for, and the event been called off meanwhile. `now` is when this
        # transaction began, so nobody is too late because others were before them.
        now_terms = await kind.find_terms(connection, wish.hold_id)
        assert now_terms is not None  # noqa: S101 - these rows are never deleted
        reason, rule = _terms_for(now_terms, user_id)
        share = judge(kind, bought, reason, rule, wish.lines)
        if not isinstance(share, Share):
            return share
        await write(connection, kind, bought.sale_id, locked, [GivenBack(wish, reason, bought, share)])
        return await _find_cancellation(connection, wish.cancellation_id, repeated=False)

    done = await transact(postgres, give_back)
    if done is None:
        return await _why_unsold(gate, postgres, book, kind, wish.hold_id, user_id, terms)
    if isinstance(done, Cancellation) and not done.repeated:
        await tell_redis(gate, postgres, book, terms.sale_id, most=TOLD_AT_ONCE)
    return done


def _terms_for(terms: Terms, user_id: str | None) -> tuple[Reason, Rule | CancellationClosed | None]:
    """Why somebody cancels, and the rule that counts then."""
    if terms.is_called_off:
        return "EVENT_CANCELLED", IN_FULL
    return ("USER", terms.rule) if user_id is not None else ("ADMIN", IN_FULL)


async def _why_unsold(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    kind: Kind,
    hold_id: str,
    user_id: str | None,
    terms: Terms | None,
) -> Refused:
    """Why there is nothing to cancel in a hold that Postgres does not call bought."""
    if terms is not None:
        if terms.status != "PENDING":
            return CancellationClosed(reason="ENDED")
        payment_id = await SQL.find_live_payment.fetchval(postgres, hold_id)
        if payment_id is not None:
            return PaymentRunning(payment_id=payment_id)
    unavailable: SaleRebuilding | None = None
    for sale in await book.find_by_prefix(hold_id):
        if sale.kind != kind.name:
            continue
        found = await wares.of(sale).scripts.find(gate, sale, hold_id=hold_id)
        if isinstance(found, NotFound):
            continue
        if isinstance(found, Refusal):
            unavailable = SaleRebuilding()
            continue
        if user_id not in {None, found.buyer_id}:
            return NotFound()
        if found.state in {"PAYING", "SOLD"}:
            return PaymentRunning(payment_id=found.payment_id or "")
        return CancellationClosed(reason="UNPAID" if found.state == "HELD" else "ENDED")
    return CancellationClosed(reason="UNPAID") if terms is not None else unavailable or NotFound()


async def tell_redis(gate: Gate, postgres: asyncpg.Pool, book: SaleBook, sale_id: str, *, most: int) -> None:
    """Give the goods back at once; what stands in the way is no matter, because the reconciler does it again."""
    sale = await book.find(sale_id)
    if sale is None:
        return
    try:
        await reconciliation.give_back(gate, postgres, sale, most=most)
    except (StoreUnavailable, ScriptFault, asyncpg.PostgresError, *POSTGRES_AWAY) as fault:
        logger.warning("sale %s: what was cancelled is given back later: %s", sale_id, fault)


async def transact(postgres: asyncpg.Pool, work: Callable[[Connection], Awaitable[R]]) -> R:
    """Do this in one transaction, again where Postgres ended one of two that crossed. Raises StoreUnavailable."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            async with postgres.acquire() as connection, connection.transaction():
                return await work(connection)
        except POSTGRES_CROSSED as fault:
            if attempt == ATTEMPTS_MAX:
                raise StoreUnavailable(f"a cancellation was crossed {attempt} times: {fault}") from fault
            await asyncio.sleep(0.005 * attempt)
    raise AssertionError("the last attempt answers or raises")


# Read under lock ------------------------------------------------------------------------------------------------------


async def lock(connection: Connection, kind: Kind, hold_ids: Sequence[str]) -> Locked:
    """Lock coupons, balances, payments, then the rows of holds, in the one order; each is read once it is locked."""
    await discounts.lock_of_holds(connection, hold_ids)
    balances = {
        row["user_id"]: _Balance(row["amount"], row["version"])
        for row in await SQL.lock_balances.fetch(connection, hold_ids)
    }
    payments = [Payment(**row, refunded_to_card=0) for row in await SQL.lock_payments.fetch(connection, hold_ids)]
    bought = await kind.lock(connection, hold_ids)
    by_id = {payment.payment_id: payment for payment in payments}
    for payment in payments:
        bought[payment.hold_id].payment = payment
    for row in await SQL.count_refunded_to_card.fetch(connection, list(by_id)):
        by_id[row["payment_id"]].refunded_to_card = row["amount"]
    return Locked(balances, bought)


# Decide ---------------------------------------------------------------------------------------------------------------


def judge(
    kind: Kind, bought: Bought, reason: Reason, rule: Rule | CancellationClosed | None, lines: Lines
) -> Share | Refused:
    """Say what giving this back comes to, or why it cannot be given back.

    A buyer may not give back what was used, nor what no card has paid; an operator may, and gets no more back than was
    collected.
    """
    payment, by_user = bought.payment, reason == "USER"
    if payment is not None and payment.status in LIVE:
        return PaymentRunning(payment_id=payment.payment_id)
    if bought.status not in kind.bought:
        return CancellationClosed(reason="ENDED")
    have = {name: line.left for name, line in bought.lines.items() if line.left}
    chosen = lines or dict(sorted(have.items()))
    unknown = tuple([name for name, quantity in chosen.items() if have.get(name, 0) < quantity])
    if unknown:
        return kind.unknown(unknown)
    if isinstance(rule, CancellationClosed):
        return rule
    redeemed = tuple([name for name in chosen if bought.lines[name].is_redeemed])
    if by_user and redeemed:
        return CancellationClosed(reason="REDEEMED", seat_nos=redeemed)
    if by_user and payment is not None and payment.status not in _PAID:
        return CancellationClosed(reason="UNCOLLECTED")
    left = payment.left if payment is not None else 0
    price = sum(bought.lines[name].worth(quantity) for name, quantity in chosen.items())
    parts: list[Part] = []
    amount = 0
    for name, quantity in chosen.items():
        worth = bought.lines[name].worth(quantity, rule.percent if rule else 100)
        parts.append(Part(name, quantity, min(worth, left - amount)))
        amount += parts[-1].amount
    return Share(
        parts=tuple(parts),
        amount=amount,
        kept=min(left, price) - amount,
        rule=rule,
        is_whole=dict(chosen) == have,
    )


# Write ----------------------------------------------------------------------------------------------------------------


class _Money(msgspec.Struct):
    """Where the money of a batch goes, as rows to be written."""

    payments: dict[str, int] = {}
    refunds: list[tuple[str, str, str, str, int, str, str]] = []
    history: list[tuple[str, str, str, int, int, int, str]] = []
    voids: list[str] = []
    operations: list[tuple[str, str, str, int]] = []


async def write(
    connection: Connection, kind: Kind, sale_id: str, locked: Locked, given_back: Sequence[GivenBack]
) -> None:
    """Give goods of one sale back with their money; everything that is touched is locked."""
    bought = [each.bought for each in given_back]
    # The restores before all that comes now: see the head of sql/cancellations.sql.
    await add_restores(connection, sale_id, bought)
    await kind.write(connection, sale_id, given_back)
    money = _Money()
    for each in given_back:
        _divide(money, each, locked.balances)
    await _write_money(connection, money, locked.balances)


async def add_restores(connection: Connection, sale_id: str, bought: Sequence[Bought]) -> None:
    """Ask for these holds to be made in Redis what they are here."""
    hold_ids, fences = [each.hold_id for each in bought], [each.fence for each in bought]
    await SQL.add_restores.execute(connection, sale_id, hold_ids, fences)


def _divide(money: _Money, given_back: GivenBack, balances: Mapping[str, _Balance]) -> None:
    """Say where the money of one cancellation goes: to the card as far as that paid, to the balance with the rest.

    A buyer may have all of it go to the balance but what the card has not paid yet, which waits for its capture.
    """
    wish, bought, share = given_back.wish, given_back.bought, given_back.share
    payment = bought.payment
    if payment is None:
        return
    # What cost nothing is refunded in full once all of it is back.
    if share.amount == 0 and not (share.is_whole and payment.left == 0):
        return
    money.payments[payment.payment_id] = share.amount
    if wish.refund_to == "BALANCE":
        to_card = max(0, share.amount - payment.in_hand)
    else:
        to_card = min(share.amount, payment.of_card - payment.refunded_to_card)
    for refund_to, amount in (("CARD", to_card), ("BALANCE", share.amount - to_card)):
        if amount == 0:
            continue
        refund_id = ids.derive("refund", wish.cancellation_id, refund_to)
        of = (refund_id, payment.payment_id)
        money.refunds.append((*of, wish.cancellation_id, bought.user_id, amount, refund_to, given_back.reason))
        if refund_to == "BALANCE":
            balance = balances[bought.user_id]
            balance.amount += amount
            balance.version += 1
            after = (balance.amount, balance.version)
            money.history.append((*of, bought.user_id, amount, *after, given_back.reason))
            continue
        if amount == payment.card_amount:
            money.voids.append(payment.payment_id)
        operation_id = ids.derive("gateway", "REFUND", payment.payment_id, refund_id)
        money.operations.append((operation_id, payment.payment_id, refund_id, amount))


async def _write_money(connection: Connection, money: _Money, balances: Mapping[str, _Balance]) -> None:
    """Write where the money goes; a payment that `refund_payments` leaves REFUNDED has nothing more to give back."""
    if not money.payments:
        return
    await SQL.refund_payments.execute(connection, list(money.payments), list(money.payments.values()))
    if money.refunds:
        await SQL.add_refunds.execute(connection, *map(list, zip(*money.refunds, strict=True)))
    # After them: what is on its way to a card is not back yet.
    await discounts.give_back(connection, list(money.payments))
    if money.history:
        await SQL.set_balances.execute(
            connection,
            list(balances),
            [balance.amount for balance in balances.values()],
            [balance.version for balance in balances.values()],
        )
        await SQL.add_history.execute(connection, *map(list, zip(*money.history, strict=True)))
    voided = {
        row["payment_id"]
        for row in await SQL.void_captures.fetch(
            connection,
            money.voids,
            [ids.derive("gateway", "VOID", payment_id) for payment_id in money.voids],
        )
    }
    # A refund of what was never captured is done when the void is.
    operations = [operation for operation in money.operations if operation[1] not in voided]
    if operations:
        await SQL.add_refund_operations.execute(connection, *map(list, zip(*operations, strict=True)))


# Read -----------------------------------------------------------------------------------------------------------------


async def _find_cancellation(connection: Connection, cancellation_id: str, *, repeated: bool) -> Cancellation | None:
    row = await SQL.find_cancellation.fetchrow(connection, cancellation_id)
    if row is None:
        return None
    refunds = tuple([Refund(**row) for row in await SQL.list_refunds_of.fetch(connection, cancellation_id)])
    listed = {name: tuple(row[name]) for name in ("seat_nos", "variant_ids", "quantities")}
    return Cancellation(**dict(row) | listed, refunds=refunds, repeated=repeated)


async def find_refund(postgres: asyncpg.Pool, refund_id: str, user_id: str) -> Refund | None:
    """A user's refund."""
    row = await SQL.find_refund.fetchrow(postgres, refund_id, user_id)
    return Refund(**row) if row else None


async def list_refunds(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Refund]:
    """A user's refunds, newest first, from after the cursor (created_at, refund_id)."""
    return [Refund(**row) for row in await SQL.list_refunds.fetch(postgres, user_id, *before, limit)]
