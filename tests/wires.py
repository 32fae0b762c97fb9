"""Wires that break: what was asked arrives and is carried out, and nobody hears the answer."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit


@asynccontextmanager
async def losing_answers(postgres_url: str, *, to: bytes, times: int = 1) -> AsyncIterator[str]:
    """The address of a wire to this Postgres, cut `times` times: each time `to` was asked, its answer is lost."""
    address = urlsplit(postgres_url)
    place = parse_qs(address.query)
    name = f".s.PGSQL.{place['port'][0]}"
    upstream = f"{place['host'][0]}/{name}"
    lost: list[bytes] = []

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(upstream)
        breaks = asyncio.Event()

        async def ask() -> None:
            while block := await client.read(65536):
                if to in block and len(lost) < times:
                    lost.append(block)
                    breaks.set()
                to_server.write(block)

        async def answer() -> None:
            while block := await server.read(65536):
                if breaks.is_set():
                    return
                to_client.write(block)

        ways = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            to_client.close()
            to_server.close()
        # Whoever went away first is no fault of this end.
        await asyncio.gather(*ways, to_client.wait_closed(), to_server.wait_closed(), return_exceptions=True)

    serving: set[asyncio.Task[None]] = set()

    def begin(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(client, to_client)))

    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        async with await asyncio.start_unix_server(begin, path=f"{folder}/{name}"):
            query = urlencode({"host": folder, "port": place["port"][0]})
            yield urlunsplit(address._replace(query=query))
        # Nobody is left who could close what is still open.
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
    assert len(lost) == times, "the wire did not break"
