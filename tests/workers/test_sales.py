"""Workers share the sales out, keep each open and exact, and hand over without a gap."""

import asyncio
import signal
from typing import Any

from engine import rebuild, sales, shifts
from engine.sales import QUEUE_NO_STEP
from engine.stores import outbox
from engine.stores.connections import Stores
from tests.engine.test_rebuild import lose
from tests.shop import Shop, new_shop, open_shop
from tests.workers.working import lapse_leases, owners, process, shift, until


async def is_open(shop: Shop, epoch: int) -> bool:
    row = await shop.row()
    return (row["store_state"], row["epoch"]) == ("open", epoch)


async def has(shop: Shop, payment_id: str, status: str = "SUCCESS") -> bool:
    return await shop.payment(payment_id) == status


async def test_a_new_sale_is_opened_without_being_asked_for(stores_any: Stores) -> None:
    shop = await new_shop(stores_any)
    async with shift(stores_any):
        await until(lambda: is_open(shop, 1))
    assert await shop.term("state") == "open"


async def test_what_is_sold_reaches_postgres_and_is_made_known(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    async with shift(stores_any), stores_any.listener.pubsub() as channel:
        await channel.subscribe(outbox.CHANNEL)
        request = await shop.buy("A-1-1", "A-1-2")
        await until(lambda: has(shop, request.payment_id))
        async with asyncio.timeout(10):
            while (message := await channel.get_message(timeout=1.0)) is None or message["type"] != "message":
                pass
        assert message["data"] == f"{shop.sale_id} 1 1".encode()

        async def journal_is_drained() -> bool:
            return await shop.reservation(request.holding.hold_id) == ("CONFIRMED", None) and (
                await shop.term("journal_persisted_n") == await shop.term("journal_n")
            )

        await until(journal_is_drained)
    await shop.check()


async def test_a_store_that_lost_word_of_how_far_postgres_is_is_told_again(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    keys = (await shop.sale()).keys

    async def is_told() -> bool:
        return [await shop.term(f"{stream}_persisted_n") for stream in outbox.STREAMS] == ["1", "1"]

    async with shift(stores_any):
        await shop.buy("A-1-1")
        await until(is_told)
        # Said after the last entry, so it is what a failover or a power cut loses alone.
        await stores_any.redis.execute_command("HDEL", keys.sale, "outbox_persisted_n", "journal_persisted_n")
        await until(is_told)
    assert (await shop.row())["epoch"] == 1


async def test_a_lost_store_is_noticed_and_written_anew(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    async with shift(stores_any):
        request = await shop.buy("A-1-1")
        await until(lambda: has(shop, request.payment_id))
        await lose(stores_any)
        await until(lambda: is_open(shop, 2))
        assert await shop.states() == {"A-1-1": "SOLD"}
        again = await shop.buy("A-1-2")
        await until(lambda: has(shop, again.payment_id))
    await shop.check()


async def test_a_copy_left_closed_by_a_crash_is_written_anew(stores: Stores) -> None:
    shop = await open_shop(stores)
    sale = await shop.sale()
    await rebuild.CLOSE(stores.gate, sale.keys, epoch=sale.epoch)
    async with shift(stores):
        await until(lambda: is_open(shop, 2))
        assert await shop.term("state") == "open"


async def test_a_frozen_sale_is_rebuilt(stores: Stores) -> None:
    shop = await open_shop(stores)
    async with shift(stores):
        await until(lambda: _owned(stores, shop))
        assert await rebuild.demand(stores, shop.sale_id, reason="because")
        await until(lambda: is_open(shop, 2))


async def _owned(stores: Stores, shop: Shop) -> bool:
    return shop.sale_id in await owners(stores)


async def test_lapsed_holds_are_swept(stores: Stores) -> None:
    shop = await open_shop(stores, hold_s=1, hold_max_s=1)
    hold_id = await shop.hold("A-1-1")
    async with shift(stores):

        async def ended() -> bool:
            row = await stores.postgres.fetchrow(
                "SELECT status, reason FROM reservations WHERE reservation_id = $1", hold_id
            )
            return row is not None and tuple(row) == ("CANCELLED", "EXPIRED")

        await until(ended)
    assert await shop.states() == {}


async def test_terms_that_only_the_row_has_reach_the_store(stores: Stores) -> None:
    shop = await open_shop(stores)
    async with stores.postgres.acquire() as connection, connection.transaction():
        # The process died before it told the store.
        await sales.edit(connection, sale_id=shop.sale_id, changes={"active_max": 77})
    async with shift(stores):

        async def told() -> bool:
            return await shop.term("active_max") == "77"

        await until(told)


async def test_the_line_is_remembered_and_allowed_more_numbers(stores: Stores) -> None:
    shop = await open_shop(stores, room="open")
    redis: Any = stores.redis
    await redis.hset((await shop.sale()).keys.sale, mapping={"serving": 12, "queue_no": QUEUE_NO_STEP - 1})
    async with shift(stores):

        async def remembered() -> bool:
            row = await shop.row()
            return (row["serving"], row["queue_no_ceiling"]) == (12, 2 * QUEUE_NO_STEP - 1)

        await until(remembered)

        async def allowed() -> bool:
            return await shop.term("queue_no_ceiling") == str(2 * QUEUE_NO_STEP - 1)

        await until(allowed)


async def test_a_payment_left_half_done_is_finished(stores: Stores) -> None:
    shop = await open_shop(stores)
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.age(request.payment_id)
    async with shift(stores):
        await until(lambda: has(shop, request.payment_id))
    await shop.check()


async def test_one_broken_sale_does_not_hold_up_the_others(stores: Stores) -> None:
    broken, sound = await new_shop(stores), await open_shop(stores)
    # Nobody can own these streams: every attempt to write the sale fails.
    await stores.postgres.execute("DELETE FROM stream_watermarks WHERE sale_id = $1", broken.sale_id)
    async with shift(stores):
        await until(lambda: _owned(stores, broken))
        request = await sound.buy("A-1-1")
        await until(lambda: has(sound, request.payment_id))
        assert (await broken.row())["store_state"] == "new"


async def test_a_sale_that_could_not_be_written_is_written_once_it_can_be(stores: Stores) -> None:
    shop = await new_shop(stores)
    # The store is full: nothing new is written to it.
    await stores.redis.config_set("maxmemory", "1mb")
    try:
        async with shift(stores):
            await until(lambda: _begun(shop))
            await stores.redis.config_set("maxmemory", "1gb")
            await until(lambda: _is_open_in_any_epoch(shop))
    finally:
        await stores.redis.config_set("maxmemory", "1gb")


async def _begun(shop: Shop) -> bool:
    return bool((await shop.row())["epoch"] > 0)


async def _is_open_in_any_epoch(shop: Shop) -> bool:
    return bool((await shop.row())["store_state"] == "open")


# Sharing --------------------------------------------------------------------------------------------------------------


async def test_a_second_worker_gets_its_share_and_gives_it_back_when_it_stops(stores: Stores) -> None:
    shops = [await open_shop(stores) for _ in range(4)]

    async def counts() -> dict[str, int]:
        names = list((await owners(stores)).values())
        return {name: names.count(name) for name in names}

    async with shift(stores, "first"):
        await until(lambda: _equals(counts, {"first": 4}))
        async with shift(stores, "second"):
            await until(lambda: _equals(counts, {"first": 2, "second": 2}))
            assert [worker.worker for worker in await shifts.list_workers(stores.postgres)] == ["first", "second"]
            requests = [(shop, await shop.buy("A-1-1")) for shop in shops]
            for shop, request in requests:
                await until(lambda shop=shop, request=request: has(shop, request.payment_id))  # type: ignore[misc]
        # No lease had to run out.
        await until(lambda: _equals(counts, {"first": 4}), within_s=10)
        for shop in shops:
            request = await shop.buy("A-1-2")
            await until(lambda shop=shop, request=request: has(shop, request.payment_id))  # type: ignore[misc]
    assert await owners(stores) == {}
    assert await shifts.list_workers(stores.postgres) == []
    for shop in shops:
        await shop.check()


async def _equals(counts: Any, wanted: dict[str, int]) -> bool:
    return bool(await counts() == wanted)


async def test_a_worker_that_lost_a_sale_leaves_it_alone(stores: Stores) -> None:
    shop = await open_shop(stores)
    async with shift(stores, "first"):
        await until(lambda: _owned(stores, shop))
        generation = await shop.own("second")
        request = await shop.buy("A-1-1")
        sale = await shop.sale()
        reader = outbox.Reader(
            stores.gate, stores.postgres, sale.keys, "outbox", generation, rebuild.handlers(sale)["outbox"]
        )
        await until(reader.drain)
        assert await has(shop, request.payment_id)
        row = await stores.postgres.fetchrow("SELECT owner, generation FROM stream_owners")
        assert row is not None
        assert tuple(row) == ("second", generation)
    await shop.check()


# Real processes -------------------------------------------------------------------------------------------------------


async def test_a_worker_process_finishes_and_gives_back_when_it_is_told_to_stop(stores_any: Stores) -> None:
    shop = await new_shop(stores_any)
    async with process(stores_any) as worker:
        await until(lambda: is_open(shop, 1))
        requests = [await shop.buy(f"A-1-{number}") for number in (1, 2, 3)]
        worker.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await worker.wait() == 0
    assert await owners(stores_any) == {}
    assert await shifts.list_workers(stores_any.postgres) == []
    await shop.drain()
    assert [await shop.payment(request.payment_id) for request in requests] == ["SUCCESS"] * 3
    await shop.check()


async def test_the_sales_of_a_killed_worker_are_taken_over(stores: Stores) -> None:
    shop = await open_shop(stores)
    async with process(stores) as worker:
        await until(lambda: _owned(stores, shop))
        worker.kill()
        await worker.wait()
        request = await shop.buy("A-1-1")
        (dead,) = (await owners(stores)).values()
        async with shift(stores, "next"):
            await lapse_leases(stores)
            await until(lambda: has(shop, request.payment_id))
            assert (await owners(stores))[shop.sale_id] == "next" != dead
    await shop.check()
