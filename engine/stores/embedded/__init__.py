"""Valkey and Postgres that come as wheels and live in the data folder, for whoever has no servers.

A second user adopts the running server, a server whose starter was killed is adopted by the next one, what a
killed server left is recovered by a new one, and the last user stops it (see `sharing`). The servers listen
on this machine only: Valkey on a loopback port, Postgres on a socket in a folder that only its own user may
enter.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.settings import Settings
from engine.stores.embedded import postgres_server, sharing, valkey_server
from engine.stores.embedded.sharing import EmbeddedFault, Server, end, private_folder, used

__all__ = [
    "EmbeddedFault", "Server", "Store", "cluster", "erase", "postgres", "provide", "provided", "valkey",
]  # fmt: skip


@contextmanager
def provide(settings: Settings) -> Iterator[Settings]:
    """Answer the settings with every address filled in, from an embedded server for each left open.

    Raises EmbeddedFault if one cannot be started.
    """
    with ExitStack() as stack:
        redis_url = settings.redis_url or stack.enter_context(valkey(settings.data_path)).url
        postgres_url = settings.postgres_url or stack.enter_context(postgres(settings.data_path, _room(settings))).url
        yield msgspec.structs.replace(
            settings,
            redis_url=redis_url,
            queue_redis_url=settings.queue_redis_url or redis_url,
            postgres_url=postgres_url,
        )


def _room(settings: Settings) -> Mapping[str, str]:
    """Let Postgres take what the API's processes, two workers and an operator's verbs may open between them."""
    connections = (settings.workers + 4) * settings.postgres_connections_max
    return {"max_connections": str(max(postgres_server.CONNECTIONS_MIN, connections))}


@dataclass(frozen=True)
class Store:
    """An embedded server in use, by its folder."""

    folder: Path

    @property
    def has_ended(self) -> bool:
        """Whether it ended, which it should not have done while it is used."""
        try:
            return sharing.is_vacant(self.folder)
        except FileNotFoundError:
            return False  # somebody removed the folder, and the server lives on

    def describe_end(self) -> str:
        """What it said last."""
        return f"The embedded server in {self.folder} ended. Its log ends:\n{sharing.tail(self.folder)}"


def provided(settings: Settings) -> list[Store]:
    """Name the embedded servers that `provide` starts for these settings."""
    addresses = {"valkey": settings.redis_url, "postgres": settings.postgres_url}
    return [Store(settings.data_path / name) for name, address in addresses.items() if address is None]


@contextmanager
def valkey(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run the Valkey of this data folder; options are lines of its configuration, over the ones kept here."""
    folder = private_folder(data_dir / "valkey")
    with _run_valkey(folder, {**valkey_server.OPTIONS, **(options or {})}) as server:
        yield server


@contextmanager
def cluster(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run three Valkeys that share the slots, and answer their common `redis+cluster://` address."""
    everything = {**valkey_server.OPTIONS, **valkey_server.CLUSTER_OPTIONS, **(options or {})}
    with ExitStack() as stack:
        folders = [private_folder(data_dir / f"valkey-{number}") for number in range(3)]
        servers = [stack.enter_context(_run_valkey(folder, everything)) for folder in folders]
        ports = [int(server.url.rsplit(":", 1)[1]) for server in servers]
        valkey_server.join_cluster(ports)
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


@contextmanager
def postgres(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run the Postgres of this data folder; options are settings of its own, over the ones kept here."""
    # Root's is passable, because the user whom root runs Postgres as must reach the part that is its own.
    folder = private_folder(data_dir / "postgres", passable=os.geteuid() == 0)
    with used(
        folder,
        start=lambda alive: postgres_server.start(folder, {**postgres_server.OPTIONS, **(options or {})}, alive),
        find=lambda: postgres_server.find(folder),
        signals=(signal.SIGINT, signal.SIGQUIT),  # a fast shutdown, then an immediate one
    ) as server:
        yield server


def erase(data_dir: Path) -> None:
    """End what still runs on this data folder and remove it, with what root keeps for it elsewhere."""
    for folder in data_dir.glob("valkey*"):
        end(folder, valkey_server.find, (signal.SIGKILL,))
    postgres_folder = data_dir / "postgres"
    if postgres_folder.is_dir():
        end(postgres_folder, postgres_server.find, (signal.SIGQUIT, signal.SIGKILL))
        for elsewhere in postgres_server.elsewhere(postgres_folder):
            shutil.rmtree(elsewhere)
    shutil.rmtree(data_dir, ignore_errors=True)


@contextmanager
def _run_valkey(folder: Path, options: Mapping[str, str]) -> Iterator[Server]:
    with used(
        folder,
        start=lambda alive: valkey_server.start(folder, options, alive),
        find=lambda: valkey_server.find(folder),
        signals=(signal.SIGTERM, signal.SIGKILL),
    ) as server:
        yield server
