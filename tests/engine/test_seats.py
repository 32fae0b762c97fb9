from typing import Any

import pytest
from redis.asyncio import RedisCluster

from engine import ids, seats
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, NotFound, SaleClosed, SlowDown
from engine.stores.connections import RedisClient
from engine.stores.replies import Refusal, SaleRebuilding, SaleUnknown, StaleEpoch, title_of
from engine.stores.scripts import Script, StoreFull
from tests.engine.seat_sales import PRICE, Hall, buyer, open_hall, together
from tests.engine.stored_sales import HOUR_MS

SCRIPTS = [value for value in vars(seats).values() if isinstance(value, Script)]


async def let_in(hall: Hall, *names: str, first_no: int = 1, for_ms: int = 60_000) -> None:
    """Open the room and make these buyers' tokens ACTIVE, not entered, with numbers from `first_no`."""
    keys, now_ms = hall.sale.keys, await hall.now_ms()
    await hall.set(room="open")
    for queue_no, name in enumerate(names, first_no):
        await hall.redis.hset(keys.tokens, buyer(name), f"ACTIVE|{queue_no}|0|{now_ms}")
        await hall.redis.zadd(keys.active, {buyer(name): now_ms + for_ms})


# --- hold -------------------------------------------------------------------------------------------------------------


async def test_a_buyer_holds_several_seats_at_their_prices(hall: Hall) -> None:
    held = (await hall.held("A-1-1", "A-1-2")).held

    assert held == seats.Held(
        expires_at_ms=held.created_at_ms + 300_000,
        fence=1,
        amount=2 * PRICE,
        created_at_ms=held.created_at_ms,
        prices=(str(PRICE), str(PRICE)),
    )
    assert abs(held.created_at_ms - await hall.now_ms()) < 10_000
    assert await hall.statuses() == {"A-1-1": "HELD", "A-1-2": "HELD"}


async def test_a_hold_is_told_to_the_journal(hall: Hall) -> None:
    first = await hall.held("A-1-2", "A-1-1")

    [entry] = await hall.entries("journal")
    told = {name: entry[name] for name in entry.keys() - {"id", "holds"}}
    assert told == {
        "epoch": "1",
        "n": "1",
        "before": "0-0",
        "kind": "held",
        "hold_id": first.hold_id,
        "buyer_id": first.buyer_id,
        "fence": "1",
        "queue_no": "0",
        "fingerprint": ids.fingerprint("A-1-2", "A-1-1"),
        "seats": "A-1-2,A-1-1",
        "prices": f"{PRICE},{PRICE}",
        "amount": str(2 * PRICE),
        "created_at_ms": str(first.held.created_at_ms),
        "expires_at_ms": str(first.held.expires_at_ms),
    }


async def test_a_second_buyer_is_refused_a_held_seat_and_nothing_changes(hall: Hall) -> None:
    await hall.held("A-1-2")
    before = await hall.redis.hgetall(hall.sale.keys.seats)

    refused = await hall.hold("A-1-1", "A-1-2", "A-1-3", by="bob")

    assert refused == seats.SeatTaken(("A-1-2 held",))
    assert await hall.redis.hgetall(hall.sale.keys.seats) == before


async def test_a_refusal_lists_every_seat_in_conflict_with_its_reason(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any, *(f"Box 1-1-{number}" for number in range(1, 8)), blocked=("Box 1-2-1",))
    await hall.held("Box 1-1-1")
    await (await hall.held("Box 1-1-2")).pay()
    await hall.sold("Box 1-1-3")
    await hall.held("Box 1-1-4", by="bob")
    await (await hall.held("Box 1-1-5", by="bob")).pay()
    await hall.sold("Box 1-1-6", by="bob")

    refused = await hall.hold(*(f"Box 1-1-{number}" for number in range(1, 8)), "Box 1-2-1", by="bob")

    assert isinstance(refused, seats.SeatTaken)
    assert refused.seats == (
        seats.Conflict("Box 1-1-1", "held"),
        seats.Conflict("Box 1-1-2", "paying"),
        seats.Conflict("Box 1-1-3", "sold"),
        seats.Conflict("Box 1-1-4", "yours"),
        seats.Conflict("Box 1-1-5", "yours"),
        seats.Conflict("Box 1-1-6", "yours"),
        seats.Conflict("Box 1-2-1", "blocked"),
    )
    await hall.check()


async def test_seats_that_do_not_exist_are_named(hall: Hall) -> None:
    assert await hall.hold("A-1-1", "B-1-1", "A-1-9") == seats.SeatUnknown(("B-1-1", "A-1-9"))
    assert await hall.statuses() == {}


async def test_the_same_hold_twice_is_one_hold(hall: Hall) -> None:
    hold_id = ids.derive("mine")
    first, again = await together(hall.hold("A-1-1", id_=hold_id), hall.hold("A-1-1", id_=hold_id))

    assert isinstance(first, seats.Held)
    assert again == seats.HoldKnown("HELD")
    assert await hall.term("fence") == 1


async def test_a_hold_id_with_another_wish_or_buyer_is_refused(hall: Hall) -> None:
    first = await hall.held("A-1-1")

    assert await hall.hold("A-1-2", id_=first.hold_id) == IdempotencyKeyReused()
    other = await hall.hold("A-1-1", id_=first.hold_id, by="bob")
    assert other == IdempotencyKeyReused()


@pytest.mark.parametrize("ending", ["release", "lapse", "expire", "sold", "abandon"])
async def test_an_id_that_has_ended_never_holds_again_within_the_window(hall: Hall, ending: str) -> None:
    standing = await hall.held("A-1-1")
    if ending == "release":
        await standing.release()
    elif ending == "sold":
        await standing.pay()
        await standing.confirm()
    elif ending == "abandon":
        await standing.pay()
        await hall.rewrite(standing.hold_id, expires_at_ms=1)
        await standing.abandon()
    else:
        await standing.lapse()
        if ending == "expire":
            await seats.expire(hall.gate, hall.sale, most=10)

    again = await hall.hold("A-1-1", id_=standing.hold_id)

    assert again == seats.HoldKnown("SOLD" if ending == "sold" else "ENDED")
    assert await hall.term("fence") == 1


