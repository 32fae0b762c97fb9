"""Orders: what Postgres says of units that are held, paid and given back, in step with Redis."""

import asyncio
from typing import Any

import pytest

from engine import ids, orders, reconciliation
from engine.orders import Order
from engine.payments import Tender
from engine.products import Labels
from engine.sales import Sale
from engine.stores.connections import Stores
from engine.stores.outbox import BadEntry, Entry
from tests.engine.test_till import drained_until, opened_till
from tests.goods import EACH, PRICES, Goods, authorise, confirmed, open_goods, statuses


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open."""
    return await open_goods(stores)


async def find(goods: Goods, order_id: str, *, by: str = "ann") -> Any:
    postgres = goods.stores.postgres
    await goods.book.refresh()
    return await orders.find(
        goods.stores.gate, postgres, goods.book, Labels(postgres), order_id=order_id, user_id=await goods.person(by)
    )


async def pay(goods: Goods, till: Any, order_id: str, *, by: str = "ann", key: str = "a key", **more: Any) -> Any:
    return await till.pay(
        await goods.sale(),
        payment_id=ids.derive("payment", order_id, key),
        hold_id=order_id,
        user_id=await goods.person(by),
        **{"fingerprint": "f" * 16} | more,
    )


# The row --------------------------------------------------------------------------------------------------------------


async def test_the_journal_brings_a_row_with_its_lines(goods: Goods) -> None:
    order_id = await goods.hold(mug=2, cap_l=1)
    await goods.drain()
    assert await goods.order(order_id) == ("PENDING", None)
    assert await goods.lines(order_id) == {"mug": (2, "HELD", 0), "cap_l": (1, "HELD", 0)}
    assert await goods.rows("SELECT original_amount, discount_amount, total_amount FROM orders") == [(4_900, 0, 4_900)]


async def test_an_order_is_found_before_and_after_it_has_a_row(goods: Goods) -> None:
    order_id = await goods.hold(mug=2, cap_l=1)
    before = await find(goods, order_id)
    assert isinstance(before, Order)
    assert [(line.name, line.size, line.quantity, line.total_price) for line in before.lines] == [
        ("Mug", None, 2, 2_400),
        ("Cap", "L", 1, 2_500),
    ]
    await goods.drain()
    after = await find(goods, order_id)
    assert (after.status, after.total_amount, {line.variant_id for line in after.lines}) == (
        *("PENDING", 4_900),
        {line.variant_id for line in before.lines},
    )
    assert await find(goods, order_id, by="bob") is None


async def test_units_that_are_given_back_leave_the_row_by_what_is_left(goods: Goods) -> None:
    order_id = await goods.hold(mug=5, cap_s=2)
    await goods.release(order_id, mug=1)
    await goods.release(order_id, mug=2, cap_s=2)
    await goods.drain()
    assert await goods.lines(order_id) == {"mug": (2, "HELD", 0)}
    assert await goods.rows("SELECT total_amount FROM orders") == [(2_400,)]
    await goods.release(order_id)
    await goods.drain()
    assert await goods.order(order_id) == ("CANCELLED", "USER")
    assert await goods.lines(order_id) == {"mug": (2, "ENDED", 0)}
    await goods.check()


async def test_what_lapses_expires_and_its_units_are_free(goods: Goods) -> None:
    order_id = await goods.hold(mug=EACH)
    keys = (await goods.sale()).keys
    await goods.stores.redis.zadd(keys.deadlines, {order_id: 1})
    record: bytes = await goods.stores.redis.execute_command("HGET", keys.holds, order_id)
    expires_at_ms = str((await find(goods, order_id)).expires_at.timestamp() * 1000).partition(".")[0]
    aged = record.replace(expires_at_ms.encode(), b"1" * len(expires_at_ms))
    await goods.stores.redis.execute_command("HSET", keys.holds, order_id, aged)
    assert (await find(goods, order_id)).status == "EXPIRED"
    await goods.hold(by="bob", mug=EACH)
    await goods.drain()
    assert await goods.order(order_id) == ("EXPIRED", "EXPIRED")


@pytest.mark.parametrize(
    "fields",
    [
        {"seats": ""},
        {"seats": "0a"},
        {"seats": f"{'0a' * 16}:x"},
        {"prices": "1,2"},
        {"prices": "x"},
        {"seats": None},
    ],
)
async def test_an_entry_that_nobody_can_read_is_told_apart(goods: Goods, fields: dict[str, str | None]) -> None:
    said = {"hold_id": "0c" * 16, "buyer_id": "0b" * 16, "fence": "1", "queue_no": "0", "fingerprint": "f"}
    said |= {"seats": f"{'0a' * 16}:1", "prices": "1", "amount": "1", "created_at_ms": "1", "expires_at_ms": "1"}
    entry = Entry("1-0", 1, 1, "0-0", "held", {k: v for k, v in (said | fields).items() if v is not None})
    async with goods.stores.postgres.acquire() as connection:
        with pytest.raises(BadEntry):
            await orders.record(connection, await goods.sale(), [entry])


# Paying ---------------------------------------------------------------------------------------------------------------


async def test_an_order_is_paid_after_the_commit_and_its_units_are_the_buyers(goods: Goods) -> None:
    order_id = await goods.hold(mug=2, cap_l=1)
    async with opened_till(goods) as till:
        payment = await drained_until(goods, pay(goods, till, order_id))
    assert (payment.status, payment.order_id, payment.reservation_id) == ("SUCCESS", order_id, None)
    assert await goods.order(order_id) == ("PAID", None)
    assert await goods.lines(order_id) == {"mug": (2, "SOLD", 2), "cap_l": (1, "SOLD", 1)}
    assert await goods.left() == {"mug": 8, "cap_s": 10, "cap_l": 9}
    owned = await orders.list_items(goods.stores.postgres, await goods.person("ann"))
    assert sorted((item.name, item.size or "") for item in owned) == [("Cap", "L"), ("Mug", ""), ("Mug", "")]
    assert (await find(goods, order_id)).paid_at is not None
    await goods.check()


async def test_what_costs_nothing_is_paid_without_a_row_of_history(goods: Goods) -> None:
    await goods.stores.redis.hset((await goods.sale()).keys.prices, goods.variants["mug"], "0")  # type: ignore[misc]
    order_id = await goods.hold(mug=3)
    async with opened_till(goods) as till:
        assert (await drained_until(goods, pay(goods, till, order_id))).status == "SUCCESS"
    assert await goods.rows("SELECT count(*) FROM balance_history") == [(0,)]
    await goods.check()


async def test_a_key_always_answers_its_row_and_acts_once(goods: Goods) -> None:
    order_id = await goods.hold(mug=1)
    async with opened_till(goods) as till:
        asked = [pay(goods, till, order_id) for _ in range(20)]
        answers = await drained_until(goods, asyncio.gather(*asked))
    assert {answer.status for answer in answers} == {"SUCCESS"}
    assert await goods.rows("SELECT count(*) FROM payments") == [(1,)]
    await goods.check()


async def test_seats_and_units_are_authorised_in_one_transaction(goods: Goods, stores: Stores) -> None:
    from tests.shop import open_shop

    shop = await open_shop(stores)
    of_goods = await goods.begin_payment(await goods.hold(mug=1))
    of_seats = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(goods, of_goods, of_seats) == ["AUTHORISED", "AUTHORISED"]
    rows = await goods.rows("SELECT order_id, reservation_id FROM payments ORDER BY order_id NULLS LAST")
    assert rows == [(of_goods.holding.hold_id, None), (None, of_seats.holding.hold_id)]


async def test_units_given_back_whose_entry_is_on_its_way_are_not_paid_for(goods: Goods) -> None:
    order_id = await goods.hold(mug=5, cap_s=1)
    await goods.drain()
    await goods.release(order_id, mug=2, cap_s=1)
    request = await goods.authorise(order_id)
    assert request.holding.amount == 3 * PRICES["mug"]
    assert await goods.lines(order_id) == {"mug": (3, "HELD", 0)}
    await goods.confirm(request)
    await goods.drain()  # the entry comes now, and says nothing new
    assert await goods.lines(order_id) == {"mug": (3, "SOLD", 3)}
    assert await statuses(goods, request) == ["SUCCESS"]
    await goods.check()


async def test_a_poor_buyer_is_refused_and_tries_again(goods: Goods) -> None:
    await goods.set_balance("ann", 0)
    order_id = await goods.hold(mug=1)
    async with opened_till(goods) as till:
        assert (await pay(goods, till, order_id)).reason == "insufficient_balance"
        await goods.set_balance("ann", 10_000)
        assert (await drained_until(goods, pay(goods, till, order_id, key="another"))).status == "SUCCESS"
    await goods.check()


async def test_a_till_without_cards_takes_none(goods: Goods) -> None:
    order_id = await goods.hold(mug=1)
    async with opened_till(goods) as till:
        with pytest.raises(ValueError, match="takes no cards"):
            await pay(goods, till, order_id, tender=Tender(method="CARD", payment_method_id="pm"))


# Settling -------------------------------------------------------------------------------------------------------------


async def test_of_sales_that_are_too_many_the_first_stand_and_nobody_pays_for_the_rest(goods: Goods) -> None:
    """Redis gave the last mugs away twice, as a failover can: 10 of 15 units stand, in the order of the facts."""
    rivals = [await goods.rival(by=name, mug=5) for name in ("ann", "bob", "cid")]
    assert await authorise(goods, *rivals) == ["AUTHORISED"] * 3
    await goods.settle(*[confirmed(rival, n=n) for n, rival in enumerate(rivals, 1)])
    assert await statuses(goods, *rivals) == ["SUCCESS", "SUCCESS", "VOIDED"]
    assert await goods.order(rivals[2].holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    assert (await goods.left_in_postgres())["mug"] == 0
    assert await goods.rows("SELECT hold_id, token_goes_next, done_at FROM restores") == [
        (rivals[2].holding.hold_id, True, None)
    ]
    assert await goods.set_aside("cid") == 0
    assert await goods.rows("SELECT count(*) FROM user_items") == [(10,)]


async def test_one_that_asks_for_less_still_fits_after_one_that_does_not(goods: Goods) -> None:
    rivals = [
        await goods.rival(by="ann", mug=8),
        await goods.rival(by="bob", mug=3),
        await goods.rival(by="cid", mug=2),
    ]
    await authorise(goods, *rivals)
    await goods.settle(*[confirmed(rival, n=n) for n, rival in enumerate(rivals, 1)])
    assert await statuses(goods, *rivals) == ["SUCCESS", "VOIDED", "SUCCESS"]
    assert (await goods.left_in_postgres())["mug"] == 0


async def test_the_same_fact_twice_sells_once(goods: Goods) -> None:
    request = await goods.buy(mug=4)
    await goods.settle(confirmed(request, n=1), confirmed(request, n=2))
    await goods.settle(confirmed(request, n=3))
    assert (await goods.left_in_postgres())["mug"] == 6
    assert await goods.rows("SELECT count(*) FROM user_items") == [(4,)]
    assert await goods.rows("SELECT count(*) FROM balance_history") == [(1,)]


async def test_a_line_that_is_all_or_nothing_leaves_the_other_line_alone(goods: Goods) -> None:
    first, second = await goods.rival(by="ann", mug=10), await goods.rival(by="bob", mug=1, cap_s=4)
    await authorise(goods, first, second)
    await goods.settle(confirmed(first, n=1), confirmed(second, n=2))
    assert await statuses(goods, first, second) == ["SUCCESS", "VOIDED"]
    assert await goods.left_in_postgres() == {"mug": 0, "cap_s": 10, "cap_l": 10}


async def test_a_sale_that_could_not_stand_goes_back_in_redis(goods: Goods) -> None:
    request = await goods.buy(mug=4)
    await goods.stores.postgres.execute(
        "UPDATE product_variants SET quantity = 3 WHERE variant_id = $1", goods.variants["mug"]
    )
    await goods.drain()
    assert await statuses(goods, request) == ["VOIDED"]
    assert await goods.left() == {"mug": 6, "cap_s": 10, "cap_l": 10}
    sale = await goods.sale()
    assert await reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10) == 1
    assert await reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10) == 0
    assert await goods.left() == {"mug": 10, "cap_s": 10, "cap_l": 10}
    await goods.drain()
    assert await goods.set_aside("ann") == 0


# Reconciling ----------------------------------------------------------------------------------------------------------


async def reconcile(goods: Goods) -> reconciliation.Reconciled:
    sale: Sale = await goods.sale()
    return await reconciliation.reconcile(goods.stores.gate, goods.stores.postgres, sale, idle_s=60)


async def test_a_payment_that_stood_still_is_confirmed(goods: Goods) -> None:
    request = await goods.authorise(await goods.hold(mug=2))
    await goods.age(request.payment_id)
    assert (await reconcile(goods)).confirmed == 1
    await goods.drain()
    assert await statuses(goods, request) == ["SUCCESS"]
    await goods.check()


async def test_what_redis_forgot_while_it_was_paid_is_voided(goods: Goods) -> None:
    request = await goods.authorise(await goods.hold(mug=2))
    keys = (await goods.sale()).keys
    await goods.stores.redis.execute_command("HDEL", keys.holds, request.holding.hold_id)
    await goods.age(request.payment_id)
    assert (await reconcile(goods)).ended == 1
    assert await statuses(goods, request) == ["VOIDED"]
    assert await goods.set_aside("ann") == 0


async def test_a_row_whose_end_nobody_heard_of_expires(goods: Goods) -> None:
    order_id = await goods.hold(mug=2)
    await goods.drain()
    keys = (await goods.sale()).keys
    await goods.stores.redis.execute_command("HDEL", keys.holds, order_id)
    await goods.stores.postgres.execute("UPDATE orders SET expires_at = now() - interval '1 hour'")
    assert (await reconcile(goods)).ended == 1
    assert await goods.order(order_id) == ("EXPIRED", "EXPIRED")


async def test_redis_is_rebuilt_with_what_is_left_held_and_sold(goods: Goods) -> None:
    await goods.buy(mug=4)
    held = await goods.hold(by="bob", mug=1, cap_s=2)
    running = await goods.authorise(await goods.hold(by="cid", cap_l=3), by="cid")
    await goods.drain()
    await goods.stores.redis.flushall()
    await goods.rebuild()
    assert await goods.left() == {"mug": 5, "cap_s": 8, "cap_l": 7}
    await goods.confirm(running)
    await goods.release(held, by="bob")
    await goods.drain()
    assert await goods.left() == {"mug": 6, "cap_s": 10, "cap_l": 7}
    await goods.check()
