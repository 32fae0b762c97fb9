"""Waiters: who waits for the commit of a payment or of an issue, and how they hear of it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import coupons, payments
from engine.coupons import UserCoupon
from engine.payments import LIVE, Payment
from engine.sales import Sale
from engine.stores.coalesce import Coalescer
from engine.stores.connections import POSTGRES_AWAY
from engine.stores.outbox import CHANNEL

logger = logging.getLogger(__name__)

# Rows are read this far apart at most.
PACE_S: Final = 0.01
# A waiter looks at its row after this long without a word from the publisher.
SILENCE_S: Final = 0.25
# One timer for all who wait: it finds those that have heard nothing for too long, and those whose time is up.
TICK_S: Final = 0.05

R = TypeVar("R")
# Rows by id, None for each that is not settled.
Rows = Coalescer[str, R | None]


class Waiters:
    """Answers when a row is settled; the published number only says when to look.

    One subscription a process. Whoever waits is woken by a number of its sale at or above its own, by another epoch of
    its sale, by a reconnect, and looks anyway after `SILENCE_S` of its own silence; the rows of all who are woken are
    read in one statement.
    """

    def __init__(self, postgres: asyncpg.Pool, listener: Redis) -> None:
        self._listener = listener
        self._payments: Rows[Payment] = Coalescer(
            lambda ids: _read_payments(postgres, ids), most=512, in_flight_max=1, pace_s=PACE_S
        )
        self._coupons: Rows[UserCoupon] = Coalescer(
            lambda ids: _read_coupons(postgres, ids), most=512, in_flight_max=1, pace_s=PACE_S
        )
        self._waiting: dict[str, set[_Waiting[Any]]] = {}
        # The last word of each sale: a number may be published before its waiter is here.
        self._heard: dict[str, tuple[int, int]] = {}
        self._ticking = False

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
        return await self._wait(sale, self._payments, payment_id, n, within_s)

    async def issued(self, sale: Sale, user_coupon_id: str, n: int, *, within_s: float) -> UserCoupon | None:
        """The coupon's row once there is one, or None when there was none within `within_s`; `n` is its number."""
        return await self._wait(sale, self._coupons, user_coupon_id, n, within_s)

    async def _wait(self, sale: Sale, rows: Rows[R], row_id: str, n: int, within_s: float) -> R | None:
        waiting = _Waiting(sale.epoch, n, rows, row_id, within_s)
        self._waiting.setdefault(sale.sale_id, set()).add(waiting)
        if sale.sale_id in self._heard and waiting.is_called(*self._heard[sale.sale_id]):
            self._look(waiting)
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)
        try:
            return await waiting.answer
        finally:
            self._waiting[sale.sale_id].discard(waiting)
            if not self._waiting[sale.sale_id]:
                del self._waiting[sale.sale_id]

    # Waking --------------------------------------------------------------------------------------------------------

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
            if waiting.is_called(epoch, n):
                self._look(waiting)

    def _wake_all(self) -> None:
        for of_sale in self._waiting.values():
            for waiting in of_sale:
                self._look(waiting)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for of_sale in self._waiting.values():
            for waiting in of_sale:
                if now >= waiting.looks_at:
                    self._look(waiting)
        self._ticking = bool(self._waiting)
        if self._ticking:
            loop.call_later(TICK_S, self._tick)

    # Looking -------------------------------------------------------------------------------------------------------

    def _look(self, waiting: "_Waiting[Any]") -> None:
        if waiting.looking:
            waiting.again = True  # that look may have read the row before what it is woken for
            return
        waiting.looking = True
        waiting.rows.submit(waiting.row_id).add_done_callback(partial(self._looked, waiting))

    def _looked(self, waiting: "_Waiting[R]", row: "asyncio.Future[R | None]") -> None:
        again, waiting.looking, waiting.again = waiting.again, False, False
        if waiting.answer.done():
            return
        if row.cancelled():  # the loop ends
            waiting.answer.cancel()
            return
        fault = row.exception()
        settled = row.result() if fault is None else None
        if isinstance(fault, POSTGRES_AWAY):
            logger.warning("%s: its row cannot be read: %r", waiting.row_id, fault)
        elif fault is not None:
            waiting.answer.set_exception(fault)
            return
        now = asyncio.get_running_loop().time()
        if settled is not None:
            waiting.answer.set_result(settled)
        elif now >= waiting.until:
            waiting.answer.set_result(None)
        elif again:
            self._look(waiting)
        else:
            waiting.looks_at = min(waiting.until, now + SILENCE_S)


class _Waiting(Generic[R]):
    """One who waits for a number of its sale, and for the row that it brings."""

    def __init__(self, epoch: int, n: int, rows: Rows[R], row_id: str, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.epoch = epoch
        self.n = n
        self.rows = rows
        self.row_id = row_id
        self.answer: asyncio.Future[R | None] = loop.create_future()
        self.until = loop.time() + within_s
        self.looks_at = min(self.until, loop.time() + SILENCE_S)
        self.looking = False
        # Woken while it looked.
        self.again = False

    def is_called(self, epoch: int, n: int) -> bool:
        """Whether this word concerns it: a number at or above its own, or another epoch."""
        return epoch != self.epoch or n >= self.n


async def _read_payments(postgres: asyncpg.Pool, payment_ids: list[str]) -> list[Payment | None]:
    found = await payments.read(postgres, payment_ids)
    settled = {payment_id: payment for payment_id, payment in found.items() if payment.status not in LIVE}
    return [settled.get(payment_id) for payment_id in payment_ids]


async def _read_coupons(postgres: asyncpg.Pool, user_coupon_ids: list[str]) -> list[UserCoupon | None]:
    found = await coupons.read(postgres, user_coupon_ids)
    return [found.get(user_coupon_id) for user_coupon_id in user_coupon_ids]
