"""Goods over HTTP: orders of one hot unit against their ceilings, and orders paid to the commit.

Two API processes stand on both sides of each ratio. What was answered is counted in Postgres after every run.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from loadtests.bench_http import (
    BY_BALANCE,
    JOURNEY_CALLERS,
    PAID,
    Journeys,
    Measured,
    cost_of,
    drive,
    ending_of,
    headers,
    parts_of,
)
from loadtests.client import Answer
from loadtests.cpu import Meter
from loadtests.results import Row, ratio_row
from loadtests.shop import PRICE, Shop, shop

ROUNDS = 3
PROCESSES = 2
REQUESTS = 6_000
# The worker is up to 0.15 seconds behind: of a longer run less of its work is left for whoever is measured next.
HOT_ROUNDS = 5
HOT_REQUESTS = 12_000
# A row locked and committed for each order is slow: fewer of them take as long.
ROW_REQUESTS = 1_000
# Longer than any run: what is held stays held.
HOLD_S = 3600
# As many at once as it takes to keep both cores busy: with 64, each side waits for the other a quarter of the time.
CALLERS = 256

FRAMEWORK = f"by a handler of the framework, {PROCESSES} API processes, {CALLERS} callers"


class Bench:
    """One shop and its crowd; each method measures one thing once."""

    def __init__(self, running: Shop, tokens: Sequence[str]) -> None:
        self._running = running
        self._tokens = tokens

    async def orders(self) -> Journeys:
        """Everybody orders one unit, all of the one variant of a new drop; ends when Postgres has every order."""
        running, count = self._running, len(self._tokens)
        sale_id, variant_id = await running.make_drop(count, hold_s=HOLD_S)
        await running.settle()
        meter = Meter(await parts_of(running))
        per_s = await self.send("/v1/orders", variant_id, count)
        await _check(running, HELD, sale_id, {"orders": count, "units": count}, within_s=60.0)
        return Journeys(count, per_s, {}, [], meter.spent_s())

    async def send(self, path: str, variant_id: str, count: int) -> float:
        """Order one unit for each of so many; returns how many a second were answered."""
        client, body = self._running.client, {"lines": [{"variant_id": variant_id, "quantity": 1}]}
        requests = [client.encode("POST", path, headers=headers(token), body=body) for token in self._tokens[:count]]
        return (await drive(client, requests, 201, callers=CALLERS)).per_s


# What orders are compared with: a no-op, and a row counted down; by the framework and by our own face.
TWINS: Mapping[str, tuple[str, int]] = {
    "noop": ("/twins/framework/orders", HOT_REQUESTS),
    "rows": ("/twins/framework/order_rows", ROW_REQUESTS),
    "bare_noop": ("/twins/orders", HOT_REQUESTS),
    "bare_rows": ("/twins/order_rows", ROW_REQUESTS),
}


async def hot_unit() -> tuple[list[Row], list[str]]:
    """Orders of one variant that takes all the load, against the no-op and against a row in Postgres."""
    async with shop(processes=PROCESSES) as running:
        tokens = await running.make_buyers(HOT_REQUESTS)
        _, variant_id = await running.make_drop(1)
        row = {"variant_id": variant_id, "quantity": 4 * HOT_ROUNDS * ROW_REQUESTS}
        await running.client.request("POST", "/twins/units", headers=headers(tokens[0]), body=row)
        bench = Bench(running, tokens)
        for path, count in TWINS.values():  # warm
            await bench.send(path, variant_id, count // 4)
        await bench.orders()
        found: dict[str, list[float]] = {name: [] for name in TWINS}
        runs: list[Journeys] = []
        for _ in range(HOT_ROUNDS):
            for name, (path, count) in TWINS.items():
                found[name].append(await bench.send(path, variant_id, count))
            runs.append(await bench.orders())
    middle = {name: statistics.median(values) for name, values in found.items()}
    middle["orders"] = statistics.median(run.per_s for run in runs)
    rows = [
        ratio_row(
            "order_hot_vs_noop",
            middle["orders"],
            middle["noop"],
            unit="orders/s",
            against=f"POST no-op {FRAMEWORK}",
            wanted=0.7,
        ),
        ratio_row(
            "order_hot_vs_pg_row",
            middle["orders"],
            middle["rows"],
            unit="orders/s",
            against=f"a row counted down, order and line inserted in one transaction through a pool {FRAMEWORK}",
            wanted=4.0,
        ),
    ]
    bare = (
        f"By our own face, without the framework's handlers: POST no-op of an order {middle['bare_noop']:,.0f}/s, a "
        f"row counted down {middle['bare_rows']:,.0f}/s (orders of the hot unit are "
        f"{middle['orders'] / middle['bare_noop']:.2f} of that no-op and "
        f"{middle['orders'] / middle['bare_rows']:.2f} of that row)."
    )
    return rows, [bare, cost_of(runs)]


# To the commit --------------------------------------------------------------------------------------------------------


async def paid_orders() -> tuple[list[Row], list[str]]:
    """Orders of the hot unit with their payment by balance, each in Postgres when it is answered."""
    async with shop(processes=PROCESSES, connections_max=JOURNEY_CALLERS) as running:
        tokens = await running.make_buyers(REQUESTS)
        await _buy(running, tokens[: REQUESTS // 4])  # warm
        runs = [await _buy(running, tokens) for _ in range(ROUNDS)]
    row = Row(
        "order_paid_per_s",
        value=statistics.median(run.per_s for run in runs),
        unit="orders/s",
        against=f"{PROCESSES} API processes, 1 worker, {JOURNEY_CALLERS} buyers at once, 1 variant, every count right",
    )
    steps = []
    for name in ("order", "pay"):
        measured = Measured(0.0, [each for run in runs for each in run.times_ms[name]])
        steps.append(f"{name} {measured.percentile(0.5):.0f}/{measured.percentile(0.99):.0f}")
    return [row], [f"Orders paid, p50/p99 of each step in ms: {', '.join(steps)}.", cost_of(runs)]


async def _buy(running: Shop, tokens: Sequence[str]) -> Journeys:
    """Everybody orders a unit and pays it by balance; ends when every payment is durable, and counts the rows."""
    sale_id, variant_id = await running.make_drop(len(tokens))
    await running.settle()
    body = {"lines": [{"variant_id": variant_id, "quantity": 1}]}
    client, waiting = running.client, iter(tokens)
    times: dict[str, list[float]] = {"order": [], "pay": []}
    endings: Counter[str] = Counter()

    async def step(name: str, path: str, token: str, body: object) -> Answer:
        began = time.perf_counter()
        answer = await client.request("POST", path, headers=headers(token), body=body)
        times[name].append((time.perf_counter() - began) * 1000)
        return answer

    async def caller() -> None:
        for token in waiting:
            ordered = await step("order", "/v1/orders", token, body)
            if ordered.status != 201:
                endings[f"order {ordered.status} {ordered.body.decode()[:120]}"] += 1
                continue
            paid = await step("pay", f"/v1/orders/{ordered.json()['order_id']}/payments", token, BY_BALANCE)
            endings[await ending_of(client, token, paid)] += 1

    meter = Meter(await parts_of(running))
    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(JOURNEY_CALLERS)])
    took = time.perf_counter() - began
    cpu_s = meter.spent_s()
    if endings != {PAID: len(tokens)}:
        raise RuntimeError(f"of {len(tokens)} orders: {dict(endings)}")
    count = len(tokens)
    wanted = {**dict.fromkeys(("orders", "units", "items", "payments"), count), "left": 0, "money": count * PRICE}
    await _check(running, PAID_ROWS, sale_id, wanted)
    return Journeys(count, count / took, times, [], cpu_s)


PAID_ROWS = """
SELECT
  (SELECT count(*) FROM orders WHERE sale_id = $1 AND status = 'PAID') AS orders,
  (SELECT sum(quantity) FROM order_items WHERE sale_id = $1 AND status = 'SOLD') AS units,
  (SELECT count(*) FROM user_items JOIN orders USING (order_id) WHERE sale_id = $1) AS items,
  (SELECT count(*) FROM payments WHERE sale_id = $1 AND status = 'SUCCESS') AS payments,
  (SELECT sum(quantity) FROM product_variants WHERE sale_id = $1) AS "left",
  (SELECT sum(amount) FROM balance_history JOIN payments USING (payment_id) WHERE sale_id = $1) AS money
"""
HELD = """
SELECT
  (SELECT count(*) FROM orders WHERE sale_id = $1 AND status = 'PENDING') AS orders,
  (SELECT sum(quantity) FROM order_items WHERE sale_id = $1 AND status = 'HELD') AS units
"""


async def _check(running: Shop, query: str, sale_id: str, wanted: Mapping[str, int], *, within_s: float = 0.0) -> None:
    """Raise RuntimeError unless Postgres has exactly what was told, by now or a little later."""
    until = time.monotonic() + within_s
    async with running.stores() as (_, postgres):
        while True:
            found = await postgres.fetchrow(query, sale_id)
            if found is not None and dict(found) == wanted:
                return
            if time.monotonic() >= until:
                raise RuntimeError(f"Postgres has {found}, and {dict(wanted)} was told")
            await asyncio.sleep(0.2)
