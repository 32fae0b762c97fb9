"""Resolutions: an operator decides a payment in doubt.

A payment comes into doubt in two ways. A fact about it could not be applied: it waits among the dead letters with its
funds set aside, and is applied or undone now. Or its gateway was asked and nobody knows what it did: it is asked once
more, or the payment is given up and whatever the gateway may hold is voided.
"""

from typing import Literal

import asyncpg
import msgspec

from engine import payments, settlement
from engine.cards import Cards, is_asked
from engine.payments import Payment
from engine.refusals import Busy, IdempotencyKeyReused, NotFound
from engine.sales import SaleBook
from engine.stores import queries
from engine.stores.replies import Refusal

SQL = queries.load("resolutions")

Word = Literal["AUTHORISED", "FAILED"]


class NotInDoubt(Refusal, frozen=True):
    """This payment is not in doubt."""

    state: str


class StillInDoubt(Refusal, frozen=True):
    """The gateway does not tell what became of this payment, so that it cannot be taken for authorised."""


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of a payment, and why."""

    resolution_id: str
    payment_id: str
    word: Word
    note: str
    api_key_id: str


async def resolve(
    postgres: asyncpg.Pool, book: SaleBook, cards: Cards | None, resolution: Resolution
) -> tuple[Payment, bool] | NotFound | NotInDoubt | StillInDoubt | IdempotencyKeyReused | Busy:
    """Decide a payment; answers its row as it then stands, and whether the same was said before.

    Raises what stands in the way of a fact that is to be applied (`settlement.resolve`), and has then decided nothing.
    """
    payment = await _read(postgres, resolution.payment_id)
    if payment is None:
        return NotFound()
    known = await SQL.find_resolution.fetchrow(postgres, resolution.resolution_id)
    if known is not None and dict(known) != {
        "payment_id": resolution.payment_id,
        "resolution": resolution.word,
        "note": resolution.note,
    }:
        return IdempotencyKeyReused()
    if payment.status != "IN_DOUBT":
        return (payment, True) if known is not None else NotInDoubt(state=payment.status)
    sale = await book.find(payment.sale_id)
    if sale is None:
        return NotFound()
    # Said before it is done: a process that dies in between leaves a word that its repeat carries out.
    await SQL.add_resolution.execute(postgres, *msgspec.structs.astuple(resolution))
    if is_asked(payment):
        if cards is None:
            return StillInDoubt()
        if resolution.word == "FAILED":
            if (await cards.give_up(sale, payment)).status == "IN_DOUBT":
                return Busy(retry_after_ms=1000)  # the sale's copy does not answer, so that its door is not shut yet
        elif (await cards.advance(sale, payment)).status == "IN_DOUBT":
            return StillInDoubt()
    elif not await settlement.resolve(postgres, sale, payment_id=payment.payment_id, resolution=resolution.word):
        # Somebody else decided it this moment.
        decided = await _read(postgres, payment.payment_id) or payment
        return StillInDoubt() if decided.status == "IN_DOUBT" else NotInDoubt(state=decided.status)
    return await _read(postgres, payment.payment_id) or payment, known is not None


async def _read(postgres: asyncpg.Pool, payment_id: str) -> Payment | None:
    return (await payments.read(postgres, [payment_id])).get(payment_id)
