"""Races of orders that are given back, each beside the simpler rule that loses it."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from engine import authorisations, cancellations, ids, order_cancellations, reconciliation, settlement
from engine.authorisations import Authorisation
from engine.cancellations import Cancellation, CancellationClosed
from engine.payments import Payment
from engine.seats import Confirmed, PaymentRunning
from engine.stock import Units, UnitUnknown
from engine.stores.connections import Stores
from engine.stores.outbox import Entry
from tests.goods import EACH, PRICES, Goods, confirmed, open_goods
from tests.races.dying_returner import Errand

MUG, CAP = PRICES["mug"], PRICES["cap"]
RICH = 10_000_000


@pytest.fixture
async def goods(stores: Stores) -> Goods:
    """A drop of mugs and caps that is open."""
    return await open_goods(stores)


async def bought(goods: Goods, *, by: str = "ann", **units: int) -> Authorisation:
    request = await goods.buy(by=by, **units)
    await goods.drain()
    return request


async def cancel(goods: Goods, order_id: str, *, key: str, by: str | None = "ann", **units: int) -> Any:
    return await order_cancellations.cancel(
        goods.stores.gate,
        goods.stores.postgres,
        goods.book,
        cancellation_id=ids.derive("cancellation", order_id, key),
        order_id=order_id,
        user_id=None if by is None else await goods.person(by),
        units=[Units(goods.variants[name], quantity) for name, quantity in units.items()],
    )


async def waiting(goods: Goods, count: int) -> None:
    """Wait until so many transactions wait for a lock."""
    async with asyncio.timeout(20):
        while (  # noqa: ASYNC110 - it has to be asked
            await goods.stores.postgres.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            < count
        ):
            await asyncio.sleep(0.005)


@asynccontextmanager
async def locked(goods: Goods, name: str) -> AsyncIterator[None]:
    """Have what is left of a variant locked, as the worker that sells it has."""
    async with goods.stores.postgres.acquire() as connection, connection.transaction():
        await connection.execute(
            "SELECT FROM product_variants WHERE variant_id = $1 FOR NO KEY UPDATE", goods.variants[name]
        )
        yield


# One unit, given back twice -------------------------------------------------------------------------------------------


async def test_control_without_the_payments_lock_a_unit_is_refunded_twice(goods: Goods) -> None:
    """The simpler rule: look how many are left, then give the money back."""
    request = await bought(goods, mug=2)
    order_id, user_id, postgres = request.holding.hold_id, request.holding.user_id, goods.stores.postgres
    both_have_looked = asyncio.Barrier(2)

    async def cancel_naively() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            returned = await connection.fetchval(
                "SELECT refunded_quantity FROM order_items WHERE order_id = $1", order_id
            )
            await both_have_looked.wait()
            if returned + 2 <= 2:
                await connection.execute(
                    "UPDATE balances SET amount = amount + $2 WHERE user_id = $1", user_id, 2 * MUG
                )
                await connection.execute("UPDATE order_items SET refunded_quantity = $1", returned + 2)

    await asyncio.gather(cancel_naively(), cancel_naively())
    assert await goods.rows("SELECT refunded_quantity FROM order_items") == [(2,)]
    assert await goods.rows("SELECT amount FROM balances") == [(RICH + 2 * MUG,)]


async def test_a_unit_is_refunded_once_however_many_wish_it(goods: Goods) -> None:
    order_id = (await bought(goods, mug=3, cap_s=1)).holding.hold_id
    answers = await asyncio.gather(*[cancel(goods, order_id, mug=2, key=str(at)) for at in range(6)])
    assert sum(isinstance(answer, Cancellation) for answer in answers) == 1
    assert answers.count(UnitUnknown(variant_ids=(goods.variants["mug"],))) == 5
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", 2 * MUG)]
    await goods.drain()
    await goods.check()


async def test_copies_of_one_wish_act_once(goods: Goods) -> None:
    order_id = (await bought(goods, mug=3)).holding.hold_id
    answers = await asyncio.gather(*[cancel(goods, order_id, mug=2, key="k") for _ in range(6)])
    assert sorted(answer.repeated for answer in answers) == [False] + [True] * 5
    assert len({answer.refunds for answer in answers}) == 1
    assert await goods.rows("SELECT refunded_amount FROM payments") == [(2 * MUG,)]


async def test_parts_that_cross_add_up_to_what_was_paid(goods: Goods) -> None:
    """At a price that no two of them can share evenly, and with more wished for than there is."""
    request = await bought(goods, mug=7, cap_s=3)
    order_id, paid = request.holding.hold_id, 7 * MUG + 3 * CAP - 1_003
    postgres = goods.stores.postgres
    await postgres.execute(
        "UPDATE order_items SET discount_amount = d.amount, total_price = quantity * unit_price - d.amount "
        "FROM (VALUES (7, 1001), (3, 2)) AS d (of, amount) WHERE quantity = d.of"
    )
    await postgres.execute(
        "UPDATE orders SET discount_amount = 1003, total_amount = original_amount - 1003, user_coupon_id = order_id"
    )
    await postgres.execute(
        "UPDATE payments SET discount_amount = 1003, final_amount = $1, balance_amount = $1, user_coupon_id = order_id",
        paid,
    )
    answers = await asyncio.gather(
        *[cancel(goods, order_id, mug=1, key=f"mug {at}") for at in range(5)],
        *[cancel(goods, order_id, mug=2, cap_s=1, key=f"both {at}", by=None) for at in range(4)],
        cancel(goods, order_id, key="whole"),
    )
    given_back = [answer for answer in answers if isinstance(answer, Cancellation)]
    assert all(
        isinstance(answer, Cancellation | UnitUnknown) or answer == CancellationClosed(reason="ENDED")
        for answer in answers
    )
    last = await cancel(goods, order_id, key="last")
    given_back += [last] if isinstance(last, Cancellation) else []
    assert sum(sum(answer.quantities) for answer in given_back) == 10
    assert sum(answer.refund_amount for answer in given_back) == paid
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("REFUNDED", paid)]
    assert await goods.order(order_id) == ("REFUNDED", None)
    await goods.drain()
    await goods.check()


# The worker that sells ------------------------------------------------------------------------------------------------


def restored(request: Authorisation, *, n: int) -> Entry:
    """The fact that Redis counts so much for this hold since it gave units back."""
    fields = {"hold_id": request.holding.hold_id, "fence": "1", "at_ms": "1900000000000"}
    seats = ",".join(f"{variant_id}:{quantity}" for variant_id, quantity in request.holding.lines.items())
    return Entry(f"{n}-0", 1, n, f"{n - 1}-0", "restored", fields | {"seats": seats})


async def test_control_lines_before_what_is_left_deadlock_with_who_gives_back(
    goods: Goods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Redis counts for an order is written first, and what is left of its variants is asked for then."""
    monkeypatch.setattr(cancellations, "ATTEMPTS_MAX", 1)
    mine = await bought(goods, mug=2)

    async def settle_lines_first() -> None:
        async with goods.stores.postgres.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE order_items SET counted = 2")
            await connection.execute("SELECT FROM product_variants FOR NO KEY UPDATE")

    async with locked(goods, "mug"):
        cancelling = asyncio.create_task(cancel(goods, mine.holding.hold_id, mug=1, key="k"))
        await waiting(goods, 1)
        settling = asyncio.create_task(settle_lines_first())
        await waiting(goods, 2)
    outcomes = await asyncio.gather(cancelling, settling, return_exceptions=True)
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert "deadlock" in str(next(outcome for outcome in outcomes if isinstance(outcome, Exception)))


