"""A store that may not be trusted is refused with the line to change; one that could be better is named."""

from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.stores import embedded, safety
from engine.stores.connections import RedisClient, open_postgres, open_redis
from engine.stores.safety import Finding


async def inspect(data_dir: Path, options: dict[str, str]) -> list[Finding]:
    with embedded.valkey(data_dir, options) as server:
        client = open_redis(server.url)
        findings = await safety.inspect_redis(client)
        await client.aclose()
    return findings


async def test_the_embedded_stores_have_nothing_to_change(redis_any: RedisClient) -> None:
    assert await safety.inspect_redis(redis_any) == []


async def test_a_store_that_evicts_is_refused(tmp_path: Path) -> None:
    [finding] = await inspect(tmp_path, {"maxmemory-policy": "allkeys-lru"})
    assert finding.refuse
    assert "allkeys-lru" in finding.what
    assert finding.change == "maxmemory-policy noeviction"


async def test_a_store_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    [finding] = await inspect(tmp_path, {"appendonly": "no", "save": ""})
    assert finding.refuse
    assert finding.change == "appendonly yes"


async def test_a_store_with_snapshots_only_is_named(tmp_path: Path) -> None:
    [finding] = await inspect(tmp_path, {"appendonly": "no", "save": "3600 1"})
    assert not finding.refuse
    assert finding.change == "appendonly yes"


async def test_each_fault_of_a_cluster_is_named_once(cluster_server: str) -> None:
    client = open_redis(cluster_server)
    await client.config_set("maxmemory-policy", "volatile-ttl", target_nodes="primaries")
    try:
        findings = await safety.inspect_redis(client)
    finally:
        await client.config_set("maxmemory-policy", "noeviction", target_nodes="primaries")
        await client.aclose()
    assert [finding.refuse for finding in findings] == [True]


async def test_a_configuration_that_may_not_be_read_is_named(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("shop", enabled=True, passwords="+secret", keys="*", commands=["+@all", "-config"])
    client = open_redis(redis_url.replace("://", "://shop:secret@"))
    [finding] = await safety.inspect_redis(client)
    assert not finding.refuse
    assert "CONFIG GET" in finding.change
    await client.aclose()
    await redis.acl_deluser("shop")


@pytest.mark.parametrize(
    ("server", "version", "is_old"),
    [
        ("valkey", "9.1.2", False),
        ("valkey", "9.1.1", True),
        ("valkey", "9.0.5", False),
        ("valkey", "8.1.6", True),
        ("valkey", "8.0.9", True),
        ("valkey", "9.2.0", False),
        ("redis", "8.2.6", False),
        ("redis", "8.0.9", True),
        ("redis", "7.4.9", False),
        ("redis", "7.0.15", True),
        ("redis", "8.4.0", False),
    ],
)
def test_an_old_server_is_named(server: str, version: str, *, is_old: bool) -> None:
    facts = {"redis_version": "7.2.4" if server == "valkey" else version, "valkey_version": version}
    finding = safety._judge_version(facts | ({"server_name": "valkey"} if server == "valkey" else {}))
    assert (finding is not None) == is_old
    assert finding is None or not finding.refuse


async def test_a_database_that_answers_before_the_disk_is_refused(postgres_url: str) -> None:
    plain = await asyncpg.connect(postgres_url)
    name = await plain.fetchval("SELECT current_database()")
    await plain.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    await plain.close()
    pool = await open_postgres(postgres_url)
    findings = await safety.inspect_postgres(pool)
    await pool.close()
    assert [(finding.refuse, finding.change) for finding in findings] == [
        (True, "synchronous_commit = on"),
        (False, "fsync = on"),  # as the tests run it
        (False, "full_page_writes = on"),
    ]


async def test_the_embedded_database_has_nothing_to_change(tmp_path: Path) -> None:
    try:
        with embedded.postgres(tmp_path) as server:
            pool = await open_postgres(server.url)
            assert await safety.inspect_postgres(pool) == []
            await pool.close()
    finally:
        embedded.erase(tmp_path)
