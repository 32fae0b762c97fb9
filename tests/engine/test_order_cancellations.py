"""Units that were bought are given back: stock, lines, what buyers own and money, exactly once and to the last unit."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import authorisations, cancellations, ids, order_cancellations, reconciliation, stock
from engine.authorisations import Authorisation
from engine.cancellations import Cancellation, CancellationClosed, Line, Rule
from engine.order_cancellations import Quote
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.seats import Confirmed, HoldUnknown, PaymentRunning
from engine.stock import Units, UnitUnknown
from engine.stores.connections import Stores
from engine.stores.replies import SaleRebuilding
from tests.goods import EACH, PRICES, Goods, open_goods
from tests.shop import together

MUG, CAP = PRICES["mug"], PRICES["cap"]
RICH = 10_000_000


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open."""
    return await open_goods(stores)


async def bought(goods: Goods, *, by: str = "ann", **units: int) -> Authorisation:
    """Units that somebody has bought, and Postgres has it."""
    request = await goods.buy(by=by, **units)
    await goods.drain()
    return request


def named(goods: Goods, units: Mapping[str, int]) -> list[Units]:
    return [Units(goods.variants.get(name, name), quantity) for name, quantity in units.items()]


async def cancel(
    goods: Goods,
    order_id: str,
    *,
    by: str | None = "ann",
    key: str = "k",
    refund_to: Literal["SOURCE", "BALANCE"] = "SOURCE",
    **units: int,
) -> Any:
    return await order_cancellations.cancel(
        goods.stores.gate,
        goods.stores.postgres,
        goods.book,
        cancellation_id=ids.derive("cancellation", order_id, key),
        order_id=order_id,
        user_id=None if by is None else await goods.person(by),
        units=named(goods, units),
        refund_to=refund_to,
    )


async def quote(goods: Goods, order_id: str, *, by: str = "ann", **units: int) -> Any:
    return await order_cancellations.quote(
        goods.stores.gate,
        goods.stores.postgres,
        goods.book,
        order_id=order_id,
        user_id=await goods.person(by),
        units=named(goods, units),
    )


async def set_terms(goods: Goods, *policy: Mapping[str, int], closes_in: timedelta | None = None) -> None:
    await goods.stores.postgres.execute(
        "UPDATE sales SET refund_policy = $2, closes_at = now() + $3 WHERE sale_id = $1",
        goods.sale_id,
        list(policy),
        closes_in,
    )


async def discount(goods: Goods, request: Authorisation, **discounts: int) -> None:
    """Let so much of each line have been paid by a coupon."""
    postgres, order_id = goods.stores.postgres, request.holding.hold_id
    for name, amount in discounts.items():
        await postgres.execute(
            "UPDATE order_items SET discount_amount = $3, total_price = quantity * unit_price - $3 "
            "WHERE order_id = $1 AND variant_id = $2",
            order_id,
            goods.variants[name],
            amount,
        )
    given = sum(discounts.values())
    await postgres.execute(
        "UPDATE orders SET discount_amount = $2, total_amount = original_amount - $2, user_coupon_id = order_id "
        "WHERE order_id = $1",
        order_id,
        given,
    )
    await postgres.execute(
        "UPDATE payments SET discount_amount = $2, final_amount = original_amount - $2, "
        "balance_amount = original_amount - $2, user_coupon_id = payment_id WHERE payment_id = $1",
        request.payment_id,
        given,
    )


async def pay_by_card(goods: Goods, payment_id: str, *, card: int, status: str = "PENDING") -> None:
    """Let a card have paid so much of a payment, which still has to be captured, or was."""
    await goods.stores.postgres.execute(
        "UPDATE payments SET method = CASE WHEN final_amount = $2 THEN 'CARD' ELSE 'SPLIT' END, "
        "balance_amount = final_amount - $2, card_amount = $2, "
        "captured_amount = CASE $3 WHEN 'DONE' THEN $2 ELSE 0 END WHERE payment_id = $1",
        payment_id,
        card,
        status,
    )
    await goods.stores.postgres.execute(
        "INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status) "
        "VALUES ($1, $2, 'CAPTURE', $3, $4)",
        ids.derive("gateway", "CAPTURE", payment_id),
        payment_id,
        card,
        status,
    )


