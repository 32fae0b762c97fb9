"""Requests of one moment become one batch, and nobody waits for a timer."""

import asyncio
from collections.abc import Sequence

import pytest

from engine.stores.coalesce import Coalescer, Overdue


class Recorder:
    """Runs batches by doubling numbers, once it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()
        self.let.set()

    async def run(self, batch: list[int]) -> Sequence[int | Exception]:
        self.batches.append(batch)
        self.begun.set()
        await self.let.wait()
        return [ValueError(f"no {number}") if number < 0 else number * 2 for number in batch]


async def test_a_lone_request_goes_at_once() -> None:
    recorder = Recorder()
    assert await Coalescer(recorder.run).submit(1) == 2
    assert recorder.batches == [[1]]


async def test_requests_gather_while_batches_are_under_way() -> None:
    recorder = Recorder()
    recorder.let.clear()
    coalescer = Coalescer(recorder.run, most=3, in_flight_max=1)
    first = coalescer.submit(1)
    await recorder.begun.wait()
    rest = [coalescer.submit(number) for number in range(2, 7)]
    assert (coalescer.queued, coalescer.in_flight) == (5, 1)
    recorder.let.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
    assert recorder.batches == [[1], [2, 3, 4], [5, 6]]


async def test_a_long_queue_is_shared_among_the_free_turns() -> None:
    recorder = Recorder()
    coalescer = Coalescer(recorder.run, most=100, in_flight_max=2, share_min=3)
    await asyncio.gather(*[coalescer.submit(number) for number in range(10)])
    await asyncio.gather(*[coalescer.submit(number) for number in range(3)])
    assert recorder.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [0, 1, 2]]


async def test_weights_cut_a_batch_and_a_heavy_request_goes_alone() -> None:
    recorder = Recorder()
    coalescer = Coalescer(recorder.run, weight_max=10, in_flight_max=1)
    await asyncio.gather(*[coalescer.submit(n, weight) for n, weight in [(1, 6), (2, 6), (3, 50), (4, 1)]])
    assert recorder.batches == [[1], [2], [3], [4]]


async def test_one_requests_exception_is_its_own() -> None:
    coalescer = Coalescer(Recorder().run)
    good, bad, last = await asyncio.gather(
        coalescer.submit(1), coalescer.submit(-2), coalescer.submit(3), return_exceptions=True
    )
    assert (good, last) == (2, 6)
    assert isinstance(bad, ValueError)


async def test_a_fault_of_the_batch_reaches_every_requester() -> None:
    async def run(_batch: list[int]) -> Sequence[int]:
        raise OSError("the store is away")

    coalescer = Coalescer(run)
    answers = await asyncio.gather(coalescer.submit(1), coalescer.submit(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OSError, OSError]


async def test_an_answer_too_few_is_given_to_nobody() -> None:
    async def run(batch: list[int]) -> Sequence[int]:
        return batch[1:]

    coalescer = Coalescer(run)
    answers = await asyncio.gather(*[coalescer.submit(number) for number in range(3)], return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError] * 3


def test_the_end_of_the_loop_ends_every_request_and_begins_no_batch() -> None:
    recorder = Recorder()
    recorder.let.clear()
    coalescer = Coalescer(recorder.run, most=1, in_flight_max=1)

    async def leave() -> list[asyncio.Future[int]]:
        answers = [coalescer.submit(number) for number in range(3)]
        await recorder.begun.wait()
        return answers

    answers = asyncio.run(leave())
    assert all(answer.cancelled() for answer in answers)
    assert (recorder.batches, coalescer.queued, coalescer.in_flight) == ([[0]], 0, 0)


async def test_what_nobody_waits_for_is_not_sent() -> None:
    recorder = Recorder()
    coalescer = Coalescer(recorder.run)
    given_up, kept = coalescer.submit(1), coalescer.submit(2)
    given_up.cancel()
    assert await kept == 4
    assert recorder.batches == [[2]]


async def test_a_request_that_waits_too_long_is_told_so_and_never_sent() -> None:
    recorder = Recorder()
    recorder.let.clear()
    coalescer = Coalescer(recorder.run, in_flight_max=1, wait_s=0.01)
    first = coalescer.submit(1)
    await recorder.begun.wait()
    with pytest.raises(Overdue):
        await coalescer.submit(2)
    recorder.let.set()
    assert await first == 2
    assert recorder.batches == [[1]]


async def test_it_says_when_it_is_idle() -> None:
    idle = asyncio.Event()
    coalescer = Coalescer(Recorder().run, idle=idle.set)
    await coalescer.submit(1)
    await asyncio.wait_for(idle.wait(), 1)
