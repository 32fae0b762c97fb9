"""Payments: what a row says of one, and to whom.

A payment is PENDING, AUTHORISED (`authorisations`), then SUCCESS or VOIDED (`settlement`), or FAILED. A buyer pays at
the `till`; what a process leaves half done is finished by `reconciliation`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, Literal

import asyncpg
import msgspec

from engine.moments import LAST_ID, LATEST
from engine.seats import HoldEnded
from engine.stores import queries
from engine.stores.queries import Connection
from engine.stores.replies import Refusal

SQL = queries.load("payments")

State = Literal[
    "PENDING", "AUTHORISED", "IN_DOUBT", "SUCCESS", "FAILED", "VOIDED", "UNCOLLECTED", "PARTIALLY_REFUNDED", "REFUNDED"
]
LIVE: Final = frozenset({"PENDING", "AUTHORISED", "IN_DOUBT"})


class Tender(msgspec.Struct, frozen=True, kw_only=True):
    """How a buyer wants to pay: BALANCE, CARD, or SPLIT, in which the balance pays `balance_amount` of it."""

    method: str = "BALANCE"
    balance_amount: int = 0
    payment_method_id: str | None = None
    return_url: str | None = None

    def card_amount(self, amount: int) -> int:
        """What of this amount the card pays; nothing of what costs nothing."""
        match self.method:
            case "CARD":
                return amount
            case "SPLIT":
                return max(0, amount - self.balance_amount)
            case _:
                return 0


BALANCE: Final = Tender()


class InsufficientBalance(Refusal, frozen=True):
    """The balance does not cover the amount."""

    needed: int
    available: int


class CouponUnusable(Refusal, frozen=True):
    """This coupon cannot be used for this payment."""

    # UNKNOWN | RESERVED | USED | NOT_STARTED | ENDED | MINIMUM_SPEND
    reason: str


class CouponPending(Refusal, frozen=True):
    """This coupon was issued a moment ago, and can be used in another."""

    temporary: ClassVar[bool] = True


class CardDeclined(Refusal, frozen=True):
    """The card was declined. While the hold stands, pay again with a new key."""

    payment_id: str
    decline_code: str
    # When the hold ends; None where it has, or where nothing is held.
    expires_at_ms: int | None = None


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment's row; `status` is the inner one, amounts are in minor units."""

    payment_id: str
    sale_id: str
    # What it pays is one of the two; either way `hold_id` is its id.
    reservation_id: str | None
    order_id: str | None
    hold_id: str
    # The coupon that was named, and why it could not be used.
    user_coupon_id: str | None
    coupon_reason: str | None
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
    # The two legs; together they are `final_amount`.
    balance_amount: int
    card_amount: int
    payment_method_id: str | None
    return_url: str | None
    # The gateway's name for it once it is known, where the buyer must go, why it said no.
    gateway_ref: str | None
    action_url: str | None
    decline_code: str | None
    pay_deadline: datetime
    created_at: datetime
    paid_at: datetime | None
    version: int
    # Whether an earlier request with the same id began it; no column.
    repeated: bool = False

    @property
    def public_status(self) -> str:
        """PENDING, SUCCESS, FAILED, PARTIALLY_REFUNDED or REFUNDED."""
        return {"AUTHORISED": "PENDING", "IN_DOUBT": "PENDING", "VOIDED": "FAILED", "UNCOLLECTED": "SUCCESS"}.get(
            self.status, self.status
        )


_COLUMNS: Final = tuple(name for name in Payment.__struct_fields__ if name != "repeated")


def refusal_of(payment: Payment) -> Refusal | None:
    """Why a payment failed, as its buyer is told; None for one that did not."""
    if payment.public_status != "FAILED":
        return None
    if payment.reason == "card_declined":
        return CardDeclined(payment_id=payment.payment_id, decline_code=payment.decline_code or "")
    if payment.reason == "insufficient_balance":
        return InsufficientBalance(needed=payment.needed or 0, available=payment.available or 0)
    if payment.reason == "coupon_unusable":
        return CouponUnusable(reason=payment.coupon_reason or "UNKNOWN")
    return HoldEnded(reason="LATE_UNFULFILLABLE" if payment.status == "VOIDED" else "EXPIRED")


async def read(postgres: asyncpg.Pool | Connection, payment_ids: Sequence[str]) -> dict[str, Payment]:
    """Payments by id; those without a row are missing."""
    rows = await SQL.find_payments.fetch(postgres, payment_ids)
    return {row["payment_id"]: from_row(row) for row in rows}


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
    return Payment(**{name: row[name] for name in _COLUMNS})
