"""Sweeps: what a pass leaves is taken up at once."""

from engine import ids
from engine.stores.connections import Stores
from tests.goods import open_goods
from tests.shop import Selling, open_shop
from workers.seats import SWEPT_AT_ONCE, sweep


async def test_every_record_past_the_window_is_forgotten_however_many_there_are(stores: Stores) -> None:
    shop = await open_shop(stores)
    for number in range(2 * SWEPT_AT_ONCE + 1):
        await shop.release(await shop.hold("A-1-1", by=ids.derive("person", str(number))))
    await check_forgotten(shop)


async def test_so_it_is_with_orders(stores: Stores) -> None:
    goods = await open_goods(stores)
    for number in range(2 * SWEPT_AT_ONCE + 1):
        by = ids.derive("person", str(number))
        await goods.release(await goods.hold(by=by, mug=1), by=by)
    await check_forgotten(goods)


async def check_forgotten(shop: Selling) -> None:
    """Age all that ended, and sweep for as long as there is more."""
    keys = (await shop.sale()).keys
    ended = await shop.stores.redis.zrange(keys.ended, 0, -1)
    assert len(ended) == 2 * SWEPT_AT_ONCE + 1
    await shop.stores.redis.zadd(keys.ended, dict.fromkeys(ended, 1))
    while await sweep(shop.stores, await shop.sale()):
        pass
    assert await shop.stores.redis.zcard(keys.ended) == 0
    assert await shop.stores.redis.hlen(keys.holds) == 0  # type: ignore[misc]  # the library says it may not be awaited
