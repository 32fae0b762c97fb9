"""Admission: the head of each open line is called a few times a second, within the operator's caps."""

from engine import waiting_room
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics
from workers.loops import REST_MAX_S, Bell

ADMIT_EVERY_S = 0.1
ADMITTED_AT_ONCE = 500
# How often a line is looked at in which nobody stands: a shop has many sales, and most of them are quiet.
QUIET_EVERY_S = 1.0


async def admit(bell: Bell, stores: Stores, sale: Sale) -> bool:
    """Call whoever is next, and end what has lapsed; returns whether more can be done at once.

    Also while a room is paused or closed: people who are inside go on leaving it. Where anybody stands in line, the
    bell is rung for the next pass.
    """
    is_on = waiting_room.is_on(sale)
    bell.rest_max_s = QUIET_EVERY_S if is_on else REST_MAX_S
    if not is_on:
        return False
    reply = await waiting_room.admit(stores.gate, sale, most=ADMITTED_AT_ONCE)
    if not isinstance(reply, waiting_room.Admitted):
        return False
    metrics.ADMITTED.inc(reply.count)
    if reply.waiting > 0:
        bell.ring()
    return reply.more > 0
