"""What all processes share is made once; the currency never changes, nor the time zone once a day is counted."""

import asyncio
import struct
import zoneinfo
from pathlib import Path

import asyncpg
import pytest

from engine import accounts, installation, statistics
from engine.installation import CurrencyChanged, TimeZoneRefused
from engine.settings import Settings
from tests.engine.sold_goods import open_stand, utc


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


async def test_the_time_zone_may_change_until_something_is_counted(postgres: asyncpg.Pool) -> None:
    stand = await open_stand(postgres)
    for time_zone in ("Asia/Seoul", "Europe/Berlin"):
        await installation.prepare(postgres, Settings(time_zone=time_zone))
    tee = await stand.product()
    await stand.sell({tee.variants[0].variant_id: 1}, utc("2026-03-28T23:00"))
    assert [day for _, day in await stand.days()] == ["2026-03-29"]
    await installation.prepare(postgres, Settings(time_zone="Europe/Berlin"))
    with pytest.raises(TimeZoneRefused, match="LASTSEAT_TIME_ZONE=Europe/Berlin"):
        await installation.prepare(postgres, Settings(time_zone="Asia/Seoul"))
    assert await statistics.check(postgres) == []


async def test_a_time_zone_that_postgres_does_not_know_is_refused(postgres: asyncpg.Pool, tmp_path: Path) -> None:
    # Python takes every file of the machine's own list, here one that says UTC; Postgres has a list of its own.
    (tmp_path / "Mars").write_bytes(b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0")
    zoneinfo.reset_tzpath([str(tmp_path)])
    try:
        settings = Settings(time_zone="Mars")
    finally:
        zoneinfo.reset_tzpath()
    with pytest.raises(TimeZoneRefused, match="LASTSEAT_TIME_ZONE: Postgres knows no time zone 'Mars'"):
        await installation.prepare(postgres, settings)
    assert await installation.prepare(postgres, Settings()) is not None
