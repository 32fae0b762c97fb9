"""Shifts: workers share the sales out among themselves by rows in Postgres, and each serves those that it owns.

A worker takes sales that nobody owns, says every few seconds that it is still there, and gives back what exceeds its
share when another worker comes. Of a worker that dies the leases run out; of one that is stopped and wakes up later, the
generation is over, and whatever it tries to write is refused.
"""

import asyncio
import logging
from collections.abc import Mapping

from engine import rebuild, sales, shifts
from engine.sales import Sale, SaleBook
from engine.stores import outbox
from engine.stores.connections import Stores
from engine.stores.outbox import STREAMS, Divergence, OwnershipLost
from workers import loops, metrics, payments, seats, waiting_room
from workers.outbox import Doorbell, drain

logger = logging.getLogger(__name__)

TAKE_EVERY_S = 0.25
RENEW_EVERY_S = outbox.LEASE_S / 5
INSPECT_EVERY_S = 1.0


class Reopen(Exception):
    """The sale's row says that it is to be rebuilt, or was: what serves it now begins anew."""


class Shift:
    """One worker's turn: it takes, serves and gives back sales.

    Args:
        stores: both stores.
        worker: the name under which it owns sales, unlike that of any other process.
    """

    def __init__(self, stores: Stores, worker: str) -> None:
        self._stores = stores
        self._worker = worker
        self._book = SaleBook(stores.postgres)
        self._doorbell = Doorbell(str(stores.settings.redis_url))
        self._owned: dict[str, int] = {}
        self._services: dict[str, asyncio.Task[None]] = {}
        self._share = 0

    async def run(self) -> None:
        """Work until cancelled; then finish what was begun, and give every sale back at once."""
        await self._report()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(loops.every(TAKE_EVERY_S, self._take, name="take"))
                tasks.create_task(loops.every(RENEW_EVERY_S, self._renew, name="renew"))
                tasks.create_task(loops.every(INSPECT_EVERY_S, self._book.refresh, name="refresh"))
        finally:
            await self._stop(list(self._services))
            await outbox.give_back_ownership(self._stores.postgres, self._worker, self._owned)
            await shifts.leave(self._stores.postgres, self._worker)
            await self._doorbell.close()

    async def _take(self) -> None:
        """Take sales up to a fair share, and serve those that nobody here serves."""
        room = self._share - len(self._owned)
        if room > 0:
            taken = await outbox.take_ownership(self._stores.postgres, self._worker, most=room)
            self._owned |= taken
        for sale_id, generation in self._owned.items():
            service = self._services.get(sale_id)
            if service is None or service.done():
                self._services[sale_id] = asyncio.create_task(self._serve(sale_id, generation))
        metrics.OWNED.set(len(self._owned))

    async def _renew(self) -> None:
        """Go on owning, drop what was lost, give back what is above the share."""
        held = dict(self._owned)
        kept = await outbox.renew_ownership(self._stores.postgres, self._worker, held)
        lost = [sale_id for sale_id in held if sale_id not in kept]
        if lost:
            logger.warning("%s owns %d sales no more", self._worker, len(lost))
        await self._drop(lost)
        await self._report()
        surplus = {sale_id: self._owned[sale_id] for sale_id in list(self._owned)[self._share :]}
        await self._drop(surplus)
        await outbox.give_back_ownership(self._stores.postgres, self._worker, surplus)

    async def _report(self) -> None:
        self._share = await shifts.report(self._stores.postgres, self._worker, len(self._owned))

    async def _drop(self, sale_ids: Iterable[str]) -> None:
        for sale_id in sale_ids:
            self._owned.pop(sale_id, None)
        await self._stop(sale_ids)

    async def _stop(self, sale_ids: Iterable[str]) -> None:
        services = [self._services.pop(sale_id) for sale_id in sale_ids if sale_id in self._services]
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)

    # One sale ---------------------------------------------------------------------------------------------------------

    async def _serve(self, sale_id: str, generation: int) -> None:
        """Serve one sale for as long as it is owned, rebuilding it whenever that is due."""
        failures = 0
        while True:
            try:
                sale = await self._open(sale_id, generation)
                await self._serve_copy(sale, generation)
            except* Reopen:
                failures = 0
            except* OwnershipLost as lost:
                ...
