"""Drains: a sale's streams are brought to Postgres as soon as there is anything, in batches when there is much."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from redis.exceptions import RedisError

from engine.stores.connections import RedisClient, open_redis
from engine.stores.outbox import BATCH_MAX, Reader, Stream
from workers import loops, metrics

logger = logging.getLogger(__name__)

# Reads that may wait at the server at once; each holds a connection. Streams beyond that are looked at in turn, so many
# a second in all: most of many are quiet, and each look is a read of its own.
WAITING_MAX = 512
LOOKS_A_SECOND = 1000
WAIT_MS = 4000
LOOK_AGAIN_S = 0.05
# A batch costs hardly more than an entry: what comes right behind one waits for company, and what ends a pause of the
# journal does, too, as nobody waits for that. Measured at 8,000 orders a second, until Postgres has all: with the
# journal's pace the worker and Postgres take 48 and not 57 µs of CPU for an order, and a tenth more are answered.
PACE_S: Mapping[Stream, float] = {"outbox": 0.015, "journal": 0.1}
JOURNAL_LINGER_S = 0.05


class Doorbell:
    """Waits for new entries of any stream, on connections of its own.

    One read can wait for streams of one slot only, so each stream has its own read.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis: RedisClient = open_redis(redis_url, connections_max=WAITING_MAX)
        self._places = asyncio.Semaphore(WAITING_MAX)
        self._standing = 0

    async def wait(self, stream_key: str, after: str) -> bool:
        """Return when the stream has an entry after this one, which is True, or after a while."""
        if self._places.locked():
            self._standing += 1
            try:
                await asyncio.sleep(max(LOOK_AGAIN_S, self._standing / LOOKS_A_SECOND))
            finally:
                self._standing -= 1
            return False
        async with self._places:
            try:
                return bool(await self._redis.xread({stream_key: after}, count=1, block=WAIT_MS))
            except (RedisError, OSError) as fault:
                # The drain itself finds out what is wrong, and says so.
                logger.debug("not waiting for %s: %s", stream_key, fault)
                await asyncio.sleep(LOOK_AGAIN_S)
                return False

    async def close(self) -> None:
        """Close its connections."""
        await self._redis.aclose()


async def drain(doorbell: Doorbell, reader: Reader, stream_key: str, heard: Callable[[], None]) -> None:
    """Apply a stream's entries for ever, in the order in which they were written; `heard` is told of new ones before.

    Raises Divergence when the stream is not what Postgres knows, OwnershipLost when somebody else reads it.
    """
    stream = reader.stream
    loop = asyncio.get_running_loop()

    async def apply_batch() -> int:
        began_at = loop.time()
        count = await reader.drain()
        if count:
            metrics.ENTRIES.labels(stream).inc(count)
            metrics.BATCH.labels(stream).observe(count)
            metrics.DRAIN_SECONDS.labels(stream).observe(loop.time() - began_at)
        return count

    attempts = loops.Attempts(f"drain_{stream}")
    while not loops.stopping():
        count = await attempts.make(loops.finish(apply_batch()))
        if count == 0 and reader.watermark is not None:
            if await doorbell.wait(stream_key, reader.watermark.entry_id):
                heard()
            if stream == "journal":
                await asyncio.sleep(JOURNAL_LINGER_S)
        elif count:
            heard()
            if count < BATCH_MAX[stream]:
                await asyncio.sleep(PACE_S[stream])
