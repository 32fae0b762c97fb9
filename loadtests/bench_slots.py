"""One hot unit: where the one slot of its sale tops out, and what three slots would give.

Several processes of the engine order the same variant through one Valkey; then through a cluster of three, first from
one sale, then with the stock dealt out to three sales that live on different nodes: the simplest buckets there can be.
The CPU time of an order at the store says what a slot bears on a core of its own, whoever else is on this machine.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop
from redis.asyncio import Redis
from redis.crc import key_slot

from engine import ids, rebuild, stock, stock_copies
from engine.sales import Sale, stored_terms
from engine.stores import embedded
from engine.stores.connections import open_redis
from engine.stores.scripts import Gate
from loadtests.bench_engine import spread
from loadtests.results import Row

PROCESSES = (1, 2, 4)
ORDERS = 20_000
ROUNDS = 3
VARIANT = "0" * 32
PRICE = 5000
NODES = 3
SLOTS = 16_384


@dataclass(frozen=True)
class Measured:
    """Orders a second, and the CPU time of one at the store, of the busiest node."""

    per_s: float
    store_us: float


async def slots() -> tuple[list[Row], list[str]]:
    """Orders a second of one variant, by processes and slots."""
    with tempfile.TemporaryDirectory(prefix="lastseat-bench-") as folder:
        with embedded.valkey(Path(folder)) as server:
            one = {count: await _measure([server.url], server.url, 1, count) for count in PROCESSES}
        with embedded.cluster(Path(folder) / "cluster") as url:
            nodes = [f"redis://{address}" for address in urlsplit(url).netloc.split(",")]
            most = PROCESSES[-1]
            of_cluster = {count: await _measure(nodes, url, count, most) for count in (1, NODES)}
    best = max(one.values(), key=lambda measured: measured.per_s)
    rows = [
        Row(
            "hot_unit_slot_per_s",
            value=1e6 / best.store_us,
            unit="orders/s",
            against=f"{best.store_us:.1f} µs of the store's CPU an order, on a core of its own",
        ),
        Row(
            "hot_unit_three_slots_vs_one",
            value=of_cluster[NODES].per_s,
            unit="orders/s",
            against=f"{of_cluster[1].per_s:,.0f} orders/s through one slot of the same cluster, {most} processes",
            ratio=of_cluster[NODES].per_s / of_cluster[1].per_s,
        ),
    ]
    by_count = ", ".join(f"{count}: {measured.per_s:,.0f}" for count, measured in one.items())
    return rows, [f"Orders of one variant a second through one Valkey, by processes of the engine: {by_count}."]


async def _measure(nodes: Sequence[str], url: str, sales_count: int, processes: int) -> Measured:
    """The middle of some rounds."""
    rounds = [await _round(nodes, url, sales_count, processes) for _ in range(ROUNDS)]
    return Measured(
        statistics.median(each.per_s for each in rounds), statistics.median(each.store_us for each in rounds)
    )


async def _round(nodes: Sequence[str], url: str, sales_count: int, processes: int) -> Measured:
    each = ORDERS // processes
    redis = open_redis(url)
    gate = Gate(redis, deadline_s=30.0)
    sale_ids = [await _open(gate, node=node, nodes=len(nodes)) for node in range(sales_count)]
    clients = [Redis.from_url(node) for node in nodes]
    drivers = []
    try:
        for number in range(processes):
            # Each begins at another slot and goes round: every slot has the same share of the load.
            dealt = sale_ids[number % sales_count :] + sale_ids[: number % sales_count]
            command = [sys.executable, "-m", "loadtests.bench_slots", url, str(each), str(number), *dealt]
            drivers.append(
                await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
                )
            )
        for driver in drivers:
            await _line(driver)
        before = [await _cpu_s(client) for client in clients]
        began = time.perf_counter()
        for driver in drivers:
            assert driver.stdin is not None  # noqa: S101 - it was asked for
            driver.stdin.write(b"go\n")
        for driver in drivers:
            await _line(driver)
        took = time.perf_counter() - began
        spent = [await _cpu_s(client) - was for client, was in zip(clients, before, strict=True)]
        sold = sales_count * ORDERS - sum([await _left(gate, sale_id) for sale_id in sale_ids])
        if sold != each * processes:
            raise RuntimeError(f"{each * processes} orders were answered, and {sold} units are gone")
        await asyncio.gather(*[client.flushall() for client in clients])
    finally:
        for driver in drivers:
            if driver.stdin is not None:
                driver.stdin.close()
            await driver.wait()
        await asyncio.gather(redis.aclose(), *[client.aclose() for client in clients])
    # One node bears its share of the orders.
    return Measured(sold / took, max(spent) * 1e6 / (sold / sales_count))


async def _line(driver: asyncio.subprocess.Process) -> None:
    assert driver.stdout is not None  # noqa: S101 - it was asked for
    if not await driver.stdout.readline():
        raise RuntimeError("a driver ended before it was done")


async def _cpu_s(client: Redis) -> float:
    used = await client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


async def _open(gate: Gate, *, node: int, nodes: int) -> str:
    """Write an open sale of one variant straight to the store, in a slot of this node; returns its id."""
    sale = _sale(ids.random_id())
    while key_slot(sale.keys.sale.encode()) * nodes // SLOTS != node:
        sale = _sale(ids.random_id())
    more = ("version", 1, "repeat_window_ms", 3_600_000, "backlog_max", 0)
    await rebuild.CLEAR(gate, sale.keys, epoch=1, admitted=0, terms=(*stored_terms(sale), *more))
    await stock_copies.LOAD_STOCK(gate, sale.keys, epoch=1, rows=(VARIANT, PRICE, ORDERS, 0, ORDERS))
    await rebuild.OPEN(gate, sale.keys, epoch=1)
    return sale.sale_id


async def _left(gate: Gate, sale_id: str) -> int:
    left = await stock.left(gate, _sale(sale_id), [VARIANT])
    if not isinstance(left, dict):
        raise TypeError(f"what is left was answered {left}")
    return left[VARIANT]


def _sale(sale_id: str) -> Sale:
    return Sale(sale_id=sale_id, kind="stock", epoch=1)


async def drive(url: str, count: int, number: int, sale_ids: Sequence[str]) -> None:
    """Order so many units, one each, in turn from each sale: one process of several, which begin together."""
    redis = open_redis(url, connections_max=64)
    gate = Gate(redis, deadline_s=30.0)
    sales = [_sale(sale_id) for sale_id in sale_ids]
    unit = [stock.Units(VARIANT, 1)]

    async def order(n: int) -> None:
        name = f"{number}-{n}"
        sale = sales[n % len(sales)]
        held = await stock.hold(gate, sale, hold_id=f"h{name}", buyer_id=f"b{name}", fingerprint="f", units=unit)
        if not isinstance(held, stock.Held):
            raise TypeError(f"an order was answered {held}")

    await asyncio.gather(*[_left(gate, sale_id) for sale_id in sale_ids])  # connected before it counts
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await spread(count, order)
    print("done", flush=True)
    await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=drive.__doc__)
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("number", type=int)
    parser.add_argument("sale_ids", nargs="+")
    told = parser.parse_args()
    uvloop.run(drive(told.url, told.count, told.number, told.sale_ids))
