"""Events that are off: everybody is refunded, a batch at a time, by whichever worker comes first."""

from engine import seat_cancellations
from engine.sales import SaleBook
from engine.stores.connections import Stores

CALL_OFF_EVERY_S = 1.0


async def call_off(stores: Stores, book: SaleBook) -> bool:
    """Do the next batch of every event that is off; returns whether more can be done at once."""
    return await seat_cancellations.go_on(stores, book)
