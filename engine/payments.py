"""Payments: authorise, confirm, capture — so that money is never taken for something that was lost.

The hold goes to PAYING in Redis, funds are set aside in Postgres (transaction A, many requests in one), the hold is
SOLD in Redis, and the outbox brings that fact to Postgres (transaction B, `settlement`). The payment's row is the
answer: a number that was published only says when to look.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import reservations, seats
from engine.refusals import IdempotencyKeyReused, NotFound, SlowDown
from engine.reservations import LAST_ID, LATEST, Holding, moment
from engine.sales import Sale
from engine.seats import HoldEnded, PaymentRunning
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.connections import StoreUnavailable
from engine.stores.outbox import CHANNEL
from engine.stores.queries import Connection
from engine.stores.replies import Refusal, SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate, ScriptFault

logger = logging.getLogger(__name__)

SQL = queries.load("payments")
RESERVATIONS = queries.load("reservations")

LIVE: Final = frozenset({"PENDING", "AUTHORISED", "IN_DOUBT"})
# Authorisations in one transaction.
BATCH_MAX: Final = 128
# A transaction costs hardly more for many than for one: under load they leave this far apart, alone they leave at once.
PACE_S: Final = 0.01
ATTEMPTS_MAX: Final = 10
# A PENDING row this long past its deadline was not told of its end.
FORGOTTEN_S: Final = 60.0
# A waiter looks at its row after this long without a word from the publisher.
SILENCE_S: Final = 0.25
ANSWER_WITHIN_S: Final = 2.0

_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# Postgres cannot be reached, went away, or has no room: whether a commit that was under way happened is not known.
_AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    TimeoutError,
)


class InsufficientBalance(Refusal, frozen=True):
    """The balance does not cover the amount."""

    needed: int
    available: int


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment's row; `status` is the inner one, amounts are in minor units."""

    payment_id: str
    sale_id: str
    reservation_id: str
    user_id: str
    fence: int
    fingerprint: str
    method: str
    status: str
    reason: str | None
    needed: int | None
    available: int | None
    original_amount: int
    discount_amount: int
    final_amount: int
    refunded_amount: int
    created_at: datetime
    paid_at: datetime | None
    version: int

    @property
    def public_status(self) -> str:
        """PENDING, SUCCESS, FAILED, PARTIALLY_REFUNDED or REFUNDED."""
        return {"AUTHORISED": "PENDING", "IN_DOUBT": "PENDING", "VOIDED": "FAILED", "UNCOLLECTED": "SUCCESS"}.get(
            self.status, self.status
        )


class OutcomeUnknown(StoreUnavailable):
    """Funds were set aside, or were not: the answer to the commit was lost, twice. The same ids will tell."""


Unavailable = SaleUnknown | StaleEpoch | SaleRebuilding
Answer = Payment | PaymentRunning | HoldEnded | NotFound | IdempotencyKeyReused | SlowDown | Unavailable


def refusal_of(payment: Payment) -> Refusal | None:
    """Why a payment failed, as its buyer is told; None for one that did not."""
    if payment.public_status != "FAILED":
        return None
    if payment.reason == "insufficient_balance":
        return InsufficientBalance(needed=payment.needed or 0, available=payment.available or 0)
    return HoldEnded(reason="LATE_UNFULFILLABLE" if payment.status == "VOIDED" else "EXPIRED")


# Transaction A --------------------------------------------------------------------------------------------------------


class Authorisation(msgspec.Struct, frozen=True, kw_only=True):
    """A request to set funds aside for a hold that is PAYING."""

    payment_id: str
    fingerprint: str
    holding: Holding
    pay_deadline_ms: int


class _Decided(msgspec.Struct, frozen=True):
    status: str
    reason: str | None = None
    needed: int | None = None
    available: int | None = None