# The policy -----------------------------------------------------------------------------------------------------------

CLOSES = datetime(2031, 5, 1, 19, tzinfo=UTC)
POLICY = (Rule(48, 100), Rule(24, 50), Rule(0, 10))


@pytest.mark.parametrize(
    ("policy", "before", "expected"),
    [
        (POLICY, timedelta(days=90), Rule(48, 100)),
        (POLICY, timedelta(hours=48, microseconds=-1), Rule(24, 50)),
        (POLICY, timedelta(0), Rule(0, 10)),
        (POLICY, timedelta(microseconds=-1), CancellationClosed(reason="TOO_LATE")),
        (POLICY, None, Rule(48, 100)),
        ((), timedelta(days=-90), None),
        ((), None, None),
    ],
)
def test_hours_are_counted_to_the_moment_when_the_sale_closes(
    policy: tuple[Rule, ...], before: timedelta | None, expected: object
) -> None:
    now = CLOSES - (before or timedelta(0))
    closes_at = None if before is None else CLOSES
    assert order_cancellations.rule_of(policy, closes_at=closes_at, now=now) == expected


@given(
    st.integers(0, 10**12),
    st.integers(1, 10**6),
    st.integers(0, 100),
    st.data(),
)
def test_parts_of_a_line_come_to_what_the_whole_would_have_given(
    price: int, quantity: int, percent: int, data: st.DataObject
) -> None:
    returned, parts = 0, 0
    while returned < quantity:
        more = data.draw(st.integers(1, quantity - returned)) if returned < 5 else quantity - returned
        line = Line(price, quantity, returned)
        part = line.worth(more, percent)
        assert 0 <= part <= line.worth(more)
        returned, parts = returned + more, parts + part
        assert parts == cancellations.share_of(price * returned // quantity, percent)
    assert parts == cancellations.share_of(price, percent) == Line(price, quantity).worth(quantity, percent)


# Whole ----------------------------------------------------------------------------------------------------------------


async def test_what_is_cancelled_whole_is_undone_whole(stores_any: Stores) -> None:
    goods = await open_goods(stores_any, per_buyer_max=5)
    request = await bought(goods, mug=3, cap_l=2)
    order_id, payment_id, paid = request.holding.hold_id, request.payment_id, 3 * MUG + 2 * CAP

    given_back = await cancel(goods, order_id)

    assert isinstance(given_back, Cancellation)
    assert (given_back.order_id, given_back.reservation_id, given_back.seat_nos) == (order_id, None, ())
    assert dict(zip(given_back.variant_ids, given_back.quantities, strict=True)) == {
        goods.variants["mug"]: 3,
        goods.variants["cap_l"]: 2,
    }
    assert (given_back.reason, given_back.refund_amount, given_back.kept_amount) == ("USER", paid, 0)
    (refund,) = given_back.refunds
    assert (refund.payment_id, refund.amount, refund.refund_to, refund.status) == (payment_id, paid, "BALANCE", "DONE")
    assert await goods.order(order_id) == ("REFUNDED", None)
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("REFUNDED", paid)]
    assert await goods.rows("SELECT DISTINCT status, quantity - refunded_quantity FROM order_items") == [("SOLD", 0)]
    assert await goods.rows("SELECT count(*), count(returned_at) FROM user_items") == [(5, 5)]
    assert await goods.rows("SELECT amount, set_aside, version FROM balances") == [(RICH, 0, 2)]
    assert await goods.rows(
        "SELECT amount, balance_after, version, reason, ref_type, ref_id, payment_id FROM balance_history "
        "WHERE type = 'REFUND'"
    ) == [(paid, RICH, 2, "USER", "refund", refund.refund_id, payment_id)]

    # Redis was told before the answer: others may have the units, and their old owner may buy as many again.
    assert await goods.left() == dict.fromkeys(goods.variants, EACH)
    held = await stock.find(goods.stores.gate, await goods.sale(), hold_id=order_id)
    assert isinstance(held, stock.Hold)
    assert (held.state, held.reason) == ("ENDED", "USER")
    await goods.release(await goods.hold(mug=EACH - 5, by="bob"), by="bob")
    await goods.release(await goods.hold(cap_l=5))
    await goods.drain()
    await goods.check()


