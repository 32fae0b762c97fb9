"""Late money for goods, and for what had a coupon: the same at the same prices, or the money goes back."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from engine import authorisations, ids, orders, payments, stock
from engine.authorisations import Authorisation
from engine.cards import Cards
from engine.payments import Payment
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, SaleClosed
from engine.seats import HoldKnown, PriceChanged, SaleNotOpen
from engine.settings import Settings
from engine.stock import Units
from engine.stores.connections import RedisClient, Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from engine.till import Till
from tests.engine.seat_sales import buyer
from tests.engine.stock_sales import Stall, open_stall
from tests.engine.test_cards import counter, ledger_of, pay, row, split
from tests.engine.test_discounts import coupon, standing
from tests.engine.test_late_payments import LATE, end_payment_of, go_on, outcome, prove, report
from tests.engine.test_till import drained_until
from tests.gateways import Operator, operating, running_gateway
from tests.goods import EACH, PRICES, Goods, open_goods
from tests.shop import PRICE, open_shop

MUG, CAP = PRICES["mug"], PRICES["cap"]
OFF = 1_000


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(settings_of_gateway: Settings) -> AsyncIterator[Operator]:
    """Whoever operates it, and acts for buyers."""
    async with operating(settings_of_gateway) as operator:
        yield operator


@pytest.fixture
async def adapter(settings_of_gateway: Settings) -> AsyncIterator[StripeGateway]:
    """What the engine asks it with."""
    async with open_gateway(settings_of_gateway, answer_within_s=0.5) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open; nobody may have more than ten."""
    return await open_goods(stores, per_buyer_max=EACH)


@pytest.fixture
async def till(goods: Goods, adapter: StripeGateway) -> AsyncIterator[Till]:
    """Where cards are taken; it waits for no worker."""
    async with counter(goods, adapter, answer_within_s=0.0) as till:
        yield till


async def end_a_payment(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till, *, units: Mapping[str, Any], **more: Any
) -> Payment:
    """Hold and pay, but let the buyer act only after the payment ended and its hold was given back."""
    return await end_payment_of(goods, gateway, adapter, till, await goods.hold(**units), **more)


async def test_late_money_buys_the_same_units_by_an_order_of_its_own(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2, "cap_l": 3})
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    late = await outcome(goods, ended)
    assert (late.status, late.reason, late.amount, late.is_order) == ("SOLD", None, 2 * MUG + 3 * CAP, True)
    bought = (await payments.read(goods.stores.postgres, [late.new_payment_id]))[late.new_payment_id]
    assert (bought.status, bought.order_id, bought.gateway_ref) == ("SUCCESS", late.new_hold_id, ended.gateway_ref)
    assert await goods.order(late.new_hold_id) == ("PAID", None)
    assert await goods.lines(late.new_hold_id) == {"mug": (2, "SOLD", 2), "cap_l": (3, "SOLD", 3)}
    assert await ledger_of(gateway, ended) == ("succeeded", 0, 2 * MUG + 3 * CAP, 0)
    # What ended stays as it ended.
    assert (await row(goods, ended)).status == "FAILED"
    assert await goods.order(ended.hold_id) == ("CANCELLED", "USER")
    await prove(goods)


async def test_what_was_told_twice_and_worked_on_by_many_is_sold_once(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2})
    for event_id in ("evt_1", "evt_1", "evt_2"):
        await report(goods, adapter, ended, event_id=event_id)
    await go_on(goods, adapter)
    await report(goods, adapter, ended, event_id="evt_3")
    await go_on(goods, adapter)
    assert await goods.rows("SELECT status FROM late_payments") == [("SOLD",)]
    assert await goods.left() == {"mug": EACH - 2, "cap_s": EACH, "cap_l": EACH}
    assert await ledger_of(gateway, ended) == ("succeeded", 0, 2 * MUG, 0)
    await prove(goods)


async def too_few_left(goods: Goods) -> None:
    await goods.hold(mug=EACH - 1, by="bob")


