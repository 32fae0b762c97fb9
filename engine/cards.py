"""Cards: what a gateway says of a payment's card leg, and what follows from it.

The payment's row comes first (PENDING), then the gateway is asked under the payment's own id, then its answer is
committed, and only then is anything sold. Whatever a process was doing when it died, `advance` begins again from the
row and the gateway: the buyer's next request, a webhook and the worker all call it.
"""

import logging
from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from engine import authorisations, errands, ids, late_payments, payments, seats, wares
from engine import gateway as gateways
from engine.gateway import (
    Authorised,
    Cancelled,
    Declined,
    Event,
    Gateway,
    GatewayUnavailable,
    GatewayUnknown,
    NeedsAction,
)
from engine.payments import Payment
from engine.sales import Sale
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.scripts import Gate

logger = logging.getLogger(__name__)

SQL = queries.load("cards")

OPEN: Final = frozenset({"PENDING", "IN_DOUBT"})
# What a gateway is told that a payment is for.
_HOLD: Final = ("order_id", "reservation_id")


def is_asked(payment: Payment) -> bool:
    """Whether a gateway is still to be asked about this payment.

    One in doubt whose card is authorised waits for an operator: a fact about it could not be applied.
    """
    if payment.card_amount == 0:
        return False
    return payment.status == "PENDING" or (payment.status == "IN_DOUBT" and payment.gateway_ref is None)


class Reconciled(msgspec.Struct):
    """What one pass over payments that stood still did."""

    advanced: int = 0
    closed: int = 0
    late: int = 0


class Cards:
    """The way of payments to a gateway and back, for one process.

    Args:
        gate: the way into Redis.
        postgres: the pool of connections.
        gateway: whoever authorises cards.
        currency: ISO 4217.
    """

    def __init__(self, gate: Gate, postgres: asyncpg.Pool, gateway: Gateway, *, currency: str) -> None:
        self.gateway = gateway
        self._gate = gate
        self._postgres = postgres
        # What a gateway said of many payments in one moment is committed together.
        self._keep: Coalescer[tuple[str, str], bool] = Coalescer(
            self._keep_many, most=authorisations.BATCH_MAX, in_flight_max=1, pace_s=authorisations.PACE_S / 2
        )
        self.currency = currency

    async def advance(self, sale: Sale, payment: Payment) -> Payment:
        """Ask the gateway how a payment stands and write it down; answers the row as it then is.

        AUTHORISED: confirm it. PENDING: the buyer must act, or the gateway could not be reached. IN_DOUBT: it was asked
        and nobody knows what it did. FAILED: it declined. A gateway that is away raises nothing: the payment goes on
        without this caller.
        """
        if not is_asked(payment):
            return payment
        if payment.decline_code is not None:
            return await self._decline(sale, payment, payment.decline_code)
        try:
            found = await self._ask(payment)
        except GatewayUnknown as fault:
            logger.warning("payment %s: %s", payment.payment_id, fault)
            await SQL.doubt_card.execute(self._postgres, payment.payment_id)
            return await self._read(payment)
        except GatewayUnavailable as fault:
            logger.warning("payment %s: the gateway is away: %s", payment.payment_id, fault)
            return payment
        match found:
            case Authorised(ref=ref):
                return await self._keep_authorised(payment, ref)
            case NeedsAction(ref=ref, url=url):
                await SQL.await_action.execute(self._postgres, payment.payment_id, ref, url)
                return await self._read(payment)
            case Declined(ref=declined_ref, decline_code=code):
                return await self._decline(sale, payment, code, declined_ref)

    async def close(self, sale: Sale, payment: Payment) -> Payment:
        """End a payment whose time is over: the gateway is asked to cancel first, and only then is the hold given up.

        What it had authorised meanwhile is voided: the buyer came too late for it.
        """
        if not is_asked(payment):
            return payment
        if payment.decline_code is not None:
            return await self._decline(sale, payment, payment.decline_code)
        try:
            # Without a name for it there is no telling whether it was ever asked for. The same key again tells, and
            # what that may begin is cancelled at once.
            ref = payment.gateway_ref or (await self._ask(payment)).ref
            ended = await gateways.cancel(self.gateway, ref, key=_cancel_key(payment)) if ref else Cancelled()
        except (GatewayUnknown, GatewayUnavailable) as fault:
            logger.warning("payment %s: not cancelled at the gateway yet: %s", payment.payment_id, fault)
            return payment
        if not isinstance(ended, Cancelled):
            # Authorised in the last moment: what ends the row writes the void of it.
            logger.info("payment %s was authorised after its time", payment.payment_id)
        if ref:
            await SQL.keep_ref.execute(self._postgres, payment.payment_id, ref)
        return await self.give_up(sale, payment)

    async def climb_all(self, sale: Sale) -> int:
        """Bring on all late payments of a sale that wait; returns how many were decided."""
        return await late_payments.reconcile(self._gate, self._postgres, self.gateway, sale)

    async def climb(self, sale: Sale, payment: Payment) -> Payment:
        """Bring money on that came after this payment had ended; answers the payment that has it now."""
        late = (await late_payments.find_of(self._postgres, [payment.payment_id])).get(payment.payment_id)
        if late is None:
            return payment
        await late_payments.go_on(self._gate, self._postgres, self.gateway, sale, late)
        return (await payments.read(self._postgres, [late.new_payment_id])).get(late.new_payment_id, payment)

    # Asking -----------------------------------------------------------------------------------------------------------

    async def _ask(self, payment: Payment) -> Authorised | NeedsAction | Declined:
        if payment.gateway_ref is not None:
            intent = await self.gateway.query(payment.gateway_ref)
            if intent is None:
                raise GatewayUnknown(f"the gateway has forgotten {payment.gateway_ref}")
            return intent.verdict()
        try:
            # For the first time, or again under the same key: the gateway does it once.
            return await self.gateway.authorise(
                payment_id=payment.payment_id,
                amount=payment.card_amount,
                currency=self.currency,
                payment_method_id=payment.payment_method_id or "",
                return_url=payment.return_url,
                metadata={"sale_id": payment.sale_id, _HOLD[payment.order_id is None]: payment.hold_id},
            )
        except GatewayUnknown:
            # A key may remember a fault for ever: what was done under it is looked up.
            intent = await self.gateway.find(payment.payment_id) if payment.status == "IN_DOUBT" else None
            if intent is None:
                raise
            return intent.verdict()

    # Writing down -----------------------------------------------------------------------------------------------------

    async def _keep_authorised(self, payment: Payment, ref: str) -> Payment:
        """Commit that the card is authorised: before this nothing may be sold for it."""
        if not await self._keep.submit((payment.payment_id, ref)):
            now = await self._read(payment)
            if now.public_status == "FAILED":
                # It ended while the gateway was thinking.
                async with self._postgres.acquire() as connection, connection.transaction():
                    await late_payments.begin(connection, payment, ref=ref, money=payment.card_amount)
            return now
        return msgspec.structs.replace(
            payment, status="AUTHORISED", gateway_ref=ref, action_url=None, version=payment.version + 1
        )

    async def _keep_many(self, authorised: Sequence[tuple[str, str]]) -> list[bool]:
        payment_ids, refs = map(list, zip(*authorised, strict=True))
        kept = {row["payment_id"] for row in await SQL.keep_authorised.fetch(self._postgres, payment_ids, refs)}
        return [payment_id in kept for payment_id in payment_ids]

    async def _decline(self, sale: Sale, payment: Payment, code: str, ref: str | None = None) -> Payment:
        # First the row learns why: whoever ends it, the worker perhaps, then says so.
        await SQL.keep_declined.execute(self._postgres, payment.payment_id, code, ref)
        return await self.give_up(sale, payment)

    async def give_up(self, sale: Sale, payment: Payment) -> Payment:
        """Shut the door in Redis, then fail the row; a store that does not answer leaves it to the next who comes."""
        abandoned = await wares.of(sale).scripts.abandon(
            self._gate, sale, hold_id=payment.hold_id, fence=payment.fence, payment_id=payment.payment_id
        )
        if isinstance(abandoned, seats.Abandoned | seats.HoldUnknown):
            copy_of = sale if isinstance(abandoned, seats.HoldUnknown) else None
            await authorisations.end(self._postgres, {payment.payment_id: "FAILED"}, copy_of=copy_of)
        return await self._read(payment)

    async def _read(self, payment: Payment) -> Payment:
        return (await payments.read(self._postgres, [payment.payment_id])).get(payment.payment_id, payment)


