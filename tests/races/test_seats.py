"""Races for a seat. Each begins with its control: the naive version, which does oversell in the same harness."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from engine import ids, seats
from engine.stores.replies import Unavailable
from tests.engine.seat_sales import Hall, Standing, buyer, open_hall, together
from tests.races.desks import CLIENTS, open_desks, without

SEAT_NOS = tuple(f"{section}-{row}-{number}" for section in "AB" for row in (1, 2, 3) for number in range(1, 11))

# What hold.lua asks of an id before anything else.
KNOWN_HOLDS = """\
local known = find_hold(hold_id)
if known then
  if known.buyer_id ~= buyer_id or known.fingerprint ~= fingerprint then
    return { "idempotency_key_reused" }
  end
  return { "hold_known", (state_of(known)) }
end
"""


@pytest.fixture
async def hall(redis: Redis) -> AsyncIterator[Hall]:
    """A sale of sixty seats; in order at the end of every race."""
    hall = await open_hall(redis, *SEAT_NOS)
    yield hall
    await hall.check()


@pytest.fixture
async def desks(hall: Hall, redis_url: str) -> AsyncIterator[list[Hall]]:
    """The same sale through several gates, as several processes have it."""
    async with open_desks(hall, redis_url) as desks:
        yield desks


class Naive:
    """A shop that keeps its rules outside the store: it reads, decides, and then writes.

    Everybody who races has read before anybody writes, which is what a slow moment does to such a shop.
    """

    def __init__(self, hall: Hall, racers: int) -> None:
        self._redis = hall.redis
        self._moment = asyncio.Barrier(racers)

    async def _when_state_is(self, allowed: set[bytes | None], seat_no: str, becomes: str) -> bool:
        state = await self._redis.hget("naive", seat_no)
        await self._moment.wait()
        if state not in allowed:
            return False
        await self._redis.hset("naive", seat_no, becomes)
        return True

    async def hold(self, seat_no: str) -> bool:
        return await self._when_state_is({None, b"LAPSED"}, seat_no, "HELD")

    async def pay(self, seat_no: str) -> bool:
        return await self._when_state_is({b"HELD", b"LAPSED"}, seat_no, "PAYING")

    async def confirm(self, seat_no: str) -> bool:
        return await self._when_state_is({b"PAYING"}, seat_no, "SOLD")

    async def abandon(self, seat_no: str) -> bool:
        return await self._when_state_is({b"PAYING"}, seat_no, "FREE")

    async def expire(self, seat_no: str) -> bool:
        return await self._when_state_is({b"LAPSED"}, seat_no, "FREE")

    async def stand(self, seat_no: str, state: str) -> None:
        await self._redis.hset("naive", seat_no, state)


# --- two buyers, one seat ---------------------------------------------------------------------------------------------


async def test_one_seat_is_held_once_however_many_ask(hall: Hall, desks: list[Hall]) -> None:
    naive = Naive(hall, racers=20)
    sold_by_the_twin = await asyncio.gather(*(naive.hold("A-1-1") for _ in range(20)))
    assert sum(sold_by_the_twin) > 1

    for seat_no in SEAT_NOS[:10]:
        replies = await asyncio.gather(
            *(desks[n % CLIENTS].hold(seat_no, by=str(n), id_=ids.random_id()) for n in range(20))
        )
        assert sorted(type(reply).__name__ for reply in replies) == ["Held", *["SeatTaken"] * 19]


async def test_overlapping_groups_get_all_their_seats_or_none(hall: Hall, desks: list[Hall]) -> None:
    groups = [(SEAT_NOS[n % 60], SEAT_NOS[(n + 7) % 60], SEAT_NOS[(n + 13) % 60]) for n in range(0, 240, 2)]
    random.Random(7).shuffle(groups)

    replies = await asyncio.gather(
        *(desks[n % CLIENTS].hold(*group, by=str(n), id_=ids.random_id()) for n, group in enumerate(groups))
    )

    won = [
        seat_no for group, reply in zip(groups, replies, strict=True) if type(reply) is seats.Held for seat_no in group
    ]
    assert len(won) == len(set(won)) > 0
    assert await hall.statuses() == dict.fromkeys(won, "HELD")


async def test_one_request_from_four_processes_is_one_hold(desks: list[Hall]) -> None:
    for seat_no in SEAT_NOS[:20]:
        hold_id = ids.random_id()
        replies = await asyncio.gather(*(desks[n % CLIENTS].hold(seat_no, id_=hold_id) for n in range(50)))
        assert sorted(type(reply).__name__ for reply in replies) == ["Held", *["HoldKnown"] * 49]


# --- the deadline -----------------------------------------------------------------------------------------------------


async def test_at_its_deadline_a_hold_is_paid_or_swept_and_never_both(hall: Hall, desks: list[Hall]) -> None:
    naive = Naive(hall, racers=2)
    await naive.stand("A-1-1", "LAPSED")
    assert await together(naive.pay("A-1-1"), naive.expire("A-1-1")) == [True, True]

    standings = [await hall.held(seat_no, by=seat_no) for seat_no in SEAT_NOS]
    now_ms = await hall.now_ms()
    for n, standing in enumerate(standings):
        await hall.rewrite(standing.hold_id, expires_at_ms=now_ms + n % 40)

    async def buy(standing: Standing) -> bool:
        """Pay and confirm; whether the hold still stood."""
        if isinstance(await standing.pay(), seats.HoldEnded):
            return False
        assert isinstance(await standing.confirm(), seats.Confirmed)
        return True

    async def sweep(desk: Hall) -> int:
        """Sweep until nothing is left that may lapse; how many were ended."""
        ended = 0
        while await hall.redis.zcard(hall.sale.keys.deadlines):
            reply = await seats.expire(desk.gate, hall.sale, most=3)
            assert isinstance(reply, seats.Expired)
            ended += reply.count
        return ended

    async def buy_in_order(desk: Hall) -> list[bool]:
        mine = standings[desks.index(desk) :: CLIENTS - 1]
        return [await buy(replace(standing, hall=desk)) for standing in mine]

    swept, *bought = await together(sweep(desks[-1]), *(buy_in_order(desk) for desk in desks[:-1]))

    sold = sum(sum(each) for each in bought)
    assert sold + swept == len(SEAT_NOS)
    assert list((await hall.statuses()).values()) == ["SOLD"] * sold


async def test_a_payment_under_way_is_not_swept_and_confirms_after_every_deadline(
    hall: Hall, desks: list[Hall]
) -> None:
    naive = Naive(hall, racers=2)
    await naive.stand("A-1-1", "LAPSED")
    assert await together(naive.expire("A-1-1"), naive.pay("A-1-1")) == [True, True]

    standings = [await hall.held(seat_no) for seat_no in SEAT_NOS[:30]]
    for standing in standings:
        await standing.pay()
        await hall.rewrite(standing.hold_id, expires_at_ms=1, pay_deadline_ms=1)

    swept, *confirmed = await asyncio.gather(
        seats.expire(desks[0].gate, hall.sale, most=100),
        *(replace(standing, hall=desks[n % CLIENTS]).confirm() for n, standing in enumerate(standings)),
    )

    assert swept == seats.Expired(0, 0, 0)
    assert sorted(reply.n for reply in confirmed) == list(range(1, 31))


async def test_a_lapsed_hold_is_taken_over_or_paid_by_its_owner_and_never_both(hall: Hall, desks: list[Hall]) -> None:
    naive = Naive(hall, racers=2)
    await naive.stand("A-1-1", "LAPSED")
    assert await together(naive.pay("A-1-1"), naive.hold("A-1-1")) == [True, True]

    async def race(seat_no: str, n: int) -> tuple[bool, bool]:
        """Let the owner pay while somebody else wants the seat, at the very millisecond of the deadline."""
        owner = replace(await hall.held(seat_no, by="owner" + seat_no), hall=desks[n % CLIENTS])
        await hall.rewrite(owner.hold_id, expires_at_ms=await hall.now_ms() + n % 3)
        paid, held = None, None
        while not isinstance(paid, seats.Paying | seats.HoldEnded) or not isinstance(held, seats.Held):
            paid, held = await asyncio.gather(
                owner.pay(), desks[(n + 1) % CLIENTS].hold(seat_no, by="other" + seat_no, id_=ids.random_id())
            )
            if isinstance(paid, seats.Paying):
                break
        return isinstance(paid, seats.Paying), isinstance(held, seats.Held)

    outcomes = await asyncio.gather(*(race(seat_no, n) for n, seat_no in enumerate(SEAT_NOS)))

    assert {paid + held for paid, held in outcomes} == {1}


async def test_a_takeover_frees_every_seat_of_the_hold_that_it_ends(hall: Hall, tmp_path: Path) -> None:
    # The control takes only the seat it wants: the old hold goes on counting, and its other seat stays shut.
    control = await open_hall(hall.redis, *SEAT_NOS)
    rule = "    expire_hold(journal, other_id, others[other_id])\n"
    simpler = without(tmp_path, "seats/hold", seats.HeldAnswer, rule)
    old = await control.held("A-1-1", "A-1-2")
    await old.lapse()
    await simpler(control.gate, control.sale.keys, **_asked(control, "A-1-1", by="bob"))
    assert await control.statuses() == {"A-1-1": "HELD", "A-1-2": "HELD"}
    with pytest.raises(AssertionError):
        await control.check()

    old = await hall.held("A-1-1", "A-1-2")
    await old.lapse()
    await hall.held("A-1-1", by="bob")
    assert await hall.statuses() == {"A-1-1": "HELD"}


# --- the two doors ----------------------------------------------------------------------------------------------------


async def test_a_payment_leaves_by_one_door(hall: Hall, desks: list[Hall]) -> None:
    naive = Naive(hall, racers=2)
    await naive.stand("A-1-1", "PAYING")
    assert await together(naive.confirm("A-1-1"), naive.abandon("A-1-1")) == [True, True]

    async def race(seat_no: str, n: int) -> tuple[Any, ...]:
        standing = await hall.held(seat_no)
        await standing.pay()
        one, other = (replace(standing, hall=desks[(n + m) % CLIENTS]) for m in (0, 1))
        asked = [one.confirm(), other.abandon()]
        return tuple(await asyncio.gather(*asked)) if n % 2 else tuple(reversed(await asyncio.gather(*asked[::-1])))

    outcomes = await asyncio.gather(*(race(seat_no, n) for n, seat_no in enumerate(SEAT_NOS)))

    for confirmed, abandoned in outcomes:
        if isinstance(confirmed, seats.Confirmed):
            assert abandoned == seats.HoldSold(ids.derive("p1"))
        else:
            assert (confirmed, abandoned) == (seats.HoldUnknown(), seats.Abandoned("held"))
    sold = sum(isinstance(confirmed, seats.Confirmed) for confirmed, _ in outcomes)
    assert sorted((await hall.statuses()).values()) == ["HELD"] * (60 - sold) + ["SOLD"] * sold


async def test_a_late_copy_of_a_given_up_payment_does_not_bring_it_back(hall: Hall, tmp_path: Path) -> None:
    # The control forgets which payments have ended: the buyer's first payment, long voided, runs and sells again.
    control = await open_hall(hall.redis, *SEAT_NOS)
    answers = seats.Abandoned | seats.HoldSold | seats.HoldUnknown | Unavailable
    simpler = without(tmp_path, "seats/abandon", answers, "hold.payments = with(hold.payments, payment_id)\n")
    voided = await control.held("A-1-1")
    await voided.pay("p1")
    given_up: dict[str, Any] = {
        "epoch": 1,
        "hold_id": voided.hold_id,
        "fence": voided.fence,
        "payment_id": ids.derive("p1"),
    }
    await simpler(control.gate, control.sale.keys, **given_up)
    assert isinstance(await voided.pay("p1"), seats.Paying)
    assert isinstance(await voided.confirm("p1"), seats.Confirmed)

    standing = await hall.held("A-1-1")
    await standing.pay("p1")
    await standing.abandon("p1")
    assert await standing.pay("p1") == seats.PaymentEnded()
    assert await standing.confirm("p1") == seats.HoldUnknown()


# --- late copies ------------------------------------------------------------------------------------------------------


async def test_a_delayed_copy_of_a_hold_does_not_hold_again_after_a_release(hall: Hall, tmp_path: Path) -> None:
    # The control keeps no record that it looks at: the copy takes the seat that its buyer gave back.
    control = await open_hall(hall.redis, *SEAT_NOS)
    simpler = without(tmp_path, "seats/hold", seats.HeldAnswer, KNOWN_HOLDS)
    asked = _asked(control, "A-1-1")
    await simpler(control.gate, control.sale.keys, **asked)
    mine = {"hold_id": asked["hold_id"], "buyer_id": asked["buyer_id"]}
    await seats.release(control.gate, control.sale, **mine, release_id=ids.derive("r"), fingerprint="f")
    await simpler(control.gate, control.sale.keys, **asked)
    assert await control.statuses() == {"A-1-1": "HELD"}

    standing = await hall.held("A-1-1")
    await standing.release()
    assert await hall.hold("A-1-1", id_=standing.hold_id) == seats.HoldKnown("ENDED")
    assert await hall.statuses() == {}


async def test_copies_of_a_hold_and_its_release_in_any_order_leave_nothing_held(hall: Hall, desks: list[Hall]) -> None:
    async def race(seat_no: str, n: int) -> None:
        standing = await hall.held(seat_no)
        copies = [desks[m % CLIENTS].hold(seat_no, id_=standing.hold_id) for m in range(4)]
        releases = [replace(standing, hall=desks[m % CLIENTS]).release() for m in range(4)]
        asked = copies + releases
        random.Random(n).shuffle(asked)
        await asyncio.gather(*asked)

    await asyncio.gather(*(race(seat_no, n) for n, seat_no in enumerate(SEAT_NOS)))

    assert await hall.statuses() == {}
    assert len([entry for entry in await hall.entries("journal") if entry["kind"] == "released"]) == 60


def _asked(hall: Hall, seat_no: str, by: str = "ann") -> dict[str, Any]:
    """The arguments of a hold, for a script that is called by itself."""
    return {
        "epoch": hall.sale.epoch,
        "hold_id": ids.derive("hold", by, seat_no),
        "buyer_id": buyer(by),
        "queue_no": 0,
        "fingerprint": "f" * 16,
        "seat_nos": (seat_no,),
    }
