"""The map of a sale: what stands in the store, and how a process keeps it for all who ask."""

import asyncio
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from engine import seat_maps, seats
from engine.seat_maps import Changes, Maps, SeatMap
from engine.stores.connections import RedisClient
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from tests.engine.seat_sales import Hall, open_hall, together


async def test_the_map_shows_what_a_buyer_may_see(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any, blocked=("B-1-1",))
    await hall.held("A-1-1")
    await (await hall.held("A-1-2")).pay()
    await hall.sold("A-1-3")

    shown = await seat_maps.read(hall.gate, hall.sale)

    assert isinstance(shown, SeatMap)
    assert shown.statuses == {"A-1-1": "HELD", "A-1-2": "HELD", "A-1-3": "SOLD", "B-1-1": "BLOCKED"}


async def test_no_map_is_shown_where_the_sale_is_closed_unknown_or_of_another_epoch(hall: Hall) -> None:
    maps = Maps(hall.gate)
    await hall.set(state="rebuilding")
    assert await maps.read(hall.sale) == SaleRebuilding()
    await hall.set(state="open", epoch=2)
    assert await maps.read(hall.sale) == StaleEpoch(2)
    await hall.redis.execute_command("DEL", hall.sale.keys.sale)
    assert await maps.read(hall.sale) == SaleUnknown()


async def test_a_version_stays_whole_in_a_late_epoch(hall: Hall) -> None:
    far = 5_000_000 * seat_maps.VERSIONS_PER_EPOCH
    await hall.set(map_version=far)
    await hall.held("A-1-1")

    shown = await seat_maps.read(hall.gate, hall.sale)

    assert isinstance(shown, SeatMap)
    assert shown.version == far + 1


async def test_the_version_grows_with_what_a_buyer_can_see_and_with_nothing_else(hall: Hall) -> None:
    async def grows(asked: Any) -> bool:
        before = await hall.term("map_version")
        await asked
        return await hall.term("map_version") > before

    standing = await hall.held("A-1-1", "A-1-2")
    assert not await grows(standing.extend())
    assert not await grows(standing.pay("p1"))
    assert not await grows(standing.abandon("p1"))
    assert await grows(standing.release("A-1-2"))
    await standing.pay("p2")
    assert await grows(standing.confirm("p2"))
    assert not await grows(standing.confirm("p2"))
    assert await grows(standing.restore(seats.Claim("A-1-1")))
    assert not await grows(standing.restore(seats.Claim("A-1-1")))
    lapsed = await hall.held("A-1-1")
    await lapsed.lapse()
    assert await grows(seats.expire(hall.gate, hall.sale, most=1))
    overdue = await hall.held("A-1-1")
    await overdue.pay()
    await hall.rewrite(overdue.hold_id, expires_at_ms=1)
    assert await grows(overdue.abandon())


async def test_a_process_answers_what_changed_since_a_version(hall: Hall) -> None:
    maps = Maps(hall.gate)
    first = await hall.held("A-1-1")
    known = await maps.read(hall.sale)
    assert isinstance(known, SeatMap)
    await hall.held("A-1-2")
    await first.release()
    assert await maps.read(hall.sale) is known  # still fresh

    _make_stale(maps, hall)
    changes = await maps.read_since(hall.sale, known.version)
    assert changes == Changes(await hall.term("map_version"), {"A-1-1": "FREE", "A-1-2": "HELD"})
    await hall.held("A-1-3")
    _make_stale(maps, hall)
    assert await maps.read_since(hall.sale, changes.version) == Changes(
        await hall.term("map_version"), {"A-1-3": "HELD"}
    )
    both = await maps.read_since(hall.sale, known.version)
    assert isinstance(both, Changes)
    assert both.statuses == {"A-1-1": "FREE", "A-1-2": "HELD", "A-1-3": "HELD"}

    # From before this process looked for the first time.
    assert await maps.read_since(hall.sale, 0) == both
    # Of another epoch: the whole map.
    assert isinstance(await maps.read_since(hall.sale, known.version + 10**9), SeatMap)
    # Newer than this process: nothing is taken back.
    assert await maps.read_since(hall.sale, known.version + 90) == Changes(known.version + 90, {})


async def test_after_a_rebuild_the_map_is_whole_again(hall: Hall) -> None:
    maps = Maps(hall.gate)
    await hall.held("A-1-1")
    known = await maps.read(hall.sale)
    assert isinstance(known, SeatMap)
    await hall.set(map_version=2 * 10**9, fence=2 * 10**9)
    await hall.held("A-1-2")
    _make_stale(maps, hall)

    assert isinstance(await maps.read_since(hall.sale, known.version), SeatMap)


async def test_a_version_in_between_is_told_what_it_lacks_and_no_more(hall: Hall) -> None:
    maps = Maps(hall.gate)
    first = await hall.held("A-1-1", "A-1-2")
    await hall.held("A-1-3")
    await first.release("A-1-2")
    told = {0: {"A-1-1", "A-1-2", "A-1-3"}, 1: {"A-1-2", "A-1-3"}, 2: {"A-1-2"}, 3: set()}
    for since, seat_nos in told.items():
        changes = await maps.read_since(hall.sale, since)
        assert isinstance(changes, Changes)
        assert (changes.version, set(changes.statuses)) == (3, seat_nos)


