"""How processes share one server of a folder: who starts it, who adopts it, who stops it.

Three files in the folder are locked with `flock`, which the kernel gives back whatever dies:

`starting`  held while the server is started, adopted or stopped, so that two starters cannot meet;
`users`     shared by everybody who uses it; who can take it alone in the end was the last, and stops it;
`alive`     inherited by the server and its children: while one of them lives the folder is taken, and a
            process id that somebody else got after a crash is never mistaken for the server.
"""

import fcntl
import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from signal import Signals
from types import MappingProxyType
from typing import TypedDict

START_WITHIN_S = 300.0  # reading a large append-only file takes minutes
STOP_WITHIN_S = 20.0

# Postgres takes a dozen of its settings from PG* variables of whoever starts it.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class EmbeddedFault(Exception):
    """An embedded server could not be started, reached or stopped."""


@dataclass(frozen=True)
class Server:
    """A running embedded server: how to reach it, and its process."""

    url: str
    pid: int


@contextmanager
def used(
    folder: Path,
    *,
    start: Callable[[int], Server],
    find: Callable[[], Server | None],
    signals: tuple[Signals, ...],
) -> Iterator[Server]:
    """Use the server of this folder: adopt it or start it, and stop it at the end if nobody else uses it.

    `start` gets the open `alive` file to hand on, `find` answers a server that is ready, `signals` end it,
    the gentlest first.
    """
    with ExitStack() as stack:
        # All open until the end: if somebody removes the folder, the locks outlive the names of their files.
        starting, users, alive = [
            stack.enter_context(_opened(folder / name)) for name in ("starting", "users", "alive")
        ]
        with _held(starting):
            server = _adopt_or_start(folder, start, find)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield server
        finally:
            with _held(starting):
                if _can_take(users):  # else somebody still uses it
                    # Looked up again: it may have died and been started anew while it was in use, or not answer.
                    found = find() if _is_at(alive, folder / "alive") else None
                    _stop(folder, found or server, signals, alive)


def end(folder: Path, find: Callable[[Path], Server | None], signals: tuple[Signals, ...]) -> None:
    """End the server of this folder if one lives, whoever uses it."""
    with locked(folder / "starting"), _opened(folder / "alive") as alive:
        _stop(folder, find(folder), signals, alive)


def spawn(
    command: list[str],
    folder: Path,
    *,
    alive: int,
    find: Callable[[], Server | None],
    user: pwd.struct_passwd | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Server | None:
    """Start a server that survives a Ctrl-C meant for us, and wait until it answers; None if it ends instead.

    Its words go into `log` in its folder. Raises EmbeddedFault if it takes too long, and ends it then.
    """
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**ENVIRONMENT, **environment},
            start_new_session=True,
            pass_fds=(alive,),
            **run_as(user),
        )
    finally:
        os.close(log)
    _children.append(child)
    try:
        return _wait_for(lambda: child.poll() is not None, find, folder)
    except BaseException:
        child.kill()
        child.wait()
        raise


def tail(folder: Path) -> str:
    """The last words of the server of this folder."""
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-15:])


def is_vacant(folder: Path) -> bool:
    """Whether neither the server of this folder nor a child of it lives."""
    with _opened(folder / "alive") as alive:
        return _can_take(alive)


def private_folder(path: Path, *, passable: bool = False) -> Path:
    """Make the folder of one server, which nobody else may read; passable, they may reach what is theirs."""
    path = path.absolute()
    path.mkdir(parents=True, exist_ok=True, mode=0o711 if passable else 0o700)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file, waiting for it."""
    with _opened(path) as file, _held(file):
        yield


class RunAs(TypedDict, total=False):
    """What subprocess calls the user it runs a program as."""

    user: int
    group: int
    extra_groups: list[int]


def run_as(user: pwd.struct_passwd | None) -> RunAs:
    """Say to subprocess whom to run a program as; None is whoever we are."""
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def packaged(package: str, pattern: str) -> Path:
    """Find a file of an installed package without importing it: both packages do things on import."""
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise EmbeddedFault(f"The package {package} is not installed.")
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        raise EmbeddedFault(f"The package {package} brings no {pattern} for this kind of machine.")
    return found[0]


def _adopt_or_start(folder: Path, start: Callable[[int], Server], find: Callable[[], Server | None]) -> Server:
    # Alive but not to be found: still reading its files, or the last children of a killed server on their way
    # out.
    server = _wait_for(lambda: is_vacant(folder), find, folder)
    if server is not None:
        return server
    alive = _take(folder / "alive")
    if alive is None:
        raise EmbeddedFault(f"Somebody else holds {folder / 'alive'}.")
    try:
        return start(alive)
    finally:
        os.close(alive)  # the server holds its own copy


def _wait_for(is_over: Callable[[], bool], find: Callable[[], Server | None], folder: Path) -> Server | None:
    """Wait for the server to be found; None when it is over."""
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        if is_over():
            return None
        if server := find():
            return server
        time.sleep(0.01)
    raise EmbeddedFault(f"The server in {folder} has not answered for {START_WITHIN_S:.0f} s:\n{tail(folder)}")


def _stop(folder: Path, server: Server | None, signals: tuple[Signals, ...], alive: int) -> None:
    """End the server of this folder, more firmly each time it takes too long."""
    if _can_take(alive):
        return  # it ended by itself, and its process id may be another's by now
    for number in signals:
        if server is not None:
            with suppress(ProcessLookupError):
                os.kill(server.pid, number)
        deadline = time.monotonic() + STOP_WITHIN_S
        while time.monotonic() < deadline:
            # Takes the exit status of every ended server that this process started.
            _children[:] = [child for child in _children if child.poll() is None]
            if _can_take(alive):
                return
            time.sleep(0.01)
    raise EmbeddedFault(f"The server in {folder} does not stop:\n{tail(folder)}")


_children: list[subprocess.Popen[bytes]] = []


def _is_at(file: int, path: Path) -> bool:
    """Whether this open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _take(path: Path) -> int | None:
    """The open file whose lock we now hold, or None if somebody else holds it."""
    file = _open(path)
    if _can_take(file):
        return file
    os.close(file)
    return None


def _can_take(file: int) -> bool:
    """Take the lock of an open file unless somebody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _held(file: int) -> Iterator[None]:
    """Hold the lock of an open file, waiting for it."""
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = _open(path)
    try:
        yield file
    finally:
        os.close(file)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
