from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine import ids, map_changes, seats, wishes
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached
from engine.stores.connections import RedisClient
from engine.wishes import AreaLine, SeatLine
from tests.engine.offered_halls import PRICE, Area, OfferedHall, Row, open_offered
from tests.engine.seat_sales import buyer, open_hall, together
from tests.engine.stored_sales import HOUR_MS

CODE = "hush"


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[OfferedHall]:
    """Two rows of eight, a lawn of four and a bar of two; children pay less, and two of them may come."""
    hall = await open_offered(
        redis_any,
        Row("A", "1", "FFFFFFFA", "GOLD"),
        Row("A", "2", "FFFFFFFF"),
        areas=(Area("Lawn", 4), Area("Bar", 2, "BAR")),
        tiers={
            ("child", "GOLD"): (20_000, 2),
            ("child", "STD"): (10_000, 2),
            ("child", "GA"): (5_000, None),
            ("friend", "STD"): (1_000, None),
        },
    )
    yield hall
    await hall.check()


# --- tiers ------------------------------------------------------------------------------------------------------------


async def test_a_line_costs_what_its_tier_costs_in_its_category(hall: OfferedHall) -> None:
    held = await hall.hold_lines(("A-1-1", "child"), ("A-2-1", "child"), "A-2-2")

    assert isinstance(held, seats.HeldLines)
    assert held.amount == 30_000 + PRICE
    expected = (seats.Line("A-1-1", 20_000, "child"), seats.Line("A-2-1", 10_000, "child"), seats.Line("A-2-2", PRICE))
    assert held.lines == expected
    standing = await hall.standing(held)
    assert (await standing.find()).lines == expected
    paying = await standing.pay()
    assert paying.lines == expected
    [entry] = await hall.entries("journal")
    assert (entry["tiers"], entry["prices"]) == ("child,child,-", f"20000,10000,{PRICE}")


async def test_seats_without_a_tier_are_held_as_ever(hall: OfferedHall) -> None:
    held = await hall.hold_lines("A-1-1", "A-1-2")

    assert isinstance(held, seats.Held)
    assert held.prices == (str(PRICE), str(PRICE))
    [entry] = await hall.entries("journal")
    assert "tiers" not in entry


async def test_a_tier_that_is_none_for_a_seat_is_named(hall: OfferedHall) -> None:
    assert await hall.hold_lines(("A-1-1", "friend")) == seats.OfferUnknown(("tier friend",))
    refused = await hall.hold_lines(("A-1-1", "nobody"))
    assert refused.offers == (("tier", "nobody"),)
    assert await hall.statuses() == {}


