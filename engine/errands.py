"""Errands: what a gateway must be told, as rows written by the transaction that decides it.

A capture, a void or a refund is sent under its own id, again and again, until the answer is known: the gateway does it
once. A refund waits until the capture before it is known.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import asyncpg
import msgspec

from engine import ids
from engine.gateway import (
    AlreadyCaptured,
    CaptureRefused,
    Gateway,
    GatewayUnavailable,
    GatewayUnknown,
    RefundedBy,
    RefundRefused,
)
from engine.stores import queries
from engine.stores.queries import Connection

logger = logging.getLogger(__name__)

SQL = queries.load("errands")
COUPONS = queries.load("discounts")

Kind = Literal["CAPTURE", "VOID", "REFUND"]

# An errand that was taken is nobody else's for so long: longer than a gateway may take to answer.
TAKEN_S: Final = 60.0
# After an answer that never came it is due again after 2 s, 4 s, 8 s … and at most this.
AGAIN_MAX_S: Final = 300.0
# A gateway's search is written later than its payments: what it does not find so often is not there.
SOUGHT_MAX: Final = 8
# After so many attempts somebody should look, though they go on.
ALARM_AFTER: Final = 10


class Leg(NamedTuple):
    """The part of a payment that a card pays, in minor units."""

    payment_id: str
    amount: int


class Errand(msgspec.Struct, frozen=True):
    """One thing that a gateway must be told."""

    errand_id: str
    payment_id: str
    kind: Kind
    refund_id: str | None
    amount: int
    attempts: int
    answer_ref: str | None
    gateway_ref: str | None


class _Begun(Exception):
    """The gateway has begun a refund, under this name, and says later how it ended."""


class Driven(msgspec.Struct):
    """What one pass did: errands by how they ended."""

    done: int = 0
    refused: int = 0
    unknown: int = 0


def id_of(kind: Kind, payment_id: str) -> str:
    """The id of a capture or a void, for ever the same: the gateway's idempotency key."""
    return ids.derive("gateway", kind, payment_id)


async def add(connection: Connection, kind: Kind, legs: Sequence[Leg]) -> None:
    """Write captures or voids of these legs, in the caller's transaction; a leg of nothing needs none."""
    told = sorted(leg for leg in legs if leg.amount > 0)
    if told:
        await SQL.add_errands.execute(
            connection,
            [id_of(kind, leg.payment_id) for leg in told],
            [leg.payment_id for leg in told],
            [leg.amount for leg in told],
            kind,
        )


async def void_anew(connection: Connection, leg: Leg) -> None:
    """Write a void of this leg, also where one was sent before: the gateway holds money all the same.

    A gateway answers a key with what it answered first, so what is sent once more has a key of its own.
    """
    await add(connection, "VOID", [leg])
    void = await SQL.lock_void.fetchrow(connection, leg.payment_id)
    if void is not None and void["status"] != "PENDING":
        again = ids.derive("gateway", "again", void["operation_id"])
        await SQL.reopen_void.execute(connection, leg.payment_id, again, leg.amount)


class _Outcome(NamedTuple):
    """What a gateway answered: done, or why it never will be; and its name for a refund that is done."""

    errand: Errand
    refusal: str | None = None
    refund_ref: str | None = None


async def drive(postgres: asyncpg.Pool, gateway: Gateway, *, most: int = 128) -> Driven:
    """Send at most `most` errands that are due, side by side, and write down what became of each.

    Safe to run in many processes at once, and to be cut short anywhere: what was sent and not written down is sent
    again under the same id.
    """
    taken = [Errand(**dict(row)) for row in await SQL.take_errands.fetch(postgres, most, TAKEN_S)]
    outcomes = [each for each in await asyncio.gather(*[_try(postgres, gateway, errand) for errand in taken]) if each]
    done = Driven(unknown=len(taken) - len(outcomes))
    if not outcomes:
        return done
    async with postgres.acquire() as connection, connection.transaction():
        # Before the payments, as everywhere: what is back in full gives a coupon back.
        given_back = [outcome.errand.payment_id for outcome in outcomes if outcome.errand.kind != "CAPTURE"]
        if given_back:
            await COUPONS.lock_coupons_of_payments.execute(connection, given_back)
        await SQL.lock_payments.execute(connection, [outcome.errand.payment_id for outcome in outcomes])
        finished = {
            row["operation_id"]
            for row in await SQL.finish_errands.fetch(
                connection,
                [outcome.errand.errand_id for outcome in outcomes],
                [outcome.refusal for outcome in outcomes],
                [outcome.refund_ref for outcome in outcomes],
            )
        }
        # Whoever took one after us, because we were slow, may have written it down already.
        outcomes = [outcome for outcome in outcomes if outcome.errand.errand_id in finished]
        await _conclude(connection, outcomes)
        if given_back:
            await COUPONS.give_back.execute(connection, given_back)
    for errand, refusal, _ in outcomes:
        if refusal is None:
            done.done += 1
        else:
            done.refused += 1
            logger.error("%s of payment %s was refused for good: %s", errand.kind, errand.payment_id, refusal)
    return done


async def _try(postgres: asyncpg.Pool, gateway: Gateway, errand: Errand) -> _Outcome | None:
    """Tell the gateway; None where the answer is not known, and it is due again later."""
    try:
        try:
            return await _send(gateway, errand)
        except GatewayUnknown:
            if not await _is_given_back(postgres, gateway, errand):
                raise
            return _Outcome(errand)
    except _Begun as begun:
        await SQL.await_errand.execute(postgres, errand.errand_id, str(begun), AGAIN_MAX_S)
    except (GatewayUnknown, GatewayUnavailable) as fault:
        level = logging.ERROR if errand.attempts >= ALARM_AFTER else logging.WARNING
        logger.log(level, "%s of payment %s, attempt %d: %s", errand.kind, errand.payment_id, errand.attempts, fault)
        pause_s = min(AGAIN_MAX_S, 2.0**errand.attempts)
        await SQL.postpone_errand.execute(postgres, errand.errand_id, pause_s, str(fault))
    return None


