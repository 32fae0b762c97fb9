"""Races for a place in line. Each begins with its control, the naive version, which does go wrong here."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from engine import waiting_room
from engine.stores.replies import Unavailable
from engine.waiting_room import GRACE_MS, POLL_MAX_MS, Admitted, Joined, Left, Token
from tests.engine.lines import Line, open_line, user
from tests.races.desks import CLIENTS, open_desks, without

NAMES = [f"p{number}" for number in range(1, 301)]


@pytest.fixture
async def line(redis: Redis) -> AsyncIterator[Line]:
    """An open room; in order at the end of every race."""
    line = await open_line(redis)
    yield line
    await line.check()


@pytest.fixture
async def desks(line: Line, redis_url: str) -> AsyncIterator[list[Line]]:
    """The same line through several gates, as several processes have it."""
    async with open_desks(line, redis_url) as desks:
        yield desks


class Naive:
    """A room that keeps its rules outside the store: it reads, decides, and then writes.

    Everybody who races has read before anybody writes, which is what a slow moment does to such a room.
    """

    def __init__(self, line: Line, racers: int) -> None:
        self.line = line
        self.redis = line.redis
        self.all_have_read = asyncio.Barrier(racers)

    async def join(self, name: str) -> int:
        known = await self.redis.zscore("naive:waiting", name)
        await self.all_have_read.wait()
        if known is not None:
            return int(known)
        queue_no: int = await self.redis.incr("naive:queue_no")
        await self.redis.zadd("naive:waiting", {name: queue_no})
        return queue_no

    async def admit(self, most: int) -> int:
        free = most - await self.redis.zcard("naive:active")
        await self.all_have_read.wait()
        called = 0
        while called < free and (head := await self.redis.zpopmin("naive:waiting")):
            await self.redis.zadd("naive:active", {head[0][0]: 1})
            called += 1
        return called


# --- the rate ---------------------------------------------------------------------------------------------------------


async def _fill_the_second_a_minute_ago(line: Line) -> None:
    """A hundred people were admitted in the last instant of the sixtieth second before this one: less than 60 s ago."""
    await line.set(admitted_per_minute_max=100)
    await line.joined(*NAMES)
    # A sale's time never goes back, so it stands still at the beginning of a second that has not come yet.
    second = await line.now_ms() // 1000 + 60
    await line.set(now_ms=second * 1000)
    await line.redis.hset(line.sale.keys.admissions, mapping={second - 60: 100})


async def test_control_a_window_of_sixty_seconds_lets_two_hundred_in_at_a_cap_of_one_hundred(
    line: Line, tmp_path: Path
) -> None:
    # The same script, but the window is this second and the 59 before it.
    naive = without(tmp_path, "waiting_room/admit", Admitted | Unavailable, "second - 60", instead="second - 59")
    await _fill_the_second_a_minute_ago(line)
    admitted = await naive(line.gate, line.sale.keys, epoch=1, most=500, poll_max_ms=POLL_MAX_MS, grace_ms=GRACE_MS)
    assert isinstance(admitted, Admitted)
    assert 100 + admitted.count == 200


async def test_sixty_one_seconds_are_counted(line: Line) -> None:
    await _fill_the_second_a_minute_ago(line)
    assert (await line.admit(500)).count == 0
    await line.set(now_ms=await line.term("now_ms") + 1000)
    assert (await line.admit(500)).count == 100


# --- the caps ---------------------------------------------------------------------------------------------------------


async def test_control_workers_that_read_and_then_write_let_too_many_in(line: Line) -> None:
    naive = Naive(line, CLIENTS)
    await line.redis.zadd("naive:waiting", {name: number for number, name in enumerate(NAMES)})
    await asyncio.gather(*[naive.admit(50) for _ in range(CLIENTS)])
    assert await line.redis.zcard("naive:active") > 50


@pytest.mark.parametrize("cap", ["active_max", "admitted_per_minute_max"])
async def test_workers_that_admit_at_once_never_pass_a_cap(line: Line, desks: list[Line], cap: str) -> None:
    await line.joined(*NAMES)
    await line.set(**{cap: 50})
    admitted = await asyncio.gather(*[desk.admit(7) for desk in desks for _ in range(20)])
    assert sum(each.count for each in admitted) == 50
    assert (await line.scores("active")).keys() == {user(name) for name in NAMES[:50]}
    assert [entry[0] for entry in await line.told()].count("admitted") == 8


async def test_a_slot_is_given_once_while_people_leave_and_workers_admit(line: Line, desks: list[Line]) -> None:
    await line.set(active_max=20)
    await line.joined(*NAMES[:120])
    await line.admit()
    seen: list[int] = []

    async def watch() -> None:
        for _ in range(60):
            seen.append(len(await line.scores("active")))
            await asyncio.sleep(0)

    leaving = [
        desks[at % CLIENTS].leave(name, queue_no) for at, (queue_no, name) in enumerate(enumerate(NAMES[:100], 1))
    ]
    admitting = [desk.admit(5) for desk in desks for _ in range(20)]
    acts = [*leaving, *admitting]
    random.Random(7).shuffle(acts)
    await asyncio.gather(watch(), *acts)
    while (await line.admit()).count:
        pass
    assert max(seen) <= 20
    assert (await line.scores("active")).keys() == {user(name) for name in NAMES[100:120]}


# --- one place an owner -----------------------------------------------------------------------------------------------


async def test_control_a_join_that_reads_and_then_writes_gives_one_person_many_numbers(line: Line) -> None:
    naive = Naive(line, CLIENTS)
    numbers = await asyncio.gather(*[naive.join("ann") for _ in range(CLIENTS)])
    assert len(set(numbers)) == CLIENTS


async def test_one_person_in_many_tabs_has_one_number(desks: list[Line]) -> None:
    names = NAMES[:20]
    joined = await asyncio.gather(*[desk.join(name) for name in names for desk in desks for _ in range(5)])
    assert all(isinstance(each, Joined) for each in joined)
    assert sum(each.created for each in joined) == len(names)
    assert {each.queue_no for each in joined} == set(range(1, len(names) + 1))


async def test_two_browsers_of_one_person_end_with_one_token(line: Line, desks: list[Line]) -> None:
    numbers = await line.joined("v1", "v2", "v3", "v4", "ann")
    tied = await asyncio.gather(
        *[desk.tie(f"v{at}", "ann", numbers[at - 1]) for at, desk in enumerate(desks, 1)],
        *[desk.tie(f"v{at}", "ann", numbers[at - 1]) for at, desk in enumerate(reversed(desks), 1)],
    )
    assert all(isinstance(each, waiting_room.Tied) for each in tied)
    assert await line.scores("waiting") == {user("ann"): 1}
    for name, queue_no in zip(("v1", "v2", "v3", "v4", "ann"), numbers, strict=True):
        token = await line.enter(name, queue_no)
        assert (token.status, token.queue_no) == ("WAITING", 1)


async def test_a_number_is_put_back_once_however_many_processes_try(line: Line, desks: list[Line]) -> None:
    await line.joined(*NAMES[:50])
    await line.lose()
    acts = [desk.put_back(name, queue_no) for desk in desks for queue_no, name in enumerate(NAMES[:50], 1)]
    acts += [desk.join(name) for desk in desks for name in NAMES[:50:5]]
    random.Random(11).shuffle(acts)
    await asyncio.gather(*acts)
    assert await line.scores("waiting") == {user(name): number for number, name in enumerate(NAMES[:50], 1)}
    back = [entry for entry in await line.told() if entry[0] == "joined" and int(entry[1]) <= 50]
    assert len(back) == 50


# --- the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around_ms", [-1, 0, 1])
async def test_entering_and_being_skipped_in_one_millisecond_end_in_one_of_the_two(
    line: Line, desks: list[Line], around_ms: int
) -> None:
    for number, name in enumerate(NAMES[:20], 1):
        await line.joined(name)
        await line.admit()
        await line.redis.zadd(line.sale.keys.active, {user(name): await line.now_ms() + around_ms})
        acts = [desks[0].admit(), desks[1].enter(name, number), desks[2].admit(), desks[3].enter(name, number)]
        random.Random(number).shuffle(acts)
        answers = await asyncio.gather(*acts)
        tokens = [answer for answer in answers if isinstance(answer, Token)]
        last = await line.enter(name, number)
        # Whoever was let in stays in; whoever was not, came back and may be called again by the other admission.
        if any(token.status == "ACTIVE" and token.expires_at_ms for token in tokens):
            assert last.status == "ACTIVE"
        else:
            assert {token.status for token in tokens} == {"WAITING"}
        await line.leave(name, number)


async def test_a_session_that_lapses_while_its_owner_leaves_ends_once(line: Line, desks: list[Line]) -> None:
    for number, name in enumerate(NAMES[:20], 1):
        await line.joined(name)
        await line.admit()
        await line.enter(name, number)
        await line.redis.zadd(line.sale.keys.active, {user(name): await line.now_ms()})
        acts = [desks[0].admit(), desks[1].leave(name, number), desks[2].leave(name, number), desks[3].admit()]
        random.Random(number).shuffle(acts)
        left = [answer for answer in await asyncio.gather(*acts) if isinstance(answer, Left)]
        assert len({answer.status for answer in left}) == 1
    ends = [entry for entry in await line.told() if entry[0] == "ended"]
    assert [int(entry[1]) for entry in ends] == list(range(1, 21))


# --- everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_a_crowd_that_does_everything_at_once_leaves_the_line_in_order(
    line: Line, desks: list[Line], seed: int
) -> None:
    chance = random.Random(seed)
    await line.set(active_max=15, admitted_per_minute_max=40)
    serving = 0
    for _ in range(6):
        acts: list[Callable[[], Awaitable[Any]]] = []
        for name in NAMES[:60]:
            desk, queue_no = chance.choice(desks), chance.randint(1, 90)
            visitor_name = f"v{chance.randint(1, 20)}"
            acts += chance.choice(
                [
                    [partial(desk.join, name), partial(desk.join, name)],
                    [partial(desk.enter, name, queue_no), partial(desk.join, visitor_name)],
                    [partial(desk.leave, name, queue_no)],
                    [partial(desk.tie, visitor_name, name, queue_no), partial(desk.join, visitor_name)],
                ]
            )
        acts += [partial(desk.admit, chance.randint(1, 10)) for desk in desks]
        chance.shuffle(acts)
        await asyncio.gather(*[act() for act in acts])
        await line.check()
        assert serving <= (serving := await line.term("serving"))
        await line.age(chance.choice([0, 1_000, 61_000, 200_000]))
        await line.check()