async def test_a_tier_of_a_sale_without_a_floor_is_unknown(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    mine: dict[str, Any] = {"hold_id": ids.derive("h"), "buyer_id": buyer("ann"), "fingerprint": "f"}

    tiered = await wishes.hold_lines(hall.gate, hall.sale, lines=[SeatLine("A-1-1", "child")], **mine)
    assert tiered == seats.OfferUnknown(("tier child",))
    area = await wishes.hold_lines(hall.gate, hall.sale, lines=[AreaLine("Lawn", 1)], **mine)
    assert area == seats.OfferUnknown(("area Lawn",))
    shown = await wishes.hold_lines(hall.gate, hall.sale, lines=[SeatLine("A-1-1")], access_code=CODE, **mine)
    assert isinstance(shown, seats.HeldLines)
    await hall.check()


async def test_a_cap_counts_what_is_held_paid_and_sold_and_nothing_that_ended(hall: OfferedHall) -> None:
    first = await hall.standing(await hall.hold_lines(("A-1-1", "child"), ("A-1-2", "child")))
    full = seats.SoldOut(("1 0 tier child",))

    assert await hall.hold_lines(("A-1-3", "child"), by="bob") == full
    assert isinstance(await hall.hold_lines("A-1-4", ("A-2-1", "child"), by="bob"), seats.HeldLines)
    await first.release("A-1-2")
    second = await hall.standing(await hall.hold_lines(("A-1-3", "child"), by="bob"), by="bob")
    await second.pay()
    assert await hall.hold_lines(("A-1-5", "child")) == full
    await second.confirm()
    assert await hall.hold_lines(("A-1-5", "child")) == full
    await second.restore(seats.Claim("A-1-3"))
    third = await hall.standing(await hall.hold_lines(("A-1-5", "child")))
    await third.lapse()
    await first.pay()
    await hall.rewrite(first.hold_id, expires_at_ms=1)
    await first.abandon()
    assert await hall.counts() == {"child|1": 1, "child|2": 1}
    assert isinstance(await hall.hold_lines(("A-1-6", "child"), ("A-1-7", "child")), seats.HeldLines)
    assert await hall.counts() == {"child|1": 2, "child|2": 1}


async def test_a_shortage_of_a_tier_says_how_much_is_left(hall: OfferedHall) -> None:
    refused = await hall.hold_lines(("A-1-1", "child"), ("A-1-2", "child"), ("A-1-3", "child"))

    assert isinstance(refused, seats.SoldOut)
    assert refused.lines == (seats.Shortage("tier", "child", 3, 2),)


async def test_a_restore_without_a_record_gives_back_the_tier_that_the_claim_names(hall: OfferedHall) -> None:
    sold = await hall.standing(await hall.hold_lines(("A-1-1", "child"), AreaLine("Lawn", 1, "child")))
    await sold.pay()
    await sold.confirm()
    await hall.set(outbox_persisted_n=9)
    await hall.redis.zadd(hall.sale.keys.ended, {sold.hold_id: 1})
    await seats.expire(hall.gate, hall.sale, most=10)
    assert await hall.counts() == {"child|1": 1, "child|3": 1}

    claims = (seats.Claim("A-1-1", tier="child"), seats.Claim("Lawn-GA-1", tier="child"))
    assert await sold.restore(*claims) == seats.Restored(2)
    assert await sold.restore(*claims) == seats.HoldUnknown()
    assert await hall.counts() == {}
    again = (seats.Claim("A-1-1", sold.hold_id, sold.fence, "child"), claims[1])
    assert await sold.restore(*again) == seats.Restored(1)
    assert await hall.counts() == {"child|1": 1}
    await sold.restore(*claims)


# --- areas ------------------------------------------------------------------------------------------------------------


async def test_areas_and_seats_are_held_in_one_step(hall: OfferedHall) -> None:
    held = await hall.hold_lines(AreaLine("Lawn", 2), "A-1-1", AreaLine("Bar", 1), AreaLine("Lawn", 1, "child"))

    assert held.lines == (
        seats.Line("A-1-1", PRICE),
        seats.Line("Lawn-GA-1", PRICE),
        seats.Line("Lawn-GA-2", PRICE),
        seats.Line("Bar-GA-1", PRICE),
        seats.Line("Lawn-GA-3", 5_000, "child"),
    )
    assert await hall.free_places() == ["Lawn-GA-4", "Bar-GA-2"]


async def test_a_shortage_lists_what_is_left_of_each_area_and_nothing_is_held(hall: OfferedHall) -> None:
    await hall.hold_lines(AreaLine("Bar", 2), AreaLine("Lawn", 1))

    refused = await hall.hold_lines("A-1-1", AreaLine("Lawn", 4), AreaLine("Bar", 1), by="bob")

    assert refused.lines == (seats.Shortage("area", "Lawn", 4, 3), seats.Shortage("area", "Bar", 1, 0))
    assert "A-1-1" not in await hall.statuses()


async def test_an_area_that_does_not_exist_is_named(hall: OfferedHall) -> None:
    assert await hall.hold_lines(AreaLine("Moon", 1)) == seats.OfferUnknown(("area Moon",))


async def test_a_place_is_picked_and_never_named(hall: OfferedHall) -> None:
    assert await hall.hold_lines("Lawn-GA-1", "A-1-1") == seats.SeatUnknown(("Lawn-GA-1",))
    assert await hall.hold("Lawn-GA-1") == seats.SeatUnknown(("Lawn-GA-1",))


async def test_places_come_back_once_however_they_end(hall: OfferedHall) -> None:
    everything = ["Lawn-GA-1", "Lawn-GA-2", "Lawn-GA-3", "Lawn-GA-4"]
    bar = ["Bar-GA-1", "Bar-GA-2"]
    standing = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 3)))
    assert await standing.release("Lawn-GA-2") == seats.Released(0, ("Lawn-GA-2",))
    assert await hall.free_places() == ["Lawn-GA-2", "Lawn-GA-4", *bar]
    await standing.release(id_="r2")
    assert await hall.free_places() == [*everything, *bar]

    lapsed = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 4)))
    await lapsed.lapse()
    await seats.expire(hall.gate, hall.sale, most=1)
    assert await hall.free_places() == [*everything, *bar]

    abandoned = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 4)))
    await abandoned.pay()
    await hall.rewrite(abandoned.hold_id, expires_at_ms=1)
    await abandoned.abandon()
    assert await hall.free_places() == [*everything, *bar]

    sold = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 2)))
    await sold.pay()
    await sold.confirm()
    assert await hall.free_places() == [*everything[2:], *bar]
    claims = [seats.Claim("Lawn-GA-1"), seats.Claim("Lawn-GA-2", sold.hold_id, sold.fence)]
    assert await sold.restore(*claims) == seats.Restored(1)
    assert await sold.restore(*claims) == seats.Restored(0)
    assert await hall.free_places() == ["Lawn-GA-1", *everything[2:], *bar]