async def authorise(
    postgres: asyncpg.Pool, requests: Sequence[Authorisation]
) -> list[Payment | PaymentRunning | Exception]:
    """Decide payments by balance, each with its own outcome, in one transaction; returns their rows in order.

    Locks are taken in one order (balances, reservations, each by id) and the decisions are made in the order of the
    requests, each seeing what those before it set aside: nobody fails because somebody else in the batch is poor. A
    payment_id that has a row already is answered by it; a second payment of a reservation gets no row. Nothing that a
    buyer can cause raises; what Postgres refuses all the same is answered by its error, alone.

    Raises OutcomeUnknown, or StoreUnavailable when certainly nothing was written.
    """
    unknown = False
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            return await _authorise_once(postgres, requests)
        except _CROSSED as fault:
            # Postgres ended one of two that crossed; the same ids again are safe.
            if attempt == ATTEMPTS_MAX:
                raise StoreUnavailable(f"authorisations were crossed {attempt} times: {fault}") from fault
            await asyncio.sleep(0.005 * attempt)
        except _DATA as fault:
            if len(requests) == 1:
                return [fault]
            # One of them is what Postgres refuses: each alone, so that it harms nobody else.
            logger.warning("an authorisation was refused by Postgres, each of %d alone: %s", len(requests), fault)
            return [(await authorise(postgres, [request]))[0] for request in requests]
        except (OutcomeUnknown, *_AWAY) as fault:
            # The answer may be lost and the rows there: once more with the same ids, which then only reads them.
            unknown = unknown or isinstance(fault, OutcomeUnknown)
            if attempt > 1:
                raise (OutcomeUnknown if unknown else StoreUnavailable)(f"Postgres is away: {fault!r}") from fault
    raise AssertionError("the last attempt answers or raises")


async def _authorise_once(
    postgres: asyncpg.Pool, requests: Sequence[Authorisation]
) -> list[Payment | PaymentRunning | Exception]:
    async with postgres.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            running = await _authorise(connection, requests)
        except BaseException:
            if not connection.is_closed():
                await transaction.rollback()
            raise
        try:
            await transaction.commit()
            # The outcomes are read from the rows: what is committed is what is answered.
            rows = await SQL.find_payments.fetch(connection, [request.payment_id for request in requests])
        except _AWAY as fault:
            raise OutcomeUnknown(f"the answer to a commit was lost: {fault!r}") from fault
    found: dict[str, Payment | PaymentRunning | Exception] = {row["payment_id"]: from_row(row) for row in rows}
    return [found.get(request.payment_id) or running[request.payment_id] for request in requests]


async def _authorise(connection: Connection, requests: Sequence[Authorisation]) -> dict[str, PaymentRunning]:
    """Write the rows of these requests; returns those that got none, each with the payment that stands before it."""
    holdings = {request.holding.reservation_id: request.holding for request in requests}
    users = sorted({holding.user_id for holding in holdings.values()})
    free = dict.fromkeys(users, 0)
    for balance in await SQL.lock_balances.fetch(connection, users):
        free[balance["user_id"]] = balance["amount"] - balance["set_aside"]
    # The journal may not have brought the rows yet. Same id, nothing twice.
    await reservations.add(connection, list(holdings.values()))
    rows = await reservations.lock(connection, list(holdings))
    known = {
        row["payment_id"]
        for row in await SQL.find_payments.fetch(connection, [request.payment_id for request in requests])
    }
    live = {
        row["reservation_id"]: row["payment_id"]
        for row in await SQL.find_live_payments.fetch(connection, list(holdings))
    }

    decided: dict[str, tuple[Authorisation, _Decided]] = {}
    running: dict[str, PaymentRunning] = {}
    given_back: list[tuple[str, str]] = []
    set_aside: dict[str, int] = {}
    for request in requests:
        holding = request.holding
        if request.payment_id in known or request.payment_id in decided:
            continue  # a copy: its row answers
        row = rows[holding.reservation_id]
        standing = set(row.seat_nos)
        available = free[holding.user_id]
        if row.status != "PENDING" or row.fence != holding.fence or not standing.issuperset(holding.seat_nos):
            outcome = _Decided("FAILED", "hold_ended")
        elif holding.reservation_id in live:
            running[request.payment_id] = PaymentRunning(payment_id=live[holding.reservation_id])
            continue
        elif holding.amount > available:
            outcome = _Decided("FAILED", "insufficient_balance", holding.amount, available)
        else:
            outcome = _Decided("AUTHORISED")
            live[holding.reservation_id] = request.payment_id
            free[holding.user_id] -= holding.amount
            set_aside[holding.user_id] = set_aside.get(holding.user_id, 0) + holding.amount
            # Seats given back whose journal entry is still on its way are not paid for.
            given_back += [(holding.reservation_id, seat_no) for seat_no in standing.difference(holding.seat_nos)]
        decided[request.payment_id] = (request, outcome)

    await reservations.release(connection, given_back)
    if decided:
        await _add_payments(connection, list(decided.values()))
    if set_aside:
        await SQL.set_aside.execute(connection, list(set_aside), list(set_aside.values()))
    return running


