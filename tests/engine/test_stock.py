from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import RedisCluster

from engine import copies, ids, rebuild, seats, stock, stock_copies
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import stored_terms
from engine.stores.connections import RedisClient
from engine.stores.replies import Refusal, Reply, SaleRebuilding, SaleUnknown, StaleEpoch, title_of
from engine.stores.scripts import Script, StoreFull
from engine.variant_waiting_lists import FREED_UNITS, PUBLISH_UNITS, FreedUnits, PublishedUnits
from tests.engine.seat_sales import buyer, together
from tests.engine.stock_sales import EACH, PRICES, Stall, open_stall
from tests.engine.stored_sales import HOUR_MS

SCRIPTS = [value for value in vars(stock).values() if isinstance(value, Script)]
# What it asks of the scripts of seats.
SHARED = [seats.FIND, seats.EXTEND, seats.PAY, seats.OVERDUE]


@pytest.fixture
async def stall(redis_any: RedisClient) -> AsyncIterator[Stall]:
    """Ten mugs, caps and shirts, on one Valkey and on a cluster; in order at the end of every test."""
    stall = await open_stall(redis_any)
    yield stall
    await stall.check()


async def let_in(stall: Stall, *names: str, first_no: int = 1, for_ms: int = 60_000) -> None:
    """Open the room and make these buyers' tokens ACTIVE, not entered, with numbers from `first_no`."""
    keys, now_ms = stall.sale.keys, await stall.now_ms()
    await stall.set(room="open")
    for queue_no, name in enumerate(names, first_no):
        await stall.redis.hset(keys.tokens, buyer(name), f"ACTIVE|{queue_no}|0|{now_ms}")
        await stall.redis.zadd(keys.active, {buyer(name): now_ms + for_ms})


def left(**less: int) -> dict[str, int]:
    """What is left when so much of each was taken."""
    return {variant_id: EACH - less.get(variant_id, 0) for variant_id in PRICES}


# --- hold -------------------------------------------------------------------------------------------------------------


async def test_a_buyer_holds_units_of_several_variants_at_their_prices(stall: Stall) -> None:
    held = (await stall.held(mug=2, cap=3)).held

    assert held == stock.Held(
        expires_at_ms=held.created_at_ms + 300_000,
        fence=1,
        amount=2 * 1_200 + 3 * 2_500,
        created_at_ms=held.created_at_ms,
        units="mug:2,cap:3",
        prices="1200,2500",
    )
    assert held.lines == (stock.Line("mug", 2, 1_200), stock.Line("cap", 3, 2_500))
    assert abs(held.created_at_ms - await stall.now_ms()) < 10_000
    assert await stall.left() == left(mug=2, cap=3)


async def test_a_hold_is_told_to_the_journal_in_the_form_of_seats(stall: Stall) -> None:
    order = await stall.held(cap=3, mug=2)

    [entry] = await stall.entries("journal")
    told = {name: entry[name] for name in entry.keys() - {"id", "holds"}}
    assert told == {
        "epoch": "1",
        "n": "1",
        "before": "0-0",
        "kind": "held",
        "hold_id": order.hold_id,
        "buyer_id": order.buyer_id,
        "fence": "1",
        "queue_no": "0",
        "fingerprint": ids.fingerprint("cap:3", "mug:2"),
        "seats": "cap:3,mug:2",
        "prices": "2500,1200",
        "amount": str(3 * 2_500 + 2 * 1_200),
        "created_at_ms": str(order.held.created_at_ms),
        "expires_at_ms": str(order.held.expires_at_ms),
    }


async def test_a_refusal_lists_every_variant_that_falls_short_with_what_is_left_and_nothing_changes(
    stall: Stall,
) -> None:
    await stall.held(mug=4)
    await (await stall.held(cap=5)).pay()
    await stall.sold(cap=5)

    refused = await stall.hold(mug=7, shirt=10, cap=1, by="bob")

    assert isinstance(refused, stock.SoldOut)
    assert refused.lines == (stock.Shortage("mug", 7, 6), stock.Shortage("cap", 1, 0))
    assert await stall.left() == left(mug=4, cap=10)
    assert await stall.term("fence") == 3


async def test_the_last_unit_is_sold_once(stall: Stall) -> None:
    first, second = await together(stall.hold(mug=10), stall.hold(mug=1, by="bob"))

    assert isinstance(first, stock.Held)
    assert second == stock.SoldOut(("mug 1 0",))


async def test_a_variant_named_twice_is_one_line(stall: Stall) -> None:
    twice = [stock.Units("mug", 4), stock.Units("cap", 1), stock.Units("mug", 3)]
    order = await stall.held(more={"units": twice})
    assert order.held.lines == (stock.Line("mug", 7, 1_200), stock.Line("cap", 1, 2_500))

    # Neither line is too much by itself.
    twice = [stock.Units("mug", 2), stock.Units("mug", 2)]
    assert await stall.hold(more={"units": twice}) == stock.SoldOut(("mug 4 3",))


async def test_units_that_do_not_exist_or_are_not_on_sale_are_named(stall: Stall) -> None:
    await stall.redis.hset(stall.sale.keys.prices, "cap", "-2500")

    assert await stall.hold(mug=1, pen=1, cap=1, ink=1) == stock.UnitUnknown(("pen", "cap", "ink"))
    strange = [stock.Units("mug", 1), stock.Units("mug:1,cap", 1), stock.Units("", 1)]
    assert await stall.hold(more={"units": strange}) == stock.UnitUnknown(("mug:1,cap", ""))
    assert await stall.left() == left()


async def test_what_is_off_sale_is_still_paid_and_given_back_by_who_holds_it(stall: Stall) -> None:
    one, other = await stall.held(cap=1), await stall.held(cap=1, by="bob")
    await stall.redis.hset(stall.sale.keys.prices, "cap", "-2500")

    await one.pay()
    assert await one.confirm() == seats.Confirmed(1)
    assert await other.release() == stock.Released(0, ("cap:1",))


async def test_prices_are_frozen_when_the_units_are_held(stall: Stall) -> None:
    order = await stall.held(mug=2)
    await stall.redis.hset(stall.sale.keys.prices, "mug", "9999")

    assert (await order.find()).lines == (stock.Line("mug", 2, 1_200),)
    assert (await order.pay()).amount == 2_400


async def test_the_same_hold_twice_is_one_hold(stall: Stall) -> None:
    hold_id = ids.derive("mine")
    first, again = await together(stall.hold(mug=1, id_=hold_id), stall.hold(mug=1, id_=hold_id))

    assert isinstance(first, stock.Held)
    assert again == seats.HoldKnown("HELD")
    assert await stall.left() == left(mug=1)


async def test_a_hold_id_with_another_wish_or_buyer_is_refused(stall: Stall) -> None:
    order = await stall.held(mug=1)

    assert await stall.hold(mug=2, id_=order.hold_id) == IdempotencyKeyReused()
    assert await stall.hold(mug=1, id_=order.hold_id, by="bob") == IdempotencyKeyReused()


@pytest.mark.parametrize("ending", ["release", "lapse", "expire", "sold", "abandon", "restore"])
async def test_an_id_that_has_ended_never_holds_again_within_the_window(stall: Stall, ending: str) -> None:
    order = await stall.held(mug=1)
    if ending == "release":
        await order.release()
    elif ending in {"sold", "restore"}:
        await order.pay()
        await order.confirm()
        if ending == "restore":
            await order.restore()
    elif ending == "abandon":
        await order.pay()
        await stall.rewrite(order.hold_id, expires_at_ms=1)
        await order.abandon()
    else:
        await order.lapse()
        if ending == "expire":
            await stock.expire(stall.gate, stall.sale, most=10)

    again = await stall.hold(mug=1, id_=order.hold_id)

    assert again == seats.HoldKnown("SOLD" if ending == "sold" else "ENDED")
    assert await stall.term("fence") == 1


