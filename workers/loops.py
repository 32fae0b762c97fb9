"""The outermost loops of a worker: work that is done again and again, one kind apart from the other.

A fault ends one pass, never the loop: it is logged, counted, and tried again after a growing pause. What a pass began
is finished also when the loop is stopped, so that a stop never cuts a batch in two.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from redis.exceptions import RedisError

from engine.stores.connections import StoreUnavailable
from engine.stores.outbox import Divergence, OwnershipLost
from workers import metrics

logger = logging.getLogger(__name__)

# What ends the service of a sale rather than one pass of one loop.
VERDICTS = (Divergence, OwnershipLost)
PAUSE_MAX_S = 10.0
# How long a pass may go on after its loop was stopped.
FINISH_WITHIN_S = 10.0

R = TypeVar("R")


async def every(seconds: float, work: Callable[[], Coroutine[Any, Any, object]], *, name: str) -> None:
    """Do `work` for ever with this pause after each pass, or none while it answers True: there is more.

    Raises what `VERDICTS` names.
    """
    failures = 0
    while True:
        try:
            more = await finish(work())
            failures = 0
            pause = 0.0 if more is True else seconds
        except VERDICTS:
            raise
        except Exception as fault:
            failures += 1
            report(name, fault)
            pause = backoff(seconds, failures)
        await asyncio.sleep(pause)


async def finish(work: Coroutine[Any, Any, R]) -> R:
    """Await `work`; when this is cancelled, let it come to its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=FINISH_WITHIN_S)
        task.cancel()
        # Nobody is left to hear of a fault in it; it was this pass's last.
        await asyncio.gather(task, return_exceptions=True)
        raise


def backoff(seconds: float, failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return float(min(PAUSE_MAX_S, max(seconds, 0.05) * 2 ** min(failures, 10)))


def report(name: str, fault: Exception) -> None:
    """Log and count a pass that failed; a store that is away needs no stack."""
    metrics.FAULTS.labels(name).inc()
    away = isinstance(fault, StoreUnavailable | RedisError | OSError | TimeoutError)
    logger.warning("%s: %s: %s", name, type(fault).__name__, fault, exc_info=None if away else fault)