async def test_places_of_lapsed_holds_are_taken_over_when_the_free_ones_do_not_suffice(hall: OfferedHall) -> None:
    lapsed = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 4), "A-1-1"))
    await lapsed.lapse()

    held = await hall.hold_lines(AreaLine("Lawn", 3), by="bob")

    assert [line.seat_no for line in held.lines] == ["Lawn-GA-1", "Lawn-GA-2", "Lawn-GA-3"]
    assert await hall.free_places() == ["Lawn-GA-4", "Bar-GA-1", "Bar-GA-2"]
    assert "A-1-1" not in await hall.statuses()


async def test_a_buyer_may_have_so_many_over_seats_and_places_together(hall: OfferedHall) -> None:
    await hall.set(per_buyer_max=4)
    sold = await hall.standing(await hall.hold_lines(AreaLine("Lawn", 1)))
    await sold.pay()
    await sold.confirm()
    await hall.hold_best(2)

    assert await hall.hold_lines("A-2-1", AreaLine("Lawn", 1)) == LimitReached(4, 3)
    assert await hall.hold_best(2) == LimitReached(4, 3)
    assert isinstance(await hall.hold_lines(AreaLine("Lawn", 1)), seats.HeldLines)
    assert await hall.hold("A-2-5") == LimitReached(4, 4)


# --- blocks -----------------------------------------------------------------------------------------------------------


async def blocked_hall(redis: RedisClient, **terms: Any) -> OfferedHall:
    """Row 1 for who knows the code, row 2 for who comes through the fan club, row 3 for everybody."""
    hall = await open_offered(
        redis,
        Row("A", "1", "FFFF", block=1),
        Row("A", "2", "FFFF", block=2),
        Row("A", "3", "FFFF"),
        areas=(Area("Lawn", 2, block=1),),
        **terms,
    )
    now_ms = await hall.now_ms()
    code = wishes.code_hash(hall.sale.sale_id, CODE)
    await hall.redis.hset(
        hall.sale.keys.blocks, mapping={"1": f"{code}||0|{now_ms + HOUR_MS}", "2": f"|fans|{now_ms - HOUR_MS}|0"}
    )
    return hall


async def test_seats_of_a_block_are_for_who_shows_its_code_or_comes_through_its_channel(redis_any: RedisClient) -> None:
    hall = await blocked_hall(redis_any)

    for shown in ({}, {"access_code": "wrong"}, {"channel": CODE}, {"channel": "fans"}):
        refused = await hall.hold_lines("A-1-1", "A-3-1", AreaLine("Lawn", 1), **shown)
        assert refused == seats.SeatTaken(("Lawn blocked", "A-1-1 blocked"))
    assert await hall.hold("A-1-1", "A-2-1") == seats.SeatTaken(("A-1-1 blocked", "A-2-1 blocked"))
    held = await hall.hold_lines("A-1-1", "A-3-1", AreaLine("Lawn", 1), access_code=CODE)
    assert isinstance(held, seats.HeldLines)
    assert isinstance(await hall.hold_lines("A-2-1", channel="fans"), seats.HeldLines)
    # A seat that is held says no more to who may not have it.
    assert await hall.hold("A-1-1", by="bob") == seats.SeatTaken(("A-1-1 blocked",))
    assert await hall.hold_lines("A-1-1", by="bob", access_code=CODE) == seats.SeatTaken(("A-1-1 held",))
    await hall.check()


