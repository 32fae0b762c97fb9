"""A process that hears of late money and dies at one step: `python -m tests.races.dying_desk`, told what as JSON."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from engine import cards, errands, late_payments, wares
from engine.cards import Cards
from engine.gateway import Event
from engine.sales import Sale, SaleBook
from engine.settings import Settings
from engine.stores.connections import open_stores
from engine.stripe_gateway import open_gateway
from engine.till import Till
from engine.waiters import Waiters

# Where it dies: right before, or right after, what this name does.
STEPS: dict[str, tuple[Any, str]] = {
    "begin": (late_payments, "begin"),
    "take_in": (cards, "take_in"),
    "hold": (late_payments, "_hold_again"),
    "authorise": (late_payments, "_authorise"),
    "keep": (Cards, "_keep_authorised"),
    "give_back": (late_payments, "_give_back"),
    "void": (errands, "void_anew"),
    "let_go": (late_payments, "_let_go"),
}
# Or one of these verbs, of the scripts of what its sale sells.
VERBS = ("pay", "confirm")


class Hearing(msgspec.Struct):
    """Of which money it hears, and where it dies: before or after a step."""

    environment: dict[str, str]
    sale_id: str
    ref: str
    event_id: str
    step: str
    after: bool


def die_at(sale: Sale, step: str, *, after: bool) -> None:
    """Let this process end, at once and without a word, at a step."""
    holder, name = (wares.of(sale).scripts, step) if step in VERBS else STEPS[step]
    does: Callable[..., Any] = getattr(holder, name)

    async def dies(*args: Any, **more: Any) -> Any:
        if after:
            await does(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, name, dies)


async def run(hearing: Hearing) -> None:
    """Do what the route of webhooks does, and die on the way."""
    settings = Settings.from_environment(hearing.environment)
    async with open_stores(settings) as stores, open_gateway(settings) as gateway:
        assert gateway is not None
        sale = await SaleBook(stores.postgres).find(hearing.sale_id)
        assert sale is not None
        desk = Cards(stores.gate, stores.postgres, gateway, currency="KRW")
        async with Waiters(stores.postgres, stores.listener).listening() as waiters:
            till = Till(stores.gate, stores.postgres, waiters, cards=desk)
            die_at(sale, hearing.step, after=hearing.after)
            event = Event(hearing.event_id, "payment_intent.told", hearing.ref, None)
            payment = await cards.take_in(stores.postgres, gateway, event)
            assert payment is not None
            await till.go_on(sale, await desk.climb(sale, payment))


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Hearing)))
