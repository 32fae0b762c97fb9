"""A cluster that loses nodes, moves slots and dies as a whole, and what a client of it notices."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.stores import embedded, outbox
from engine.stores.cluster import Cluster
from engine.stores.connections import open_listener, open_redis
from engine.stores.embedded import valkey_server
from engine.stores.keys import SaleKeys
from engine.stores.scripts import Gate

# A key of the first, the second and the third node's slots.
KEYS = ("{two}", "{one}", "{three}")

ANSWER_WITHIN_S = 1.2


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """The folder of a cluster that a test may break."""
    yield tmp_path
    embedded.erase(tmp_path)


@asynccontextmanager
async def hasty_client(url: str) -> AsyncIterator[Cluster]:
    client = open_redis(url, answer_within_s=ANSWER_WITHIN_S)
    assert isinstance(client, Cluster)
    try:
        yield client
    finally:
        await client.aclose()


async def test_the_three_keys_live_on_three_nodes(cluster: RedisCluster) -> None:
    await cluster.initialize()
    assert len({node_of(cluster, key).name for key in KEYS}) == 3


async def test_a_silent_node_cuts_no_call_to_another(data_dir: Path) -> None:
    with embedded.cluster(data_dir) as url:
        node = valkey_server.find(data_dir / "valkey-0")
        assert node is not None
        async with hasty_client(url) as client:
            for key in KEYS:
                await client.set(key, "kept")
            # The control: the library's own client does cut them.
            stock = await stock_client(url).initialize()
            with silent(node):
                assert RedisConnectionError in {type(answer) for answer in await read_around_losses(stock)}
            await stock.aclose()

            with silent(node):
                assert await read_around_losses(client) == [b"kept"] * 8
            assert await client.get(KEYS[0]) == b"kept"


async def test_a_client_finds_its_way_back_after_losing_every_node(data_dir: Path) -> None:
    with embedded.cluster(data_dir) as url:
        async with hasty_client(url) as client:
            await client.set(KEYS[0], "kept")
            for number in range(3):
                node = valkey_server.find(data_dir / f"valkey-{number}")
                assert node is not None
                os.kill(node.pid, signal.SIGKILL)
            for key in KEYS * 2:
                with pytest.raises(RedisConnectionError):
                    await client.get(key)
            with embedded.cluster(data_dir) as again:
                assert again == url
                assert await client.get(KEYS[0]) == b"kept"


async def test_a_slot_on_its_way_to_another_node_is_followed(data_dir: Path) -> None:
    with embedded.cluster(data_dir) as url:
        async with hasty_client(url) as client:
            await client.initialize()
            slot = client.keyslot(KEYS[0])
            source, target = (node_of(client, key) for key in KEYS[:2])
            source_id, target_id = [(await node.execute_command("CLUSTER MYID")).decode() for node in (source, target)]

            # While it moves: a new key is asked of the target, by many calls on many connections at once.
            await target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
            await source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
            await asyncio.gather(*(client.set(f"{KEYS[0]}{number}", number) for number in range(50)))
            assert await source.execute_command("DBSIZE") == 0
            assert await target.execute_command("DBSIZE") == 50

            # After it moved: the old owner says so.
            for node in (target, source):
                await node.execute_command("CLUSTER SETSLOT", slot, "NODE", target_id)
            values = await asyncio.gather(*(client.get(f"{KEYS[0]}{number}") for number in range(50)))
            assert values == [str(number).encode() for number in range(50)]
            assert node_of(client, KEYS[0]).name == target.name


async def test_what_a_sale_announces_depends_on_its_own_node_alone(data_dir: Path) -> None:
    with embedded.cluster(data_dir) as url:
        async with hasty_client(url) as client:
            await client.initialize()
            others = node_of(client, outbox.CHANNEL)  # where the library sends whatever names the channel first
            keys = next(
                keys for n in range(100) if node_of(client, (keys := SaleKeys(f"{n:032x}")).sale).name != others.name
            )
            await client.execute_command("HSET", keys.sale, "epoch", 1, "state", "open", "outbox_n", 1)
            nodes = [valkey_server.find(data_dir / f"valkey-{number}") for number in range(3)]
            [silenced] = [node for node in nodes if node and node.url.endswith(f":{others.port}")]
            async with open_listener(url) as listener, listener.pubsub() as channel:
                await channel.subscribe(outbox.CHANNEL)
                with silent(silenced):
                    assert await outbox.announce(Gate(client), keys, "outbox", outbox.Watermark(1, 1, 1, "1-0"))
                assert await client.execute_command("HGET", keys.sale, "outbox_persisted_n") == b"1"
                async with asyncio.timeout(10):
                    while (message := await channel.get_message(timeout=1.0)) is None or message["type"] != "message":
                        pass
            assert message["data"] == f"{keys.sale_id} 1 1".encode()


def node_of(client: RedisCluster, key: str) -> ClusterNode:
    """The node that has this key."""
    node = client.get_node_from_key(key)
    assert node is not None
    return node


@contextmanager
def silent(node: embedded.Server) -> Iterator[None]:
    """A node that takes what it is sent and says nothing."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def read_around_losses(client: RedisCluster) -> list[object]:
    """What slow reads of two nodes answer while calls to the third time out in the middle of them."""
    lost = [asyncio.create_task(client.execute_command("GET", KEYS[0])) for _ in range(4)]
    slow = [asyncio.create_task(read_slowly(client, key)) for key in KEYS[1:] * 4]
    answers = await asyncio.gather(*slow, return_exceptions=True)
    # What the silent node does not answer is late; what is written to a connection that was given up is lost at once.
    losses = {type(loss) for loss in await asyncio.gather(*lost, return_exceptions=True)}
    assert RedisTimeoutError in losses
    assert losses <= {RedisTimeoutError, RedisConnectionError}
    return list(answers)


async def read_slowly(client: RedisCluster, key: str) -> object:
    """Wait four times at a node for a list that nobody fills, longer in all than a call may take, then read."""
    for _ in range(4):
        assert await client.execute_command("BLPOP", f"{key}list", 0.4) is None
    return await client.get(key)


def stock_client(url: str) -> RedisCluster:
    """The library's own client, as patient as ours."""
    addresses = (node.split(":") for node in url.removeprefix("redis+cluster://").split(","))
    client: RedisCluster = RedisCluster(
        startup_nodes=[ClusterNode(host, int(port)) for host, port in addresses],
        cluster_error_retry_attempts=0,
        connection_error_retry_attempts=0,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=ANSWER_WITHIN_S,
    )
    return client
