"""A worker brings what is freed to those who wait, whichever worker it is, and ends a list that nobody waits in."""

from functools import partial

from engine import ids, seat_waiting_lists, seats
from engine.shelf import Wish
from engine.stores.connections import Stores
from engine.waiting_lists import Entry
from tests.goods import EACH, PRICES, open_goods
from tests.shop import Shop, open_shop
from tests.workers.working import lapse_leases, process, shift, until


async def join(shop: Shop, name: str, quantity: int = 1) -> Entry:
    entry = await seat_waiting_lists.join(
        shop.stores,
        shop.book,
        await shop.sale(),
        entry_id=ids.derive("entry", name),
        user_id=await shop.person(name),
        wish=Wish(quantity=quantity),
    )
    assert isinstance(entry, Entry), entry
    return entry


async def statuses(shop: Shop) -> list[str]:
    return [status for (status,) in await shop.rows("SELECT status FROM waiting_list_entries ORDER BY entry_no")]


async def test_from_a_freed_seat_to_a_ticket_and_the_next_to_the_public(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    hold_ids = [await shop.hold(f"A-1-{at}", by="holder") for at in range(1, 7)]
    ann, ben = await join(shop, "ann"), await join(shop, "ben", quantity=2)
    async with shift(stores_any):
        await shop.release(hold_ids[0])
        await until(lambda: _are(shop, ["OFFERED", "WAITING"]))
        assert isinstance(await shop.confirm(await shop.authorise(ann.hold_id)), seats.Confirmed)
        await until(lambda: _are(shop, ["TAKEN", "WAITING"]))

        await shop.release(hold_ids[3])
        await shop.release(hold_ids[4])
        await until(lambda: _are(shop, ["TAKEN", "OFFERED"]))
        await shop.release(ben.hold_id)
        await until(lambda: _are(shop, ["TAKEN", "LAPSED"]))

        async def is_public() -> bool:
            return await shop.term("waiting_list") == "0" and not {"A-1-4", "A-1-5"} & (await shop.states()).keys()

        await until(is_public)
    await shop.drain()
    await shop.check()


async def test_a_worker_that_is_killed_is_followed_by_another(stores: Stores) -> None:
    shop = await open_shop(stores)
    hold_ids = [await shop.hold(f"A-1-{at}", by="holder") for at in range(1, 7)]
    waiting = [await join(shop, f"person {at}") for at in range(6)]
    for turn in range(3):
        async with process(stores) as worker:
            await shop.release(hold_ids[2 * turn])
            await shop.release(hold_ids[2 * turn + 1])
            # Killed at whatever moment that is: before, between or after the two offers.
            await until(partial(_offered, shop, 2 * turn + 1))
            worker.kill()
            await worker.wait()
        await lapse_leases(stores)
    async with shift(stores):
        await until(lambda: _are(shop, ["OFFERED"] * 6))
    offered = [line.seat_no for entry in waiting for line in (await shop.find(entry.hold_id)).lines]
    assert sorted(offered) == [f"A-1-{at}" for at in range(1, 7)]
    await shop.drain()
    await shop.check()


async def _are(shop: Shop, expected: list[str]) -> bool:
    return await statuses(shop) == expected


async def _offered(shop: Shop, count: int) -> bool:
    return (await statuses(shop)).count("OFFERED") >= count


# Units ----------------------------------------------------------------------------------------------------------------


async def test_from_a_restock_to_an_order_and_the_next_to_the_public(stores_any: Stores) -> None:
    goods = await open_goods(stores_any)
    await goods.hold(by="holder", mug=EACH)
    ann = await goods.join("ann", mug=2)
    await goods.join("ben", mug=1)

    async def are(*expected: str) -> bool:
        return list((await goods.waiting()).values()) == list(expected)

    async with shift(stores_any):
        await goods.restock("mug", 2)
        await until(lambda: are("OFFERED", "WAITING"))
        assert isinstance(await goods.confirm(await goods.authorise(ann.hold_id, by="ann")), seats.Confirmed)
        await until(lambda: are("TAKEN", "WAITING"))

        await goods.restock("mug", 4)
        await until(lambda: are("TAKEN", "OFFERED"))

        async def is_public() -> bool:
            return await goods.term("waiting_list") == "0" and (await goods.left())["mug"] == 3

        await until(is_public)


async def test_a_worker_that_is_killed_between_offers_of_units_is_followed_by_another(stores: Stores) -> None:
    goods = await open_goods(stores)
    await goods.hold(by="holder", mug=EACH)
    waiting = [await goods.join(f"person {at}", mug=1) for at in range(6)]

    async def offered(count: int) -> bool:
        return list((await goods.waiting()).values()).count("OFFERED") >= count

    for turn in range(3):
        async with process(stores) as worker:
            await goods.restock("mug", 2)
            # Killed at whatever moment that is: before, between or after the two offers.
            await until(partial(offered, 2 * turn + 1))
            worker.kill()
            await worker.wait()
        await lapse_leases(stores)
    async with shift(stores):
        await until(partial(offered, 6))
    assert [(await goods.offer_of(entry)).amount for entry in waiting] == [PRICES["mug"]] * 6
    assert (await goods.left())["mug"] == 0
    await goods.drain()
    assert await goods.freed() == {}
