"""Shifts: workers share the sales out among themselves by rows in Postgres, and each serves those that it owns.

A worker takes sales that nobody owns, says every few seconds that it is still there, and gives back what exceeds its
share when another worker comes. Of a worker that dies the leases run out. One that was stopped and wakes up has an old
generation, and whatever it tries to write is refused.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from engine import coupons, offers, products, rebuild, reconciliation, sales, shifts
from engine.cards import Cards
from engine.coupons import CountedCoupons
from engine.sales import Checkpoint, Sale, SaleBook
from engine.stores import outbox
from engine.stores.connections import Stores
from engine.stores.outbox import Divergence, Ends, Head, OwnershipLost, Reader, Stream
from engine.stores.replies import word_of
from workers import cancellations, cards, loops, metrics, payments, seats, waiting_lists, waiting_room
from workers.loops import Bell, Reopen
from workers.outbox import Doorbell, drain

logger = logging.getLogger(__name__)

TAKE_EVERY_S = 0.5
RENEW_EVERY_S = outbox.LEASE_S / 5
INSPECT_EVERY_S = 1.0
# What a process left half done has stood still for seconds when it is asked for.
ASK_EVERY_S = 2.0

Tick = Callable[[Stores, Sale], Coroutine[Any, Any, bool]]


@dataclass(frozen=True)
class Bells:
    """What wakes the loops of one copy of a sale, which rest as long as there is nothing for them to do."""

    sweep: Bell = field(default_factory=Bell)
    admit: Bell = field(default_factory=Bell)
    waiting_lists: Bell = field(default_factory=Bell)
    reconcile: Bell = field(default_factory=Bell)
    cards: Bell = field(default_factory=Bell)
    streams: Mapping[Stream, Bell] = field(default_factory=lambda: {stream: Bell() for stream in outbox.STREAMS})

    def ring_all(self) -> None:
        """The sale is another than it was: each loop looks what that means for it."""
        for bell in (self.sweep, self.admit, self.waiting_lists, self.reconcile, self.cards):
            bell.ring()


class Shift:
    """One worker's turn: it takes, serves and gives back sales.

    Args:
        stores: both stores.
        worker: the name under which it owns sales; no other process has it.
        desk: where payments by card are brought on, None where there is no gateway.
    """

    def __init__(self, stores: Stores, worker: str, desk: Cards | None = None) -> None:
        self._stores = stores
        self._worker = worker
        self._desk = desk
        self._book = SaleBook(stores.postgres)
        self._doorbell = Doorbell(stores.listener)
        self._owned: dict[str, int] = {}
        self._services: dict[str, asyncio.Task[None]] = {}
        self._bells: dict[str, Bells] = {}
        self._share = 0

    async def run(self) -> None:
        """Work until cancelled; then finish what was begun, and give every sale back at once."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._doorbell.listen())
                tasks.create_task(loops.every(RENEW_EVERY_S, self._renew, name="renew"))
                tasks.create_task(loops.every(TAKE_EVERY_S, self._take, name="take"))
                tasks.create_task(loops.every(INSPECT_EVERY_S, self._refresh, name="refresh"))
                tasks.create_task(loops.every(ASK_EVERY_S, self._ask, name="ask"))
                tasks.create_task(loops.every(cancellations.CALL_OFF_EVERY_S, self._call_off, name="call_off"))
                tasks.create_task(
                    loops.every(
                        waiting_lists.FOLLOW_EVERY_S, partial(waiting_lists.follow, self._stores), name="follow"
                    )
                )
                tasks.create_task(
                    loops.every(
                        waiting_lists.NOTE_EVERY_S, partial(waiting_lists.note_forgotten, self._stores), name="note"
                    )
                )
        finally:
            await self._stop(list(self._services))
            try:
                await outbox.give_back_ownership(self._stores.postgres, self._worker, self._owned)
                await shifts.leave(self._stores.postgres, self._worker)
            except loops.AWAY as fault:
                logger.warning("%s left without a word, its leases run out: %s", self._worker, fault)

    async def _take(self) -> None:
        """Take sales up to a fair share, and serve all that are owned."""
        self._share = await shifts.find_share(self._stores.postgres)
        wanted = self._share - len(self._owned)
        if wanted > 0:
            self._owned |= await outbox.take_ownership(self._stores.postgres, self._worker, most=wanted)
        for sale_id, generation in self._owned.items():
            service = self._services.get(sale_id)
            if service is None or service.done():
                self._services[sale_id] = asyncio.create_task(self._serve(sale_id, generation))
        metrics.OWNED.set(len(self._owned))

    async def _renew(self) -> None:
        """Go on owning, drop what was lost, and give back what is above a fair share."""
        held = dict(self._owned)
        kept = await outbox.renew_ownership(self._stores.postgres, self._worker, held)
        lost = [sale_id for sale_id in held if sale_id not in kept]
        if lost:
            logger.warning("%s lost the ownership of %d sales", self._worker, len(lost))
            await self._drop(lost)
        await shifts.report(self._stores.postgres, self._worker, len(self._owned))
        surplus = dict(list(self._owned.items())[self._share :])
        if surplus:
            await self._drop(list(surplus))
            await outbox.give_back_ownership(self._stores.postgres, self._worker, surplus)

    async def _refresh(self) -> None:
        """Learn of sales that were made or changed."""
        for sale_id in await self._book.refresh():
            if bells := self._bells.get(sale_id):
                bells.ring_all()

    async def _ask(self) -> None:
        """Wake who finishes what was left half done, of all sales that are served here by one question."""
        for sale_id in await reconciliation.find_unfinished(self._stores.postgres, list(self._bells)):
            if bells := self._bells.get(sale_id):
                bells.reconcile.ring()
                bells.cards.ring()

    async def _call_off(self) -> bool:
        """Go on with events that are off, also those whose sales other workers own."""
        return await cancellations.call_off(self._stores, self._book)

    async def _drop(self, sale_ids: Sequence[str]) -> None:
        for sale_id in sale_ids:
            self._owned.pop(sale_id, None)
        await self._stop(sale_ids)

    async def _stop(self, sale_ids: Sequence[str]) -> None:
        services = [self._services.pop(sale_id) for sale_id in sale_ids if sale_id in self._services]
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)

    # One sale ---------------------------------------------------------------------------------------------------------

    async def _serve(self, sale_id: str, generation: int) -> None:
        """Serve one sale for as long as it is owned, and rebuild it whenever that is due."""
        attempts = loops.Attempts("serve")
        while not loops.stopping():
            try:
                await attempts.make(self._serve_copy(sale_id, generation))
            except Reopen as reopen:
                logger.info("sale %s: %s", sale_id, reopen)
            except OwnershipLost as lost:
                logger.warning("%s", lost)
                # Renewing says whether it is lost for good; if it is not, it is served again.
                await asyncio.sleep(INSPECT_EVERY_S)
                return

    async def _open(self, sale_id: str, generation: int) -> Sale:
        """The open copy of a sale, after a rebuild where its row asks for one."""
        sale = await self._book.read(sale_id)
        if sale is not None and sale.store_state == "open":
            return sale
        began_at = asyncio.get_running_loop().time()
        try:
            sale = await loops.finish(rebuild.rebuild(self._stores, sale_id, generation))
        except BaseException:
            metrics.REBUILDS.labels("failed").inc()
            raise
        metrics.REBUILDS.labels("opened").inc()
        metrics.REBUILD_SECONDS.observe(asyncio.get_running_loop().time() - began_at)
        return await self._book.read(sale_id) or sale

    async def _serve_copy(self, sale_id: str, generation: int) -> None:
        """Do everything for one copy of a sale side by side; it ends by raising OwnershipLost or Reopen."""
        sale = await self._open(sale_id, generation)
        readers = {
            stream: Reader(self._stores.gate, self._stores.postgres, sale.keys, stream, generation, handler)
            for stream, handler in rebuild.handlers(sale).items()
        }
        bells = self._bells[sale_id] = Bells()
        rung = {getattr(sale.keys, stream): bells.streams[stream] for stream in readers}
        self._doorbell.bells.update(rung)
        offset = int(sale.sale_id[:4], 16) / 0x10000
        try:
            async with asyncio.TaskGroup() as tasks:

                def repeat(seconds: float, name: str, tick: Tick, bell: Bell | None = None) -> None:
                    rest = bell.rest if bell else asyncio.sleep
                    work = partial(self._tick, tick, sale)
                    tasks.create_task(loops.every(seconds, work, name=name, offset=offset, rest=rest))

                for stream, reader in readers.items():
                    tasks.create_task(drain(reader, bells.streams[stream], bells.admit.ring))
                repeat(INSPECT_EVERY_S, "inspect", Inspection(sale, readers, bells).look)
                # Nothing is held of coupons, nobody waits for them in line, and nobody pays.
                if sale.kind != "coupon":
                    admit = partial(waiting_room.admit, bells.admit)
                    serve = partial(waiting_lists.serve, bells.waiting_lists)
                    repeat(seats.SWEEP_EVERY_S, "sweep", seats.sweep, bells.sweep)
                    repeat(waiting_room.ADMIT_EVERY_S, "admit", admit, bells.admit)
                    repeat(waiting_lists.SERVE_EVERY_S, "waiting_lists", serve, bells.waiting_lists)
                    repeat(payments.RECONCILE_EVERY_S, "reconcile", payments.reconcile, bells.reconcile)
                    if self._desk:
                        repeat(cards.ADVANCE_EVERY_S, "cards", partial(cards.advance, self._desk), bells.cards)
        except ExceptionGroup as group:
            fault = min(group.exceptions, key=_finality)
            if isinstance(fault, Divergence):
                await outbox.freeze(self._stores.postgres, sale.sale_id, sale.epoch, str(fault))
                metrics.FREEZES.inc()
                raise Reopen(f"frozen: {fault}") from group
            raise fault from group
        finally:
            del self._bells[sale_id]
            for stream_key in rung:
                del self._doorbell.bells[stream_key]
            metrics.forget_behind(sale.sale_id)

    async def _tick(self, tick: Tick, sale: Sale) -> bool:
        """One pass with the sale's terms as they stand now."""
        return await tick(self._stores, await self._book.find(sale.sale_id) or sale)


