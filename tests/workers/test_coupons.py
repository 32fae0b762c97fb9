"""A worker opens sources of coupons, brings their issues to Postgres, and keeps both stores alike."""

import signal

from engine import coupons, rebuild
from engine.coupons import CouponsGone, Issued
from engine.stores.connections import Stores
from engine.stores.outbox import CHANNEL
from engine.waiters import Waiters
from tests.engine.coupon_sources import CouponShop, new_coupons, open_coupons
from tests.engine.test_rebuild import lose
from tests.workers.working import lapse_leases, owners, process, shift, until


async def is_open(shop: CouponShop, epoch: int) -> bool:
    row = await shop.row()
    return (row["store_state"], row["epoch"]) == ("open", epoch)


async def has(shop: CouponShop, count: int) -> bool:
    return len(await shop.owners()) == count


async def test_a_new_source_is_opened_and_its_issues_become_rows(stores_any: Stores) -> None:
    shop = await new_coupons(stores_any, 3)
    async with shift(stores_any):
        await until(lambda: is_open(shop, 1))
        await shop.issued("ann", "bob")
        await until(lambda: has(shop, 2))
        await shop.issued("cat")
        await until(lambda: has(shop, 3))
    assert await shop.issue("dan") == CouponsGone()
    assert (await shop.coupon()).status == "SOLD_OUT"
    await shop.check()


async def test_whoever_waits_for_an_issue_is_woken_by_its_commit(stores: Stores) -> None:
    shop = await open_coupons(stores)
    async with shift(stores), Waiters(stores.postgres, stores.listener).listening() as waiters:
        issued = await shop.issue("ann")
        assert isinstance(issued, Issued)
        user_coupon_id = coupons.user_coupon_id_of(shop.coupon_id, await shop.person("ann"))
        mine = await waiters.issued(await shop.sale(), user_coupon_id, issued.n, within_s=20)
        assert mine is not None
        assert (mine.user_coupon_id, mine.status) == (user_coupon_id, "AVAILABLE")


async def test_an_issue_that_never_comes_is_waited_for_no_longer_than_was_said(stores: Stores) -> None:
    shop = await open_coupons(stores)
    async with Waiters(stores.postgres, stores.listener).listening() as waiters:
        await stores.redis.execute_command("PUBLISH", CHANNEL, f"{shop.coupon_id} 1 5")
        assert await waiters.issued(await shop.sale(), "5" * 32, 1, within_s=0.3) is None


async def test_a_lost_source_is_noticed_and_written_anew(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 3)
    async with shift(stores_any):
        await shop.issued("ann", "bob")
        await until(lambda: has(shop, 2))
        await lose(stores_any)
        await until(lambda: is_open(shop, 2))
        assert await shop.issue("ann") == Issued(0, 1)
        await shop.issued("cat")
        await until(lambda: has(shop, 3))
    await shop.check()


async def test_a_frozen_source_and_one_left_closed_are_written_anew(stores: Stores) -> None:
    shop = await open_coupons(stores)
    sale = await shop.sale()
    await rebuild.CLOSE(stores.gate, sale.keys, epoch=sale.epoch)
    async with shift(stores):
        await until(lambda: is_open(shop, 2))
        assert await rebuild.demand(stores, shop.sale_id, reason="because")
        await until(lambda: is_open(shop, 3))


async def test_a_source_that_gave_out_too_many_is_put_right(stores: Stores) -> None:
    shop = await open_coupons(stores, 2)
    await stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "quantity", "9")
    async with shift(stores):
        await shop.issued("ann", "bob", "cat", "dan")
        await until(lambda: is_open(shop, 2))
    await shop.check()
    assert len(await shop.remembered()) == 2


async def test_terms_that_only_the_row_has_reach_the_store(stores: Stores) -> None:
    shop = await open_coupons(stores)
    # The process died before it told the store.
    await stores.postgres.execute("UPDATE coupons SET status = 'PAUSED', version = version + 1")
    await stores.postgres.execute("UPDATE sales SET version = version + 1, updated_at = now()")
    async with shift(stores):

        async def told() -> bool:
            return await shop.term("status") == "PAUSED"

        await until(told)


async def test_the_source_of_a_killed_worker_is_taken_over(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 10)
    async with process(stores_any) as worker:
        await until(lambda: _is_owned(shop))
        await shop.issued("ann")
        await until(lambda: has(shop, 1))
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await shop.issued("bob", "cat")
        async with shift(stores_any, "next"):
            await lapse_leases(stores_any)
            await until(lambda: has(shop, 3))
    await shop.check()


async def _is_owned(shop: CouponShop) -> bool:
    return shop.sale_id in await owners(shop.stores)
