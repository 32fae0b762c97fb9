"""Sales are counted once, on the day they were paid for; intervals add up to days; counting anew changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from engine import ids, statistics
from engine.statistics import Charts, Difference, Refunded
from tests.engine.sold_goods import PRICE, Stand, open_stand, utc

EVER = (date.min, date.max)


@pytest.fixture
async def stand(postgres: asyncpg.Pool) -> AsyncIterator[Stand]:
    """Somebody who sells; all that was counted is right at the end of every test."""
    stand = await open_stand(postgres)
    yield stand
    assert await statistics.check(postgres) == []


async def today(stand: Stand) -> str:
    day: date = await stand.postgres.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    return day.isoformat()


# Days -----------------------------------------------------------------------------------------------------------------


async def test_an_order_counts_once_for_each_product_with_its_units_and_what_was_paid(stand: Stand) -> None:
    tee, cap = await stand.product("Tee", sizes=2), await stand.product("Cap")
    medium, large = (variant.variant_id for variant in tee.variants)
    at = utc("2026-03-01T12:00")
    await stand.sell({medium: 2, large: 1, cap.variants[0].variant_id: 4}, at, discount=100)
    await stand.sell({large: 5}, at + timedelta(hours=1))
    assert await stand.days() == {
        (tee.product_id, "2026-03-01"): (8, 2, 8 * PRICE - 100, 0, 0),
        (cap.product_id, "2026-03-01"): (4, 1, 4 * PRICE, 0, 0),
    }


async def test_a_batch_is_one_row_a_product_and_day_and_one_for_the_next_interval(stand: Stand) -> None:
    tee = await stand.product()
    async with stand.postgres.acquire() as connection, connection.transaction():
        paid = [await stand.pay(connection, {tee.variants[0].variant_id: 2}) for _ in range(30)]
        await statistics.count_sold(connection, paid)
        await statistics.count_sold(connection, [])
    assert list((await stand.days()).values()) == [(60, 30, 60 * PRICE, 0, 0)]
    assert await stand.postgres.fetchval("SELECT count(*) FROM unaggregated_sales") == 1


async def test_an_order_that_is_named_twice_in_a_batch_counts_once(stand: Stand) -> None:
    tee = await stand.product()
    async with stand.postgres.acquire() as connection, connection.transaction():
        order_id = await stand.pay(connection, {tee.variants[0].variant_id: 2})
        await statistics.count_sold(connection, [order_id, order_id])
    assert list((await stand.days()).values()) == [(2, 1, 2 * PRICE, 0, 0)]


async def test_a_batch_that_is_rolled_back_and_comes_again_counts_once(stand: Stand) -> None:
    tee = await stand.product()
    for fails in (True, True, False):
        made = stand.made
        try:
            await sell_and(stand, tee.variants[0].variant_id, fails=fails)
        except ConnectionError:
            stand.made = made
    assert list((await stand.days()).values()) == [(3, 1, 3 * PRICE, 0, 0)]
    assert await statistics.aggregate(stand.postgres) == 1


async def sell_and(stand: Stand, variant_id: str, *, fails: bool) -> None:
    async with stand.postgres.acquire() as connection, connection.transaction():
        await statistics.count_sold(connection, [await stand.pay(connection, {variant_id: 3})])
        if fails:
            raise ConnectionError


@pytest.mark.parametrize(
    ("time_zone", "moments"),
    [
        ("Asia/Seoul", [("2026-01-31T14:59:59.999", "2026-01-31"), ("2026-01-31T15:00", "2026-02-01")]),
        # Clocks go forward at two on 29 March: midnight before is +1, midnight after is +2, and the day has 23 hours.
        (
            "Europe/Berlin",
            [
                ("2026-03-28T22:59:59.999", "2026-03-28"),
                ("2026-03-28T23:00", "2026-03-29"),
                ("2026-03-29T21:59:59.999", "2026-03-29"),
                ("2026-03-29T22:00", "2026-03-30"),
            ],
        ),
        # Clocks go back at two on 1 November: the day has 25 hours, one of them twice.
        (
            "America/New_York",
            [
                ("2026-11-01T03:59:59.999999", "2026-10-31"),
                ("2026-11-01T04:00", "2026-11-01"),
                ("2026-11-01T05:30", "2026-11-01"),
                ("2026-11-01T06:30", "2026-11-01"),
                ("2026-11-02T04:59:59.999", "2026-11-01"),
                ("2026-11-02T05:00", "2026-11-02"),
            ],
        ),
        # Clocks go forward at midnight: the day begins at one.
        ("Africa/Cairo", [("2026-04-23T21:59:59.999", "2026-04-23"), ("2026-04-23T22:00", "2026-04-24")]),
        ("UTC", [("2026-12-31T23:59:59.999", "2026-12-31"), ("2027-01-01T00:00", "2027-01-01")]),
    ],
)
async def test_a_day_is_one_of_the_zone(stand: Stand, time_zone: str, moments: list[tuple[str, str]]) -> None:
    await stand.live_in(time_zone)
    tee = await stand.product()
    expected: dict[tuple[str, str], int] = {}
    for units, (moment, day) in enumerate(moments, start=1):
        await stand.sell({tee.variants[0].variant_id: units}, utc(moment))
        expected[tee.product_id, day] = expected.get((tee.product_id, day), 0) + units
    assert {key: sold for key, (sold, *_) in (await stand.days()).items()} == expected
    assert await statistics.recompute(stand.postgres, *EVER) == []


async def test_what_is_given_back_counts_on_its_own_day(stand: Stand) -> None:
    tee = await stand.product()
    variant_id = tee.variants[0].variant_id
    order_id = await stand.sell({variant_id: 5}, utc("2026-03-01T12:00"), discount=50)
    await stand.give_back(order_id, variant_id, 2, 980, "first")
    await stand.give_back(order_id, variant_id, 1, 490, "second")
    assert await stand.days() == {
        (tee.product_id, "2026-03-01"): (5, 1, 2450, 0, 0),
        (tee.product_id, await today(stand)): (0, 0, 0, 3, 1470),
    }
    assert await statistics.recompute(stand.postgres, *EVER) == []


async def test_what_a_cancellation_gives_back_is_counted_once(stand: Stand) -> None:
    tee = await stand.product()
    variant_id = tee.variants[0].variant_id
    order_id = await stand.sell({variant_id: 5})
    await stand.give_back(order_id, variant_id, 1, 500)
    with pytest.raises(asyncpg.UniqueViolationError):
        await stand.give_back(order_id, variant_id, 1, 500)
    assert list((await stand.days()).values()) == [(5, 1, 2500, 1, 500)]


async def test_several_lines_are_given_back_in_one_step(stand: Stand) -> None:
    tee = await stand.product(sizes=2)
    units = {variant.variant_id: 2 for variant in tee.variants}
    order_id = await stand.sell(units)
    async with stand.postgres.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE order_items SET refunded_quantity = 1 WHERE order_id = $1", order_id)
        refunded = [
            Refunded(cancellation_id="c" * 32, order_id=order_id, variant_id=variant_id, quantity=1, amount=PRICE)
            for variant_id in units
        ]
        await statistics.count_refunded(connection, refunded)
        await statistics.count_refunded(connection, [])
    assert list((await stand.days()).values()) == [(4, 1, 4 * PRICE, 2, 2 * PRICE)]


async def test_batches_of_the_same_products_in_any_order_wait_and_never_deadlock(stand: Stand) -> None:
    made = [await stand.product(str(number)) for number in range(4)]
    moments = [utc("2026-03-01T12:00"), utc("2026-03-02T12:00"), utc("2026-03-03T12:00")]

    async def batch(turn: int) -> None:
        async with stand.postgres.acquire() as connection, connection.transaction():
            order = made[turn % 4 :] + made[: turn % 4]
            paid = [
                await stand.pay(connection, {product.variants[0].variant_id: 1}, moment)
                for moment in moments[:: 1 if turn % 2 else -1]
                for product in order
            ]
            await statistics.count_sold(connection, paid)

    await asyncio.gather(*(batch(turn) for turn in range(12)))
    assert set((await stand.days()).values()) == {(12, 12, 12 * PRICE, 0, 0)}


async def test_without_a_zone_nothing_is_counted_wrongly(stand: Stand) -> None:
    tee = await stand.product()
    await stand.postgres.execute("DELETE FROM installation WHERE name = 'time_zone'")
    with pytest.raises(asyncpg.NotNullViolationError):
        await stand.sell({tee.variants[0].variant_id: 1})
    assert await stand.days() == {}


# Intervals ------------------------------------------------------------------------------------------------------------


async def test_intervals_follow_each_other_and_add_up_to_the_days(stand: Stand) -> None:
    tee, cap = await stand.product("Tee"), await stand.product("Cap")
    for turn in range(1, 4):
        await stand.sell({tee.variants[0].variant_id: turn}, utc("2026-03-01T23:59:59.999"))
        await stand.sell({tee.variants[0].variant_id: turn, cap.variants[0].variant_id: 1}, utc("2026-03-02T00:00"))
        assert await statistics.aggregate(stand.postgres) == 3
        assert await statistics.aggregate(stand.postgres) == 0
    made = await stand.intervals()
    runs = sorted({(each.aggregated_from, each.aggregated_to) for each in made})
    assert len(runs) == 3
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(runs))
    sums: dict[tuple[str, str], int] = {}
    for each in made:
        key = each.product_id, each.day.isoformat()
        sums[key] = sums.get(key, 0) + each.sold_quantity
    assert sums == {key: sold for key, (sold, *_) in (await stand.days()).items()}
    assert await stand.postgres.fetchval("SELECT count(*) FROM unaggregated_sales") == 0


async def test_a_run_that_finds_nothing_moves_on(stand: Stand) -> None:
    tee = await stand.product()
    await statistics.aggregate(stand.postgres)
    began = await stand.postgres.fetchval("SELECT aggregated_to FROM sales_aggregation")
    await stand.sell({tee.variants[0].variant_id: 1})
    await statistics.aggregate(stand.postgres)
    [made] = await stand.intervals()
    assert made.aggregated_from == began < made.aggregated_to


async def test_what_commits_during_and_after_a_run_is_in_the_next_one(stand: Stand) -> None:
    tee = await stand.product()
    variant_id = tee.variants[0].variant_id
    naive: list[int | None] = []

    async def run_naively(above: int) -> int:
        """The control: a run that takes the numbers above those that the run before it had."""
        row = await stand.postgres.fetchrow(
            "SELECT sum(sold_quantity)::int AS units, coalesce(max(unaggregated_sale_id), $1) AS reached "
            "FROM unaggregated_sales WHERE unaggregated_sale_id > $1",
            above,
        )
        assert row is not None
        naive.append(row["units"])
        reached: int = row["reached"]
        return reached

    async with stand.postgres.acquire() as late:
        transaction = late.transaction()
        await transaction.start()
        # Counted first, with the lower number and the earlier time, and committed last. Of another day, so that the
        # two do not wait for each other.
        order_id = await stand.pay(late, {variant_id: 7}, utc("2026-03-01T12:00"))
        await statistics.count_sold(late, [order_id])
        await stand.sell({variant_id: 2}, utc("2026-03-02T12:00"))
        reached = await run_naively(0)
        assert await statistics.aggregate(stand.postgres) == 1
        await transaction.commit()
    await run_naively(reached)
    assert naive == [2, None]
    assert await statistics.check(stand.postgres) == []
    assert await statistics.aggregate(stand.postgres) == 1
    assert [(each.day.day, each.sold_quantity) for each in await stand.intervals()] == [(2, 2), (1, 7)]


async def test_runs_at_once_take_each_unit_once_while_others_sell(stand: Stand) -> None:
    tee, cap = await stand.product("Tee"), await stand.product("Cap")

    async def sell(product: Any) -> None:
        for _ in range(15):
            await stand.sell({product.variants[0].variant_id: 1})

    async def run() -> None:
        for _ in range(10):
            await statistics.aggregate(stand.postgres)

    await asyncio.gather(sell(tee), sell(cap), run(), run(), run())
    await statistics.aggregate(stand.postgres)
    made = await stand.intervals()
    assert sum(each.sold_quantity for each in made) == 30
    runs = sorted({(each.aggregated_from, each.aggregated_to) for each in made})
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(runs))


async def test_a_run_that_dies_has_taken_nothing(stand: Stand) -> None:
    tee = await stand.product()
    await stand.sell({tee.variants[0].variant_id: 4})
    async with stand.postgres.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        began = await statistics.SQL.lock_aggregation.fetchval(connection)
        assert await statistics.SQL.aggregate.execute(connection, began) == 1
        await transaction.rollback()
    assert await stand.intervals() == []
    assert await statistics.aggregate(stand.postgres) == 1


# Counting anew --------------------------------------------------------------------------------------------------------


async def test_counting_anew_changes_nothing(stand: Stand) -> None:
    tee = await stand.product()
    variant_id = tee.variants[0].variant_id
    order_id = await stand.sell({variant_id: 5}, utc("2026-03-01T23:59:59.999"))
    await stand.sell({variant_id: 1}, utc("2026-03-02T00:00"))
    await statistics.aggregate(stand.postgres)
    await stand.give_back(order_id, variant_id, 5, 2500)
    tables = ("product_daily_sales", "product_interval_sales", "unaggregated_sales", "sales_aggregation")
    before = [await stand.postgres.fetch(f"SELECT *, xmin FROM {table}") for table in tables]
    assert await statistics.recompute(stand.postgres, *EVER) == []
    assert await statistics.recompute(stand.postgres, date(2026, 3, 1), date(2026, 3, 1)) == []
    assert [await stand.postgres.fetch(f"SELECT *, xmin FROM {table}") for table in tables] == before


async def test_what_is_counted_twice_is_seen_and_put_right_in_days_and_intervals(stand: Stand) -> None:
    tee = await stand.product()
    order_id = await stand.sell({tee.variants[0].variant_id: 3}, utc("2026-03-01T12:00"))
    await statistics.aggregate(stand.postgres)
    async with stand.postgres.acquire() as connection:
        await statistics.count_sold(connection, [order_id])
    await statistics.aggregate(stand.postgres)
    said = f"product {tee.product_id}, 2026-03-01: sold_quantity 6, and the rows come to 3"
    assert said in await statistics.check(stand.postgres)
    # Of another day, nothing is touched.
    assert await statistics.recompute(stand.postgres, date(2026, 3, 2), date(2026, 3, 9)) == []
    day = date(2026, 3, 1)
    assert await statistics.recompute(stand.postgres, day, day) == [
        Difference(product_id=tee.product_id, day=day, figure="sold_quantity", kept=6, counted=3),
        Difference(product_id=tee.product_id, day=day, figure="orders", kept=2, counted=1),
        Difference(product_id=tee.product_id, day=day, figure="amount", kept=3000, counted=1500),
        Difference(product_id=tee.product_id, day=day, figure="intervals", kept=6, counted=3),
    ]
    assert await statistics.check(stand.postgres) == []
    assert await statistics.recompute(stand.postgres, day, day) == []
    await statistics.aggregate(stand.postgres)
    assert [each.sold_quantity for each in await stand.intervals()] == [3, 3, -3]


async def test_days_that_are_missing_or_made_up_are_put_right(stand: Stand) -> None:
    tee, cap = await stand.product("Tee"), await stand.product("Cap")
    order_id = await stand.sell({tee.variants[0].variant_id: 3}, utc("2026-03-01T12:00"))
    await stand.give_back(order_id, tee.variants[0].variant_id, 1, 400)
    days = await stand.days()
    await stand.postgres.execute("DELETE FROM product_daily_sales")
    await stand.postgres.execute("DELETE FROM unaggregated_sales")
    await stand.postgres.execute(
        "INSERT INTO product_daily_sales (product_id, day, sold_quantity, orders) VALUES ($1, '2026-03-05', 1, 1)",
        cap.product_id,
    )
    assert len(await statistics.recompute(stand.postgres, *EVER)) == 7 + 1
    assert await stand.days() == days | {(cap.product_id, "2026-03-05"): (0, 0, 0, 0, 0)}


async def test_counting_anew_while_others_count_loses_nothing(stand: Stand) -> None:
    tee = await stand.product()
    variant_id = tee.variants[0].variant_id
    await stand.sell({variant_id: 1})

    async def recount() -> None:
        for _ in range(5):
            await stand.postgres.execute("UPDATE product_daily_sales SET amount = amount + 1")
            await statistics.recompute(stand.postgres, *EVER)
            await statistics.aggregate(stand.postgres)

    async def sell() -> None:
        for _ in range(10):
            await stand.sell({variant_id: 1})

    await asyncio.gather(recount(), sell(), sell())
    [(sold, orders, amount, *_)] = (await stand.days()).values()
    assert (sold, orders, amount) == (21, 21, 21 * PRICE)


async def test_the_check_sees_lines_that_were_given_back_and_not_counted(stand: Stand) -> None:
    tee = await stand.product()
    order_id = await stand.sell({tee.variants[0].variant_id: 3})
    await stand.postgres.execute("UPDATE order_items SET refunded_quantity = 2")
    [said] = await statistics.check(stand.postgres)
    line = f"order {order_id}, variant {tee.variants[0].variant_id}"
    assert said == f"{line}: 2 units are given back, and its cancellations come to 0"
    await stand.postgres.execute("UPDATE order_items SET refunded_quantity = 0")


async def test_the_check_sees_intervals_that_overlap(stand: Stand) -> None:
    tee = await stand.product()
    for _ in range(2):
        await stand.sell({tee.variants[0].variant_id: 3})
        await statistics.aggregate(stand.postgres)
    first, second = await stand.intervals()
    await stand.postgres.execute(
        "UPDATE product_interval_sales SET aggregated_to = $1 WHERE aggregated_from = $2",
        second.aggregated_to,
        first.aggregated_from,
    )
    [said] = await statistics.check(stand.postgres)
    assert said.startswith(f"the interval from {second.aggregated_from}")
    await stand.postgres.execute(
        "UPDATE product_interval_sales SET aggregated_to = aggregated_from + interval '1 microsecond'"
    )


# Best sellers ---------------------------------------------------------------------------------------------------------


async def test_best_sellers_are_ordered_by_units_less_refunds_then_amount_then_id(stand: Stand) -> None:
    now = datetime.now(UTC)
    sold = {"most": 9, "tie": 4, "same": 4, "dear": 4, "given back": 8, "gone": 3}
    made = {name: await stand.product(name) for name in sold}
    orders = {}
    for name, units in sold.items():
        discount = 0 if name == "dear" else 100
        variant_id = made[name].variants[0].variant_id
        orders[name] = await stand.sell({variant_id: units}, now, discount=discount)
    for name, units in (("given back", 6), ("gone", 3)):
        await stand.give_back(orders[name], made[name].variants[0].variant_id, units, units * PRICE - 100)
    found = await statistics.find_best_sellers(stand.postgres, 2)
    ties = sorted(("tie", "same"), key=lambda name: made[name].product_id)
    assert [(each.name, each.sold_quantity, each.amount) for each in found.items] == [
        ("most", 9, 4400),
        ("dear", 4, 2000),
        (ties[0], 4, 1900),
        (ties[1], 4, 1900),
        ("given back", 2, 1000),
    ]


async def test_best_sellers_are_of_today_and_the_days_before_and_of_what_is_shown(stand: Stand) -> None:
    await stand.live_in("Asia/Seoul")
    now = await stand.postgres.fetchval("SELECT now()")
    for status in ("DRAFT", "ON_SALE", "STOPPED", "HIDDEN"):
        product = await stand.product(status, status=status)
        await stand.sell({product.variants[0].variant_id: len(status)}, now)
    old = await stand.product("old")
    await stand.sell({old.variants[0].variant_id: 100}, now - timedelta(days=2))
    found = await statistics.find_best_sellers(stand.postgres, 2)
    assert (found.last_day - found.first_day, [each.name for each in found.items]) == (
        timedelta(days=1),
        ["ON_SALE", "STOPPED"],
    )
    assert (await statistics.find_best_sellers(stand.postgres, 3)).items[0].name == "old"


async def test_many_who_ask_are_answered_by_one_read_that_stays_for_a_while(stand: Stand) -> None:
    charts = Charts(stand.postgres)
    tee, cap = await stand.product("Tee"), await stand.product("Cap")
    await stand.sell({tee.variants[0].variant_id: 2})
    await stand.sell({cap.variants[0].variant_id: 1})
    asked = [charts.find(days=3, limit=1 + number % 2) for number in range(20)]
    answers = await asyncio.gather(*asked)
    assert len({answer.aggregated_at for answer in answers}) == 1
    assert [len(answer.items) for answer in answers[:2]] == [1, 2]
    await stand.sell({cap.variants[0].variant_id: 5})
    assert await charts.find(days=3, limit=1) == answers[0]
    charts._known[3] = (asyncio.get_running_loop().time() - 1, answers[1])
    assert [each.name for each in (await charts.find(days=3, limit=1)).items] == ["Cap"]


# Lists ----------------------------------------------------------------------------------------------------------------


async def test_days_and_intervals_are_listed_in_parts_by_days_and_product(stand: Stand) -> None:
    made = [await stand.product(name) for name in ("a", "b")]
    for day in (1, 2, 3):
        for product in made:
            await stand.sell({product.variants[0].variant_id: day}, utc(f"2026-03-0{day}T12:00"))
        if day == 2:
            await statistics.aggregate(stand.postgres)
    await statistics.aggregate(stand.postgres)
    asked: dict[str, Any] = {"first": date(2026, 3, 2), "last": date(2026, 3, 3), "product_id": None, "most": 1}
    listed: list[tuple[str, int]] = []
    before: Any = None
    while found := await statistics.list_days(stand.postgres, **asked, before=before):
        listed += [(each.product_id, each.day.day) for each in found]
        before = found[-1].day, found[-1].product_id
    expected = [
        (product_id, day) for day in (3, 2) for product_id in sorted((p.product_id for p in made), reverse=True)
    ]
    assert listed == expected
    listed, before = [], None
    while intervals := await statistics.list_intervals(stand.postgres, **asked, before=before):
        listed += [(each.product_id, each.day.day) for each in intervals]
        before = intervals[-1].aggregated_from, intervals[-1].product_id, intervals[-1].day
    assert listed == expected
    one = asked | {"product_id": made[0].product_id, "most": 9, "before": None}
    assert {each.product_id for each in await statistics.list_days(stand.postgres, **one)} == {made[0].product_id}
    assert len(await statistics.list_intervals(stand.postgres, **one)) == 2
    nothing = asked | {"product_id": ids.derive("x"), "before": None}
    assert await statistics.list_days(stand.postgres, **nothing) == []
