"""arq's part: what is due by the clock and belongs to no sale, once for the whole installation.

Its jobs live on a store of their own, and losing that store loses nothing. Each tick of the clock is a job with an
id of its own, so the in-progress key of a worker that was killed holds up no later tick; what must go on within
seconds (the drains, the sweeps, admission) is not here at all but in `workers.sales`.
"""

import asyncio
from typing import Any

import msgspec
from arq import cron
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker
from redis.exceptions import RedisError

from engine import shifts
from engine.stores.connections import Stores
from workers import loops, statistics

QUEUE_NAME = "lastseat:queue"
AGAIN_AFTER_S = 5.0

# What a job failed with is an exception: its text is what is kept of it. Never pickle, which executes what it reads.
_encoder = msgspec.msgpack.Encoder(enc_hook=repr)


async def forget(ctx: dict[str, Any]) -> int:
    """Remove rows that are past their time."""
    stores: Stores = ctx["stores"]
    return await shifts.forget(stores.postgres)


async def run(stores: Stores) -> None:
    """Run arq's worker until cancelled, again and again while its store is away."""
    while not loops.stopping():
        try:
            await _run_worker(stores)
        except (RedisError, OSError) as fault:
            loops.report("queue", fault)
        await asyncio.sleep(AGAIN_AFTER_S)


async def _run_worker(stores: Stores) -> None:
    redis = await create_pool(
        RedisSettings.from_dsn(str(stores.settings.queue_redis_url)),
        default_queue_name=QUEUE_NAME,
        job_serializer=_encoder.encode,
        job_deserializer=msgspec.msgpack.decode,
    )
    worker = Worker(
        cron_jobs=[
            cron(forget, minute=17, timeout=300, keep_result=0),
            cron(statistics.aggregate, second=0, timeout=60, keep_result=0),
        ],
        queue_name=QUEUE_NAME,
        redis_pool=redis,
        handle_signals=False,  # the process has one place that hears of a stop
        ctx={"stores": stores},
        keep_result=0,
        job_serializer=_encoder.encode,
        job_deserializer=msgspec.msgpack.decode,
    )
    try:
        await worker.async_run()
    finally:
        # Not its own `close`, which calls what the client library is about to drop. A cancelled job is run again.
        for job in worker.tasks.values():
            job.cancel()
        await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
        await redis.aclose(close_connection_pool=True)
