"""A process that cancels an order and dies at a step: `python -m tests.races.dying_returner`, its errand as JSON."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from engine import cancellations, order_cancellations, reconciliation, stock
from engine.sales import SaleBook
from engine.settings import Settings
from engine.stock import Units
from engine.stores.connections import open_stores

# Where it dies: right before, or right after, what this name does.
STEPS: dict[str, tuple[Any, str]] = {
    "lock": (cancellations, "lock"),
    "write": (cancellations, "write"),
    "tell": (cancellations, "tell_redis"),
    "restore": (stock, "restore"),
    "give_back": (reconciliation, "give_back"),
}


class Errand(msgspec.Struct):
    """What it cancels, and where it dies: before or after a step."""

    environment: dict[str, str]
    cancellation_id: str
    order_id: str
    user_id: str
    variant_id: str
    quantity: int
    step: str
    after: bool


def die_at(step: str, *, after: bool) -> None:
    """Let this process end, at once and without a word, at a step."""
    holder, name = STEPS[step]
    does: Callable[..., Any] = getattr(holder, name)

    async def dies(*args: Any, **more: Any) -> Any:
        if after:
            await does(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, name, dies)


async def run(errand: Errand) -> None:
    """Cancel, and die on the way."""
    settings = Settings.from_environment(errand.environment)
    async with open_stores(settings) as stores:
        die_at(errand.step, after=errand.after)
        await order_cancellations.cancel(
            stores.gate,
            stores.postgres,
            SaleBook(stores.postgres),
            cancellation_id=errand.cancellation_id,
            order_id=errand.order_id,
            user_id=errand.user_id,
            units=[Units(errand.variant_id, errand.quantity)],
        )


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)))
