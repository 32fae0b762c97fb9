"""Workers share the sales out, keep each open and exact, and hand over without a gap."""

import asyncio
import signal
from functools import partial
from typing import Any

import msgspec
import pytest

from engine import rebuild, sales, shifts
from engine.sales import QUEUE_NO_STEP
from engine.stores import outbox
from engine.stores.connections import Stores
from tests.engine.test_rebuild import lose
from tests.shop import Shop, new_shop, open_shop
from tests.workers.working import lapse_leases, owners, process, shift, until
from workers.loops import Bell
from workers.sales import Bells, Inspection


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


# At rest --------------------------------------------------------------------------------------------------------------


async def test_a_sale_at_rest_costs_its_owner_one_call(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    sale = await shop.sale()
    generation, bells = await shop.own(), Bells()
    readers = {
        stream: outbox.Reader(stores.gate, stores.postgres, sale.keys, stream, generation, handler)
        for stream, handler in rebuild.handlers(sale).items()
    }
    inspection = Inspection(sale, readers, bells)
    for reader in readers.values():
        assert await reader.drain() == 0

    async def calls() -> int:
        before = stores.gate.statistics.batches
        assert not await inspection.look(stores, sale)
        return stores.gate.statistics.batches - before

    assert await calls() == 1
    assert not any([await rings(bell) for bell in (bells.sweep, bells.admit, bells.reconcile, *bells.streams.values())])
    # Something is written, and something is due: whoever is to do it is woken.
    await shop.hold("A-1-2")
    await stores.redis.execute_command("ZADD", sale.keys.deadlines, "1", "x")
    await stores.redis.execute_command("ZADD", sale.keys.paying, "1", "x")
    assert await calls() > 1
    assert [await rings(bells.sweep), await rings(bells.reconcile), await rings(bells.admit)] == [True, True, False]
    assert {stream: await rings(bell) for stream, bell in bells.streams.items()} == {"outbox": False, "journal": True}
    assert not await inspection.look(stores, msgspec.structs.replace(sale, room="open"))
    assert await rings(bells.admit)


async def rings(bell: Bell) -> bool:
    bell.rest_max_s = 0.001
    return await bell.rest()


async def test_what_was_not_heard_is_read_when_its_owner_sees_it(
    stores_any: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.outbox.WRITTEN", "lastseat:nothing")
    shop = await open_shop(stores_any)
    async with shift(stores_any):
        await until(lambda: _owned(stores_any, shop))
        for seat_no in ("A-1-1", "A-1-2"):
            request = await shop.buy(seat_no)
            await until(partial(has, shop, request.payment_id), within_s=10)
    await shop.drain()
    await shop.check()


async def test_the_first_entry_that_postgres_lacks_is_told(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    keys = (await shop.sale()).keys
    async with stores_any.listener.pubsub() as channel:
        await channel.subscribe(outbox.WRITTEN)

        async def told() -> list[str]:
            heard = []
            while message := await channel.get_message(timeout=0.2):
                if message["type"] == "message":
                    heard.append(message["data"].decode())
            return heard

        while await channel.get_message(timeout=0.2) is not None:
            pass  # that it is subscribed
        await shop.buy("A-1-1")
        await shop.buy("A-1-2")  # who reads is awake
        assert sorted(await told()) == sorted([keys.journal, keys.outbox])
        await shop.drain()
        await shop.hold("A-1-3")
        assert await told() == [keys.journal]


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
