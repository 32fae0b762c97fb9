"""The outermost loops of a worker: work that is done again and again, one kind apart from the other.

A fault ends one pass, never the loop: it is logged, counted, and tried again after a growing pause. What a pass began
is finished also when the loop is stopped, so that a stop never cuts a batch in two.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import asyncpg
from redis.exceptions import RedisError

from engine.stores.connections import StoreUnavailable
from engine.stores.outbox import Divergence, OwnershipLost
from workers import metrics

logger = logging.getLogger(__name__)


class Reopen(Exception):
    """A sale's row says that another copy counts, or that none does: what serves it begins anew."""


# What ends the service of a sale rather than one pass of one loop, the most final first.
VERDICTS = (OwnershipLost, Divergence, Reopen)
# A store that cannot be reached, or does not answer.
AWAY = (StoreUnavailable, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

PAUSE_MAX_S = 10.0
# How long a loop rests for which nobody rings.
REST_MAX_S = 60.0
# How long a pass may go on after its loop was stopped.
FINISH_WITHIN_S = 10.0

R = TypeVar("R")


class Attempts:
    """Passes of one kind of work: what fails is logged, counted, and followed by a growing pause."""

    def __init__(self, name: str, pause_s: float = 0.1) -> None:
        self._name = name
        self._pause_s = pause_s
        self._failures = 0

    async def make(self, work: Coroutine[Any, Any, R]) -> R | None:
        """Await one pass; None, after the pause, when it failed. Raises what `VERDICTS` names."""
        try:
            result = await work
        except VERDICTS:
            raise
        except Exception as fault:  # noqa: BLE001 - the outermost loop: one broken sale must not stop the others
            self._failures += 1
            report(self._name, fault)
            await asyncio.sleep(min(PAUSE_MAX_S, self._pause_s * 2 ** min(self._failures, 10)))
            return None
        self._failures = 0
        return result


def stopping() -> bool:
    """Whether somebody has cancelled this task, also when the cancellation itself was lost on its way.

    Before Python 3.12 `asyncio.wait_for` drops a cancellation that arrives together with its result, and the Redis
    client sends with it. A loop asks this between passes.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Bell:
    """Lets a loop rest until somebody rings, because most of the time most sales have nothing to do.

    Args:
        rest_max_s: what nobody rings for is looked at after so long all the same.
    """

    def __init__(self, rest_max_s: float = REST_MAX_S) -> None:
        self.rest_max_s = rest_max_s
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """There is something to do; also for a loop that is at work, which then does not rest."""
        self._rung.set()

    async def rest(self, seconds: float = 0.0) -> bool:
        """Pause for so long, and then until it is rung; returns whether it was."""
        if seconds:
            await asyncio.sleep(seconds)
        if not self._rung.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.rest_max_s):
                    await self._rung.wait()
        was_rung = self._rung.is_set()
        self._rung.clear()
        return was_rung


async def every(
    seconds: float,
    work: Callable[[], Coroutine[Any, Any, object]],
    *,
    name: str,
    offset: float = 0.0,
    rest: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Do `work` for ever with this pause after each pass, or none while it answers True: there is more.

    `rest` makes the pause: a bell's lasts until it is rung. The first pass waits for `offset` of a pause, so that the
    loops of many sales do not all run in one moment. Raises what `VERDICTS` names.
    """
    await asyncio.sleep(seconds * offset)
    attempts = Attempts(name)
    while not stopping():
        more = await attempts.make(finish(work()))
        await (asyncio.sleep(0.0) if more is True else rest(seconds))


async def finish(work: Coroutine[Any, Any, R]) -> R:
    """Await `work`; when this is cancelled, let it come to its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=FINISH_WITHIN_S)
        task.cancel()
        # Nobody is left to hear of a fault in it: it was the last pass.
        await asyncio.gather(task, return_exceptions=True)
        raise


def report(name: str, fault: Exception) -> None:
    """Log and count a pass that failed; a store that is away needs no stack."""
    metrics.FAULTS.labels(name).inc()
    logger.warning("%s: %s: %s", name, type(fault).__name__, fault, exc_info=None if isinstance(fault, AWAY) else fault)
