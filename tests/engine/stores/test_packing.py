"""A command that is cancelled is cancelled, at whatever moment that comes."""

import asyncio

import pytest
import uvloop

from engine.stores import embedded
from engine.stores.connections import open_redis


async def _find_lost(url: str) -> list[int]:
    """After how many ticks of the loop a task that asks for ever survives its cancellation."""
    lost = []
    for ticks in range(12):
        redis = open_redis(url)
        await redis.ping()

        async def ask_for_ever() -> None:
            while True:
                await redis.ping()  # noqa: B023 - it ends within this pass

        task = asyncio.create_task(ask_for_ever())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0.3)
        if not done:
            lost.append(ticks)
            task.cancel()
            await asyncio.wait([task], timeout=1)
        await redis.aclose()
    return lost


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_no_cancellation_is_lost_in_a_write(run: object, valkey_server: embedded.Server) -> None:
    assert callable(run)
    assert run(_find_lost(valkey_server.url)) == []
