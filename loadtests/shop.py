"""A shop of its own for a load run: embedded stores in a scratch folder, API processes and a worker.

The API and the worker are started by their real commands and ended by their ids; what a shop does is said over HTTP.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from engine.settings import PREFIX, SIMULATED_KEY, Settings
from engine.stores import embedded
from engine.stores.connections import RedisClient, open_postgres, open_redis
from loadtests.client import Client, NoAnswer

READY_WITHIN_S = 60.0
STOPS_WITHIN_S = 30.0
ACCOUNTS_AT_ONCE = 1000
# A worker looks for sales that are new, and for what was changed about them, once in so long.
SETTLED_AFTER_S = 1.0
# Where the stores of a run live in its folder.
DATA = "data"
BALANCE = 10_000_000
PRICE = 5000


@dataclass
class Shop:
    """A running shop, and the operator's key to it."""

    client: Client
    folder: Path
    settings: Settings
    processes: Mapping[str, int]
    """The ids of the processes that were started for it, by what they do."""

    @property
    def _key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.settings.admin_key}"}

    async def order(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """Do something as the operator; raises RuntimeError for any answer that is not a success."""
        named = {**self._key, "idempotency-key": secrets.token_hex(8)} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        answer = await self.client.request(method, path, headers=named, body=body)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.body.decode()[:300]}")
        return answer.json()

    async def make_users(self, count: int) -> list[dict[str, str]]:
        """Make accounts with money; returns the id and the access token of each."""
        users: list[dict[str, str]] = []
        for first in range(0, count, ACCOUNTS_AT_ONCE):
            body = {"count": min(ACCOUNTS_AT_ONCE, count - first), "balance": BALANCE}
            users += (await self.order("POST", "/v1/admin/accounts", body))["items"]
        return users

    async def make_buyers(self, count: int) -> list[str]:
        """Make accounts with money; returns their access tokens."""
        return [user["access_token"] for user in await self.make_users(count)]

    @asynccontextmanager
    async def stores(self) -> AsyncIterator[tuple[RedisClient, asyncpg.Pool]]:
        """Open both stores beside the running shop, for whoever audits it."""
        redis = open_redis(str(self.settings.redis_url))
        postgres = await open_postgres(str(self.settings.postgres_url), connections_max=4)
        try:
            yield redis, postgres
        finally:
            await postgres.close()
            await redis.aclose()

    async def make_sale(self, seats: int, *, per_row: int = 1000) -> tuple[str, str]:
        """Make a concert of so many seats A-<row>-<number>; returns its schedule's id and its sale's."""
        concert = await self.order("POST", "/v1/admin/concerts", {"title": "Load"})
        lines = ["section,row,number,category,price,accessible"]
        lines += [f"A,{n // per_row + 1},{n % per_row + 1},STANDARD,{PRICE},false" for n in range(seats)]
        path = f"/v1/admin/concerts/{concert['concert_id']}/schedules?start_at=2030-01-01T20:00:00Z"
        made = await self.order("POST", path, "\n".join(lines).encode(), content_type="text/csv")
        return made["schedule_id"], made["sale_id"]

    async def make_drop(self, units: int, **terms: object) -> tuple[str, str]:
        """Make a drop of so many units of one variant; returns its sale's id and the variant's."""
        drop = await self.order("POST", "/v1/admin/sales", {"name": "Drop", **terms})
        product = {
            "name": "Hot",
            "category": "MERCHANDISE",
            "price": PRICE,
            "sale_id": drop["sale_id"],
            "variants": [{"stock": units}],
        }
        made = await self.order("POST", "/v1/admin/products", product)
        return drop["sale_id"], made["variants"][0]["variant_id"]

    async def make_coupons(self, count: int, **terms: object) -> str:
        """Make a source of so many coupons, of a tenth of what they are used for; returns its id."""
        plan = {
            "name": "Ten percent",
            "type": "RATE",
            "discount_rate": 10,
            "quantity": count,
            "usable_from": "2020-01-01T00:00:00Z",
            "usable_to": "2040-01-01T00:00:00Z",
        }
        coupon_id: str = (await self.order("POST", "/v1/admin/coupons", {**plan, **terms}))["coupon_id"]
        return coupon_id

    async def open_room(self, sale_id: str, **settings: object) -> None:
        """Open the waiting room of a sale so wide that nobody waits longer than a tick, unless told otherwise."""
        wide: dict[str, object] = {"state": "open", "active_max": 1_000_000, "admitted_per_minute_max": 10_000_000}
        await self.order("PATCH", f"/v1/admin/sales/{sale_id}/queue", {**wide, **settings})

    async def settle(self) -> None:
        """Wait until what was made or changed is known everywhere: a sale is made long before its crowd comes."""
        await asyncio.sleep(SETTLED_AFTER_S)


def seat_no(n: int, *, per_row: int = 1000) -> str:
    """The name of seat n of a sale that `Shop.make_sale` made."""
    return f"A-{n // per_row + 1}-{n % per_row + 1}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for stores of one run, which is erased with what root keeps for it elsewhere."""
    with tempfile.TemporaryDirectory(prefix="lastseat-load-") as folder:
        try:
            yield Path(folder)
        finally:
            embedded.erase(Path(folder) / DATA)


@asynccontextmanager
async def shop(*, processes: int = 1, connections_max: int = 256, cards: bool = False) -> AsyncIterator[Shop]:
    """Start a shop in a scratch folder and stop it at the end; with `cards` a simulated gateway stands beside it."""
    with scratch_folder() as folder:
        settings = Settings(
            data_dir=str(folder / DATA),
            port=_free_port(),
            workers=processes,
            admin_key=f"lsk_{secrets.token_urlsafe(24)}",
            stripe_api_key=SIMULATED_KEY if cards else None,
            stripe_api_base=f"http://127.0.0.1:{_free_port()}" if cards else None,
            stripe_webhook_secret=f"whsec_{secrets.token_hex(12)}" if cards else None,
        )
        with embedded.provide(settings) as known:
            # Of the settings around us none counts: a run measures the same everywhere.
            environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            environ |= known.to_environment()
            commands = {"api": ["loadtests.twins"], "worker": ["cli.main", "worker"]}
            if cards:
                commands["gateway"] = ["cli.main", "gateway"]
            with contextlib.ExitStack() as stack:
                started = {
                    name: stack.enter_context(
                        running([sys.executable, "-m", *command], environ, folder / f"{name}.log")
                    ).pid
                    for name, command in commands.items()
                }
                async with Client("127.0.0.1", known.port, connections_max=connections_max) as client:
                    await _wait_until_ready(client, folder)
                    yield Shop(client, folder, known, started)


async def _wait_until_ready(client: Client, folder: Path) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        with contextlib.suppress(NoAnswer):
            if (await client.request("GET", "/health/ready")).status == 200:
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the shop did not start:\n{(folder / 'api.log').read_text()[-2000:]}")


@contextmanager
def running(command: Sequence[str], environ: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command for the length of a block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
