"""The faces as processes of their own: started, watched and stopped by their process ids."""

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.settings import PREFIX, Settings, variable

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 25.0
PORT_FREE_WITHIN_S = 5.0
LINES_SHOWN = 15
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class ProcessFault(Exception):
    """A process could not be started, or ended by itself."""


class Part(Protocol):
    """Something that runs for us and should not end by itself: a child, or an embedded store."""

    @property
    def has_ended(self) -> bool:
        """Whether it ended all the same."""

    def describe_end(self) -> str:
        """How, with its last words."""


@dataclass(frozen=True)
class Child:
    """A process that runs one of our verbs; its log is a file, or the terminal."""

    verb: str
    process: "subprocess.Popen[bytes]"
    log: Path | None

    @property
    def has_ended(self) -> bool:
        """Whether it ended, which it should not have done."""
        return self.process.poll() is not None

    def describe_end(self) -> str:
        """How it ended, with the last lines of its log."""
        said = f"lastseat {self.verb} ended with {self.process.returncode}."
        if self.log is None:
            return said
        lines = self.log.read_text(errors="replace").splitlines()[-LINES_SHOWN:]
        return "\n".join([f"{said} Its log, {self.log}, ends:", *lines])


@contextmanager
def running(verbs: list[str], settings: Settings, *, logs: Path | None = None) -> Iterator[list[Child]]:
    """Run these verbs until the block ends; the last one started is the first one stopped."""
    with ExitStack() as stack:
        # All of them count into one folder, so that the API can tell what the worker counted.
        counted = stack.enter_context(tempfile.TemporaryDirectory(prefix="lastseat-metrics-"))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environ |= {**settings.to_environment(), METRICS_FOLDER: counted}
        yield [stack.enter_context(_running(verb, environ, logs)) for verb in verbs]


def wait_until_ready(parts: Collection[Part], settings: Settings) -> None:
    """Wait until the API answers that it can serve; raises ProcessFault if a process ends meanwhile."""
    host = reachable(settings.host)
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        raise_if_ended(parts)
        connection = http.client.HTTPConnection(host, settings.port, timeout=3.0)
        try:
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise ProcessFault(f"The API at {host}:{settings.port} was not ready within {READY_WITHIN_S:.0f} s.")


def raise_if_ended(parts: Iterable[Part]) -> None:
    """Raise ProcessFault if one of them ended."""
    for part in parts:
        if part.has_ended:
            raise ProcessFault(part.describe_end())


def reachable(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on


def port_taken(settings: Settings) -> ProcessFault:
    """What is said where somebody listens on the port of the settings."""
    return ProcessFault(f"Port {settings.port} of {settings.host} is taken. Name another one: {variable('port')}=…")


def is_free(host: str, port: int, *, shared: bool = False) -> bool:
    """Whether nobody listens there, but for those of us who share it, as API processes do.

    Raises ProcessFault where we may not listen, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            if fault.errno != errno.EADDRINUSE:
                raise ProcessFault(f"Nothing can listen on port {port} of {host}: {fault.strerror}.") from fault
            return False
    return True


@contextmanager
def keeping(host: str, port: int, *, within_s: float = 0.0) -> Iterator[bool]:
    """Keep a port for what we start, while the block runs; False where others listen there, or another start keeps it.

    Processes of the API share their port: of two starts at once each would find it free, and both would serve there.
    """
    deadline = time.monotonic() + within_s
    with socket.socket(socket.AF_UNIX) as guard:
        name = f"\0lastseat {host} {port}"
        while not (kept := _is_named(guard, name) and is_free(host, port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield kept


def _is_named(guard: socket.socket, name: str) -> bool:
    """Whether this socket has a name that no other one can have, also after a kill; only Linux knows such names."""
    if sys.platform == "linux" and not guard.getsockname():
        try:
            guard.bind(name)
        except OSError:
            return False
    return True


def wait_until_free(host: str, port: int) -> bool:
    """Whether nobody listens there, or soon nobody does: processes whose parent was killed are about to end."""
    deadline = time.monotonic() + PORT_FREE_WITHIN_S
    while not (free := is_free(host, port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return free


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _running(verb: str, environ: Mapping[str, str], logs: Path | None) -> Iterator[Child]:
    with ExitStack() as stack:
        log = None
        output = None
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            log = logs / f"{verb}.log"
            output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            # -P: a folder that happens to be called cli, where the operator stands, is not our program.
            [sys.executable, "-P", "-m", "cli.main", verb, "--follow", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=environ,
            # A Ctrl-C is for us: we stop them, in order.
            start_new_session=True,
        )
        try:
            yield Child(verb, process, log)
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        # With the processes it forked: they are of its own session, whose id is its own.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