async def test_a_block_is_open_within_its_times(redis_any: RedisClient) -> None:
    hall = await blocked_hall(redis_any)
    now_ms = await hall.now_ms()
    code = wishes.code_hash(hall.sale.sale_id, CODE)
    for times in (f"{now_ms + HOUR_MS}|0", f"0|{now_ms}"):
        await hall.redis.hset(hall.sale.keys.blocks, "1", f"{code}||{times}")
        assert await hall.hold_lines("A-1-1", access_code=CODE) == seats.SeatTaken(("A-1-1 blocked",))


async def test_a_block_may_open_before_its_sale(redis_any: RedisClient) -> None:
    hall = await blocked_hall(redis_any)
    opens_at_ms = await hall.now_ms() + HOUR_MS
    await hall.set(opens_at_ms=opens_at_ms)
    closed = seats.SaleNotOpen(opens_at_ms)

    assert await hall.hold_lines("A-1-1") == closed
    assert await hall.hold_lines("A-1-1", access_code="wrong") == closed
    assert await hall.hold_lines("A-1-1", "A-3-1", access_code=CODE) == closed
    assert await hall.hold_lines(AreaLine("Lawn", 1), "A-3-1", access_code=CODE) == closed
    assert await hall.hold_best(1, access_code="wrong") == closed
    assert await hall.hold_best(1) == closed
    best = await hall.hold_best(2, access_code=CODE)
    assert [line.seat_no for line in best.lines] == ["A-1-1", "A-1-2"]
    assert isinstance(await hall.hold_lines("A-1-3", AreaLine("Lawn", 1), access_code=CODE), seats.HeldLines)
    await hall.check()


async def test_the_best_seats_are_those_of_open_blocks_too(redis_any: RedisClient) -> None:
    hall = await blocked_hall(redis_any)

    assert [line.seat_no for line in (await hall.hold_best(2)).lines] == ["A-3-1", "A-3-2"]
    assert [line.seat_no for line in (await hall.hold_best(2, access_code=CODE)).lines] == ["A-1-1", "A-1-2"]
    assert [line.seat_no for line in (await hall.hold_best(2, channel="fans")).lines] == ["A-2-1", "A-2-2"]
    assert await hall.hold_best(3) == seats.SoldOut(("3 2 seats ",))
    await hall.check()


# --- what changes on the map ------------------------------------------------------------------------------------------


async def since(hall: Any, version: int, **more: Any) -> Any:
    found = await map_changes.read_changes(hall.gate, hall.sale, version, **more)
    if isinstance(found, map_changes.MapChanges):
        # What was last changed comes last, in the version in which it was.
        assert found.versions.keys() == found.statuses.keys()
        assert list(found.versions.values()) == sorted(found.versions.values())
        changed = await hall.scores("map_changes")
        assert found.versions == {seat_no: int(changed[seat_no]) for seat_no in found.statuses}
        return msgspec.structs.replace(found, versions={})
    return found


