"""Waiters: who waits for the commit of a payment, and how they hear of it."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import payments
from engine.payments import LIVE, Payment
from engine.sales import Sale
from engine.stores.coalesce import Coalescer
from engine.stores.connections import POSTGRES_AWAY
from engine.stores.outbox import CHANNEL

logger = logging.getLogger(__name__)

# Rows are read this far apart at most.
PACE_S: Final = 0.005
# A waiter looks at its row after this long without a word from the publisher.
SILENCE_S: Final = 0.25


class Waiters:
    """Answers when a payment's row is settled; the published number only says when to look.

    One subscription a process. Whoever waits is woken by a number of its sale at or above its own, by another epoch of
    its sale, by a reconnect, and looks anyway after `SILENCE_S` of its own silence; the rows of all who are woken are
    read in one statement.
    """

    def __init__(self, postgres: asyncpg.Pool, listener: Redis) -> None:
        self._listener = listener
        self._rows: Coalescer[str, Payment | None] = Coalescer(
            lambda ids: _read(postgres, ids), most=512, in_flight_max=1, pace_s=PACE_S
        )
        self._waiting: dict[str, set[_Waiting]] = {}
        # The last word of each sale: a number may be published before its waiter is here.
        self._heard: dict[str, tuple[int, int]] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Waiters"]:
        """Listen until the end of the block."""
        task = asyncio.create_task(self._listen())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def settled(self, sale: Sale, payment_id: str, n: int, *, within_s: float) -> Payment | None:
        """The payment's row once it is settled, or None when it was not within `within_s`; `n` is its number."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        waiting = _Waiting(sale.epoch, n)
        if sale.sale_id in self._heard:
            waiting.hear(*self._heard[sale.sale_id])
        self._waiting.setdefault(sale.sale_id, set()).add(waiting)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(min(until, loop.time() + SILENCE_S)):
                        await waiting.woken.wait()
                except TimeoutError:
                    pass
                waiting.woken.clear()
                try:
                    payment = await self._rows.submit(payment_id)
                except POSTGRES_AWAY as fault:
                    logger.warning("payment %s: its row cannot be read: %r", payment_id, fault)
                else:
                    if payment is not None and payment.status not in LIVE:
                        return payment
                if loop.time() >= until:
                    return None
        finally:
            self._waiting[sale.sale_id].discard(waiting)
            if not self._waiting[sale.sale_id]:
                del self._waiting[sale.sale_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._listener.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    self._wake_all()  # what was published meanwhile was not heard
                    async for message in channel.listen():
                        if message["type"] == "message":
                            sale_id, epoch, n = message["data"].decode().split(" ")
                            self._hear(sale_id, int(epoch), int(n))
            except (RedisError, OSError) as fault:
                logger.warning("not listening for persisted numbers: %r", fault)
            await asyncio.sleep(SILENCE_S)

    def _hear(self, sale_id: str, epoch: int, n: int) -> None:
        self._heard[sale_id] = (epoch, n)
        for waiting in self._waiting.get(sale_id, ()):
            waiting.hear(epoch, n)

    def _wake_all(self) -> None:
        for waiting in itertools.chain.from_iterable(self._waiting.values()):
            waiting.woken.set()


class _Waiting:
    """One who waits for a number of its sale."""

    def __init__(self, epoch: int, n: int) -> None:
        self.epoch = epoch
        self.n = n
        self.woken = asyncio.Event()

    def hear(self, epoch: int, n: int) -> None:
        """Wake up if that concerns it: a number at or above its own, or another epoch."""
        if epoch != self.epoch or n >= self.n:
            self.woken.set()


async def _read(postgres: asyncpg.Pool, payment_ids: list[str]) -> list[Payment | None]:
    found = await payments.read(postgres, payment_ids)
    return [found.get(payment_id) for payment_id in payment_ids]
