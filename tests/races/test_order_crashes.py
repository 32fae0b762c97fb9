"""A buyer's process is killed between every two steps of paying for goods, and whoever hears of late money for them is.

At the end money, coupon and units agree in both stores: what was paid for is owned and paid for once, what was not is
free again and so is its coupon. The control writes down the coupon before anything else, as a shop does that deals with
it beside the payment; killed in between it loses the coupon, and this harness sees it.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Literal

import pytest

from engine import ids, late_payments, payments
from engine.payments import BALANCE, Payment, Tender
from engine.settings import Settings
from engine.stores.connections import Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from tests.engine.test_cards import counter, split
from tests.engine.test_discounts import coupon
from tests.engine.test_late_payments import LATE, end_payment_of, prove
from tests.gateways import Operator, operating, running_gateway
from tests.goods import EACH, PRICES, Goods, open_goods
from tests.races.test_card_crashes import die, work
from tests.races.test_late_payments import die as die_hearing
from tests.races.test_late_payments import tell_again

AMOUNT = 2 * PRICES["mug"] + PRICES["cap"]
OFF = 1_000
RICH = 10_000_000

CARD = Tender(method="CARD", payment_method_id="pm_card_visa")
SPLIT = Tender(method="SPLIT", balance_amount=500, payment_method_id="pm_card_visa")
DECLINED = Tender(method="SPLIT", balance_amount=500, payment_method_id="pm_card_chargeDeclined")

WHEN = Literal["before", "after"]
BOTH: tuple[WHEN, ...] = ("before", "after")
BY_BALANCE = [(step, when) for step in ("pay", "authorise", "confirm") for when in BOTH]
BY_CARD = [(step, when) for step in ("pay", "authorise", "ask", "keep", "confirm") for when in BOTH]
REFUSED = [(step, when) for step in ("ask", "decline", "abandon", "end") for when in BOTH]


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(settings_of_gateway: Settings) -> AsyncIterator[Operator]:
    """Whoever operates it."""
    async with operating(settings_of_gateway) as operator:
        yield operator


@pytest.fixture
async def adapter(settings_of_gateway: Settings) -> AsyncIterator[StripeGateway]:
    """The worker's way to it."""
    async with open_gateway(settings_of_gateway) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open."""
    return await open_goods(stores)


async def check(goods: Goods, gateway: Operator, payment_id: str, tender: Tender, *, off: int) -> str:
    """Assert that row, order, coupon, units, balance and gateway tell one story; returns how it ended."""
    await give_up(goods)
    await prove(goods)
    payment = (await payments.read(goods.stores.postgres, [payment_id])).get(payment_id)
    at_gateway = next(iter(await gateway.ledger(payment_id)), None)
    taken = at_gateway["captured"] - at_gateway["refunded"] if at_gateway else 0
    assert not at_gateway or at_gateway["authorised"] == 0, "money is set aside for nothing"
    [(amount, set_aside)] = await goods.rows(
        "SELECT amount, set_aside FROM balances WHERE user_id = $1", goods.people["ann"]
    )
    assert set_aside == 0
    coupons = await goods.rows("SELECT status, payment_id FROM user_coupons")
    assert await goods.stores.redis.zcard((await goods.sale()).keys.paying) == 0
    if payment is not None and payment.status == "SUCCESS":
        on_card = tender.card_amount(AMOUNT - off)
        assert (taken, RICH - amount) == (on_card, AMOUNT - off - on_card)
        assert await goods.left() == {"mug": EACH - 2, "cap_s": EACH, "cap_l": EACH - 1}
        assert await goods.order(payment.hold_id) == ("PAID", None)
        assert coupons == ([("USED", payment_id)] if off else [])
        return "SUCCESS"
    assert payment is None or payment.public_status == "FAILED"
    assert (taken, RICH - amount) == (0, 0)
    assert coupons == ([("AVAILABLE", None)] if off else []), "the coupon is lost"
    assert await goods.rows("SELECT count(*) FROM orders WHERE status = 'PAID'") == [(0,)]
    return "FAILED"


async def give_up(goods: Goods) -> None:
    """Give back what is held still."""
    for order_id in await goods.stores.redis.zrange((await goods.sale()).keys.deadlines, 0, -1):
        await goods.release(order_id.decode())
    await goods.drain()


async def pay_and_die(
    goods: Goods, gateway: Operator, tender: Tender, step: str, when: str, *, with_coupon: bool
) -> tuple[str, int]:
    """Hold and pay in a process that dies; returns the payment, and what the coupon takes off."""
    named = await coupon(goods, discount_amount=OFF) if with_coupon else None
    order_id = await goods.hold(mug=2, cap_l=1)
    payment_id = await die(goods, gateway, order_id, tender, step, when, user_coupon_id=named)
    return payment_id, OFF if with_coupon else 0


@pytest.mark.parametrize(
    ("tender", "step", "when", "with_coupon"),
    [
        *[(BALANCE, step, when, has_coupon) for step, when in BY_BALANCE for has_coupon in (False, True)],
        *[(CARD, step, when, False) for step, when in BY_CARD],
        *[(SPLIT, step, when, True) for step, when in BY_CARD],
    ],
)
async def test_a_payment_for_goods_goes_on_without_the_process_that_began_it(
    goods: Goods, gateway: Operator, adapter: StripeGateway, tender: Tender, step: str, when: str, *, with_coupon: bool
) -> None:
    payment_id, off = await pay_and_die(goods, gateway, tender, step, when, with_coupon=with_coupon)
    # Where there is no row yet, what nobody knows of lapses.
    is_lost = step == "pay" or (step, when) == ("authorise", "before")
    await work(goods, adapter, late=is_lost)
    assert await check(goods, gateway, payment_id, tender, off=off) == ("FAILED" if is_lost else "SUCCESS")


@pytest.mark.parametrize(("step", "when"), BY_CARD)
async def test_a_payment_for_goods_whose_time_is_over_ends_whole_or_stands_whole(
    goods: Goods, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    payment_id, off = await pay_and_die(goods, gateway, SPLIT, step, when, with_coupon=True)
    await work(goods, adapter, late=True)
    decided = (step, when) in {("keep", "after"), ("confirm", "before"), ("confirm", "after")}
    ended = await check(goods, gateway, payment_id, SPLIT, off=off)
    assert ended == ("SUCCESS" if decided else "FAILED")


@pytest.mark.parametrize(("step", "when"), REFUSED)
async def test_a_decline_is_finished_by_others_and_frees_the_coupon(
    goods: Goods, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    payment_id, off = await pay_and_die(goods, gateway, DECLINED, step, when, with_coupon=True)
    await work(goods, adapter, late=False)
    assert await check(goods, gateway, payment_id, DECLINED, off=off) == "FAILED"


@pytest.mark.parametrize(("step", "when"), [("pay", "after"), ("authorise", "after"), ("confirm", "after")])
async def test_redis_is_lost_with_the_process(
    goods: Goods, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    """What Postgres knew as AUTHORISED is PAYING in the next copy, and is confirmed; the rest is free."""
    payment_id, off = await pay_and_die(goods, gateway, BALANCE, step, when, with_coupon=True)
    await goods.stores.redis.flushall()
    await goods.rebuild()
    await work(goods, adapter, late=True)
    ended = await check(goods, gateway, payment_id, BALANCE, off=off)
    assert ended == ("FAILED" if step == "pay" else "SUCCESS")


async def test_control_a_shop_that_deals_with_coupons_beside_payments_loses_one(
    goods: Goods, gateway: Operator, adapter: StripeGateway
) -> None:
    named = await coupon(goods, discount_amount=OFF)
    order_id = await goods.hold(mug=2, cap_l=1)
    payment_id = ids.derive("payment", order_id)
    await goods.stores.postgres.execute(
        "UPDATE user_coupons SET status = 'RESERVED', payment_id = $2 WHERE user_coupon_id = $1", named, payment_id
    )
    # … and here it is killed, before the payment has a row.
    await work(goods, adapter, late=True)
    with pytest.raises(AssertionError, match="is RESERVED: 0 payments that run name it"):
        await check(goods, gateway, payment_id, BALANCE, off=OFF)


# Late money -----------------------------------------------------------------------------------------------------------

HEARD = [(step, when) for step in ("begin", "take_in", "hold", "pay", "authorise", "keep", "confirm") for when in BOTH]
RETURNED = [("hold", "before"), *[(step, when) for step in ("give_back", "void", "let_go") for when in BOTH]]


async def end_late(goods: Goods, gateway: Operator, adapter: StripeGateway) -> Payment:
    """A payment with a coupon that has ended, and whose money came afterwards."""
    named = await coupon(goods, discount_amount=OFF)
    order_id = await goods.hold(mug=2, cap_l=1)
    async with counter(goods, adapter, answer_within_s=0.0) as till:
        return await end_payment_of(
            goods, gateway, adapter, till, order_id, tender=split(500, LATE), user_coupon_id=named
        )


async def check_late(goods: Goods, gateway: Operator, ended: Payment) -> str:
    """Assert that what became of the money is one story in both stores; returns how it ended."""
    [late] = (await late_payments.find_of(goods.stores.postgres, [ended.payment_id])).values()
    (standing,) = await gateway.ledger(ended.payment_id)
    assert standing["authorised"] == 0, "money is set aside for nothing"
    await prove(goods)
    taken = standing["captured"] - standing["refunded"]
    balance = await goods.rows("SELECT amount, set_aside FROM balances WHERE user_id = $1", goods.people["ann"])
    coupons = await goods.rows("SELECT status, payment_id FROM user_coupons")
    assert await goods.stores.redis.zcard((await goods.sale()).keys.paying) == 0
    if late.status == "SOLD":
        assert (taken, balance) == (AMOUNT - OFF - 500, [(RICH - 500, 0)])
        assert coupons == [("USED", late.new_payment_id)]
        assert await goods.order(late.new_hold_id) == ("PAID", None)
    else:
        assert (late.status, taken, balance) == ("RETURNED", 0, [(RICH, 0)])
        assert coupons == [("AVAILABLE", None)]
    return late.status


@pytest.mark.parametrize(("step", "when"), HEARD)
async def test_late_money_buys_goods_once_whoever_dies(
    goods: Goods, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    ended = await end_late(goods, gateway, adapter)
    await die_hearing(goods, gateway, ended, step, when)
    await tell_again(goods, adapter, ended)
    await work(goods, adapter, late=False)
    assert await check_late(goods, gateway, ended) == "SOLD"
    assert await goods.left() == {"mug": EACH - 2, "cap_s": EACH, "cap_l": EACH - 1}


@pytest.mark.parametrize(("step", "when"), RETURNED)
async def test_late_money_for_goods_goes_back_once_whoever_dies(
    goods: Goods, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    ended = await end_late(goods, gateway, adapter)
    await goods.buy(by="bob", mug=EACH - 1)
    await goods.drain()
    await die_hearing(goods, gateway, ended, step, when)
    await tell_again(goods, adapter, ended)
    await work(goods, adapter, late=False)
    assert await check_late(goods, gateway, ended) == "RETURNED"
    assert await goods.left() == {"mug": 1, "cap_s": EACH, "cap_l": EACH}
