"""The raw-protocol driver: what the benchmarks fall back to where there is no redis-benchmark."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import hiredis
import pytest

from loadtests import ceiling


def address_of(url: str) -> tuple[str, int]:
    where = urlsplit(url)
    return str(where.hostname), int(where.port or 0)


async def test_every_command_is_sent_and_answered_once(redis_url: str) -> None:
    host, port = address_of(redis_url)
    commands = [ceiling.encode(["INCR", "sent"]) for _ in range(1001)]
    measured = ceiling.drive(host, port, commands)
    assert measured.per_s > 0
    with socket.create_connection((host, port)) as connection:
        connection.sendall(ceiling.encode(["GET", "sent"]))
        assert connection.recv(64) == b"$4\r\n1001\r\n"


async def test_a_ceiling_made_of_errors_or_refusals_is_none(redis_url: str) -> None:
    host, port = address_of(redis_url)
    with pytest.raises(hiredis.ReplyError):
        ceiling.drive(host, port, [ceiling.encode(["INCR", "a", "b"])])
    refused = ceiling.encode(["EVAL", "return {{'seat_taken'}}", 0])
    with pytest.raises(RuntimeError, match="seat_taken"):
        ceiling.drive(host, port, [refused], first_word=b"held")
    ceiling.drive(host, port, [refused], first_word=b"seat_taken")


def test_a_store_that_falls_silent_ends_the_measurement() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        with pytest.raises(TimeoutError):
            ceiling.drive(host, port, [ceiling.encode(["PING"])], silent_s=0.05)


def test_without_redis_benchmark_there_is_nothing_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ceiling.redis_benchmark("127.0.0.1", 1, requests=1, random_range=1, command=["PING"]) is None
