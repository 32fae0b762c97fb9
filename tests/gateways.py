"""The simulated card gateway as a process of its own, and somebody who takes its webhooks."""

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from cli.processes import free_port
from engine.settings import SIMULATED_KEY, Settings
from simulator.server import Config

ROOT = Path(__file__).parents[1]

API_KEY = f"{SIMULATED_KEY}_of_the_tests"
WEBHOOK_SECRET = "whsec_of_the_tests"
LATER_S = 0.2
"""What takes a while at the gateway takes so long in tests."""

SERVE = """
import os, sys, msgspec
from cli import lifeline
from simulator.server import Config, serve
lifeline.follow(os.getppid())  # a test run that is killed leaves no gateway behind
serve(msgspec.json.decode(sys.stdin.buffer.read(), type=Config))
"""


@contextmanager
def running_gateway(webhook_url: str | None = None) -> Iterator[Settings]:
    """Run a gateway, and answer the settings that an installation needs to use it."""
    port = free_port("127.0.0.1")
    config = Config(
        host="127.0.0.1",
        port=port,
        api_key=API_KEY,
        webhook_secret=WEBHOOK_SECRET,
        webhook_url=webhook_url,
        later_s=LATER_S,
    )
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(config))
        process.stdin.close()
        base = f"http://127.0.0.1:{port}"
        _wait_until_live(base, process)
        yield Settings(stripe_api_key=API_KEY, stripe_api_base=base, stripe_webhook_secret=WEBHOOK_SECRET)
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_live(base: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{base}/health/live", timeout=2):
            return
        with suppress(subprocess.TimeoutExpired):  # its end is all that it tells; it listens sooner
            raise AssertionError(f"the gateway ended with {process.wait(0.02)}")
    raise AssertionError("the gateway did not start")


class Operator:
    """Whoever switches faults on, looks at the ledger, and acts for the buyer."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.base = str(settings.stripe_api_base)
        self.session = session

    async def switch(self, fault: str, **terms: Any) -> None:
        """Switch a fault on."""
        async with self.session.post(f"{self.base}/simulator/switches", json={"fault": fault, **terms}) as answer:
            assert answer.status == 200, await answer.text()

    async def advance(self, seconds: int) -> None:
        """Let time go by at the gateway."""
        async with self.session.post(f"{self.base}/simulator/clock", json={"advance_s": seconds}) as answer:
            assert answer.status == 200

    async def ledger(self, payment_id: str) -> list[dict[str, Any]]:
        """What the gateway has of a payment."""
        rows: list[dict[str, Any]] = []
        after = ""
        while True:
            async with self.session.get(f"{self.base}/simulator/ledger{after}") as answer:
                page = await answer.json()
            rows += page["intents"]
            if page["next"] is None:
                return [row for row in rows if row["payment_id"] == payment_id]
            after = f"?after={page['next']}"

    async def act(self, url: str, outcome: str) -> str:
        """Approve or fail as the buyer, and answer where the page sends them."""
        async with self.session.post(url, data={"outcome": outcome}, allow_redirects=False) as answer:
            assert answer.status == 303, await answer.text()
            return answer.headers["location"]


def with_gateway(settings: Settings, gateway: Settings) -> Settings:
    """These settings of an installation, with this gateway."""
    named = {name: getattr(gateway, name) for name in ("stripe_api_key", "stripe_api_base", "stripe_webhook_secret")}
    return msgspec.structs.replace(settings, **named)


@asynccontextmanager
async def operating(settings: Settings) -> AsyncIterator[Operator]:
    """Be the operator of a gateway, and leave no fault switched on."""
    headers = {"Authorization": f"Bearer {settings.stripe_api_key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield Operator(settings, session)
        async with session.delete(f"{settings.stripe_api_base}/simulator/switches"):
            pass


class Mailbox:
    """The webhooks that came, in order."""

    def __init__(self) -> None:
        self.letters: list[tuple[bytes, str]] = []
        self.refusals = 0
        self._came = asyncio.Condition()

    async def take(self, request: web.Request) -> web.Response:
        """Take a webhook, or refuse it as often as was asked."""
        body, signature = await request.read(), request.headers["Stripe-Signature"]
        async with self._came:
            self.letters.append((body, signature))
            self._came.notify_all()
        self.refusals -= 1
        return web.Response(status=500 if self.refusals >= 0 else 200)

    async def about(self, ref: str, count: int) -> list[tuple[bytes, str]]:
        """Wait for so many webhooks about an intent, and answer them."""

        def those() -> list[tuple[bytes, str]]:
            return [letter for letter in self.letters if ref.encode() in letter[0]]

        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: len(those()) >= count)
        return those()


@asynccontextmanager
async def receiving(port: int) -> AsyncIterator[Mailbox]:
    """Take webhooks at this port."""
    mailbox = Mailbox()
    app = web.Application()
    app.router.add_post("/v1/webhooks/stripe", mailbox.take)
    runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    try:
        yield mailbox
    finally:
        await runner.cleanup()
