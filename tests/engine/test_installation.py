"""What all processes share is made once, and the currency never changes."""

import asyncio

import asyncpg
import pytest

from engine import accounts, installation
from engine.installation import CurrencyChanged
from engine.settings import Settings


async def test_the_first_start_makes_one_secret_and_one_key(postgres: asyncpg.Pool) -> None:
    keys = await asyncio.gather(*(installation.prepare(postgres, Settings()) for _ in range(4)))
    made = [key for key in keys if key]
    assert len(made) == 1
    found = await accounts.find_api_key(postgres, made[0])
    assert found is not None
    assert found.scopes == set(accounts.SCOPES)
    shared = await installation.read(postgres)
    assert await installation.prepare(postgres, Settings()) is None
    assert await installation.read(postgres) == shared
    assert (len(shared.secret), shared.currency) == (43, "KRW")


async def test_a_key_and_a_secret_that_are_set_are_taken(postgres: asyncpg.Pool) -> None:
    settings = Settings(admin_key="chosen by the operator", secret="s" * 32)
    for _ in range(2):
        assert await installation.prepare(postgres, settings) is None
    assert await accounts.find_api_key(postgres, "chosen by the operator") is not None
    assert (await installation.read(postgres)).secret == "s" * 32
    assert await postgres.fetchval("SELECT count(*) FROM api_keys") == 1


async def test_another_currency_is_refused(postgres: asyncpg.Pool) -> None:
    await installation.prepare(postgres, Settings(currency="EUR"))
    with pytest.raises(CurrencyChanged, match="LASTSEAT_CURRENCY=EUR"):
        await installation.prepare(postgres, Settings())
