"""Waiting lists: what was freed is offered to those who wait, a few times a second, and what became of it is noted."""

from typing import Final

from engine import seat_waiting_lists, variant_waiting_lists, waiting_lists
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics
from workers.loops import Bell

SERVE_EVERY_S = 0.5
FOLLOW_EVERY_S = 1.0
# It looks at everybody who waits: a tenth of a second where a hundred thousand do.
NOTE_EVERY_S = 30.0


_KINDS: Final = {"seats": seat_waiting_lists.SEATS, "stock": variant_waiting_lists.UNITS}


async def serve(bell: Bell, stores: Stores, sale: Sale) -> bool:
    """Offer what was freed in a sale that has a waiting list; returns whether more can be done at once.

    As long as it has one, the bell is rung for the next pass.
    """
    if not sale.waiting_list:
        return False
    bell.ring()
    served = await waiting_lists.serve(stores, sale, _KINDS[sale.kind])
    metrics.OFFERED.inc(served.offered)
    return served.more


async def give_back(stores: Stores, sale: Sale) -> None:
    """Give the public what was freed for a list that ended before it got there."""
    await waiting_lists.give_back(stores, sale, _KINDS[sale.kind])


async def follow(stores: Stores) -> None:
    """Note what became of offers, in all sales, whoever does it."""
    await waiting_lists.follow(stores.postgres)


async def note_forgotten(stores: Stores) -> None:
    """Note offers that a worker made as its last act."""
    await waiting_lists.note_forgotten(stores.postgres)