@pytest.mark.parametrize("count", [0, 101])
async def test_a_hold_is_of_one_to_a_hundred_lines(stall: Stall, count: int) -> None:
    with pytest.raises(ValueError, match="1 to 100 lines"):
        await stall.hold(more={"units": [stock.Units("mug", 1)] * count})


@pytest.mark.parametrize("quantity", [-1, 0, 10**9 + 1])
async def test_a_line_is_of_one_to_so_many_units(stall: Stall, quantity: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000000000 units"):
        await stall.hold(mug=quantity)
    with pytest.raises(ValueError, match="1 to 1000000000 units"):
        await (await stall.held(mug=1)).release(mug=quantity)


async def test_a_hundred_lines_are_held_and_released_in_one_step(redis_any: RedisClient) -> None:
    variants = {f"v{number}": 3 for number in range(100)}
    stall = await open_stall(redis_any, variants)

    two_of_each = {"units": [stock.Units(variant_id, 2) for variant_id in variants]}
    order = await stall.held(more=two_of_each)
    assert order.held.amount == 100 * 2 * 100
    await stall.check()
    short = await stall.hold(by="bob", more=two_of_each)
    assert isinstance(short, stock.SoldOut)
    assert short.lines == tuple(stock.Shortage(variant_id, 2, 1) for variant_id in variants)
    assert await order.release() == stock.Released(0, tuple(f"{variant_id}:2" for variant_id in variants))
    assert await stall.left() == variants
    await stall.check()


async def test_large_quantities_and_amounts_stay_whole(redis_any: RedisClient) -> None:
    stall = await open_stall(redis_any, {"grain": 3 * 10**9 + 7, "gold": 1})
    await stall.redis.hset(stall.sale.keys.prices, mapping={"grain": 333_333, "gold": 10**12})
    most = [stock.Units("grain", 10**9)] * 3
    order = await stall.held(more={"units": most})
    assert order.held.amount == 3 * 10**9 * 333_333
    assert await stall.left() == {"grain": 7, "gold": 1}
    await order.pay()
    await order.confirm()
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == b"3000000000 0 "
    assert await order.restore(grain=10**9 + 1) == seats.Restored(2 * 10**9 - 1)
    assert (await order.find()).amount == (10**9 + 1) * 333_333
    await stall.check()

    await stall.redis.hset(stall.sale.keys.prices, "grain", 10**12)
    assert (await stall.held(grain=1_000, by="bob")).held.amount == 10**15
    assert await stall.hold(grain=1_001, by="bob") == stock.AmountTooLarge(10**15)
    most = [stock.Units("grain", 10**9)] * 100
    assert await stall.hold(more={"units": most}) == stock.AmountTooLarge(10**15)
    await stall.check()


async def test_a_sale_that_has_not_begun_or_is_over_holds_nothing(stall: Stall) -> None:
    now_ms = await stall.now_ms()
    await stall.set(opens_at_ms=now_ms + HOUR_MS)
    assert await stall.hold(mug=1) == seats.SaleNotOpen(now_ms + HOUR_MS)

    await stall.set(opens_at_ms=now_ms - HOUR_MS, closes_at_ms=now_ms)
    assert await stall.hold(mug=1) == SaleClosed()

    await stall.set(closes_at_ms=now_ms + HOUR_MS)
    order = await stall.held(mug=1)
    await stall.set(closes_at_ms=1)
    assert await stall.hold(mug=1, id_=order.hold_id) == seats.HoldKnown("HELD")


@pytest.mark.parametrize("stream", ["journal", "outbox"])
async def test_new_holds_wait_when_postgres_is_far_behind(stall: Stall, stream: str) -> None:
    order = await stall.sold(mug=1)
    await stall.held(mug=1)
    persisted = await stall.term(f"{stream}_n") - 2
    await stall.set(backlog_max=1, journal_persisted_n=100, outbox_persisted_n=100)
    await stall.set(**{f"{stream}_persisted_n": persisted})

    assert await stall.hold(mug=1) == Busy(1000)
    assert isinstance(await order.confirm(), seats.Confirmed)  # what finishes something never waits


async def test_a_buyer_may_have_so_many_units_and_no_more(stall: Stall) -> None:
    await stall.set(per_buyer_max=6)
    await stall.sold(mug=2)
    await (await stall.held(cap=1)).pay()
    lapsed = await stall.held(shirt=3)
    await lapsed.lapse()

    # Two bought, one being paid; what lapsed counts no more, swept or not.
    assert await stall.hold(mug=2, cap=2) == LimitReached(limit=6, have=3)
    await stall.held(mug=2, cap=1)
    assert await stall.hold(mug=1) == LimitReached(limit=6, have=6)
    assert isinstance(await stall.hold(mug=6, by="bob"), stock.Held)


async def test_two_holds_of_one_moment_cannot_pass_the_limit_together(stall: Stall) -> None:
    await stall.set(per_buyer_max=3)

    replies = await together(stall.hold(mug=2), stall.hold(cap=2))

    assert [type(reply) for reply in replies] == [stock.Held, LimitReached]


async def test_a_buyer_of_a_hundred_ended_holds_must_slow_down(stall: Stall) -> None:
    orders = []
    for _ in range(100):
        orders.append(await stall.held(mug=1))
        await orders[-1].release()
    await stall.check()

    assert await stall.hold(mug=1) == SlowDown(HOUR_MS // 100)
    assert isinstance(await stall.hold(mug=1, by="bob"), stock.Held)

    # One of them is forgotten: another may be made.
    await stall.forget(orders[7].hold_id)
    assert isinstance(await stall.hold(mug=1), stock.Held)
    assert await stall.hold(mug=1) == SlowDown(HOUR_MS // 100)


# --- taking over what has lapsed --------------------------------------------------------------------------------------


async def test_units_of_lapsed_holds_are_free_at_once_and_those_holds_end_whole(stall: Stall) -> None:
    old = await stall.held(mug=9, cap=2)
    assert await stall.hold(mug=2, by="bob") == stock.SoldOut(("mug 2 1",))
    await old.lapse()

    new = await stall.held(mug=2, by="bob")

    assert await stall.left() == left(mug=2)
    assert (await old.find()).state == "ENDED"
    assert new.fence > old.fence
    held, expired, taken = await stall.entries("journal")
    assert (held["hold_id"], held["kind"]) == (old.hold_id, "held")
    assert (expired["hold_id"], expired["kind"], expired["fence"]) == (old.hold_id, "expired", str(old.fence))
    assert (taken["hold_id"], taken["kind"]) == (new.hold_id, "held")


async def test_while_enough_is_left_nothing_is_taken_over(stall: Stall) -> None:
    old = await stall.held(mug=5)
    await old.lapse()

    await stall.held(mug=5, by="bob")

    assert (await stall.records())[old.hold_id]["state"] == "HELD"
    assert [entry["kind"] for entry in await stall.entries("journal")] == ["held", "held"]


async def test_a_buyer_takes_over_a_lapsed_hold_of_their_own(stall: Stall) -> None:
    await stall.set(per_buyer_max=10)
    old = await stall.held(mug=10)
    await old.lapse()

    new = await stall.held(mug=10)

    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == f"0 1 {new.hold_id}".encode()


async def test_sold_out_is_said_only_when_no_lapsed_hold_is_left_however_many_there_were(
    redis_any: RedisClient,
) -> None:
    # One call ends 64 of them; who still finds too few is asked to look on, and the engine does.
    stall = await open_stall(redis_any, {"mug": 300, "cap": 1})
    orders = [await stall.held(mug=1, by=str(number)) for number in range(300)]
    for order in orders[:299]:
        await stall.redis.hset(stall.sale.keys.holds, order.hold_id, _aged(await _record(stall, order.hold_id)))
        await stall.redis.zadd(stall.sale.keys.deadlines, {order.hold_id: 1})
    asked: dict[str, Any] = {
        "epoch": 1,
        "hold_id": "1" * 32,
        "buyer_id": buyer("bob"),
        "queue_no": 0,
        "fingerprint": "f",
    }

    first = await stock.HOLD(stall.gate, stall.sale.keys, **asked, lines=("mug:200",))
    assert first == seats.LookOn("")
    assert await stall.left() == {"mug": 64, "cap": 1}
    await stall.check()
    assert isinstance(await stall.hold(mug=200, by="bob"), stock.Held)
    assert await stall.hold(mug=100, by="bob") == stock.SoldOut(("mug 100 99",))
    assert len([entry for entry in await stall.entries("journal") if entry["kind"] == "expired"]) == 299
    await stall.check()


async def test_many_who_find_too_few_in_one_call_end_a_bounded_number_of_lapsed_holds(redis_any: RedisClient) -> None:
    stall = await open_stall(redis_any, {"mug": 100})
    orders = [await stall.held(mug=1, by=str(number)) for number in range(100)]
    for order in orders:
        await stall.redis.hset(stall.sale.keys.holds, order.hold_id, _aged(await _record(stall, order.hold_id)))
        await stall.redis.zadd(stall.sale.keys.deadlines, {order.hold_id: 1})
    asked: dict[str, Any] = {"epoch": 1, "queue_no": 0, "fingerprint": "f", "lines": ("mug:100",)}

    replies = await together(
        *(
            stock.HOLD(stall.gate, stall.sale.keys, **asked, hold_id=f"{number:032x}", buyer_id=buyer(str(number)))
            for number in range(3)
        )
    )

    assert replies == [seats.LookOn("")] * 3
    assert await stall.left() == {"mug": 64}
    await stall.check()


async def _record(stall: Stall, hold_id: str) -> list[str]:
    record = await stall.redis.hget(stall.sale.keys.holds, hold_id)
    return str(record.decode()).split("|")


def _aged(record: list[str]) -> str:
    """The record with a deadline that lies far behind."""
    return "|".join([*record[:6], "1", *record[7:]])


async def test_units_of_a_lapsed_hold_that_are_released_by_and_by_are_not_free_at_once(stall: Stall) -> None:
    await stall.set(release_jitter_ms=HOUR_MS)
    old = await stall.held(mug=10)
    await old.lapse()
    await stall.redis.zadd(stall.sale.keys.deadlines, {old.hold_id: await stall.now_ms() + 60_000})

    assert await stall.hold(mug=1, by="bob") == stock.SoldOut(("mug 1 0",))
    assert (await old.find()).state == "ENDED"
    await stall.redis.zadd(stall.sale.keys.deadlines, {old.hold_id: await stall.now_ms()})
    assert isinstance(await stall.hold(mug=1, by="bob"), stock.Held)


# --- a waiting list ---------------------------------------------------------------------------------------------------


async def test_while_there_is_a_waiting_list_whatever_frees_units_leaves_them_to_it(stall: Stall) -> None:
    released, in_part, lapsed, given_up, sold = [await stall.held(mug=1, cap=1) for _ in range(5)]
    for order in (given_up, sold):
        await order.pay()
    await sold.confirm()
    await stall.set(waiting_list=1)
    await lapsed.lapse()
    await stall.rewrite(given_up.hold_id, expires_at_ms=1)

    await released.release()
    await in_part.release(cap=1)
    await stock.expire(stall.gate, stall.sale, most=10)
    await given_up.abandon()
    await sold.restore(mug=1)

    assert await stall.freed() == {"mug": 3, "cap": 5}
    assert await stall.left() == left(mug=5, cap=5)


async def test_a_waiting_list_has_the_first_claim_on_what_has_lapsed(stall: Stall) -> None:
    old = await stall.held(mug=10)
    await stall.set(waiting_list=1)
    await old.lapse()

    assert await stall.hold(mug=1, by="bob") == stock.SoldOut(("mug 1 0",))
    assert (await stall.records())[old.hold_id]["state"] == "HELD"
    assert isinstance(await stall.hold(cap=1, by="bob"), stock.Held)


# --- the room ---------------------------------------------------------------------------------------------------------


async def test_while_the_room_is_on_only_the_buyers_own_active_token_holds(stall: Stall) -> None:
    await let_in(stall, "ann", "bob")

    assert await stall.hold(mug=1) == seats.NotAdmitted()  # no number
    assert await stall.hold(mug=1, more={"queue_no": 2}) == seats.NotAdmitted()  # bob's
    assert await stall.hold(mug=1, by="cat", more={"queue_no": 1}) == seats.NotAdmitted()  # ann's
    assert isinstance(await stall.hold(mug=1, more={"queue_no": 1}), stock.Held)

    await let_in(stall, "dan", for_ms=-1)
    assert await stall.hold(mug=1, by="dan", more={"queue_no": 1}) == seats.NotAdmitted()  # lapsed


@pytest.mark.parametrize("room", ["off", "bypass"])
async def test_without_a_room_no_number_is_asked_or_kept(stall: Stall, room: str) -> None:
    await let_in(stall, "bob")
    await stall.set(room=room)

    assert (await (await stall.held(mug=1, more={"queue_no": 1})).find()).queue_no == 0


async def test_the_first_hold_enters_the_token_and_every_write_renews_it(stall: Stall) -> None:
    await let_in(stall, "ann")
    keys, ann = stall.sale.keys, buyer("ann")

    async def deadline_after(asked: Any) -> float:
        """The token's deadline after this write, having been close to lapsing."""
        await stall.redis.zadd(keys.active, {ann: await stall.now_ms() + 5_000})
        reply = await asked
        assert not isinstance(reply, Refusal), reply
        return float(await stall.redis.zscore(keys.active, ann) or 0) - await stall.now_ms()

    held: list[Any] = []

    async def hold() -> Any:
        held.append(await stall.held(mug=2, more={"queue_no": 1}))

    assert 590_000 < await deadline_after(hold()) <= 600_000
    assert (await stall.redis.hget(keys.tokens, ann) or b"").split(b"|")[:3] == [b"ACTIVE", b"1", b"1"]
    assert 590_000 < await deadline_after(held[0].extend()) <= 600_000
    assert 590_000 < await deadline_after(held[0].release(mug=1)) <= 600_000
    # A running payment keeps the session for as long as it may take.
    await stall.set(pay_ms=1_800_000)
    assert 1_790_000 < await deadline_after(held[0].pay()) <= 1_800_000


async def test_confirming_ends_the_place_in_line_that_the_hold_was_made_with(stall: Stall) -> None:
    await let_in(stall, "ann")
    order = await stall.sold(mug=1, more={"queue_no": 1})

    assert await stall.redis.hget(stall.sale.keys.tokens, buyer("ann")) is None
    assert await stall.redis.hget(stall.sale.keys.ended_tokens, "1") == b"PROCESSED|" + buyer("ann").encode()
    [entry] = await stall.entries("outbox")
    assert entry["queue_no"] == "1"
    assert (await order.find()).queue_no == 1


# --- find -------------------------------------------------------------------------------------------------------------


async def test_a_hold_is_found_as_it_stands(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)

    found = await order.find()

    assert found == stock.Hold(
        hold_id=order.hold_id,
        buyer_id=order.buyer_id,
        state="HELD",
        reason=None,
        lines=(stock.Line("mug", 2, 1_200), stock.Line("cap", 1, 2_500)),
        amount=4_900,
        fence=1,
        queue_no=0,
        fingerprint=ids.fingerprint("mug:2", "cap:1"),
        created_at_ms=order.held.created_at_ms,
        expires_at_ms=order.held.expires_at_ms,
        payment_id=None,
        pay_deadline_ms=None,
        now_ms=found.now_ms,
    )
    assert await stock.find(stall.gate, stall.sale, hold_id="0" * 32) == NotFound()


async def test_from_its_deadline_on_a_hold_has_ended_sweep_or_not(stall: Stall) -> None:
    order = await stall.held(mug=1)
    await order.lapse()

    before = await order.find()
    await stock.expire(stall.gate, stall.sale, most=10)
    after = await order.find()

    assert (before.state, before.reason) == (after.state, after.reason) == ("ENDED", "EXPIRED")
    assert before.lines == after.lines


async def test_the_holds_of_a_buyer_that_have_not_ended_are_listed(stall: Stall) -> None:
    held, paying, ended = [await stall.held(mug=1) for _ in range(3)]
    await paying.pay()
    await ended.release()

    listed = await stock.find_open(stall.gate, stall.sale, buyer_id=buyer("ann"))
    assert sorted(listed) == sorted([held.hold_id, paying.hold_id])
    assert await stock.find_open(stall.gate, stall.sale, buyer_id=buyer("bob")) == ()


# --- extend -----------------------------------------------------------------------------------------------------------


async def test_an_extension_adds_the_time_of_a_hold_and_the_same_one_again_nothing(stall: Stall) -> None:
    order = await stall.held(mug=1)
    until_ms = order.held.expires_at_ms + 300_000

    assert await together(order.extend(), order.extend()) == [
        seats.Extended(until_ms, 0),
        seats.Extended(until_ms, 1),
    ]
    assert (await order.find()).expires_at_ms == until_ms
    assert [entry["kind"] for entry in await stall.entries("journal")] == ["held", "extended"]


async def test_extensions_have_a_budget_and_a_hold_an_absolute_lifetime(stall: Stall) -> None:
    budget = await stall.held(mug=1)
    created = budget.held.created_at_ms
    await stall.set(hold_max_ms=2 * HOUR_MS)
    assert await budget.extend("x1") == seats.Extended(created + 600_000, 0)
    assert await budget.extend("x2") == seats.Extended(created + 900_000, 0)
    assert await budget.extend("x3") == seats.ExtensionSpent()

    lifetime = await stall.held(mug=1)
    created = lifetime.held.created_at_ms
    await stall.set(hold_max_ms=400_000, extensions_max=9)
    assert await lifetime.extend("x1") == seats.Extended(created + 400_000, 0)
    assert await lifetime.extend("x2") == seats.ExtensionSpent()


async def test_an_extension_is_refused_to_others_to_other_wishes_and_in_other_states(stall: Stall) -> None:
    order = await stall.held(mug=1)
    assert await order.extend(buyer_id=buyer("bob")) == NotFound()
    await order.extend("x1")
    assert await order.extend("x1", fingerprint="other") == IdempotencyKeyReused()
    await order.pay()
    assert await order.extend("x2") == seats.PaymentRunning(ids.derive("p1"))
    lapsed = await stall.held(mug=1)
    await lapsed.lapse()
    assert await lapsed.extend() == seats.HoldEnded("EXPIRED")


# --- release ----------------------------------------------------------------------------------------------------------


async def test_a_hold_is_released_whole_and_the_same_release_again_does_nothing(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)

    replies = await together(order.release(), order.release())

    assert replies == [stock.Released(0, ("mug:2", "cap:1")), stock.Released(1, ("mug:2", "cap:1"))]
    assert replies[0].units == (stock.Units("mug", 2), stock.Units("cap", 1))
    assert await stall.left() == left()
    found = await order.find()
    assert (found.state, found.reason, found.amount) == ("ENDED", "USER", 4_900)
    _, released = await stall.entries("journal")
    assert (released["kind"], released["seats"], released["whole"]) == ("released", "mug:2,cap:1", "1")


async def test_part_of_a_hold_is_given_back_down_to_single_units(stall: Stall) -> None:
    order = await stall.held(mug=3, cap=1, shirt=2)

    assert await order.release("r1", mug=1, cap=1) == stock.Released(0, ("mug:1", "cap:1"))
    assert await order.release("r2", mug=1) == stock.Released(0, ("mug:1",))

    found = await order.find()
    assert (found.state, found.amount) == ("HELD", 1_200 + 2 * 4_000)
    assert found.lines == (stock.Line("mug", 1, 1_200), stock.Line("shirt", 2, 4_000))
    assert await stall.left() == left(mug=1, shirt=2)
    first, second = [entry for entry in await stall.entries("journal") if entry["kind"] == "released"]
    assert (first["seats"], first["whole"], second["seats"]) == ("mug:1,cap:1", "0", "mug:1")


async def test_a_release_that_names_a_variant_twice_gives_back_the_sum(stall: Stall) -> None:
    order = await stall.held(mug=3)
    twice: dict[str, Any] = {"units": [stock.Units("mug", 2), stock.Units("mug", 2)]}
    mine: dict[str, Any] = {"hold_id": order.hold_id, "buyer_id": order.buyer_id, "fingerprint": "f"}

    too_many = await stock.release(stall.gate, stall.sale, **mine, **twice, release_id=ids.derive("r1"))
    assert too_many == stock.UnitUnknown(("mug",))
    twice = {"units": [stock.Units("mug", 2), stock.Units("mug", 1)]}
    await stock.release(stall.gate, stall.sale, **mine, **twice, release_id=ids.derive("r1"))
    assert (await order.find()).state == "ENDED"


async def test_a_late_copy_of_a_release_frees_nothing(stall: Stall) -> None:
    order = await stall.held(mug=3)
    await order.release(mug=1)
    await stall.held(mug=8, by="bob")

    assert await order.release(mug=1) == stock.Released(1, ("mug:1",))
    assert await stall.left() == left(mug=10)


async def test_naming_every_unit_ends_the_hold(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)

    assert await order.release(cap=1, mug=2) == stock.Released(0, ("cap:1", "mug:2"))

    assert (await order.find()).state == "ENDED"
    assert (await stall.entries("journal"))[1]["whole"] == "1"


async def test_a_hold_remembers_a_hundred_partial_releases_and_then_goes_back_whole_only(redis: RedisClient) -> None:
    stall = await open_stall(redis, {"mug": 200})
    order = await stall.held(mug=150)
    for number in range(100):
        assert await order.release(f"r{number}", mug=1) == stock.Released(0, ("mug:1",))

    slow_down = await order.release("r100", mug=1)
    assert isinstance(slow_down, SlowDown)
    assert 290_000 < slow_down.retry_after_ms <= 300_000
    assert await order.release("r99", mug=1) == stock.Released(1, ("mug:1",))
    assert await stall.left() == {"mug": 150}
    assert await order.release("r100") == stock.Released(0, ("mug:50",))
    assert await stall.left() == {"mug": 200}
    await stall.check()


async def test_a_release_is_refused_to_others_to_other_wishes_and_in_other_states(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)
    assert await order.release(more={"buyer_id": buyer("bob")}) == NotFound()
    assert await order.release(shirt=1, mug=3, cap=1) == stock.UnitUnknown(("shirt", "mug"))
    await order.release("r1", mug=1)
    assert await order.release("r1", cap=1) == IdempotencyKeyReused()

    await order.pay()
    assert await order.release("r2") == seats.PaymentRunning(ids.derive("p1"))
    await order.confirm()
    assert await order.release("r2") == seats.PaymentRunning(ids.derive("p1"))
    lapsed = await stall.held(mug=1)
    await lapsed.lapse()
    assert await lapsed.release() == seats.HoldEnded("EXPIRED")
    ended = await stall.held(mug=1)
    await ended.release("r1")
    assert await ended.release("r2") == seats.HoldEnded("USER")


async def test_a_release_of_what_is_no_variants_name_says_so(stall: Stall) -> None:
    order = await stall.held(mug=1)
    mine: dict[str, Any] = {"hold_id": order.hold_id, "buyer_id": order.buyer_id, "fingerprint": "f"}

    refused = await stock.release(
        stall.gate, stall.sale, **mine, release_id=ids.derive("r1"), units=[stock.Units("mug,cap", 1)]
    )
    assert refused == stock.UnitUnknown(("mug,cap",))


# --- pay --------------------------------------------------------------------------------------------------------------


async def test_paying_keeps_the_units_beyond_the_holds_own_deadline(stall: Stall) -> None:
    order = await stall.held(mug=10, cap=1)

    first, again = await together(order.pay(), order.pay())

    assert first == seats.Paying(
        fence=1,
        amount=14_500,
        pay_deadline_ms=first.pay_deadline_ms,
        created_at_ms=order.held.created_at_ms,
        expires_at_ms=order.held.expires_at_ms,
        queue_no=0,
        fingerprint=ids.fingerprint("mug:10", "cap:1"),
        seats="mug:10,cap:1",
        prices="1200,2500",
        repeated=0,
    )
    assert stock.lines_of(first.seats, first.prices) == order.held.lines
    assert (again.repeated, again.pay_deadline_ms) == (1, first.pay_deadline_ms)

    await stall.rewrite(order.hold_id, expires_at_ms=1)
    assert await stock.expire(stall.gate, stall.sale, most=10) == seats.Expired(0, 0, 0)
    assert await stall.hold(mug=1, by="bob") == stock.SoldOut(("mug 1 0",))


async def test_a_payment_is_refused_where_another_runs_or_the_hold_has_ended(stall: Stall) -> None:
    order = await stall.held(mug=1)
    assert await order.pay(buyer_id=buyer("bob")) == NotFound()
    await order.pay("p1")
    assert await order.pay("p2") == seats.PaymentRunning(ids.derive("p1"))
    await order.confirm("p1")
    assert await order.pay("p2") == seats.HoldSold(ids.derive("p1"))

    lapsed = await stall.held(mug=1)
    await lapsed.lapse()
    assert await lapsed.pay() == seats.HoldEnded("EXPIRED")


async def test_a_payment_that_ended_never_runs_again(stall: Stall) -> None:
    order = await stall.held(mug=1)
    await order.pay("p1")
    await order.abandon("p1")

    assert await order.pay("p1") == seats.PaymentEnded()
    assert isinstance(await order.pay("p2"), seats.Paying)


# --- confirm ----------------------------------------------------------------------------------------------------------


async def test_confirming_sells_the_units_and_repeated_answers_its_first_number(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)
    await order.pay()

    assert await together(order.confirm(), order.confirm()) == [seats.Confirmed(1)] * 2
    await stall.sold(cap=3, by="bob")
    assert await order.confirm() == seats.Confirmed(1)

    assert (await order.find()).state == "SOLD"
    assert await stall.left() == left(mug=2, cap=4)
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == b"3 0 "
    entry, _ = await stall.entries("outbox")
    told = {name: entry[name] for name in ("kind", "hold_id", "buyer_id", "fence", "payment_id", "queue_no")}
    assert told == {
        "kind": "confirmed",
        "hold_id": order.hold_id,
        "buyer_id": order.buyer_id,
        "fence": "1",
        "payment_id": ids.derive("p1"),
        "queue_no": "0",
    }


async def test_an_authorised_payment_confirms_however_late(stall: Stall) -> None:
    order = await stall.held(mug=1)
    await order.pay()
    await stall.rewrite(order.hold_id, expires_at_ms=1, pay_deadline_ms=1)

    assert await order.confirm() == seats.Confirmed(1)


async def test_confirming_presents_the_hold_its_fence_and_its_payment(stall: Stall) -> None:
    order = await stall.held(mug=1)
    assert await order.confirm() == seats.HoldUnknown()  # nobody pays
    await order.pay()

    assert await order.confirm(hold_id="0" * 32) == seats.HoldUnknown()
    assert await order.confirm(fence=2) == seats.HoldUnknown()
    assert await order.confirm("p2") == seats.PaymentMismatch()
    await order.confirm()
    assert await order.confirm("p2") == seats.PaymentMismatch()


# --- abandon ----------------------------------------------------------------------------------------------------------


async def test_an_abandoned_payment_gives_the_hold_back_with_its_own_deadline(stall: Stall) -> None:
    order = await stall.held(mug=1)
    await order.pay()

    assert await together(order.abandon(), order.abandon()) == [seats.Abandoned("held")] * 2

    found = await order.find()
    assert (found.state, found.expires_at_ms, found.payment_id) == ("HELD", order.held.expires_at_ms, None)
    assert await stall.left() == left(mug=1)
    [entry] = await stall.entries("outbox")
    told = {name: entry[name] for name in ("kind", "hold_id", "fence", "payment_id", "to")}
    assert told == {
        "kind": "abandoned",
        "hold_id": order.hold_id,
        "fence": "1",
        "payment_id": ids.derive("p1"),
        "to": "held",
    }


async def test_past_the_holds_deadline_an_abandoned_payment_frees_the_units(stall: Stall) -> None:
    order = await stall.held(mug=2, cap=1)
    await order.pay()
    await stall.rewrite(order.hold_id, expires_at_ms=await stall.now_ms() - 1)

    assert await order.abandon() == seats.Abandoned("free")
    assert await order.abandon() == seats.Abandoned("free")

    assert await stall.left() == left()
    found = await order.find()
    assert (found.state, found.reason) == ("ENDED", "EXPIRED")
    assert [entry["to"] for entry in await stall.entries("outbox")] == ["free"]


async def test_abandoning_presents_the_hold_its_fence_and_its_payment(stall: Stall) -> None:
    order = await stall.held(mug=1)
    assert await order.abandon() == seats.HoldUnknown()  # nobody pays
    await order.pay("p1")
    assert await order.abandon("p2") == seats.HoldUnknown()
    assert await order.abandon(fence=2) == seats.HoldUnknown()
    assert await order.abandon(hold_id="0" * 32) == seats.HoldUnknown()

    await order.confirm("p1")
    assert await order.abandon("p1") == seats.HoldSold(ids.derive("p1"))


async def test_a_confirm_after_the_abandon_finds_the_door_shut(stall: Stall) -> None:
    order = await stall.held(mug=1)
    await order.pay("p1")
    await order.abandon("p1")

    assert await order.confirm("p1") == seats.HoldUnknown()
    await order.pay("p2")
    assert await order.confirm("p1") == seats.PaymentMismatch()


# --- expire and overdue -----------------------------------------------------------------------------------------------


async def test_a_sweep_ends_at_most_so_many_lapsed_holds(stall: Stall) -> None:
    orders = [await stall.held(mug=1, cap=1) for _ in range(5)]
    for number, order in enumerate(orders[:3]):
        await order.lapse(ago_ms=30 - number)

    assert await stock.expire(stall.gate, stall.sale, most=2) == seats.Expired(count=2, left=1, trimmed=0)
    await stall.check()
    assert await stock.expire(stall.gate, stall.sale, most=2) == seats.Expired(count=1, left=0, trimmed=0)
    assert await stock.expire(stall.gate, stall.sale, most=2) == seats.Expired(count=0, left=0, trimmed=0)

    assert await stall.left() == left(mug=2, cap=2)
    ended = [entry for entry in await stall.entries("journal") if entry["kind"] == "expired"]
    assert [entry["hold_id"] for entry in ended] == [order.hold_id for order in orders[:3]]


async def test_two_sweeps_of_one_moment_end_a_hold_once(stall: Stall) -> None:
    await (await stall.held(mug=1)).lapse()

    replies = await together(*(stock.expire(stall.gate, stall.sale, most=5) for _ in range(2)))

    assert replies == [seats.Expired(1, 0, 0), seats.Expired(0, 0, 0)]


async def test_past_the_window_an_ended_hold_is_forgotten_and_a_sold_one_once_postgres_has_it(stall: Stall) -> None:
    released = await stall.held(mug=1)
    await released.release()
    order = await stall.sold(cap=2)
    ended = stall.sale.keys.ended
    await stall.redis.zadd(ended, {released.hold_id: 1, order.hold_id: 1})

    assert await stock.expire(stall.gate, stall.sale, most=10) == seats.Expired(0, 0, 1)
    assert list(await stall.records()) == [order.hold_id]
    await stall.forget(order.hold_id)

    assert await stall.records() == {}
    # Bought units stay counted for their buyer, and taken.
    assert await stall.redis.hgetall(stall.sale.keys.buyers) == {buyer("ann").encode(): b"2 0 "}
    assert await stall.left() == left(cap=2)
    await stall.set(per_buyer_max=2)
    assert await stall.hold(mug=1) == LimitReached(limit=2, have=2)


async def test_payments_past_their_deadline_are_listed_the_oldest_first_and_stay(stall: Stall) -> None:
    now_ms = await stall.now_ms()
    first, second, third = [await stall.held(mug=1) for _ in range(3)]
    for number, order in enumerate((first, second, third)):
        await order.pay(f"p{number}")
    await stall.rewrite(second.hold_id, pay_deadline_ms=now_ms - 2_000)
    await stall.rewrite(first.hold_id, pay_deadline_ms=now_ms - 1_000)

    overdue = await stock.overdue(stall.gate, stall.sale, most=10)
    assert isinstance(overdue, seats.Overdue)
    assert overdue.holds == (
        seats.OverduePayment(second.hold_id, 2, ids.derive("p1")),
        seats.OverduePayment(first.hold_id, 1, ids.derive("p0")),
    )
    assert await stock.overdue(stall.gate, stall.sale, most=1) == seats.Overdue(overdue.payments[:1])


# --- restore ----------------------------------------------------------------------------------------------------------


async def test_a_sale_that_could_not_stand_frees_its_units(stall: Stall) -> None:
    order = await stall.sold(mug=2, cap=1)

    late = {"reason": "LATE_UNFULFILLABLE"}
    assert await together(order.restore(late), order.restore(late)) == [seats.Restored(3), seats.HoldUnknown()]

    assert await stall.left() == left()
    found = await order.find()
    assert (found.state, found.reason, found.lines) == ("ENDED", "LATE_UNFULFILLABLE", order.held.lines)
    entries = await stall.entries("outbox")
    assert [(entry["kind"], entry.get("seats")) for entry in entries] == [("confirmed", None), ("restored", "")]
    await stall.set(per_buyer_max=1)
    assert isinstance(await stall.hold(mug=1), stock.Held)


async def test_what_was_given_back_in_part_frees_only_that(stall: Stall) -> None:
    order = await stall.sold(mug=3, cap=1)

    assert await order.restore(mug=2) == seats.Restored(2)
    assert await order.restore(mug=2) == seats.Restored(0)

    found = await order.find()
    assert (found.state, found.lines, found.amount) == ("SOLD", (stock.Line("mug", 2, 1_200),), 2_400)
    assert await stall.left() == left(mug=2)
    _, entry = await stall.entries("outbox")
    assert (entry["kind"], entry["hold_id"], entry["fence"], entry["seats"]) == (
        *("restored", order.hold_id, "1", "mug:2"),
    )
    await stall.set(per_buyer_max=2)
    assert await stall.hold(mug=1) == LimitReached(limit=2, have=2)
    assert await order.restore() == seats.Restored(2)
    assert (await order.find()).state == "ENDED"


async def test_a_restore_works_once_when_the_record_is_forgotten(stall: Stall) -> None:
    order = await stall.sold(mug=3, cap=1)
    await stall.forget(order.hold_id)

    replies = await together(order.restore(mug=1), order.restore(mug=1))
    assert replies == [seats.Restored(3), seats.HoldUnknown()]
    assert await stall.left() == left(mug=1)
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == b"1 0 "
    assert await stock.find(stall.gate, stall.sale, hold_id=order.hold_id) == NotFound()
    await stall.check()

    # It is remembered until the window has passed and Postgres has the entry: then Postgres says what is counted.
    await stall.redis.zadd(stall.sale.keys.ended, {order.hold_id: 1})
    assert await stock.expire(stall.gate, stall.sale, most=10) == seats.Expired(0, 0, 0)
    assert await order.restore(mug=1) == seats.HoldUnknown()
    await stall.forget(order.hold_id)
    assert await stall.fields("restored") == {}
    counted = {"mug": 1}
    assert await order.restore(counted=counted, mug=1) == seats.HoldUnknown()
    assert await order.restore(counted=counted) == seats.Restored(1)
    assert await order.restore(counted=counted) == seats.HoldUnknown()
    assert await stall.left() == left()
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) is None


async def test_what_was_given_back_stays_remembered_until_postgres_has_that(stall: Stall) -> None:
    one, other = await stall.sold(mug=3), await stall.sold(cap=2)
    await stall.set(outbox_persisted_n=2)
    await one.restore(mug=1)
    await other.restore()
    await stall.redis.zadd(stall.sale.keys.ended, {one.hold_id: 1, other.hold_id: 1})

    assert await stock.expire(stall.gate, stall.sale, most=10) == seats.Expired(0, 0, 0)
    assert await one.restore(mug=1) == seats.Restored(0)
    assert await other.restore() == seats.HoldUnknown()
    # Until then the same payment's confirm names the entry that its units are waiting for.
    assert await one.confirm() == seats.Confirmed(3)


async def test_giving_back_begins_the_window_anew(stall: Stall) -> None:
    order = await stall.sold(mug=3)
    await stall.redis.zadd(stall.sale.keys.ended, {order.hold_id: 1})
    await stall.set(outbox_persisted_n=9)

    await order.restore(mug=1)

    assert await stock.expire(stall.gate, stall.sale, most=10) == seats.Expired(0, 0, 0)


async def test_a_restore_with_another_fence_touches_nothing(stall: Stall) -> None:
    order = await stall.sold(mug=1)

    assert await order.restore({"fence": 2}) == seats.HoldUnknown()
    assert (await order.find()).state == "SOLD"


@pytest.mark.parametrize("state", ["HELD", "PAYING"])
async def test_what_postgres_sold_is_sold_whatever_redis_forgot(stall: Stall, state: str) -> None:
    order = await stall.held(mug=2, cap=1)
    if state == "PAYING":
        await order.pay()

    assert await order.restore(mug=2) == seats.Restored(3)
    assert await order.restore(mug=2) == seats.Restored(0)

    found = await order.find()
    assert (found.state, found.lines) == ("SOLD", (stock.Line("mug", 2, 1_200),))
    assert await stall.left() == left(mug=2)
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == b"2 0 "


@pytest.mark.parametrize("state", ["HELD", "PAYING"])
async def test_what_postgres_did_not_sell_goes_back_in_every_state(stall: Stall, state: str) -> None:
    order = await stall.held(mug=2)
    if state == "PAYING":
        await order.pay()

    assert await order.restore() == seats.Restored(2)

    assert (await order.find()).state == "ENDED"
    assert await stall.left() == left()


async def test_what_ended_here_and_is_bought_in_postgres_is_taken_again_as_far_as_any_is_left(stall: Stall) -> None:
    order = await stall.held(mug=4, cap=1)
    await order.release()
    await stall.held(mug=8, by="bob")

    assert await order.restore(mug=4, cap=1) == seats.Restored(3)

    found = await order.find()
    assert (found.state, found.lines) == ("SOLD", (stock.Line("mug", 2, 1_200), stock.Line("cap", 1, 2_500)))
    assert await stall.left() == left(mug=10, cap=1)
    assert await order.restore(mug=4, cap=1) == seats.Restored(0)
    assert await stall.redis.hget(stall.sale.keys.buyers, buyer("ann")) == b"3 0 "


async def test_after_a_sale_that_could_not_stand_its_buyer_goes_next(stall: Stall) -> None:
    await let_in(stall, "ann")
    order = await stall.sold(mug=1, more={"queue_no": 1})

    await order.restore({"goes_next": True})
    await order.restore({"goes_next": True})

    keys = stall.sale.keys
    assert (await stall.redis.hget(keys.tokens, buyer("ann")) or b"").startswith(b"RETURNED|1|")
    assert await stall.redis.zscore(keys.returned, buyer("ann")) == 1
    assert [entry["kind"] for entry in await stall.entries("journal")] == ["held", "returned"]


async def test_a_restore_is_not_asked_again_in_a_newer_epoch(stall: Stall) -> None:
    order = await stall.sold(mug=1)
    await stall.forget(order.hold_id)
    await stall.set(epoch=2)

    # In the new epoch the store counts what Postgres said when it was written: these claims are of the old one.
    assert await order.restore() == StaleEpoch(2)
    assert await stall.left() == left(mug=1)


# --- a sale that cannot answer ----------------------------------------------------------------------------------------


async def test_what_is_left_is_told_of_any_variant(stall: Stall) -> None:
    await stall.held(mug=3)
    assert await stock.left(stall.gate, stall.sale, ("mug", "cap", "none")) == {"mug": 7, "cap": 10, "none": 0}


def every_verb(stall: Stall) -> list[Any]:
    """One call of each function that is a script."""
    of: dict[str, Any] = {"hold_id": "1" * 32, "buyer_id": "2" * 32}
    fenced: dict[str, Any] = {"hold_id": "1" * 32, "fence": 1}
    asked = (stall.gate, stall.sale)
    claims = (stock.Claim("mug", 1),)
    return [
        stall.hold(mug=1),
        stock.hold_again(*asked, **of, fingerprint="f", lines=("mug:1",), prices=(1_200,)),
        stock.find(*asked, hold_id="1" * 32),
        stock.extend(*asked, **of, extension_id="3" * 32, fingerprint="f"),
        stock.release(*asked, **of, release_id="3" * 32, fingerprint="f"),
        stock.pay(*asked, **of, payment_id="3" * 32),
        stock.confirm(*asked, **fenced, payment_id="3" * 32),
        stock.abandon(*asked, **fenced, payment_id="3" * 32),
        stock.expire(*asked, most=1),
        stock.overdue(*asked, most=1),
        stock.left(*asked, ("mug",)),
        stock.restore(*asked, **fenced, buyer_id="2" * 32, reason="USER", goes_next=True, claims=claims),
    ]


@pytest.mark.parametrize(
    ("terms", "refusal"),
    [
        ({"state": "rebuilding"}, SaleRebuilding()),
        ({"epoch": 2}, StaleEpoch(2)),
        (None, SaleUnknown()),
    ],
)
async def test_nothing_succeeds_where_the_sale_is_closed_unknown_or_of_another_epoch(
    stall: Stall, terms: dict[str, Any] | None, refusal: Refusal
) -> None:
    if terms is None:
        await stall.redis.execute_command("DEL", stall.sale.keys.sale)
    else:
        await stall.set(**terms)

    replies = await together(*every_verb(stall))

    assert replies == [refusal] * len(replies)
    assert len(replies) == len(SCRIPTS) + len(SHARED)
    assert await stall.left() == left()


async def test_time_does_not_go_back_for_a_hold_when_the_stores_clock_does(stall: Stall) -> None:
    order = await stall.held(mug=10)
    # The sale has seen a later time than the clock shows now.
    await stall.set(now_ms=order.held.expires_at_ms)

    assert (await order.find()).state == "ENDED"
    later = await stall.held(mug=10, by="bob")
    assert later.held.created_at_ms == order.held.expires_at_ms


async def test_numbers_stay_whole_in_a_late_epoch(stall: Stall) -> None:
    # A rebuild goes on at epoch times 10^9: the fence of a far epoch has 16 digits.
    far = 5_000_000 * 10**9
    await stall.set(fence=far)

    order = await stall.sold(mug=1)

    assert order.fence == far + 1
    assert (await order.find()).fence == far + 1
    assert await order.confirm() == seats.Confirmed(1)


async def test_a_full_store_refuses_holds_and_still_finishes_what_began(redis_any: RedisClient) -> None:
    stall = await open_stall(redis_any)
    paying, given_up, given_back, lapsed, unpaid = [await stall.held(mug=1) for _ in range(5)]
    await paying.pay()
    await given_up.pay()
    settled, forgotten = await stall.sold(mug=1), await stall.sold(mug=1)
    await stall.forget(forgotten.hold_id)
    await lapsed.lapse()

    await _limit_memory(redis_any, 1)
    try:
        with pytest.raises(StoreFull):
            await stall.hold(mug=1, by="bob")
        assert await paying.confirm() == seats.Confirmed(3)
        assert await given_up.abandon() == seats.Abandoned("held")
        assert await given_back.release() == stock.Released(0, ("mug:1",))
        assert await stock.expire(stall.gate, stall.sale, most=9) == seats.Expired(1, 0, 0)
        assert isinstance(await unpaid.pay(), seats.Paying)
        assert await settled.restore() == seats.Restored(1)
        assert await forgotten.restore() == seats.Restored(1)
    finally:
        await _limit_memory(redis_any, 0)
    await stall.check()


async def _limit_memory(redis: RedisClient, size: int) -> None:
    nodes = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(redis, RedisCluster) else {}
    await redis.execute_command("CONFIG SET", "maxmemory", size, **nodes)


# --- a new epoch ------------------------------------------------------------------------------------------------------


async def _write(stall: Stall, *, twice: bool) -> None:
    """Write the stall anew in epoch 2: six mugs in holds, one that was sold long ago, two that wait to be given on."""
    gate, keys = stall.gate, stall.sale.keys
    terms = (*stored_terms(stall.sale), "repeat_window_ms", HOUR_MS)
    hold = (buyer("ann"), 7, 0, "f" * 16, 1_000, 4_000_000_000_000)
    rows: list[tuple[str | int, ...]] = [
        (ids.derive("held"), 0, "HELD", *hold, "", 0, "", 1_200, "mug:1", 1_200, ""),
        (ids.derive("paying"), 0, "PAYING", *hold, ids.derive("p1"), 9_000, "", 4_900, "mug:2,cap:1", "1200,2500", "x"),
        (ids.derive("sold"), 5_000, "SOLD", *hold, ids.derive("p1"), 0, "", 3_600, "mug:3", 1_200, ""),
        (ids.derive("ended"), 6_000, "ENDED", *hold, "", 0, "USER", 1_200, "mug:1", 1_200, ""),
    ]
    rows = [(*row[:4], 10 + at, *row[5:]) for at, row in enumerate(rows)]
    for _ in range(1 + twice):
        assert await rebuild.CLEAR(gate, keys, epoch=2, admitted=0, terms=terms) == copies.Cleared()
        stock_rows = ("mug", 1_200, 1, 2, 10, "cap", "-2500", 9, 0, 10)
        assert await stock_copies.LOAD_STOCK(gate, keys, epoch=2, rows=stock_rows) == copies.Loaded(2)
        flat = [value for row in rows for value in row]
        assert await stock_copies.LOAD_STOCK_HOLDS(gate, keys, epoch=2, rows=flat) == copies.Loaded(4)
        buyer_rows = (buyer("ann"), 3, buyer("bob"), 1)
        assert await stock_copies.LOAD_BUYERS(gate, keys, epoch=2, rows=buyer_rows) == copies.Loaded(2)


@pytest.mark.parametrize("twice", [False, True])
async def test_a_sale_of_stock_is_written_anew(redis_any: RedisClient, *, twice: bool) -> None:
    stall = await open_stall(redis_any, {"mug": 10, "cap": 10})
    await _write(stall, twice=twice)

    counted = await stock_copies.COUNT_STOCK(stall.gate, stall.sale.keys, epoch=2)
    assert counted == stock_copies.CountedStock(
        variants=2,
        left=10,
        freed=2,
        running=4,
        holds=4,
        held_holds=1,
        paying_holds=1,
        ended_holds=2,
        buyers=2,
        bought=4,
        ended_tokens=0,
    )
    assert await rebuild.OPEN(stall.gate, stall.sale.keys, epoch=2) == rebuild.Opened()
    assert await stall.left() == {"mug": 1, "cap": 9}
    assert await stall.freed() == {"mug": 2}
    rows = await stall.fields("buyers")
    assert rows == {buyer("ann"): f"3 1 {ids.derive('held')},{ids.derive('paying')}", buyer("bob"): "1 0 "}
    stall.forgotten["long ago"] = Counter(mug=1)
    stall.sale = type(stall.sale)(sale_id=stall.sale.sale_id, kind="stock", epoch=2)
    await stall.set(fence=20)
    await stall.check()

    # What was written is as good as what was made: payments go on, and what is off sale is not sold.
    assert await stall.hold(cap=1) == stock.UnitUnknown(("cap",))
    paid: dict[str, Any] = {"hold_id": ids.derive("paying"), "fence": 11, "payment_id": ids.derive("p1")}
    assert await stock.confirm(stall.gate, stall.sale, **paid) == seats.Confirmed(1)
    again: dict[str, Any] = {"hold_id": ids.derive("sold"), "fence": 12, "payment_id": ids.derive("p1")}
    assert await stock.confirm(stall.gate, stall.sale, **again) == seats.Confirmed(0)
    await stall.check()


async def test_only_a_sale_that_is_being_rebuilt_is_written(redis_any: RedisClient) -> None:
    stall = await open_stall(redis_any)
    scripts: tuple[Any, ...] = (stock_copies.LOAD_STOCK, stock_copies.LOAD_STOCK_HOLDS, stock_copies.LOAD_BUYERS)
    for script in scripts:
        assert await script(stall.gate, stall.sale.keys, epoch=1, rows=()) == copies.SaleOpen()
        assert await script(stall.gate, stall.sale.keys, epoch=2, rows=()) == StaleEpoch(1)
    assert await stock_copies.COUNT_STOCK(stall.gate, stall.sale.keys, epoch=2) == StaleEpoch(1)
    await stall.redis.execute_command("DEL", stall.sale.keys.sale)
    for script in scripts:
        assert await script(stall.gate, stall.sale.keys, epoch=1, rows=()) == SaleUnknown()
    assert await stock_copies.COUNT_STOCK(stall.gate, stall.sale.keys, epoch=1) == SaleUnknown()


# --- units of a list that is over -------------------------------------------------------------------------------------


async def test_freed_units_are_given_to_the_public_and_never_made(redis_any: RedisClient) -> None:
    stall = await open_stall(redis_any, waiting_list=1)
    await (await stall.held(mug=4, cap=2)).release()
    assert (await stall.left(), await stall.freed()) == ({"mug": 6, "cap": 8, "shirt": 10}, {"mug": 4, "cap": 2})
    gate, keys = stall.gate, stall.sale.keys
    listed = await FREED_UNITS(gate, keys, epoch=1, most=1)
    assert isinstance(listed, FreedUnits)
    assert (len(listed.rows), listed.left) == (1, 1)
    lines = ("mug:3", "cap:9", "shirt:1")
    assert await PUBLISH_UNITS(gate, keys, epoch=1, lines=lines) == PublishedUnits(5)
    assert (await stall.left(), await stall.freed()) == ({"mug": 9, "cap": 10, "shirt": 10}, {"mug": 1})
    await stall.check()
    assert await PUBLISH_UNITS(gate, keys, epoch=1, lines=lines) == PublishedUnits(1)
    assert await PUBLISH_UNITS(gate, keys, epoch=1, lines=lines) == PublishedUnits(0)
    await stall.check()
    listed = await FREED_UNITS(gate, keys, epoch=1, most=9)
    assert isinstance(listed, FreedUnits)
    assert (listed.left, listed.rows, await stall.scores("freed")) == (0, (), {})


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", [script for script in SCRIPTS if "holds" in script.header.keys], ids=lambda script: script.path
)
def test_every_script_declares_the_keys_of_a_hold_in_their_places(script: Script[Any]) -> None:
    places = ("sale", "seats", "holds", "deadlines", "paying", "ended", "buyers", "stock", "stock_freed")

    assert script.header.keys[: len(places)] == places


def test_what_frees_or_finishes_works_in_a_full_store() -> None:
    flags = {script.path.removeprefix("stock/"): script.header.flags for script in SCRIPTS}

    assert {name for name, each in flags.items() if each == ("allow-oom",)} == {
        *("confirm", "abandon", "release", "expire", "restore"),
    }
    assert {name for name, each in flags.items() if not each} == {"hold", "hold_again"}
    assert {name for name, each in flags.items() if each == ("no-writes",)} == {"left"}


def test_every_answer_that_means_the_same_for_seats_is_the_same_class() -> None:
    own = {kind for kind in vars(stock).values() if isinstance(kind, type) and issubclass(kind, Reply)}

    made_here = {kind.__name__ for kind in own if kind.__module__ == stock.__name__}
    assert made_here == {"Held", "Left", "Released", "UnitUnknown", "SoldOut", "AmountTooLarge", "OrderedAgain"}
    assert title_of(stock.SoldOut) == title_of(seats.SoldOut)