async def bought_enough(goods: Goods) -> None:
    await goods.hold(cap_l=EACH - 1)


async def held_again_by_the_buyer(goods: Goods) -> None:
    await goods.hold(mug=1)


async def being_paid_again_by_the_buyer(goods: Goods) -> None:
    await goods.authorise(await goods.hold(mug=1))


async def bought_again_by_the_buyer(goods: Goods) -> None:
    await goods.buy(mug=1)


async def bought_again_and_drained(goods: Goods) -> None:
    await goods.buy(mug=1)
    await goods.drain()


async def dearer(goods: Goods) -> None:
    await set_price(goods, str(MUG + 1))


async def cheaper(goods: Goods) -> None:
    await set_price(goods, str(MUG - 1))


async def stopped(goods: Goods) -> None:
    await set_price(goods, f"-{MUG}")


async def set_price(goods: Goods, price: str) -> None:
    keys = (await goods.sale()).keys
    await goods.stores.redis.execute_command("HSET", keys.prices, goods.variants["mug"], price)


async def sale_over(goods: Goods) -> None:
    await goods.stores.redis.hset((await goods.sale()).keys.sale, "closes_at_ms", "1")  # type: ignore[misc]


async def room_closed(goods: Goods) -> None:
    await goods.stores.redis.hset((await goods.sale()).keys.sale, "room", "closed")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (too_few_left, "sold_out"),
        (bought_enough, "limit_reached"),
        (held_again_by_the_buyer, "ordered_again"),
        (being_paid_again_by_the_buyer, "ordered_again"),
        (bought_again_by_the_buyer, "ordered_again"),
        (bought_again_and_drained, "ordered_again"),
        (dearer, "price_changed"),
        (cheaper, "price_changed"),
        (stopped, "unit_unknown"),
        (sale_over, "sale_closed"),
        (room_closed, "sale_closed"),
    ],
)
async def test_whatever_changed_meanwhile_sends_the_money_back(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till, meanwhile: Any, reason: str
) -> None:
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2})
    await meanwhile(goods)
    left = await goods.left()
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    late = await outcome(goods, ended)
    assert (late.status, late.reason) == ("RETURNED", reason)
    assert await ledger_of(gateway, ended) == ("canceled", 0, 0, 0)
    assert late.new_payment_id not in await payments.read(goods.stores.postgres, [late.new_payment_id])
    assert await goods.left() == left


async def test_what_the_buyer_bought_before_stands_in_nobodys_way(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    await goods.buy(mug=1)
    await goods.drain()
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2})
    await goods.buy(cap_l=1)
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    assert (await outcome(goods, ended)).status == "SOLD"
    await prove(goods)


async def test_the_order_itself_that_stands_or_was_paid_another_way_sends_the_money_back(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    order_id = await goods.hold(mug=2)
    payment = await pay(goods, till, order_id, method="pm_card_chargeDeclined")
    await drained_until(goods, pay(goods, till, order_id, key="another"))
    await goods.drain()
    assert await goods.order(order_id) == ("PAID", None)
    (standing_at_gateway,) = await gateway.ledger(payment.payment_id)
    url = f"{gateway.base}/v1/payment_intents/{standing_at_gateway['payment_intent']}/confirm"
    async with gateway.session.post(url, data={"payment_method": "pm_card_visa"}) as answer:
        assert answer.status == 200
    await report(goods, adapter, await row(goods, payment))
    await go_on(goods, adapter)
    assert (await outcome(goods, payment)).reason == "ordered_again"
    assert await goods.left() == {"mug": EACH - 2, "cap_s": EACH, "cap_l": EACH}
    await prove(goods)


async def test_units_of_a_lapsed_hold_are_free(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2})
    theirs = await goods.hold(mug=EACH, by="bob")
    await lapse(goods, theirs)
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    assert (await outcome(goods, ended)).status == "SOLD"
    assert await goods.order(theirs) == ("EXPIRED", "EXPIRED")
    await prove(goods)


