"""Seats that an operator blocks and unblocks: by the scripts alone, and in both stores with a crash at each step."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine import ids, map_changes, seat_blocks
from engine.audit import Report, audit
from engine.reconciliation import reconcile
from engine.refusals import IdempotencyKeyReused, LimitReached
from engine.repair import repair
from engine.seat_blocks import BLOCK, UNBLOCK, Asked, SeatBlock, SeatsBlocked, SeatsUnblocked, Superseded
from engine.seats import LookOn, OfferUnknown, SeatTaken
from engine.stores.connections import RedisClient, Stores
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from tests.engine.offered_halls import OfferedHall, Row, open_offered
from tests.engine.seat_sales import Hall, open_hall
from tests.shop import Shop, open_shop


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[OfferedHall]:
    """A row of eight seats; in order at the end."""
    hall = await open_offered(redis_any, Row("A", "1", "FFFFFFFA"))
    yield hall
    await hall.check()


def block(hall: Hall, no: int, *seat_nos: str, epoch: int = 1) -> Any:
    return BLOCK(hall.gate, hall.sale.keys, epoch=epoch, seat_block_no=no, seat_nos=seat_nos)


def unblock(hall: Hall, no: int, *seat_nos: str, epoch: int = 1) -> Any:
    return UNBLOCK(hall.gate, hall.sale.keys, epoch=epoch, seat_block_no=no, seat_nos=seat_nos)


# The scripts ----------------------------------------------------------------------------------------------------------


async def test_free_seats_are_blocked_and_nobody_gets_them(hall: OfferedHall) -> None:
    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatsBlocked(2)

    assert await hall.fields("seats") == {"A-1-1": "BLOCKED - 0", "A-1-2": "BLOCKED - 0"}
    assert await hall.hold("A-1-2", "A-1-3") == SeatTaken(("A-1-2 blocked",))
    best = await hall.standing(await hall.hold_best(2))
    assert [line.seat_no for line in (await best.find()).lines] == ["A-1-3", "A-1-4"]
    changes = await map_changes.read_changes(hall.gate, hall.sale, 0)
    assert isinstance(changes, map_changes.MapChanges)
    assert changes.statuses == {"A-1-1": "BLOCKED", "A-1-2": "BLOCKED", "A-1-3": "HELD", "A-1-4": "HELD"}


async def test_unblocked_seats_are_free_again(hall: OfferedHall) -> None:
    await block(hall, 1, *hall.seat_nos)
    before = await hall.term("map_version")
    assert await unblock(hall, 2, "A-1-4", "A-1-8") == SeatsUnblocked(2)

    assert sorted(set(hall.seat_nos) - set(await hall.statuses())) == ["A-1-4", "A-1-8"]
    assert await hall.term("map_version") == before + 1
    await hall.hold_best(1)
    assert (await hall.statuses())["A-1-4"] == "HELD"


async def test_one_seat_that_is_not_free_keeps_all_from_being_blocked(hall: OfferedHall) -> None:
    await hall.held("A-1-1")
    await (await hall.held("A-1-2")).pay()
    await hall.sold("A-1-3")

    refused = await block(hall, 1, "A-1-1", "A-1-2", "A-1-3", "A-1-4", "Z-9-9")

    assert refused == SeatTaken(("A-1-1 held", "A-1-2 paying", "A-1-3 sold", "Z-9-9 unknown"))
    assert sorted(await hall.statuses()) == ["A-1-1", "A-1-2", "A-1-3"]


async def test_blocked_twice_is_blocked_once(hall: OfferedHall) -> None:
    assert await block(hall, 1, "A-1-1") == SeatsBlocked(1)
    version = await hall.term("map_version")
    assert await block(hall, 1, "A-1-1") == SeatsBlocked(0)
    assert await block(hall, 2, "A-1-1", "A-1-2") == SeatsBlocked(1)
    assert await unblock(hall, 3, "A-1-1") == SeatsUnblocked(1)
    assert await unblock(hall, 3, "A-1-1") == SeatsUnblocked(0)
    assert await unblock(hall, 4, "A-1-1", "A-1-5") == SeatsUnblocked(0)
    assert await hall.term("map_version") == version + 2


async def test_what_comes_late_changes_nothing(hall: OfferedHall) -> None:
    await block(hall, 2, "A-1-1")
    assert await unblock(hall, 1, "A-1-1") == Superseded()
    await unblock(hall, 3, "A-1-1")
    assert await block(hall, 2, "A-1-1") == Superseded()
    assert await hall.statuses() == {}


async def test_a_refusal_spends_its_number(hall: OfferedHall) -> None:
    standing = await hall.held("A-1-1")
    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatTaken(("A-1-1 held",))
    assert await block(hall, 1, "A-1-1", "A-1-2") == Superseded()
    await standing.release()
    assert await block(hall, 1, "A-1-1", "A-1-2") == Superseded()
    assert await hall.statuses() == {}


async def test_seats_of_lapsed_holds_are_free_and_the_holds_end_first(hall: OfferedHall) -> None:
    lapsed = await hall.held("A-1-1", "A-1-2", "A-1-3")
    await lapsed.lapse()

    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatsBlocked(2)

    assert (await lapsed.find()).state == "ENDED"
    assert await hall.statuses() == {"A-1-1": "BLOCKED", "A-1-2": "BLOCKED"}
    assert [entry["kind"] for entry in await hall.entries("journal")] == ["held", "expired"]


async def test_a_refusal_leaves_lapsed_holds_alone(hall: OfferedHall) -> None:
    await (await hall.held("A-1-1")).lapse()
    await hall.held("A-1-2")
    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatTaken(("A-1-2 held",))
    assert await hall.statuses() == {"A-1-1": "HELD", "A-1-2": "HELD"}


async def test_many_lapsed_holds_end_a_part_at_a_time(redis_any: RedisClient) -> None:
    hall = await open_offered(redis_any, *[Row("A", str(row), "F" * 20) for row in range(1, 6)])
    for seat_no in hall.seat_nos[:70]:
        await (await hall.held(seat_no, by=seat_no)).lapse()

    assert await block(hall, 1, *hall.seat_nos) == LookOn("")
    assert len(await hall.statuses()) == 20
    assert await block(hall, 1, *hall.seat_nos) == SeatsBlocked(100)
    await hall.check()


async def test_what_the_waiting_list_has_is_not_the_operators(hall: OfferedHall) -> None:
    await hall.set(waiting_list=1)
    standing = await hall.held("A-1-1")
    await standing.release()

    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatTaken(("A-1-1 waiting_list",))
    assert await unblock(hall, 2, "A-1-1") == SeatsUnblocked(0)
    assert await hall.fields("seats") == {"A-1-1": "BLOCKED list 0"}


async def test_the_waiting_list_gets_what_is_unblocked(hall: OfferedHall) -> None:
    await hall.set(waiting_list=1)
    await block(hall, 1, "A-1-2")
    assert await unblock(hall, 2, "A-1-2") == SeatsUnblocked(1)
    assert await hall.fields("seats") == {"A-1-2": "BLOCKED list 0"}
    assert list(await hall.scores("freed")) == ["A-1-2"]


async def test_seats_of_a_sale_without_a_floor_are_blocked_too(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    assert await block(hall, 1, "A-1-1", "A-1-2") == SeatsBlocked(2)
    assert await unblock(hall, 2, "A-1-1") == SeatsUnblocked(1)
    assert await hall.statuses() == {"A-1-2": "BLOCKED"}
    await hall.check()


async def test_nothing_is_asked_of_a_sale_that_is_not_this_one(hall: OfferedHall) -> None:
    for ask in (block, unblock):
        assert await ask(hall, 1, epoch=7) == StaleEpoch(1)
        await hall.set(state="rebuilding")
        assert await ask(hall, 1) == SaleRebuilding()
        await hall.set(state="open")
    await hall.redis.execute_command("DEL", hall.sale.keys.sale)
    assert (await block(hall, 1), await unblock(hall, 1)) == (SaleUnknown(), SaleUnknown())
    await hall.set(epoch=1, state="open")


# Both stores ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert with six seats, of which the last is blocked from the beginning."""
    return await open_shop(stores, blocked=1)


