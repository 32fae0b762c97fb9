"""Sales at rest: what one costs for which nobody asks, and how soon somebody who buys in one of hundreds is served."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from loadtests.bench_http import BY_BALANCE, headers, parts_of, read_held
from loadtests.cpu import DRIVER, Meter
from loadtests.results import Row
from loadtests.shop import Shop, seat_no, shop

SALES = 500
AT_ONCE = 10
# Until every sale is at rest.
QUIET_AFTER_S = 5.0
MEASURED_S = 10.0
PURCHASES = 40


async def rest() -> tuple[list[Row], list[str]]:
    """CPU that a sale at rest takes a second of API, worker and stores, and the time of a purchase among them."""
    async with shop(processes=1) as running:
        tokens = await running.make_buyers(PURCHASES)
        first, _ = await running.make_sale(10)
        await _purchases(running, first, tokens[:5])  # warm
        sales = [first]
        while len(sales) < SALES:
            made = await asyncio.gather(*[running.make_sale(10) for _ in range(min(AT_ONCE, SALES - len(sales)))])
            sales += [schedule_id for schedule_id, _ in made]
        await asyncio.sleep(QUIET_AFTER_S)
        meter = Meter(await parts_of(running))
        await asyncio.sleep(MEASURED_S)
        spent_ms = {part: spent_s * 1000 / MEASURED_S for part, spent_s in meter.spent_s().items() if part != DRIVER}
        times = [
            taken_ms
            for schedule_id, token in zip(reversed(sales), tokens, strict=False)
            for taken_ms in await _purchases(running, schedule_id, [token])
        ]
    by_part = ", ".join(f"{part} {ms:.0f}" for part, ms in spent_ms.items())
    rows = [
        Row(
            "rest_ms_per_sale",
            value=sum(spent_ms.values()) / SALES,
            unit="ms of CPU a second",
            against=f"of {SALES} sales for which nobody asks, 1 API process, 1 worker and both stores",
        ),
        Row(
            "rest_purchase_p50_ms",
            value=statistics.median(times),
            unit="ms",
            against=f"to pay in one of them, the slowest of {len(times)} took {max(times):.0f}",
        ),
    ]
    return rows, [f"CPU of {SALES} sales at rest in ms a second: {by_part}."]


async def _purchases(running: Shop, schedule_id: str, tokens: Sequence[str]) -> list[float]:
    """Hold a seat of a sale for each of these buyers and pay for it, one after another; how long it took to pay."""
    times = []
    for n, token in enumerate(tokens):
        path = f"/v1/schedules/{schedule_id}/reservations"
        held = await running.client.request("POST", path, headers=headers(token), body={"seats": [seat_no(n)]})
        path = f"/v1/reservations/{read_held(held.body).reservation_id}/payments"
        began = time.perf_counter()
        paid = await running.client.request("POST", path, headers=headers(token), body=BY_BALANCE)
        times.append((time.perf_counter() - began) * 1000)
        if paid.status != 201:
            raise RuntimeError(f"a payment was answered {paid.status} {paid.body.decode()[:300]}")
    return times