async def test_what_was_given_back_is_bought_by_somebody_else(stores_any: Stores) -> None:
    goods = await open_goods(stores_any)
    first = await bought(goods, mug=EACH)
    assert isinstance(await cancel(goods, first.holding.hold_id, mug=4), Cancellation)
    second = await bought(goods, mug=4, by="bob")
    assert await goods.payment(second.payment_id) == "SUCCESS"
    assert (await goods.left_in_postgres())["mug"] == 0
    await goods.check()


async def test_a_refunded_order_that_is_told_again_stays_refunded(goods: Goods) -> None:
    request = await bought(goods, mug=2)
    order_id = request.holding.hold_id
    await cancel(goods, order_id, mug=1)
    assert isinstance(await goods.confirm(request), Confirmed)
    await cancel(goods, order_id, key="rest")
    assert isinstance(await goods.confirm(request), HoldUnknown)
    await goods.drain()
    assert await goods.order(order_id) == ("REFUNDED", None)
    await goods.check()


# Part -----------------------------------------------------------------------------------------------------------------


async def test_what_is_cancelled_in_part_is_partially_refunded(stores_any: Stores) -> None:
    goods = await open_goods(stores_any, per_buyer_max=5)
    request = await bought(goods, mug=3, cap_s=2)
    order_id = request.holding.hold_id

    given_back = await cancel(goods, order_id, mug=2)

    assert (given_back.variant_ids, given_back.quantities) == ((goods.variants["mug"],), (2,))
    assert given_back.refund_amount == 2 * MUG
    assert await goods.order(order_id) == ("PARTIALLY_REFUNDED", None)
    assert await goods.rows("SELECT ended_at FROM orders") == [(None,)]
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", 2 * MUG)]
    assert await goods.rows("SELECT variant_id, refunded_quantity FROM order_items WHERE refunded_quantity > 0") == [
        (goods.variants["mug"], 2)
    ]
    assert await goods.rows(
        "SELECT variant_id, count(*), count(returned_at) FROM user_items GROUP BY 1 ORDER BY 2"
    ) == [
        (goods.variants["cap_s"], 2, 0),
        (goods.variants["mug"], 3, 2),
    ]
    # Three are left to their buyer, who may have two more and no three.
    refused = await goods.try_hold(ids.derive_in(goods.sale_id, "more"), mug=3)
    assert refused == LimitReached(limit=5, have=3)
    await goods.release(await goods.hold(mug=2))
    await goods.drain()
    await goods.check()
    # Redis says what it counts now, so that nothing is given back twice once it has forgotten the hold.
    assert (await goods.lines(order_id))["mug"] == (3, "SOLD", 1)


async def test_a_part_and_then_the_rest(stores_any: Stores) -> None:
    goods = await open_goods(stores_any, per_buyer_max=4)
    order_id = (await bought(goods, mug=3, cap_s=1)).holding.hold_id
    await cancel(goods, order_id, mug=1, key="one")
    await goods.drain()
    rest = await cancel(goods, order_id, key="rest")
    assert dict(zip(rest.variant_ids, rest.quantities, strict=True)) == {
        goods.variants["mug"]: 2,
        goods.variants["cap_s"]: 1,
    }
    assert rest.refund_amount == 2 * MUG + CAP
    assert await goods.order(order_id) == ("REFUNDED", None)
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("REFUNDED", 3 * MUG + CAP)]
    assert await goods.rows("SELECT amount, version FROM balances") == [(RICH, 3)]
    assert await goods.rows("SELECT count(*) FROM user_items WHERE returned_at IS NULL") == [(0,)]
    await goods.drain()
    await goods.check()
    await goods.hold(mug=4)