async def change(shop: Shop, *seat_nos: str, blocked: bool = True, **more: Any) -> Any:
    asked = Asked(seat_block_id=more.pop("id_", None) or ids.random_id(), seat_nos=seat_nos, blocked=blocked, **more)
    return await seat_blocks.change(shop.stores, await shop.sale(), asked)


async def stands(shop: Shop) -> tuple[dict[str, str], set[str], tuple[int, int]]:
    """What is not free in Redis, what is blocked in Postgres, and what is left of how many."""
    rows = await shop.rows("SELECT seat_no FROM seats WHERE sale_id = $1 AND blocked", shop.sale_id)
    [counts] = await shop.rows("SELECT seats_available, seats_total FROM schedules WHERE sale_id = $1", shop.sale_id)
    return await shop.states(), {seat_no for (seat_no,) in rows}, (counts[0], counts[1])


async def rows_left(shop: Shop) -> int:
    [(count,)] = await shop.rows("SELECT count(*) FROM seat_blocks")
    assert isinstance(count, int)
    return count


async def report(shop: Shop) -> Report:
    return await audit(shop.stores.redis, shop.stores.postgres, settle_s=0.5, grace_s=0)


async def wrong(shop: Shop) -> set[str]:
    """Invariants that do not hold; those of money are another test's."""
    return {check.invariant for check in (await report(shop)).checks if check.verdict != "true"} - {"I3", "I6"}


