"""Discounts: a coupon named at payment, on goods and on seats; never used twice, never lost, no price below nothing."""

import asyncio
from typing import Any

import pytest

from engine import authorisations, coupons, ids, payments, reconciliation
from engine.authorisations import Authorisation
from engine.payments import CouponUnusable, InsufficientBalance, Payment, Tender
from engine.stores.connections import Stores
from tests.engine.test_till import drained_until, opened_till
from tests.goods import Goods, confirmed, open_goods
from tests.shop import PRICE, Selling, Shop, open_shop


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open."""
    return await open_goods(stores)


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def coupon(
    selling: Selling,
    *,
    of: str = "ann",
    name: str = "a",
    starts: str = "-1 hour",
    ends: str = "1 hour",
    **terms: object,
) -> str:
    """A coupon that somebody owns, of 1,000 unless other terms are given."""
    user_coupon_id = ids.derive("coupon", name, of)
    terms = {"type": "FIXED", "discount_amount": 1_000} | terms
    await selling.stores.postgres.execute(
        "INSERT INTO user_coupons (user_coupon_id, coupon_id, user_id, name, type, discount_amount, discount_rate, "
        "max_discount_amount, minimum_spend, usable_from, usable_to, created_at) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::text::interval, now() + $11::text::interval, now())",
        *(user_coupon_id, ids.derive("source", name), await selling.person(of), name, terms["type"]),
        *(terms.get("discount_amount"), terms.get("discount_rate"), terms.get("max_discount_amount")),
        *(terms.get("minimum_spend"), starts, ends),
    )
    return user_coupon_id


async def standing(selling: Selling, user_coupon_id: str) -> tuple[str, bool]:
    """How a coupon stands, and whether it names a payment."""
    [row] = await selling.rows(
        "SELECT status, payment_id IS NOT NULL FROM user_coupons WHERE user_coupon_id = $1", user_coupon_id
    )
    return row[0], row[1]


async def pay(selling: Selling, till: Any, hold_id: str, *, by: str = "ann", key: str = "k", **more: Any) -> Any:
    return await till.pay(
        await selling.sale(),
        payment_id=ids.derive("payment", hold_id, key),
        hold_id=hold_id,
        user_id=await selling.person(by),
        **{"fingerprint": "f" * 16} | more,
    )


async def authorised(goods: Goods, request: Authorisation, user_coupon_id: str) -> Payment:
    """Decide a payment that names a coupon."""
    named = type(request)(
        payment_id=request.payment_id,
        fingerprint="",
        holding=request.holding,
        pay_deadline_ms=request.pay_deadline_ms,
        user_coupon_id=user_coupon_id,
    )
    [payment] = await authorisations.authorise(goods.stores.postgres, [named])
    assert isinstance(payment, Payment), payment
    return payment


async def test_a_coupon_takes_something_off_and_is_used(goods: Goods) -> None:
    named = await coupon(goods)
    order_id = await goods.hold(mug=2, cap_l=1)  # 2,400 and 2,500
    async with opened_till(goods) as till:
        paid = await drained_until(goods, pay(goods, till, order_id, user_coupon_id=named))
    assert (paid.status, paid.original_amount, paid.discount_amount, paid.final_amount) == (
        "SUCCESS",
        4_900,
        1_000,
        3_900,
    )
    assert await standing(goods, named) == ("USED", True)
    assert await goods.rows("SELECT order_id, used_at IS NOT NULL FROM user_coupons") == [(order_id, True)]
    assert await goods.rows("SELECT original_amount, discount_amount, total_amount, user_coupon_id FROM orders") == [
        (4_900, 1_000, 3_900, named)
    ]
    lines = await goods.rows("SELECT quantity * unit_price, discount_amount, total_price FROM order_items ORDER BY 1")
    assert lines == [(2_400, 490, 1_910), (2_500, 510, 1_990)]
    assert await goods.rows("SELECT amount FROM balance_history") == [(3_900,)]
    await goods.check()


async def test_a_coupon_on_seats_is_shared_by_them(shop: Shop) -> None:
    named = await coupon(shop, type="RATE", discount_amount=None, discount_rate=33, max_discount_amount=10_001)
    hold_id = await shop.hold("A-1-1", "A-1-2", "A-1-3")
    async with opened_till(shop) as till:
        paid = await drained_until(shop, pay(shop, till, hold_id, user_coupon_id=named))
    assert (paid.discount_amount, paid.final_amount) == (10_001, 3 * PRICE - 10_001)
    shares = await shop.rows("SELECT discount_amount FROM reservation_seats ORDER BY seat_no")
    assert shares == [(3_334,), (3_334,), (3_333,)]
    assert await shop.rows("SELECT reservation_id FROM user_coupons") == [(hold_id,)]
    await shop.check()


async def test_what_a_coupon_pays_whole_takes_nothing_and_writes_no_history(goods: Goods) -> None:
    await goods.set_balance("ann", 0)
    named = await coupon(goods, discount_amount=1_000_000)
    order_id = await goods.hold(mug=2)
    async with opened_till(goods) as till:
        paid = await drained_until(goods, pay(goods, till, order_id, user_coupon_id=named))
    assert (paid.status, paid.discount_amount, paid.final_amount) == ("SUCCESS", 2_400, 0)
    assert await goods.rows("SELECT count(*) FROM balance_history") == [(0,)]
    await goods.check()


async def test_a_card_is_not_asked_for_what_a_coupon_pays_whole(goods: Goods) -> None:
    named = await coupon(goods, discount_amount=1_000_000)
    request = await goods.begin_payment(await goods.hold(mug=2))
    card = Authorisation(
        payment_id=request.payment_id,
        fingerprint="",
        holding=request.holding,
        pay_deadline_ms=request.pay_deadline_ms,
        tender=Tender(method="CARD", payment_method_id="pm"),
        user_coupon_id=named,
    )
    [payment] = await authorisations.authorise(goods.stores.postgres, [card])
    assert isinstance(payment, Payment)
    assert (payment.status, payment.card_amount) == ("AUTHORISED", 0)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"starts": "1 minute"}, "NOT_STARTED"),
        ({"ends": "0 hours"}, "ENDED"),
        ({"minimum_spend": 2_401}, "MINIMUM_SPEND"),
        ({"of": "bob"}, "UNKNOWN"),
    ],
)
async def test_a_coupon_that_cannot_be_used_refuses_the_payment_and_nothing_else(
    goods: Goods, terms: dict[str, Any], reason: str
) -> None:
    named = await coupon(goods, **terms)
    order_id = await goods.hold(mug=2)
    async with opened_till(goods) as till:
        refused = await pay(goods, till, order_id, user_coupon_id=named)
        assert payments.refusal_of(refused) == CouponUnusable(reason=reason)
        again = await pay(goods, till, order_id, user_coupon_id=named)
        assert payments.refusal_of(again) == CouponUnusable(reason=reason)
        assert await standing(goods, named) == ("AVAILABLE", False)
        assert (await drained_until(goods, pay(goods, till, order_id, key="without"))).final_amount == 2_400
    await goods.check()


async def test_at_the_minimum_it_counts(goods: Goods) -> None:
    named = await coupon(goods, minimum_spend=2_400)
    async with opened_till(goods) as till:
        paid = await drained_until(goods, pay(goods, till, await goods.hold(mug=2), user_coupon_id=named))
    assert paid.final_amount == 1_400


async def test_one_that_does_not_exist_is_unknown(goods: Goods) -> None:
    order_id = await goods.hold(mug=2)
    async with opened_till(goods) as till:
        refused = await pay(goods, till, order_id, user_coupon_id="0c" * 16)
    assert payments.refusal_of(refused) == CouponUnusable(reason="UNKNOWN")


async def test_the_balance_must_cover_what_is_left_to_pay(goods: Goods) -> None:
    named = await coupon(goods)
    await goods.set_balance("ann", 1_399)
    order_id = await goods.hold(mug=2)
    async with opened_till(goods) as till:
        refused = await pay(goods, till, order_id, user_coupon_id=named)
        assert payments.refusal_of(refused) == InsufficientBalance(needed=1_400, available=1_399)
        assert await standing(goods, named) == ("AVAILABLE", False)
        await goods.set_balance("ann", 1_400)
        assert (
            await drained_until(goods, pay(goods, till, order_id, key="2", user_coupon_id=named))
        ).status == "SUCCESS"
    await goods.check()


async def test_of_many_payments_at_once_one_has_the_coupon(goods: Goods) -> None:
    named = await coupon(goods)
    orders = [await goods.hold(mug=1) for _ in range(8)]
    async with opened_till(goods) as till:
        asked = [pay(goods, till, order_id, user_coupon_id=named) for order_id in orders]
        answers = await drained_until(goods, asyncio.gather(*asked))
    assert sorted(answer.status for answer in answers) == ["FAILED"] * 7 + ["SUCCESS"]
    reasons = {answer.coupon_reason for answer in answers if answer.status == "FAILED"}
    assert reasons <= {"RESERVED", "USED"}
    assert await goods.rows("SELECT sum(discount_amount)::bigint FROM payments WHERE status = 'SUCCESS'") == [(1_000,)]
    assert await standing(goods, named) == ("USED", True)


async def test_a_payment_that_is_voided_gives_its_coupon_back(goods: Goods) -> None:
    named = await coupon(goods)
    request = await goods.begin_payment(await goods.hold(mug=2))
    assert (await authorised(goods, request, named)).status == "AUTHORISED"
    assert await standing(goods, named) == ("RESERVED", True)
    keys = (await goods.sale()).keys
    await goods.stores.redis.execute_command("HDEL", keys.holds, request.holding.hold_id)
    await goods.age(request.payment_id)
    await reconciliation.reconcile(goods.stores.gate, goods.stores.postgres, await goods.sale(), idle_s=60)
    assert await goods.payment(request.payment_id) == "VOIDED"
    assert await standing(goods, named) == ("AVAILABLE", False)


async def test_a_sale_that_does_not_stand_gives_its_coupon_back(goods: Goods) -> None:
    named = await coupon(goods)
    first, second = await goods.rival(by="bob", mug=8), await goods.rival(by="ann", mug=3)
    await authorisations.authorise(goods.stores.postgres, [first])
    await authorised(goods, second, named)
    await goods.settle(confirmed(first, n=1), confirmed(second, n=2))
    assert await goods.payment(second.payment_id) == "VOIDED"
    assert await standing(goods, named) == ("AVAILABLE", False)
    assert await goods.set_aside("ann") == 0


async def test_a_rebuild_that_voids_a_payment_gives_its_coupon_back(goods: Goods) -> None:
    named = await coupon(goods)
    await goods.buy(by="bob", mug=8)
    await goods.drain()
    rival = await goods.rival(by="ann", mug=3)
    await authorised(goods, rival, named)
    await goods.rebuild()
    assert await goods.payment(rival.payment_id) == "VOIDED"
    assert await standing(goods, named) == ("AVAILABLE", False)
    await goods.check()


async def test_the_same_fact_again_uses_a_coupon_once(goods: Goods) -> None:
    named = await coupon(goods)
    request = await goods.begin_payment(await goods.hold(mug=2))
    await authorised(goods, request, named)
    await goods.confirm(request)
    await goods.drain()
    [used_at] = await goods.rows("SELECT used_at FROM user_coupons")
    await goods.settle(confirmed(request, n=9))
    assert await goods.rows("SELECT used_at FROM user_coupons") == [used_at]
    assert await standing(goods, named) == ("USED", True)


async def test_a_used_coupon_is_not_used_again(goods: Goods) -> None:
    named = await coupon(goods)
    async with opened_till(goods) as till:
        await drained_until(goods, pay(goods, till, await goods.hold(mug=2), user_coupon_id=named))
        refused = await pay(goods, till, await goods.hold(mug=1), user_coupon_id=named)
    assert payments.refusal_of(refused) == CouponUnusable(reason="USED")


async def test_a_coupon_that_was_never_issued_is_not_on_its_way(goods: Goods) -> None:
    gate, postgres = goods.stores.gate, goods.stores.postgres
    ann = await goods.person("ann")
    assert not await coupons.is_on_its_way(gate, postgres, goods.book, user_coupon_id="0c" * 16, user_id=ann)
