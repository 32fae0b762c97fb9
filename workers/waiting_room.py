"""Admission: the head of each open line is called a few times a second, within the operator's caps."""

from engine import waiting_room
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics

ADMIT_EVERY_S = 0.1
ADMITTED_AT_ONCE = 500


async def admit(stores: Stores, sale: Sale) -> bool:
    """Call whoever is next, and end what has lapsed; returns whether more can be done at once.

    Also while a room is paused or closed: people who are inside go on leaving it.
    """
    if sale.room in {"off", "bypass"}:
        return False
    reply = await waiting_room.admit(stores.gate, sale, most=ADMITTED_AT_ONCE)
    if not isinstance(reply, waiting_room.Admitted):
        return False
    metrics.ADMITTED.inc(reply.count)
    return reply.more > 0
