"""Cards in the background: payments that nobody waits for go on, and gateways are told what was decided."""

import asyncio
from functools import partial

from engine import cards, charges, errands, installation
from engine.cards import Cards
from engine.gateway import Gateway
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import loops, metrics

ADVANCE_EVERY_S = 2.0
ERRANDS_EVERY_S = 0.25
ERRANDS_MOST = 128
CHARGES_EVERY_S = 2.0


async def open_desk(stores: Stores, gateway: Gateway | None) -> Cards | None:
    """Where payments by card are brought on; None where there is no gateway."""
    if gateway is None:
        return None
    shared = await installation.read(stores.postgres)
    return Cards(stores.gate, stores.postgres, gateway, currency=shared.currency)


async def advance(desk: Cards, stores: Stores, sale: Sale) -> bool:
    """Ask about payments of a sale that stand still at their gateway, and end those whose time is over."""
    done = await cards.reconcile(desk, stores.postgres, sale)
    for step in ("advanced", "closed", "late"):
        metrics.RECONCILED.labels(step).inc(getattr(done, step))
    return False


async def run(stores: Stores, desk: Cards) -> None:
    """Send captures, voids and refunds, and bring charges on, until cancelled; any number of workers share them."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(loops.every(ERRANDS_EVERY_S, partial(_drive, stores, desk.gateway), name="errands"))
        tasks.create_task(loops.every(CHARGES_EVERY_S, partial(_bring_charges, stores, desk), name="charges"))


async def _bring_charges(stores: Stores, desk: Cards) -> None:
    decided = await charges.reconcile(stores.postgres, desk.gateway, currency=desk.currency)
    metrics.RECONCILED.labels("charged").inc(decided)


async def _drive(stores: Stores, gateway: Gateway) -> bool:
    driven = await errands.drive(stores.postgres, gateway, most=ERRANDS_MOST)
    for outcome in ("done", "refused", "unknown"):
        metrics.ERRANDS.labels(outcome).inc(getattr(driven, outcome))
    return driven.done + driven.refused >= ERRANDS_MOST
