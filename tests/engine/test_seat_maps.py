"""The map of a sale: what stands in the store, and how a process keeps it for all who ask."""

import asyncio
from typing import Any

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
    assert await seat_maps.read(hall.gate, hall.sale, shown) is shown


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

    # Too old, and of another epoch: the whole map.
    assert isinstance(await maps.read_since(hall.sale, known.version - 1), SeatMap)
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


def test_a_change_while_the_map_is_read_is_never_left_out() -> None:
    # The store went on from version 5 to 7 while this map was read: it may hold the change of 6, and a client that
    # knows 6 from another process must still be told it.
    watched = seat_maps._Watched()
    watched.advance(SeatMap(version=3, read_until=3, statuses={}))
    watched.advance(SeatMap(version=5, read_until=7, statuses={"A-1-6": "HELD"}))
    watched.advance(SeatMap(version=8, read_until=8, statuses={"A-1-6": "HELD", "A-1-8": "HELD"}))

    assert watched.changes(5) == Changes(8, {"A-1-6": "HELD", "A-1-8": "HELD"})
    assert watched.changes(7) == Changes(8, {"A-1-8": "HELD"})
    assert watched.changes(2) is None


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
    maps._watched[hall.sale.sale_id].fresh_until = 0.0


def test_looking_at_the_map_writes_nothing() -> None:
    assert seat_maps.MAP.header.flags == ("no-writes",)
