"""Settlement: the transaction in which a sale becomes true, or is undone.

Redis has confirmed; here Postgres decides. The caller owns the stream (its watermark is locked). Then *read* under
locks taken in one order (coupons, balances, payments, reservations or orders, variants, each by id), *decide* in the
order of the entries, *write* in a few statements that each touch a row at most once. A sale stands only if its payment
is AUTHORISED for this hold and fence, and every seat is unclaimed or enough is left of every variant. What does not
stand is voided in the same transaction: nobody is charged for something that was lost.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import asyncpg
import msgspec

from engine import discounts, errands, waiting_room, wares
from engine.errands import Leg
from engine.holdings import Claims, Sold, Standing
from engine.sales import Sale
from engine.stores import queries
from engine.stores.outbox import BadEntry, Divergence, Entry, Handler
from engine.stores.queries import Connection

SQL = queries.load("payments")

LIVE = ("PENDING", "AUTHORISED", "IN_DOUBT")

Resolution = Literal["AUTHORISED", "FAILED"]


class _Balance(msgspec.Struct):
    """A balance while a batch is decided: each use sees what the one before it left."""

    amount: int
    set_aside: int
    version: int


class _Payment(msgspec.Struct):
    hold_id: str
    user_id: str
    fence: int
    status: str
    discount_amount: int
    final_amount: int
    balance_amount: int
    card_amount: int
    decline_code: str | None
    user_coupon_id: str | None


class _Fact(msgspec.Struct, frozen=True):
    """What an entry says was sold or ended."""

    entry: Entry
    hold_id: str
    payment_id: str


class _Verdict(msgspec.Struct):
    """What a batch comes to: ids by what happens to them."""

    sold: list[Sold] = []
    uses: list[tuple[str, str, int, int, int]] = []
    captures: list[Leg] = []
    voids: list[Leg] = []
    ended_payments: dict[str, str] = {}
    # Payments whose coupons are used, and those whose coupons are free again.
    redeemed: list[str] = []
    freed: list[str] = []
    endings: dict[str, str] = {}
    restores: dict[str, int] = {}
    processed: list[tuple[int, str]] = []


def handler(sale: Sale) -> Handler:
    """What is done with the outbox of a sale."""

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        parts = cut(entries)
        if len(parts) > 1:
            # All of it in the one order, before the first part writes.
            await _lock(connection, sale, _facts_of(entries))
        for part in parts:
            await settle(connection, sale, part)
        # Last, because the lines that it writes come last in that order.
        await wares.of(sale).rows.record_restored(connection, entries)

    return Handler(apply=apply, bury=bury)


def cut(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Cut a batch before a fact that follows its hold's `confirmed`: what comes later must see what that wrote."""
    parts: list[list[Entry]] = [[]]
    confirmed: set[str] = set()
    for entry in entries:
        hold_id = entry.id("hold_id")
        if hold_id in confirmed:
            parts.append([])
            confirmed.clear()
        if entry.kind == "confirmed":
            confirmed.add(hold_id)
        parts[-1].append(entry)
    return [part for part in parts if part]


