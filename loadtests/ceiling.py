"""What the store itself can do: the fastest driver at hand sends one command after another and counts the answers.

``redis-benchmark`` (a C client) when it is on PATH, else a raw-protocol driver: plain sockets, ``epoll``, commands
encoded beforehand, replies counted by hiredis. Both keep 50 connections with 16 commands under way on each.
"""

import re
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import hiredis

CONNECTIONS = 50
PIPELINE = 16


@dataclass(frozen=True)
class Ceiling:
    """Commands a second, and the driver that measured them."""

    per_s: float
    driver: str


def encode(command: Sequence[str | bytes | int]) -> bytes:
    """Encode one command in the store's wire protocol."""
    encoded: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stubs mean a tuple of one
    return encoded


def drive(
    host: str, port: int, commands: Sequence[bytes], *, first_word: bytes | None = None, silent_s: float = 30.0
) -> Ceiling:
    """Send every encoded command over 50 connections, 16 deep, and return the rate.

    An error reply raises, and so does an answer whose first operation does not begin with `first_word`: a ceiling
    made of refusals would flatter us. So does a store that answers nobody for `silent_s`.
    """
    waiting = [b"".join(commands[at : at + PIPELINE]) for at in range(0, len(commands), PIPELINE)]
    counts = [len(commands[at : at + PIPELINE]) for at in range(0, len(commands), PIPELINE)]
    answered = 0
    following = 0
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        connections = [
            stack.enter_context(socket.create_connection((host, port))) for _ in range(min(CONNECTIONS, len(waiting)))
        ]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, [hiredis.Reader(), counts[following]])
            connection.sendall(waiting[following])
            following += 1
        while answered < len(commands):
            ready = selector.select(timeout=silent_s)
            if not ready:
                raise TimeoutError(f"the store answered nothing for {silent_s} s in the middle of the measurement")
            for key, _ in ready:
                asked = cast("socket.socket", key.fileobj)
                reader, _left = key.data
                received = asked.recv(65536)
                if not received:
                    raise ConnectionError("the store closed a connection in the middle of the measurement")
                reader.feed(received)
                while (reply := reader.gets()) is not False:
                    _check(reply, first_word)
                    answered += 1
                    key.data[1] -= 1
                if key.data[1] == 0 and following < len(waiting):
                    key.data[1] = counts[following]
                    asked.sendall(waiting[following])
                    following += 1
        took = time.perf_counter() - begun
    return Ceiling(per_s=len(commands) / took, driver="raw-protocol Python driver")


def _check(reply: object, first_word: bytes | None) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    if first_word is not None and not (isinstance(reply, list) and reply and reply[0][0] == first_word):
        raise RuntimeError(f"the store answered {reply!r} where {first_word!r} was meant")


def redis_benchmark(
    host: str, port: int, *, requests: int, random_range: int, command: Sequence[str]
) -> Ceiling | None:
    """Run ``redis-benchmark`` where it is on PATH; ``__rand_int__`` in `command` becomes a number of 12 digits."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return None
    options = ["-h", host, "-p", str(port), "-c", str(CONNECTIONS), "-P", str(PIPELINE)]
    options += ["-n", str(requests), "-r", str(random_range), "--csv"]
    run = subprocess.run([program, *options, *command], capture_output=True, text=True, timeout=300, check=True)
    # The last line is the measurement: "name","requests per second",…; the name is the command and may hold commas.
    found = re.search(r'","(\d+(?:\.\d+)?)"', run.stdout.strip().splitlines()[-1])
    if found is None:
        raise RuntimeError(f"{program} printed no rate: {run.stdout[-300:]}")
    return Ceiling(per_s=float(found.group(1)), driver=program.rsplit("/", 1)[-1])
