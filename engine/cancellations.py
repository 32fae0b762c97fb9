"""Cancellations: what was bought is given back, whole or in part, and its money with it, exact to the last unit.

One transaction does all of it: the claims end, the tickets open no door any more, the balance has its money at once,
and what a card paid becomes a row for its gateway. The same transaction writes the row by which Redis gives the seats
back (`reconciliation`), so that whoever dies, the seats become free once.

What is paid back is decided line by line: the price of a seat times the percentage of the policy, rounded down. So
cancelling seat by seat comes to what cancelling at once would have given, in whatever order.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeVar

import asyncpg
import msgspec

from engine import ids, offers, reconciliation, reservations, sales, seats
from engine.moments import LAST_ID, LATEST
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import Checkpoint, Sale, SaleBook
from engine.seats import PaymentRunning, SeatUnknown
from engine.stores import queries
from engine.stores.connections import POSTGRES_AWAY, Stores, StoreUnavailable
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding
from engine.stores.scripts import Gate, ScriptFault

logger = logging.getLogger(__name__)

SQL = queries.load("cancellations")

Reason = Literal["USER", "ADMIN", "EVENT_CANCELLED"]
RefundTo = Literal["SOURCE", "BALANCE"]

ATTEMPTS_MAX: Final = 10
# Reservations whose seats Redis gives back before a buyer is answered: others' may be due too.
TOLD_AT_ONCE: Final = 20
# Seats whose buyers one transaction refunds when an event is off.
SEATS_AT_ONCE: Final = 400

_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# Payments that may still buy the seats, and payments that did.
_LIVE: Final = frozenset({"PENDING", "AUTHORISED", "IN_DOUBT"})
_PAID: Final = frozenset({"SUCCESS", "PARTIALLY_REFUNDED", "REFUNDED"})

R = TypeVar("R")


class CancellationClosed(Refusal, frozen=True):
    """This cannot be cancelled."""

    # UNPAID | ENDED | STARTED | TOO_LATE | REDEEMED | UNCOLLECTED
    reason: str
    # The seats whose tickets are redeemed.
    seat_nos: tuple[str, ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """Until so many hours before the start, so much of the price is paid back."""

    hours_before: int
    percent: int


# Without a policy everything is paid back until the start.
DEFAULT_POLICY: Final = (Rule(hours_before=0, percent=100),)


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What cancelling these seats now would pay back, and by which rule."""

    seat_nos: tuple[str, ...]
    amount: int
    kept: int
    percent: int
    policy_hours: int


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
    """Seats that were given back; `refunds` has what goes to the card first, then what went to the balance."""

    cancellation_id: str
    reservation_id: str
    user_id: str
    seat_nos: tuple[str, ...]
    reason: str
    refund_amount: int
    kept_amount: int
    refund_to: str
    fingerprint: str
    created_at: datetime
    refunds: tuple[Refund, ...]
    repeated: bool


