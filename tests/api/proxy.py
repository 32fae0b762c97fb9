"""A TCP proxy in front of a store, so that a test can take the store away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit, urlunsplit


class Proxy:
    """Passes bytes on, keeps them to itself (`hang`), or cuts every connection and takes no other (`cut`)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._writers) // 2

    def hang(self) -> None:
        """Pass nothing on, and say nothing."""
        self._passing.clear()

    def cut(self) -> None:
        """Close every connection, and each new one at once."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def restore(self) -> None:
        """Be as before."""
        self._cut = False
        self._passing.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        if self._cut:
            writer.transport.abort()
            return
        there_reader, there_writer = await self._connect()
        pair = {writer, there_writer}
        self._writers |= pair
        ways = [
            asyncio.create_task(self._pass(reader, there_writer)),
            asyncio.create_task(self._pass(there_reader, writer)),
        ]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        self._tasks.difference_update(ways)
        self._writers -= pair
        for one in pair:
            one.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self._url)
        folder = parse_qs(parts.query).get("host")
        if folder:  # Postgres listens on a socket in a folder
            return await asyncio.open_unix_connection(f"{folder[0]}/.s.PGSQL.{parts.port or 5432}")
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while content := await reader.read(65_536):
                await self._passing.wait()
                writer.write(content)
                await writer.drain()
        except OSError:
            return


@asynccontextmanager
async def before(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Stand before the server of this address, and answer the address to use instead."""
    parts = urlsplit(url)
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    account, at, _ = parts.netloc.rpartition("@")
    netloc = f"{account}{at}127.0.0.1:{port}"
    try:
        yield proxy, urlunsplit(parts._replace(netloc=netloc, query=""))
    finally:
        server.close()
        proxy.cut()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)