async def _send(gateway: Gateway, errand: Errand) -> _Outcome:
    """Tell the gateway. Raises what leaves open whether it is done, or will be."""
    ref = errand.gateway_ref
    if ref is None:
        # Nobody heard what became of the authorisation: whatever carries the payment's id at the gateway is meant.
        found = await gateway.find(errand.payment_id)
        if found is None and errand.attempts < SOUGHT_MAX:
            raise GatewayUnknown("the gateway does not know the payment, yet")
        if found is None:
            return _Outcome(errand, None if errand.kind == "VOID" else "the gateway knows no such payment")
        ref = found.ref
    if errand.attempts > 1 and await _is_done(gateway, errand, ref):
        return _Outcome(errand)
    match errand.kind:
        case "CAPTURE":
            captured = await gateway.capture(ref, amount=errand.amount, key=errand.errand_id)
            return _Outcome(errand, captured.reason if isinstance(captured, CaptureRefused) else None)
        case "VOID":
            voided = await gateway.void(ref, key=errand.errand_id)
            # Taken behind our back: what was not to be taken is given back. This errand's own key has asked to cancel.
            instead = ids.derive("gateway", "refund instead", errand.errand_id)
            if isinstance(voided, AlreadyCaptured):
                return await _refund(gateway, errand, ref, key=instead)
            return _Outcome(errand)
        case "REFUND":
            return await _refund(gateway, errand, ref, key=errand.errand_id)


async def _is_done(gateway: Gateway, errand: Errand, ref: str) -> bool:
    """Whether an earlier attempt did it: a key may remember a fault, and answer nothing else for a day."""
    intent = await gateway.query(ref)
    if intent is None:
        return False
    return (errand.kind == "CAPTURE" and intent.captured == errand.amount) or (
        errand.kind == "VOID" and intent.status == "CANCELLED"
    )


async def _is_given_back(postgres: asyncpg.Pool, gateway: Gateway, errand: Errand) -> bool:
    """Whether an earlier attempt at a refund did it.

    A key that remembers a fault is as good as new after a day, and the same again would then give back twice. A gateway
    that has given back all that it was ever told of this payment has done this, too. One that it has begun says itself
    how it ended.
    """
    if errand.kind != "REFUND" or errand.attempts == 1 or errand.answer_ref or errand.gateway_ref is None:
        return False
    intent = await gateway.query(errand.gateway_ref)
    return intent is not None and intent.refunded >= await SQL.sum_refunds_told.fetchval(postgres, errand.payment_id)


async def _refund(gateway: Gateway, errand: Errand, ref: str, *, key: str) -> _Outcome:
    if errand.answer_ref is not None:
        answer = await gateway.query_refund(errand.answer_ref)
    else:
        answer = await gateway.refund(ref, amount=errand.amount, key=key)
    if isinstance(answer, RefundRefused):
        return _Outcome(errand, answer.reason)
    if answer.pending:
        raise _Begun(answer.refund_ref)
    return _Outcome(errand, refund_ref=answer.refund_ref)


async def _conclude(connection: Connection, outcomes: Sequence[_Outcome]) -> None:
    captured = [outcome.errand for outcome in outcomes if outcome.errand.kind == "CAPTURE" and outcome.refusal is None]
    if captured:
        await SQL.keep_captured.execute(
            connection, [errand.payment_id for errand in captured], [errand.amount for errand in captured]
        )
    for errand, refusal, _ in outcomes:
        match errand.kind:
            case "CAPTURE" if refusal is not None:
                # Sold, and not paid for: an operator must know. Nothing is taken back silently.
                await SQL.mark_uncollected.execute(connection, errand.payment_id)
            case "REFUND" if refusal is None:
                await SQL.finish_refund.execute(connection, errand.refund_id)
            case "REFUND":
                # What could not be given back was not given back: it may be tried again, or be paid to the balance.
                await SQL.fail_refund.execute(connection, errand.refund_id)
            case "VOID" if refusal is None:
                # A capture that became a void before it was sent gave back what it would have taken.
                await SQL.finish_refunds_by_void.execute(connection, errand.payment_id)
            case "VOID":
                # Taken behind our back, and not given back either.
                for row in await SQL.list_refunds_by_void.fetch(connection, errand.payment_id):
                    await SQL.fail_refund.execute(connection, row["refund_id"])
            case _:
                pass


async def hear(connection: Connection, payment_id: str, refund_ref: str, stands: RefundedBy | RefundRefused) -> None:
    """Take in how a refund stands that a gateway tells of unasked; harmless to repeat.

    One that the bank still thought about is asked about now. One that was done may fail all the same, days later: the
    money has not gone back then, and the coupon that came back with it is used again unless it was meanwhile.
    """
    await COUPONS.lock_coupons_of_payments.execute(connection, [payment_id])
    await SQL.lock_payments.execute(connection, [payment_id])
    await SQL.hurry_refund.execute(connection, payment_id, refund_ref)
    if not isinstance(stands, RefundRefused):
        return
    for row in await SQL.take_back_refund.fetch(connection, payment_id, refund_ref, stands.reason):
        await SQL.fail_refund.execute(connection, row["refund_id"])
        await COUPONS.use_again.execute(connection, payment_id)
        logger.error("REFUND of payment %s came back: %s", payment_id, stands.reason)
