"""A balance is the sum of its history, whatever happens at once."""

import asyncio
from itertools import pairwise

import asyncpg
import pytest

from engine import accounts, balances
from engine.balances import AMOUNT_MAX, Charge
from engine.refusals import IdempotencyKeyReused, LimitReached

ADA, BEN = "a" * 32, "b" * 32


@pytest.fixture(autouse=True)
async def people(postgres: asyncpg.Pool) -> None:
    """Ada and Ben, with nothing."""
    await accounts.create_many(postgres, user_ids=[ADA, BEN], fingerprint="f")


async def charge(postgres: asyncpg.Pool, charge_id: str, amount: int, user_id: str = ADA) -> object:
    return await balances.charge(postgres, charge_id=charge_id * 32, user_id=user_id, amount=amount)


async def test_charges_at_once_all_count_and_the_history_is_their_sum(postgres: asyncpg.Pool) -> None:
    await asyncio.gather(*(charge(postgres, "0123456789abcdef"[number], number + 1) for number in range(16)))
    changes = await balances.history(postgres, ADA, below_version=None, most=100)
    balance = await balances.find(postgres, ADA)
    assert balance is not None
    assert balance.amount == sum(change.amount for change in changes) == changes[0].balance_after == 136
    assert [change.version for change in changes] == list(range(16, 0, -1))
    for newer, older in pairwise(changes):
        assert newer.balance_after == older.balance_after + newer.amount


async def test_the_same_charge_at_once_counts_once(postgres: asyncpg.Pool) -> None:
    charges = await asyncio.gather(*(charge(postgres, "1", 5) for _ in range(20)))
    assert all(isinstance(one, Charge) and one.balance_after == 5 for one in charges)
    assert sum(isinstance(one, Charge) and not one.repeated for one in charges) == 1


async def test_an_id_is_used_for_one_charge(postgres: asyncpg.Pool) -> None:
    await charge(postgres, "1", 5)
    assert await charge(postgres, "1", 6) == IdempotencyKeyReused()
    assert await charge(postgres, "1", 5, BEN) == IdempotencyKeyReused()


async def test_a_balance_ends_at_its_limit(postgres: asyncpg.Pool) -> None:
    assert isinstance(await charge(postgres, "1", AMOUNT_MAX), Charge)
    assert await charge(postgres, "2", 1) == LimitReached(limit=AMOUNT_MAX, have=AMOUNT_MAX)
    assert len(await balances.history(postgres, ADA, below_version=None, most=10)) == 1


async def test_nobody_has_no_balance(postgres: asyncpg.Pool) -> None:
    assert await charge(postgres, "1", 5, "c" * 32) is None
    assert await balances.find(postgres, "c" * 32) is None


async def test_opening_balances_are_given_once(postgres: asyncpg.Pool) -> None:
    for _ in range(2):
        await balances.charge_many(postgres, charges={ADA: "1" * 32, BEN: "2" * 32}, amount=7, reason="opening")
    for user_id in (ADA, BEN):
        balance = await balances.find(postgres, user_id)
        assert balance is not None
        assert (balance.amount, balance.version) == (7, 1)