async def test_where_too_much_changed_the_map_is_read_whole(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seat_maps, "CHANGES_MAX", 2)
    maps = Maps(hall.gate)
    first = await hall.held("A-1-1")
    await hall.held("A-1-2", "A-1-3")
    # Of the three that changed before it was read, those of the last change can be told.
    assert await maps.read_since(hall.sale, 1) == Changes(2, {"A-1-2": "HELD", "A-1-3": "HELD"})
    assert isinstance(await maps.read_since(hall.sale, 0), SeatMap)

    # As many as can be told: what was told longest ago makes room.
    await hall.held("A-1-4")
    _make_stale(maps, hall)
    assert await maps.read_since(hall.sale, 2) == Changes(3, {"A-1-4": "HELD"})
    assert isinstance(await maps.read_since(hall.sale, 1), SeatMap)

    # More than that at once.
    await hall.held("A-1-5", "A-1-6")
    await first.release()
    _make_stale(maps, hall)
    newest = await maps.read_since(hall.sale, 3)
    assert isinstance(newest, SeatMap)
    assert newest.statuses == await hall.statuses()
    assert newest.version == await hall.term("map_version")
    assert isinstance(await maps.read_since(hall.sale, newest.version - 1), Changes)


async def test_a_map_is_not_read_whole_again_at_once(hall: Hall) -> None:
    maps = Maps(hall.gate)
    known = await maps.read(hall.sale)
    await hall.set(map_version=2 * 10**9)
    watched = maps._watched[hall.sale.sale_id]
    watched.fresh_until, watched.spared_until = 0.0, float("inf")
    assert await maps.read(hall.sale) is known
    _make_stale(maps, hall)
    newest = await maps.read(hall.sale)
    assert isinstance(newest, SeatMap)
    assert newest.version == 2 * 10**9


async def test_after_the_first_reading_only_what_changed_is_read(redis: Redis) -> None:
    hall = await open_hall(redis)
    maps = Maps(hall.gate)
    await hall.held("A-1-1")
    await maps.read(hall.sale)
    await redis.config_resetstat()
    for seat_no in ("A-1-2", "A-1-3"):
        await hall.held(seat_no)
        _make_stale(maps, hall)
        shown = await maps.read(hall.sale)
        assert isinstance(shown, SeatMap)
        assert shown.statuses[seat_no] == "HELD"
    counted = await redis.info("commandstats")
    assert counted["cmdstat_evalsha"]["calls"] == 4  # two holds, two looks
    assert counted["cmdstat_hgetall"]["calls"] == 4  # the sale by each of them


async def test_a_map_is_of_one_version_though_the_sale_goes_on_while_it_is_read(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any, *(f"A-1-{number}" for number in range(1, 200)))
    stood: dict[int, dict[str, str]] = {0: {}}
    going_on = asyncio.create_task(_go_on(hall, stood))
    maps = Maps(hall.gate)
    shown = [await maps.read(hall.sale)]
    while not going_on.done():
        shown.append(await seat_maps.read(hall.gate, hall.sale))
        _make_stale(maps, hall)
        shown.append(await maps.read(hall.sale))
    await going_on

    maps_of = [each for each in shown if isinstance(each, SeatMap)]
    assert len({each.version for each in maps_of}) > 20
    for each in maps_of:
        assert each.statuses == stood[each.version]


async def _go_on(hall: Hall, stood: dict[int, dict[str, str]]) -> None:
    """Hold and release, and note what stood in each version."""
    chosen = Random(7)
    for _ in range(90):
        held = await hall.held(*chosen.sample(hall.seat_nos, 3))
        stood[await hall.term("map_version")] = await hall.statuses()
        await held.release()
        stood[await hall.term("map_version")] = {}


async def test_many_who_ask_for_a_map_cause_one_reading(redis: Redis) -> None:
    hall = await open_hall(redis)
    await hall.held("A-1-1")
    maps = Maps(hall.gate)
    await redis.config_resetstat()

    answers = await together(*(maps.read(hall.sale) for _ in range(50)))

    assert len({id(answer) for answer in answers}) == 1
    counted = await redis.info("commandstats")
    assert counted["cmdstat_hgetall"]["calls"] == 3  # the seats once, the sale by each of two small scripts


async def test_a_buyer_who_goes_away_does_not_stop_the_reading_of_others(hall: Hall) -> None:
    maps = Maps(hall.gate)
    leaving = asyncio.ensure_future(maps.read(hall.sale))
    staying = asyncio.ensure_future(maps.read(hall.sale))
    await asyncio.sleep(0)
    leaving.cancel()

    assert isinstance(await staying, SeatMap)


async def test_a_process_keeps_the_maps_of_so_many_sales(redis: Redis) -> None:
    halls = [await open_hall(redis) for _ in range(3)]
    maps = Maps(halls[0].gate, most=2)
    for hall in halls:
        await maps.read(hall.sale)

    assert list(maps._watched) == [hall.sale.sale_id for hall in halls[1:]]


def _make_stale(maps: Maps, hall: Hall) -> None:
    watched = maps._watched[hall.sale.sale_id]
    watched.fresh_until = watched.spared_until = 0.0


def test_looking_at_the_map_writes_nothing() -> None:
    assert seat_maps.MAP.header.flags == ("no-writes",)