async def _add_payments(connection: Connection, decided: Sequence[tuple[Authorisation, _Decided]]) -> None:
    await SQL.add_payments.execute(
        connection,
        [request.payment_id for request, _ in decided],
        [request.holding.sale_id for request, _ in decided],
        [request.holding.reservation_id for request, _ in decided],
        [request.holding.user_id for request, _ in decided],
        [request.holding.epoch for request, _ in decided],
        [request.holding.fence for request, _ in decided],
        [request.fingerprint for request, _ in decided],
        [outcome.status for _, outcome in decided],
        [outcome.reason for _, outcome in decided],
        [outcome.needed for _, outcome in decided],
        [outcome.available for _, outcome in decided],
        [request.holding.amount for request, _ in decided],
        [request.pay_deadline_ms for request, _ in decided],
    )


async def end(postgres: asyncpg.Pool, endings: Mapping[str, str], *, copy_of: Sale | None = None) -> bool:
    """End live payments, each as FAILED or VOIDED, and give their funds free; harmless to repeat.

    Only for payments whose hold Redis has given up: `abandon` answered, or `confirm` did not know it. What is not known
    counts only in the copy that is open now: with `copy_of` nothing is written, and the answer is False, unless that
    sale is open in this very epoch until the transaction ends.
    """
    if not endings:
        return True
    async with postgres.acquire() as connection, connection.transaction():
        if copy_of is not None and not await SQL.lock_copy.fetchval(connection, copy_of.sale_id, copy_of.epoch):
            return False
        await SQL.lock_balances_of_payments.fetch(connection, list(endings))
        reasons = ["hold_ended"] * len(endings)
        ended = await SQL.end_payments.fetch(connection, list(endings), list(endings.values()), reasons)
        freed: dict[str, int] = {}
        for row in ended:
            freed[row["user_id"]] = freed.get(row["user_id"], 0) - row["balance_amount"]
        await SQL.set_aside.execute(connection, list(freed), list(freed.values()))
    return True


# Waiting for the commit -----------------------------------------------------------------------------------------------


