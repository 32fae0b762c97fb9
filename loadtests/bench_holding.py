"""Holding the best seats against holding seats by name, and the sweep of many lapsed holds, by the engine itself."""

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from engine import ids, offers, rebuild, seat_copies, seats, wishes
from engine.catalogue import Offering, Seat
from engine.sales import Sale, stored_terms
from engine.stores.scripts import Gate
from loadtests.bench_engine import spread, store
from loadtests.results import Row, ratio_row

SEATS = 50_000
ROW = 50
PAIRS = 1_000
ROUNDS = 5
LAPSED = 50_000
SWEEPS = 3
# As many as the worker ends in one call.
SWEPT_AT_ONCE = 25
SOLD_AT_ONCE = 500
SLOWEST_MAX_MS = 5.0

Wish = Callable[[int], Any]


def hall(seats_total: int) -> list[Seat]:
    """Rows of fifty, all alike."""
    return [
        Seat(section="A", row=str(at // ROW + 1), number=at % ROW + 1, category="STANDARD", price=5000)
        for at in range(seats_total)
    ]


async def open_hall(gate: Gate, listed: list[Seat], sold: frozenset[str]) -> Sale:
    """Write an open sale with a floor straight to the store; what is sold is loaded as a rebuild loads it."""
    sale = Sale(sale_id=ids.random_id(), epoch=1)
    more = ("version", 1, "repeat_window_ms", 3_600_000, "backlog_max", 0, "has_floor", 1)
    await rebuild.CLEAR(gate, sale.keys, epoch=1, admitted=0, terms=(*stored_terms(sale), *more))
    plan = offers.draw(sale.sale_id, listed, Offering(), sold)
    for name, part in plan.parts():
        await seat_copies.LOAD_OFFER(gate, sale.keys, epoch=1, name=name, rows=part)
    rows = [(seat_no, record, 0) for seat_no, record in plan.prices.items()]
    for at in range(0, len(rows), 1000):
        flat = [value for row in rows[at : at + 1000] for value in row]
        await seat_copies.LOAD_SEATS(gate, sale.keys, epoch=1, rows=flat)
    gone = sorted(sold)
    for at in range(0, len(gone), SOLD_AT_ONCE):
        flat = [value for seat_no in gone[at : at + SOLD_AT_ONCE] for value in _sold(seat_no)]
        await seat_copies.LOAD_HOLDS(gate, sale.keys, epoch=1, rows=flat)
    await rebuild.OPEN(gate, sale.keys, epoch=1)
    return sale


def _sold(seat_no: str) -> tuple[str | int, ...]:
    """A row of `sales/load_holds`: this seat, sold to somebody long ago."""
    hold_id = ids.derive("sold", seat_no)
    return (hold_id, 0, 0, "SOLD", hold_id, 1, 0, "f", 1, 2, hold_id, 0, "", 5000, seat_no, "5000", "", "")


def adjacent_pairs(listed: list[Seat], sold: frozenset[str]) -> list[tuple[str, str]]:
    """Pairs of free seats side by side, no seat twice."""
    pairs, at = [], 0
    while at + 1 < len(listed):
        one, other = listed[at], listed[at + 1]
        fits = one.row == other.row and not {one.seat_no, other.seat_no} & sold
        if fits:
            pairs.append((one.seat_no, other.seat_no))
        at += 2 if fits else 1
    return pairs


async def _pairs(gate: Gate, sale: Sale, pairs: list[tuple[str, str]] | None, count: int) -> float:
    """Pairs held a second: those named, or the best."""

    async def hold(n: int) -> None:
        asked: dict[str, Any] = {"hold_id": ids.derive("h", str(n)), "buyer_id": ids.derive("b", str(n))}
        if pairs is not None:
            held: object = await seats.hold(gate, sale, fingerprint="f", seat_nos=pairs[n], **asked)
        else:
            held = await wishes.hold_best(gate, sale, fingerprint="f", best=wishes.Best(quantity=2), **asked)
        if not isinstance(held, seats.Held | wishes.HeldBest):
            raise TypeError(f"a pair was answered {held}")

    return await spread(count, hold)


async def best_available(*, seats_total: int = SEATS, rounds: int = ROUNDS) -> list[Row]:
    """Reserving the best pairs against reserving pairs by name, in an empty hall and in one that is nearly sold out."""
    listed = hall(seats_total)
    shuffled = random.Random(7).sample(listed, len(listed))
    rows = []
    for name, sold in (
        ("best_available_vs_named_empty", frozenset[str]()),
        ("best_available_vs_named_95", frozenset(seat.seat_no for seat in shuffled[: len(listed) * 95 // 100])),
    ):
        pairs = random.Random(8).sample(every := adjacent_pairs(listed, sold), len(every))
        count = min(PAIRS, len(pairs))
        best, named = [], []
        async with store(appendonly=False) as (gate, _url):
            for _ in range(rounds):
                named.append(await _pairs(gate, await open_hall(gate, listed, sold), pairs, count))
                best.append(await _pairs(gate, await open_hall(gate, listed, sold), None, count))
                await gate.redis.flushall()
        rows.append(
            ratio_row(
                name,
                statistics.median(best),
                statistics.median(named),
                unit="pairs/s",
                against=f"{count:,} pairs by name, one process, {seats_total:,} seats, {len(sold):,} of them sold",
                wanted=0.5,
            )
        )
    return rows


async def expiry(*, lapsed: int = LAPSED) -> list[Row]:
    """How long a sweep of many lapsed holds takes, and its slowest script: the medians of some rounds.

    The slowest of thousands is slow where the machine was taken away for a moment, which is no script's doing.
    """
    rounds = [await _sweep(lapsed) for _ in range(SWEEPS)]
    took_s, slowest_ms = (statistics.median(figures) for figures in zip(*rounds, strict=True))
    return [
        Row(
            "expire_50k_s",
            value=took_s,
            unit="s",
            against=f"{lapsed:,} lapsed holds, {SWEPT_AT_ONCE} a call",
            at_most=5,
        ),
        Row(
            "expire_slowest_script_ms",
            value=slowest_ms,
            unit="ms",
            against=f"the slowest of {lapsed // SWEPT_AT_ONCE:,} calls, by the store's own log, the median of "
            f"{SWEEPS} sweeps",
            at_most=SLOWEST_MAX_MS,
        ),
    ]


async def _sweep(lapsed: int) -> tuple[float, float]:
    """Seconds that one sweep takes, and milliseconds of its slowest script."""
    async with store(appendonly=False) as (gate, _url):
        sale = await open_hall(gate, hall(lapsed), frozenset())
        await gate.redis.hset(sale.keys.sale, "hold_ms", 1)

        async def hold(n: int) -> None:
            seat_no = f"A-{n // ROW + 1}-{n % ROW + 1}"
            hold_id, buyer_id = ids.derive("h", str(n)), ids.derive("b", str(n))
            held = await seats.hold(
                gate, sale, hold_id=hold_id, buyer_id=buyer_id, fingerprint="f", seat_nos=(seat_no,)
            )
            if not isinstance(held, seats.Held):
                raise TypeError(f"a hold was answered {held}")

        await spread(lapsed, hold)
        await gate.redis.config_set("slowlog-log-slower-than", 500)
        await gate.redis.config_set("slowlog-max-len", 10_000)
        await gate.redis.slowlog_reset()
        await asyncio.sleep(0.01)
        begun, ended = time.perf_counter(), 0
        while True:
            reply = await seats.expire(gate, sale, most=SWEPT_AT_ONCE)
            if not isinstance(reply, seats.Expired):
                raise TypeError(f"a sweep was answered {reply}")
            ended += reply.count
            if not reply.left:
                break
        took_s = time.perf_counter() - begun
        slow = await gate.redis.slowlog_get(10_000)
        if ended != lapsed:
            raise RuntimeError(f"{ended} of {lapsed} holds were ended")
    slowest_us = max([entry["duration"] for entry in slow if entry["command"].startswith(b"EVAL")], default=0)
    return took_s, slowest_us / 1000
