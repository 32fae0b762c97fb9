"""The audit of orders: true while all is well, and false for each way in which their lines or their money can be wrong.

Ann has bought three mugs and a cap and given back a mug and the cap; Bob has bought a mug and Cat given back her two.
"""

import pytest

from engine import ids, order_cancellations
from engine.audit import Report, audit, describe
from engine.stock import Units
from engine.stores.connections import Stores
from tests.goods import Goods, open_goods


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    goods = await open_goods(stores)
    for name, units, returned in (
        ("ann", {"mug": 3, "cap_s": 1}, {"mug": 1, "cap_s": 1}),
        ("bob", {"mug": 1}, {}),
        ("cat", {"mug": 2}, {"mug": 2}),
    ):
        # What they have was given to them by a charge that the history knows.
        user_id = await goods.person(name)
        await stores.postgres.execute("UPDATE balances SET version = 1 WHERE user_id = $1", user_id)
        await stores.postgres.execute(
            "INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id) "
            "VALUES ($1, 'CHARGE', 10000000, 10000000, 1, 'charge', $2)",
            user_id,
            ids.random_id(),
        )
        request = await goods.buy(by=name, **units)
        await goods.drain()
        if returned:
            await order_cancellations.cancel(
                stores.gate,
                stores.postgres,
                goods.book,
                cancellation_id=ids.derive(name),
                order_id=request.holding.hold_id,
                units=[Units(goods.variants[each], quantity) for each, quantity in returned.items()],
            )
    await goods.drain()
    return goods


async def look(goods: Goods) -> Report:
    return await audit(goods.stores.redis, goods.stores.postgres, settle_s=0.5)


async def test_orders_that_are_well_are_true(goods: Goods) -> None:
    report = await look(goods)
    assert report.verdict == "true", describe(report)
    (charges,) = [check for check in report.checks if check.invariant == "I3"]
    assert charges.looked_at["orders"] == 3


PARTLY = "(SELECT order_id FROM orders WHERE status = 'PARTIALLY_REFUNDED')"


@pytest.mark.parametrize(
    ("corruption", "words"),
    [
        ("UPDATE orders SET status = 'PAID' WHERE status = 'REFUNDED'", "is PAID"),
        ("UPDATE orders SET status = 'REFUNDED' WHERE status = 'PARTIALLY_REFUNDED'", "is REFUNDED"),
        ("UPDATE orders SET status = 'PARTIALLY_REFUNDED' WHERE status = 'PAID'", "0 were given back"),
        ("UPDATE orders SET original_amount = 1, total_amount = 1 WHERE status = 'PAID'", "order"),
        (
            "UPDATE payments SET original_amount = 1, final_amount = 1, balance_amount = 1 WHERE refunded_amount = 0",
            "1 was charged",
        ),
        (f"UPDATE order_items SET refunded_quantity = 2 WHERE order_id = {PARTLY} AND quantity = 3", "2 refunded"),
        ("UPDATE cancellations SET quantities = '{1}' WHERE cardinality(quantities) = 1", "1 were cancelled"),
        ("UPDATE user_items SET returned_at = NULL", "returned 0"),
        (f"DELETE FROM user_items WHERE order_id = {PARTLY} AND returned_at IS NULL", "its buyer got 1"),
        ("UPDATE refunds SET amount = amount - 1", "are to go back"),
        ("UPDATE cancellations SET refund_amount = refund_amount + 1", "promised"),
    ],
)
async def test_what_is_wrong_with_orders_is_found(goods: Goods, corruption: str, words: str) -> None:
    await goods.stores.postgres.execute(corruption)
    report = await look(goods)
    (charges,) = [check for check in report.checks if check.invariant == "I3"]
    assert charges.verdict == "false"
    assert words in describe(report)