async def test_blocked_in_both_stores_and_back(shop: Shop) -> None:
    done, repeated = await change(shop, "A-1-1", "A-1-2")
    assert (done.seat_nos, done.blocked, repeated) == (("A-1-1", "A-1-2"), True, False)
    blocked = dict.fromkeys(("A-1-1", "A-1-2", "A-1-6"), "BLOCKED")
    assert await stands(shop) == (blocked, {"A-1-1", "A-1-2", "A-1-6"}, (3, 6))
    assert await wrong(shop) == set()

    # One of them was blocked from the beginning.
    await change(shop, "A-1-1", "A-1-6", blocked=False)
    assert await stands(shop) == ({"A-1-2": "BLOCKED"}, {"A-1-2"}, (5, 6))
    assert await wrong(shop) == set()
    await shop.hold("A-1-1", "A-1-6")


async def test_what_cannot_be_blocked_is_named_and_nothing_is_remembered(shop: Shop) -> None:
    await shop.hold("A-1-1")
    key = ids.random_id()
    assert await change(shop, "A-1-1", "A-1-2", id_=key) == SeatTaken(("A-1-1 held",))
    assert await change(shop, "A-1-2", "A-1-9", id_=key) == SeatTaken(("A-1-9 unknown",))
    assert await stands(shop) == ({"A-1-1": "HELD", "A-1-6": "BLOCKED"}, {"A-1-6"}, (5, 6))
    assert await rows_left(shop) == 0
    done, _ = await change(shop, "A-1-2", id_=key)
    assert isinstance(done, SeatBlock)


async def test_what_somebody_has_cannot_be_unblocked(shop: Shop) -> None:
    await shop.hold("A-1-1")
    await change(shop, "A-1-2")
    assert await change(shop, "A-1-1", "A-1-2", blocked=False) == SeatTaken(("A-1-1 held",))
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.seats, "A-1-3", "BLOCKED list 0")
    assert await change(shop, "A-1-3", blocked=False) == SeatTaken(("A-1-3 waiting_list",))
    done, _ = await change(shop, "A-1-2", "A-1-4", blocked=False)
    assert done.seat_nos == ("A-1-2", "A-1-4")


