"""A small fast HTTP/1.1 driver: keep-alive connections, one request at a time on each, nothing between it and the wire.

It imports nothing of ours and never repeats a request: whether a request that got no answer may be sent again is for
its caller to know, who has the `Idempotency-Key`.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec

CONNECT_WITHIN_S = 10.0

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_BODILESS = (204, 304)


class NoAnswer(Exception):
    """The connection ended, or the deadline passed, before the answer was whole: the outcome is unknown."""


@dataclass(slots=True)
class Answer:
    """Status, header lines and body as they came; what nobody looks at is never parsed."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line[: len(wanted)].lower() == wanted:
                return line[len(wanted) :].strip().decode("latin-1")
        return None

    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)


class Client:
    """Requests to one server over at most so many connections; those beyond wait their turn.

    ``async with Client("127.0.0.1", 8000) as client: answer = await client.request("GET", "/health/live")``
    """

    def __init__(self, host: str, port: int, *, connections_max: int = 128, answer_within_s: float = 30.0) -> None:
        self.host = host
        self.port = port
        self._most = connections_max
        self._answer_within_s = answer_within_s
        self._open = 0
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        # A turn is given a free connection, or None: open one of your own.
        self._turns: deque[asyncio.Future[_Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._sweep()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in (*self._idle, *self._busy):
            connection.close()

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: object = None
    ) -> Answer:
        """Send one request, with `body` as JSON unless it is bytes, and read its answer.

        Raises NoAnswer, after which the request may or may not have taken effect.
        """
        return await self.send(self.encode(method, path, headers=headers, body=body))

    def encode(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: object = None) -> bytes:
        """Write a request as the bytes that `send` sends, any number of times."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {path} HTTP/1.1\r\nhost: {host}:{self.port}\r\n"]
        if headers:
            lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        content = b""
        if body is not None:
            if isinstance(body, bytes):
                content = body
            else:
                content = msgspec.json.encode(body)
                lines.append("content-type: application/json\r\n")
            lines.append(f"content-length: {len(content)}\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1") + content

    async def send(self, request: bytes) -> Answer:
        """Send the bytes of one request and read its answer; raises NoAnswer."""
        connection = await self._take()
        self._busy.add(connection)
        try:
            return await connection.exchange(request, self._answer_within_s)
        except asyncio.CancelledError:
            connection.close()  # what still comes would be read as the answer to the next request
            raise
        finally:
            self._busy.discard(connection)
            self._give_back(connection)

    async def _take(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
            self._open -= 1  # the server ended it while it was idle
        if self._open < self._most:
            self._open += 1
            return await self._connect()
        turn: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            return await turn or await self._connect()
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and (given := turn.result()):
                self._give_back(given)  # the turn came to somebody who is not there any more
            raise

    async def _connect(self) -> "_Connection":
        """Open a connection in a place that is already counted; give the place back if that fails."""
        connection = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, self.host, self.port)
        except (OSError, TimeoutError) as fault:
            raise NoAnswer(f"{self.host}:{self.port} cannot be reached: {fault}") from fault
        finally:
            if connection is None:
                self._give_back(None)
        return connection

    def _give_back(self, connection: "_Connection | None") -> None:
        free = None if connection is None or connection.closed else connection
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(free)
                return
        if free is None:
            self._open -= 1
        else:
            self._idle.append(free)

    def _sweep(self) -> None:
        """Once a second end what is overdue: one timer for all costs less than one a request."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [each for each in self._busy if each.deadline < now]:
            connection.fail(f"no answer within {self._answer_within_s:g} s")
        self._sweeper = loop.call_later(1.0, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection: a request is written, its answer read, then the next one."""

    def __init__(self) -> None:
        self.closed = False
        self.deadline = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()

    def exchange(self, request: bytes, answer_within_s: float) -> "asyncio.Future[Answer]":
        loop = asyncio.get_running_loop()
        answer = self._answer = loop.create_future()
        self.deadline = loop.time() + answer_within_s
        if self.closed or self._transport is None:
            self.fail("the connection was closed")
        else:
            self._transport.write(request)
        return answer

    def fail(self, why: str) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(why))

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes no other kind

    def connection_lost(self, _fault: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            parsed = _parse(bytes(self._received), at_end=True)
            if parsed is None:
                self.fail("the connection ended before the answer")
            else:
                self._answer.set_result(parsed)

    def data_received(self, part: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        if self._received:
            self._received += part
            part = bytes(self._received)
        try:
            answer = _parse(part)
        except ValueError as fault:
            self.fail(f"this is no HTTP answer: {fault}")
            return
        if answer is None:
            if not self._received:
                self._received += part
            return
        if self._received:
            self._received.clear()
        if _CLOSE.search(answer.head):
            self.close()
        self._answer.set_result(answer)


def _parse(received: bytes, *, at_end: bool = False) -> Answer | None:
    """The answer in these bytes, or None while it is not whole; `at_end`, when no more will come."""
    head_end = received.find(_HEAD_END)
    if head_end < 0:
        return None
    head = received[:head_end]
    status = int(head[9:12])
    start = head_end + 4
    if status < 200:  # an interim answer, the real one follows
        return _parse(received[start:], at_end=at_end)
    if status in _BODILESS:
        return Answer(status, head, b"")
    if length := _LENGTH.search(head):
        end = start + int(length[1])
        return Answer(status, head, received[start:end]) if len(received) >= end else None
    if _CHUNKED.search(head):
        body = _join_chunks(received, start)
        return None if body is None else Answer(status, head, body)
    return Answer(status, head, received[start:]) if at_end else None


def _join_chunks(received: bytes, at: int) -> bytes | None:
    chunks: list[bytes] = []
    while (line_end := received.find(b"\r\n", at)) >= 0:
        size = int(received[at:line_end].partition(b";")[0], 16)
        at = line_end + 2
        if size == 0:  # trailers may follow, up to an empty line
            return b"".join(chunks) if received.find(b"\r\n", at) >= 0 else None
        if len(received) < at + size + 2:
            return None
        chunks.append(received[at : at + size])
        at += size + 2
    return None
