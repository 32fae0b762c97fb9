"""Real stores for every test: one Valkey, cluster and Postgres a worker, an empty store and database a test.

The servers of a worker live in a folder of their own, which is removed when the run ends; what a killed run
left is removed by the next one.
"""

import fcntl
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis, RedisCluster

from engine.settings import Settings
from engine.stores import embedded, migrations
from engine.stores.connections import (
    RedisClient,
    Stores,
    open_listener,
    open_postgres,
    open_redis,
)
from engine.stores.scripts import Gate

# Durability is not what most tests are about; those that are start servers of their own.
POSTGRES_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
}

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """The folder of this worker's servers, passable for the user whom root runs Postgres as."""
    base = Path(tempfile.gettempdir()) / f"lastseat-tests-{os.geteuid()}"
    base.mkdir(mode=0o711, exist_ok=True)
    if base.stat().st_uid != os.geteuid():
        pytest.exit(f"{base} belongs to somebody else")
    with ExitStack() as stack:
        with (base / "sweeping").open("a") as sweeping:
            fcntl.flock(sweeping, fcntl.LOCK_EX)
            for left in base.glob("run-*"):
                _erase_unless_owned(left)
            folder = Path(tempfile.mkdtemp(dir=base, prefix="run-"))
            folder.chmod(0o711)
            owner = stack.enter_context((folder / "owner").open("a"))
            fcntl.flock(owner, fcntl.LOCK_EX)
        yield folder
        embedded.erase(folder)


def _erase_unless_owned(folder: Path) -> None:
    """Remove the servers of a run that was killed: the kernel gave its lock back."""
    with (folder / "owner").open("a") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        embedded.erase(folder)


@pytest.fixture(scope="session")
def valkey_server(servers_dir: Path) -> Iterator[embedded.Server]:
    """One Valkey, shared by the tests of this worker."""
    with embedded.valkey(servers_dir) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_server(servers_dir: Path) -> Iterator[str]:
    """The `redis+cluster://` address of three Valkeys, shared by the tests of this worker."""
    with embedded.cluster(servers_dir) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[embedded.Server]:
    """One Postgres, shared by the tests of this worker."""
    with embedded.postgres(servers_dir, POSTGRES_OPTIONS) as server:
        yield server


@pytest.fixture
async def redis_url(valkey_server: embedded.Server) -> str:
    """The address of an empty Valkey."""
    await _flush(valkey_server.url)
    return valkey_server.url


@pytest.fixture
async def cluster_url(cluster_server: str) -> str:
    """The address of an empty cluster."""
    await _flush(cluster_server)
    return cluster_server


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client on an empty Valkey."""
    async with _client(redis_url) as client:
        assert isinstance(client, Redis)
        yield client


@pytest.fixture
async def cluster(cluster_url: str) -> AsyncIterator[RedisCluster]:
    """A client on an empty cluster of three Valkeys."""
    async with _client(cluster_url) as client:
        assert isinstance(client, RedisCluster)
        yield client


@pytest.fixture(params=["valkey", "cluster"])
def redis_url_any(request: pytest.FixtureRequest) -> str:
    """The address of an empty Valkey and then of an empty cluster: a test that asks for it runs on each."""
    url: str = request.getfixturevalue("redis_url" if request.param == "valkey" else "cluster_url")
    return url


@pytest.fixture
async def redis_any(redis_url_any: str) -> AsyncIterator[RedisClient]:
    """A client on an empty Valkey and then on an empty cluster: a test that asks for it runs on each."""
    async with _client(redis_url_any) as client:
        yield client


@pytest.fixture
async def listener(redis_url: str) -> AsyncIterator[Redis]:
    """A client for subscriptions on the Valkey that `redis` writes to."""
    client = open_listener(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def postgres_url(postgres_server: embedded.Server) -> AsyncIterator[str]:
    """The address of a fresh, migrated database."""
    async with fresh_database(postgres_server.url, template=await _template(postgres_server.url)) as url:
        yield url


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a fresh, migrated database."""
    pool = await open_postgres(postgres_url, connections_max=8)
    yield pool
    await pool.close()


@pytest.fixture
async def stores(redis_url: str, postgres_url: str) -> AsyncIterator[Stores]:
    """Both stores, empty and migrated, on one Valkey."""
    async with _stores(redis_url, redis_url, postgres_url) as opened:
        yield opened


@pytest.fixture
async def stores_any(redis_url_any: str, valkey_server: embedded.Server, postgres_url: str) -> AsyncIterator[Stores]:
    """Both stores, on one Valkey and then on a cluster: a test that asks for it runs on each."""
    async with _stores(redis_url_any, valkey_server.url, postgres_url) as opened:
        yield opened


@pytest.fixture
def gate(redis: Redis) -> Gate:
    """The way into an empty Valkey."""
    return Gate(redis)


@pytest.fixture
def gate_any(redis_any: RedisClient) -> Gate:
    """The way into an empty Valkey and then into an empty cluster: a test that asks for it runs on each."""
    return Gate(redis_any)


@asynccontextmanager
async def fresh_database(server_url: str, *, template: str = "template0") -> AsyncIterator[str]:
    """Make a database, and drop it at the end with whatever still uses it."""
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield server_url.replace("/postgres?", f"/{name}?")
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def _template(server_url: str) -> str:
    """A migrated database to copy, made by the first test of this worker that needs one."""
    name = "migrated"
    connection = await asyncpg.connect(server_url)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            async with fresh_database(server_url) as url:
                migrating = await asyncpg.connect(url)
                await migrations.migrate(migrating)
                await migrating.close()
                await connection.execute(f"CREATE DATABASE {name} TEMPLATE {url.split('/')[3].split('?')[0]}")
    finally:
        await connection.close()
    return name


@asynccontextmanager
async def _stores(redis_url: str, queue_redis_url: str, postgres_url: str) -> AsyncIterator[Stores]:
    """What `open_stores` answers, without its looking at the servers: each test would do that again."""
    settings = Settings(redis_url=redis_url, queue_redis_url=queue_redis_url, postgres_url=postgres_url)
    pool = await open_postgres(postgres_url, connections_max=8)
    listener = open_listener(redis_url)
    async with _client(redis_url) as client:
        yield Stores(settings=settings, redis=client, gate=Gate(client), listener=listener, postgres=pool)
    await listener.aclose()
    await pool.close()


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[RedisClient]:
    client = open_redis(url)
    try:
        yield client
    finally:
        await client.aclose()


async def _flush(url: str) -> None:
    async with _client(url) as client:
        if isinstance(client, RedisCluster):
            await client.flushall(target_nodes=RedisCluster.PRIMARIES)
        else:
            await client.flushall()