async def test_a_section_is_blocked_as_far_as_it_is_not(shop: Shop) -> None:
    done, _ = await change(shop, section="A")
    assert done.seat_nos == ("A-1-1", "A-1-2", "A-1-3", "A-1-4", "A-1-5")
    assert (await stands(shop))[2] == (0, 6)
    await change(shop, section="A", blocked=False)
    assert await stands(shop) == ({}, set(), (6, 6))
    nothing, _ = await change(shop, section="A", blocked=False)
    assert nothing.seat_nos == ()
    assert await change(shop, section="B") == OfferUnknown(("section B",))


async def test_too_many_seats_are_refused(shop: Shop) -> None:
    many = [f"Z-1-{number}" for number in range(seat_blocks.SEATS_MAX + 1)]
    assert await change(shop, *many) == LimitReached(limit=seat_blocks.SEATS_MAX, have=len(many))


async def test_the_same_request_is_done_once(shop: Shop) -> None:
    key = ids.random_id()
    first, _ = await change(shop, "A-1-1", id_=key)
    await change(shop, "A-1-1", blocked=False)
    again, repeated = await change(shop, "A-1-1", id_=key)
    assert (again, repeated) == (first, True)
    assert (await stands(shop))[1] == {"A-1-6"}
    assert await change(shop, "A-1-2", id_=key) == IdempotencyKeyReused()


# A process dies -------------------------------------------------------------------------------------------------------


async def begun(shop: Shop, *seat_nos: str, blocked: bool) -> None:
    """A process wrote what is to be done, and died."""
    asked = Asked(seat_block_id=ids.random_id(), seat_nos=seat_nos, blocked=blocked)
    made = await seat_blocks._begin(shop.stores, await shop.sale(), asked)
    assert isinstance(made, SeatBlock)


async def finish(shop: Shop) -> None:
    """What the owner of the sale does now and then."""
    await reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())


async def told_redis(shop: Shop, *seat_nos: str) -> None:
    """A process wrote a row, told Redis, and died."""
    await begun(shop, *seat_nos, blocked=True)
    [(number,)] = await shop.rows("SELECT seat_block_no FROM seat_blocks WHERE done_at IS NULL")
    sale = await shop.sale()
    answer = await BLOCK(shop.stores.gate, sale.keys, epoch=sale.epoch, seat_block_no=number, seat_nos=seat_nos)
    assert isinstance(answer, SeatsBlocked)


async def test_blocking_that_stopped_before_redis_is_finished(shop: Shop) -> None:
    await begun(shop, "A-1-1", blocked=True)
    assert "I7" in await wrong(shop)
    await finish(shop)
    assert await stands(shop) == ({"A-1-1": "BLOCKED", "A-1-6": "BLOCKED"}, {"A-1-1", "A-1-6"}, (4, 6))
    assert await wrong(shop) == set()


async def test_blocking_that_stopped_before_redis_is_given_up_where_a_seat_was_taken_since(shop: Shop) -> None:
    await begun(shop, "A-1-1", "A-1-2", blocked=True)
    await shop.hold("A-1-1")
    await finish(shop)
    assert await stands(shop) == ({"A-1-1": "HELD", "A-1-6": "BLOCKED"}, {"A-1-6"}, (5, 6))
    assert await rows_left(shop) == 0


async def test_blocking_that_stopped_between_the_stores_sells_nothing_and_is_finished(shop: Shop) -> None:
    await told_redis(shop, "A-1-1")
    assert {"I7", "I9"} <= await wrong(shop)
    await finish(shop)
    assert (await stands(shop))[1:] == ({"A-1-1", "A-1-6"}, (4, 6))
    assert await wrong(shop) == set()


async def test_a_refusal_that_nobody_lived_to_say_is_given_up(shop: Shop) -> None:
    await begun(shop, "A-1-1", blocked=True)
    hold_id = await shop.hold("A-1-1")
    [(number,)] = await shop.rows("SELECT seat_block_no FROM seat_blocks")
    sale = await shop.sale()
    answer = await BLOCK(shop.stores.gate, sale.keys, epoch=sale.epoch, seat_block_no=number, seat_nos=("A-1-1",))
    assert isinstance(answer, SeatTaken)
    await shop.release(hold_id)
    await finish(shop)
    assert (await rows_left(shop), await shop.states()) == (0, {"A-1-6": "BLOCKED"})


