"""The queue: jobs by the clock, in a form that executes nothing, on a store that may be lost."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import in_progress_key_prefix

from engine import ids, shifts
from engine.stores import embedded
from engine.stores.connections import Stores
from tests.engine.sold_goods import open_stand
from tests.shop import open_shop
from tests.workers.working import until
from workers import queue


async def pool(stores: Stores) -> ArqRedis:
    return await create_pool(
        RedisSettings.from_dsn(str(stores.settings.queue_redis_url)),
        job_serializer=msgspec.msgpack.encode,
        job_deserializer=msgspec.msgpack.decode,
        default_queue_name=queue.QUEUE_NAME,
    )


async def test_rows_of_the_line_are_forgotten_after_thirty_days(stores: Stores) -> None:
    shop = await open_shop(stores)
    await stores.postgres.executemany(
        "INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at) "
        "VALUES ($1, $2, 1, 'ann', 'LEFT', now() - make_interval(days => $3))",
        [(shop.sale_id, 1, 31), (shop.sale_id, 2, 29)],
    )
    await shifts.report(stores.postgres, "alive", 0)
    await stores.postgres.execute(
        "INSERT INTO workers (worker, sales, updated_at) VALUES ('dead', 1, now() - interval '2 days')"
    )
    redis = await pool(stores)
    await redis.enqueue_job("cron:forget")
    running = asyncio.create_task(queue.run(stores))

    async def forgotten() -> bool:
        left = await stores.postgres.fetch("SELECT queue_no FROM queue_tokens")
        workers = await stores.postgres.fetch("SELECT worker FROM workers")
        return ([row["queue_no"] for row in left], [row["worker"] for row in workers]) == ([2], ["alive"])

    await until(forgotten)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await redis.aclose(close_connection_pool=True)


async def test_intervals_are_made_by_the_clock(stores: Stores) -> None:
    stand = await open_stand(stores.postgres)
    tee = await stand.product()
    await stand.sell({tee.variants[0].variant_id: 2})
    redis = await pool(stores)
    await redis.enqueue_job("cron:aggregate")
    running = asyncio.create_task(queue.run(stores))
    await until(stand.intervals)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await redis.aclose(close_connection_pool=True)
    assert [each.sold_quantity for each in await stand.intervals()] == [2]


async def test_a_job_that_a_killed_worker_had_begun_holds_up_no_other(stores: Stores) -> None:
    shop = await open_shop(stores)
    await stores.postgres.execute(
        "INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at) "
        "VALUES ($1, 1, 1, 'ann', 'LEFT', now() - interval '31 days')",
        shop.sale_id,
    )
    redis = await pool(stores)
    begun = await redis.enqueue_job("cron:forget", _job_id="cron:forget:1")
    assert begun is not None
    await redis.set(in_progress_key_prefix + begun.job_id, b"1", px=310_000)
    await redis.enqueue_job("cron:forget", _job_id="cron:forget:2")
    running = asyncio.create_task(queue.run(stores))

    async def forgotten() -> bool:
        return not await stores.postgres.fetchval("SELECT count(*) FROM queue_tokens")

    await until(forgotten)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await redis.aclose(close_connection_pool=True)


async def test_a_job_that_fails_leaves_text_behind_and_nothing_to_execute(stores: Stores) -> None:
    redis = await pool(stores)
    await redis.enqueue_job("no_such_job", ids.random_id())
    running = asyncio.create_task(queue.run(stores))

    async def taken() -> bool:
        return not await redis.zcard(queue.QUEUE_NAME)

    await until(taken)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await redis.aclose(close_connection_pool=True)


async def test_a_queue_store_that_goes_away_ends_nothing_and_is_used_when_it_is_back(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AGAIN_AFTER_S", 0.05)
    shop = await open_shop(stores)

    async def forgotten() -> bool:
        return not await stores.postgres.fetchval("SELECT count(*) FROM queue_tokens")

    async def forget(apart: Stores) -> None:
        await stores.postgres.execute(
            "INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at) "
            "VALUES ($1, 1, 1, 'ann', 'LEFT', now() - interval '31 days')",
            shop.sale_id,
        )
        redis = await pool(apart)
        await redis.enqueue_job("cron:forget")
        await until(forgotten)
        await redis.aclose(close_connection_pool=True)

    with embedded.valkey(tmp_path) as server:
        apart = replace(stores, settings=msgspec.structs.replace(stores.settings, queue_redis_url=server.url))
        running = asyncio.create_task(queue.run(apart))
        await forget(apart)
        os.kill(server.pid, signal.SIGKILL)
    with embedded.valkey(tmp_path) as again:
        assert (again.url, again.pid == server.pid) == (server.url, False)
        await forget(apart)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
