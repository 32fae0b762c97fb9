"""Serve the API: what `lastseat api` runs. One parent, several processes, one port."""

import asyncio
import logging
import os
import signal
import tempfile
from typing import TYPE_CHECKING

from granian import Granian
from granian.constants import Interfaces, Loops
from granian.log import LogLevels

from engine import installation
from engine.processes import tame_collector
from engine.settings import Settings
from engine.stores import embedded
from engine.stores.connections import open_stores

if TYPE_CHECKING:
    from api.face import Face

# Connections that wait to be accepted while a process is busy, and those it keeps open at once: a waiting crowd holds
# many and uses few.
BACKLOG = 4096
CONNECTIONS_MAX = 16_384
# Requests have a deadline of ten seconds, so what runs when a stop is asked for is over by then.
STOPS_WITHIN_S = 15


def serve(settings: Settings, target: str = "api.server:application") -> None:
    """Prepare the stores, then serve until SIGTERM or SIGINT; requests under way are finished first.

    `target` is the factory of the application that each process runs.
    """
    with embedded.provide(settings) as known, tempfile.TemporaryDirectory(prefix="lastseat-metrics-") as counted:
        key = asyncio.run(_prepare(known))
        if key is not None:
            print(f"Admin key, shown this once: {key}", flush=True)  # noqa: T201 - an operator reads it here
        # The processes read their settings as this one did; the library of metrics reads its own variable.
        # Where one was named before us, a worker counts there, too.
        os.environ.update(known.to_environment())
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", counted)
        os.register_at_fork(after_in_child=_put_signals_off)
        Granian(
            target,
            address=known.host,
            port=known.port,
            interface=Interfaces.ASGI,
            workers=known.workers,
            loop=Loops.uvloop,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            websockets=False,
            respawn_failed_workers=True,
            workers_kill_timeout=STOPS_WITHIN_S,
            log_level=LogLevels.warning,
            factory=True,
        ).serve()


async def _prepare(settings: Settings) -> str | None:
    """Prepare the database; what is wrong with a store is said here once, and not by each process with a stack."""
    async with open_stores(settings):
        return await installation.prepare_database(settings)


def _put_signals_off() -> None:
    """Let a new process hear of a stop only once it can act on it.

    Before its loop runs, a signal would reach the handlers it has from its parent, or nobody: it would serve on until
    it is killed. The application lets the signals through when it has started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def application() -> "Face":
    """Make the application of one process; its settings are in the environment."""
    # Not before the processes part: the library of metrics looks at its variable when it is imported, and what the
    # parent has imported its children have, too.
    from api.app import create_app  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    tame_collector()
    return create_app(Settings.from_environment(os.environ))
