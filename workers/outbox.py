"""Drains: a sale's streams are brought to Postgres as soon as there is anything, in batches when there is much."""

import asyncio
from collections.abc import Callable, Mapping

from redis.asyncio import Redis

from engine.stores.outbox import BATCH_MAX, WRITTEN, Reader, Stream
from workers import loops, metrics
from workers.loops import Bell

SUBSCRIBE_AGAIN_S = 0.25
# A batch costs hardly more than an entry: what comes right behind one waits for company, and what ends a pause of the
# journal does, too, as nobody waits for that. Measured at 8,000 orders a second, until Postgres has all: with the
# journal's pace the worker and Postgres take 48 and not 57 µs of CPU for an order, and a tenth more are answered.
PACE_S: Mapping[Stream, float] = {"outbox": 0.015, "journal": 0.1}
JOURNAL_LINGER_S = 0.05


class Doorbell:
    """Rings for streams that have something new: one subscription for all sales of a worker, however many rest."""

    def __init__(self, listener: Redis) -> None:
        self._listener = listener
        self.bells: dict[str, Bell] = {}  # by the keys of their streams

    async def listen(self) -> None:
        """Listen until cancelled. What is not heard meanwhile, the owner's look at its sale rings for."""
        while True:
            try:
                await self._hear()
            except Exception as fault:  # noqa: BLE001 - an outermost loop: whatever it meets must not stop the worker
                loops.report("listen", fault)
            await asyncio.sleep(SUBSCRIBE_AGAIN_S)

    async def _hear(self) -> None:
        async with self._listener.pubsub() as channel:
            await channel.subscribe(WRITTEN)
            for bell in self.bells.values():
                bell.ring()  # what was written meanwhile was not heard
            async for message in channel.listen():
                if message["type"] == "message":
                    written = self.bells.get(message["data"].decode(errors="replace"))
                    if written is not None:
                        written.ring()


async def drain(reader: Reader, bell: Bell, heard: Callable[[], None]) -> None:
    """Apply a stream's entries for ever, in the order in which they were written; `heard` is told of new ones before.

    Rests when there are none, until the bell is rung. Raises Divergence when the stream is not what Postgres knows,
    OwnershipLost when somebody else reads it.
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
            if await bell.rest():
                heard()
            if stream == "journal":
                await asyncio.sleep(JOURNAL_LINGER_S)
        elif count:
            heard()
            if count < BATCH_MAX[stream]:
                await asyncio.sleep(PACE_S[stream])
