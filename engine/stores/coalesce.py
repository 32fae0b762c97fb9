"""Requests of one moment become one call.

An uncontended request never waits for a timer: its batch leaves on the next tick of the loop. While the allowed number
of batches is under way, others gather, so batches grow exactly when the store is busy. Order of arrival is kept.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from engine.stores.connections import StoreUnavailable

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Overdue(StoreUnavailable):
    """A request waited longer for its turn than it may; it was never sent."""


class _Waiting(NamedTuple, Generic[Request, Answer]):
    request: Request
    weight: int
    overdue_at: float
    answer: "asyncio.Future[Answer]"


class Coalescer(Generic[Request, Answer]):
    """Collects requests and runs them in batches.

    Args:
        run: runs one batch and returns one answer a request, in order; an answer that is an exception is raised to its
            own requester alone, an exception that is raised goes to every requester of the batch.
        most: requests in one batch, at most.
        weight_max: the sum of weights in one batch, at most; one request alone may exceed it.
        in_flight_max: batches under way at once.
        share_min: a queue longer than this is shared among the free turns, so that one batch is packed or decoded here
            while the store runs the other; None gives the first turn all it can take.
        wait_s: how long a request may wait for its turn before it gets `Overdue`; None for ever.
        pace_s: at least so long between the starts of two batches; one that comes after a pause leaves at once. For
            work whose batch costs hardly more than a request.
        idle: called when nothing is queued and nothing under way.
    """

    def __init__(
        self,
        run: Callable[[list[Request]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int = 128,
        weight_max: int | None = None,
        in_flight_max: int = 2,
        share_min: int | None = None,
        wait_s: float | None = None,
        pace_s: float = 0.0,
        idle: Callable[[], object] | None = None,
    ) -> None:
        self._run = run
        self._most = most
        self._weight_max = weight_max
        self._in_flight_max = in_flight_max
        self._share_min = most if share_min is None else share_min
        self._wait_s = wait_s
        self._idle = idle
        self._queue: deque[_Waiting[Request, Answer]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._pace_s = pace_s
        self._next_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches under way."""
        return len(self._under_way)

    def submit(self, request: Request, weight: int = 1) -> "asyncio.Future[Answer]":
        """Queue a request and return the future of its answer.

        Cancelling the future gives up the answer and disturbs nobody: what is under way goes on.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        overdue_at = loop.time() + self._wait_s if self._wait_s is not None else 0.0
        self._queue.append(_Waiting(request, weight, overdue_at, answer))
        if not self._scheduled and len(self._under_way) < self._in_flight_max:
            self._schedule()
        elif self._alarm is None and self._wait_s is not None:
            self._alarm = loop.call_later(self._wait_s, self._give_up_overdue)
        return answer

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._scheduled = True
        if self._pace_s and loop.time() < self._next_at:
            loop.call_at(self._next_at, self._start)
        else:
            loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._pace_s and self._queue:
            self._next_at = asyncio.get_running_loop().time() + self._pace_s
        while self._queue and (turns := self._in_flight_max - len(self._under_way)) > 0:
            share = -(-len(self._queue) // turns)
            batch = self._take(min(self._most, max(self._share_min, share)))
            if batch:
                task = asyncio.get_running_loop().create_task(self._carry_out(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)
        if not self._queue:
            self._silence()
            if not self._under_way and self._idle is not None:
                self._idle()

    def _take(self, most: int) -> list[_Waiting[Request, Answer]]:
        batch: list[_Waiting[Request, Answer]] = []
        weight = 0
        while self._queue and len(batch) < most:
            waiting = self._queue[0]
            if not waiting.answer.done():
                weight += waiting.weight
                if batch and self._weight_max is not None and weight > self._weight_max:
                    break
                batch.append(waiting)
            # else nobody waits for this answer any more, and it was never sent: it is dropped.
            self._queue.popleft()
        return batch

    async def _carry_out(self, batch: list[_Waiting[Request, Answer]]) -> None:
        try:
            answers = await self._run([waiting.request for waiting in batch])
            # Counted before the first is given out: one too few, and each would go to somebody else's requester.
            answered = list(zip(batch, answers, strict=True))
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        except Exception as fault:  # noqa: BLE001 - not swallowed: every requester gets it
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(fault)
            return
        for waiting, answer in answered:
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if task.cancelled():  # only the end of the loop cancels a batch: nothing more is begun
            while self._queue:
                self._queue.popleft().answer.cancel()
        if self._queue and self._pace_s:
            if not self._scheduled:
                self._schedule()
            return
        self._start()

    def _give_up_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        self._alarm = None
        while self._queue and self._queue[0].overdue_at <= loop.time():
            answer = self._queue.popleft().answer
            if not answer.done():
                answer.set_exception(Overdue("the request waited too long for its turn and was not sent"))
        if self._queue:
            self._alarm = loop.call_at(self._queue[0].overdue_at, self._give_up_overdue)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
