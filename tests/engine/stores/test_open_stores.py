"""Both stores opened by their settings: embedded where nothing is named, refused where something unsafe is."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.settings import Settings
from engine.stores import embedded
from engine.stores.connections import StoreUnavailable, UnsafeStore, open_stores


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data folder that is removed with everything in it."""
    yield tmp_path
    embedded.erase(tmp_path)


async def test_without_addresses_both_stores_are_embedded_and_end_with_us(data_dir: Path) -> None:
    settings = Settings(data_dir=str(data_dir))
    async with open_stores(settings) as stores:
        await stores.redis.set("seat", "sold")
        assert stores.gate.redis is stores.redis
        assert await stores.listener.get("seat") == b"sold"
        assert await stores.postgres.fetchval("SELECT 1") == 1
        known = stores.settings
    assert known.redis_url is not None
    with pytest.raises(StoreUnavailable):
        async with open_stores(known):
            pass


async def test_addresses_that_are_named_are_used(
    redis_url_any: str, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(
        redis_url=redis_url_any,
        queue_redis_url="redis://127.0.0.1:1",
        postgres_url=postgres_url,
        redis_connections_max=3,
        postgres_connections_max=2,
    )
    with caplog.at_level(logging.WARNING):
        async with open_stores(settings) as stores:
            assert stores.settings == settings
            assert await stores.redis.set("key", "value")
            assert stores.postgres.get_max_size() == 2
    # The tests' Postgres is not durable, which is said but refuses nothing.
    assert "fsync = on" in caplog.text


async def test_an_unsafe_gate_is_refused_with_the_line_to_change(data_dir: Path, postgres_url: str) -> None:
    with embedded.valkey(data_dir, {"maxmemory-policy": "allkeys-lru", "appendonly": "no"}) as valkey:
        settings = Settings(redis_url=valkey.url, postgres_url=postgres_url)
        with pytest.raises(UnsafeStore) as refused:
            async with open_stores(settings):
                pass
    assert "maxmemory-policy noeviction" in str(refused.value)
    assert "appendonly yes" in str(refused.value)


async def test_a_store_that_does_not_answer_is_unavailable(redis_url: str, postgres_url: str) -> None:
    nobody = "redis://127.0.0.1:1"
    for settings in (
        Settings(redis_url=nobody, postgres_url=postgres_url),
        Settings(redis_url="redis+cluster://127.0.0.1:1", queue_redis_url=nobody, postgres_url=postgres_url),
        Settings(redis_url=redis_url, postgres_url="postgresql://127.0.0.1:1/lastseat"),
    ):
        with pytest.raises(StoreUnavailable):
            async with open_stores(settings):
                pass
