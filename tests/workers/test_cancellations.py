"""An event that is off is refunded to its end, whichever worker does it and wherever one dies."""

import asyncio
import signal

from engine import seat_cancellations
from engine.stores.connections import Stores
from tests.shop import PRICE, Shop, open_shop
from tests.workers.working import lapse_leases, process, shift, until

BUYERS = 12


async def sold_out(stores: Stores) -> Shop:
    """A hall of which every seat was bought by somebody else."""
    shop = await open_shop(stores, seats_count=BUYERS)
    for at in range(1, BUYERS + 1):
        await shop.buy(f"A-1-{at}", by=f"buyer {at}")
    await shop.drain()
    return shop


async def call_off(shop: Shop) -> None:
    called_off = await seat_cancellations.call_off(
        shop.stores, shop.book, schedule_id=str((await shop.sale()).schedule_id)
    )
    assert isinstance(called_off, seat_cancellations.CallOff)


async def progress(shop: Shop) -> seat_cancellations.CallOff:
    found = await seat_cancellations.find_call_off(shop.stores.postgres, str((await shop.sale()).schedule_id))
    assert found is not None
    return found


async def everybody_has_their_money_back(shop: Shop) -> None:
    postgres = shop.stores.postgres
    assert [tuple(row) for row in await postgres.fetch("SELECT DISTINCT amount, version FROM balances")] == [
        (10_000_000, 2)
    ]
    assert [tuple(row) for row in await postgres.fetch("SELECT DISTINCT status, refunded_amount FROM payments")] == [
        ("REFUNDED", PRICE)
    ]
    assert await postgres.fetchval("SELECT count(*) FROM refunds") == BUYERS
    assert await postgres.fetchval("SELECT seats_available FROM schedules") == BUYERS


async def test_an_event_that_is_off_is_refunded_to_its_end(stores_any: Stores) -> None:
    shop = await sold_out(stores_any)
    async with shift(stores_any):
        await call_off(shop)

        async def finished() -> bool:
            return (await progress(shop)).finished_at is not None

        await until(finished)
        assert (await progress(shop)).done == BUYERS
        assert await shop.states() == {}
    await everybody_has_their_money_back(shop)
    await shop.drain()
    await shop.check()


async def test_a_worker_that_is_killed_in_the_middle_leaves_the_rest_to_the_next(stores: Stores) -> None:
    shop = await sold_out(stores)
    await call_off(shop)
    assert await seat_cancellations.go_on(stores, shop.book, most=3)
    # One buyer's row is locked by somebody else, so that the worker stands in the middle of its batch.
    async with stores.postgres.acquire() as other, other.transaction():
        await other.execute(
            "SELECT FROM reservations WHERE status = 'CONFIRMED' ORDER BY reservation_id DESC LIMIT 1 FOR UPDATE"
        )
        async with process(stores) as worker:

            async def is_waiting() -> bool:
                waiting: int = await stores.postgres.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND query LIKE '%FROM reservations%FOR NO KEY UPDATE%' AND datname = current_database()"
                )
                return waiting > 0

            await until(is_waiting)
            worker.send_signal(signal.SIGKILL)
            await worker.wait()
    assert (await progress(shop)).done == 3
    await lapse_leases(stores)

    async def is_gone() -> bool:
        # Postgres ends what a killed client left behind once it speaks to it.
        left: int = await stores.postgres.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return left == 0

    await until(is_gone)
    async with process(stores):

        async def finished() -> bool:
            return (await progress(shop)).finished_at is not None

        await until(finished)
    assert ((await progress(shop)).total, (await progress(shop)).done) == (BUYERS, BUYERS)
    await everybody_has_their_money_back(shop)


async def test_two_workers_share_the_batches_and_do_nothing_twice(stores: Stores) -> None:
    shop = await sold_out(stores)
    await call_off(shop)
    async with shift(stores, "one"), shift(stores, "two"):

        async def finished() -> bool:
            await asyncio.gather(*[seat_cancellations.go_on(stores, shop.book, most=2) for _ in range(2)])
            return (await progress(shop)).finished_at is not None

        await until(finished)
    await everybody_has_their_money_back(shop)
