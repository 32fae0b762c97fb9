"""The audit of orders: true while all is well, and false for each way in which their lines or their money can be wrong.

Ann has bought three mugs and a cap and given back a mug and the cap; Bob has bought a mug and Cat given back her two.
"""

import pytest

from engine import ids, order_cancellations
from engine.audit import Report, audit, describe
from engine.stock import Units
from engine.stores.connections import Stores
from tests.engine.test_discounts import authorised, coupon
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


async def pay_with_coupon(goods: Goods) -> str:
    """Dan buys a mug with a coupon; what he owns."""
    user_id = await goods.person("dan")
    postgres = goods.stores.postgres
    await postgres.execute("UPDATE balances SET amount = 0 WHERE user_id = $1", user_id)
    mine = await coupon(goods, of="dan", discount_amount=1_000_000)
    request = await goods.begin_payment(await goods.hold(by="dan", mug=1), by="dan")
    await authorised(goods, request, mine)
    await goods.confirm(request)
    await goods.drain()
    return mine


async def test_a_coupon_that_was_used_once_is_well(goods: Goods) -> None:
    await pay_with_coupon(goods)
    report = await look(goods)
    assert report.verdict == "true", describe(report)


@pytest.mark.parametrize(
    ("corruption", "words"),
    [
        ("UPDATE user_coupons SET status = 'AVAILABLE', payment_id = NULL, used_at = NULL", "is AVAILABLE"),
        ("UPDATE user_coupons SET status = 'RESERVED', used_at = NULL", "is RESERVED"),
        ("UPDATE user_coupons SET payment_id = user_id", "is USED"),
        ("UPDATE payments SET user_coupon_id = payment_id WHERE user_coupon_id IS NOT NULL", "0 that bought something"),
    ],
)
async def test_a_coupon_that_stands_otherwise_than_its_payment_is_found(
    goods: Goods, corruption: str, words: str
) -> None:
    await pay_with_coupon(goods)
    await goods.stores.postgres.execute(corruption)
    report = await look(goods)
    (charges,) = [check for check in report.checks if check.invariant == "I3"]
    assert charges.verdict == "false"
    assert words in describe(report)


@pytest.mark.parametrize(
    ("corruption", "invariant", "words"),
    [
        ("UPDATE product_daily_sales SET sold_quantity = sold_quantity + 1", "I4", "statistics"),
        ("UPDATE product_daily_sales SET refunded_amount = refunded_amount + 1", "I4", "statistics"),
        (
            "UPDATE orders SET status = 'PENDING', paid_at = NULL, expires_at = '2026-01-01' WHERE status = 'PAID'",
            "I7",
            "order",
        ),
    ],
)
async def test_what_was_miscounted_or_forgotten_is_found(
    goods: Goods, corruption: str, invariant: str, words: str
) -> None:
    postgres = goods.stores.postgres
    if invariant == "I7":
        await postgres.execute(
            "DELETE FROM user_items WHERE order_id IN (SELECT order_id FROM orders WHERE status = 'PAID')"
        )
        await postgres.execute(
            "UPDATE payments SET status = 'VOIDED', paid_at = NULL "
            "WHERE order_id IN (SELECT order_id FROM orders WHERE status = 'PAID')"
        )
    await postgres.execute(corruption)
    report = await look(goods)
    (check,) = [check for check in report.checks if check.invariant == invariant]
    assert check.verdict == "false"
    assert words in describe(report)


async def test_units_that_redis_keeps_from_everybody_are_found(goods: Goods) -> None:
    bob, mug, keys = await goods.person("bob"), goods.variants["mug"], (await goods.sale()).keys
    # He gave a mug back, says his row, and nobody told Redis: there it still counts as his.
    await goods.stores.postgres.execute(
        "UPDATE order_items SET counted = counted + 1 FROM orders WHERE orders.order_id = order_items.order_id "
        "AND user_id = $1",
        bob,
    )
    await goods.stores.redis.execute_command("HINCRBY", keys.stock, mug, -1)
    await goods.stores.redis.execute_command("HSET", keys.buyers, bob, "2 0 ")
    report = await look(goods)
    assert f"what nobody has bought of variant {mug}: Redis says 6, Postgres says 7" in describe(report)
    assert {check.invariant for check in report.checks if check.verdict != "true"} == {"I9"}


