"""Payments: authorise, confirm, capture — so that money is never taken for something that was lost.

The hold goes to PAYING in Redis, funds are set aside in Postgres (transaction A, many requests in one), the hold is
SOLD in Redis, and the outbox brings that fact to Postgres (transaction B, `settlement`). The payment's row is the
answer: a number that was published only says when to look.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import reservations, seats
from engine.refusals import IdempotencyKeyReused, NotFound, SlowDown
from engine.reservations import LAST_ID, LATEST, Holding
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
# A waiter looks at its row after this long without a word from the publisher.
SILENCE_S: Final = 0.25
ANSWER_WITHIN_S: Final = 2.0

_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


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


async def authorise(postgres: asyncpg.Pool, requests: Sequence[Authorisation]) -> list[Payment]:
    """Decide payments by balance, each with its own outcome, in one transaction; returns their rows in order.

    Locks are taken in one order (balances, reservations, each by id) and the decisions are made in the order of the
    requests, each seeing what those before it set aside: nobody fails because somebody else in the batch is poor. A
    payment_id that has a row already is answered by it. Nothing that a buyer can cause raises.
    """
    while True:
        try:
            async with postgres.acquire() as connection:
                async with connection.transaction():
                    await _authorise(connection, requests)
                # The outcomes are read from the rows: what is committed is what is answered.
                rows = await SQL.find_payments.fetch(connection, [request.payment_id for request in requests])
            break
        except _CROSSED:
            continue  # Postgres ended one of two that crossed; the same ids again are safe
        except _DATA as fault:
            if len(requests) == 1:
                raise
            # One of them is what Postgres refuses: each alone, so that it harms nobody else.
            logger.warning("an authorisation was refused by Postgres, each of %d alone: %s", len(requests), fault)
            return [(await authorise(postgres, [request]))[0] for request in requests]
    found = {row["payment_id"]: from_row(row) for row in rows}
    return [found[request.payment_id] for request in requests]


async def _authorise(connection: Connection, requests: Sequence[Authorisation]) -> None:
    holdings = {request.holding.reservation_id: request.holding for request in requests}
    users = sorted({holding.user_id for holding in holdings.values()})
    free = {
        row["user_id"]: row["amount"] - row["set_aside"] for row in await SQL.lock_balances.fetch(connection, users)
    }
    # The journal may not have brought the rows yet. Same id, nothing twice.
    await reservations.add(connection, list(holdings.values()))
    rows = {
        row["reservation_id"]: row for row in await RESERVATIONS.lock_reservations.fetch(connection, list(holdings))
    }
    known = {
        row["payment_id"]
        for row in await SQL.find_payments.fetch(connection, [request.payment_id for request in requests])
    }
    live = {
        row["reservation_id"]: row["payment_id"]
        for row in await SQL.find_live_payments.fetch(connection, list(holdings))
    }

    decided: dict[str, tuple[Authorisation, _Decided]] = {}
    given_back: list[tuple[str, str]] = []
    set_aside: dict[str, int] = {}
    for request in requests:
        holding = request.holding
        if request.payment_id in known or request.payment_id in decided:
            continue  # a copy: its row answers
        row = rows[holding.reservation_id]
        standing = set(row["seat_nos"])
        if row["status"] != "PENDING" or row["fence"] != holding.fence or not standing.issuperset(holding.seat_nos):
            outcome = _Decided("FAILED", "hold_ended")
        elif holding.reservation_id in live:
            outcome = _Decided("FAILED", "payment_running")
        elif holding.amount > free.get(holding.user_id, 0):
            outcome = _Decided("FAILED", "insufficient_balance", holding.amount, free.get(holding.user_id, 0))
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


async def end(postgres: asyncpg.Pool, endings: dict[str, tuple[str, str]]) -> None:
    """End live payments, each as (FAILED or VOIDED, reason), and give their funds free; harmless to repeat.

    Only for payments whose hold Redis has given up: `abandon` answered, or `confirm` did not know it.
    """
    if not endings:
        return
    async with postgres.acquire() as connection, connection.transaction():
        await SQL.lock_balances_of_payments.fetch(connection, list(endings))
        statuses, reasons = zip(*endings.values(), strict=True)
        ended = await SQL.end_payments.fetch(connection, list(endings), list(statuses), list(reasons))
        freed: dict[str, int] = {}
        for row in ended:
            freed[row["user_id"]] = freed.get(row["user_id"], 0) - row["balance_amount"]
        await SQL.set_aside.execute(connection, list(freed), list(freed.values()))


# Waiting for the commit -----------------------------------------------------------------------------------------------


class Waiters:
    """Answers when a payment's row is settled; the published number only says when to look.

    One subscription a process. Whoever waits for a sale is woken by a number at or above its own, by a reconnect, and
    after `SILENCE_S` without a word; the rows of all who are woken are read in one statement.
    """

    def __init__(self, postgres: asyncpg.Pool, listener: Redis) -> None:
        self._listener = listener
        self._rows: Coalescer[str, Payment | None] = Coalescer(lambda ids: _read(postgres, ids), most=512)
        self._waiting: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}
        self._seen: dict[str, int] = {}
        self._heard_at = 0.0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Waiters"]:
        """Listen until the end of the block."""
        tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_anyway())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def settled(self, sale_id: str, payment_id: str, n: int, *, within_s: float) -> Payment | None:
        """The payment's row once it is settled, or as it stands after `within_s`; `n` is its number in the outbox."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        due = self._seen.get(sale_id, 0) >= n
        while True:
            if due:
                payment = await self._rows.submit(payment_id)
                if payment is None or payment.status not in LIVE or loop.time() >= until:
                    return payment
            woken: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(sale_id, []).append((n, woken))
            try:
                async with asyncio.timeout_at(until):
                    await woken
            except TimeoutError:
                pass
            due = True

    async def _listen(self) -> None:
        while True:
            try:
                async with self._listener.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    self._wake_all()  # what was published meanwhile was not heard
                    async for message in channel.listen():
                        if message["type"] == "message":
                            self._hear(message["data"])
            except (RedisError, OSError) as fault:
                logger.warning("not listening for persisted numbers: %r", fault)
                await asyncio.sleep(SILENCE_S)

    def _hear(self, message: bytes) -> None:
        sale_id, _epoch, number = message.decode().split(" ")
        n = int(number)
        self._seen[sale_id] = n
        self._heard_at = asyncio.get_running_loop().time()
        waiting = self._waiting.pop(sale_id, [])
        later = [(wanted, woken) for wanted, woken in waiting if wanted > n and not woken.done()]
        if later:
            self._waiting[sale_id] = later
        for wanted, woken in waiting:
            if wanted <= n and not woken.done():
                woken.set_result(None)

    async def _look_anyway(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_S)
            if self._waiting and asyncio.get_running_loop().time() - self._heard_at >= SILENCE_S:
                self._wake_all()

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for _, woken in (pair for pairs in waiting.values() for pair in pairs):
            if not woken.done():
                woken.set_result(None)


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
        self._authorise: Coalescer[Authorisation, Payment] = Coalescer(
            lambda requests: authorise(postgres, requests), most=BATCH_MAX
        )

    async def pay(self, sale: Sale, *, payment_id: str, reservation_id: str, user_id: str, fingerprint: str) -> Answer:
        """Pay a hold by balance, and answer with the payment's row.

        SUCCESS is said after the commit; a row still live after `answer_within_s` is answered as it stands and goes on
        without the buyer. A payment_id always answers its row: a repeat acts no second time.
        """
        paying = await seats.pay(self._gate, sale, hold_id=reservation_id, buyer_id=user_id, payment_id=payment_id)
        if not isinstance(paying, seats.Paying):
            return await self._answer_without_paying(paying, sale, payment_id, reservation_id, user_id, fingerprint)
        payment = await self._authorise.submit(
            Authorisation(
                payment_id=payment_id,
                fingerprint=fingerprint,
                holding=holding_of(sale, reservation_id, user_id, paying),
                pay_deadline_ms=paying.pay_deadline_ms,
            )
        )
        if payment.fingerprint != fingerprint or payment.reservation_id != reservation_id:
            return IdempotencyKeyReused()
        if payment.status not in LIVE:
            if payment.public_status == "FAILED":
                await self._give_up(sale, payment)
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
                settled = await self._waiters.settled(
                    sale.sale_id, payment.payment_id, n, within_s=self._answer_within_s
                )
                return settled or payment
            case seats.HoldUnknown() | seats.PaymentMismatch():
                # Redis lost the hold, or gave it up. The funds go back; nothing was sold.
                await end(self._postgres, {payment.payment_id: ("VOIDED", "hold_ended")})
                return (await _read(self._postgres, [payment.payment_id]))[0] or payment
            case _:
                return payment

    async def _give_up(self, sale: Sale, payment: Payment) -> None:
        try:
            await seats.abandon(
                self._gate, sale, hold_id=payment.reservation_id, fence=payment.fence, payment_id=payment.payment_id
            )
        except (StoreUnavailable, ScriptFault) as fault:
            # The row has answered already; the reconciler frees the seats past the pay deadline.
            logger.warning("payment %s: abandon was not answered: %s", payment.payment_id, fault)

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
    never came to a row are abandoned past their pay deadline. Seats to be given back are given back.
    """
    done = Reconciled()
    for row in await SQL.list_unsettled.fetch(postgres, sale.sale_id, idle_s, most):
        await _settle_idle(gate, postgres, sale, row, done)
    await _abandon_overdue(gate, postgres, sale, most, done)
    await _drive_restores(gate, postgres, sale, most, done)
    return done


async def _settle_idle(gate: Gate, postgres: asyncpg.Pool, sale: Sale, row: asyncpg.Record, done: Reconciled) -> None:
    hold = {"hold_id": row["reservation_id"], "fence": row["fence"], "payment_id": row["payment_id"]}
    if row["status"] == "AUTHORISED":
        confirmed = await seats.confirm(gate, sale, **hold)
        if isinstance(confirmed, seats.Confirmed):
            done.confirmed += 1  # the outbox has it, or gets it now
        elif isinstance(confirmed, seats.HoldUnknown | seats.PaymentMismatch):
            # "Unknown" counts only in the open, current epoch: in any other, `confirm` answers that instead.
            await end(postgres, {row["payment_id"]: ("VOIDED", "hold_ended")})
            done.ended += 1
            await _end_if_lost(gate, postgres, sale, row["reservation_id"])
        return
    # PENDING: abandon first; only its answer shuts the door that a confirmation could still come through.
    abandoned = await seats.abandon(gate, sale, **hold)
    if isinstance(abandoned, seats.Abandoned | seats.HoldUnknown):
        await end(postgres, {row["payment_id"]: ("FAILED", "hold_ended")})
        done.ended += 1


async def _end_if_lost(gate: Gate, postgres: asyncpg.Pool, sale: Sale, reservation_id: str) -> None:
    """End the row of a hold that Redis does not know any more, or knows as ended."""
    found = await seats.find(gate, sale, hold_id=reservation_id)
    if isinstance(found, NotFound) or (isinstance(found, seats.Hold) and found.state == "ENDED"):
        async with postgres.acquire() as connection, connection.transaction():
            await reservations.end(connection, {reservation_id: "EXPIRED"})


async def _abandon_overdue(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    overdue = await seats.overdue(gate, sale, most=most)
    if not isinstance(overdue, seats.Overdue):
        return
    rows = await SQL.find_payments.fetch(postgres, [hold.payment_id for hold in overdue.holds])
    live = {row["payment_id"] for row in rows if row["status"] in LIVE or row["status"] == "SUCCESS"}
    for hold in overdue.holds:
        # One that is live is settled by its row's own state, above.
        if hold.payment_id not in live:
            await seats.abandon(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
            done.abandoned += 1


async def _drive_restores(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    for row in await SQL.list_restores.fetch(postgres, sale.sale_id, most):
        restored = await seats.restore(
            gate,
            sale,
            hold_id=row["reservation_id"],
            fence=row["fence"],
            buyer_id=row["user_id"],
            reason=row["reason"] or "LATE_UNFULFILLABLE",
            goes_next=row["token_goes_next"],
            claims=[_claim(text) for text in row["claims"]],
        )
        if isinstance(restored, seats.Restored | seats.HoldUnknown):
            await SQL.finish_restore.execute(postgres, row["reservation_id"])
            done.restored += 1


def _claim(text: str) -> seats.Claim:
    seat_no, hold_id, fence = text.rsplit(" ", 2)
    return seats.Claim(seat_no, None if hold_id == "-" else hold_id, int(fence))
