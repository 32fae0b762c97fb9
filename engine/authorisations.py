"""Authorisations: transaction A, in which funds are set aside for holds that are being paid.

Many requests share a transaction, and each has an outcome of its own. What was set aside for nothing is given free
again here too.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg
import msgspec

from engine import discounts, errands, payments, wares
from engine.discounts import Named
from engine.errands import Leg
from engine.holdings import Holding, Lines, Standing
from engine.payments import BALANCE, Payment, Tender
from engine.sales import Sale
from engine.seats import PaymentRunning
from engine.stores import queries
from engine.stores.connections import POSTGRES_AWAY, POSTGRES_CROSSED, StoreUnavailable
from engine.stores.queries import Connection

logger = logging.getLogger(__name__)

SQL = queries.load("payments")

# Authorisations in one transaction.
BATCH_MAX: Final = 128
# A transaction costs hardly more for many than for one: under load they leave this far apart, alone they leave at once.
PACE_S: Final = 0.025
ATTEMPTS_MAX: Final = 10

_DATA = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


class OutcomeUnknown(StoreUnavailable):
    """Funds were set aside, or were not: the answer to the commit was lost, twice. The same ids will tell."""


class Authorisation(msgspec.Struct, frozen=True, kw_only=True):
    """A request to set funds aside for a hold that is PAYING."""

    payment_id: str
    fingerprint: str
    holding: Holding
    pay_deadline_ms: int
    tender: Tender = BALANCE
    user_coupon_id: str | None = None


class _Decided(msgspec.Struct, frozen=True):
    status: str
    reason: str | None = None
    needed: int | None = None
    available: int | None = None
    coupon_reason: str | None = None
    discount: int = 0
    card_amount: int = 0


async def authorise(
    postgres: asyncpg.Pool, requests: Sequence[Authorisation]
) -> list[Payment | PaymentRunning | Exception]:
    """Decide payments by balance, each with its own outcome, in one transaction; returns their rows in order.

    Locks are taken in one order (coupons, balances, reservations, orders, each by id) and the decisions are made in the
    order of the requests, each seeing what those before it set aside: nobody fails because somebody else in the batch
    is poor. A payment_id that has a row already is answered by it; a second payment of a hold gets no row. Nothing that
    a buyer can cause raises; what Postgres refuses all the same is answered by its error, alone.

    Raises OutcomeUnknown, or StoreUnavailable when certainly nothing was written.
    """
    unknown = False
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            return await _authorise_once(postgres, requests)
        except POSTGRES_CROSSED as fault:
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
        except (OutcomeUnknown, *POSTGRES_AWAY) as fault:
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
            running = await authorise_in(connection, requests)
        except BaseException:
            if not connection.is_closed():
                await transaction.rollback()
            raise
        try:
            await transaction.commit()
            # The outcomes are read from the rows: what is committed is what is answered.
            rows = await payments.read(connection, [request.payment_id for request in requests])
        except POSTGRES_AWAY as fault:
            raise OutcomeUnknown(f"the answer to a commit was lost: {fault!r}") from fault
    return [rows.get(request.payment_id) or running[request.payment_id] for request in requests]


async def authorise_in(connection: Connection, requests: Sequence[Authorisation]) -> dict[str, PaymentRunning]:
    """Decide payments inside the caller's transaction, which so far has locked nothing that is locked here.

    Returns those that got no row, each with the payment that stands before it.
    """
    batch = await _read(connection, requests)
    decided: dict[str, tuple[Authorisation, _Decided]] = {}
    running: dict[str, PaymentRunning] = {}
    for request in requests:
        if request.payment_id in batch.known or request.payment_id in decided:
            continue  # a copy: its row answers
        outcome = batch.decide(request)
        if isinstance(outcome, PaymentRunning):
            running[request.payment_id] = outcome
        else:
            decided[request.payment_id] = (request, outcome)
    for kind, lines_of in batch.kept.items():
        await wares.BY_KIND[kind].rows.keep(connection, lines_of)
    await discounts.reserve(connection, batch.reserved)
    if decided:
        await _add_payments(connection, list(decided.values()), batch.set_aside)
    return running


class _Batch(msgspec.Struct):
    """Many requests while they are decided one after the other: each sees what those before it set aside."""

    # What is free of each user's balance, and how each hold's row stands.
    free: dict[str, int]
    rows: dict[str, Standing] = {}
    # The coupons that are named, and for which payment each is reserved here.
    coupons: dict[str, Named] = {}
    reserved: dict[str, str] = {}
    # Payments that have a row already, and of each hold the one that may still buy it or did.
    known: set[str] = set()
    live: dict[str, str] = {}
    set_aside: dict[str, int] = {}
    # By kind and hold, what is left of rows that do not know yet what was given back.
    kept: dict[str, dict[str, Lines]] = msgspec.field(default_factory=lambda: {kind: {} for kind in wares.BY_KIND})

    def decide(self, request: Authorisation) -> _Decided | PaymentRunning:
        """Decide a request that has no row yet."""
        holding = request.holding
        row, lines = self.rows[holding.hold_id], holding.lines
        if row.status != "PENDING" or row.fence != holding.fence or not _has(row, lines):
            return self._failed(request, "hold_ended")
        if holding.hold_id in self.live:
            return PaymentRunning(payment_id=self.live[holding.hold_id])
        coupon_reason, discount = self._discount(request)
        if coupon_reason is not None:
            return self._failed(request, "coupon_unusable", coupon_reason=coupon_reason)
        card_amount = request.tender.card_amount(holding.amount - discount)
        balance_amount = holding.amount - discount - card_amount
        available = self.free[holding.user_id]
        if balance_amount > available:
            return self._failed(request, "insufficient_balance", balance_amount, available, discount=discount)
        if request.user_coupon_id is not None:
            self.coupons[request.user_coupon_id].status = "RESERVED"
            self.reserved[request.user_coupon_id] = request.payment_id
        self.live[holding.hold_id] = request.payment_id
        self.free[holding.user_id] -= balance_amount
        self.set_aside[holding.user_id] = self.set_aside.get(holding.user_id, 0) + balance_amount
        # What was given back and whose journal entry is still on its way is not paid for.
        if row.lines != lines:
            self.kept[holding.kind][holding.hold_id] = lines
        # A card is asked for after the commit: until its gateway has answered, the payment is PENDING.
        return _Decided("PENDING" if card_amount else "AUTHORISED", discount=discount, card_amount=card_amount)

    def _discount(self, request: Authorisation) -> tuple[str | None, int]:
        """Why the coupon that is named cannot be used, or what it takes off."""
        if request.user_coupon_id is None:
            return None, 0
        named = self.coupons.get(request.user_coupon_id)
        amount = request.holding.amount
        reason = named.judge(request.holding.user_id, amount) if named else "UNKNOWN"
        return reason, 0 if named is None or reason else named.discount_of(amount)

    @staticmethod
    def _failed(
        request: Authorisation,
        reason: str,
        needed: int | None = None,
        available: int | None = None,
        *,
        coupon_reason: str | None = None,
        discount: int = 0,
    ) -> _Decided:
        card_amount = request.tender.card_amount(request.holding.amount - discount)
        return _Decided("FAILED", reason, needed, available, coupon_reason, discount, card_amount)


async def _read(connection: Connection, requests: Sequence[Authorisation]) -> _Batch:
    """Lock what these requests are about, in the one order, and read what stands beside it."""
    holdings = {request.holding.hold_id: request.holding for request in requests}
    of_kind: dict[str, list[str]] = {kind: [] for kind in wares.BY_KIND}
    for hold_id, holding in holdings.items():
        of_kind[holding.kind].append(hold_id)
    users = sorted({holding.user_id for holding in holdings.values()})
    batch = _Batch(dict.fromkeys(users, 0))
    named = {request.user_coupon_id for request in requests if request.user_coupon_id is not None}
    batch.coupons = await discounts.lock(connection, sorted(named))
    missing = dict(holdings)
    for found in await SQL.lock_balances.fetch(connection, users, of_kind["seats"], of_kind["stock"]):
        if found["free"] is None:
            del missing[found["id"]]
        else:
            batch.free[found["id"]] = found["free"]
    for kind, hold_ids in of_kind.items():
        if not hold_ids:
            continue
        keeper = wares.BY_KIND[kind].rows
        # The journal may not have brought all rows yet. Same id, nothing twice; and added before any of them is locked,
        # because the journal may be adding the same ones this moment.
        await keeper.add(connection, [missing[hold_id] for hold_id in hold_ids if hold_id in missing])
        batch.rows |= await keeper.lock(connection, hold_ids)
        asked = [(each.payment_id, each.holding.hold_id) for each in requests if each.holding.kind == kind]
        for beside in await keeper.read_beside(connection, batch.rows, *map(list, zip(*asked, strict=True))):
            if beside.is_known:
                batch.known.add(beside.payment_id)
            if beside.live_payment_id:
                batch.live[beside.hold_id] = beside.live_payment_id
    return batch


def _has(row: Standing, lines: Lines) -> bool:
    return all(row.lines.get(name, 0) >= quantity for name, quantity in lines.items())


async def _add_payments(
    connection: Connection, decided: Sequence[tuple[Authorisation, _Decided]], set_aside: Mapping[str, int]
) -> None:
    await SQL.add_payments.execute(
        connection,
        list(set_aside),
        list(set_aside.values()),
        [request.payment_id for request, _ in decided],
        [request.holding.sale_id for request, _ in decided],
        [_id_of(request.holding, "seats") for request, _ in decided],
        [request.holding.user_id for request, _ in decided],
        [request.holding.epoch for request, _ in decided],
        [request.holding.fence for request, _ in decided],
        [request.fingerprint for request, _ in decided],
        [outcome.status for _, outcome in decided],
        [outcome.reason for _, outcome in decided],
        [outcome.needed for _, outcome in decided],
        [outcome.available for _, outcome in decided],
        [request.holding.amount for request, _ in decided],
        [outcome.card_amount for _, outcome in decided],
        [request.tender.method for request, _ in decided],
        [request.tender.payment_method_id for request, _ in decided],
        [request.tender.return_url for request, _ in decided],
        [request.pay_deadline_ms for request, _ in decided],
        [_id_of(request.holding, "stock") for request, _ in decided],
        [outcome.discount for _, outcome in decided],
        [request.user_coupon_id for request, _ in decided],
        [outcome.coupon_reason for _, outcome in decided],
    )


def _id_of(holding: Holding, kind: str) -> str | None:
    return holding.hold_id if holding.kind == kind else None


async def end(postgres: asyncpg.Pool, endings: Mapping[str, str], *, copy_of: Sale | None = None) -> bool:
    """End live payments, each as FAILED or VOIDED, and give their funds free; harmless to repeat.

    What a gateway may have authorised for one of them is voided; one that it declined is FAILED for that reason.

    Only for payments whose hold Redis has given up: `abandon` answered, or `confirm` did not know it. What is not known
    counts only in the copy that is open now: with `copy_of` nothing is written, and the answer is False, unless that
    sale is open in this very epoch until the transaction ends.
    """
    if not endings:
        return True
    async with postgres.acquire() as connection, connection.transaction():
        if copy_of is not None and not await SQL.lock_copy.fetchval(connection, copy_of.sale_id, copy_of.epoch):
            return False
        await discounts.lock_of(connection, list(endings))
        await SQL.lock_balances_of_payments.fetch(connection, list(endings))
        reasons = ["hold_ended"] * len(endings)
        ended = await SQL.end_payments.fetch(connection, list(endings), list(endings.values()), reasons)
        await errands.add(
            connection,
            "VOID",
            [Leg(row["payment_id"], row["card_amount"]) for row in ended if row["decline_code"] is None],
        )
        freed: dict[str, int] = {}
        for row in ended:
            freed[row["user_id"]] = freed.get(row["user_id"], 0) + row["balance_amount"]
        await SQL.give_free.execute(connection, list(freed), list(freed.values()))
        await discounts.free(connection, [row["payment_id"] for row in ended])
    return True