async def test_unblocking_that_stopped_is_finished(shop: Shop) -> None:
    await begun(shop, "A-1-6", blocked=False)
    assert await stands(shop) == ({"A-1-6": "BLOCKED"}, set(), (6, 6))
    await finish(shop)
    assert await stands(shop) == ({}, set(), (6, 6))
    assert await wrong(shop) == set()


async def test_whoever_comes_next_finishes_what_is_left(shop: Shop) -> None:
    await told_redis(shop, "A-1-1")
    done, _ = await change(shop, "A-1-1", "A-1-6", blocked=False)
    assert done.done_at is not None
    assert await stands(shop) == ({}, set(), (6, 6))
    assert await shop.rows("SELECT seat_nos FROM seat_blocks WHERE done_at IS NULL") == []


async def test_redis_is_lost_between_the_stores(shop: Shop) -> None:
    await told_redis(shop, "A-1-1", "A-1-2")
    await shop.rebuild()
    assert await shop.states() == {"A-1-6": "BLOCKED"}
    await shop.hold("A-1-2")
    await finish(shop)
    assert await stands(shop) == ({"A-1-2": "HELD", "A-1-6": "BLOCKED"}, {"A-1-6"}, (5, 6))
    assert await rows_left(shop) == 0


async def test_an_answer_of_a_copy_that_is_lost_does_not_count(shop: Shop) -> None:
    await begun(shop, "A-1-1", blocked=True)
    row = await seat_blocks.SQL.find_unfinished.fetchrow(shop.stores.postgres, shop.sale_id)
    assert row is not None
    await shop.rebuild()
    close = seat_blocks._close
    found = seat_blocks._seat_block(row)
    assert await close(shop.stores.postgres, found, row["epoch"], SeatsBlocked(1)) == SaleRebuilding()
    assert await close(shop.stores.postgres, found, row["epoch"], SeatTaken(())) == SaleRebuilding()
    assert (await stands(shop))[1] == {"A-1-6"}
    assert await rows_left(shop) == 1


async def test_what_is_blocked_stays_so_when_the_sale_is_written_anew(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    await shop.drain()
    # Redis has freed the seats and blocked one of them; the entry that says so is lost with it.
    await shop.release(hold_id)
    await change(shop, "A-1-1")
    await shop.stores.redis.execute_command("DEL", (await shop.sale()).keys.journal)
    await shop.rebuild()

    assert await shop.states() == {"A-1-1": "BLOCKED", "A-1-6": "BLOCKED"}
    assert await shop.reservation(hold_id) == ("CANCELLED", "EXPIRED")
    assert await wrong(shop) == set()


async def test_nothing_begins_while_the_sale_is_written_anew(shop: Shop) -> None:
    await shop.stores.postgres.execute("UPDATE sales SET store_state = 'rebuilding'")
    assert await change(shop, "A-1-1") == SaleRebuilding()
    assert await rows_left(shop) == 0


async def test_a_copy_that_forgot_a_blocked_seat_is_found_and_repaired(shop: Shop) -> None:
    await change(shop, "A-1-1")
    await shop.stores.redis.execute_command("HDEL", (await shop.sale()).keys.seats, "A-1-1")
    await shop.stores.postgres.execute("UPDATE schedules SET seats_available = 1")
    assert {"I1", "I9"} <= await wrong(shop)
    await repair(shop.stores, await report(shop))
    assert await wrong(shop) == set()
    assert (await stands(shop))[2] == (4, 6)


async def test_what_the_waiting_list_has_is_free_in_postgres(shop: Shop) -> None:
    keys, now_ms = (
        (await shop.sale()).keys,
        await shop.stores.postgres.fetchval("SELECT (extract(epoch FROM now()) * 1000)::bigint"),
    )
    await shop.stores.redis.execute_command("HSET", keys.seats, "A-1-1", "BLOCKED list 0")
    await shop.stores.redis.execute_command("ZADD", keys.freed, now_ms, "A-1-1")
    assert await wrong(shop) == set()