class CallOff(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is off, and how many of its reservations have ended so far."""

    schedule_id: str
    sale_id: str
    total: int
    done: int
    created_at: datetime
    finished_at: datetime | None
    repeated: bool = False


Refused = CancellationClosed | PaymentRunning | SeatUnknown | NotFound | SaleRebuilding


# The policy -----------------------------------------------------------------------------------------------------------


def rule_of(policy: Sequence[Rule], *, start_at: datetime, now: datetime) -> Rule | CancellationClosed:
    """Find the rule that counts: the first, in the order given, of which at least `hours_before` are left.

    From the start on nothing is cancelled, whatever the policy says; nor is it when a policy is given and no rule of it
    matches any more. No policy is one rule: everything, until the start.
    """
    if now >= start_at:
        return CancellationClosed(reason="STARTED")
    for rule in policy or DEFAULT_POLICY:
        if start_at - now >= timedelta(hours=rule.hours_before):
            return rule
    return CancellationClosed(reason="TOO_LATE")


def share_of(price: int, percent: int) -> int:
    """What is paid back of one line: rounded down, each line by itself, so that parts add up to the whole."""
    return price * percent // 100


async def quote(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    reservation_id: str,
    user_id: str,
    seat_nos: Sequence[str] = (),
) -> Quote | Refused:
    """Say what cancelling these seats of a user's reservation now would pay back, all of them when none is named."""
    terms = await SQL.find_terms.fetchrow(postgres, reservation_id)
    if terms is not None and terms["user_id"] != user_id:
        return NotFound()
    if terms is None or terms["status"] != "CONFIRMED":
        return await _why_unsold(gate, postgres, book, reservation_id, user_id, terms)

    async def judge(connection: Connection) -> _Share | Refused:
        # Read as `cancel` reads, locks and all, so that it says what that would do.
        locked = await _lock(connection, [reservation_id])
        rule, by_user = _rule(terms, "USER"), not terms["is_called_off"]
        return _judge(locked.bought[reservation_id], rule, seat_nos, by_user=by_user)

    judged = await _transact(postgres, judge)
    if not isinstance(judged, _Share):
        return judged
    return Quote(
        seat_nos=judged.seat_nos,
        amount=judged.amount,
        kept=judged.kept,
        percent=judged.rule.percent,
        policy_hours=judged.rule.hours_before,
    )


# Cancel ---------------------------------------------------------------------------------------------------------------


async def cancel(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    cancellation_id: str,
    reservation_id: str,
    user_id: str | None = None,
    seat_nos: Sequence[str] = (),
    refund_to: RefundTo = "SOURCE",
) -> Cancellation | IdempotencyKeyReused | Refused:
    """Give seats of a confirmed reservation back, all of them when none is named; refund what the policy says.

    Without a `user_id` it is an operator's wish: anybody's reservation, at any time, refunded in full. So is what a
    buyer cancels of an event that is off. The same id acts once: asked again it answers what it did, as its refunds now
    stand. Redis is told at once, and by the reconciler if it does not hear.
    """
    fingerprint = ids.fingerprint(reservation_id, refund_to, *sorted(set(seat_nos)))
    terms = await SQL.find_terms.fetchrow(postgres, reservation_id)
    if terms is not None and user_id not in {None, terms["user_id"]}:
        return NotFound()
    if terms is None:
        return await _why_unsold(gate, postgres, book, reservation_id, user_id, terms)

    async def give_back(connection: Connection) -> Cancellation | IdempotencyKeyReused | Refused | None:
        locked = await _lock(connection, [reservation_id])
        # Copies of one wish are all about one buyer's balance, so each finds the row of the one before it.
        earlier = await _find_cancellation(connection, cancellation_id, repeated=True)
        if earlier is not None:
            return earlier if earlier.fingerprint == fingerprint else IdempotencyKeyReused()
        bought = locked.bought[reservation_id]
        if bought.status == "PENDING":
            return None
        # Read anew: the lock may have been waited for, and the event been called off meanwhile. `now` is when this
        # transaction began, so nobody is too late because others were before them.
        now_terms = await SQL.find_terms.fetchrow(connection, reservation_id)
        assert now_terms is not None  # noqa: S101 - reservations are never deleted
        reason: Reason = "EVENT_CANCELLED" if now_terms["is_called_off"] else "USER" if user_id is not None else "ADMIN"
        judged = _judge(bought, _rule(now_terms, reason), seat_nos, by_user=reason == "USER")
        if not isinstance(judged, _Share):
            return judged
        wish = _Wish(cancellation_id, reservation_id, refund_to, reason, fingerprint)
        await _write(connection, bought.sale_id, locked, [(wish, judged)])
        return await _find_cancellation(connection, cancellation_id, repeated=False)

    done = await _transact(postgres, give_back)
    if done is None:
        return await _why_unsold(gate, postgres, book, reservation_id, user_id, terms)
    if isinstance(done, Cancellation) and not done.repeated:
        await _tell_redis(gate, postgres, book, terms["sale_id"], most=TOLD_AT_ONCE)
    return done


async def _why_unsold(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    reservation_id: str,
    user_id: str | None,
    terms: asyncpg.Record | None,
) -> Refused:
    """Why there is nothing to cancel in a reservation that Postgres does not call confirmed."""
    if terms is not None:
        if terms["status"] == "CANCELLED":
            return CancellationClosed(reason="ENDED")
        payment_id = await SQL.find_live_payment.fetchval(postgres, reservation_id)
        if payment_id is not None:
            return PaymentRunning(payment_id=payment_id)
    known = book.find_by_prefix(reservation_id)
    if not known:
        # Another process may have made the sale a moment ago.
        await book.refresh()
        known = book.find_by_prefix(reservation_id)
    unavailable: SaleRebuilding | None = None
    for sale in known:
        found = await seats.find(gate, sale, hold_id=reservation_id)
        if isinstance(found, seats.Hold):
            if user_id not in {None, found.buyer_id}:
                return NotFound()
            if found.state in {"PAYING", "SOLD"}:
                return PaymentRunning(payment_id=found.payment_id or "")
            return CancellationClosed(reason="UNPAID" if found.state == "HELD" else "ENDED")
        if not isinstance(found, NotFound):
            unavailable = SaleRebuilding()
    return CancellationClosed(reason="UNPAID") if terms is not None else unavailable or NotFound()


async def _tell_redis(gate: Gate, postgres: asyncpg.Pool, book: SaleBook, sale_id: str, *, most: int) -> None:
    """Give the seats back at once; what stands in the way is no matter, because the reconciler does it again."""
    sale = await book.find(sale_id)
    if sale is None:
        return
    try:
        await reconciliation.give_back(gate, postgres, sale, most=most)
    except (StoreUnavailable, ScriptFault, asyncpg.PostgresError, *POSTGRES_AWAY) as fault:
        logger.warning("sale %s: seats are given back later: %s", sale_id, fault)


async def _transact(postgres: asyncpg.Pool, work: Callable[[Connection], Awaitable[R]]) -> R:
    """Do this in one transaction, again where Postgres ended one of two that crossed. Raises StoreUnavailable."""
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            async with postgres.acquire() as connection, connection.transaction():
                return await work(connection)
        except _CROSSED as fault:
            if attempt == ATTEMPTS_MAX:
                raise StoreUnavailable(f"a cancellation was crossed {attempt} times: {fault}") from fault
            await asyncio.sleep(0.005 * attempt)
    raise AssertionError("the last attempt answers or raises")


# Read under lock ------------------------------------------------------------------------------------------------------


class _Payment(msgspec.Struct):
    """What a payment has collected, and what of that went back."""

    payment_id: str
    reservation_id: str
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


class _Line(msgspec.Struct, frozen=True):
    """What a seat cost, and whether its ticket has opened a door."""

    price: int
    is_redeemed: bool


class _Bought(msgspec.Struct):
    """A reservation with the seats that it claims, and the payment that bought them."""

    reservation_id: str
    user_id: str
    sale_id: str
    fence: int
    status: str
    payment: _Payment | None
    lines: dict[str, _Line] = {}


class _Balance(msgspec.Struct):
    """A balance while a batch is written: each refund sees what the one before it left."""

    amount: int
    version: int


class _Locked(msgspec.Struct, frozen=True):
    """What nobody else changes until this transaction ends, by id."""

    balances: dict[str, _Balance]
    bought: dict[str, _Bought]


async def _lock(connection: Connection, reservation_ids: Sequence[str]) -> _Locked:
    """Lock balances, payments, reservations and tickets, in the one order; each is read once it is locked."""
    balances = {
        row["user_id"]: _Balance(row["amount"], row["version"])
        for row in await SQL.lock_balances.fetch(connection, reservation_ids)
    }
    payments = [
        _Payment(**row, refunded_to_card=0) for row in await SQL.lock_payments.fetch(connection, reservation_ids)
    ]
    of_reservation = {payment.reservation_id: payment for payment in payments}
    bought = {
        row["reservation_id"]: _Bought(**row, payment=of_reservation.get(row["reservation_id"]))
        for row in await SQL.lock_reservations.fetch(connection, reservation_ids)
    }
    for row in await SQL.lock_tickets.fetch(connection, reservation_ids):
        line = _Line(row["price"], is_redeemed=row["ticket_status"] == "REDEEMED")
        bought[row["reservation_id"]].lines[row["seat_no"]] = line
    by_id = {payment.payment_id: payment for payment in payments}
    for row in await SQL.count_refunded_to_card.fetch(connection, list(by_id)):
        by_id[row["payment_id"]].refunded_to_card = row["amount"]
    return _Locked(balances, bought)


# Decide ---------------------------------------------------------------------------------------------------------------


class _Wish(msgspec.Struct, frozen=True):
    """Who asks for a cancellation, and where the money should go."""

    cancellation_id: str
    reservation_id: str
    refund_to: RefundTo
    reason: Reason
    fingerprint: str


class _Share(msgspec.Struct, frozen=True):
    """Seats that are given back, and what of their price is."""

    seat_nos: tuple[str, ...]
    amount: int
    kept: int
    rule: Rule
    is_whole: bool


def _rule(terms: asyncpg.Record, reason: Reason) -> Rule | CancellationClosed:
    if reason != "USER" or terms["is_called_off"]:
        return DEFAULT_POLICY[0]
    policy = msgspec.convert(terms["refund_policy"], list[Rule])
    return rule_of(policy, start_at=terms["start_at"], now=terms["now"])


def _judge(
    bought: _Bought, rule: Rule | CancellationClosed, seat_nos: Sequence[str], *, by_user: bool
) -> _Share | CancellationClosed | PaymentRunning | SeatUnknown:
    """Say what giving these seats back comes to, or why they cannot be given back.

    A buyer may not give back what was used, nor what no card has paid; an operator may, and gets no more back than was
    collected.
    """
    payment = bought.payment
    if payment is not None and payment.status in _LIVE:
        return PaymentRunning(payment_id=payment.payment_id)
    if bought.status != "CONFIRMED":
        return CancellationClosed(reason="ENDED")
    chosen = tuple(dict.fromkeys(seat_nos)) or tuple(sorted(bought.lines))
    unknown = tuple([seat_no for seat_no in chosen if seat_no not in bought.lines])
    if unknown:
        return SeatUnknown(seat_nos=unknown)
    if isinstance(rule, CancellationClosed):
        return rule
    redeemed = tuple([seat_no for seat_no in chosen if bought.lines[seat_no].is_redeemed])
    if by_user and redeemed:
        return CancellationClosed(reason="REDEEMED", seat_nos=redeemed)
    if by_user and payment is not None and payment.status not in _PAID:
        return CancellationClosed(reason="UNCOLLECTED")
    prices = [bought.lines[seat_no].price for seat_no in chosen]
    left = payment.left if payment is not None else 0
    amount = min(left, sum(share_of(price, rule.percent) for price in prices))
    return _Share(chosen, amount, min(left, sum(prices)) - amount, rule, is_whole=len(chosen) == len(bought.lines))


# Write ----------------------------------------------------------------------------------------------------------------


class _Money(msgspec.Struct):
    """Where the money of a batch goes, as rows to be written."""

    payments: dict[str, int] = {}
    refunds: list[tuple[str, str, str, str, int, str, str]] = []
    history: list[tuple[str, str, str, int, int, int, str]] = []
    voids: list[str] = []
    operations: list[tuple[str, str, str, int]] = []


async def _write(
    connection: Connection, sale_id: str, locked: _Locked, given_back: Sequence[tuple[_Wish, _Share]]
) -> None:
    """Give seats of one sale back with their money; everything that is touched is locked."""
    bought = {wish.reservation_id: locked.bought[wish.reservation_id] for wish, _ in given_back}
    lines = [(wish.reservation_id, seat_no) for wish, share in given_back for seat_no in share.seat_nos]
    reservation_ids, seat_nos = map(list, zip(*lines, strict=True))
    # The restores and the schedule before the claims: see the head of sql/cancellations.sql.
    await SQL.add_restores.execute(connection, sale_id, list(bought), [row.fence for row in bought.values()])
    await SQL.count_given_back.execute(connection, sale_id, seat_nos)
    await SQL.end_claims.execute(connection, reservation_ids, seat_nos)
    await SQL.mark_unsold.execute(connection, sale_id, seat_nos)
    await SQL.cancel_tickets.execute(connection, reservation_ids, seat_nos)
    await SQL.cancel_reservations.execute(
        connection,
        [wish.reservation_id for wish, _ in given_back],
        [wish.reason if share.is_whole else None for wish, share in given_back],
    )
    await SQL.add_cancellations.execute_many(
        connection,
        [
            (
                wish.cancellation_id,
                wish.reservation_id,
                bought[wish.reservation_id].user_id,
                share.seat_nos,
                wish.reason,
                share.amount,
                share.kept,
                wish.refund_to,
                wish.fingerprint,
            )
            for wish, share in given_back
        ],
    )
    money = _Money()
    for wish, share in given_back:
        _divide(money, wish, share, bought[wish.reservation_id], locked.balances)
    await _write_money(connection, money, locked.balances)


def _divide(money: _Money, wish: _Wish, share: _Share, bought: _Bought, balances: Mapping[str, _Balance]) -> None:
    """Say where the money of one cancellation goes: to the card as far as that paid, to the balance with the rest."""
    payment = bought.payment
    if payment is None or share.amount == 0:
        return
    money.payments[payment.payment_id] = share.amount
    to_card = 0 if wish.refund_to == "BALANCE" else min(share.amount, payment.of_card - payment.refunded_to_card)
    for refund_to, amount in (("CARD", to_card), ("BALANCE", share.amount - to_card)):
        if amount == 0:
            continue
        refund_id = ids.derive("refund", wish.cancellation_id, refund_to)
        money.refunds.append(
            (refund_id, payment.payment_id, wish.cancellation_id, bought.user_id, amount, refund_to, wish.reason)
        )
        if refund_to == "BALANCE":
            balance = balances[bought.user_id]
            balance.amount += amount
            balance.version += 1
            after = (balance.amount, balance.version)
            money.history.append((refund_id, payment.payment_id, bought.user_id, amount, *after, wish.reason))
            continue
        if amount == payment.card_amount:
            money.voids.append(payment.payment_id)
        operation_id = ids.derive("gateway", "REFUND", payment.payment_id, refund_id)
        money.operations.append((operation_id, payment.payment_id, refund_id, amount))


async def _write_money(connection: Connection, money: _Money, balances: Mapping[str, _Balance]) -> None:
    if not money.payments:
        return
    await SQL.refund_payments.execute(connection, list(money.payments), list(money.payments.values()))
    await SQL.add_refunds.execute(connection, *map(list, zip(*money.refunds, strict=True)))
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
    return Cancellation(**dict(row) | {"seat_nos": tuple(row["seat_nos"])}, refunds=refunds, repeated=repeated)


async def find_refund(postgres: asyncpg.Pool, refund_id: str, user_id: str) -> Refund | None:
    """A user's refund."""
    row = await SQL.find_refund.fetchrow(postgres, refund_id, user_id)
    return Refund(**row) if row else None


async def list_refunds(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Refund]:
    """A user's refunds, newest first, from after the cursor (created_at, refund_id)."""
    return [Refund(**row) for row in await SQL.list_refunds.fetch(postgres, user_id, *before, limit)]


# An event that is off -------------------------------------------------------------------------------------------------


async def call_off(stores: Stores, book: SaleBook, *, schedule_id: str) -> CallOff | NotFound:
    """Call an event off: its sale is closed now, and everybody is refunded in full by `go_on`; harmless to repeat.

    The row and the closing are one transaction. A process that dies before Redis has heard leaves terms that are ahead,
    and the sale's owner sends them again.
    """
    async with stores.postgres.acquire() as connection, connection.transaction():
        added = await SQL.add_call_off.fetchrow(connection, schedule_id)
        if added is not None:
            changes = {"closes_at": added["now"], "room": "closed"}
            await sales.edit(connection, sale_id=added["sale_id"], changes=changes)
    found = await find_call_off(stores.postgres, schedule_id)
    if found is None:
        return NotFound()
    sale = await book.read(found.sale_id)
    if sale is not None:
        await offers.send(stores.gate, stores.postgres, sale)
    return msgspec.structs.replace(found, repeated=added is None)


async def find_call_off(postgres: asyncpg.Pool, schedule_id: str) -> CallOff | None:
    """How far an event that is off has come."""
    row = await SQL.find_call_off.fetchrow(postgres, schedule_id)
    return CallOff(**row) if row else None


async def go_on(stores: Stores, book: SaleBook, *, most: int = SEATS_AT_ONCE) -> bool:
    """Do one batch of every event that is off; True when there is more to do at once.

    A batch and its progress are one transaction under the lock of the event's row, so it matters to nobody which worker
    does it, or where one dies.
    """
    more = False
    for row in await SQL.list_unfinished.fetch(stores.postgres):
        batch = _batch(stores, book, row["schedule_id"], row["sale_id"], most)
        if await _transact(stores.postgres, batch):
            more = True
            await _tell_redis(stores.gate, stores.postgres, book, row["sale_id"], most=most)
    return more


def _batch(
    stores: Stores, book: SaleBook, schedule_id: str, sale_id: str, most: int
) -> Callable[[Connection], Awaitable[bool]]:
    async def do(connection: Connection) -> bool:
        if not await SQL.lock_unfinished.fetch(connection, schedule_id):
            return False
        standing = [row["reservation_id"] for row in await SQL.list_standing.fetch(connection, sale_id, most)]
        done = await _end_all(connection, schedule_id, sale_id, standing) if standing else 0
        if done:
            await SQL.count_called_off.execute(connection, schedule_id, done)
            return True
        # What runs is led to its end by whoever leads it anyway: a sale that is confirmed comes back here as bought.
        sale = await book.read(sale_id)
        # In this order: what Redis still knew has been brought here once it is quiet.
        is_over = (
            sale is not None
            and await _is_quiet(stores.gate, sale)
            and not await SQL.is_standing.fetchval(connection, sale_id)
        )
        if is_over:
            await SQL.finish_call_off.execute(connection, schedule_id)
        return False

    return do


async def _is_quiet(gate: Gate, sale: Sale) -> bool:
    """Whether Redis knows that the sale is closed, and Postgres all that happened in it."""
    told = await sales.ask(gate, sale, sales.CHECKPOINT, queue_no_ceiling=0)
    if not isinstance(told, Checkpoint):
        return False
    return told.version >= sale.version and told.outbox_behind == 0 and told.journal_behind == 0


async def _end_all(connection: Connection, schedule_id: str, sale_id: str, reservation_ids: Sequence[str]) -> int:
    """End these reservations: what was bought is refunded in full, what is only held is given back."""
    locked = await _lock(connection, reservation_ids)
    given_back: list[tuple[_Wish, _Share]] = []
    held: dict[str, str] = {}
    for reservation_id, bought in locked.bought.items():
        is_paid_for = bought.payment is not None and bought.payment.status in _LIVE
        if bought.status == "PENDING" and not is_paid_for:
            held[reservation_id] = "EVENT_CANCELLED"
            continue
        share = _judge(bought, DEFAULT_POLICY[0], (), by_user=False)
        if isinstance(share, _Share):
            cancellation_id = ids.derive("called off", schedule_id, reservation_id)
            given_back.append((_Wish(cancellation_id, reservation_id, "SOURCE", "EVENT_CANCELLED", ""), share))
    if held:
        fences = [locked.bought[reservation_id].fence for reservation_id in held]
        await SQL.add_restores.execute(connection, sale_id, list(held), fences)
        await reservations.end(connection, held)
    if given_back:
        await _write(connection, sale_id, locked, given_back)
    return len(held) + len(given_back)
