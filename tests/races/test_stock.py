"""Races for units. Each begins with its control: the naive version, which does oversell in the same harness."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from engine import ids, seats, stock
from engine.stores.replies import Unavailable
from tests.engine.seat_sales import buyer, together
from tests.engine.stock_sales import Order, Stall, open_stall
from tests.races.desks import CLIENTS, open_desks, without

UNITS = 500
BUYERS = 5_000


@pytest.fixture
async def stall(redis: Redis) -> AsyncIterator[Stall]:
    """Five hundred mugs and sixty caps; in order at the end of every race."""
    stall = await open_stall(redis, {"mug": UNITS, "cap": 60})
    yield stall
    await stall.check()


@pytest.fixture
async def desks(stall: Stall, redis_url: str) -> AsyncIterator[list[Stall]]:
    """The same sale through several gates, as several processes have it."""
    async with open_desks(stall, redis_url) as desks:
        yield desks


class Naive:
    """A shop that keeps its rules outside the store: it reads, decides, and then writes.

    Everybody who races has read before anybody writes, which is what a slow moment does to such a shop.
    """

    def __init__(self, stall: Stall, racers: int) -> None:
        self._redis = stall.redis
        self._moment = asyncio.Barrier(racers)

    async def take(self, variant_id: str) -> bool:
        left = int(await self._redis.hget("naive", variant_id) or 0)
        await self._moment.wait()
        if left < 1:
            return False
        await self._redis.hincrby("naive", variant_id, -1)
        return True

    async def leave(self, hold_id: str, *, by: str) -> bool:
        """Go from PAYING or LAPSED to another state."""
        state = await self._redis.hget("naive", hold_id)
        await self._moment.wait()
        if state not in {b"PAYING", b"LAPSED"}:
            return False
        await self._redis.hset("naive", hold_id, by)
        return True

    async def stand(self, field: str, value: str) -> None:
        await self._redis.hset("naive", field, value)


def names(replies: list[Any]) -> list[str]:
    """The words that were answered, in order of the alphabet."""
    return sorted(type(reply).__name__ for reply in replies)


# --- more buyers than units -------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
async def test_five_thousand_who_want_one_of_five_hundred_buy_exactly_five_hundred(
    stall: Stall, desks: list[Stall]
) -> None:
    naive = Naive(stall, racers=20)
    await naive.stand("mug", "3")
    sold_by_the_twin = await asyncio.gather(*(naive.take("mug") for _ in range(20)))
    assert sum(sold_by_the_twin) > 3

    async def buy(n: int) -> int:
        """Hold a unit, pay and confirm, whoever else does; how many were bought."""
        desk, hold_id = desks[n % CLIENTS], ids.derive("rush", str(n))
        held = await desk.hold(mug=1, by=str(n), id_=hold_id)
        if not isinstance(held, stock.Held):
            assert held == stock.SoldOut(("mug 1 0",))
            return 0
        order = Order(desk, hold_id, buyer(str(n)), held)
        if n % 5 == 0:  # some give it back, for somebody who has not asked yet
            assert isinstance(await order.release(), stock.Released)
            return 0
        assert isinstance(await order.pay(), seats.Paying)
        assert isinstance(await order.confirm(), seats.Confirmed)
        return 1

    numbers = list(range(BUYERS))
    random.Random(7).shuffle(numbers)
    waiting = iter(numbers)

    async def task() -> int:
        return sum([await buy(n) for n in waiting])

    bought = await asyncio.gather(*(task() for _ in range(300)))

    assert sum(bought) == UNITS
    assert (await stall.left())["mug"] == 0
    confirmed = [entry["hold_id"] for entry in await stall.entries("outbox") if entry["kind"] == "confirmed"]
    assert len(confirmed) == len(set(confirmed)) == UNITS


async def test_the_last_unit_goes_to_one_of_all_who_ask_in_one_moment(stall: Stall, desks: list[Stall]) -> None:
    naive = Naive(stall, racers=40)
    await naive.stand("cap", "1")
    assert sum(await asyncio.gather(*(naive.take("cap") for _ in range(40)))) > 1

    for number in range(30):
        await stall.redis.hset(stall.sale.keys.stock, "cap", 1)
        replies = await asyncio.gather(
            *(desks[n % CLIENTS].hold(cap=1, by=f"{number} {n}", id_=ids.random_id()) for n in range(40))
        )
        assert names(replies) == ["Held", *["SoldOut"] * 39]
    stall.initial["cap"] = 30


async def test_orders_that_overlap_get_all_their_lines_or_none(stall: Stall, desks: list[Stall]) -> None:
    wishes = [(1 + n % 7, n % 3) for n in range(300)]

    replies = await asyncio.gather(
        *(
            desks[n % CLIENTS].hold(
                by=str(n),
                id_=ids.random_id(),
                more={"units": [stock.Units("mug", mugs), *([stock.Units("cap", caps)] if caps else [])]},
            )
            for n, (mugs, caps) in enumerate(wishes)
        )
    )

    won = [wish for wish, reply in zip(wishes, replies, strict=True) if isinstance(reply, stock.Held)]
    assert 0 < len(won) < len(wishes)
    assert await stall.left() == {"mug": UNITS - sum(m for m, _ in won), "cap": 60 - sum(c for _, c in won)}


async def test_one_request_from_four_processes_is_one_hold(desks: list[Stall]) -> None:
    for _ in range(20):
        hold_id = ids.random_id()
        replies = await asyncio.gather(*(desks[n % CLIENTS].hold(mug=2, id_=hold_id) for n in range(50)))
        assert names(replies) == ["Held", *["HoldKnown"] * 49]


async def test_a_buyers_limit_holds_over_all_processes(stall: Stall, desks: list[Stall]) -> None:
    await stall.set(per_buyer_max=5)

    replies = await asyncio.gather(*(desks[n % CLIENTS].hold(mug=2, cap=1, id_=ids.random_id()) for n in range(40)))

    assert names(replies) == ["Held", *["LimitReached"] * 39]


# --- the deadline -----------------------------------------------------------------------------------------------------


async def test_at_its_deadline_a_hold_is_paid_or_swept_and_never_both(stall: Stall, desks: list[Stall]) -> None:
    naive = Naive(stall, racers=2)
    await naive.stand("hold", "LAPSED")
    assert await together(naive.leave("hold", by="paid"), naive.leave("hold", by="swept")) == [True, True]

    orders = [await stall.held(cap=1, by=str(n)) for n in range(60)]
    now_ms = await stall.now_ms()
    for n, order in enumerate(orders):
        await stall.rewrite(order.hold_id, expires_at_ms=now_ms + n % 40)

    async def buy(order: Order) -> bool:
        """Pay and confirm; whether the hold still stood."""
        if isinstance(await order.pay(), seats.HoldEnded):
            return False
        assert isinstance(await order.confirm(), seats.Confirmed)
        return True

    async def sweep(desk: Stall) -> int:
        """Sweep until nothing is left that may lapse; how many were ended."""
        ended = 0
        while await stall.redis.zcard(stall.sale.keys.deadlines):
            reply = await stock.expire(desk.gate, stall.sale, most=3)
            assert isinstance(reply, seats.Expired)
            ended += reply.count
        return ended

    async def buy_in_order(desk: Stall) -> list[bool]:
        mine = orders[desks.index(desk) :: CLIENTS - 1]
        return [await buy(replace(order, stall=desk)) for order in mine]

    swept, *bought = await together(sweep(desks[-1]), *(buy_in_order(desk) for desk in desks[:-1]))

    sold = sum(sum(each) for each in bought)
    assert sold + swept == 60
    assert (await stall.left())["cap"] == swept


async def test_a_lapsed_hold_is_taken_over_or_paid_by_its_owner_and_never_both(
    stall: Stall, desks: list[Stall]
) -> None:
    naive = Naive(stall, racers=2)
    await naive.stand("hold", "LAPSED")
    assert await together(naive.leave("hold", by="paid"), naive.leave("hold", by="taken over")) == [True, True]
    await stall.held(cap=59)

    for n in range(40):
        owner = replace(await stall.held(cap=1, by=f"owner {n}"), stall=desks[n % CLIENTS])
        await stall.rewrite(owner.hold_id, expires_at_ms=await stall.now_ms() + n % 3)
        paid, taken, other_id = None, None, ""
        while not isinstance(paid, seats.Paying | seats.HoldEnded) or not isinstance(taken, stock.Held):
            other_id = ids.random_id()
            paid, taken = await asyncio.gather(
                owner.pay(), desks[(n + 1) % CLIENTS].hold(cap=1, by=f"other {n}", id_=other_id)
            )
            if isinstance(paid, seats.Paying):
                break
        assert isinstance(paid, seats.Paying) + isinstance(taken, stock.Held) == 1
        # Both ways it goes back, for the next pair.
        if isinstance(taken, stock.Held):
            await Order(stall, other_id, buyer(f"other {n}"), taken).release()
        else:
            await stall.rewrite(owner.hold_id, expires_at_ms=1)
            assert await owner.abandon() == seats.Abandoned("free")


async def test_a_takeover_gives_back_every_line_of_the_hold_that_it_ends(stall: Stall, tmp_path: Path) -> None:
    # The control frees only the first line: a unit is lost for ever.
    control = await open_stall(stall.redis, {"mug": 1, "cap": 1})
    rule = "local variant_ids, quantities, count = sum_lines(lines)\n"
    simpler = without(
        tmp_path,
        "stock/hold",
        stock.HeldAnswer,
        rule,
        instead=rule
        + "free_units = function(freed, many) put_left(freed[1], count_left(freed)[1] + many[freed[1]]) end\n",
    )
    await (await control.held(mug=1, cap=1)).lapse()
    await simpler(control.gate, control.sale.keys, **_asked(control, by="bob"))
    assert await control.left() == {"mug": 0, "cap": 0}
    with pytest.raises(AssertionError):
        await control.check()

    await (await stall.held(mug=UNITS, cap=1)).lapse()
    await stall.held(mug=1, by="bob")
    assert await stall.left() == {"mug": UNITS - 1, "cap": 60}


# --- the two doors ----------------------------------------------------------------------------------------------------


async def test_a_payment_leaves_by_one_door(stall: Stall, desks: list[Stall]) -> None:
    naive = Naive(stall, racers=2)
    await naive.stand("hold", "PAYING")
    assert await together(naive.leave("hold", by="confirmed"), naive.leave("hold", by="abandoned")) == [True, True]

    async def race(n: int) -> tuple[Any, ...]:
        order = await stall.held(mug=2, by=str(n), id_=ids.derive("door", str(n)))
        await order.pay()
        one, other = (replace(order, stall=desks[(n + m) % CLIENTS]) for m in (0, 1))
        asked = [one.confirm(), other.abandon()]
        return tuple(await asyncio.gather(*asked)) if n % 2 else tuple(reversed(await asyncio.gather(*asked[::-1])))

    outcomes = await asyncio.gather(*(race(n) for n in range(60)))

    for confirmed, abandoned in outcomes:
        if isinstance(confirmed, seats.Confirmed):
            assert abandoned == seats.HoldSold(ids.derive("p1"))
        else:
            assert (confirmed, abandoned) == (seats.HoldUnknown(), seats.Abandoned("held"))
    sold = sum(isinstance(confirmed, seats.Confirmed) for confirmed, _ in outcomes)
    bought = [row.split(" ")[0] for row in (await stall.fields("buyers")).values()]
    assert sum(map(int, bought)) == 2 * sold
    assert (await stall.left())["mug"] == UNITS - 120


async def test_a_late_copy_of_a_given_up_payment_does_not_bring_it_back(stall: Stall, tmp_path: Path) -> None:
    # The control forgets which payments have ended: the buyer's first payment, long voided, runs and sells again.
    control = await open_stall(stall.redis)
    answers = seats.Abandoned | seats.HoldSold | seats.HoldUnknown | Unavailable
    simpler = without(tmp_path, "stock/abandon", answers, "hold.payments = with(hold.payments, payment_id)\n")
    voided = await control.held(mug=1)
    await voided.pay("p1")
    given_up: dict[str, Any] = {"hold_id": voided.hold_id, "fence": voided.fence, "payment_id": ids.derive("p1")}
    await simpler(control.gate, control.sale.keys, epoch=1, **given_up)
    assert isinstance(await voided.pay("p1"), seats.Paying)
    assert isinstance(await voided.confirm("p1"), seats.Confirmed)

    order = await stall.held(mug=1)
    await order.pay("p1")
    await order.abandon("p1")
    assert await order.pay("p1") == seats.PaymentEnded()
    assert await order.confirm("p1") == seats.HoldUnknown()


# --- late copies ------------------------------------------------------------------------------------------------------


async def test_copies_of_a_hold_and_its_release_in_any_order_leave_nothing_held(
    stall: Stall, desks: list[Stall]
) -> None:
    async def race(n: int) -> None:
        order = await stall.held(mug=2, id_=ids.derive("copied", str(n)))
        copies = [desks[m % CLIENTS].hold(mug=2, id_=order.hold_id) for m in range(4)]
        releases = [replace(order, stall=desks[m % CLIENTS]).release() for m in range(4)]
        asked = copies + releases
        random.Random(n).shuffle(asked)
        await asyncio.gather(*asked)

    await asyncio.gather(*(race(n) for n in range(60)))

    assert await stall.left() == stall.initial
    assert len([entry for entry in await stall.entries("journal") if entry["kind"] == "released"]) == 60


async def test_copies_of_a_restore_give_units_back_once(stall: Stall, desks: list[Stall], tmp_path: Path) -> None:
    # The control does not remember what it gave back of a hold that it had forgotten: each copy gives it again.
    control = await open_stall(stall.redis)
    rule = '  redis.call("HSET", restored, hold_id, n .. " " .. join_lines(variant_ids, has))\n'
    answers = seats.Restored | seats.HoldUnknown | Unavailable
    simpler = without(tmp_path, "stock/restore", answers, rule, instead="  local _ = restored\n")
    order = await control.sold(mug=2)
    await control.forget(order.hold_id)
    asked: dict[str, Any] = {"epoch": 1, "hold_id": order.hold_id, "fence": 1, "buyer_id": order.buyer_id}
    for _ in range(2):
        await simpler(control.gate, control.sale.keys, **asked, reason="USER", goes_next=0, claims=("mug 2 1",))
    assert (await control.left())["mug"] == 10  # one of them is still sold

    orders = [await stall.sold(mug=3, by=str(n)) for n in range(20)]
    for each in orders[:10]:
        await stall.forget(each.hold_id)
    replies = await asyncio.gather(
        *(replace(each, stall=desks[m]).restore(mug=1) for each in orders for m in range(CLIENTS))
    )

    assert sum(reply.count for reply in replies if isinstance(reply, seats.Restored)) == 40
    assert (await stall.left())["mug"] == UNITS - 20


def _asked(stall: Stall, by: str) -> dict[str, Any]:
    """The arguments of a hold of one mug, for a script that is called by itself."""
    return {
        "epoch": stall.sale.epoch,
        "hold_id": ids.derive("hold", by),
        "buyer_id": buyer(by),
        "queue_no": 0,
        "fingerprint": "f" * 16,
        "lines": ("mug:1",),
    }
