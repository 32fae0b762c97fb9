"""Workers for tests: inside this process, or as the real thing; and waiting for what they do."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from engine.stores.connections import Stores, open_postgres
from workers.sales import Shift

ROOT = Path(__file__).parents[2]
WITHIN_S = 30.0


async def until(holds: Callable[[], Awaitable[object]], *, within_s: float = WITHIN_S) -> None:
    """Wait until this is so; looks often, because what is waited for takes milliseconds."""
    async with asyncio.timeout(within_s):
        # It happens in another process or in a store, so there is no event to wait for.
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@asynccontextmanager
async def shift(stores: Stores, worker: str = "worker") -> AsyncIterator[asyncio.Task[None]]:
    """A worker's turn inside this process, with a pool of its own, stopped at the end as by SIGTERM."""
    postgres = await open_postgres(str(stores.settings.postgres_url), connections_max=8)
    task = asyncio.create_task(Shift(replace(stores, postgres=postgres), worker).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await postgres.close()


@asynccontextmanager
async def process(stores: Stores) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real worker process on the same stores, killed at the end."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LASTSEAT_")}
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "workers.main",
        cwd=ROOT,
        env=environ | stores.settings.to_environment(),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def owners(stores: Stores) -> dict[str, str]:
    """Who owns which sale at this moment."""
    rows = await stores.postgres.fetch("SELECT sale_id, owner FROM stream_owners WHERE until > now()")
    return {row["sale_id"]: row["owner"] for row in rows}


async def lapse_leases(stores: Stores) -> None:
    """Let fifteen seconds have passed since anybody renewed a lease, or said that it lives."""
    await stores.postgres.execute("UPDATE stream_owners SET until = now() - interval '1 second'")
    await stores.postgres.execute("UPDATE workers SET updated_at = now() - interval '1 minute'")