async def test_every_change_of_the_map_is_told_since_a_version(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    first = await hall.held("A-1-1", "A-1-2")
    version = await hall.term("map_version")
    assert await since(hall, 0) == map_changes.MapChanges(version, {"A-1-1": "HELD", "A-1-2": "HELD"})

    await first.pay()
    assert await since(hall, version) == map_changes.MapChanges(version, {})
    await first.confirm()
    second = await hall.held("A-1-3")
    await second.release()
    third = await hall.held("A-1-4", "A-1-5")
    await third.release("A-1-5")
    await third.lapse()
    await hall.held("A-1-4", by="bob")
    lapsed = await hall.held("A-1-6")
    await lapsed.lapse()
    await seats.expire(hall.gate, hall.sale, most=9)
    newest = await hall.term("map_version")
    assert await since(hall, version) == map_changes.MapChanges(
        newest,
        {"A-1-1": "SOLD", "A-1-2": "SOLD", "A-1-3": "FREE", "A-1-4": "HELD", "A-1-5": "FREE", "A-1-6": "FREE"},
    )
    await first.restore(seats.Claim("A-1-1"), seats.Claim("A-1-2", first.hold_id, first.fence))
    assert await since(hall, newest) == map_changes.MapChanges(newest + 1, {"A-1-1": "FREE"})
    given_up = await hall.held("A-1-1")
    await given_up.pay()
    await hall.rewrite(given_up.hold_id, expires_at_ms=1)
    before = await hall.term("map_version")
    await given_up.abandon()
    assert await since(hall, before) == map_changes.MapChanges(before + 1, {"A-1-1": "FREE"})


async def test_changes_are_read_in_bounded_parts_and_each_change_whole(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    await hall.held("A-1-1", "A-1-2", "A-1-3")
    await hall.held("A-1-4")
    await hall.held("A-1-5", "A-1-6")

    part = await map_changes.CHANGES(hall.gate, hall.sale.keys, epoch=1, since=0, most=2)
    assert part == map_changes.Changes(1, 3, 0, ("A-1-1 HELD 1", "A-1-2 HELD 1", "A-1-3 HELD 1"))
    assert await since(hall, 0, most=1) == map_changes.MapChanges(3, dict.fromkeys(hall.seat_nos, "HELD"))
    assert await since(hall, 0, most=1, seats_max=6) == await since(hall, 0)
    assert isinstance(await since(hall, 0, most=1, seats_max=5), map_changes.ChangesUnknown)


async def test_of_another_epoch_nothing_is_known(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)
    await hall.set(map_version=5 * 10**9, fence=5 * 10**9)
    await hall.held("A-1-1")

    assert await since(hall, 4 * 10**9 + 7) == map_changes.ChangesUnknown(5 * 10**9 + 1)
    assert await since(hall, 5 * 10**9 + 2) == map_changes.ChangesUnknown(5 * 10**9 + 1)
    assert await since(hall, 5 * 10**9) == map_changes.MapChanges(5 * 10**9 + 1, {"A-1-1": "HELD"})


async def test_places_and_seats_of_blocks_are_no_part_of_the_map(redis_any: RedisClient) -> None:
    hall = await blocked_hall(redis_any)
    standing = await hall.standing(await hall.hold_lines("A-1-1", "A-3-1", AreaLine("Lawn", 1), access_code=CODE))
    assert (await since(hall, 0)).statuses == {"A-3-1": "HELD"}
    await standing.pay()
    await standing.confirm()
    await standing.restore(seats.Claim("A-1-1"), seats.Claim("A-3-1"), seats.Claim("Lawn-GA-1"))
    assert (await since(hall, 0)).statuses == {"A-3-1": "FREE"}
    await hall.check()


# --- release by and by ------------------------------------------------------------------------------------------------


async def test_seats_of_lapsed_holds_become_free_by_and_by(hall: OfferedHall) -> None:
    await hall.set(release_jitter_ms=HOUR_MS)
    standing = await hall.held("A-2-1")
    free_at_ms = (await hall.scores("deadlines"))[standing.hold_id]
    assert standing.held.expires_at_ms <= free_at_ms <= standing.held.expires_at_ms + HOUR_MS
    jitter_ms = free_at_ms - standing.held.expires_at_ms

    # Its deadline has passed, its moment has not: its buyer has lost it, and nobody else has it yet.
    now_ms = await hall.now_ms()
    await hall.rewrite(standing.hold_id, expires_at_ms=now_ms - 1)
    await hall.redis.zadd(hall.sale.keys.deadlines, {standing.hold_id: now_ms - 1 + jitter_ms})
    assert await standing.pay() == seats.HoldEnded("EXPIRED")
    assert await hall.hold("A-2-1", by="bob") == seats.SeatTaken(("A-2-1 held",))
    assert await seats.expire(hall.gate, hall.sale, most=9) == seats.Expired(0, 0, 0)
    await hall.hold_best(1, by="bob", section="A")
    assert (await hall.statuses())["A-2-1"] == "HELD"

    await hall.rewrite(standing.hold_id, expires_at_ms=now_ms - 1 - jitter_ms)
    await hall.redis.zadd(hall.sale.keys.deadlines, {standing.hold_id: now_ms - 1})
    assert isinstance(await hall.hold("A-2-1", by="bob"), seats.Held)


async def test_not_all_holds_are_released_at_one_moment(hall: OfferedHall) -> None:
    await hall.set(release_jitter_ms=HOUR_MS)
    for number in range(1, 9):
        await hall.held(f"A-2-{number}", by=str(number))
    records = await hall.records()
    scores = await hall.scores("deadlines")
    assert len({scores[hold_id] - int(record["expires_at_ms"]) for hold_id, record in records.items()}) == 8


# --- the waiting list's share -----------------------------------------------------------------------------------------


async def test_while_there_is_a_waiting_list_freed_seats_are_for_it(hall: OfferedHall) -> None:
    released = await hall.standing(await hall.hold_lines("A-1-1", AreaLine("Lawn", 1), ("A-2-1", "child")))
    lapsed = await hall.held("A-1-2")
    await hall.set(waiting_list=1)
    version = await hall.term("map_version")

    await released.release()
    await lapsed.lapse()
    # A lapsed hold gives way to the list and to nobody else.
    assert await hall.hold("A-1-2", by="bob") == seats.SeatTaken(("A-1-2 held",))
    await seats.expire(hall.gate, hall.sale, most=9)

    shelved = ["A-1-1", "A-1-2", "A-2-1", "Lawn-GA-1"]
    assert await hall.statuses() == dict.fromkeys(shelved, "BLOCKED")
    assert sorted((await hall.scores("freed")).keys()) == shelved
    assert (await since(hall, version)).statuses == dict.fromkeys(shelved[:3], "BLOCKED")
    assert await hall.hold("A-1-1", by="bob") == seats.SeatTaken(("A-1-1 blocked",))
    assert await hall.counts() == {}
    best = await hall.hold_best(2, by="bob")
    assert not {line.seat_no for line in best.lines} & set(shelved)
    # What Postgres says was sold is nobody else's.
    await released.restore(seats.Claim("A-1-1", released.hold_id, released.fence))
    assert "A-1-1" not in await hall.scores("freed")
    await released.restore(seats.Claim("A-1-1"))
    assert "A-1-1" in await hall.scores("freed")


# --- bad wishes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [AreaLine("Lawn", 0)],
        [AreaLine("Lawn", -1), SeatLine("A-1-1")],
        [AreaLine("Lawn", 20), SeatLine("A-1-1")],
        [SeatLine(f"A-1-{number}") for number in range(21)],
        [SeatLine("A-1-1"), SeatLine("A-1-1", "child")],
        [SeatLine("A-1-1", "a|b")],
        [SeatLine("A-1-1", "-")],
        [AreaLine("=Lawn", 1)],
        [AreaLine("", 1)],
    ],
)
async def test_a_wish_that_no_sale_can_fulfil_is_an_error(hall: OfferedHall, lines: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"hold takes|one tier|at least one|nobody's name"):
        await hall.hold_lines(*lines)
    assert await hall.statuses() == {}


