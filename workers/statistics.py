"""Intervals: what was sold since the last run becomes one, about once a minute for the whole installation."""

from typing import Any

from engine import statistics
from engine.stores.connections import Stores


async def aggregate(ctx: dict[str, Any]) -> int:
    """Make an interval of what was persisted since the last; returns how many products and days it has.

    A run that is missed, or comes twice, does no harm: what waits is in the next one, once.
    """
    stores: Stores = ctx["stores"]
    return await statistics.aggregate(stores.postgres)
