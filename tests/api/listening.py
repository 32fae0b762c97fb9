"""Listening to events over real sockets: the application behind the server that it is run with, and somebody's ear."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from granian.constants import Interfaces
from granian.server.embed import Server

from api.face import Face
from tests.api.test_server import accepts, free_port

HEARS_WITHIN_S = 10


@asynccontextmanager
async def serving(app: Face) -> AsyncIterator[int]:
    """Serve an application whose house is open, in this process; answers the port."""
    port = free_port()
    server = Server(
        app, address="127.0.0.1", port=port, interface=Interfaces.ASGINL, websockets=False, log_enabled=False
    )
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(HEARS_WITHIN_S):
        while not await accepts(port):
            pass
    yield port
    app.house.events.end()
    server.stop()  # type: ignore[no-untyped-call]  # granian leaves it untyped
    await running


async def until(holds: Callable[[], bool]) -> None:
    """Wait until this holds."""
    async with asyncio.timeout(HEARS_WITHIN_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Event:
    """One event as a browser has it."""

    event_id: str
    name: str
    told: Any


class Ear:
    """One open stream of events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.comments = 0
        self.retry = 0
        self.heard = b""
        self._rest = b""

    async def read_head(self) -> None:
        """Read the status and the headers of the answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}

    async def next(self, name: str = "") -> Event:
        """The next event, or the next one of this name; raises EOFError at the end of the stream."""
        async with asyncio.timeout(HEARS_WITHIN_S):
            while True:
                block, found, rest = self._rest.partition(b"\n\n")
                if not found:
                    self._rest += await self._read()
                    continue
                self._rest = rest
                event = self._event(block.decode())
                if event is not None and name in {"", event.name}:
                    return event

    def _event(self, block: str) -> Event | None:
        fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
        if "event" in fields:
            return Event(fields.get("id", ""), fields["event"], msgspec.json.decode(fields["data"]))
        self.retry = int(fields.get("retry", self.retry))
        self.comments += block.startswith(":")
        return None

    async def _read(self) -> bytes:
        size = int(await self._reader.readline() or b"0", 16)
        if size == 0:
            raise EOFError
        part = (await self._reader.readexactly(size + 2))[:-2]
        self.heard += part
        return part

    async def hear_end(self) -> None:
        """Read until the server ends the stream."""
        with suppress(EOFError):
            while True:
                await self.next()

    def hang_up(self) -> None:
        """Go away without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def listening(
    port: int, sale_id: str, query: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Ear]:
    """Listen to the events of a sale."""
    async with asyncio.timeout(HEARS_WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = "".join([f"{name}: {value}\r\n" for name, value in (headers or {}).items()])
        writer.write(f"GET /v1/sales/{sale_id}/events{query} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
        ear = Ear(reader, writer)
        await ear.read_head()
    try:
        yield ear
    finally:
        ear.hang_up()
        with suppress(OSError):
            await writer.wait_closed()
