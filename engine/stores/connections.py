"""Open the two stores as the engine needs them: bounded, with deadlines, and never retrying on their own.

A call that times out has an unknown outcome. Only the engine knows whether it may be repeated (it repeats it
once, with the same ids), so every retry of the client libraries is switched off here.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import asyncpg
import msgspec
from redis.asyncio import BlockingConnectionPool, Connection, Redis, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from engine.settings import POSTGRES_CONNECTIONS_MAX, REDIS_CONNECTIONS_MAX, Settings
from engine.stores import embedded
from engine.stores.cluster import Address, Cluster
from engine.stores.packing import PACKING
from engine.stores.safety import Finding, inspect_postgres, inspect_redis

if TYPE_CHECKING:
    from engine.stores.scripts import Gate

logger = logging.getLogger(__name__)

CLUSTER_SCHEME = "redis+cluster"
REDIS_CONNECT_WITHIN_S = 2.0
REDIS_ANSWER_WITHIN_S = 5.0
POSTGRES_CONNECT_WITHIN_S = 10.0
POSTGRES_ANSWER_WITHIN_S = 30.0

RedisClient = Redis | RedisCluster


# Postgres cannot be reached, went away, or has no room: whether a commit that was under way happened is not known.
POSTGRES_AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresConnectionError,
    TimeoutError,
)
# Two transactions crossed, and this one gave way: nothing of it stands, and it may be tried again.
POSTGRES_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)


class StoreUnavailable(Exception):
    """Redis or Postgres cannot be reached, or did not answer in time; the same call may work soon."""


class UnsafeStore(Exception):
    """A store is set up so that it could lose or throw away what was sold."""


@dataclass(frozen=True)
class Stores:
    """Both stores, open; `settings` names the servers that are really used."""

    settings: Settings
    redis: RedisClient
    gate: "Gate"
    listener: Redis
    postgres: asyncpg.Pool


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Open both stores, and embedded servers in place of those that the settings do not name.

    Raises StoreUnavailable, UnsafeStore for an outside server that may not be trusted with sales, and
    EmbeddedFault.
    """
    # scripts stands above this module; it is looked up from below only here, where all is put together.
    from engine.stores.scripts import Gate  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        provided = embedded.provide(settings)
        known = await asyncio.to_thread(provided.__enter__)
        stack.push_async_callback(asyncio.to_thread, provided.__exit__, None, None, None)
        redis_url, postgres_url = str(known.redis_url), str(known.postgres_url)  # none of them None any more
        redis = open_redis(redis_url, connections_max=known.redis_connections_max)
        stack.push_async_callback(redis.aclose)
        listener = open_listener(redis_url)
        stack.push_async_callback(listener.aclose)
        postgres = await open_postgres(postgres_url, connections_max=known.postgres_connections_max)
        stack.push_async_callback(_close, postgres)
        # What we start ourselves is set up as it should be.
        if settings.redis_url:
            _refuse_unsafe(await _look_at(redis))
        if settings.postgres_url:
            _refuse_unsafe(await inspect_postgres(postgres))
        yield Stores(settings=known, redis=redis, gate=Gate(redis), listener=listener, postgres=postgres)


def is_cluster(url: str) -> bool:
    """Whether this address names a cluster."""
    return urlsplit(url).scheme == CLUSTER_SCHEME


def open_redis(
    url: str,
    *,
    connections_max: int = REDIS_CONNECTIONS_MAX,
    wait_s: float = REDIS_CONNECT_WITHIN_S,
    answer_within_s: float = REDIS_ANSWER_WITHIN_S,
) -> RedisClient:
    """Open a client on `redis://`, `rediss://`, `unix://` or `redis+cluster://host:port,host:port`.

    It answers in bytes, waits a bounded time for a connection and for an answer, and never repeats a call. A
    blocking read on it must block for less than `REDIS_ANSWER_WITHIN_S`.
    """
    if is_cluster(url):
        addresses, account = _cluster_addresses(url)
        return Cluster(
            addresses,
            connections_max=connections_max,
            wait_s=wait_s,
            retry=_no_retry(),
            socket_timeout=answer_within_s,
            socket_connect_timeout=REDIS_CONNECT_WITHIN_S,
            socket_keepalive=True,
            **account,
        )
    return _plain_client(url, connections_max, wait_s=wait_s, answer_within_s=answer_within_s)


def open_listener(url: str) -> Redis:
    """Open a plain client that may wait for ever, for subscriptions; on a cluster, to any one node.

    The cluster bus carries a PUBLISH to every node, and the library's cluster client cannot subscribe.
    """
    if not is_cluster(url):
        return _plain_client(url, 8, wait_s=REDIS_CONNECT_WITHIN_S, answer_within_s=None)
    addresses, account = _cluster_addresses(url)
    pool = BlockingConnectionPool(
        connection_class=_AnyNode,
        addresses=addresses,
        max_connections=8,
        retry=_no_retry(),
        socket_connect_timeout=REDIS_CONNECT_WITHIN_S,
        socket_keepalive=True,
        **account,
    )
    return Redis.from_pool(pool)


