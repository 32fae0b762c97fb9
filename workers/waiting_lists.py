"""Waiting lists: what was freed is offered to those who wait, a few times a second, and what became of it is noted."""

from engine import waiting_lists
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics

SERVE_EVERY_S = 0.5
FOLLOW_EVERY_S = 1.0
# It looks at everybody who waits: a tenth of a second where a hundred thousand do.
NOTE_EVERY_S = 30.0


async def serve(stores: Stores, sale: Sale) -> bool:
    """Offer what was freed in a sale of seats that has a waiting list; returns whether more can be done at once."""
    if not sale.waiting_list or sale.kind != "seats":
        return False
    served = await waiting_lists.serve(stores, sale)
    metrics.OFFERED.inc(served.offered)
    return served.more


async def give_back(stores: Stores, sale: Sale) -> None:
    """Give the public what was freed for a list that ended before it got there."""
    await waiting_lists.give_back(stores, sale)


async def follow(stores: Stores) -> None:
    """Note what became of offers, in all sales, whoever does it."""
    await waiting_lists.follow(stores.postgres)


async def note_forgotten(stores: Stores) -> None:
    """Note offers that a worker made as its last act."""
    await waiting_lists.note_forgotten(stores.postgres)