@pytest.mark.parametrize("seller_first", [True, False])
@pytest.mark.parametrize("sells_to", ["others", "the same buyer too"])
async def test_giving_back_and_selling_never_deadlock(
    goods: Goods, monkeypatch: pytest.MonkeyPatch, *, seller_first: bool, sells_to: str
) -> None:
    """The worker sells the same variant, and writes what Redis counts for the very order that is given back."""
    monkeypatch.setattr(cancellations, "ATTEMPTS_MAX", 1)
    mine = await bought(goods, mug=2)
    bobs = await goods.authorise(await goods.hold(mug=1, cap_s=1, by="bob"), by="bob")
    facts, sold = [restored(mine, n=1), confirmed(bobs, n=2)], [bobs]
    if sells_to != "others":
        sold.append(await goods.authorise(await goods.hold(mug=3)))
        # A fact about a hold that was just confirmed begins a part of its own, and what follows is in that.
        facts += [confirmed(bobs, n=3), confirmed(sold[1], n=4)]
        assert len(settlement.cut(facts)) == 2

    async with locked(goods, "mug"):
        both = [goods.settle(*facts), cancel(goods, mine.holding.hold_id, mug=1, key="k")]
        tasks = []
        for count, each in enumerate(both if seller_first else both[::-1], start=1):
            tasks.append(asyncio.create_task(each))
            await waiting(goods, count)
    outcomes = await asyncio.gather(*tasks)
    assert any(isinstance(outcome, Cancellation) for outcome in outcomes)
    assert [await goods.payment(each.payment_id) for each in sold] == ["SUCCESS"] * len(sold)
    assert (await goods.left_in_postgres())["mug"] == EACH - 2 + 1 - 1 - 3 * (len(sold) - 1)