async def open_postgres(url: str, *, connections_max: int = POSTGRES_CONNECTIONS_MAX) -> asyncpg.Pool:
    """Open a pool whose connections read and write ids as 32 hex characters and JSON as Python objects.

    Raises StoreUnavailable if Postgres cannot be reached.
    """
    try:
        return await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=connections_max,
            timeout=POSTGRES_CONNECT_WITHIN_S,
            command_timeout=POSTGRES_ANSWER_WITHIN_S,
            statement_cache_size=512,
            init=_set_codecs,
            reset=_keep_session,
            server_settings={
                "application_name": "lastseat",
                "timezone": "UTC",
                "jit": "off",  # compiling a plan costs more than these statements run
                # A plan is kept while its tables grow: one that was made while they were small would go on reading them
                # whole for each row it looks for. What no index can find is read whole all the same.
                "enable_seqscan": "off",
                # A process stopped inside a transaction must not keep its locks until somebody notices.
                "idle_in_transaction_session_timeout": "15s",
            },
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
        raise StoreUnavailable(f"Postgres cannot be opened: {fault}") from fault


async def _set_codecs(connection: asyncpg.Connection) -> None:
    """Ids as 32 hex characters, the form they have in Redis and JSON; documents as Python objects.

    1,000 ids there and back take 0.7 ms like this, 1.7 ms as uuid.UUID and 1.6 ms as text (measured here).
    """
    await connection.set_type_codec("uuid", schema="pg_catalog", format="binary", encoder=_id_bytes, decoder=bytes.hex)
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=_json_text, decoder=msgspec.json.decode)


def _id_bytes(text: str) -> bytes:
    """Refuse here what Postgres would answer with a protocol error, which looks like a lost connection."""
    packed = bytes.fromhex(text)
    if len(text) != 32 or len(packed) != 16:
        raise ValueError(f"{text!r} is not an id of 32 hex characters")
    return packed


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def _keep_session(_connection: asyncpg.Connection) -> None:
    """Leave a returned connection as it is: nothing here changes a session, and a reset costs 0.1 ms.

    The pool itself still ends a transaction that was left open.
    """


class _AnyNode(Connection):
    """A connection to whichever node of a cluster answers: each attempt goes to the next address."""

    def __init__(self, *, addresses: Sequence[Address], **options: Any) -> None:
        super().__init__(**options)
        self._addresses = deque(addresses)

    async def _connect(self) -> None:
        self.host, self.port = self._addresses[0]
        self._addresses.rotate(-1)
        connect: Callable[[], Any] = super()._connect
        await connect()


async def _look_at(redis: RedisClient) -> list[Finding]:
    """Inspect Redis, which also shows whether it is there: its client connects when it is first used."""
    try:
        return await inspect_redis(redis)
    except RedisError as fault:
        raise StoreUnavailable(f"Redis cannot be opened: {fault}") from fault


async def _close(postgres: asyncpg.Pool) -> None:
    """Close the pool once its connections are back, and without them if somebody keeps one."""
    try:
        async with asyncio.timeout(POSTGRES_CONNECT_WITHIN_S):
            await postgres.close()
    except TimeoutError:
        postgres.terminate()


def _refuse_unsafe(findings: list[Finding]) -> None:
    """Warn of what should be changed; raise UnsafeStore where no sale may be made before it is."""
    for finding in findings:
        if not finding.refuse:
            logger.warning("%s Change it: %s", finding.what, finding.change)
    refused = [f"{finding.what} Change it: {finding.change}" for finding in findings if finding.refuse]
    if refused:
        raise UnsafeStore("\n".join(refused))


def _plain_client(url: str, connections_max: int, *, wait_s: float, answer_within_s: float | None) -> Redis:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections_max,
            timeout=wait_s,
            retry=_no_retry(),
            socket_timeout=answer_within_s,
            **({} if parse_url(url).get("path") else _TCP),
        )
    except ValueError as fault:
        raise StoreUnavailable(f"Redis cannot be opened: {fault}") from fault
    pool.connection_class = PACKING[pool.connection_class]
    return Redis.from_pool(pool)


_TCP: dict[str, Any] = {"socket_connect_timeout": REDIS_CONNECT_WITHIN_S, "socket_keepalive": True}


def _no_retry() -> Retry:
    return Retry(NoBackoff(), 0)


def _cluster_addresses(url: str) -> tuple[list[Address], dict[str, Any]]:
    """Read `redis+cluster://[user:password@]host:port,host:port`: the nodes, and how to sign in to each."""
    parts = urlsplit(url)
    account, _, nodes = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    addresses = []
    for node in nodes.split(","):
        host, _, port = node.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"a cluster's address must look like {CLUSTER_SCHEME}://host:port,host:port")
        addresses.append((host.strip("[]"), int(port)))
    signed_in = {"username": unquote(user) or None, "password": unquote(password) or None}
    return addresses, signed_in if account else {}