# Who waited for units -------------------------------------------------------------------------------------------------


async def wait(goods: Goods, status: str, *, quantity: int = 1, variant: str = "mug", order: str = "PAID") -> None:
    """Let an order of this status have been somebody's offer."""
    await goods.stores.postgres.execute(
        "INSERT INTO waiting_list_entries "
        "(entry_id, sale_id, variant_id, user_id, quantity, hold_id, status, fingerprint) "
        "SELECT order_id, sale_id, $1, user_id, $2, order_id, $3, '' FROM orders WHERE status = $4",
        goods.variants[variant],
        quantity,
        status,
        order,
    )


async def verdicts(goods: Goods) -> tuple[str, str]:
    """What is said of I4 and I7."""
    found = {check.invariant: check.verdict for check in (await look(goods)).checks}
    return found["I4"], found["I7"]


@pytest.mark.parametrize(
    ("status", "quantity", "variant", "order", "verdict"),
    [
        ("TAKEN", 1, "mug", "PAID", "true"),
        ("TAKEN", 2, "mug", "PAID", "true"),  # one of them was given back before it was paid
        ("TAKEN", 2, "mug", "REFUNDED", "true"),
        ("TAKEN", 1, "mug", "REFUNDED", "false"),
        ("TAKEN", 1, "cap_s", "PAID", "false"),
        ("TAKEN", 3, "mug", "PARTIALLY_REFUNDED", "false"),
        ("LAPSED", 1, "mug", "PAID", "false"),
    ],
)
async def test_what_was_offered_is_what_was_waited_for(
    goods: Goods, status: str, quantity: int, variant: str, order: str, verdict: str
) -> None:
    await wait(goods, status, quantity=quantity, variant=variant, order=order)
    assert (await verdicts(goods))[0] == verdict


async def test_an_offer_that_was_taken_has_an_order_of_whom_it_was_made_to(goods: Goods) -> None:
    await wait(goods, "TAKEN")
    await goods.stores.postgres.execute(
        "UPDATE waiting_list_entries SET user_id = $1", await goods.person("somebody else")
    )
    assert (await verdicts(goods))[0] == "false"
    await goods.stores.postgres.execute("UPDATE waiting_list_entries SET hold_id = $1", ids.random_id())
    assert (await verdicts(goods))[0] == "false"


@pytest.mark.parametrize("status", ["WAITING", "OFFERED"])
async def test_what_became_of_an_offer_is_noted_soon(goods: Goods, status: str) -> None:
    await wait(goods, status)
    assert (await verdicts(goods))[1] == "true"
    await goods.stores.postgres.execute(
        "UPDATE orders SET created_at = created_at - interval '1 hour', paid_at = paid_at - interval '1 hour'"
    )
    assert (await verdicts(goods))[1] == "false"


@pytest.mark.parametrize(("price", "verdict"), [("1200", "false"), ("-1200", "true")])
async def test_units_are_not_kept_for_a_list_for_long_while_they_are_on_sale(
    goods: Goods, price: str, verdict: str
) -> None:
    keys, redis, mug = (await goods.sale()).keys, goods.stores.redis, goods.variants["mug"]
    await redis.execute_command("HINCRBY", keys.stock, mug, -1)
    await redis.execute_command("HSET", keys.stock_freed, mug, 1)
    await redis.execute_command("HSET", keys.prices, mug, price)
    await redis.execute_command("ZADD", keys.freed, 1, mug)
    assert (await verdicts(goods))[1] == verdict