async def test_no_more_is_given_back_than_was_bought(goods: Goods) -> None:
    order_id = (await bought(goods, mug=3, cap_s=1)).holding.hold_id
    mug, cap_s, cap_l = (goods.variants[name] for name in ("mug", "cap_s", "cap_l"))
    assert await cancel(goods, order_id, mug=4) == UnitUnknown(variant_ids=(mug,))
    await cancel(goods, order_id, mug=2, cap_s=1, key="one")
    assert await cancel(goods, order_id, mug=2, cap_s=1, key="two") == UnitUnknown(variant_ids=(mug, cap_s))
    assert await cancel(goods, order_id, mug=1, cap_l=1, key="three") == UnitUnknown(variant_ids=(cap_l,))
    assert await quote(goods, order_id, mug=2) == UnitUnknown(variant_ids=(mug,))
    assert await goods.rows("SELECT refunded_amount FROM payments") == [(2 * MUG + CAP,)]
    await cancel(goods, order_id, mug=1, key="four")
    assert await goods.order(order_id) == ("REFUNDED", None)
    assert await cancel(goods, order_id, key="five") == CancellationClosed(reason="ENDED")
    await goods.drain()
    await goods.check()


async def test_a_variant_that_is_named_twice_is_one_line(goods: Goods) -> None:
    order_id = (await bought(goods, mug=3)).holding.hold_id
    mug = goods.variants["mug"]
    wish: dict[str, Any] = {"cancellation_id": ids.random_id(), "order_id": order_id}
    places = (goods.stores.gate, goods.stores.postgres, goods.book)
    twice = await order_cancellations.cancel(*places, **wish, units=[Units(mug, 1), Units(mug, 1)])
    once = await order_cancellations.cancel(*places, **wish, units=[Units(mug, 2)])
    assert isinstance(twice, Cancellation)
    assert isinstance(once, Cancellation)
    assert (twice.quantities, twice.repeated, once.repeated) == ((2,), False, True)


# Money ----------------------------------------------------------------------------------------------------------------


async def test_a_line_gives_back_what_was_paid_for_it_after_its_discount(goods: Goods) -> None:
    request = await bought(goods, mug=3, cap_s=1)
    await discount(goods, request, mug=1001, cap_s=500)
    order_id, paid = request.holding.hold_id, 3 * MUG - 1001
    parts = [await cancel(goods, order_id, mug=1, key=str(at)) for at in range(3)]
    assert [part.refund_amount for part in parts] == [paid // 3, paid * 2 // 3 - paid // 3, paid - paid * 2 // 3]
    assert [part.kept_amount for part in parts] == [0, 0, 0]
    assert (await cancel(goods, order_id, key="rest")).refund_amount == CAP - 500
    assert await goods.rows("SELECT status, refunded_amount = final_amount FROM payments") == [("REFUNDED", True)]


@pytest.mark.parametrize("seed", range(6))
async def test_random_parts_pay_back_what_the_whole_was_quoted(goods: Goods, seed: int) -> None:
    rng = random.Random(seed)
    units: dict[str, Any] = {name: rng.randint(1, EACH) for name in goods.variants}
    request = await bought(goods, **units)
    order_id = request.holding.hold_id
    most = {"mug": MUG, "cap_s": CAP, "cap_l": CAP}
    await discount(goods, request, **{name: rng.randint(0, most[name] * units[name]) for name in units})
    await set_terms(goods, {"hours_before": 1, "percent": rng.randint(1, 99)})
    paid: int = await goods.stores.postgres.fetchval("SELECT final_amount FROM payments")
    whole = await quote(goods, order_id)
    assert whole.amount + whole.kept == paid
    rest = [name for name, quantity in units.items() for _ in range(quantity)]
    rng.shuffle(rest)
    amount = kept = made = 0
    while rest:
        at = rng.randint(1, len(rest))
        part, rest = rest[:at], rest[at:]
        wished: dict[str, Any] = {name: part.count(name) for name in set(part)}
        told = await quote(goods, order_id, **wished)
        made += 1
        done = await cancel(goods, order_id, key=str(made), **wished)
        assert (told.amount, told.kept) == (done.refund_amount, done.kept_amount)
        amount, kept = amount + done.refund_amount, kept + done.kept_amount
    assert (amount, kept) == (whole.amount, whole.kept)
    assert await goods.order(order_id) == ("REFUNDED", None)
    await goods.drain()
    await goods.check()


async def test_what_cost_nothing_is_refunded_once_all_of_it_is_back(goods: Goods) -> None:
    request = await bought(goods, mug=2)
    await discount(goods, request, mug=2 * MUG)
    order_id = request.holding.hold_id
    part = await cancel(goods, order_id, mug=1)
    assert (part.refund_amount, part.refunds) == (0, ())
    assert await goods.rows("SELECT status FROM payments") == [("SUCCESS",)]
    await cancel(goods, order_id, key="rest")
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("REFUNDED", 0)]
    assert await goods.order(order_id) == ("REFUNDED", None)