class Waiters:
    """Answers when a payment's row is settled; the published number only says when to look.

    One subscription a process. Whoever waits is woken by a number of its sale at or above its own, by another epoch of
    its sale, by a reconnect, and looks anyway after `SILENCE_S` of its own silence; the rows of all who are woken are
    read in one statement.
    """

    def __init__(self, postgres: asyncpg.Pool, listener: Redis) -> None:
        self._listener = listener
        self._rows: Coalescer[str, Payment | None] = Coalescer(
            lambda ids: _read(postgres, ids), most=512, in_flight_max=1, pace_s=PACE_S / 2
        )
        self._waiting: dict[str, set[_Waiting]] = {}
        # The last word of each sale: a number may be published before its waiter is here.
        self._heard: dict[str, tuple[int, int]] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Waiters"]:
        """Listen until the end of the block."""
        task = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def settled(self, sale: Sale, payment_id: str, n: int, *, within_s: float) -> Payment | None:
        """The payment's row once it is settled, or None when it was not within `within_s`; `n` is its number."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        waiting = _Waiting(sale.epoch, n)
        if sale.sale_id in self._heard:
            waiting.hear(*self._heard[sale.sale_id])
        self._waiting.setdefault(sale.sale_id, set()).add(waiting)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(min(until, loop.time() + SILENCE_S)):
                        await waiting.woken.wait()
                except TimeoutError:
                    pass
                waiting.woken.clear()
                try:
                    payment = await self._rows.submit(payment_id)
                except _AWAY as fault:
                    logger.warning("payment %s: its row cannot be read: %r", payment_id, fault)
                else:
                    if payment is not None and payment.status not in LIVE:
                        return payment
                if loop.time() >= until:
                    return None
        finally:
            self._waiting[sale.sale_id].discard(waiting)
            if not self._waiting[sale.sale_id]:
                del self._waiting[sale.sale_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._listener.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    self._wake_all()  # what was published meanwhile was not heard
                    async for message in channel.listen():
                        if message["type"] == "message":
                            sale_id, epoch, n = message["data"].decode().split(" ")
                            self._hear(sale_id, int(epoch), int(n))
            except (RedisError, OSError) as fault:
                logger.warning("not listening for persisted numbers: %r", fault)
            await asyncio.sleep(SILENCE_S)

    def _hear(self, sale_id: str, epoch: int, n: int) -> None:
        self._heard[sale_id] = (epoch, n)
        for waiting in self._waiting.get(sale_id, ()):
            waiting.hear(epoch, n)

    def _wake_all(self) -> None:
        for waiting in itertools.chain.from_iterable(self._waiting.values()):
            waiting.woken.set()


class _Waiting:
    """One who waits for a number of its sale."""

    def __init__(self, epoch: int, n: int) -> None:
        self.epoch = epoch
        self.n = n
        self.woken = asyncio.Event()

    def hear(self, epoch: int, n: int) -> None:
        """Wake up if that concerns it: a number at or above its own, or another epoch."""
        if epoch != self.epoch or n >= self.n:
            self.woken.set()


async def _read(postgres: asyncpg.Pool, payment_ids: list[str]) -> list[Payment | None]:
    rows = await SQL.find_payments.fetch(postgres, payment_ids)
    found = {row["payment_id"]: from_row(row) for row in rows}
    return [found.get(payment_id) for payment_id in payment_ids]


# A buyer pays ---------------------------------------------------------------------------------------------------------


class Till:
    """Takes the payments of one process: concurrent authorisations share a transaction, concurrent waits a read."""

    def __init__(
        self,
        gate: Gate,
        postgres: asyncpg.Pool,
        waiters: Waiters,
        *,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._gate = gate
        self._postgres = postgres
        self._waiters = waiters
        self._answer_within_s = answer_within_s
        self._authorise: Coalescer[Authorisation, Payment | PaymentRunning] = Coalescer(
            lambda requests: authorise(postgres, requests), most=BATCH_MAX, in_flight_max=1, pace_s=PACE_S
        )

    async def pay(self, sale: Sale, *, payment_id: str, reservation_id: str, user_id: str, fingerprint: str) -> Answer:
        """Pay a hold by balance, and answer with the payment's row.

        SUCCESS is said after the commit; a row still live after `answer_within_s` is answered as it stands and goes on
        without the buyer. A payment_id always answers its row: a repeat acts no second time.
        """
        paying = await seats.pay(self._gate, sale, hold_id=reservation_id, buyer_id=user_id, payment_id=payment_id)
        if not isinstance(paying, seats.Paying):
            return await self._answer_without_paying(paying, sale, payment_id, reservation_id, user_id, fingerprint)
        request = Authorisation(
            payment_id=payment_id,
            fingerprint=fingerprint,
            holding=holding_of(sale, reservation_id, user_id, paying),
            pay_deadline_ms=paying.pay_deadline_ms,
        )
        try:
            payment = await self._authorise.submit(request)
        except OutcomeUnknown as fault:
            logger.warning("payment %s: %s", payment_id, fault)
            return _unknown(sale, request)  # its row, if there is one, is the reconciler's to finish
        if isinstance(payment, PaymentRunning):
            await self._give_up(sale, reservation_id, paying.fence, payment_id)
            return payment
        if payment.fingerprint != fingerprint or payment.reservation_id != reservation_id:
            return IdempotencyKeyReused()
        if payment.status not in LIVE:
            if payment.public_status == "FAILED":
                await self._give_up(sale, reservation_id, payment.fence, payment_id)
            return payment
        return await self._confirm(sale, payment)

    async def _confirm(self, sale: Sale, payment: Payment) -> Answer:
        try:
            confirmed = await seats.confirm(
                self._gate, sale, hold_id=payment.reservation_id, fence=payment.fence, payment_id=payment.payment_id
            )
        except (StoreUnavailable, ScriptFault) as fault:
            # Whether it is sold is not known: the funds stay set aside, and the reconciler asks again.
            logger.warning("payment %s: confirm was not answered: %s", payment.payment_id, fault)
            return payment
        match confirmed:
            case seats.Confirmed(n=n):
                settled = await self._waiters.settled(sale, payment.payment_id, n, within_s=self._answer_within_s)
                return settled or payment
            case seats.HoldUnknown() | seats.PaymentMismatch():
                # Redis lost the hold, or gave it up. The funds go back; nothing was sold.
                try:
                    await end(self._postgres, {payment.payment_id: "VOIDED"}, copy_of=sale)
                    return (await _read(self._postgres, [payment.payment_id]))[0] or payment
                except _AWAY as fault:
                    logger.warning("payment %s: not voided yet: %r", payment.payment_id, fault)
                    return payment
            case _:
                return payment

    async def _give_up(self, sale: Sale, reservation_id: str, fence: int, payment_id: str) -> None:
        try:
            await seats.abandon(self._gate, sale, hold_id=reservation_id, fence=fence, payment_id=payment_id)
        except (StoreUnavailable, ScriptFault) as fault:
            # The payment is refused already; the reconciler frees the seats past the pay deadline.
            logger.warning("payment %s: abandon was not answered: %s", payment_id, fault)

    async def _answer_without_paying(
        self,
        paying: seats.PayingAnswer,
        sale: Sale,
        payment_id: str,
        reservation_id: str,
        user_id: str,
        fingerprint: str,
    ) -> Answer:
        row = await SQL.find_payment.fetchrow(self._postgres, payment_id, user_id)
        if row is not None:
            payment = from_row(row)
            if payment.fingerprint != fingerprint or payment.reservation_id != reservation_id:
                return IdempotencyKeyReused()
            if payment.status not in LIVE:
                return payment
            if isinstance(paying, seats.HoldSold) and paying.payment_id == payment_id:
                return await self._confirm(sale, payment)
            return payment
        match paying:
            case seats.HoldSold():
                return HoldEnded(reason="SOLD")
            case seats.PaymentEnded():
                return HoldEnded(reason="EXPIRED")
            case NotFound():
                # Redis forgets an ended hold after the repeat window; its row is kept.
                reservation = await RESERVATIONS.find_reservation.fetchrow(self._postgres, reservation_id, user_id)
                if reservation is not None:
                    return HoldEnded(reason=reservation["reason"] or "SOLD")
                return paying
            case seats.Paying():
                raise AssertionError("a hold that is PAYING goes on to be authorised")
            case refusal:
                return refusal


def _unknown(sale: Sale, request: Authorisation) -> Payment:
    """A payment whose row may be there or not: PENDING, as far as anybody knows."""
    holding = request.holding
    return Payment(
        payment_id=request.payment_id,
        sale_id=holding.sale_id,
        reservation_id=holding.reservation_id,
        user_id=holding.user_id,
        fence=holding.fence,
        fingerprint=request.fingerprint,
        method="BALANCE",
        status="PENDING",
        reason=None,
        needed=None,
        available=None,
        original_amount=holding.amount,
        discount_amount=0,
        final_amount=holding.amount,
        refunded_amount=0,
        created_at=moment(request.pay_deadline_ms - sale.pay_s * 1000),
        paid_at=None,
        version=1,
    )


def holding_of(sale: Sale, reservation_id: str, user_id: str, paying: seats.Paying) -> Holding:
    """What transaction A needs to know of a hold that is PAYING."""
    return Holding(
        reservation_id=reservation_id,
        sale_id=sale.sale_id,
        schedule_id=str(sale.schedule_id),
        user_id=user_id,
        epoch=sale.epoch,
        fence=paying.fence,
        queue_no=paying.queue_no,
        fingerprint=paying.fingerprint,
        amount=paying.amount,
        expires_at_ms=paying.expires_at_ms,
        created_at_ms=paying.created_at_ms,
        seat_nos=tuple([line.seat_no for line in paying.lines]),
        prices=tuple([line.price for line in paying.lines]),
    )


# Reading --------------------------------------------------------------------------------------------------------------


async def find(postgres: asyncpg.Pool, payment_id: str, user_id: str) -> Payment | None:
    """A user's payment."""
    row = await SQL.find_payment.fetchrow(postgres, payment_id, user_id)
    return from_row(row) if row else None


