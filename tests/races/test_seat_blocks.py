"""Races between an operator who blocks seats and buyers who want them. The first begins with its control."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine import ids, seat_blocks, seats, wishes
from engine.seat_blocks import Asked
from engine.stores.connections import RedisClient, Stores
from tests.engine.offered_halls import OfferedHall, Row, open_offered
from tests.engine.seat_sales import Hall, together
from tests.races.desks import CLIENTS, open_desks
from tests.shop import open_shop


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[OfferedHall]:
    """Three rows of twenty; in order at the end of every race."""
    hall = await open_offered(redis_any, *[Row("A", str(number), "F" * 20) for number in range(1, 4)])
    yield hall
    await hall.check()


@pytest.fixture
async def desks(hall: OfferedHall, redis_url_any: str) -> AsyncIterator[list[OfferedHall]]:
    async with open_desks(hall, redis_url_any) as desks:
        yield desks


class Naive:
    """A shop whose operator and buyers look, decide, and then write; both have looked before either writes."""

    def __init__(self, hall: Hall) -> None:
        self._redis = hall.redis
        self._moment = asyncio.Barrier(2)

    async def become(self, seat_no: str, state: str) -> bool:
        standing = await self._redis.hget("naive", seat_no)
        await self._moment.wait()
        if standing is not None:
            return False
        await self._redis.hset("naive", seat_no, state)
        return True


async def test_a_seat_is_held_or_blocked_and_never_both(hall: OfferedHall, desks: list[OfferedHall]) -> None:
    naive = Naive(hall)
    assert await together(naive.become("A-1-1", "HELD"), naive.become("A-1-1", "BLOCKED")) == [True, True]

    async def hold(desk: OfferedHall, seat_no: str) -> bool:
        return isinstance(await desk.hold(seat_no, by=seat_no, id_=ids.random_id()), seats.Held)

    async def block(desk: OfferedHall, n: int, seat_no: str) -> bool:
        asked: dict[str, Any] = {"epoch": 1, "seat_block_no": n + 1, "seat_nos": (seat_no, "A-3-20")}
        done = await seat_blocks.BLOCK(desk.gate, hall.sale.keys, **asked)
        assert isinstance(done, seat_blocks.SeatsBlocked) or done == seats.SeatTaken((f"{seat_no} held",))
        return isinstance(done, seat_blocks.SeatsBlocked)

    async def race(n: int, seat_no: str) -> tuple[bool, bool]:
        one, other = desks[n % CLIENTS], desks[(n + 1) % CLIENTS]
        if n % 2:
            blocked, held = await asyncio.gather(block(one, n, seat_no), hold(other, seat_no))
        else:
            held, blocked = await asyncio.gather(hold(other, seat_no), block(one, n, seat_no))
        return held, blocked

    outcomes = [await race(n, seat_no) for n, seat_no in enumerate(hall.seat_nos[:58])]

    assert {held + blocked for held, blocked in outcomes} == {1}
    assert len(set(outcomes)) == 2


async def test_a_block_gets_all_its_seats_or_none_while_the_best_are_picked(
    hall: OfferedHall, desks: list[OfferedHall]
) -> None:
    async def block_columns() -> int:
        """Block one seat of each row, column by column; how many columns."""
        blocked = 0
        for number in range(20, 0, -1):
            desk, seat_nos = desks[number % CLIENTS], [f"A-{row}-{number}" for row in (1, 2, 3)]
            done = await seat_blocks.BLOCK(
                desk.gate, hall.sale.keys, epoch=1, seat_block_no=21 - number, seat_nos=seat_nos
            )
            blocked += isinstance(done, seat_blocks.SeatsBlocked)
        return blocked

    async def pick(desk: OfferedHall, by: str) -> list[str]:
        """Hold pairs one after another."""
        picked = [await desk.hold_best(2, by=by, id_=ids.random_id()) for _ in range(4)]
        return [line.seat_no for reply in picked if isinstance(reply, wishes.HeldBest) for line in reply.lines]

    picking = asyncio.gather(*(pick(desks[n % CLIENTS], f"buyer {n}") for n in range(3)))
    blocked, picked = await asyncio.gather(block_columns(), picking)

    standing = await hall.statuses()
    held = [seat_no for mine in picked for seat_no in mine]
    assert sorted(seat_no for seat_no, state in standing.items() if state == "HELD") == sorted(held)
    assert list(standing.values()).count("BLOCKED") == 3 * blocked > 0


async def test_two_operators_and_a_crowd_leave_both_stores_alike(stores: Stores) -> None:
    shop = await open_shop(stores, seats_count=20)
    seat_nos = [f"A-1-{number}" for number in range(1, 21)]
    sale = await shop.sale()

    async def operate(first: int) -> int:
        """Block some seats and unblock others, again and again; how often that was done."""
        done = 0
        for n in range(12):
            mine = tuple(seat_nos[(first + 5 * n) % 20 :][:4])
            asked = Asked(seat_block_id=ids.random_id(), seat_nos=mine, blocked=n % 3 != 2)
            done += isinstance(await seat_blocks.change(stores, sale, asked), tuple)
        return done

    async def want(n: int) -> None:
        """Hold a seat now and then, and give most of them back."""
        buyer_id = ids.derive("buyer", str(n))
        for turn in range(20):
            hold_id = ids.derive_in(sale.sale_id, "race", str(n), str(turn))
            wanted = (seat_nos[(7 * turn + n) % 20],)
            held = await seats.hold(
                stores.gate, sale, hold_id=hold_id, buyer_id=buyer_id, fingerprint="f", seat_nos=wanted
            )
            if isinstance(held, seats.Held) and turn != n:
                mine = {"hold_id": hold_id, "buyer_id": buyer_id, "release_id": hold_id, "fingerprint": "f"}
                await seats.release(stores.gate, sale, **mine)

    first, second, *_ = await asyncio.gather(operate(0), operate(2), want(0), want(1), want(2))

    assert (first or 0) + (second or 0) > 0
    rows = await shop.rows("SELECT seat_no FROM seats WHERE blocked")
    states = await shop.states()
    assert {seat_no for seat_no, state in states.items() if state == "BLOCKED"} == {seat_no for (seat_no,) in rows}
    assert await shop.rows("SELECT seats_available FROM schedules") == [(20 - len(rows),)]
    assert await shop.rows("SELECT 1 FROM seat_blocks WHERE done_at IS NULL") == []