async def test_the_card_is_paid_back_first(goods: Goods) -> None:
    request = await bought(goods, mug=3)
    await pay_by_card(goods, request.payment_id, card=2_000, status="DONE")
    order_id = request.holding.hold_id
    first = await cancel(goods, order_id, mug=1, key="one")
    assert [(refund.refund_to, refund.amount, refund.status) for refund in first.refunds] == [("CARD", MUG, "PENDING")]
    second = await cancel(goods, order_id, key="rest")
    assert [(refund.refund_to, refund.amount, refund.status) for refund in second.refunds] == [
        ("CARD", 2_000 - MUG, "PENDING"),
        ("BALANCE", 3 * MUG - 2_000, "DONE"),
    ]
    assert await goods.rows("SELECT kind, amount FROM gateway_operations WHERE kind <> 'CAPTURE' ORDER BY 2") == [
        ("REFUND", 2_000 - MUG),
        ("REFUND", MUG),
    ]


async def test_a_card_that_was_not_yet_captured_is_let_go(goods: Goods) -> None:
    request = await bought(goods, mug=1)
    await pay_by_card(goods, request.payment_id, card=MUG)
    await cancel(goods, request.holding.hold_id)
    assert await goods.rows("SELECT kind, status, amount FROM gateway_operations") == [("VOID", "PENDING", MUG)]


async def test_all_of_it_to_the_balance_at_once(goods: Goods) -> None:
    request = await bought(goods, mug=1)
    await pay_by_card(goods, request.payment_id, card=MUG, status="DONE")
    done = await cancel(goods, request.holding.hold_id, refund_to="BALANCE")
    assert [(refund.refund_to, refund.amount, refund.status) for refund in done.refunds] == [("BALANCE", MUG, "DONE")]
    assert await goods.rows("SELECT count(*) FROM gateway_operations WHERE kind <> 'CAPTURE'") == [(0,)]


async def test_a_buyer_gets_back_by_the_policy_and_an_operator_gives_in_full(goods: Goods) -> None:
    order_id = (await bought(goods, mug=4)).holding.hold_id
    await set_terms(goods, {"hours_before": 24, "percent": 33}, closes_in=timedelta(hours=25))
    assert await quote(goods, order_id, mug=1) == Quote(
        units=(Units(goods.variants["mug"], 1),), amount=396, kept=MUG - 396, rule=Rule(24, 33)
    )
    assert (await cancel(goods, order_id, mug=1, key="one")).refund_amount == 396
    await set_terms(goods, {"hours_before": 24, "percent": 33}, closes_in=timedelta(hours=23))
    assert await quote(goods, order_id) == CancellationClosed(reason="TOO_LATE")
    assert await cancel(goods, order_id, key="two") == CancellationClosed(reason="TOO_LATE")
    given = await cancel(goods, order_id, mug=1, by=None, key="three")
    assert (given.reason, given.refund_amount, given.user_id) == ("ADMIN", MUG, await goods.person("ann"))
    await set_terms(goods, {"hours_before": 24, "percent": 0})
    assert (await cancel(goods, order_id, key="rest")).refund_amount == 0
    assert await goods.order(order_id) == ("REFUNDED", None)
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", 396 + MUG)]
    await goods.check()


