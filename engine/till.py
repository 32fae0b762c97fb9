"""The till: where a buyer pays, so that money is never taken for something that was lost.

The hold goes to PAYING in Redis, funds are set aside in Postgres (`authorisations`), the hold is SOLD in Redis, and the
outbox brings that fact to Postgres (`settlement`). The payment's row is the answer: a number that was published only
says when to look.
"""

import logging
from typing import Final

import asyncpg
import msgspec

from engine import authorisations, payments, seats, wares
from engine.authorisations import Authorisation, OutcomeUnknown
from engine.cards import Cards
from engine.moments import moment
from engine.payments import BALANCE, LIVE, Payment, Tender
from engine.refusals import IdempotencyKeyReused, NotFound, SlowDown
from engine.sales import Sale
from engine.seats import HoldEnded, PaymentRunning
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.connections import POSTGRES_AWAY, StoreUnavailable
from engine.stores.replies import Unavailable
from engine.stores.scripts import Gate, ScriptFault
from engine.waiters import Waiters

logger = logging.getLogger(__name__)

SQL = queries.load("payments")

ANSWER_WITHIN_S: Final = 2.0

Answer = Payment | PaymentRunning | HoldEnded | NotFound | IdempotencyKeyReused | SlowDown | Unavailable


class Till:
    """Takes the payments of one process: concurrent authorisations share a transaction, concurrent waits a read.

    Without `cards` it takes payments by balance alone.
    """

    def __init__(
        self,
        gate: Gate,
        postgres: asyncpg.Pool,
        waiters: Waiters,
        *,
        cards: Cards | None = None,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._gate = gate
        self._postgres = postgres
        self._waiters = waiters
        self._cards = cards
        self._answer_within_s = answer_within_s
        self._authorise: Coalescer[Authorisation, Payment | PaymentRunning] = Coalescer(
            lambda requests: authorisations.authorise(postgres, requests),
            most=authorisations.BATCH_MAX,
            in_flight_max=1,
            pace_s=authorisations.PACE_S,
        )

    async def pay(
        self,
        sale: Sale,
        *,
        payment_id: str,
        hold_id: str,
        user_id: str,
        fingerprint: str,
        tender: Tender = BALANCE,
        user_coupon_id: str | None = None,
    ) -> Answer:
        """Pay a hold, and answer with the payment's row.

        SUCCESS is said after the commit; a row still live after `answer_within_s` is answered as it stands and goes on
        without the buyer, and so does one whose gateway has not decided. A payment_id always answers its row: a repeat
        acts no second time. Raises ValueError for a card where this till takes none.
        """
        if tender.method != "BALANCE" and self._cards is None:
            raise ValueError("this till takes no cards")
        answered, repeated = await self._pay(sale, payment_id, hold_id, user_id, fingerprint, tender, user_coupon_id)
        if repeated and isinstance(answered, Payment):
            return msgspec.structs.replace(answered, repeated=True)
        return answered

    async def _pay(
        self,
        sale: Sale,
        payment_id: str,
        hold_id: str,
        user_id: str,
        fingerprint: str,
        tender: Tender,
        user_coupon_id: str | None,
    ) -> tuple[Answer, bool]:
        """Pay; answers whether this id was seen before, too."""
        ware = wares.of(sale)
        paying = await ware.scripts.pay(self._gate, sale, hold_id=hold_id, buyer_id=user_id, payment_id=payment_id)
        if not isinstance(paying, seats.Paying):
            answer = self._answer_without_paying(paying, sale, payment_id, hold_id, user_id, fingerprint)
            return await answer, True
        repeated = paying.repeated == 1
        request = Authorisation(
            payment_id=payment_id,
            fingerprint=fingerprint,
            holding=ware.rows.holding_of(sale, hold_id, user_id, paying),
            pay_deadline_ms=paying.pay_deadline_ms,
            tender=tender,
            user_coupon_id=user_coupon_id,
        )
        try:
            payment = await self._authorise.submit(request)
        except OutcomeUnknown as fault:
            logger.warning("payment %s: %s", payment_id, fault)
            return _unknown(sale, request), repeated  # its row, if there is one, is the reconciler's to finish
        if isinstance(payment, PaymentRunning):
            await self._give_up(sale, hold_id, paying.fence, payment_id)
            return payment, repeated
        if payment.fingerprint != fingerprint or payment.hold_id != hold_id:
            return IdempotencyKeyReused(), repeated
        if payment.status not in LIVE:
            if payment.public_status == "FAILED":
                await self._give_up(sale, hold_id, payment.fence, payment_id)
            return payment, repeated
        return await self.go_on(sale, payment), repeated

    async def go_on(self, sale: Sale, payment: Payment) -> Payment:
        """Bring a payment as far as it goes now: ask its gateway, where it has one, and confirm what is authorised."""
        if self._cards is not None:
            try:
                payment = await self._cards.advance(sale, payment)
            except (StoreUnavailable, ScriptFault, *POSTGRES_AWAY) as fault:
                logger.warning(
                    "payment %s: what its gateway said is not written down yet: %r", payment.payment_id, fault
                )
        return await self._confirm(sale, payment) if payment.status == "AUTHORISED" else payment

    async def _confirm(self, sale: Sale, payment: Payment) -> Payment:
        try:
            confirmed = await wares.of(sale).scripts.confirm(
                self._gate, sale, hold_id=payment.hold_id, fence=payment.fence, payment_id=payment.payment_id
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
                    await authorisations.end(self._postgres, {payment.payment_id: "VOIDED"}, copy_of=sale)
                    return (await payments.read(self._postgres, [payment.payment_id])).get(payment.payment_id, payment)
                except POSTGRES_AWAY as fault:
                    logger.warning("payment %s: not voided yet: %r", payment.payment_id, fault)
                    return payment
            case _:
                return payment

    async def _give_up(self, sale: Sale, hold_id: str, fence: int, payment_id: str) -> None:
        try:
            await wares.of(sale).scripts.abandon(self._gate, sale, hold_id=hold_id, fence=fence, payment_id=payment_id)
        except (StoreUnavailable, ScriptFault) as fault:
            # The payment is refused already; the reconciler frees the hold past the pay deadline.
            logger.warning("payment %s: abandon was not answered: %s", payment_id, fault)

    async def _answer_without_paying(
        self,
        paying: seats.PayingAnswer,
        sale: Sale,
        payment_id: str,
        hold_id: str,
        user_id: str,
        fingerprint: str,
    ) -> Answer:
        row = await SQL.find_payment.fetchrow(self._postgres, payment_id, user_id)
        if row is not None:
            payment = payments.from_row(row)
            if payment.fingerprint != fingerprint or payment.hold_id != hold_id:
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
                async with self._postgres.acquire() as connection:
                    reason = await wares.of(sale).rows.explain(connection, hold_id, user_id)
                return HoldEnded(reason=reason) if reason is not None else paying
            case seats.Paying():
                raise AssertionError("a hold that is PAYING goes on to be authorised")
            case refusal:
                return refusal


def _unknown(sale: Sale, request: Authorisation) -> Payment:
    """A payment whose row may be there or not: PENDING, as far as anybody knows."""
    holding, tender = request.holding, request.tender
    card_amount = tender.card_amount(holding.amount)
    return Payment(
        payment_id=request.payment_id,
        sale_id=holding.sale_id,
        reservation_id=holding.hold_id if holding.kind == "seats" else None,
        order_id=holding.hold_id if holding.kind == "stock" else None,
        hold_id=holding.hold_id,
        user_coupon_id=request.user_coupon_id,
        coupon_reason=None,
        user_id=holding.user_id,
        fence=holding.fence,
        fingerprint=request.fingerprint,
        method=tender.method,
        status="PENDING",
        reason=None,
        needed=None,
        available=None,
        original_amount=holding.amount,
        discount_amount=0,
        final_amount=holding.amount,
        refunded_amount=0,
        balance_amount=holding.amount - card_amount,
        card_amount=card_amount,
        payment_method_id=tender.payment_method_id,
        return_url=tender.return_url,
        gateway_ref=None,
        action_url=None,
        decline_code=None,
        pay_deadline=moment(request.pay_deadline_ms),
        created_at=moment(request.pay_deadline_ms - sale.pay_s * 1000),
        paid_at=None,
        version=1,
    )