class Inspection:
    """Looks once a second whether Redis and Postgres say the same of one copy of a sale, and rings for what is due."""

    def __init__(self, sale: Sale, readers: Mapping[Stream, Reader], bells: Bells) -> None:
        self._sale = sale
        self._readers = readers
        self._bells = bells
        self._row = sale

    async def look(self, stores: Stores, row: Sale) -> bool:
        """Compare, and remember where the line stands; `row` is the sale as it is now.

        Raises Divergence when the two disagree, Reopen when the row says that another copy counts or none.
        """
        if row.store_state != "open" or row.epoch != self._sale.epoch:
            raise Reopen("its row was changed")
        if row != self._row:  # also where something else in this process read it first
            self._row = row
            self._bells.ring_all()
        if row.kind == "coupon":
            return await self._look_at_coupons(stores, row)
        found = await sales.look(stores.gate, row)
        is_at_rest = await self._compare(stores, row, found if isinstance(found, Checkpoint) else None)
        if not isinstance(found, Checkpoint):
            raise Divergence(f"the store answers {word_of(type(found))}")
        await sales.keep_checkpoint(stores, row, found)
        if found.version < row.version:
            await offers.send(stores.gate, stores.postgres, row)
        if found.product_changes < row.product_changes:
            await products.tell(stores.gate, stores.postgres, row)
        if found.stranded > 0:
            await waiting_lists.give_back(stores, row)
        if found.lapsed > 0:
            self._bells.sweep.ring()
        if found.overdue > 0:
            self._bells.reconcile.ring()
        self._keep_behind(is_at_rest=is_at_rest, outbox=found.outbox_behind, journal=found.journal_behind)
        return False

    async def _compare(self, stores: Stores, row: Sale, ends: Ends | None) -> bool:
        """Ring for what the readers of both streams lack; whether they lack nothing.

        Then nothing else has to be asked, as nobody but the owner moves a watermark. Raises Divergence where a stream
        does not continue what Postgres has.
        """
        is_at_rest = True
        for stream, reader in self._readers.items():
            mark = reader.watermark
            if ends is None or mark is None or ends.of(stream) != (mark.n, mark.n, mark.entry_id):
                is_at_rest = False
                self._bells.streams[stream].ring()
        if not is_at_rest:
            wrong = await outbox.inspect(stores.gate, stores.postgres, row.keys, row.epoch)
            if wrong:
                raise Divergence(wrong)
        return is_at_rest

    async def _look_at_coupons(self, stores: Stores, row: Sale) -> bool:
        head = await outbox.HEAD(stores.gate, row.keys)
        ends = head if isinstance(head, Head) and head.epoch == row.epoch else None
        is_at_rest = await self._compare(stores, row, ends)
        reply = await coupons.COUNT(stores.gate, row.keys, epoch=row.epoch)
        if not isinstance(reply, CountedCoupons) or reply.state != "open":
            raise Divergence(f"the store answers {reply}")
        if reply.version < row.version:
            await coupons.send(stores.gate, stores.postgres, row)
        self._keep_behind(is_at_rest=is_at_rest, outbox=reply.outbox_behind, journal=0)
        return False

    def _keep_behind(self, *, is_at_rest: bool, outbox: int, journal: int) -> None:
        """Show how far Postgres is behind; where it is not, and the store has lost word of that, it is told again."""
        metrics.keep_behind(self._sale.sale_id, outbox=outbox, journal=journal)
        behind: Mapping[Stream, int] = {"outbox": outbox, "journal": journal}
        for stream, reader in self._readers.items():
            if is_at_rest and behind[stream] > 0:
                reader.repeat()
                self._bells.streams[stream].ring()


def _finality(fault: Exception) -> int:
    """The most final of several verdicts comes first, and a fault that is none of them before all."""
    return loops.VERDICTS.index(type(fault)) if type(fault) in loops.VERDICTS else -1