async def test_without_a_policy_goods_go_back_after_their_sale_has_closed(goods: Goods) -> None:
    order_id = (await bought(goods, mug=1)).holding.hold_id
    await set_terms(goods, closes_in=timedelta(days=-9))
    assert (await quote(goods, order_id)).rule is None
    assert (await cancel(goods, order_id)).refund_amount == MUG


async def test_what_no_card_has_paid_only_an_operator_gives_back(goods: Goods) -> None:
    request = await bought(goods, mug=2)
    order_id = request.holding.hold_id
    await pay_by_card(goods, request.payment_id, card=2_000, status="REFUSED")
    await goods.stores.postgres.execute("UPDATE payments SET status = 'UNCOLLECTED'")
    assert await cancel(goods, order_id) == CancellationClosed(reason="UNCOLLECTED")
    done = await cancel(goods, order_id, by=None)
    assert (done.refund_amount, done.kept_amount) == (2 * MUG - 2_000, 0)
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("UNCOLLECTED", 2 * MUG - 2_000)]


# What cannot be cancelled ---------------------------------------------------------------------------------------------


async def test_what_is_not_paid_yet(goods: Goods) -> None:
    order_id = await goods.hold(mug=1)
    unpaid = CancellationClosed(reason="UNPAID")
    assert await cancel(goods, order_id) == unpaid
    await goods.drain()
    assert [await cancel(goods, order_id), await quote(goods, order_id)] == [unpaid, unpaid]
    request = await goods.begin_payment(order_id)
    running = PaymentRunning(payment_id=request.payment_id)
    assert [await cancel(goods, order_id), await quote(goods, order_id)] == [running, running]
    await goods.set_funds_aside(request)
    assert [await cancel(goods, order_id), await quote(goods, order_id)] == [running, running]
    assert isinstance(await goods.confirm(request), Confirmed)
    assert [await cancel(goods, order_id), await quote(goods, order_id)] == [running, running]
    await goods.drain()
    assert isinstance(await cancel(goods, order_id), Cancellation)


async def test_what_ended_unpaid(goods: Goods) -> None:
    order_id = await goods.hold(mug=1)
    await goods.release(order_id)
    ended = CancellationClosed(reason="ENDED")
    assert await cancel(goods, order_id) == ended
    await goods.drain()
    assert [await cancel(goods, order_id), await quote(goods, order_id)] == [ended, ended]


async def test_what_is_not_mine_is_not_there(goods: Goods) -> None:
    order_id = (await bought(goods, mug=1)).holding.hold_id
    held = await goods.hold(mug=1)
    for each in (order_id, held, ids.derive_in(goods.sale_id, "nobody"), ids.random_id()):
        assert await cancel(goods, each, by="bob") == NotFound()
        assert await quote(goods, each, by="bob") == NotFound()
    assert await goods.order(order_id) == ("PAID", None)


async def test_a_sale_that_is_rebuilt_knows_its_holds_later(goods: Goods) -> None:
    order_id = await goods.hold(mug=1)
    sale = await goods.sale()
    await goods.stores.redis.execute_command("HSET", sale.keys.sale, "state", "rebuilding")
    assert await cancel(goods, order_id) == SaleRebuilding()


async def test_a_key_acts_once_and_means_one_wish(goods: Goods) -> None:
    order_id = (await bought(goods, mug=3)).holding.hold_id
    first = await cancel(goods, order_id, mug=1)
    again = await cancel(goods, order_id, mug=1)
    assert again.repeated
    assert (again.refunds, again.quantities) == (first.refunds, first.quantities)
    assert await cancel(goods, order_id, mug=2) == IdempotencyKeyReused()
    assert await cancel(goods, order_id, mug=1, refund_to="BALANCE") == IdempotencyKeyReused()
    assert await goods.rows("SELECT refunded_amount FROM payments") == [(MUG,)]
    await goods.check()


# Redis ----------------------------------------------------------------------------------------------------------------