async def test_what_looks_like_a_line_is_no_seat(hall: OfferedHall) -> None:
    for strange in ("=Lawn|1|", "==x|y", "A-1-1|child", "A-1-1,A-1-2"):
        assert await hall.hold(strange) == seats.SeatUnknown((strange,))
        assert await hall.hold_lines(strange) == seats.SeatUnknown((strange,))
    assert await hall.statuses() == {}


async def test_a_line_said_twice_is_held_once(hall: OfferedHall) -> None:
    held = await hall.hold_lines(("A-1-1", "child"), ("A-1-1", "child"))
    assert held.lines == (seats.Line("A-1-1", 20_000, "child"),)


@pytest.mark.parametrize(("quantity", "accessible"), [(0, 0), (21, 0), (2, 3), (2, -1)])
async def test_the_best_of_nothing_is_an_error(hall: OfferedHall, quantity: int, accessible: int) -> None:
    with pytest.raises(ValueError, match="hold takes"):
        await hall.hold_best(quantity, accessible=accessible)


async def test_the_same_wish_twice_is_one_hold_and_another_one_is_refused(hall: OfferedHall) -> None:
    id_ = ids.derive("mine")
    first, again = await together(
        hall.hold_lines(AreaLine("Lawn", 2), id_=id_), hall.hold_lines(AreaLine("Lawn", 2), id_=id_)
    )
    assert isinstance(first, seats.HeldLines)
    assert again == seats.HoldKnown("HELD")
    assert await hall.hold_lines(AreaLine("Lawn", 1), id_=id_) == IdempotencyKeyReused()
    best = ids.derive("best")
    first, again = await together(hall.hold_best(2, id_=best), hall.hold_best(2, id_=best))
    assert isinstance(first, wishes.HeldBest)
    assert again == seats.HoldKnown("HELD")
    assert await hall.hold_best(3, id_=best) == IdempotencyKeyReused()


async def test_whoever_is_sent_on_for_ever_is_told_that_the_shop_is_busy() -> None:
    async def ask(_at: str) -> seats.LookOn:
        return seats.LookOn("1|0|")

    assert await wishes._looking_on(ask) == Busy(retry_after_ms=1000)
