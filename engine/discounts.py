"""Discounts: a coupon that a payment names is reserved with it, used when it succeeds, and free again when it ends.

Each step is part of the transaction that decides the payment, so a coupon is never used twice and never lost. Coupons
are locked before balances.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from engine import coupons
from engine.coupons import UserCoupon
from engine.stores import queries
from engine.stores.queries import Connection

SQL = queries.load("discounts")


class Named(msgspec.Struct):
    """A coupon while payments that name it are decided: the first that may use it has it."""

    coupon: UserCoupon
    now: datetime
    status: str

    def judge(self, user_id: str, amount: int) -> str | None:
        """Why this user cannot use it for this amount now, or None."""
        if self.coupon.user_id != user_id:
            return "UNKNOWN"
        if self.status != "AVAILABLE":
            return self.status
        return coupons.usable(self.coupon, amount, self.now)

    def discount_of(self, amount: int) -> int:
        """What it takes off this amount."""
        return coupons.discount_of(self.coupon, amount)


async def lock(connection: Connection, user_coupon_ids: Sequence[str]) -> dict[str, Named]:
    """Lock these coupons; those that do not exist are missing."""
    if not user_coupon_ids:
        return {}
    named = {}
    for row in await SQL.lock_coupons.fetch(connection, user_coupon_ids):
        coupon = UserCoupon(**{name: row[name] for name in UserCoupon.__struct_fields__})
        named[coupon.user_coupon_id] = Named(coupon, row["now"], coupon.status)
    return named


async def lock_of(connection: Connection, payment_ids: Sequence[str]) -> None:
    """Lock the coupons that these payments name, before anything else of them."""
    await SQL.lock_coupons_of_payments.fetch(connection, payment_ids)


async def lock_of_holds(connection: Connection, hold_ids: Sequence[str]) -> None:
    """Lock the coupons that any payment of these holds names, before anything else of them."""
    await SQL.lock_coupons_of_holds.fetch(connection, hold_ids)


async def reserve(connection: Connection, payments: Mapping[str, str]) -> None:
    """Reserve coupons, each for the payment that named it."""
    if payments:
        await SQL.reserve.execute(connection, list(payments), list(payments.values()))


async def use(connection: Connection, payment_ids: Sequence[str]) -> None:
    """The coupons of these payments are used: what they took something off is sold."""
    await SQL.use.execute(connection, payment_ids)


async def free(connection: Connection, payment_ids: Sequence[str]) -> None:
    """The coupons of these payments may be used again: nothing was sold."""
    await SQL.free.execute(connection, payment_ids)


async def give_back(connection: Connection, payment_ids: Sequence[str]) -> None:
    """The coupons of what is back in full may be used again, while their window is open."""
    await SQL.give_back.execute(connection, payment_ids)
