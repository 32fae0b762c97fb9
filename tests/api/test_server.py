"""The API as it is run: processes of their own, real sockets, a stop that finishes what was begun."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from engine.settings import Settings
from tests.api.calling import ADMIN_KEY, Person, problem

ROOT = Path(__file__).parents[2]
STARTS_WITHIN_S = 30
SERVE = """
import os
from api.server import serve
from engine.settings import Settings
serve(Settings.from_environment(os.environ))
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A running API."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, http: httpx.AsyncClient) -> None:
        self.process = process
        self.port = port
        self.http = http
        self.operator = Person(http, "", ADMIN_KEY)


@asynccontextmanager
async def running(settings: Settings, **environment: str) -> AsyncIterator[Server]:
    """Run the API over these stores until the end of the block."""
    port = free_port()
    chosen = settings.to_environment() | {"LASTSEAT_PORT": str(port)} | environment
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LASTSEAT_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE),
        cwd=ROOT,
        env=inherited | {name: value for name, value in chosen.items() if value},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
            async with asyncio.timeout(STARTS_WITHIN_S):
                while not await answers(http):
                    assert process.returncode is None, (await process.communicate())[0].decode()
            yield Server(process, port, http)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def answers(http: httpx.AsyncClient) -> bool:
    """Whether the API is ready, after a moment."""
    try:
        return (await http.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        await asyncio.sleep(0.05)
        return False


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """The API with two processes."""
    async with running(settings, LASTSEAT_WORKERS="2") as server:
        yield server


async def send_raw(server: Server, content: bytes) -> bytes:
    """Send bytes and read what comes back until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(content)
    async with asyncio.timeout(10):
        answered = await reader.read()
    writer.close()
    return answered


async def test_every_process_serves_and_one_answers_for_all_what_was_counted(server: Server) -> None:
    made = await server.operator.post("/v1/admin/accounts", {"count": 1, "balance": 10})
    person = Person(server.http, "", made.json()["items"][0]["access_token"])
    for _ in range(10):
        # A new connection each: either process may take it.
        async with httpx.AsyncClient(base_url=str(server.http.base_url)) as http:
            answered = await http.get("/v1/balance", headers=person.headers)
        assert answered.json()["amount"] == 10
    series = 'lastseat_http_request_seconds_count{method="GET",route="/v1/balance",status="200"} 10.0'
    # A request is counted after its answer was sent.
    async with asyncio.timeout(5):
        while series not in (counted := await server.http.get("/metrics")).text:
            assert counted.headers["content-type"].startswith("text/plain")


async def test_a_path_of_a_stranger_adds_no_label(server: Server) -> None:
    for number in range(5):
        assert problem(await server.http.get(f"/v1/nothing/{number}")) == (404, "not_found")
        await server.http.request("BREW", "/v1/me")
    counted = (await server.http.get("/metrics")).text
    assert "nothing" not in counted
    assert "BREW" not in counted


async def test_a_head_leaves_the_connection_ready_for_the_next_request(server: Server) -> None:
    asked = [b"HEAD /health/live HTTP/1.1\r\nHost: shop\r\n\r\n"]
    asked += [b"GET /health/live HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"]
    answered = await send_raw(server, b"".join(asked))
    head, _, rest = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert rest.startswith(b"HTTP/1.1 200")  # nothing of the content of the first stands between them
    assert rest.partition(b"\r\n\r\n")[2] != b""


async def test_a_stop_finishes_what_was_begun(server: Server, settings: Settings) -> None:
    made = await server.operator.post("/v1/admin/accounts", {"count": 1})
    person = Person(server.http, "", made.json()["items"][0]["access_token"])
    blocker = await asyncpg.connect(settings.postgres_url)
    blocking = blocker.transaction()
    await blocking.start()
    await blocker.execute("LOCK TABLE balances")
    charging = asyncio.create_task(person.post("/v1/balance/charges", {"amount": 5}, key="k"))
    async with asyncio.timeout(10):
        while not await blocker.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
    server.process.terminate()
    async with asyncio.timeout(10):
        while await accepts(server.port):
            pass
    assert not charging.done()
    await blocking.rollback()
    charged = await charging
    assert (charged.status_code, charged.json()["balance_after"]) == (201, 5)
    async with asyncio.timeout(20):
        assert await server.process.wait() == 0
    await blocker.close()


async def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_client_that_hangs_up_takes_nothing_with_it(server: Server) -> None:
    made = await server.operator.post("/v1/admin/accounts", {"count": 1})
    token = made.json()["items"][0]["access_token"]
    body = b'{"amount":1}'
    for number in range(20):
        request = (
            f"POST /v1/balance/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Idempotency-Key: k{number}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write((request + body)[: len(request) + number % (len(body) + 1)])
        writer.transport.abort()
    person = Person(server.http, "", token)
    # Each key, asked again, counts once, whatever the server has heard of it before.
    for number in range(20):
        assert (await person.post("/v1/balance/charges", {"amount": 1}, key=f"k{number}")).status_code == 201
    assert (await person.get("/v1/balance")).json()["amount"] == 20


async def test_a_body_that_is_announced_too_large_is_not_read(server: Server) -> None:
    answered = await send_raw(
        server,
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10000000\r\nConnection: close\r\n\r\n",
    )
    head, _, content = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert json.loads(content)["type"] == "/problems/body_too_large"


@pytest.mark.parametrize(
    "content", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_what_is_no_request_disturbs_nobody(server: Server, content: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(content)
    await writer.drain()
    writer.close()
    assert (await server.http.get("/health/ready")).status_code == 200


async def test_the_first_key_is_shown_once(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.postgres_url)
    await connection.execute("DELETE FROM api_keys")
    shown = []
    for _ in range(2):
        async with running(settings, LASTSEAT_ADMIN_KEY="", LASTSEAT_WORKERS="1") as server:
            server.process.terminate()
            output, _ = await server.process.communicate()
        shown.append([line.split()[-1] for line in output.decode().splitlines() if line.startswith("Admin key")])
    assert len(shown[0]) == 1
    assert shown[0][0].startswith("lsk_")
    assert shown[1] == []
    await connection.close()
