"""Late payments: a gateway reports money for a payment that has ended.

Its buyer gets exactly what that payment was for, seats or goods, if nothing stands in the way, or the money goes back
with a reason: never silently more, never money for nothing. What had a coupon needs it again.

The one job (`go_on`) is known by the gateway's own name for the money, and begins again wherever a process died: the
hold and the payment that it makes have ids made from that name, and the row of `late_payments` is locked by whoever
decides. What ended is never revived: hold, row and payment are new ones. From the new payment's row on, which bears the
gateway's name from its first moment, everything is as with any other payment.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from engine import authorisations, errands, ids, payments, sales, seats, stock, wares
from engine.authorisations import Authorisation
from engine.errands import Leg
from engine.gateway import Gateway, GatewayUnavailable, GatewayUnknown, Intent
from engine.moments import LAST_ID, LATEST
from engine.payments import Payment, Tender
from engine.refusals import Busy, NotFound
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import POSTGRES_AWAY, POSTGRES_CROSSED, StoreUnavailable
from engine.stores.queries import Connection
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch, word_of
from engine.stores.scripts import Gate, ScriptFault

logger = logging.getLogger(__name__)

SQL = queries.load("late_payments")
CARDS = queries.load("cards")

# Repeats of one request to the store: each has ended some lapsed holds.
REPEATS_MAX: Final = 100
# Of two transactions that crossed, Postgres ended this one.
_AWAY: Final = (*POSTGRES_AWAY, *POSTGRES_CROSSED)


class LatePayment(msgspec.Struct, frozen=True, kw_only=True):
    """Money that came late: PENDING, then SOLD (the new payment has bought it), or RETURNED for a reason.

    `amount` is what the gateway has, in minor units. The new hold, an order's or a reservation's, and the new payment
    may have no rows.
    """

    gateway_ref: str
    payment_id: str
    sale_id: str
    user_id: str
    amount: int
    new_hold_id: str
    new_payment_id: str
    is_order: bool
    status: str
    reason: str | None
    created_at: datetime
    updated_at: datetime
    done_at: datetime | None


class _No(Exception):
    """Something says no for good: the money goes back for this reason; `money` where it is another sum by now."""

    def __init__(self, reason: str, money: int | None = None) -> None:
        super().__init__(reason)
        self.money = money


class _Later(Exception):
    """Nobody knows yet: the same is tried again later."""


def money_in(intent: Intent) -> int:
    """What the gateway has of an intent: set aside, or taken and not given back."""
    match intent.status:
        case "AUTHORISED":
            return intent.amount
        case "CAPTURED":
            return intent.captured - intent.refunded
        case _:
            return 0


# Write down -----------------------------------------------------------------------------------------------------------


async def begin(connection: Connection, payment: Payment, *, ref: str, money: int) -> None:
    """Write down money for a payment that has ended, inside the caller's transaction; harmless to repeat.

    What is decided beforehand goes back at once: money that was known before the payment ended, whose void is on its
    way, that an operator gave up, or whose event is off.
    """
    ended = await SQL.lock_ended.fetchrow(connection, payment.payment_id)
    known = await SQL.find_late_payment.fetchrow(connection, ref)
    if known is not None:
        if known["status"] == "RETURNED":
            await _void(connection, ref, money)  # and there it is again
        return
    logger.warning("payment %s had ended, and its gateway has %d for it", payment.payment_id, money)
    await CARDS.keep_ref.execute(connection, payment.payment_id, ref)
    if ended is None or ended["was_known"]:
        await _void(connection, ref, money)
        return
    await SQL.add_late_payment.execute(
        connection,
        ref,
        payment.payment_id,
        payment.sale_id,
        payment.user_id,
        money,
        ids.derive_in(payment.sale_id, "late", ref),
        ids.derive("late", ref),
    )
    bars = await SQL.find_bars.fetchrow(connection, payment.payment_id, payment.sale_id)
    reason = next((name for name, is_so in bars.items() if is_so), None) if bars else None
    if reason is not None:
        await _void(connection, ref, money)
        await SQL.finish.execute(connection, ref, "RETURNED", reason)


async def _void(connection: Connection, ref: str, money: int) -> None:
    """Let go what a gateway has, by the payment that bears its name now and must have ended."""
    carrier = await SQL.find_carrier.fetchrow(connection, ref)
    if carrier is not None and carrier["status"] in {"FAILED", "VOIDED"}:
        await errands.void_anew(connection, Leg(carrier["payment_id"], money))


# Go on ----------------------------------------------------------------------------------------------------------------


async def go_on(gate: Gate, postgres: asyncpg.Pool, gateway: Gateway, sale: Sale, late: LatePayment) -> LatePayment:
    """Bring a late payment as far as it goes now, and answer how it stands then; any number may do so at once.

    Once it has a new payment that lives, that payment goes its own way, and this only tells how it ended. Whoever is
    away raises nothing: the next who comes begins where this stopped.
    """
    if late.status != "PENDING":
        return late
    try:
        payment = (await payments.read(postgres, [late.new_payment_id])).get(late.new_payment_id)
        if payment is None:
            await _climb(gate, postgres, gateway, sale, late)
        elif payment.public_status == "FAILED" and payment.gateway_ref != late.gateway_ref:
            raise _No(payment.reason or "hold_ended")
        elif payment.public_status == "FAILED":
            # It bore the money, so whoever ended it wrote the void.
            await SQL.finish.execute(postgres, late.gateway_ref, "RETURNED", payment.reason or "hold_ended")
        elif payment.status not in payments.LIVE:
            await SQL.finish.execute(postgres, late.gateway_ref, "SOLD", None)
    except _No as no:
        await _give_back(gate, postgres, sale, late, no)
    except (_Later, GatewayUnknown, GatewayUnavailable, StoreUnavailable, ScriptFault, *_AWAY) as fault:
        logger.warning("late payment %s goes on later: %r", late.gateway_ref, fault)
        return late
    return await find(postgres, late.gateway_ref) or late


async def _climb(gate: Gate, postgres: asyncpg.Pool, gateway: Gateway, sale: Sale, late: LatePayment) -> None:
    """Get the buyer what the payment was for, up to a payment of its own; raises _No and _Later."""
    ended = (await payments.read(postgres, [late.payment_id]))[late.payment_id]
    intent = await gateway.query(late.gateway_ref)
    money = money_in(intent) if intent else 0
    if money != ended.card_amount:
        raise _No("amount_differs" if money else "money_gone", money)
    await _hold_again(gate, postgres, sale, late, ended)
    paying = await wares.of(sale).scripts.pay(
        gate, sale, hold_id=late.new_hold_id, buyer_id=late.user_id, payment_id=late.new_payment_id
    )
    match paying:
        case seats.Paying():
            pass
        case seats.HoldSold(payment_id=late.new_payment_id) | SaleUnknown() | StaleEpoch() | SaleRebuilding():
            raise _Later(word_of(type(paying)))
        case _:
            raise _No(word_of(type(paying)))
    await _authorise(postgres, sale, late, ended, paying)


async def _hold_again(gate: Gate, postgres: asyncpg.Pool, sale: Sale, late: LatePayment, ended: Payment) -> None:
    ware = wares.of(sale)
    wanted = await ware.rows.find_wanted(postgres, late.payment_id)
    if wanted is None or wanted.amount != ended.original_amount:
        raise _No("lines_unknown")
    for _ in range(REPEATS_MAX):
        held = await ware.scripts.hold_again(
            gate,
            sale,
            hold_id=late.new_hold_id,
            buyer_id=late.user_id,
            fingerprint=ids.fingerprint("late", late.gateway_ref),
            lines=wanted.lines,
            prices=wanted.prices,
        )
        match held:
            case seats.HeldLines() | stock.Held() | seats.HoldKnown():
                return
            case seats.LookOn():
                continue
            case Busy() | SaleUnknown() | StaleEpoch() | SaleRebuilding():
                raise _Later(word_of(type(held)))
            case _:
                raise _No(word_of(type(held)))
    raise _Later("look_on")


async def _authorise(
    postgres: asyncpg.Pool, sale: Sale, late: LatePayment, ended: Payment, paying: seats.Paying
) -> None:
    """Write the new payment, to which the gateway's name moves; balance leg and coupon are set aside for it."""
    request = Authorisation(
        payment_id=late.new_payment_id,
        fingerprint=ended.fingerprint,
        holding=wares.of(sale).rows.holding_of(sale, late.new_hold_id, late.user_id, paying),
        pay_deadline_ms=paying.pay_deadline_ms,
        tender=Tender(
            method=ended.method,
            balance_amount=ended.balance_amount if ended.method == "SPLIT" else 0,
            payment_method_id=ended.payment_method_id,
        ),
        user_coupon_id=ended.user_coupon_id,
    )
    async with postgres.acquire() as connection, connection.transaction():
        # Who gives the money back locks the same row: one of the two finds that the other was first.
        if not await SQL.lock_pending.fetch(connection, late.gateway_ref):
            raise _No("hold_ended")
        if await sales.SQL.is_called_off.fetchval(connection, sale.sale_id):
            raise _No("event_cancelled")
        # Asked once the units are held: whoever is not seen here was seen there, or comes later.
        if await SQL.is_ordered_again.fetchval(connection, late.payment_id, late.new_payment_id):
            raise _No(word_of(stock.OrderedAgain))
        await authorisations.authorise_in(connection, [request])
        payment = (await payments.read(connection, [late.new_payment_id])).get(late.new_payment_id)
        if payment is None:
            raise _No("payment_running")
        if payment.status != "FAILED" and payment.card_amount != ended.card_amount:
            raise _No("amount_differs")
        if payment.status == "PENDING" and payment.gateway_ref is None:
            await SQL.release_ref.execute(connection, late.payment_id, late.gateway_ref)
            await SQL.take_ref.execute(connection, late.new_payment_id, late.gateway_ref)
    if payment.status == "FAILED":
        raise _No(payment.reason or "hold_ended")


