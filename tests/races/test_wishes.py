"""Races for the best seats, the last ones of a tier and places. Each begins with its control, which oversells."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from engine import ids, seats, wishes
from engine.stores.connections import RedisClient
from engine.stores.scripts import Gate
from engine.wishes import AreaLine
from tests.engine.offered_halls import Area, OfferedHall, Row, open_offered
from tests.engine.seat_sales import Hall
from tests.races.desks import CLIENTS, Deaf, open_desks

PAIRS = 30


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[OfferedHall]:
    """Three rows of twenty, of which five may go to children, and a lawn of ten; in order at the end of every race."""
    hall = await open_offered(
        redis_any,
        *[Row("A", str(number), "F" * 20) for number in range(1, 4)],
        areas=(Area("Lawn", 10),),
        tiers={("child", "STD"): (10_000, 5)},
    )
    yield hall
    await hall.check()


@pytest.fixture
async def desks(hall: OfferedHall, redis_url_any: str) -> AsyncIterator[list[OfferedHall]]:
    async with open_desks(hall, redis_url_any) as desks:
        yield desks


class Naive:
    """A shop that looks, decides by itself, and then writes; everybody has looked before anybody writes."""

    def __init__(self, hall: Hall, racers: int) -> None:
        self._redis = hall.redis
        self._moment = asyncio.Barrier(racers)

    async def hold_best_pair(self, buyer: str) -> list[int]:
        floor = (await self._redis.get("floor") or b"F" * 60).decode()
        at = floor.find("FF")
        await self._moment.wait()
        if at < 0:
            return []
        await self._redis.setrange("floor", at, "TT")
        await self._redis.hset("naive", mapping={str(at): buyer, str(at + 1): buyer})
        return [at, at + 1]

    async def hold_one_of(self, counter: str, most: int) -> bool:
        count = int(await self._redis.get(counter) or 0)
        await self._moment.wait()
        if count >= most:
            return False
        await self._redis.incr(counter)
        return True


async def test_no_two_buyers_get_one_of_the_best_seats(hall: OfferedHall, desks: list[OfferedHall]) -> None:
    naive = Naive(hall, racers=8)
    given = await asyncio.gather(*(naive.hold_best_pair(str(n)) for n in range(8)))
    assert max(Counter(at for pair in given for at in pair).values()) > 1

    replies = await asyncio.gather(
        *(desks[n % CLIENTS].hold_best(2, by=str(n), id_=ids.random_id()) for n in range(PAIRS + 10))
    )

    held = [reply for reply in replies if isinstance(reply, wishes.HeldBest)]
    assert len(held) == PAIRS
    assert {reply for reply in replies if not isinstance(reply, wishes.HeldBest)} == {seats.SoldOut(("2 0 seats ",))}
    picked = [line.seat_no for reply in held for line in reply.lines]
    assert len(set(picked)) == len(picked) == 2 * PAIRS
    assert {reply.level for reply in held} == {1}


async def test_the_best_seats_and_named_ones_are_never_the_same(hall: OfferedHall, desks: list[OfferedHall]) -> None:
    named = [f"A-{row}-{number}" for row in (1, 2, 3) for number in range(1, 21)]
    asked = []
    for n in range(60):
        desk = desks[n % CLIENTS]
        if n % 2:
            asked.append(desk.hold_best(1, by=str(n), id_=ids.random_id()))
        else:
            asked.append(desk.hold(named[n], by=str(n), id_=ids.random_id()))

    replies = await asyncio.gather(*asked)

    taken = [line.seat_no for reply in replies if isinstance(reply, wishes.HeldBest) for line in reply.lines]
    taken += [named[n] for n, reply in enumerate(replies) if isinstance(reply, seats.Held)]
    assert len(set(taken)) == len(taken)
    assert await hall.statuses() == dict.fromkeys(taken, "HELD")


async def test_a_tier_is_never_sold_above_its_cap(hall: OfferedHall, desks: list[OfferedHall]) -> None:
    naive = Naive(hall, racers=20)
    assert sum(await asyncio.gather(*(naive.hold_one_of("children", 5) for _ in range(20)))) > 5

    replies = await asyncio.gather(
        *(
            desks[n % CLIENTS].hold_best(1, by=str(n), tier="child", id_=ids.random_id())
            if n % 2
            else desks[n % CLIENTS].hold_lines((f"A-3-{n + 1}", "child"), by=str(n), id_=ids.random_id())
            for n in range(20)
        )
    )

    held = [reply for reply in replies if isinstance(reply, seats.HeldLines | wishes.HeldBest)]
    assert len(held) == 5
    assert await hall.counts() == {"child|1": 5}


async def test_a_cap_counts_once_what_is_asked_twice_because_the_answer_was_lost(hall: OfferedHall) -> None:
    deaf = replace(hall, gate=Gate(Deaf(hall.redis)))

    replies = await asyncio.gather(
        *(deaf.hold_lines((f"A-1-{n + 1}", "child"), by=str(n), id_=ids.random_id()) for n in range(20))
    )

    # The first call held and nobody heard it; the second, under the same ids, says so.
    assert deaf.gate.statistics.repeats > 0
    known = [reply for reply in replies if reply == seats.HoldKnown("HELD")]
    assert len(known) == 5
    assert {reply for reply in replies if reply not in known} == {seats.SoldOut(("1 0 tier child",))}
    assert await hall.counts() == {"child|1": 5}


async def test_the_last_places_of_an_area_are_held_once(hall: OfferedHall, desks: list[OfferedHall]) -> None:
    naive = Naive(hall, racers=20)
    assert sum(await asyncio.gather(*(naive.hold_one_of("lawn", 10) for _ in range(20)))) > 10

    replies = await asyncio.gather(
        *(desks[n % CLIENTS].hold_lines(AreaLine("Lawn", 1), by=str(n), id_=ids.random_id()) for n in range(20))
    )

    assert sum(isinstance(reply, seats.HeldLines) for reply in replies) == 10
    assert await hall.free_places() == []