async def test_a_seat_named_twice_is_held_once(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-1")

    assert standing.held.amount == PRICE
    assert (await standing.find()).lines == (seats.Line("A-1-1", PRICE),)


@pytest.mark.parametrize("count", [0, 21])
async def test_a_hold_is_of_one_to_twenty_seats(hall: Hall, count: int) -> None:
    with pytest.raises(ValueError, match="1 to 20 seats"):
        await hall.hold(*(f"A-1-{number}" for number in range(count)))


async def test_twenty_seats_are_held_and_released_in_one_step(redis_any: RedisClient) -> None:
    seat_nos = tuple(f"B-2-{number}" for number in range(1, 21))
    hall = await open_hall(redis_any, *seat_nos)
    standing = await hall.held(*seat_nos)
    assert standing.held.amount == 20 * PRICE
    await hall.check()

    assert await standing.release() == seats.Released(0, seat_nos)
    await hall.check()


async def test_a_sale_that_has_not_begun_or_is_over_holds_nothing(hall: Hall) -> None:
    now_ms = await hall.now_ms()
    await hall.set(opens_at_ms=now_ms + HOUR_MS)
    assert await hall.hold("A-1-1") == seats.SaleNotOpen(now_ms + HOUR_MS)

    await hall.set(opens_at_ms=now_ms - HOUR_MS, closes_at_ms=now_ms)
    assert await hall.hold("A-1-1") == SaleClosed()

    await hall.set(closes_at_ms=now_ms + HOUR_MS)
    assert isinstance(await hall.hold("A-1-1"), seats.Held)


async def test_a_repeat_learns_of_its_hold_also_when_the_sale_is_over(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await hall.set(closes_at_ms=1)

    assert await hall.hold("A-1-1", id_=standing.hold_id) == seats.HoldKnown("HELD")


@pytest.mark.parametrize("stream", ["journal", "outbox"])
async def test_new_holds_wait_when_postgres_is_far_behind(hall: Hall, stream: str) -> None:
    standing = await hall.sold("A-1-1")
    await hall.held("A-1-2")
    persisted = await hall.term(f"{stream}_n") - 2
    await hall.set(backlog_max=1, journal_persisted_n=100, outbox_persisted_n=100)
    await hall.set(**{f"{stream}_persisted_n": persisted})

    assert await hall.hold("A-1-3") == Busy(1000)
    assert isinstance(await standing.confirm(), seats.Confirmed)  # what finishes something never waits


async def test_a_buyer_may_have_so_many_seats_and_no_more(hall: Hall) -> None:
    await hall.set(per_buyer_max=4)
    await hall.sold("A-1-1")
    await (await hall.held("A-1-2")).pay()
    lapsed = await hall.held("A-1-3")
    await lapsed.lapse()

    # One bought, one being paid; what lapsed counts no more, swept or not.
    assert await hall.hold("A-1-3", "A-1-4", "A-1-5") == LimitReached(limit=4, have=2)
    await hall.held("A-1-4", "A-1-5")
    assert await hall.hold("A-1-6") == LimitReached(limit=4, have=4)
    assert isinstance(await hall.hold("A-1-6", by="bob"), seats.Held)


async def test_two_holds_of_one_moment_cannot_pass_the_limit_together(hall: Hall) -> None:
    await hall.set(per_buyer_max=3)

    replies = await together(hall.hold("A-1-1", "A-1-2"), hall.hold("A-1-3", "A-1-4"))

    assert [type(reply) for reply in replies] == [seats.Held, LimitReached]


async def test_a_buyer_of_a_hundred_ended_holds_must_slow_down(hall: Hall) -> None:
    hundredth = None
    for number in range(100):
        hundredth = await hall.held("A-1-1", id_=ids.derive("again", str(number)))
        await hundredth.release()
    await hall.check()

    assert await hall.hold("A-1-1") == SlowDown(HOUR_MS // 100)
    assert isinstance(await hall.hold("A-1-1", by="bob"), seats.Held)

    # One of them is forgotten: another may be made.
    assert hundredth is not None
    await hall.redis.zadd(hall.sale.keys.ended, {hundredth.hold_id: 1})
    assert await seats.expire(hall.gate, hall.sale, most=10) == seats.Expired(0, 0, 1)
    assert isinstance(await hall.hold("A-1-2"), seats.Held)
    assert await hall.hold("A-1-3") == SlowDown(HOUR_MS // 100)


# --- taking over what has lapsed --------------------------------------------------------------------------------------


async def test_a_lapsed_hold_is_taken_over_at_once_and_ends_whole(hall: Hall) -> None:
    old = await hall.held("A-1-1", "A-1-2", "A-1-3")
    assert await hall.hold("A-1-2", by="bob") == seats.SeatTaken(("A-1-2 held",))
    await old.lapse()

    new = await hall.held("A-1-2", by="bob")

    assert await hall.statuses() == {"A-1-2": "HELD"}
    assert (await old.find()).state == "ENDED"
    assert new.fence > old.fence
    held, expired, taken = await hall.entries("journal")
    assert (held["hold_id"], held["kind"]) == (old.hold_id, "held")
    assert (expired["hold_id"], expired["kind"], expired["fence"]) == (old.hold_id, "expired", str(old.fence))
    assert (taken["hold_id"], taken["kind"]) == (new.hold_id, "held")


async def test_several_lapsed_holds_are_taken_over_each_once(hall: Hall) -> None:
    first = await hall.held("A-1-1", "A-1-2", by="bob")
    second = await hall.held("A-1-3", by="cat")
    await first.lapse()
    await second.lapse()

    await hall.held("A-1-1", "A-1-2", "A-1-3")

    ended = [entry["hold_id"] for entry in await hall.entries("journal") if entry["kind"] == "expired"]
    assert ended == [first.hold_id, second.hold_id]


async def test_a_buyer_takes_over_a_lapsed_hold_of_their_own(hall: Hall) -> None:
    await hall.set(per_buyer_max=2)
    old = await hall.held("A-1-1", "A-1-2")
    await old.lapse()

    new = await hall.held("A-1-1", "A-1-2")

    assert new.hold_id != old.hold_id
    row = await hall.redis.hget(hall.sale.keys.buyers, buyer("ann"))
    assert row == f"0 1 {new.hold_id}".encode()


async def test_a_refused_hold_takes_nothing_over(hall: Hall) -> None:
    old = await hall.held("A-1-1")
    await old.lapse()
    await hall.held("A-1-2", by="cat")

    assert await hall.hold("A-1-1", "A-1-2", by="bob") == seats.SeatTaken(("A-1-2 held",))

    assert (await hall.records())[old.hold_id]["state"] == "HELD"
    assert len(await hall.entries("journal")) == 2


# --- the room ---------------------------------------------------------------------------------------------------------


async def test_while_the_room_is_on_only_the_buyers_own_active_token_holds(hall: Hall) -> None:
    await let_in(hall, "ann", "bob")

    assert await hall.hold("A-1-1") == seats.NotAdmitted()  # no number
    assert await hall.hold("A-1-1", queue_no=2) == seats.NotAdmitted()  # bob's
    assert await hall.hold("A-1-1", queue_no=1, by="cat") == seats.NotAdmitted()  # ann's
    assert isinstance(await hall.hold("A-1-1", queue_no=1), seats.Held)


async def test_a_token_that_is_not_active_or_has_lapsed_does_not_hold(hall: Hall) -> None:
    await let_in(hall, "ann", for_ms=-1)
    assert await hall.hold("A-1-1", queue_no=1) == seats.NotAdmitted()

    await hall.redis.hset(hall.sale.keys.tokens, buyer("ann"), "SKIPPED|1|0|0")
    assert await hall.hold("A-1-1", queue_no=1) == seats.NotAdmitted()


@pytest.mark.parametrize("room", ["off", "bypass"])
async def test_without_a_room_no_number_is_asked_or_kept(hall: Hall, room: str) -> None:
    await let_in(hall, "bob")
    await hall.set(room=room)

    standing = await hall.held("A-1-1", queue_no=1)

    assert (await standing.find()).queue_no == 0


async def test_the_first_hold_enters_the_token_and_every_write_renews_it(hall: Hall) -> None:
    await let_in(hall, "ann")
    keys, ann = hall.sale.keys, buyer("ann")

    async def deadline_after(asked: Any) -> float:
        """The token's deadline after this write, having been close to lapsing."""
        await hall.redis.zadd(keys.active, {ann: await hall.now_ms() + 5_000})
        reply = await asked
        assert not isinstance(reply, Refusal), reply
        deadline = await hall.redis.zscore(keys.active, ann)
        assert deadline is not None
        return float(deadline) - await hall.now_ms()

    assert 590_000 < await deadline_after(hall.hold("A-1-1", "A-1-2", queue_no=1, id_="1" * 32)) <= 600_000
    assert (await hall.redis.hget(keys.tokens, ann) or b"").split(b"|")[:3] == [b"ACTIVE", b"1", b"1"]
    hold = {"hold_id": "1" * 32, "buyer_id": ann}
    extension = seats.extend(hall.gate, hall.sale, **hold, extension_id="2" * 32, fingerprint="f")
    assert 590_000 < await deadline_after(extension) <= 600_000
    release = seats.release(hall.gate, hall.sale, **hold, release_id="3" * 32, fingerprint="f", seat_nos=("A-1-1",))
    assert 590_000 < await deadline_after(release) <= 600_000
    # A running payment keeps the session for as long as it may take.
    await hall.set(pay_ms=1_800_000)
    payment = seats.pay(hall.gate, hall.sale, **hold, payment_id="4" * 32)
    assert 1_790_000 < await deadline_after(payment) <= 1_800_000


async def test_confirming_ends_the_place_in_line_that_the_hold_was_made_with(hall: Hall) -> None:
    await let_in(hall, "ann")
    standing = await hall.sold("A-1-1", queue_no=1)

    assert await hall.redis.hget(hall.sale.keys.tokens, buyer("ann")) is None
    assert await hall.redis.hget(hall.sale.keys.ended_tokens, "1") == b"PROCESSED|" + buyer("ann").encode()
    [entry] = await hall.entries("outbox")
    assert entry["queue_no"] == "1"
    assert (await standing.find()).queue_no == 1


async def test_confirming_leaves_a_newer_place_of_the_same_buyer_alone(hall: Hall) -> None:
    await let_in(hall, "ann")
    standing = await hall.held("A-1-1", queue_no=1)
    await standing.pay()
    await let_in(hall, "ann", first_no=7)

    await standing.confirm()

    assert (await hall.redis.hget(hall.sale.keys.tokens, buyer("ann")) or b"").startswith(b"ACTIVE|7|")


# --- find -------------------------------------------------------------------------------------------------------------


async def test_a_hold_is_found_as_it_stands(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")

    found = await standing.find()

    assert found == seats.Hold(
        hold_id=standing.hold_id,
        buyer_id=standing.buyer_id,
        state="HELD",
        reason=None,
        lines=(seats.Line("A-1-1", PRICE), seats.Line("A-1-2", PRICE)),
        amount=2 * PRICE,
        fence=1,
        queue_no=0,
        fingerprint=ids.fingerprint("A-1-1", "A-1-2"),
        created_at_ms=standing.held.created_at_ms,
        expires_at_ms=standing.held.expires_at_ms,
        payment_id=None,
        pay_deadline_ms=None,
        now_ms=found.now_ms,
    )
    assert await seats.find(hall.gate, hall.sale, hold_id="0" * 32) == NotFound()


async def test_from_its_deadline_on_a_hold_has_ended_sweep_or_not(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.lapse()

    before = await standing.find()
    await seats.expire(hall.gate, hall.sale, most=10)
    after = await standing.find()

    assert (before.state, before.reason) == (after.state, after.reason) == ("ENDED", "EXPIRED")
    assert before.lines == after.lines


# --- extend -----------------------------------------------------------------------------------------------------------


async def test_an_extension_adds_the_time_of_a_hold_and_the_same_one_again_nothing(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    until_ms = standing.held.expires_at_ms + 300_000

    assert await together(standing.extend(), standing.extend()) == [
        seats.Extended(until_ms, 0),
        seats.Extended(until_ms, 1),
    ]
    assert (await standing.find()).expires_at_ms == until_ms
    assert [entry["kind"] for entry in await hall.entries("journal")] == ["held", "extended"]
    assert (await hall.entries("journal"))[1]["expires_at_ms"] == str(until_ms)


async def test_extensions_have_a_budget_and_a_hold_an_absolute_lifetime(hall: Hall) -> None:
    budget = await hall.held("A-1-1")
    created = budget.held.created_at_ms
    await hall.set(hold_max_ms=2 * HOUR_MS)
    assert await budget.extend("x1") == seats.Extended(created + 600_000, 0)
    assert await budget.extend("x2") == seats.Extended(created + 900_000, 0)
    assert await budget.extend("x3") == seats.ExtensionSpent()
    assert await budget.extend("x1") == seats.Extended(created + 900_000, 1)

    lifetime = await hall.held("A-1-2")
    created = lifetime.held.created_at_ms
    await hall.set(hold_max_ms=400_000, extensions_max=9)
    assert await lifetime.extend("x1") == seats.Extended(created + 400_000, 0)
    assert await lifetime.extend("x2") == seats.ExtensionSpent()
    assert (await lifetime.find()).expires_at_ms == created + 400_000


async def test_an_extension_is_refused_to_others_to_other_wishes_and_in_other_states(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    assert await standing.extend(buyer_id=buyer("bob")) == NotFound()
    assert await standing.extend(hold_id="0" * 32) == NotFound()
    await standing.extend("x1")
    assert await standing.extend("x1", fingerprint="other") == IdempotencyKeyReused()

    await standing.pay()
    assert await standing.extend("x2") == seats.PaymentRunning(ids.derive("p1"))
    await standing.confirm()
    assert await standing.extend("x2") == seats.PaymentRunning(ids.derive("p1"))

    lapsed = await hall.held("A-1-2")
    await lapsed.extend("x1")
    await lapsed.lapse()
    assert await lapsed.extend("x2") == seats.HoldEnded("EXPIRED")
    assert await lapsed.extend("x1") == seats.HoldEnded("EXPIRED")
    released = await hall.held("A-1-3")
    await released.release()
    assert await released.extend() == seats.HoldEnded("USER")


# --- release ----------------------------------------------------------------------------------------------------------


async def test_a_hold_is_released_whole_and_the_same_release_again_does_nothing(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")

    replies = await together(standing.release(), standing.release())

    assert replies == [seats.Released(0, ("A-1-1", "A-1-2")), seats.Released(1, ("A-1-1", "A-1-2"))]
    assert await hall.statuses() == {}
    found = await standing.find()
    assert (found.state, found.reason, found.amount) == ("ENDED", "USER", 2 * PRICE)
    _, released = await hall.entries("journal")
    assert (released["kind"], released["seats"], released["whole"]) == ("released", "A-1-1,A-1-2", "1")


async def test_part_of_a_hold_is_given_back(hall: Hall) -> None:
    await hall.redis.hset(hall.sale.keys.prices, "A-1-2", 70_000)
    standing = await hall.held("A-1-1", "A-1-2", "A-1-3")

    assert await standing.release("A-1-3", "A-1-1") == seats.Released(0, ("A-1-3", "A-1-1"))

    found = await standing.find()
    assert (found.state, found.lines, found.amount) == ("HELD", (seats.Line("A-1-2", 70_000),), 70_000)
    assert await hall.statuses() == {"A-1-2": "HELD"}
    _, released = await hall.entries("journal")
    assert (released["seats"], released["whole"]) == ("A-1-3,A-1-1", "0")


async def test_a_late_copy_of_a_release_does_not_free_the_seat_for_its_next_holder(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")
    await standing.release("A-1-1")
    await hall.held("A-1-1", by="bob")

    assert await standing.release("A-1-1") == seats.Released(1, ("A-1-1",))

    assert await hall.statuses() == {"A-1-1": "HELD", "A-1-2": "HELD"}


async def test_naming_every_seat_ends_the_hold(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")

    assert await standing.release("A-1-2", "A-1-1") == seats.Released(0, ("A-1-2", "A-1-1"))

    assert (await standing.find()).state == "ENDED"
    assert (await hall.entries("journal"))[1]["whole"] == "1"
    assert await standing.release("A-1-2", "A-1-1") == seats.Released(1, ("A-1-2", "A-1-1"))


async def test_a_release_is_refused_to_others_to_other_wishes_and_in_other_states(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")
    assert await standing.release(buyer_id=buyer("bob")) == NotFound()
    assert await standing.release("A-1-3", "A-1-1", "A-1-4") == seats.SeatUnknown(("A-1-3", "A-1-4"))
    await standing.release("A-1-1", id_="r1")
    assert await standing.release("A-1-2", id_="r1") == IdempotencyKeyReused()

    await standing.pay()
    assert await standing.release(id_="r2") == seats.PaymentRunning(ids.derive("p1"))
    await standing.confirm()
    assert await standing.release(id_="r2") == seats.PaymentRunning(ids.derive("p1"))

    lapsed = await hall.held("A-1-3")
    await lapsed.lapse()
    assert await lapsed.release() == seats.HoldEnded("EXPIRED")
    ended = await hall.held("A-1-4")
    await ended.release(id_="r1")
    assert await ended.release(id_="r2") == seats.HoldEnded("USER")


# --- pay --------------------------------------------------------------------------------------------------------------


async def test_paying_keeps_the_seats_beyond_the_holds_own_deadline(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")

    first, again = await together(standing.pay(), standing.pay())

    assert first == seats.Paying(
        fence=1,
        amount=2 * PRICE,
        pay_deadline_ms=first.pay_deadline_ms,
        created_at_ms=standing.held.created_at_ms,
        expires_at_ms=standing.held.expires_at_ms,
        queue_no=0,
        fingerprint=ids.fingerprint("A-1-1", "A-1-2"),
        seats="A-1-1,A-1-2",
        prices=f"{PRICE},{PRICE}",
        repeated=0,
    )
    assert first.lines == (seats.Line("A-1-1", PRICE), seats.Line("A-1-2", PRICE))
    assert again == seats.Paying(**{name: getattr(first, name) for name in first.__struct_fields__} | {"repeated": 1})
    assert 590_000 < first.pay_deadline_ms - await hall.now_ms() <= 600_000

    await hall.rewrite(standing.hold_id, expires_at_ms=1)
    assert await seats.expire(hall.gate, hall.sale, most=10) == seats.Expired(0, 0, 0)
    assert await hall.hold("A-1-1", by="bob") == seats.SeatTaken(("A-1-1 paying",))
    assert await hall.statuses() == {"A-1-1": "PAYING", "A-1-2": "PAYING"}
    await hall.rewrite(standing.hold_id, expires_at_ms=standing.held.expires_at_ms)


async def test_a_payment_is_refused_where_another_runs_or_the_hold_has_ended(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    assert await standing.pay(buyer_id=buyer("bob")) == NotFound()
    await standing.pay("p1")
    assert await standing.pay("p2") == seats.PaymentRunning(ids.derive("p1"))
    await standing.confirm("p1")
    assert await standing.pay("p1") == seats.HoldSold(ids.derive("p1"))
    assert await standing.pay("p2") == seats.HoldSold(ids.derive("p1"))

    lapsed = await hall.held("A-1-2")
    await lapsed.lapse()
    assert await lapsed.pay() == seats.HoldEnded("EXPIRED")
    released = await hall.held("A-1-3")
    await released.release()
    assert await released.pay() == seats.HoldEnded("USER")


async def test_a_payment_that_ended_never_runs_again(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.pay("p1")
    await standing.abandon("p1")

    assert await standing.pay("p1") == seats.PaymentEnded()
    assert isinstance(await standing.pay("p2"), seats.Paying)
    assert await standing.pay("p1") == seats.PaymentEnded()
    await standing.confirm("p2")
    assert await standing.pay("p1") == seats.PaymentEnded()


async def test_after_twenty_payments_that_ended_a_hold_takes_no_more(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    for number in range(20):
        await standing.pay(f"p{number}")
        assert await standing.abandon(f"p{number}") == seats.Abandoned("held")

    refused = await standing.pay("p20")

    assert isinstance(refused, SlowDown)
    assert 290_000 < refused.retry_after_ms <= 300_000
    assert await standing.pay("p0") == seats.PaymentEnded()


# --- confirm ----------------------------------------------------------------------------------------------------------


async def test_confirming_sells_the_seats_and_repeated_answers_its_first_number(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")
    await standing.pay()

    assert await together(standing.confirm(), standing.confirm()) == [seats.Confirmed(1)] * 2
    await hall.sold("A-1-3", by="bob")
    assert await standing.confirm() == seats.Confirmed(1)

    assert await hall.statuses() == {"A-1-1": "SOLD", "A-1-2": "SOLD", "A-1-3": "SOLD"}
    entry, _ = await hall.entries("outbox")
    told = {name: entry[name] for name in ("kind", "hold_id", "buyer_id", "fence", "payment_id", "queue_no")}
    assert told == {
        "kind": "confirmed",
        "hold_id": standing.hold_id,
        "buyer_id": standing.buyer_id,
        "fence": "1",
        "payment_id": ids.derive("p1"),
        "queue_no": "0",
    }


async def test_an_authorised_payment_confirms_however_late(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.pay()
    await hall.rewrite(standing.hold_id, expires_at_ms=1, pay_deadline_ms=1)

    assert await standing.confirm() == seats.Confirmed(1)


async def test_confirming_presents_the_hold_its_fence_and_its_payment(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    assert await standing.confirm() == seats.HoldUnknown()  # nobody pays
    await standing.pay()

    assert await standing.confirm(hold_id="0" * 32) == seats.HoldUnknown()
    assert await standing.confirm(fence=2) == seats.HoldUnknown()
    assert await standing.confirm("p2") == seats.PaymentMismatch()
    await standing.confirm()
    assert await standing.confirm("p2") == seats.PaymentMismatch()

    released = await hall.held("A-1-2")
    await released.release()
    assert await released.confirm() == seats.HoldUnknown()


# --- abandon ----------------------------------------------------------------------------------------------------------


async def test_an_abandoned_payment_gives_the_hold_back_with_its_own_deadline(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.pay()

    assert await together(standing.abandon(), standing.abandon()) == [seats.Abandoned("held")] * 2

    found = await standing.find()
    assert (found.state, found.expires_at_ms, found.payment_id) == ("HELD", standing.held.expires_at_ms, None)
    assert await hall.statuses() == {"A-1-1": "HELD"}
    [entry] = await hall.entries("outbox")
    told = {name: entry[name] for name in ("kind", "hold_id", "fence", "payment_id", "to")}
    assert told == {
        "kind": "abandoned",
        "hold_id": standing.hold_id,
        "fence": "1",
        "payment_id": ids.derive("p1"),
        "to": "held",
    }


async def test_past_the_holds_deadline_an_abandoned_payment_frees_the_seats(hall: Hall) -> None:
    standing = await hall.held("A-1-1", "A-1-2")
    await standing.pay()
    await hall.rewrite(standing.hold_id, expires_at_ms=await hall.now_ms() - 1)

    assert await standing.abandon() == seats.Abandoned("free")
    assert await standing.abandon() == seats.Abandoned("free")

    assert await hall.statuses() == {}
    found = await standing.find()
    assert (found.state, found.reason) == ("ENDED", "EXPIRED")
    assert [entry["to"] for entry in await hall.entries("outbox")] == ["free"]


async def test_abandoning_presents_the_hold_its_fence_and_its_payment(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    assert await standing.abandon() == seats.HoldUnknown()  # nobody pays
    await standing.pay("p1")
    assert await standing.abandon("p2") == seats.HoldUnknown()
    assert await standing.abandon(fence=2) == seats.HoldUnknown()
    assert await standing.abandon(hold_id="0" * 32) == seats.HoldUnknown()

    await standing.confirm("p1")
    assert await standing.abandon("p1") == seats.HoldSold(ids.derive("p1"))
    assert await standing.confirm("p1") == seats.Confirmed(1)


async def test_a_confirm_after_the_abandon_finds_the_door_shut(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.pay("p1")
    await standing.abandon("p1")

    assert await standing.confirm("p1") == seats.HoldUnknown()
    await standing.pay("p2")
    assert await standing.confirm("p1") == seats.PaymentMismatch()


# --- expire and overdue -----------------------------------------------------------------------------------------------


async def test_a_sweep_ends_at_most_so_many_lapsed_holds(hall: Hall) -> None:
    standings = [await hall.held(f"A-1-{number}") for number in range(1, 6)]
    for number, standing in enumerate(standings[:3]):
        await standing.lapse(ago_ms=30 - number)

    assert await seats.expire(hall.gate, hall.sale, most=2) == seats.Expired(count=2, left=1, trimmed=0)
    await hall.check()
    assert await seats.expire(hall.gate, hall.sale, most=2) == seats.Expired(count=1, left=0, trimmed=0)
    assert await seats.expire(hall.gate, hall.sale, most=2) == seats.Expired(count=0, left=0, trimmed=0)

    assert await hall.statuses() == {"A-1-4": "HELD", "A-1-5": "HELD"}
    ended = [entry for entry in await hall.entries("journal") if entry["kind"] == "expired"]
    assert [entry["hold_id"] for entry in ended] == [standing.hold_id for standing in standings[:3]]


async def test_two_sweeps_of_one_moment_end_a_hold_once(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.lapse()

    replies = await together(*(seats.expire(hall.gate, hall.sale, most=5) for _ in range(2)))

    assert replies == [seats.Expired(1, 0, 0), seats.Expired(0, 0, 0)]


async def test_past_the_window_an_ended_hold_is_forgotten_and_a_sold_one_once_postgres_has_it(hall: Hall) -> None:
    released = await hall.held("A-1-1")
    await released.release()
    standing = await hall.sold("A-1-2")
    ended = hall.sale.keys.ended
    old_ms = await hall.now_ms() - HOUR_MS
    await hall.redis.zadd(ended, {released.hold_id: old_ms + 5_000, standing.hold_id: old_ms})

    assert await seats.expire(hall.gate, hall.sale, most=10) == seats.Expired(0, 0, 0)
    await hall.redis.zadd(ended, {released.hold_id: old_ms})
    assert await seats.expire(hall.gate, hall.sale, most=10) == seats.Expired(0, 0, 1)
    await hall.set(outbox_persisted_n=1)
    assert await seats.expire(hall.gate, hall.sale, most=10) == seats.Expired(0, 0, 1)

    assert await hall.records() == {}
    assert await hall.statuses() == {"A-1-2": "SOLD"}
    # Bought seats stay counted for their buyer.
    assert await hall.redis.hgetall(hall.sale.keys.buyers) == {buyer("ann").encode(): b"1 0 "}
    await hall.set(per_buyer_max=1)
    assert await hall.hold("A-1-3") == LimitReached(limit=1, have=1)


async def test_payments_past_their_deadline_are_listed_the_oldest_first_and_stay(hall: Hall) -> None:
    now_ms = await hall.now_ms()
    first, second, third = [await hall.held(f"A-1-{number}") for number in range(1, 4)]
    for number, standing in enumerate((first, second, third)):
        await standing.pay(f"p{number}")
    await hall.rewrite(second.hold_id, pay_deadline_ms=now_ms - 2_000)
    await hall.rewrite(first.hold_id, pay_deadline_ms=now_ms - 1_000)

    overdue = await seats.overdue(hall.gate, hall.sale, most=10)
    assert isinstance(overdue, seats.Overdue)
    assert overdue.holds == (
        seats.OverduePayment(second.hold_id, 2, ids.derive("p1")),
        seats.OverduePayment(first.hold_id, 1, ids.derive("p0")),
    )
    assert await seats.overdue(hall.gate, hall.sale, most=10) == overdue
    assert await seats.overdue(hall.gate, hall.sale, most=1) == seats.Overdue(overdue.payments[:1])


# --- restore ----------------------------------------------------------------------------------------------------------


async def test_a_sale_that_could_not_stand_frees_its_seats(hall: Hall) -> None:
    standing = await hall.sold("A-1-1", "A-1-2")
    claims = (seats.Claim("A-1-1"), seats.Claim("A-1-2"))

    assert await together(standing.restore(*claims), standing.restore(*claims)) == [
        seats.Restored(2),
        seats.HoldUnknown(),
    ]

    assert await hall.statuses() == {}
    found = await standing.find()
    assert (found.state, found.reason) == ("ENDED", "LATE_UNFULFILLABLE")
    assert [entry["kind"] for entry in await hall.entries("outbox")] == ["confirmed", "restored"]
    await hall.set(per_buyer_max=1)
    assert isinstance(await hall.hold("A-1-1"), seats.Held)


async def test_a_seat_that_another_hold_claims_is_sold_for_that_hold(hall: Hall) -> None:
    standing = await hall.sold("A-1-1", "A-1-2")
    other_id = ids.derive("other")

    claims = (seats.Claim("A-1-1", other_id, 77), seats.Claim("A-1-2"))
    assert await standing.restore(*claims) == seats.Restored(2)

    standing_now = await hall.redis.hgetall(hall.sale.keys.seats)
    assert standing_now == {b"A-1-1": f"SOLD {other_id} 77".encode()}
    assert await standing.restore(*claims) == seats.HoldUnknown()


async def test_what_was_given_back_in_part_frees_only_that(hall: Hall) -> None:
    standing = await hall.sold("A-1-1", "A-1-2")
    kept = seats.Claim("A-1-1", standing.hold_id, standing.fence)

    assert await standing.restore(kept, seats.Claim("A-1-2"), reason="USER") == seats.Restored(1)
    assert await standing.restore(kept, seats.Claim("A-1-2"), reason="USER") == seats.Restored(0)

    found = await standing.find()
    assert (found.state, found.lines, found.amount) == ("SOLD", (seats.Line("A-1-1", PRICE),), PRICE)
    assert await hall.statuses() == {"A-1-1": "SOLD"}
    await hall.set(per_buyer_max=1)
    assert await hall.hold("A-1-2") == LimitReached(limit=1, have=1)


async def test_a_restore_works_when_the_record_is_forgotten(hall: Hall) -> None:
    standing = await hall.sold("A-1-1", "A-1-2")
    await hall.set(outbox_persisted_n=1)
    await hall.redis.zadd(hall.sale.keys.ended, {standing.hold_id: 1})
    await seats.expire(hall.gate, hall.sale, most=10)

    claims = (seats.Claim("A-1-1", standing.hold_id, standing.fence), seats.Claim("A-1-2"))
    assert await standing.restore(*claims) == seats.Restored(1)

    assert await hall.statuses() == {"A-1-1": "SOLD"}
    assert await hall.redis.hget(hall.sale.keys.buyers, buyer("ann")) == b"1 0 "
    assert await standing.restore(seats.Claim("A-1-1"), seats.Claim("A-1-2")) == seats.Restored(1)
    assert await hall.redis.hget(hall.sale.keys.buyers, buyer("ann")) is None


async def test_a_restore_leaves_the_seats_next_holder_alone(hall: Hall) -> None:
    standing = await hall.sold("A-1-1")
    await standing.restore(seats.Claim("A-1-1"))
    await hall.held("A-1-1", by="bob")

    assert await standing.restore(seats.Claim("A-1-1")) == seats.HoldUnknown()
    assert await hall.statuses() == {"A-1-1": "HELD"}


async def test_a_hold_on_a_claimed_seat_ends_and_a_payment_on_it_is_left_to_postgres(hall: Hall) -> None:
    standing = await hall.sold("A-1-1")
    await standing.restore(seats.Claim("A-1-1"))
    claim = seats.Claim("A-1-1", standing.hold_id, standing.fence)
    other = await hall.held("A-1-1", "A-1-2", by="bob")

    assert await standing.restore(claim) == seats.Restored(1)
    assert (await other.find()).state == "ENDED"
    assert await hall.redis.hgetall(hall.sale.keys.seats) == {
        b"A-1-1": f"SOLD {standing.hold_id} {standing.fence}".encode()
    }
    assert (await hall.entries("journal"))[-1]["hold_id"] == other.hold_id

    await hall.redis.hdel(hall.sale.keys.seats, "A-1-1")
    paying = await hall.held("A-1-1", by="cat")
    await paying.pay()
    assert await standing.restore(claim) == seats.HoldUnknown()
    assert (await paying.find()).state == "PAYING"


async def test_a_restore_with_another_fence_touches_nothing(hall: Hall) -> None:
    standing = await hall.sold("A-1-1")

    assert await standing.restore(seats.Claim("A-1-1"), fence=2) == seats.HoldUnknown()
    assert await hall.statuses() == {"A-1-1": "SOLD"}


async def test_what_postgres_sold_is_sold_whatever_redis_forgot(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    await standing.pay()
    claim = seats.Claim("A-1-1", standing.hold_id, standing.fence)

    assert await standing.restore(claim) == seats.Restored(1)
    assert await standing.restore(claim) == seats.Restored(0)

    assert (await standing.find()).state == "SOLD"
    assert await standing.confirm() == seats.Confirmed(0)
    assert await hall.redis.hget(hall.sale.keys.buyers, buyer("ann")) == b"1 0 "


async def test_after_a_sale_that_could_not_stand_its_buyer_goes_next(hall: Hall) -> None:
    await let_in(hall, "ann")
    standing = await hall.sold("A-1-1", queue_no=1)

    await standing.restore(seats.Claim("A-1-1"), goes_next=True)
    await standing.restore(seats.Claim("A-1-1"), goes_next=True)

    keys = hall.sale.keys
    assert (await hall.redis.hget(keys.tokens, buyer("ann")) or b"").startswith(b"RETURNED|1|")
    assert await hall.redis.zscore(keys.returned, buyer("ann")) == 1
    assert [entry["kind"] for entry in await hall.entries("journal")] == ["held", "returned"]


async def test_a_buyer_who_has_joined_anew_does_not_go_next(hall: Hall) -> None:
    await let_in(hall, "ann")
    standing = await hall.sold("A-1-1", queue_no=1)
    await hall.redis.zadd(hall.sale.keys.waiting, {buyer("ann"): 9})

    await standing.restore(seats.Claim("A-1-1"), goes_next=True)

    assert await hall.redis.hget(hall.sale.keys.tokens, buyer("ann")) is None


# --- a sale that cannot answer ----------------------------------------------------------------------------------------


def every_verb(hall: Hall) -> list[Any]:
    """One call of each function."""
    of = {"hold_id": "1" * 32, "buyer_id": "2" * 32}
    fenced: dict[str, Any] = {"hold_id": "1" * 32, "fence": 1}
    return [
        hall.hold("A-1-1"),
        seats.hold_again(hall.gate, hall.sale, **of, fingerprint="f", lines=("A-1-1",), prices=(1,)),
        seats.find(hall.gate, hall.sale, hold_id="1" * 32),
        seats.extend(hall.gate, hall.sale, **of, extension_id="3" * 32, fingerprint="f"),
        seats.release(hall.gate, hall.sale, **of, release_id="3" * 32, fingerprint="f"),
        seats.pay(hall.gate, hall.sale, **of, payment_id="3" * 32),
        seats.confirm(hall.gate, hall.sale, **fenced, payment_id="3" * 32),
        seats.abandon(hall.gate, hall.sale, **fenced, payment_id="3" * 32),
        seats.expire(hall.gate, hall.sale, most=1),
        seats.overdue(hall.gate, hall.sale, most=1),
        seats.restore(
            hall.gate,
            hall.sale,
            **fenced,
            buyer_id="2" * 32,
            reason="USER",
            goes_next=True,
            claims=(seats.Claim("A-1-1"),),
        ),
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
    hall: Hall, terms: dict[str, Any] | None, refusal: Refusal
) -> None:
    if terms is None:
        await hall.redis.execute_command("DEL", hall.sale.keys.sale)
    else:
        await hall.set(**terms)

    replies = await together(*every_verb(hall))

    assert replies == [refusal] * len(replies)
    assert len(replies) == len(SCRIPTS)
    assert await hall.statuses() == {}


async def test_time_does_not_go_back_for_a_hold_when_the_stores_clock_does(hall: Hall) -> None:
    standing = await hall.held("A-1-1")
    # The sale has seen a later time than the clock shows now.
    await hall.set(now_ms=standing.held.expires_at_ms)

    assert (await standing.find()).state == "ENDED"
    later = await hall.held("A-1-1", by="bob")
    assert later.held.created_at_ms == standing.held.expires_at_ms


async def test_numbers_stay_whole_in_a_late_epoch(hall: Hall) -> None:
    # A rebuild goes on at epoch times 10^9: the fence of a far epoch has 16 digits.
    far = 5_000_000 * 10**9
    await hall.set(fence=far, map_version=far)

    standing = await hall.sold("A-1-1")

    assert standing.fence == far + 1
    assert (await standing.find()).fence == far + 1
    assert await standing.confirm() == seats.Confirmed(1)
    assert await hall.term("map_version") == far + 2


async def test_a_full_store_refuses_holds_and_still_finishes_what_began(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    paying = await hall.held("A-1-1")
    await paying.pay()
    given_up = await hall.held("A-1-2")
    await given_up.pay()
    given_back, lapsed, unpaid = [await hall.held(f"A-1-{number}") for number in (3, 4, 5)]
    await lapsed.lapse()
    settled = await hall.sold("A-1-6")

    await _limit_memory(redis_any, 1)
    try:
        with pytest.raises(StoreFull):
            await hall.hold("A-1-6", by="bob")
        with pytest.raises(StoreFull):
            await unpaid.extend()
        assert await paying.confirm() == seats.Confirmed(2)
        assert await given_up.abandon() == seats.Abandoned("held")
        assert await given_back.release() == seats.Released(0, ("A-1-3",))
        assert await seats.expire(hall.gate, hall.sale, most=9) == seats.Expired(1, 0, 0)
        assert isinstance(await unpaid.pay(), seats.Paying)
        assert await settled.restore(seats.Claim("A-1-6")) == seats.Restored(1)
    finally:
        await _limit_memory(redis_any, 0)
    await hall.check()


async def _limit_memory(redis: RedisClient, size: int) -> None:
    nodes = {"target_nodes": RedisCluster.PRIMARIES} if isinstance(redis, RedisCluster) else {}
    await redis.execute_command("CONFIG SET", "maxmemory", size, **nodes)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.path)
def test_every_script_declares_the_keys_of_a_hold_in_their_places(script: Script[Any]) -> None:
    places = ("sale", "seats", "holds", "deadlines", "paying", "ended", "buyers")

    assert "holds" not in script.header.uses or script.header.keys[: len(places)] == places


def test_what_frees_or_finishes_works_in_a_full_store_and_what_reads_writes_nothing() -> None:
    flags = {script.path.removeprefix("seats/"): script.header.flags for script in SCRIPTS}

    assert {name for name, each in flags.items() if each == ("allow-oom",)} == {
        *("pay", "confirm", "abandon", "release", "expire", "restore"),
    }
    assert {name for name, each in flags.items() if each == ("no-writes",)} == {"find", "overdue"}
    assert {name for name, each in flags.items() if not each} == {"hold", "hold_again", "extend"}


def test_every_refusal_has_a_title_of_one_sentence() -> None:
    refusals = [kind for kind in vars(seats).values() if isinstance(kind, type) and issubclass(kind, Refusal)]

    titles = [title_of(kind) for kind in refusals if kind is not Refusal]
    assert len(titles) == len(set(titles))
    assert all(title and "\n" not in title for title in titles)
