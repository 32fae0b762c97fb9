"""The driver against a server that says exactly what the test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from loadtests.client import Client, NoAnswer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, *, most: int = 8, answer_within_s: float = 10.0) -> AsyncIterator[Client]:
    """A client of a server that does this with each connection; both are gone at the end."""
    served: list[asyncio.Task[None]] = []

    async def carefully(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(cast("asyncio.Task[None]", asyncio.current_task()))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(carefully, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Client("127.0.0.1", port, connections_max=most, answer_within_s=answer_within_s) as client:
        yield client
    server.close()
    await asyncio.gather(*served)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


def saying(*parts: bytes) -> Serve:
    """A server that answers each request with these bytes, one write a part."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)

    return serve


def test_a_host_that_is_a_number_with_colons_stands_in_brackets() -> None:
    assert b"\r\nhost: [::1]:8000\r\n" in Client("::1", 8000).encode("GET", "/health/live")
    assert b"\r\nhost: 127.0.0.1:8000\r\n" in Client("127.0.0.1", 8000).encode("GET", "/health/live")


async def test_an_answer_is_read_whole() -> None:
    async with serving(saying(b'HTTP/1.1 201 Created\r\nETag: "7"\r\nContent-Length: 9\r\n\r\n{"a": 10}')) as client:
        answer = await client.request("POST", "/v1/things", body={"wish": 1})
        assert (answer.status, answer.header("etag"), answer.json()) == (201, '"7"', {"a": 10})
        assert answer.header("location") is None


async def test_an_answer_in_many_parts_is_put_together() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwhat"
    async with serving(saying(*(whole[at : at + 1] for at in range(len(whole))))) as client:
        assert (await client.request("GET", "/")).body == b"what"


async def test_a_chunked_answer_is_put_together() -> None:
    parts = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\none\r\n", b"5\r\n, two\r\n0\r\n", b"\r\n")
    async with serving(saying(*parts)) as client:
        assert (await client.request("GET", "/")).body == b"one, two"


async def test_an_answer_without_a_body_has_none() -> None:
    async with serving(saying(b"HTTP/1.1 304 Not Modified\r\nretry-after: 2\r\n\r\n")) as client:
        first, second = await client.request("GET", "/"), await client.request("GET", "/")
        assert (first.status, first.body, second.status) == (304, b"", 304)


async def test_an_interim_answer_is_passed_over() -> None:
    said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    async with serving(saying(said)) as client:
        assert (await client.request("GET", "/")).body == b"ok"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    async with serving(serve) as client:
        assert (await client.request("GET", "/")).body == b"until the end"


async def test_the_request_is_what_was_asked() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with serving(serve) as client:
        await client.request("PUT", "/a?b=c", headers={"idempotency-key": "k1"}, body={"n": [1, 2]})
    [(head, body)] = seen
    assert head.startswith(b"PUT /a?b=c HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"idempotency-key: k1\r\n" in head
    assert b"content-type: application/json\r\ncontent-length: 11\r\n" in head
    assert body == b'{"n":[1,2]}'


async def test_connections_are_kept_and_bounded() -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await saying(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")(reader, writer)

    async with serving(serve, most=3) as client:
        answers = await asyncio.gather(*(client.request("GET", "/") for _ in range(50)))
        assert [answer.status for answer in answers] == [200] * 50
    assert opened == 3


async def test_a_connection_that_the_server_closes_is_replaced() -> None:
    said = b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(saying(said), most=1) as client:
        assert [(await client.request("GET", "/")).status for _ in range(3)] == [200] * 3


async def test_a_connection_cut_before_the_answer_is_no_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")

    async with serving(serve, most=1) as client:
        for _ in range(2):
            with pytest.raises(NoAnswer):
                await client.request("GET", "/")


async def test_what_is_no_http_is_no_answer() -> None:
    async with serving(saying(b"-ERR unknown command\r\n\r\n")) as client:
        with pytest.raises(NoAnswer):
            await client.request("GET", "/")


async def test_silence_is_no_answer() -> None:
    async with serving(saying(), answer_within_s=0.0) as client:
        with pytest.raises(NoAnswer, match="within"):
            await client.request("GET", "/")


async def test_nobody_there_is_no_answer_and_costs_no_place() -> None:
    server = await asyncio.start_server(saying(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with Client("127.0.0.1", port, connections_max=1) as client:
        for _ in range(3):
            with pytest.raises(NoAnswer):
                await client.request("GET", "/")


async def test_a_request_given_up_does_not_answer_the_next_one() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            if b"/slow" not in head:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfast")

    async with serving(serve, most=1) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        waits = asyncio.create_task(client.request("GET", "/waits"))
        third = asyncio.create_task(client.request("GET", "/third"))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.sleep(0)
        slow.cancel()
        assert (await third).body == b"fast"