async def settle(connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
    """Apply facts of a sale's outbox, inside the transaction that owns it.

    Raises Divergence for a sale whose payment or row Postgres never had (Redis then tells another history),
    and BadEntry.
    """
    facts = _facts_of(entries)
    if not facts:
        return
    balances, payments, rows, claims = await _lock(connection, sale, facts)

    verdict = _Verdict()
    for fact in facts:
        payment, row = payments.get(fact.payment_id), rows.get(fact.hold_id)
        if fact.entry.kind == "abandoned":
            _decide_abandoned(verdict, fact, payment, row, balances)
        elif payment is None or row is None:
            raise Divergence(
                f"outbox n {fact.entry.n}: hold {fact.hold_id} was sold to payment {fact.payment_id}, "
                f"and Postgres has no such {'payment' if payment is None else 'hold'}",
                entry=fact.entry,
            )
        else:
            _decide_confirmed(verdict, fact, payment, row, balances, claims)

    await _write(connection, sale, verdict, balances)


# Read -----------------------------------------------------------------------------------------------------------------


def _facts_of(entries: Sequence[Entry]) -> list[_Fact]:
    return [
        _Fact(entry, entry.id("hold_id"), entry.id("payment_id"))
        for entry in entries
        if entry.kind in {"confirmed", "abandoned"}
    ]


async def _lock(
    connection: Connection, sale: Sale, facts: Sequence[_Fact]
) -> tuple[dict[str, _Balance], dict[str, _Payment], dict[str, Standing], Claims]:
    """Lock coupons, balances, payments, rows and what they ask for, in the one order; each is then read."""
    keeper = wares.of(sale).rows
    payment_ids = [fact.payment_id for fact in facts]
    await discounts.lock_of(connection, payment_ids)
    balances = await _lock_balances(connection, payment_ids)
    payments = await _lock_payments(connection, payment_ids)
    rows = await keeper.lock(connection, [fact.hold_id for fact in facts])
    return balances, payments, rows, await keeper.read_claims(connection, sale, rows)


async def _lock_balances(connection: Connection, payment_ids: Sequence[str]) -> dict[str, _Balance]:
    return {
        row["user_id"]: _Balance(row["amount"], row["set_aside"], row["version"])
        for row in await SQL.lock_balances_of_payments.fetch(connection, payment_ids)
    }


async def _lock_payments(connection: Connection, payment_ids: Sequence[str]) -> dict[str, _Payment]:
    rows = await SQL.lock_payments.fetch(connection, payment_ids)
    return {row["payment_id"]: _Payment(**{name: row[name] for name in _Payment.__struct_fields__}) for row in rows}


# Decide ---------------------------------------------------------------------------------------------------------------


def _decide_confirmed(
    verdict: _Verdict,
    fact: _Fact,
    payment: _Payment,
    row: Standing,
    balances: Mapping[str, _Balance],
    claims: Claims,
) -> None:
    entry, hold_id, payment_id = fact.entry, fact.hold_id, fact.payment_id
    fence = entry.number("fence")
    is_of_this_hold = payment.hold_id == hold_id and payment.fence == fence and row.fence == fence
    if is_of_this_hold and payment.status in {"SUCCESS", "IN_DOUBT"}:
        return  # the very same sale told again, or one that an operator decides
    stands = (
        is_of_this_hold
        and payment.status == "AUTHORISED"
        and row.status == "PENDING"
        and len(row.lines) > 0
        and claims.allow(hold_id, row.lines)
    )
    if not stands:
        if is_of_this_hold:
            _end_payment(verdict, payment_id, payment, balances)
        if row.status == "PENDING":
            verdict.endings[hold_id] = "LATE_UNFULFILLABLE"
            row.status = "CANCELLED"
        verdict.restores[hold_id] = fence
        return
    row.status, payment.status = "CONFIRMED", "SUCCESS"
    claims.take(hold_id, row.lines)
    if payment.user_coupon_id is not None:
        verdict.redeemed.append(payment_id)
    verdict.sold.append(Sold(hold_id, row.user_id, payment_id, payment.discount_amount))
    if entry.number("queue_no") > 0:
        verdict.processed.append((entry.number("queue_no"), entry.id("buyer_id")))
    verdict.captures.append(Leg(payment_id, payment.card_amount))
    if payment.balance_amount > 0:  # what costs nothing moves nothing
        balance = balances[payment.user_id]
        balance.amount -= payment.balance_amount
        balance.set_aside -= payment.balance_amount
        balance.version += 1
        verdict.uses.append((payment_id, payment.user_id, payment.balance_amount, balance.amount, balance.version))


def _decide_abandoned(
    verdict: _Verdict, fact: _Fact, payment: _Payment | None, row: Standing | None, balances: Mapping[str, _Balance]
) -> None:
    """Redis has shut the door: end what whoever shut it may not have lived to end.

    No payment: whoever began it died before transaction A. No row of the hold: the journal has not brought it yet, and
    the reconciler ends it when it comes.
    """
    if payment is not None and payment.status in {"PENDING", "AUTHORISED"}:
        _end_payment(verdict, fact.payment_id, payment, balances)
    if row is not None and row.status == "PENDING" and fact.entry.text("to") == "free":
        verdict.endings[fact.hold_id] = "EXPIRED"
        row.status = "CANCELLED"


def _end_payment(verdict: _Verdict, payment_id: str, payment: _Payment, balances: Mapping[str, _Balance]) -> None:
    if payment.status not in LIVE:
        return
    if payment.balance_amount > 0:
        if payment.user_id not in balances:
            return  # committed after the balances were locked: the reconciler ends it
        balances[payment.user_id].set_aside -= payment.balance_amount
    payment.status = "FAILED" if payment.status == "PENDING" else "VOIDED"
    verdict.ended_payments[payment_id] = payment.status
    if payment.user_coupon_id is not None:
        verdict.freed.append(payment_id)
    if payment.decline_code is None:
        verdict.voids.append(Leg(payment_id, payment.card_amount))


# Write ----------------------------------------------------------------------------------------------------------------


async def _write(connection: Connection, sale: Sale, verdict: _Verdict, balances: dict[str, _Balance]) -> None:
    keeper = wares.of(sale).rows
    if verdict.sold:
        await keeper.sell(connection, sale, verdict.sold)
        if verdict.redeemed:
            await discounts.use(connection, verdict.redeemed)
    if verdict.ended_payments:
        ended = verdict.ended_payments
        reasons = ["hold_ended"] * len(ended)
        await SQL.end_payments.fetch(connection, list(ended), list(ended.values()), reasons)
        if verdict.freed:
            await discounts.free(connection, verdict.freed)
    await errands.add(connection, "CAPTURE", verdict.captures)
    await errands.add(connection, "VOID", verdict.voids)
    if verdict.uses or verdict.ended_payments:
        await SQL.settle_balances.execute(
            connection,
            list(balances),
            [balance.amount for balance in balances.values()],
            [balance.set_aside for balance in balances.values()],
            [balance.version for balance in balances.values()],
            *([use[at] for use in verdict.uses] for at in range(5)),
        )
    await keeper.end(connection, verdict.endings)
    if verdict.restores:
        await SQL.add_restores.execute(
            connection, sale.sale_id, list(verdict.restores), list(verdict.restores.values())
        )
    if verdict.processed:
        await waiting_room.record_processed(connection, sale, verdict.processed)


async def bury(connection: Connection, entry: Entry) -> str | None:
    """Leave the payment of a fact that could not be applied IN_DOUBT; its funds stay set aside until it is resolved."""
    try:
        payment_id = entry.id("payment_id")
    except BadEntry:
        return None
    await SQL.doubt_payment.execute(connection, payment_id)
    return payment_id


async def resolve(postgres: asyncpg.Pool, sale: Sale, *, payment_id: str, resolution: Resolution) -> bool:
    """Do an operator's word on a payment in doubt; False when none of its facts waits for one.

    AUTHORISED: the fact that could not be applied is applied now, as a batch of its own. FAILED: its payment is voided,
    and what was held is given back. Raises what stands in the fact's way, if it still does, and changes nothing then.
    """
    async with postgres.acquire() as connection, connection.transaction():
        # Whoever owns the stream waits: claims are decided by one at a time.
        await SQL.lock_outbox.execute(connection, sale.sale_id)
        letter = await SQL.find_letter.fetchrow(connection, sale.sale_id, payment_id)
        if letter is None:
            return False
        entry = Entry(**{name: letter[name] for name in ("entry_id", "epoch", "n", "kind", "fields")}, before="")
        if resolution == "AUTHORISED":
            await SQL.authorise_doubtful.execute(connection, payment_id)
            await settle(connection, sale, [entry])
        else:
            await _undo(connection, sale, payment_id)
        await SQL.resolve_letter.execute(connection, sale.sale_id, letter["epoch"], letter["n"], resolution)
    return True


async def _undo(connection: Connection, sale: Sale, payment_id: str) -> None:
    await discounts.lock_of(connection, [payment_id])
    balances = await _lock_balances(connection, [payment_id])
    payment = (await _lock_payments(connection, [payment_id]))[payment_id]
    verdict = _Verdict(endings={payment.hold_id: "LATE_UNFULFILLABLE"})
    _end_payment(verdict, payment_id, payment, balances)
    verdict.restores[payment.hold_id] = payment.fence
    await _write(connection, sale, verdict, balances)