async def lapse(goods: Goods, hold_id: str) -> None:
    """Let a hold's time be over."""
    redis: Any = goods.stores.redis
    keys = (await goods.sale()).keys
    fields = (await redis.hget(keys.holds, hold_id)).decode().split("|")
    fields[6] = "1000"
    await redis.hset(keys.holds, hold_id, "|".join(fields))
    await redis.zadd(keys.deadlines, {hold_id: 1000})


async def test_only_what_the_payment_was_for_is_bought(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    order_id = await goods.hold(mug=3, cap_s=1)
    await goods.release(order_id, mug=1, cap_s=1)
    ended = await end_payment_of(goods, gateway, adapter, till, order_id)
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    assert await goods.left() == {"mug": EACH - 2, "cap_s": EACH, "cap_l": EACH}
    await prove(goods)


async def test_what_was_given_back_in_part_after_it_was_paid_for_buys_nothing(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    """Nobody knows any more what it was, and its buyer no longer wanted all of it."""
    order_id = await goods.hold(mug=3)
    payment = await pay(goods, till, order_id, method="pm_card_chargeDeclined")
    await goods.release(order_id, mug=1)
    await goods.drain()
    await goods.release(order_id)
    await goods.drain()
    (standing_at_gateway,) = await gateway.ledger(payment.payment_id)
    url = f"{gateway.base}/v1/payment_intents/{standing_at_gateway['payment_intent']}/confirm"
    async with gateway.session.post(url, data={"payment_method": "pm_card_visa"}) as answer:
        assert answer.status == 200
    await report(goods, adapter, await row(goods, payment))
    await go_on(goods, adapter)
    assert (await outcome(goods, payment)).reason == "lines_unknown"
    assert await goods.left() == dict.fromkeys(goods.variants, EACH)
    await prove(goods)


async def test_who_orders_again_between_the_hold_and_the_money_is_not_sold_it_twice(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Already SOLD in Redis when the units are held again, and not yet PAID in Postgres: its payment is seen."""
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2})
    await report(goods, adapter, ended)
    find_wanted = orders.find_wanted

    async def at_the_last_moment(*args: Any) -> Any:
        await goods.buy(mug=1)
        return await find_wanted(*args)

    monkeypatch.setattr(orders, "find_wanted", at_the_last_moment)
    desk = Cards(goods.stores.gate, goods.stores.postgres, adapter, currency="KRW")
    await desk.climb(await goods.sale(), ended)
    assert (await outcome(goods, ended)).reason == "ordered_again"
    await goods.drain()
    assert await goods.left() == {"mug": EACH - 1, "cap_s": EACH, "cap_l": EACH}
    await go_on(goods, adapter)
    await prove(goods)


# Coupons --------------------------------------------------------------------------------------------------------------


async def test_a_coupon_that_is_free_again_is_used_by_the_new_payment(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    named = await coupon(goods, discount_amount=OFF)
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2}, user_coupon_id=named)
    assert (ended.card_amount, await standing(goods, named)) == (2 * MUG - OFF, ("AVAILABLE", False))
    await report(goods, adapter, ended)
    desk = Cards(goods.stores.gate, goods.stores.postgres, adapter, currency="KRW")
    new = await desk.climb(await goods.sale(), ended)
    # Reserved by the very transaction that wrote the payment.
    assert (new.status, new.user_coupon_id, await standing(goods, named)) == ("PENDING", named, ("RESERVED", True))
    await go_on(goods, adapter)
    late = await outcome(goods, ended)
    assert (late.status, late.amount) == ("SOLD", 2 * MUG - OFF)
    assert await goods.rows("SELECT status, payment_id, order_id FROM user_coupons") == [
        ("USED", late.new_payment_id, late.new_hold_id)
    ]
    assert await goods.rows("SELECT discount_amount, total_amount FROM orders WHERE status = 'PAID'") == [
        (OFF, 2 * MUG - OFF)
    ]
    assert await ledger_of(gateway, ended) == ("succeeded", 0, 2 * MUG - OFF, 0)
    await prove(goods)


async def test_seats_with_a_coupon_are_bought_with_it_again(
    stores: Stores, gateway: Operator, adapter: StripeGateway
) -> None:
    shop = await open_shop(stores)
    named = await coupon(shop, type="RATE", discount_amount=None, discount_rate=25)
    async with counter(shop, adapter, answer_within_s=0.0) as till:
        hold_id = await shop.hold("A-1-1", "A-1-2")
        tender = split(10_000, LATE)
        ended = await end_payment_of(shop, gateway, adapter, till, hold_id, user_coupon_id=named, tender=tender)
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.amount, late.is_order) == ("SOLD", 2 * PRICE * 3 // 4 - 10_000, False)
    assert await shop.rows("SELECT status, payment_id, reservation_id FROM user_coupons") == [
        ("USED", late.new_payment_id, late.new_hold_id)
    ]
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(10_000_000 - 10_000, 0)]
    await shop.check()


async def reserved_for_another(goods: Goods, named: str) -> None:
    request = await goods.begin_payment(await goods.hold(cap_s=1))
    [payment] = await authorisations.authorise(goods.stores.postgres, [with_coupon(request, named)])
    assert isinstance(payment, Payment)
    assert payment.status == "AUTHORISED"


async def window_over(goods: Goods, named: str) -> None:
    await goods.stores.postgres.execute("UPDATE user_coupons SET usable_to = now() WHERE user_coupon_id = $1", named)


def with_coupon(request: Authorisation, named: str) -> Authorisation:
    """The same request with a coupon."""
    return Authorisation(
        payment_id=request.payment_id,
        fingerprint=request.fingerprint,
        holding=request.holding,
        pay_deadline_ms=request.pay_deadline_ms,
        user_coupon_id=named,
    )


@pytest.mark.parametrize(
    ("meanwhile", "stands"), [(reserved_for_another, ("RESERVED", True)), (window_over, ("AVAILABLE", False))]
)
async def test_a_coupon_that_cannot_be_used_again_sends_the_money_back(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till, meanwhile: Any, stands: tuple[str, bool]
) -> None:
    named = await coupon(goods, discount_amount=OFF)
    tender = split(100, LATE)
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2}, user_coupon_id=named, tender=tender)
    await meanwhile(goods, named)
    left = await goods.left()
    await report(goods, adapter, ended)
    desk = Cards(goods.stores.gate, goods.stores.postgres, adapter, currency="KRW")
    await desk.climb(await goods.sale(), ended)
    late = await outcome(goods, ended)
    assert (late.status, late.reason) == ("RETURNED", "coupon_unusable")
    assert await standing(goods, named) == stands
    assert await goods.left() == left
    await go_on(goods, adapter)
    assert await ledger_of(gateway, ended) == ("canceled", 0, 0, 0)
    assert await goods.set_aside("ann") == 0
    await goods.check()


async def test_a_coupon_that_takes_off_another_amount_sends_the_money_back_and_stays_free(
    goods: Goods, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    """Terms are those of the issue, so that nobody can change them; whatever did, no other amount is taken."""
    named = await coupon(goods, discount_amount=OFF)
    ended = await end_a_payment(goods, gateway, adapter, till, units={"mug": 2}, user_coupon_id=named)
    await goods.stores.postgres.execute("UPDATE user_coupons SET discount_amount = discount_amount + 1")
    await report(goods, adapter, ended)
    await go_on(goods, adapter)
    late = await outcome(goods, ended)
    assert (late.status, late.reason) == ("RETURNED", "amount_differs")
    assert late.new_payment_id not in await payments.read(goods.stores.postgres, [late.new_payment_id])
    assert await standing(goods, named) == ("AVAILABLE", False)
    assert await goods.left() == dict.fromkeys(goods.variants, EACH)
    assert await ledger_of(gateway, ended) == ("canceled", 0, 0, 0)


# The script alone -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def stall(redis_any: RedisClient) -> AsyncIterator[Stall]:
    """Ten mugs, caps and shirts each."""
    stall = await open_stall(redis_any)
    yield stall
    await stall.check()


async def hold_again(stall: Stall, *, at: tuple[int, ...] = (1_200,), key: str = "late", **units: int) -> Any:
    """Ask for these units at these prices, `mug=2`."""
    return await stock.hold_again(
        stall.gate,
        stall.sale,
        hold_id=ids.derive(key),
        buyer_id=buyer("ann"),
        fingerprint="f" * 16,
        lines=[Units(variant_id, quantity).told for variant_id, quantity in units.items()],
        prices=at,
    )


async def test_an_id_holds_again_once(stall: Stall) -> None:
    held = await hold_again(stall, at=(1_200, 2_500), mug=2, cap=1)
    assert isinstance(held, stock.Held)
    assert (held.units, held.amount) == ("mug:2,cap:1", 2 * 1_200 + 2_500)
    assert await hold_again(stall, at=(1_200, 2_500), mug=2, cap=1) == HoldKnown("HELD")
    await stall.held(id_=ids.derive("other"), by="ann", mug=1)
    assert await hold_again(stall, key="other", mug=1) == IdempotencyKeyReused()
    assert [(entry["kind"], entry["queue_no"]) for entry in await stall.entries()] == [("held", "0")] * 2
    assert await stall.left() == {"mug": EACH - 3, "cap": EACH - 1, "shirt": EACH}


async def test_a_room_that_is_on_asks_for_no_token_and_a_closed_one_sells_nothing(stall: Stall) -> None:
    await stall.set(room="closed")
    assert await hold_again(stall, mug=1) == SaleClosed()
    await stall.set(room="paused")
    assert isinstance(await hold_again(stall, mug=1), stock.Held)


async def test_what_stands_in_the_way_of_holding_again_is_named(stall: Stall) -> None:
    await stall.held(by="bob", mug=9)
    assert await hold_again(stall, mug=2) == stock.SoldOut(("mug 2 1",))
    assert await hold_again(stall, at=(1_200, 1), mug=1, moon=1) == stock.UnitUnknown(("moon",))
    assert await hold_again(stall, at=(1_201,), mug=1) == PriceChanged()
    await stall.set(per_buyer_max=2)
    assert await hold_again(stall, at=(2_500,), cap=3) == LimitReached(2, 0)
    mine = await stall.held(mug=1)
    assert await hold_again(stall, at=(2_500, 1_200), cap=1, mug=1) == stock.OrderedAgain(("mug",))
    await mine.pay()
    assert await hold_again(stall, mug=1) == stock.OrderedAgain(("mug",))
    await mine.abandon()
    await mine.release()
    assert isinstance(await hold_again(stall, mug=1), stock.Held)


async def test_a_hold_of_the_buyer_that_lapsed_stands_in_nobodys_way(stall: Stall) -> None:
    mine = await stall.held(mug=EACH)
    await mine.lapse()
    assert isinstance(await hold_again(stall, mug=EACH), stock.Held)


async def test_nothing_is_held_again_before_a_sale_opens_after_it_closes_or_while_postgres_is_behind(
    stall: Stall,
) -> None:
    now_ms = await stall.now_ms()
    await stall.set(opens_at_ms=now_ms + 60_000)
    assert await hold_again(stall, mug=1) == SaleNotOpen(now_ms + 60_000)
    await stall.set(opens_at_ms=0, closes_at_ms=now_ms)
    assert await hold_again(stall, mug=1) == SaleClosed()
    await stall.set(closes_at_ms=0, backlog_max=1, journal_n=5)
    assert await hold_again(stall, mug=1) == Busy(1000)
    await stall.set(journal_n=0)


async def test_while_others_wait_for_units_a_lapsed_hold_gives_none_away(stall: Stall) -> None:
    theirs = await stall.held(by="bob", mug=EACH)
    await theirs.lapse()
    await stall.set(waiting_list=1)
    assert await hold_again(stall, mug=1) == stock.SoldOut(("mug 1 0",))
    await stall.set(waiting_list=0)
    assert isinstance(await hold_again(stall, mug=1), stock.Held)
