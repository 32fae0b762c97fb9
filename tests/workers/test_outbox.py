"""The doorbell: streams wait at the server, and those that find no place there do not wear it out."""

import asyncio

import pytest

from workers.outbox import Doorbell


async def test_streams_that_find_no_place_are_looked_at_so_many_times_a_second_in_all(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outbox.WAITING_MAX", 1)
    monkeypatch.setattr("workers.outbox.LOOKS_A_SECOND", 100)
    doorbell = Doorbell(redis_url)
    looks = 0

    async def look() -> None:
        nonlocal looks
        while not await doorbell.wait("quiet", "0-0"):
            looks += 1

    tasks = [asyncio.create_task(doorbell.wait("first", "0-0")), *(asyncio.create_task(look()) for _ in range(100))]
    await asyncio.wait(tasks, timeout=1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await doorbell.close()
    assert 0 < looks <= 200