async def list_mine(
    postgres: asyncpg.Pool, user_id: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Payment]:
    """A user's payments, newest first, from after the cursor (created_at, payment_id)."""
    return [from_row(row) for row in await SQL.list_payments.fetch(postgres, user_id, *before, limit)]


async def list_in_state(
    postgres: asyncpg.Pool, status: str, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[Payment]:
    """Payments in one inner state, newest first, from after the cursor."""
    return [from_row(row) for row in await SQL.list_payments_in_state.fetch(postgres, status, *before, limit)]


def from_row(row: asyncpg.Record | dict[str, Any]) -> Payment:
    """Make a payment of its row."""
    return Payment(**{name: row[name] for name in Payment.__struct_fields__})


# The reconciler -------------------------------------------------------------------------------------------------------


class Reconciled(msgspec.Struct):
    """What one pass of the reconciler did."""

    confirmed: int = 0
    ended: int = 0
    abandoned: int = 0
    restored: int = 0


async def reconcile(
    gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, idle_s: float = 5.0, most: int = 200
) -> Reconciled:
    """Finish what a process left half done, at most `most` of each; every step may be repeated after a crash.

    Payments that stand still are confirmed again; what Redis does not know any more is voided. Holds whose payment
    never came to a row are abandoned past their pay deadline. Seats to be given back are given back. Rows whose end
    nobody heard of are ended.
    """
    done = Reconciled()
    for row in await SQL.list_unsettled.fetch(postgres, sale.sale_id, idle_s, most):
        await _settle_idle(gate, postgres, sale, row, done)
    await _leave_overdue(gate, postgres, sale, most, done)
    await _drive_restores(gate, postgres, sale, most, done)
    for row in await RESERVATIONS.list_forgotten.fetch(postgres, sale.sale_id, FORGOTTEN_S, most):
        done.ended += await _end_if_lost(gate, postgres, sale, row["reservation_id"])
    return done


async def _settle_idle(gate: Gate, postgres: asyncpg.Pool, sale: Sale, row: asyncpg.Record, done: Reconciled) -> None:
    hold = {"hold_id": row["reservation_id"], "fence": row["fence"], "payment_id": row["payment_id"]}
    if row["status"] == "AUTHORISED":
        confirmed = await seats.confirm(gate, sale, **hold)
        if isinstance(confirmed, seats.Confirmed):
            done.confirmed += 1  # the outbox has it, or gets it now
        elif isinstance(confirmed, seats.HoldUnknown | seats.PaymentMismatch):
            done.ended += await end(postgres, {row["payment_id"]: "VOIDED"}, copy_of=sale)
        return
    # PENDING: abandon first; only its answer shuts the door that a confirmation could still come through.
    abandoned = await seats.abandon(gate, sale, **hold)
    if isinstance(abandoned, seats.Abandoned | seats.HoldUnknown):
        done.ended += await end(postgres, {row["payment_id"]: "FAILED"}, copy_of=sale)


async def _leave_overdue(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    """Lead payments past their deadline out of PAYING, each by the door that its row names."""
    overdue = await seats.overdue(gate, sale, most=most)
    if not isinstance(overdue, seats.Overdue):
        return
    rows = await SQL.find_payments.fetch(postgres, [hold.payment_id for hold in overdue.holds])
    statuses = {row["payment_id"]: row["status"] for row in rows}
    for hold in overdue.holds:
        match statuses.get(hold.payment_id, "FAILED"):
            case "FAILED" | "VOIDED":
                await seats.abandon(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.abandoned += 1
            case "PENDING" | "AUTHORISED" | "IN_DOUBT":
                pass  # settled above, or by an operator
            case _:
                # Paid for: a copy that was rebuilt in between missed it.
                await seats.confirm(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.confirmed += 1


async def _drive_restores(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    """Make seats in Redis what they are here.

    The claims stay locked until Redis has answered: one that was given up in between would come back as SOLD, for ever.
    """
    async with postgres.acquire() as connection, connection.transaction():
        rows = await SQL.lock_restores.fetch(connection, sale.sale_id, most)
        wanted: dict[str, list[str]] = {row["reservation_id"]: [] for row in rows}
        for line in await SQL.find_all_lines.fetch(connection, list(wanted)):
            wanted[line["reservation_id"]].append(line["seat_no"])
        seat_nos = [seat_no for lines in wanted.values() for seat_no in lines]
        claims = {
            row["seat_no"]: seats.Claim(row["seat_no"], row["reservation_id"], row["fence"])
            for row in await SQL.lock_claims.fetch(connection, sale.sale_id, seat_nos)
        }
        for row in rows:
            restored = await seats.restore(
                gate,
                sale,
                hold_id=row["reservation_id"],
                fence=row["fence"],
                buyer_id=row["user_id"],
                reason=row["reason"] or "LATE_UNFULFILLABLE",
                goes_next=row["token_goes_next"],
                claims=[claims.get(seat_no, seats.Claim(seat_no)) for seat_no in wanted[row["reservation_id"]]],
            )
            if isinstance(restored, seats.Restored | seats.HoldUnknown):
                await SQL.finish_restore.execute(connection, row["reservation_id"])
                done.restored += 1


async def _end_if_lost(gate: Gate, postgres: asyncpg.Pool, sale: Sale, reservation_id: str) -> bool:
    """End the row of a hold that Redis knows as ended, or not at all in the copy that is open now."""
    found = await seats.find(gate, sale, hold_id=reservation_id)
    if isinstance(found, seats.Hold):
        if found.state != "ENDED":
            return False
        reason = found.reason or "EXPIRED"
    elif isinstance(found, NotFound):
        reason = "EXPIRED"
    else:
        return False
    async with postgres.acquire() as connection, connection.transaction():
        if not await SQL.lock_copy.fetchval(connection, sale.sale_id, sale.epoch):
            return False
        await reservations.end(connection, {reservation_id: reason})
    return True