async def _give_back(gate: Gate, postgres: asyncpg.Pool, sale: Sale, late: LatePayment, no: _No) -> None:
    """Give the money back for this reason, unless somebody else got further; then let go what is held for it."""
    async with postgres.acquire() as connection, connection.transaction():
        if await SQL.lock_pending.fetch(connection, late.gateway_ref):
            payment = (await payments.read(connection, [late.new_payment_id])).get(late.new_payment_id)
            if payment is not None and payment.public_status != "FAILED":
                return
            money = late.amount if no.money is None else no.money
            if money > 0:
                await _void(connection, late.gateway_ref, money)
            await SQL.finish.execute(connection, late.gateway_ref, "RETURNED", str(no))
            logger.warning("late payment %s goes back: %s", late.gateway_ref, no)
    decided = await find(postgres, late.gateway_ref)
    if decided is not None and decided.status == "RETURNED":
        await _let_go(gate, sale, late)


async def _let_go(gate: Gate, sale: Sale, late: LatePayment) -> None:
    """Free what is held at once; a process that dies here leaves a hold that lapses."""
    scripts = wares.of(sale).scripts
    held = await scripts.find(gate, sale, hold_id=late.new_hold_id)
    if isinstance(held, NotFound | SaleUnknown | StaleEpoch | SaleRebuilding):
        return
    if held.state == "PAYING" and held.payment_id == late.new_payment_id:
        await scripts.abandon(gate, sale, hold_id=held.hold_id, fence=held.fence, payment_id=late.new_payment_id)
    if held.state in {"HELD", "PAYING"}:
        await scripts.release(
            gate,
            sale,
            hold_id=held.hold_id,
            buyer_id=held.buyer_id,
            release_id=ids.derive("late release", late.gateway_ref),
            fingerprint="",
        )