async def test_units_that_redis_did_not_hear_of_are_given_back_later_and_once(
    stores_any: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a process that died between its commit and its word to Redis."""
    goods = await open_goods(stores_any)
    order_id = (await bought(goods, mug=3)).holding.hold_id
    with monkeypatch.context() as dying:

        async def die(*_args: object, **_more: object) -> None:
            pass

        dying.setattr(cancellations, "tell_redis", die)
        await cancel(goods, order_id, mug=2)
    assert (await goods.left())["mug"] == EACH - 3
    assert (await goods.left_in_postgres())["mug"] == EACH - 1
    sale, postgres = await goods.sale(), goods.stores.postgres
    for times in (1, 0):
        assert await reconciliation.give_back(goods.stores.gate, postgres, sale, most=10) == times
        await goods.drain()
        await goods.check()
    # Told again, by somebody who died before the row said that it was done.
    await postgres.execute("UPDATE restores SET done_at = NULL")
    assert await reconciliation.give_back(goods.stores.gate, postgres, sale, most=10) == 1
    await goods.drain()
    await goods.check()


@pytest.mark.parametrize("drained", [True, False])
async def test_units_of_a_hold_that_redis_has_forgotten_are_given_back_once(goods: Goods, *, drained: bool) -> None:
    order_id = (await bought(goods, mug=5)).holding.hold_id
    sale = await goods.sale()
    keys = sale.keys
    await goods.stores.redis.execute_command("HDEL", keys.holds, order_id)
    await goods.stores.redis.execute_command("ZREM", keys.ended, order_id)
    for at in range(3):
        await cancel(goods, order_id, mug=1, key=str(at))
        if drained:
            await goods.drain()
        await goods.stores.postgres.execute("UPDATE restores SET done_at = NULL")
        assert await reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10) == 1
        assert (await goods.left())["mug"] == EACH - 4 + at
    await goods.drain()
    await goods.check()


async def test_what_is_given_back_outlives_a_rebuild(goods: Goods) -> None:
    request = await bought(goods, mug=3, cap_s=1)
    other = await bought(goods, cap_l=2, by="bob")
    await cancel(goods, request.holding.hold_id, mug=2)
    await cancel(goods, other.holding.hold_id, by="bob")
    await goods.drain()
    await goods.rebuild()
    assert await goods.left() == {"mug": EACH - 1, "cap_s": EACH - 1, "cap_l": EACH}
    await cancel(goods, request.holding.hold_id, key="rest")
    await goods.drain()
    await goods.check()
    assert await goods.left() == dict.fromkeys(goods.variants, EACH)


async def test_a_cancellation_that_a_rebuild_overtook_frees_its_units_once(
    goods: Goods, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = (await bought(goods, mug=3)).holding.hold_id
    before = await goods.sale()
    with monkeypatch.context() as dying:

        async def die(*_args: object, **_more: object) -> None:
            pass

        dying.setattr(cancellations, "tell_redis", die)
        await cancel(goods, order_id, mug=2)
    await goods.rebuild()
    assert (await goods.left())["mug"] == EACH - 1
    for sale in (before, await goods.sale()):
        await reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10)
        await goods.drain()
        await goods.check()


# With other people's payments -----------------------------------------------------------------------------------------


async def test_cancelling_while_another_order_settles_keeps_every_balance_and_unit(goods: Goods) -> None:
    first = await bought(goods, mug=6)
    other = await goods.authorise(await goods.hold(mug=4))
    assert isinstance(await goods.confirm(other), Confirmed)
    await together(goods.drain(), cancel(goods, first.holding.hold_id, mug=6))
    await goods.drain()
    await goods.check()
    assert await goods.rows("SELECT amount FROM balances") == [(RICH - 4 * MUG,)]


async def test_funds_that_are_set_aside_stay_aside(goods: Goods) -> None:
    first = await bought(goods, mug=1)
    request = await goods.begin_payment(await goods.hold(cap_s=1))
    assert await authorisations.authorise(goods.stores.postgres, [request])
    await cancel(goods, first.holding.hold_id)
    assert await goods.rows("SELECT amount, set_aside FROM balances") == [(RICH, CAP)]
