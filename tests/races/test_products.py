"""Changes of products on their way to the store, each beside a simpler rule that loses, repeats or passes over one."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from engine import audit, ids, products, stock
from engine.products import TELL, NewProduct, NewVariant, Product, Told
from engine.stores.connections import Stores
from engine.stores.replies import Unavailable
from engine.stores.scripts import Script
from tests.drops import EACH, PRICES, Drop, open_drop
from tests.engine.test_rebuild import Crash, StoppedRedis, lose, with_redis
from tests.races.desks import without

Part = dict[str, Any]

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
async def drop(stores: Stores) -> Drop:
    """Ten mugs and ten caps, on sale."""
    return await open_drop(stores)


async def tell(drop: Drop, stores: Stores | None = None) -> Any:
    """Tell the store what changed, as the API does after its commit and the owner when it finds the store behind."""
    stores = stores or drop.stores
    return await products.tell(stores.gate, stores.postgres, await drop.sale())


async def edit(drop: Drop, name: str = "mug", **changes: object) -> None:
    """Change a product in its row; the store hears nothing yet."""
    product = await products.find(drop.stores.postgres, drop.product_ids[name])
    assert product is not None
    edited = await products.edit(
        drop.stores.postgres, product_id=product.product_id, version=product.version, changes=changes
    )
    assert isinstance(edited, Product)


async def restock(drop: Drop, quantity: int, name: str = "mug") -> None:
    """More units in the row; the store hears nothing yet."""
    restocked = await products.restock(
        drop.stores.postgres,
        restock_id=ids.random_id(),
        variant_id=drop.variant_ids[name],
        quantity=quantity,
        api_key_id=await api_key(drop.stores),
    )
    assert isinstance(restocked, tuple), restocked


async def api_key(stores: Stores) -> str:
    key_id = ids.derive("key")
    await stores.postgres.execute(
        "INSERT INTO api_keys (api_key_id, key_hash, name, scopes) VALUES ($1, '', '', '{}') ON CONFLICT DO NOTHING",
        key_id,
    )
    return key_id


async def part(drop: Drop) -> Part:
    """What a process that reads now would tell the store: it is on its way from here on."""
    told_no = int((await drop.fields("sale"))["product_changes"])
    changed = await products.SQL.list_changed.fetch(drop.stores.postgres, drop.sale_id, told_no, 500)
    rows = [(row["variant_id"], products.told_price(row), row["initial_quantity"]) for row in changed]
    return {
        "after": told_no,
        "change_no": changed[-1]["change_no"],
        "rows": tuple([value for row in rows for value in row]),
    }


async def deliver(drop: Drop, part: Part, script: Script[Any] = TELL) -> Any:
    sale = await drop.sale()
    return await script(drop.stores.gate, sale.keys, epoch=sale.epoch, **part)


def simpler(folder: Path, rule: str, instead: str) -> Script[Told | Unavailable]:
    return without(folder, "products/tell", Told | Unavailable, rule, instead=instead)


async def proved(drop: Drop) -> str:
    await drop.check()
    return (await audit.audit(drop.stores.redis, drop.stores.postgres, settle_s=0)).verdict


# Two changes that cross -----------------------------------------------------------------------------------------------


async def test_an_edit_is_not_undone_by_an_older_one_that_comes_late(drop: Drop, tmp_path: Path) -> None:
    await edit(drop, price=1_500)
    late = await part(drop)
    await edit(drop, price=1_800)
    assert await deliver(drop, await part(drop)) == Told(4)

    careless = simpler(tmp_path, "after > told_no or change_no <= told_no", "after > told_no")
    assert await deliver(drop, late, careless) == Told(3)
    assert (await drop.fields("prices"))["mug"] == "1500"

    await drop.rebuild()
    assert await deliver(drop, late) == Told(4)
    assert (await drop.fields("prices"))["mug"] == "1800"
    assert await proved(drop) == "true"


async def test_two_restocks_that_cross_are_both_counted_once(drop: Drop, tmp_path: Path) -> None:
    await restock(drop, 5)
    first = await part(drop)
    await restock(drop, 7)
    both = await part(drop)
    simplest = simpler(
        tmp_path, 'tonumber(total) - tonumber(redis.call("HGET", stock_total, variant_id) or "0")', "tonumber(total)"
    )
    for each in (first, both):
        await deliver(drop, each, simplest)
    assert (await drop.left())["mug"] > EACH + 12

    await drop.rebuild()
    await restock(drop, 5)
    first = await part(drop)
    await restock(drop, 7)
    both = await part(drop)
    for each in (first, both, first, both):
        await deliver(drop, each)
    assert (await drop.left())["mug"] == EACH + 24
    assert await proved(drop) == "true"


async def test_a_change_that_the_store_lost_is_told_again(drop: Drop, tmp_path: Path) -> None:
    """A failover can take back what was answered: whoever goes on from there must not pass over it."""

    async def lose_a_change_before_the_next() -> Part:
        before = await drop.fields("prices")
        told_no = (await drop.fields("sale"))["product_changes"]
        await edit(drop, "mug", price=random.randint(2_000, 9_000))
        assert isinstance(await tell(drop), Told)
        await edit(drop, "cap", status="STOPPED")
        next_part = await part(drop)
        keys = (await drop.sale()).keys
        await drop.stores.redis.execute_command("HSET", keys.prices, drop.variant_ids["mug"], before["mug"])
        await drop.stores.redis.execute_command("HSET", keys.sale, "product_changes", told_no)
        return next_part

    careless = simpler(tmp_path, "after > told_no or change_no <= told_no", "change_no <= told_no")
    await deliver(drop, await lose_a_change_before_the_next(), careless)
    await tell(drop)
    assert (await drop.fields("prices"))["mug"] == str(PRICES["mug"])
    assert (await audit.audit(drop.stores.redis, drop.stores.postgres, settle_s=0)).verdict == "false"

    await drop.rebuild()
    await edit(drop, "cap", status="ON_SALE")
    await tell(drop)
    next_part = await lose_a_change_before_the_next()
    assert await deliver(drop, next_part) == Told(next_part["after"] - 1)
    await tell(drop)
    assert await proved(drop) == "true"


async def test_whatever_crosses_in_whatever_order_all_of_it_arrives_once(drop: Drop) -> None:
    draw = random.Random(11)
    on_the_way: list[Part] = []
    restocked = 0
    for _ in range(60):
        if draw.random() < 0.5:
            restocked += 3
            await restock(drop, 3)
        else:
            await edit(drop, draw.choice(("mug", "cap")), price=draw.randint(1, 9_000))
        if draw.random() < 0.7:
            on_the_way.append(await part(drop))
        for late in draw.sample(on_the_way, min(len(on_the_way), draw.randint(0, 3))):
            await deliver(drop, late)
    assert isinstance(await tell(drop), Told)
    for late in on_the_way:
        await deliver(drop, late)
    assert await drop.left() == {"mug": EACH + restocked, "cap": EACH}
    assert await proved(drop) == "true"


@pytest.mark.timeout(120)
async def test_units_that_come_while_others_are_held_are_neither_lost_nor_made(drop: Drop) -> None:
    """The rule that writes what Postgres says is left makes units of what is held."""
    assert isinstance(await drop.hold(mug=4), stock.Held)
    await restock(drop, 5)
    [(left,)] = await drop.rows("SELECT quantity FROM product_variants WHERE variant_id = $1", drop.variant_ids["mug"])
    assert left == EACH + 5  # and four of them are held
    await tell(drop)
    assert (await drop.left())["mug"] == EACH + 1

    async def restock_at_once(_: int) -> None:
        await restock(drop, 2)
        await tell(drop)

    async def buy(n: int) -> int:
        return int(isinstance(await drop.hold(by=f"buyer {n}", mug=1), stock.Held))

    for n in range(40):
        await drop.person(f"buyer {n}")
    held, _ = await asyncio.gather(
        asyncio.gather(*(buy(n) for n in range(40))), asyncio.gather(*(restock_at_once(n) for n in range(5)))
    )
    assert (await drop.left())["mug"] == EACH + 1 + 10 - sum(held)
    assert await drop.fields("stock_total") == {"mug": str(EACH + 15), "cap": str(EACH)}
    await drop.check()


# Crashes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_who_dies_between_the_row_and_the_store_leaves_a_change_that_is_told_later(
    drop: Drop, *, after: bool
) -> None:
    for crash_at in (1, 2):
        await restock(drop, 5)
        await edit(drop, price=1_000 + crash_at)
        redis = StoppedRedis(drop.stores.redis, crash_at=crash_at, after=after)
        with pytest.raises(Crash):
            await tell(drop, with_redis(drop.stores, redis))
        report = await audit.audit(drop.stores.redis, drop.stores.postgres, settle_s=0)
        assert report.verdict == ("true" if crash_at == 2 and after else "unknown")
        assert isinstance(await tell(drop), Told)
        assert (await drop.left())["mug"] == EACH + 5 * crash_at
        assert (await drop.fields("prices"))["mug"] == str(1_000 + crash_at)
        assert await proved(drop) == "true"


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_large_import_goes_on_where_it_stopped(
    drop: Drop, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    monkeypatch.setattr(products, "TOLD_AT_ONCE", 5)
    sizes = tuple([NewVariant(size=str(size), stock=2) for size in range(3)])
    listed = [NewProduct(name=f"P{n}", category="Things", price=n, variants=sizes) for n in range(10)]
    made = await products.create(
        drop.stores.postgres, key_id=ids.random_id(), sale_id=drop.sale_id, listed=listed, fingerprint=""
    )
    assert isinstance(made, tuple)
    parts = 0
    while True:
        parts += 1
        redis = StoppedRedis(drop.stores.redis, crash_at=2, after=after)
        try:
            await tell(drop, with_redis(drop.stores, redis))
        except Crash:
            written = len(await drop.fields("prices")) - len(PRICES)
            assert written == min(30, 6 * parts) * after  # of no product a part
            if not after:
                await tell(drop)
        else:
            break
    assert await drop.fields("stock_total") == {
        **{name: str(EACH) for name in PRICES},
        **{each.variant_id: "2" for product in made[0] for each in product.variants},
    }
    assert (await audit.audit(drop.stores.redis, drop.stores.postgres, settle_s=0)).verdict == "true"


# A copy that is written anew ------------------------------------------------------------------------------------------


async def test_a_copy_that_is_written_anew_has_a_change_whole_or_not_at_all(drop: Drop) -> None:
    """A restock waits for a rebuild that has begun its epoch, and a rebuild for a restock that is not committed."""
    await lose(drop.stores)
    await restock(drop, 5)
    async with drop.stores.postgres.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await products.SQL.restock.execute(connection, drop.variant_ids["mug"], 7)
        await products.SQL.number_changes.execute(connection, drop.sale_id, [drop.product_ids["mug"]])
        writing = asyncio.create_task(drop.rebuild())
        while not await drop.stores.postgres.fetchval(WAITING):
            assert not writing.done()
        await transaction.commit()
    await writing
    assert await drop.fields("stock_total") == {"mug": str(EACH + 12), "cap": str(EACH)}
    assert (await drop.fields("sale"))["product_changes"] == "4"
    assert await tell(drop) == Told(4)
    assert await proved(drop) == "true"


async def test_what_was_read_for_an_older_copy_changes_nothing_in_the_next(drop: Drop) -> None:
    await restock(drop, 5)
    late = await part(drop)
    await drop.rebuild()
    assert await deliver(drop, late) == Told(late["change_no"])
    assert (await drop.left())["mug"] == EACH + 5
    assert await proved(drop) == "true"


# What a waiting list has ----------------------------------------------------------------------------------------------


async def test_while_somebody_waits_what_comes_is_the_waiting_lists(drop: Drop) -> None:
    await drop.stores.redis.execute_command("HSET", (await drop.sale()).keys.sale, "waiting_list", 1)
    await restock(drop, 5)
    await tell(drop)
    assert (await drop.left(), await drop.freed()) == ({"mug": EACH, "cap": EACH}, {"mug": 5})
    await drop.check()
