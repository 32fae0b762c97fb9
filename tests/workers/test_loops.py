"""Loops: a pass that fails is tried again, a pass that was begun is finished."""

import asyncio

import pytest

from engine.stores.connections import StoreUnavailable
from engine.stores.outbox import Divergence
from workers import loops
from workers.loops import Bell


async def test_a_failed_pass_does_not_end_the_loop() -> None:
    passes = 0
    done = asyncio.Event()

    async def work() -> None:
        nonlocal passes
        passes += 1
        if passes < 3:
            raise StoreUnavailable("away")
        done.set()

    loop = asyncio.create_task(loops.every(0.001, work, name="test"))
    async with asyncio.timeout(10):
        await done.wait()
    loop.cancel()
    assert passes >= 3


async def test_a_verdict_ends_the_loop() -> None:
    async def work() -> None:
        raise Divergence("another history")

    with pytest.raises(Divergence):
        await loops.every(0.001, work, name="test")


async def test_more_work_is_done_without_a_pause() -> None:
    left = 5
    done = asyncio.Event()

    async def work() -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()
        return left > 0

    loop = asyncio.create_task(loops.every(3600, work, name="test"))
    async with asyncio.timeout(10):
        await done.wait()
    loop.cancel()


async def test_what_was_begun_is_finished_when_the_loop_is_stopped() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    ended = False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await may_end.wait()
        ended = True

    loop = asyncio.create_task(loops.every(0.001, work, name="test"))
    await begun.wait()
    loop.cancel()
    await asyncio.sleep(0)
    assert not loop.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert ended


async def test_pauses_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> int:
        raise StoreUnavailable("away")

    async def well() -> int:
        return 7

    paused = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    attempts = loops.Attempts("test", pause_s=0.1)
    monkeypatch.setattr(asyncio, "sleep", pause)
    for _ in range(9):
        assert await attempts.make(work()) is None
    assert paused == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert await attempts.make(well()) == 7
    assert await attempts.make(work()) is None
    assert paused[9:] == [0.2]


async def test_a_lost_cancellation_stops_the_loop_all_the_same() -> None:
    passes = 0

    async def work() -> None:
        nonlocal passes
        passes += 1

    async def lose_the_cancellation() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await loops.every(0.001, work, name="test")

    task = asyncio.create_task(lose_the_cancellation())
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(10):
        await task
    assert passes == 0


async def test_a_loop_rests_until_it_is_rung_and_a_ring_while_it_works_counts() -> None:
    bell = Bell(rest_max_s=3600)
    passes: asyncio.Queue[int] = asyncio.Queue()
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        if count == 2:
            bell.ring()  # something came up meanwhile
        passes.put_nowait(count)

    loop = asyncio.create_task(loops.every(0.0, work, name="test", rest=bell.rest))
    async with asyncio.timeout(10):
        assert await passes.get() == 1
        for _ in range(20):
            await asyncio.sleep(0)
        assert passes.empty()
        bell.ring()
        assert [await passes.get(), await passes.get()] == [2, 3]
    loop.cancel()


async def test_a_loop_that_nobody_rings_for_looks_all_the_same() -> None:
    bell = Bell(rest_max_s=0.001)
    assert not await bell.rest()
    bell.ring()
    assert await bell.rest()
    assert not await bell.rest()