@pytest.mark.parametrize("order", [1, -1])
async def test_lines_that_two_write_are_locked_in_one_order(
    goods: Goods, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    monkeypatch.setattr(cancellations, "ATTEMPTS_MAX", 1)
    mine = await bought(goods, mug=2, cap_s=2, cap_l=2)
    names = sorted(goods.variants, key=goods.variants.__getitem__)
    async with goods.stores.postgres.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM order_items WHERE variant_id = $1 FOR UPDATE", goods.variants[names[0]])
        settling = asyncio.create_task(goods.settle(restored(mine, n=1)))
        await waiting(goods, 1)
        wished: dict[str, Any] = dict.fromkeys(names[::order], 1)
        cancelling = asyncio.create_task(cancel(goods, mine.holding.hold_id, key="k", **wished))
        await waiting(goods, 2)
    await settling
    assert isinstance(await cancelling, Cancellation)


async def test_what_comes_back_as_the_last_unit_is_sold_again_is_sold_once(goods: Goods) -> None:
    """Two rivals want what one gives back, of a variant of which Postgres has nothing left."""
    first = await bought(goods, mug=EACH)
    rivals = [await goods.rival(by=name, mug=2) for name in ("bob", "cat")]
    await goods.set_funds_aside(*rivals)
    await asyncio.gather(
        cancel(goods, first.holding.hold_id, mug=2, key="k"),
        goods.settle(*[confirmed(rival, n=n) for n, rival in enumerate(rivals, start=1)]),
    )
    stood = [await goods.payment(rival.payment_id) for rival in rivals].count("SUCCESS")
    assert (await goods.left_in_postgres())["mug"] == 2 - 2 * stood >= 0
    assert await goods.rows("SELECT sum(set_aside)::bigint FROM balances") == [(0,)]


async def test_cancelling_while_others_pay_keeps_every_balance_exact(goods: Goods) -> None:
    first = await bought(goods, mug=2)
    requests = [await goods.begin_payment(await goods.hold(mug=1)) for _ in range(3)]
    outcomes = await asyncio.gather(
        cancel(goods, first.holding.hold_id, mug=1, key="one"),
        *[authorisations.authorise(goods.stores.postgres, [request]) for request in requests],
        cancel(goods, first.holding.hold_id, mug=1, key="two"),
        cancel(goods, requests[0].holding.hold_id, key="too early"),
    )
    assert outcomes[-1] == PaymentRunning(payment_id=requests[0].payment_id)
    for (payment,) in outcomes[1:4]:
        assert isinstance(payment, Payment)
        assert payment.status == "AUTHORISED"
    for answer in await asyncio.gather(*map(goods.confirm, requests)):
        assert isinstance(answer, Confirmed)
    await asyncio.gather(goods.drain(), cancel(goods, requests[1].holding.hold_id, key="as it settles"))
    await goods.drain()
    for request in requests:
        await cancel(goods, request.holding.hold_id, key="last")
    await goods.drain()
    assert await goods.rows("SELECT amount, set_aside FROM balances") == [(RICH, 0)]
    assert await goods.rows(
        "SELECT count(*), sum(CASE type WHEN 'USE' THEN -amount ELSE amount END)::bigint FROM balance_history"
    ) == [(9, 0)]
    assert await goods.left() == dict.fromkeys(goods.variants, EACH)
    await goods.check()


# Whoever tells Redis --------------------------------------------------------------------------------------------------


async def test_control_lines_before_the_restore_deadlock_with_whoever_tells_redis(goods: Goods) -> None:
    """Whoever tells Redis has the restore and asks for the lines; this has a line and asks for the restore."""
    request = await bought(goods, mug=2)
    postgres = goods.stores.postgres
    await cancel(goods, request.holding.hold_id, mug=1, key="part")
    await postgres.execute("UPDATE restores SET done_at = NULL")
    both_have_one = asyncio.Barrier(2)

    async def give_back() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM restores FOR UPDATE")
            await both_have_one.wait()
            await connection.execute("SELECT FROM order_items FOR SHARE")

    async def cancel_lines_first() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE order_items SET refunded_quantity = 2")
            await both_have_one.wait()
            await connection.execute("UPDATE restores SET done_at = NULL")

    outcomes = await asyncio.gather(give_back(), cancel_lines_first(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome] == [asyncpg.DeadlockDetectedError]


async def test_cancelling_and_telling_redis_never_deadlock(goods: Goods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "ATTEMPTS_MAX", 1)  # who is crossed says so
    for round_no in range(4):
        order_id = (await bought(goods, mug=3, cap_s=1)).holding.hold_id
        sale = await goods.sale()
        outcomes = await asyncio.gather(
            *[cancel(goods, order_id, mug=1, key=f"{round_no} {at}") for at in (1, 2, 3)],
            *[reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10) for _ in range(3)],
            goods.drain(),
        )
        assert all(isinstance(outcome, Cancellation) for outcome in outcomes[:3])
        await reconciliation.give_back(goods.stores.gate, goods.stores.postgres, sale, most=10)
        await goods.drain()
        await goods.check()


@pytest.mark.parametrize(
    ("step", "after", "is_committed"),
    [
        ("lock", True, False),
        ("write", False, False),
        ("write", True, False),
        ("tell", False, True),
        ("give_back", False, True),
        ("restore", False, True),
        ("restore", True, True),
        ("tell", True, True),
    ],
)
async def test_whoever_dies_the_units_and_the_money_come_back_once(
    goods: Goods, step: str, *, after: bool, is_committed: bool
) -> None:
    request = await bought(goods, mug=3)
    order_id, cancellation_id = request.holding.hold_id, ids.derive("cancellation", request.holding.hold_id, "k")
    errand = Errand(
        environment=goods.stores.settings.to_environment(),
        cancellation_id=cancellation_id,
        order_id=order_id,
        user_id=request.holding.user_id,
        variant_id=goods.variants["mug"],
        quantity=2,
        step=step,
        after=after,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.races.dying_returner", stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(msgspec.json.encode(errand))
    assert process.returncode == -signal.SIGKILL

    assert await goods.rows("SELECT count(*) FROM cancellations") == [(int(is_committed),)]
    again = await cancel(goods, order_id, key="k", mug=2)
    assert again.repeated is is_committed
    for _ in range(2):
        await reconciliation.reconcile(goods.stores.gate, goods.stores.postgres, await goods.sale())
        await goods.drain()
        await goods.check()
    assert (await goods.left())["mug"] == EACH - 1
    assert await goods.rows("SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", 2 * MUG)]
    assert await goods.rows("SELECT amount FROM balances") == [(RICH - MUG,)]
