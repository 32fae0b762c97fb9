"""Sweeps: holds whose time is over end, of seats and of units, a bounded number a pass."""

from engine import wares
from engine.sales import Sale
from engine.seats import Expired
from engine.stores.connections import Stores
from workers import metrics

SWEEP_EVERY_S = 1.0
SWEPT_AT_ONCE = 25


async def sweep(stores: Stores, sale: Sale) -> bool:
    """End lapsed holds and forget old ones; returns whether more of either wait.

    Nothing depends on when this runs: a lapsed hold counts as free in every script.
    """
    reply = await wares.of(sale).scripts.expire(stores.gate, sale, most=SWEPT_AT_ONCE)
    if not isinstance(reply, Expired):
        return False
    metrics.EXPIRED.inc(reply.count)
    return reply.left > 0 or reply.trimmed == SWEPT_AT_ONCE
