"""A cluster client that loses as little as it can when a node is lost.

The library's own answers trouble with one node by closing its connections to all of them, which cuts calls in
flight on the healthy ones; it loses a connection from its count whenever one could not be opened; and it may send
ASKING on another connection than the command that it is for. A command that is redirected was not executed: only
such a one is sent again.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ClusterError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.stores.packing import pack

logger = logging.getLogger(__name__)

REDIRECTS_MAX = 16
REFRESH_EVERY_S = 1.0

Address = tuple[str, int]


class _Topology(NodesManager):
    """The nodes and their slots; a refresh keeps the connections of every node that stays."""

    def set_nodes(
        self,
        old: dict[str, ClusterNode],
        new: dict[str, ClusterNode],
        remove_old: bool = False,  # noqa: FBT001, FBT002  the library's signature
    ) -> None:
        """Take the new nodes in, but go on with the known object of a known node."""
        if old is self.nodes_cache:
            for name in old.keys() & new.keys():
                old[name].server_type = new[name].server_type
            for nodes in {id(nodes): nodes for nodes in self.slots_cache.values()}.values():
                nodes[:] = [old.get(node.name, node) for node in nodes]
            new = {name: old.get(name, node) for name, node in new.items()}
        super().set_nodes(old, new, remove_old)


class Cluster(RedisCluster):
    """A client of a Redis or Valkey Cluster, bounded in what is in flight, which repeats nothing."""

    connection_pool: Any = None  # there is a set of connections a node; the library's types ask for the name

    def __init__(self, addresses: Sequence[Address], *, connections_max: int, wait_s: float, **options: Any) -> None:
        seeds = [ClusterNode(host, port) for host, port in addresses]
        super().__init__(
            startup_nodes=seeds, cluster_error_retry_attempts=0, connection_error_retry_attempts=0, **options
        )
        self._seeds = dict(self.nodes_manager.startup_nodes)
        self.nodes_manager = _Topology(seeds, require_full_coverage=True, connection_kwargs=self.connection_kwargs)
        self._turns = asyncio.Semaphore(connections_max)
        self._wait_s = wait_s
        self._refresh: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")

    async def initialize(self) -> "Cluster":
        """Read the topology unless it is known."""
        try:
            await super().initialize()
        except RedisClusterException as fault:
            raise RedisConnectionError(str(fault)) from fault
        return self

    async def aclose(self) -> None:
        """Close every connection."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)
        await super().aclose()

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command to the node that owns its keys, waiting a bounded time for its turn."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turns.acquire()
        except TimeoutError as late:
            raise RedisConnectionError("No connection available.") from late
        try:
            return await super().execute_command(*args, **kwargs)
        finally:
            self._turns.release()

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **kwargs: Any) -> Any:
        """Send one command to this node, and on to where it redirects."""
        node, asking = target_node, False
        for _ in range(REDIRECTS_MAX):
            try:
                return await _send(node, args, kwargs, asking=asking)
            except MovedError as moved:
                # How the library is told: it corrects the slot when the slot is looked up next.
                self.nodes_manager._moved_exception = moved  # noqa: SLF001
                node, asking = self.nodes_manager.get_node_from_slot(moved.slot_id), False
                self._refresh_soon()
            except AskError as ask:
                node, asking = self._node_at(ask.host, ask.port), True
            except TryAgainError:
                await asyncio.sleep(0.05)  # keys of one command are on both sides of a migration
            except (RedisConnectionError, RedisTimeoutError, ClusterDownError, SlotNotCoveredError):
                self._refresh_soon()
                raise
        raise ClusterError(f"More than {REDIRECTS_MAX} redirects.")

    def _node_at(self, host: str, port: int) -> ClusterNode:
        node = self.nodes_manager.get_node(host, port)
        if node is None:
            node = ClusterNode(host, port, "primary", **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        return node

    def _refresh_soon(self) -> None:
        """Read the topology anew beside the calls, once a second at most."""
        now = asyncio.get_running_loop().time()
        if now - self._refreshed_at >= REFRESH_EVERY_S and (self._refresh is None or self._refresh.done()):
            self._refreshed_at = now
            self._refresh = asyncio.create_task(self._read_topology())

    async def _read_topology(self) -> None:
        # The names in the address may by now lead to other machines than those that we know.
        for name, node in self._seeds.items():
            self.nodes_manager.startup_nodes.setdefault(name, node)
        try:
            await self.nodes_manager.initialize()
        except RedisError as fault:
            logger.warning("The cluster's topology cannot be read: %s", fault)


async def _send(node: ClusterNode, args: tuple[Any, ...], kwargs: dict[str, Any], *, asking: bool) -> Any:
    """Send a command on one connection of this node, after ASKING if the slot is still on its way there."""
    # Packed first: what cannot be sent takes no connection.
    packed = [pack(command) for command in ([("ASKING",), args] if asking else [args])]
    connection = node.acquire_connection()
    try:
        # A failure or a cancellation closes the connection; it opens again when it is used next.
        await connection.send_packed_command(packed, check_health=False)
        if asking:
            await connection.read_response()
        return await node.parse_response(connection, args[0], **kwargs)
    finally:
        node._free.append(connection)  # noqa: SLF001  how the library gives a connection back
