"""Restocked units, those who wait for them, the public, and two owners at once: each race with a control that loses."""

import asyncio
from typing import Any

import pytest

from engine import ids, seats, stock, variant_waiting_lists, waiting_lists
from engine.stores.connections import Stores
from tests.goods import EACH, Goods, open_goods


@pytest.fixture
async def goods(stores_any: Stores) -> Goods:
    """Mugs, all of which are held."""
    goods = await open_goods(stores_any)
    await goods.hold(by="holder", mug=EACH)
    return goods


async def grab(goods: Goods, at: int) -> bool:
    """One of the public tries to hold a mug."""
    held = await stock.hold(
        goods.stores.gate,
        await goods.sale(),
        hold_id=ids.derive("grab", str(at)),
        buyer_id=ids.derive("public", str(at)),
        fingerprint="",
        units=[stock.Units(goods.variants["mug"], 1)],
    )
    return isinstance(held, stock.Held)


async def mugs_offered(goods: Goods, *entries: waiting_lists.Entry) -> int:
    """How many mugs these were offered."""
    return sum([line.quantity for entry in entries for line in (await goods.offer_of(entry)).lines])


# Against the public ---------------------------------------------------------------------------------------------------


async def test_control_offering_what_is_left_after_a_restock_loses_it_to_the_public(goods: Goods) -> None:
    await goods.restock("mug", 3)  # nobody told the store that somebody waits
    grabbed = await asyncio.gather(*[grab(goods, at) for at in range(8)])
    held = await goods.try_hold(ids.random_id(), by="ann", mug=3)
    assert isinstance(held, stock.SoldOut)
    assert sum(grabbed) == 3


async def test_what_is_restocked_while_somebody_waits_is_never_the_publics(goods: Goods) -> None:
    waiting = [await goods.join(name, mug=3) for name in ("ann", "ben", "cid")]
    is_over = False

    async def keep_trying(at: int) -> int:
        grabbed, turn = 0, 0
        while not is_over:
            turn += 1
            grabbed += await grab(goods, at * 1_000_000 + turn)
        return grabbed

    async def restock_and_serve() -> None:
        nonlocal is_over
        for _ in range(9):
            await goods.restock("mug", 1)
            await goods.serve()
        is_over = True

    public = [asyncio.create_task(keep_trying(at)) for at in range(3)]
    await restock_and_serve()
    assert await asyncio.gather(*public) == [0] * 3
    assert await mugs_offered(goods, *waiting) == 9


# Two owners at once ---------------------------------------------------------------------------------------------------


async def test_control_offers_under_new_ids_are_made_twice(goods: Goods) -> None:
    await goods.restock("mug", 2)
    all_have_looked = asyncio.Barrier(2)

    async def serve_naively() -> Any:
        assert (await goods.left())["mug"] == 2
        await all_have_looked.wait()
        return await goods.try_hold(ids.random_id(), by="ann", mug=1)

    await goods.person("ann")
    answers = await asyncio.gather(serve_naively(), serve_naively())
    assert [type(answer) for answer in answers] == [stock.Held, stock.Held]  # one who waits has two offers


async def test_two_owners_offer_each_unit_once_and_to_each_who_waits_once(goods: Goods) -> None:
    waiting = [await goods.join(f"person {at}", mug=1 + at % 2) for at in range(8)]
    sale, is_over = await goods.sale(), False

    async def own() -> None:
        while not is_over:
            await variant_waiting_lists.serve(goods.stores, sale)

    async def restock() -> None:
        nonlocal is_over
        for _ in range(4):
            await goods.restock("mug", 3)
        while await goods.freed():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        is_over = True

    async with asyncio.timeout(30):
        await asyncio.gather(own(), own(), own(), restock())
    assert await mugs_offered(goods, *waiting) == 12
    assert set((await goods.waiting()).values()) == {"OFFERED"}
    await goods.drain()
    [(orders,)] = await goods.rows("SELECT count(*) FROM orders WHERE user_id <> $1", goods.people["holder"])
    assert orders == 8


# Leaving and being offered in one moment ------------------------------------------------------------------------------


async def test_who_leaves_while_being_offered_has_nothing_and_nothing_is_lost(goods: Goods) -> None:
    for turn in range(10):
        entry = await goods.join(f"person {turn}", mug=1)
        await goods.restock("mug", 1)
        stores, book = goods.stores, goods.book
        leaving = waiting_lists.leave(
            stores.gate, stores.postgres, book, entry_id=entry.entry_id, user_id=entry.user_id
        )
        await asyncio.gather(goods.serve(), leaving)
        found = await stock.find(stores.gate, await goods.sale(), hold_id=entry.hold_id)
        assert not isinstance(found, stock.Hold) or found.state == "ENDED"
    while (await goods.sale()).waiting_list:
        await goods.serve()
    assert ((await goods.left())["mug"], await goods.freed()) == (10, {})
    await goods.drain()
    assert isinstance(await stock.expire(goods.stores.gate, await goods.sale(), most=10), seats.Expired)