async def reconcile(
    cards: Cards, postgres: asyncpg.Pool, sale: Sale, *, idle_s: float = 2.0, most: int = 50
) -> Reconciled:
    """Bring payments on that stand still at their gateway, at most `most`, and end those past their deadline.

    Money that came late goes on first, because it becomes such a payment. What is authorised here is confirmed by
    whoever asked, or by the next pass of `reconciliation`.
    """
    done = Reconciled(late=await cards.climb_all(sale))
    rows = await SQL.list_open.fetch(postgres, sale.sale_id, idle_s, most)
    for row in rows:
        payment = payments.from_row(row)
        if row["overdue"]:
            done.closed += (await cards.close(sale, payment)).status not in OPEN
        else:
            done.advanced += (await cards.advance(sale, payment)).status not in OPEN
    return done


def _cancel_key(payment: Payment) -> str:
    return ids.derive("gateway", "CANCEL", payment.payment_id)


async def take_in(postgres: asyncpg.Pool, gateway: Gateway, event: Event) -> Payment | None:
    """Take in what a gateway tells unasked, once; answers the payment that it is about, where that is to go on.

    What the event says is not believed: the gateway is asked, and what it answers is written in the transaction that
    remembers the event. Raises GatewayUnknown and GatewayUnavailable, and has then taken nothing in.
    """
    intent = await gateway.query(event.ref) if event.ref else None
    refund = await gateway.query_refund(event.refund_ref) if event.refund_ref else None
    async with postgres.acquire() as connection, connection.transaction():
        if not await SQL.add_event.execute(connection, event.event_id, event.type, event.ref):
            return None
        row = await SQL.find_told.fetchrow(connection, event.ref, intent.payment_id) if intent else None
        if intent is None or row is None:
            return None  # about nothing of ours
        payment = payments.from_row(row)
        if refund is not None and event.refund_ref is not None:
            await errands.hear(connection, payment.payment_id, event.refund_ref, refund)
        if intent.status not in {"AUTHORISED", "CAPTURED"}:
            return payment
        if await SQL.keep_authorised.fetch(connection, [payment.payment_id], [intent.ref]):
            row = await SQL.find_told.fetchrow(connection, intent.ref, payment.payment_id)
            return payments.from_row(row) if row else None
        money = late_payments.money_in(intent)
        if payment.public_status == "FAILED" and money > 0:
            await late_payments.begin(connection, payment, ref=intent.ref, money=money)
        return payment
