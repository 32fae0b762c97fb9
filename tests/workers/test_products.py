"""A sale of goods has no schedule and no seats: a worker serves it like any other, before anything of it is sold."""

import logging
from functools import partial
from typing import Any

import pytest

from engine import ids, offers, products, sales, stock, waiting_room
from engine.audit import audit
from engine.products import NewProduct, NewVariant
from engine.sales import Sale, SaleBook, Terms
from engine.stores.connections import Stores
from tests.drops import Drop, open_drop
from tests.engine.test_rebuild import lose
from tests.workers.working import owners, shift, until

DROP = ids.derive("a drop")


async def furnish(stores: Stores) -> None:
    """A product in the standing sale and one in a drop, neither of them in the store yet."""
    await sales.create_drop(stores.postgres, sale_id=DROP, terms=Terms(name="Drop", per_buyer_max=2), fingerprint="f")
    tee = NewProduct(name="Tee", category="Shirts", price=500, variants=(NewVariant(stock=5),))
    for sale_id in (None, DROP):
        made = await products.create(
            stores.postgres, key_id=sale_id or "shop", sale_id=sale_id, listed=[tee], fingerprint="f"
        )
        assert isinstance(made, tuple)


async def is_open(stores: Stores, epoch: int) -> bool:
    rows = await stores.postgres.fetch("SELECT store_state, epoch FROM sales")
    return [tuple(row) for row in rows] == [("open", epoch)] * 2


async def drop(stores: Stores) -> Sale:
    sale = await SaleBook(stores.postgres).read(DROP)
    assert sale is not None
    return sale


async def join(stores: Stores, name: str) -> int:
    joined = await waiting_room.join(stores.gate, await drop(stores), owner=ids.derive("person", name))
    assert isinstance(joined, waiting_room.Joined), joined
    return joined.queue_no


async def kept(stores: Stores) -> dict[int, str]:
    """The line of the drop as Postgres knows it."""
    rows = await stores.postgres.fetch("SELECT queue_no, status FROM queue_tokens WHERE sale_id = $1", DROP)
    return {row["queue_no"]: row["status"] for row in rows}


async def test_a_worker_serves_sales_of_goods(stores_any: Stores, caplog: pytest.LogCaptureFixture) -> None:
    stores = stores_any
    await furnish(stores)
    async with shift(stores):
        await until(lambda: is_open(stores, 1))
        room: dict[str, Any] = {"room": "open", "active_max": 1}
        await offers.configure(stores, SaleBook(stores.postgres), sale_id=DROP, changes=room)
        ann, bob = await join(stores, "ann"), await join(stores, "bob")

        async def the_first_is_in() -> bool:
            return await kept(stores) == {ann: "ACTIVE", bob: "WAITING"}

        await until(the_first_is_in)
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
        await lose(stores)
        await until(lambda: is_open(stores, 2))
        assert await join(stores, "cid") > bob

        async def everybody_is_known() -> bool:
            return len(await kept(stores)) == 3

        await until(everybody_is_known)
    report = await audit(stores.redis, stores.postgres, settle_s=5)
    assert (report.verdict, report.sales, report.to_rebuild) == ("true", 2, [])


async def test_terms_of_a_drop_that_only_its_row_has_reach_the_store(stores: Stores) -> None:
    await furnish(stores)
    async with shift(stores):
        await until(lambda: is_open(stores, 1))

        async def terms_are_sent() -> bool:
            version = await stores.redis.execute_command("HGET", (await drop(stores)).keys.sale, "version")
            return int(version or 0) == 2

        async with stores.postgres.acquire() as connection, connection.transaction():
            await sales.edit(connection, sale_id=DROP, changes={"per_buyer_max": 3})
        await until(terms_are_sent)
    assert (await audit(stores.redis, stores.postgres, settle_s=5)).verdict == "true"


async def test_products_that_only_postgres_has_reach_the_store(stores: Stores) -> None:
    """Whoever changed them died before it told the store."""
    drop = await open_drop(stores)
    mug = await products.find(stores.postgres, drop.product_ids["mug"])
    assert mug is not None
    async with shift(stores):
        await until(partial(owns, stores, drop))
        changes: dict[str, Any] = {"price": 900, "status": "STOPPED"}
        await products.edit(stores.postgres, product_id=mug.product_id, version=1, changes=changes)
        pin = NewProduct(name="pin", category="Things", price=50, variants=(NewVariant(stock=3),))
        made = await products.create(stores.postgres, key_id="pin", sale_id=drop.sale_id, listed=[pin], fingerprint="f")
        assert isinstance(made, tuple)
        drop.variant_ids["pin"] = made[0][0].variants[0].variant_id

        async def are_told() -> bool:
            return await drop.fields("prices") == {"mug": "-900", "cap": "2500", "pin": "50"}

        await until(are_told)
    assert await drop.left() == {"mug": 10, "cap": 10, "pin": 3}
    await drop.check()
    assert (await audit(stores.redis, stores.postgres, settle_s=5)).verdict == "true"


# Ticks ----------------------------------------------------------------------------------------------------------------


async def test_a_worker_sweeps_lapsed_holds_of_units(stores_any: Stores) -> None:
    drop = await open_drop(stores_any, hold_s=1)
    async with shift(stores_any):
        assert isinstance(await drop.hold(mug=4), stock.Held)
        assert await drop.left() == {"mug": 6, "cap": 10}

        async def units_are_free() -> bool:
            return await drop.left() == {"mug": 10, "cap": 10}

        await until(units_are_free)
    await drop.check()


async def test_a_worker_writes_a_lost_drop_from_its_orders(stores: Stores) -> None:
    drop = await open_drop(stores)
    await drop.order(status="PAID", mug=2)
    held = await drop.order(by="bob", cap=3)
    async with shift(stores):
        await until(partial(owns, stores, drop))
        await lose(stores)

        async def stands_again() -> bool:
            return (await drop.sale()).epoch > 1 and (await drop.sale()).store_state == "open"

        await until(stands_again)
        assert await drop.left() == {"mug": 8, "cap": 7}
        assert (await drop.find(held)).state == "HELD"
    await drop.check()


async def test_units_freed_for_a_list_that_is_over_are_the_publics(stores: Stores) -> None:
    drop = await open_drop(stores)
    keys = (await drop.sale()).keys
    await stores.redis.hset(keys.stock, mapping=dict.fromkeys(drop.variant_ids.values(), 7))  # type: ignore[misc]
    await stores.redis.hset(keys.stock_freed, mapping=dict.fromkeys(drop.variant_ids.values(), 3))  # type: ignore[misc]
    reply = await sales.look(stores.gate, await drop.sale())
    assert isinstance(reply, sales.Checkpoint)
    assert reply.stranded == 2
    async with shift(stores):

        async def are_given_back() -> bool:
            return (await drop.left(), await drop.freed()) == ({"mug": 10, "cap": 10}, {})

        await until(are_given_back)
    await drop.check()


async def owns(stores: Stores, drop: Drop) -> bool:
    return drop.sale_id in await owners(stores)
