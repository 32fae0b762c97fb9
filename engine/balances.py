"""Balances: the money of each user, and the history that adds up to it.

Funds of payments are set aside and taken in the transactions of payments; here a balance is read and charged.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

import asyncpg
import msgspec

from engine import ids
from engine.refusals import IdempotencyKeyReused, LimitReached
from engine.stores import queries

AMOUNT_MAX: Final = 10**12

SQL = queries.load("balances")


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What a user has, and how much of it is set aside for payments that are not finished."""

    amount: int
    set_aside: int
    version: int


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Money that was added; `repeated` if an earlier request with the same id added it."""

    charge_id: str
    amount: int
    balance_after: int
    charged_at: datetime
    repeated: bool


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history; `version` orders the lines of a user."""

    type: Literal["CHARGE", "USE", "REFUND"]
    amount: int
    balance_after: int
    version: int
    reason: str | None
    payment_id: str | None
    created_at: datetime


async def find(postgres: asyncpg.Pool, user_id: str) -> Balance | None:
    """The balance of a user."""
    row = await SQL.find_balance.fetchrow(postgres, user_id)
    return Balance(**row) if row else None


async def charge(
    postgres: asyncpg.Pool, *, charge_id: str, user_id: str, amount: int, reason: str | None = None
) -> Charge | IdempotencyKeyReused | LimitReached | None:
    """Add money, once for this id, however often it is asked; None if nobody has that balance."""
    fingerprint = ids.fingerprint(user_id, str(amount), reason or "")
    async with postgres.acquire() as connection, connection.transaction():
        # The lock comes first: copies of one charge are all of one user, so each finds the row of the one before.
        balance = await SQL.lock_balance.fetchrow(connection, user_id)
        if balance is None:
            return None
        earlier = await SQL.find_charge.fetchrow(connection, charge_id)
        if earlier is not None:
            if earlier["fingerprint"] != fingerprint:
                return IdempotencyKeyReused()
            return Charge(
                charge_id=charge_id,
                amount=earlier["amount"],
                balance_after=earlier["balance_after"],
                charged_at=earlier["created_at"],
                repeated=True,
            )
        after, version = balance["amount"] + amount, balance["version"] + 1
        if after > AMOUNT_MAX:
            return LimitReached(limit=AMOUNT_MAX, have=balance["amount"])
        await SQL.set_balance.execute(connection, user_id, after, version)
        charged_at = await SQL.add_charge.fetchval(
            connection, user_id, amount, after, version, reason, charge_id, fingerprint
        )
    return Charge(charge_id=charge_id, amount=amount, balance_after=after, charged_at=charged_at, repeated=False)


async def charge_many(postgres: asyncpg.Pool, *, charges: Mapping[str, str], amount: int, reason: str) -> None:
    """Add the same amount for each user, by the id of the user's charge: once each, however often it is asked.

    For accounts as they are made: nobody is asked whether the balance grows too large.
    """
    async with postgres.acquire() as connection, connection.transaction():
        await SQL.lock_balances.fetch(connection, list(charges))
        added = await SQL.add_charges.fetch(connection, list(charges), list(charges.values()), amount, reason)
        await SQL.raise_balances.execute(connection, [row["user_id"] for row in added], amount)


async def history(postgres: asyncpg.Pool, user_id: str, *, below_version: int | None, most: int) -> list[Change]:
    """Changes of a user's balance, newest first, from below a version on."""
    return [Change(**row) for row in await SQL.list_history.fetch(postgres, user_id, below_version, most)]
