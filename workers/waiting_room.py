"""Admission: the head of each open line is called a few times a second, within the operator's caps."""

import asyncio

from engine import waiting_room
from engine.sales import Sale
from engine.stores.connections import Stores
from workers import metrics

ADMIT_EVERY_S = 0.1
ADMITTED_AT_ONCE = 500
# How often a line is looked at in which nobody stands: a shop has many sales, and most of them are quiet.
QUIET_EVERY_S = 1.0


class Admission:
    """Admission to one sale: a few times a second while anybody is in line or its streams tell of something new."""

    def __init__(self) -> None:
        self._is_awaited = True
        self._looked_at = 0.0

    def stir(self) -> None:
        """Something was written in a stream of the sale: somebody may have joined, or be back."""
        self._is_awaited = True

    async def admit(self, stores: Stores, sale: Sale) -> bool:
        """Call whoever is next, and end what has lapsed; returns whether more can be done at once.

        Also while a room is paused or closed: people who are inside go on leaving it.
        """
        if not waiting_room.is_on(sale) or not self._is_due():
            return False
        self._is_awaited = False  # who joins from here on stirs it anew
        reply = await waiting_room.admit(stores.gate, sale, most=ADMITTED_AT_ONCE)
        if not isinstance(reply, waiting_room.Admitted):
            return False
        metrics.ADMITTED.inc(reply.count)
        self._is_awaited |= reply.waiting > 0
        return reply.more > 0

    def _is_due(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if not self._is_awaited and now_s - self._looked_at < QUIET_EVERY_S:
            return False
        self._looked_at = now_s
        return True
