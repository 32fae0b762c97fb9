"""Copies of sales of stock: whatever happened to Redis, what is left and what runs is again what Postgres says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import audit, ids, rebuild, seats, stock, stock_copies
from engine.copies import RebuildFailed
from engine.rebuild import CLEAR
from engine.refusals import IdempotencyKeyReused, LimitReached
from engine.seats import HoldKnown, HoldUnknown
from engine.stock import Claim, SoldOut, UnitUnknown
from engine.stores.connections import Stores
from tests.drops import Drop, new_drop, open_drop
from tests.engine.test_rebuild import Crash, StoppedRedis, lose, with_redis

# What stands ----------------------------------------------------------------------------------------------------------


async def test_a_new_sale_is_written_with_its_prices_and_units(stores_any: Stores) -> None:
    drop = await new_drop(stores_any, per_buyer_max=4)
    await stores_any.postgres.execute("UPDATE products SET status = 'STOPPED' WHERE name = 'cap'")
    sale = await drop.rebuild()
    assert (sale.epoch, (await drop.sale()).store_state) == (1, "open")
    assert await drop.fields("prices") == {"mug": "1200", "cap": "-2500"}
    assert await drop.left() == {"mug": 10, "cap": 10}
    terms = await drop.fields("sale")
    expected = {"state": "open", "kind": "stock", "epoch": "1", "per_buyer_max": "4", "fence": "1000000000"}
    assert expected.items() <= terms.items()
    assert isinstance(await drop.hold(mug=3), stock.Held)
    assert isinstance(await drop.hold(cap=1), UnitUnknown)
    assert isinstance(await drop.hold(mug=2), LimitReached)


@pytest.mark.parametrize("status", ["DRAFT", "STOPPED", "HIDDEN"])
async def test_what_is_not_on_sale_is_not_sold(stores: Stores, status: str) -> None:
    drop = await new_drop(stores)
    await stores.postgres.execute("UPDATE products SET status = $1, price = 0 WHERE name = 'mug'", status)
    await drop.rebuild()
    assert isinstance(await drop.hold(mug=1), UnitUnknown)
    assert isinstance(await drop.hold(cap=1), stock.Held)


async def test_after_everything_is_lost_the_same_stands_again(stores_any: Stores) -> None:
    drop = await open_drop(stores_any)
    bought = await drop.order(status="PAID", mug=2, cap=1)
    await drop.payment(bought, "SUCCESS")
    held = await drop.order(by="bob", mug=3)
    paying = await drop.order(by="cid", mug=1, cap=4)
    payment_id = await drop.payment(paying)
    ended = await drop.order(by="dan", status="CANCELLED", reason="USER", cap=5)
    await lose(stores_any)
    sale = await drop.rebuild()

    assert await drop.left() == {"mug": 4, "cap": 5}
    assert {each: (await drop.find(each)).state for each in (bought, held, paying, ended)} == {
        bought: "SOLD",
        held: "HELD",
        paying: "PAYING",
        ended: "ENDED",
    }
    found = await drop.find(paying)
    lines = [(line.variant_id, line.quantity, line.price) for line in found.lines]
    assert sorted(lines) == sorted([(drop.variant_ids["mug"], 1, 1_200), (drop.variant_ids["cap"], 4, 2_500)])
    assert (found.amount, found.payment_id, found.fence) == (11_200, payment_id, 4)
    [(deadline_ms,)] = await drop.rows(
        "SELECT floor(extract(epoch FROM pay_deadline) * 1000)::bigint FROM payments WHERE payment_id = $1", payment_id
    )
    assert found.pay_deadline_ms == deadline_ms
    assert (await drop.find(ended)).reason == "USER"
    assert (await drop.fields("buyers"))[await drop.person("ann")] == "3 0 "
    await drop.check()

    # What was written goes on as if it had been made here.
    confirmed = await stock.confirm(stores_any.gate, sale, hold_id=paying, fence=4, payment_id=payment_id)
    assert confirmed == seats.Confirmed(1)
    assert (await drop.fields("buyers"))[await drop.person("cid")] == "5 0 "
    released = await stock.release(
        stores_any.gate,
        sale,
        hold_id=held,
        buyer_id=await drop.person("bob"),
        release_id=ids.random_id(),
        fingerprint="f",
    )
    assert isinstance(released, stock.Released)
    assert await drop.left() == {"mug": 7, "cap": 5}


async def test_an_id_that_ended_or_bought_does_not_hold_again(stores: Stores) -> None:
    drop = await open_drop(stores)
    expired = await drop.order(status="EXPIRED", reason="EXPIRED", mug=1)
    bought = await drop.order(status="PAID", mug=1)
    returned = await drop.order(status="REFUNDED", refunded={"mug": 2}, mug=2)
    await drop.rebuild()
    assert await drop.hold(id_=expired, mug=1) == HoldKnown("ENDED")
    assert await drop.hold(id_=bought, mug=1) == HoldKnown("SOLD")
    assert await drop.hold(id_=returned, mug=2) == HoldKnown("ENDED")
    assert await drop.hold(id_=expired, by="bob", mug=1) == IdempotencyKeyReused()
    assert await drop.left() == {"mug": 9, "cap": 10}
    await drop.check()


async def test_what_ended_or_was_bought_long_ago_has_no_record(stores: Stores) -> None:
    drop = await open_drop(stores, per_buyer_max=3)
    await drop.order(status="EXPIRED", reason="EXPIRED", age_s=7_200, mug=1)
    await drop.order(status="PAID", age_s=7_200, mug=2)
    await drop.rebuild()
    assert await drop.fields("holds") == {}
    assert await drop.left() == {"mug": 8, "cap": 10}
    assert await drop.hold(mug=2) == LimitReached(3, 2)
    await drop.check()


async def test_an_ended_payment_does_not_run_again(stores: Stores) -> None:
    drop = await open_drop(stores)
    held = await drop.order(mug=1)
    payment_id = await drop.payment(held, "FAILED")
    sale = await drop.rebuild()
    paid = await stock.pay(stores.gate, sale, hold_id=held, buyer_id=await drop.person("ann"), payment_id=payment_id)
    assert paid == seats.PaymentEnded()


async def test_a_payment_in_doubt_keeps_its_units(stores: Stores) -> None:
    drop = await open_drop(stores)
    order_id = await drop.order(mug=10)
    await drop.payment(order_id, "IN_DOUBT")
    await drop.rebuild()
    assert (await drop.find(order_id)).state == "PAYING"
    assert isinstance(await drop.hold(mug=1), SoldOut)


async def test_many_rows_are_written_in_parts(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VARIANTS_AT_ONCE", "HOLDS_AT_ONCE", "BUYERS_AT_ONCE"):
        monkeypatch.setattr(stock_copies, name, 1)
    drop = await open_drop(stores)
    for by in ("ann", "bob"):
        await drop.order(by=by, status="PAID", mug=1)
        await drop.order(by=by, cap=2)
    await drop.rebuild()
    assert await drop.left() == {"mug": 8, "cap": 6}
    assert {row[:4] for row in (await drop.fields("buyers")).values()} == {"1 0 "}
    await drop.check()


# What was given back --------------------------------------------------------------------------------------------------


async def claims(drop: Drop, order_id: str) -> list[Claim]:
    rows = await drop.rows(
        "SELECT variant_id, counted, quantity - refunded_quantity FROM order_items WHERE order_id = $1", order_id
    )
    return [Claim(*row) for row in rows]


async def restore(drop: Drop, order_id: str, **more: Any) -> Any:
    decided: dict[str, Any] = {"reason": "USER", "goes_next": False, "claims": await claims(drop, order_id)}
    [(fence,)] = await drop.rows("SELECT fence FROM orders WHERE order_id = $1", order_id)
    buyer_id = await drop.person("ann")
    return await stock.restore(
        drop.stores.gate, await drop.sale(), hold_id=order_id, fence=fence, buyer_id=buyer_id, **decided | more
    )


@pytest.mark.parametrize("age_s", [0, 7_200], ids=["remembered", "forgotten"])
async def test_a_new_copy_owes_nothing_of_what_was_given_back_before(stores: Stores, age_s: int) -> None:
    drop = await open_drop(stores)
    order_id = await drop.order(status="PARTIALLY_REFUNDED", refunded={"mug": 2}, age_s=age_s, mug=5)
    # Redis was lost before it heard of the two.
    assert await claims(drop, order_id) == [Claim(drop.variant_ids["mug"], 5, 3)]
    await drop.rebuild()
    assert await claims(drop, order_id) == [Claim(drop.variant_ids["mug"], 3, 3)]
    assert await drop.left() == {"mug": 7, "cap": 10}
    await restore(drop, order_id)
    assert await drop.left() == {"mug": 7, "cap": 10}
    assert (await drop.fields("buyers"))[await drop.person("ann")] == "3 0 "


@pytest.mark.parametrize("age_s", [0, 7_200], ids=["remembered", "forgotten"])
@pytest.mark.parametrize("kept", [3, 0], ids=["in part", "whole"])
async def test_units_given_back_while_a_copy_is_written_are_given_back_once(
    stores: Stores, age_s: int, kept: int
) -> None:
    drop = await open_drop(stores)
    order_id = await drop.order(status="PAID", age_s=age_s, mug=5)

    async def refund() -> None:
        await stores.postgres.execute("UPDATE order_items SET refunded_quantity = $1", 5 - kept)
        await stores.postgres.execute("UPDATE orders SET status = $1", "PARTIALLY_REFUNDED" if kept else "REFUNDED")

    late = with_redis(stores, StoppedRedis(stores.redis, before=CLEAR.sha, first=refund))
    await rebuild.rebuild(late, drop.sale_id, await drop.own())
    assert await drop.left() == {"mug": 5, "cap": 10}
    restored = await restore(drop, order_id)
    assert restored == seats.Restored(5 - kept)
    assert await restore(drop, order_id) in (seats.Restored(0), HoldUnknown())
    assert await drop.left() == {"mug": 10 - kept, "cap": 10}
    assert (await drop.fields("buyers")).get(await drop.person("ann"), "0")[0] == str(kept)


async def test_what_is_left_and_who_has_what_is_read_from_one_count(stores: Stores) -> None:
    """Units may be given back between two statements of the transaction that begins the epoch."""
    drop = await open_drop(stores)
    order_id = await drop.order(status="PARTIALLY_REFUNDED", refunded={"mug": 2}, mug=5)
    (mug,) = [
        row
        for row in await stock_copies.SQL.list_variants.fetch(stores.postgres, drop.sale_id)
        if row["variant_id"] == drop.variant_ids["mug"]
    ]
    [hold] = await stock_copies.SQL.list_holds.fetch(stores.postgres, drop.sale_id, 3_600)
    [buyer] = await stock_copies.SQL.list_buyers.fetch(stores.postgres, drop.sale_id)
    assert (hold["hold_id"], hold["state"], hold["amount"]) == (order_id, "SOLD", 6_000)
    assert (mug["units"], hold["quantities"], buyer["bought"]) == (5, [5], 5)


# What ends ------------------------------------------------------------------------------------------------------------


async def test_of_payments_for_too_few_units_the_first_authorised_stay(stores_any: Stores) -> None:
    drop = await open_drop(stores_any)
    await drop.order(by="eve", status="PAID", mug=3)
    second = await drop.order(by="bob", mug=4)
    first = await drop.order(by="ann", mug=4)
    last = await drop.order(by="cid", mug=3)
    paid = [await drop.payment(each) for each in (first, second, last)]
    await drop.rebuild()
    assert [await drop.standing(each) for each in (first, second, last)] == [
        ("PENDING", None),
        ("CANCELLED", "LATE_UNFULFILLABLE"),
        ("PENDING", None),
    ]
    rows = await drop.rows("SELECT payment_id, status, reason FROM payments")
    assert {row[0]: row[1:] for row in rows} == {
        paid[0]: ("AUTHORISED", None),
        paid[1]: ("VOIDED", "hold_ended"),
        paid[2]: ("AUTHORISED", None),
    }
    assert [await drop.set_aside(name) for name in ("ann", "bob", "cid")] == [4_800, 0, 3_600]
    assert await drop.rows("SELECT status FROM order_items WHERE order_id = $1", second) == [("ENDED",)]
    assert await drop.left() == {"mug": 0, "cap": 10}
    assert (await drop.find(second)).state == "ENDED"
    await drop.check()


async def test_a_card_payment_for_units_that_are_gone_is_voided_at_its_gateway_too(stores: Stores) -> None:
    drop = await open_drop(stores)
    await drop.order(by="bob", status="PAID", mug=10)
    payment_id = await drop.payment(await drop.order(mug=1), card=True)
    await drop.rebuild()
    assert await drop.rows("SELECT kind, payment_id, amount FROM gateway_operations") == [("VOID", payment_id, 1_200)]


async def test_an_unpaid_order_gives_way_to_a_payment_and_to_an_older_order(stores: Stores) -> None:
    drop = await open_drop(stores)
    older = await drop.order(by="ann", age_s=60, mug=4)
    newer = await drop.order(by="bob", age_s=30, mug=4)
    newest = await drop.order(by="cid", age_s=10, mug=1, cap=1)
    lapsed = await drop.order(by="dan", age_s=90, expires_in_s=-1, cap=9)
    paying = await drop.order(by="eve", mug=5)
    await drop.payment(paying, "PENDING")
    await drop.rebuild()
    assert [await drop.standing(each) for each in (older, newer, newest, lapsed, paying)] == [
        ("PENDING", None),
        ("EXPIRED", "EXPIRED"),
        ("PENDING", None),
        ("EXPIRED", "EXPIRED"),
        ("PENDING", None),
    ]
    assert await drop.rows("SELECT DISTINCT status FROM order_items WHERE order_id = $1", newer) == [("ENDED",)]
    assert await drop.left() == {"mug": 0, "cap": 9}
    await drop.check()


async def test_units_of_what_ends_are_the_waiting_lists(stores: Stores) -> None:
    drop = await open_drop(stores)
    await drop.order(expires_in_s=-1, mug=4)
    await drop.order(by="bob", mug=8)
    await stores.postgres.execute("UPDATE sales SET waiting_list = true")
    await drop.rebuild()
    assert (await drop.left(), await drop.freed()) == ({"mug": 0, "cap": 10}, {"mug": 2})
    await drop.check()


@given(
    left=st.dictionaries(st.sampled_from("abc"), st.integers(0, 6)),
    paid=st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1), max_size=6),
    unpaid=st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), min_size=1), st.booleans()), max_size=6
    ),
)
def test_nothing_is_kept_twice_and_nobody_gives_way_for_nothing(
    left: dict[str, int], paid: list[dict[str, int]], unpaid: list[tuple[dict[str, int], bool]]
) -> None:
    def row(name: str, units: dict[str, int], **more: Any) -> dict[str, Any]:
        return {"hold_id": name, "variant_ids": list(units), "quantities": list(units.values())} | more

    live = [row(f"h{at}", units, payment_id=f"p{at}") for at, units in enumerate(paid)]
    waiting = [row(f"u{at}", units, lapsed=lapsed) for at, (units, lapsed) in enumerate(unpaid)]
    verdict = stock_copies.decide(left, live, waiting)
    remaining = dict(left)
    for each in [*live, *waiting]:
        units = dict(zip(each["variant_ids"], each["quantities"], strict=True))
        suffices = all(remaining.get(name, 0) >= quantity for name, quantity in units.items())
        assert (each["hold_id"] in verdict.standing) == (suffices and not each.get("lapsed", False))
        assert (each["hold_id"] in verdict.endings) != (each["hold_id"] in verdict.standing)
        if each["hold_id"] in verdict.standing:
            remaining |= {name: remaining[name] - quantity for name, quantity in units.items()}
    assert min(remaining.values(), default=0) >= 0
    assert set(verdict.voided_payment_ids) == {
        each["payment_id"] for each in live if each["hold_id"] not in verdict.standing
    }


# Crashes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_rebuild_that_stopped_anywhere_is_begun_again(stores_any: Stores, *, after: bool) -> None:
    drop = await open_drop(stores_any)
    await drop.order(status="PAID", mug=2)
    await drop.payment(await drop.order(by="bob", cap=3))
    await drop.order(by="cid", mug=1)
    stopped_at = 0
    while True:
        stopped_at += 1
        redis = StoppedRedis(stores_any.redis, crash_at=stopped_at, after=after)
        try:
            await rebuild.rebuild(with_redis(stores_any, redis), drop.sale_id, await drop.own())
        except Crash:
            assert (await drop.sale()).store_state == "rebuilding"
            await drop.rebuild()
        else:
            break
        assert await drop.left() == {"mug": 7, "cap": 7}
        await drop.check()
    assert stopped_at > 6
    await drop.check()


async def test_what_was_written_is_counted_before_the_sale_opens(stores: Stores) -> None:
    drop = await open_drop(stores)
    keys = (await drop.sale()).keys

    async def disturb() -> None:
        await stores.redis.hincrby(keys.stock, drop.variant_ids["mug"], 1)  # type: ignore[misc]

    redis = StoppedRedis(stores.redis, before=stock_copies.COUNT_STOCK.sha, first=disturb)
    with pytest.raises(RebuildFailed):
        await rebuild.rebuild(with_redis(stores, redis), drop.sale_id, await drop.own())
    assert (await drop.fields("sale"))["state"] == "rebuilding"
    await drop.rebuild()
    await drop.check()


# Audited --------------------------------------------------------------------------------------------------------------


async def test_a_sale_of_stock_that_was_written_anew_passes_the_audit(stores_any: Stores) -> None:
    drop = await open_drop(stores_any)
    await drop.order(status="PARTIALLY_REFUNDED", refunded={"mug": 1}, mug=3)
    await drop.order(by="bob", mug=2, cap=1)
    await stores_any.postgres.execute("UPDATE products SET status = 'STOPPED' WHERE name = 'cap'")
    await drop.rebuild()
    report = await _audited(drop)
    assert [check for check in report.checks if check.invariant in {"I1", "I9"} and check.verdict != "true"] == []
    looked_at = {check.invariant: check.looked_at for check in report.checks}
    assert (looked_at["I1"]["variants"], looked_at["I9"]["variants"]) == (2, 2)


@pytest.mark.parametrize(
    ("key", "change", "finding"),
    [
        (
            "stock",
            1,
            "of 10 units of variant {mug} 7 are left, 0 are the waiting list's, 2 are in holds and 2 are bought",
        ),
        ("stock_freed", 1, "of 10 units of variant {mug} 6 are left, 1 are the waiting list's, 2 are in holds"),
        ("prices", 100, "the price of variant {mug}: Redis says 1300, Postgres says 1200"),
    ],
)
async def test_units_that_do_not_add_up_are_found(stores: Stores, key: str, change: int, finding: str) -> None:
    drop = await open_drop(stores)
    await drop.order(status="PAID", mug=2)
    await drop.order(by="bob", mug=2)
    sale = await drop.rebuild()
    await stores.redis.hincrby(getattr(sale.keys, key), drop.variant_ids["mug"], change)  # type: ignore[misc]
    report = await _audited(drop)
    assert finding.format(**drop.variant_ids) in audit.describe(report)
    assert report.to_rebuild == [drop.sale_id]


async def test_a_variant_of_which_postgres_sold_more_than_it_says_is_found(stores: Stores) -> None:
    drop = await open_drop(stores)
    await drop.order(status="PAID", mug=2)
    await stores.postgres.execute("UPDATE product_variants SET quantity = 9 WHERE quantity = 8")
    await drop.rebuild()
    told = audit.describe(await _audited(drop))
    assert f"of 10 units of variant {drop.variant_ids['mug']} 9 are left and 2 are bought" in told


async def _audited(drop: Drop) -> audit.Report:
    return await audit.audit(drop.stores.redis, drop.stores.postgres, settle_s=0.1)
