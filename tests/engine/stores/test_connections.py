"""What the clients do at their edges: nobody answers, no connection is left, ids and documents pass."""

import asyncio

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.stores.connections import (
    RedisClient,
    StoreUnavailable,
    open_listener,
    open_postgres,
    open_redis,
)

# Counts its own executions, then keeps the server busy for longer than the caller waits.
COUNT_AND_BE_LATE = """
redis.call("INCR", KEYS[1])
local sum = 0
for number = 1, 2e7 do sum = sum + number end
return sum
"""

ID = "0123456789abcdef0123456789abcdef"


async def test_a_call_that_timed_out_is_not_repeated(redis_url_any: str, redis_any: RedisClient) -> None:
    hasty = open_redis(redis_url_any, answer_within_s=0.03)
    with pytest.raises(RedisTimeoutError):
        await hasty.execute_command("EVAL", COUNT_AND_BE_LATE, 1, "count")
    await hasty.aclose()
    assert await redis_any.get("count") == b"1"


async def test_the_reply_of_a_call_that_timed_out_is_given_to_nobody_else(
    redis_url_any: str, redis_any: RedisClient
) -> None:
    hasty = open_redis(redis_url_any, answer_within_s=0.03, connections_max=1)
    with pytest.raises(RedisTimeoutError):
        await hasty.execute_command("EVAL", COUNT_AND_BE_LATE, 1, "count")
    await redis_any.set("count", "mine")  # answered when the server is free again
    assert await hasty.get("count") == b"mine"
    await hasty.aclose()


async def test_a_cancelled_call_leaves_its_connection_clean(redis_url_any: str) -> None:
    client = open_redis(redis_url_any, connections_max=1)
    await client.set("{a}text", "mine")
    waiting = asyncio.create_task(client.execute_command("BLPOP", "{a}list", 3))
    await until_blocked(redis_url_any)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await client.get("{a}text") == b"mine"
    await client.aclose()


async def test_without_a_free_connection_a_call_fails_after_a_bounded_wait(redis_url_any: str) -> None:
    client = open_redis(redis_url_any, connections_max=1, wait_s=0.05)
    waiting = asyncio.create_task(client.execute_command("BLPOP", "{a}list", 3))
    await until_blocked(redis_url_any)
    with pytest.raises(RedisConnectionError, match="No connection available"):
        await client.get("{a}text")
    other = open_redis(redis_url_any)
    await other.execute_command("RPUSH", "{a}list", "woken")
    assert await waiting == (b"{a}list", b"woken")
    await client.aclose()
    await other.aclose()


async def test_nobody_at_the_address_is_said_at_once() -> None:
    for url in ("redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"):
        client = open_redis(url)
        with pytest.raises(RedisConnectionError):
            await client.get("key")
        await client.aclose()
    with pytest.raises(StoreUnavailable, match="Postgres cannot be opened"):
        await open_postgres("postgresql://127.0.0.1:1/lastseat")


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://host", "redis+cluster://host:1,other"])
def test_an_address_of_a_cluster_names_hosts_and_ports(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        open_redis(url)


async def test_a_cluster_is_signed_in_to_with_the_account_of_its_address() -> None:
    client = open_redis("redis+cluster://shop:p%40ss@host:7000,other:7001")
    assert client.get_connection_kwargs()["username"] == "shop"
    assert client.get_connection_kwargs()["password"] == "p@ss"
    await client.aclose()


async def test_a_subscriber_hears_what_is_published_on_either_kind_of_store(redis_url_any: str) -> None:
    listener, client = open_listener(redis_url_any), open_redis(redis_url_any)
    async with listener.pubsub() as pubsub:
        await pubsub.subscribe("persisted")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        await client.execute_command("PUBLISH", "persisted", "sale 1 7")
        message = await pubsub.get_message(timeout=5)
    assert message["data"] == b"sale 1 7"
    await listener.aclose()
    await client.aclose()


async def test_a_listener_goes_to_the_next_node_when_one_is_gone(cluster_url: str) -> None:
    nodes = cluster_url.removeprefix("redis+cluster://")
    listener = open_listener(f"redis+cluster://127.0.0.1:1,{nodes}")
    with pytest.raises(RedisConnectionError):
        await listener.ping()
    assert await listener.ping()
    await listener.aclose()


async def test_ids_are_hex_and_documents_are_objects(postgres: asyncpg.Pool) -> None:
    row = await postgres.fetchrow(
        """
        SELECT $1::uuid AS id, $2::uuid[] AS ids, $3::jsonb AS document, $4::json AS list,
          $1::uuid::text AS text
        """,
        ID,
        [ID, ID[::-1]],
        {"seats": ["A-1-1"], "price": 100},
        [1, None],
    )
    assert row is not None
    assert row["id"] == ID
    assert row["ids"] == [ID, ID[::-1]]
    assert row["document"] == {"seats": ["A-1-1"], "price": 100}
    assert row["list"] == [1, None]
    assert row["text"].replace("-", "") == ID


async def test_an_id_that_is_not_hex_is_refused_before_it_is_sent(postgres: asyncpg.Pool) -> None:
    for wrong in ("", "0123", "not an id", ID[:-1] + "g"):
        with pytest.raises(asyncpg.DataError):
            await postgres.fetchval("SELECT $1::uuid", wrong)


async def test_a_returned_connection_has_no_open_transaction(postgres_url: str) -> None:
    pool = await open_postgres(postgres_url, connections_max=1)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    async with pool.acquire() as connection:
        await connection.execute("BEGIN")
        await connection.execute("CREATE TABLE half_done ()")
    assert await pool.fetchval("SELECT to_regclass('half_done')") is None
    assert len(reported) == 1  # the driver complains of it
    await pool.close()


async def test_a_session_runs_in_utc_without_a_compiler(postgres: asyncpg.Pool) -> None:
    assert await postgres.fetchval("SHOW timezone") == "UTC"
    assert await postgres.fetchval("SHOW jit") == "off"
    assert await postgres.fetchval("SHOW idle_in_transaction_session_timeout") == "15s"


async def until_blocked(url: str) -> None:
    """Wait until a server of this address has a client that waits for a list."""
    nodes = url.split("://")[1].split(",")
    clients = [Redis.from_url(f"redis://{node}") for node in nodes]
    while not sum([(await client.info("clients"))["blocked_clients"] for client in clients]):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    for client in clients:
        await client.aclose()