async def reconcile(gate: Gate, postgres: asyncpg.Pool, gateway: Gateway, sale: Sale, *, most: int = 20) -> int:
    """Bring the late payments of a sale on, at most so many; returns how many of them were decided."""
    pending = [from_row(row) for row in await SQL.list_pending.fetch(postgres, sale.sale_id, most)]
    stand = [await go_on(gate, postgres, gateway, sale, late) for late in pending]
    return sum(late.status != "PENDING" for late in stand)


# Read -----------------------------------------------------------------------------------------------------------------


async def find(postgres: asyncpg.Pool, ref: str) -> LatePayment | None:
    """What became of money that was reported late, by the gateway's name for it."""
    row = await SQL.find_late_payment.fetchrow(postgres, ref)
    return from_row(row) if row else None


async def find_of(postgres: asyncpg.Pool, payment_ids: Sequence[str]) -> dict[str, LatePayment]:
    """What became of money that was reported late for these payments, by payment; most have none."""
    if not payment_ids:
        return {}
    return {row["payment_id"]: from_row(row) for row in await SQL.find_of_payments.fetch(postgres, payment_ids)}


async def list_newest(
    postgres: asyncpg.Pool, *, before: tuple[datetime, str] = (LATEST, LAST_ID), limit: int = 20
) -> list[LatePayment]:
    """Late payments, newest first, from after the cursor (created_at, new_payment_id)."""
    return [from_row(row) for row in await SQL.list_late_payments.fetch(postgres, *before, limit)]


def from_row(row: asyncpg.Record | dict[str, Any]) -> LatePayment:
    """Make a late payment of its row."""
    return LatePayment(**{name: row[name] for name in LatePayment.__struct_fields__})
