"""Redis forgets sales of units: no unit is sold twice, no money kept for none, no coupon lost."""

import asyncio
import random
from typing import Any

import pytest

from engine import authorisations
from engine.authorisations import Authorisation
from engine.payments import Payment
from engine.seats import Abandoned, Confirmed
from engine.stores.connections import Stores, StoreUnavailable
from engine.stores.keys import SaleKeys
from tests.engine.test_discounts import authorised, coupon, standing
from tests.engine.test_rebuild import lose
from tests.goods import EACH, PRICES, Goods, open_goods, statuses
from tests.races.test_failover import Copy, is_rebuilt, settled
from tests.workers.working import shift, until

MUG = PRICES["mug"]


async def with_coupon(goods: Goods, *, by: str, **units: int) -> tuple[Authorisation, str]:
    """Hold, pay with a coupon, and confirm."""
    named = await coupon(goods, of=by)
    request = await goods.begin_payment(await goods.hold(by=by, **units), by=by)
    assert (await authorised(goods, request, named)).status == "AUTHORISED"
    assert isinstance(await goods.confirm(request), Confirmed)
    return request, named


async def test_two_orders_for_the_last_units_after_redis_forgot_the_first_stands_and_the_other_is_undone(
    stores: Stores,
) -> None:
    goods = await open_goods(stores)
    await goods.hold(by="early", cap_s=1)
    await goods.drain()
    behind = await Copy.of(goods)
    first, hers = await with_coupon(goods, by="ann", mug=EACH)
    await goods.drain()
    await behind.promote()
    second, his = await with_coupon(goods, by="bob", mug=1, cap_l=2)
    async with shift(stores):
        await until(lambda: is_rebuilt(goods, 2))
        await until(lambda: settled(goods))
    assert await statuses(goods, first, second) == ["SUCCESS", "VOIDED"]
    assert await goods.order(second.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    assert (await standing(goods, hers), await standing(goods, his)) == (("USED", True), ("AVAILABLE", False))
    assert (await goods.set_aside("ann"), await goods.set_aside("bob")) == (0, 0)
    assert await goods.left() == {"mug": 0, "cap_s": EACH - 1, "cap_l": EACH}
    await give_up(goods)
    await goods.check()


async def test_an_order_that_redis_forgot_before_it_was_sold_gives_way_to_the_one_that_was(stores: Stores) -> None:
    """Its funds and its coupon had been set aside first, and the last unit was sold to somebody else since."""
    goods = await open_goods(stores)
    await goods.buy(by="early", mug=EACH - 1)
    await goods.drain()
    first, second = await goods.rival(by="ann", mug=1), await goods.buy(by="bob", mug=1)
    named = await coupon(goods)
    assert (await authorised(goods, first, named)).status == "AUTHORISED"
    await goods.drain()
    await goods.rebuild()
    assert await statuses(goods, first, second) == ["VOIDED", "SUCCESS"]
    assert await standing(goods, named) == ("AVAILABLE", False)
    assert await goods.set_aside("ann") == 0
    await goods.check()


async def give_up(goods: Goods) -> None:
    """Give back what is held still."""
    for order_id in await goods.stores.redis.zrange(SaleKeys(goods.sale_id).deadlines, 0, -1):
        by = await goods.rows("SELECT user_id FROM orders WHERE order_id = $1", order_id.decode())
        [name] = [name for name, user_id in goods.people.items() if by == [(user_id,)]]
        await goods.release(order_id.decode(), by=name)
    await goods.drain()


async def test_of_confirm_and_abandon_in_one_moment_exactly_one_wins_and_the_coupon_with_it(stores: Stores) -> None:
    goods = await open_goods(stores)
    people = [f"buyer {at}" for at in range(EACH)]
    requests = []
    for by in people:
        request = await goods.begin_payment(await goods.hold(by=by, mug=1), by=by)
        assert (await authorised(goods, request, await coupon(goods, of=by))).status == "AUTHORISED"
        requests.append(request)
    doors = [door for request in requests for door in (goods.confirm(request), goods.abandon(request))]
    random.shuffle(doors)
    await asyncio.gather(*doors)
    await goods.drain()
    ended = await statuses(goods, *requests)
    assert set(ended) <= {"SUCCESS", "VOIDED"}
    await give_up(goods)
    await goods.check()
    assert (await goods.left())["mug"] == EACH - ended.count("SUCCESS")
    assert await goods.rows("SELECT count(*) FROM user_coupons WHERE status = 'USED'") == [(ended.count("SUCCESS"),)]
    assert await goods.rows("SELECT count(*) FROM user_coupons WHERE status = 'RESERVED'") == [(0,)]


async def test_a_confirmed_payment_is_not_abandoned_and_the_reverse(stores: Stores) -> None:
    goods = await open_goods(stores)
    request = await goods.authorise(await goods.hold(mug=1))
    first, second = await asyncio.gather(goods.confirm(request), goods.abandon(request))
    assert isinstance(first, Confirmed) != isinstance(second, Abandoned)


@pytest.fixture
def seed() -> int:
    """What made the choices of this run; printed where the run fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with the failure
    return seed


class Crowd:
    """People who order some units at random, half of them with their only coupon, until everybody has tried thrice."""

    def __init__(self, goods: Goods, seed: int, people: int) -> None:
        self.goods = goods
        self.people = [f"buyer {at}" for at in range(people)]
        self.requests: list[Authorisation] = []
        self.done = 0
        self._random = random.Random(seed)

    async def buy_all(self) -> None:
        """Everybody at once."""
        await asyncio.gather(*[self._buy(by) for by in self.people])

    async def _buy(self, by: str) -> None:
        named = await coupon(self.goods, of=by)
        for _ in range(3):
            try:
                await self._try(by, named if self._random.random() < 0.5 else None)
            except (AssertionError, StoreUnavailable):
                await asyncio.sleep(0.005)  # sold out, closed, or lost on the way
            self.done += 1

    async def _try(self, by: str, named: str | None) -> None:
        units: dict[str, Any] = {name: self._random.randint(1, 2) for name in self._random.sample(["mug", "cap_l"], 1)}
        request = await self.goods.begin_payment(await self.goods.hold(by=by, **units), by=by)
        if named is None:
            [payment] = await authorisations.authorise(self.goods.stores.postgres, [request])
        else:
            payment = await authorised(self.goods, request, named)
        assert isinstance(payment, Payment)
        if payment.status == "FAILED":
            await self.goods.abandon(request)
            return
        self.requests.append(request)
        await self.goods.confirm(request)

    async def after(self, tries: int) -> None:
        """Wait until so many have been made."""

        async def reached() -> bool:
            return self.done >= tries

        await until(reached)


async def test_everything_is_lost_in_a_rush_for_goods_with_coupons(stores: Stores, seed: int) -> None:
    goods = await open_goods(stores)
    crowd = Crowd(goods, seed, people=8)
    for by in crowd.people:
        await goods.person(by)
    async with shift(stores):
        buying = asyncio.create_task(crowd.buy_all())
        await crowd.after(8)
        await lose(stores)
        await until(lambda: is_rebuilt(goods, 2))
        await buying
        await until(lambda: settled(goods))
    ended = await statuses(goods, *crowd.requests)
    assert set(ended) <= {"SUCCESS", "VOIDED"}
    await give_up(goods)
    await goods.check()
    paid = await goods.rows("SELECT count(*) FROM payments WHERE status = 'SUCCESS' AND user_coupon_id IS NOT NULL")
    assert await goods.rows("SELECT count(*) FROM user_coupons WHERE status = 'USED'") == paid
    assert await goods.rows("SELECT count(*) FROM user_coupons WHERE status = 'RESERVED'") == [(0,)]
