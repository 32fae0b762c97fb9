"""A process that pays and dies at one step: `python -m tests.races.dying_buyer` with its errand as JSON."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from engine import authorisations, cards, wares
from engine.cards import Cards
from engine.payments import Tender
from engine.sales import Sale, SaleBook
from engine.settings import Settings
from engine.stores.connections import open_stores
from engine.stripe_gateway import StripeGateway, open_gateway
from engine.till import Till
from engine.waiters import Waiters

# Where it dies: right before, or right after, what this name does.
STEPS: dict[str, tuple[Any, str]] = {
    "authorise": (authorisations, "authorise"),
    "ask": (StripeGateway, "authorise"),
    "keep": (Cards, "_keep_authorised"),
    "decline": (Cards, "give_up"),
    "end": (authorisations, "end"),
}
# Or one of these verbs, of the scripts of what its sale sells.
VERBS = ("pay", "abandon", "confirm")


class Errand(msgspec.Struct):
    """Whom it pays for, how, and where it dies: before or after a step."""

    environment: dict[str, str]
    sale_id: str
    payment_id: str
    hold_id: str
    user_id: str
    tender: Tender
    user_coupon_id: str | None
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


async def run(errand: Errand) -> None:
    """Pay, and die on the way."""
    settings = Settings.from_environment(errand.environment)
    async with open_stores(settings) as stores, open_gateway(settings) as gateway:
        assert gateway is not None
        sale = await SaleBook(stores.postgres).find(errand.sale_id)
        assert sale is not None
        desk = cards.Cards(stores.gate, stores.postgres, gateway, currency="KRW")
        async with Waiters(stores.postgres, stores.listener).listening() as waiters:
            till = Till(stores.gate, stores.postgres, waiters, cards=desk)
            die_at(sale, errand.step, after=errand.after)
            await till.pay(
                sale,
                payment_id=errand.payment_id,
                hold_id=errand.hold_id,
                user_id=errand.user_id,
                fingerprint="f" * 16,
                tender=errand.tender,
                user_coupon_id=errand.user_coupon_id,
            )


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)))
