"""Every figure in one run on one machine: ``make bench`` prints the table and writes ``bench.json``."""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from engine.processes import take_turns, tame_collector
from loadtests import (
    bench_coupons,
    bench_drain,
    bench_engine,
    bench_goods,
    bench_holding,
    bench_http,
    bench_imports,
    bench_maps,
    bench_rest,
    bench_slots,
)
from loadtests.results import Row, print_table, write

Part = Callable[[], Coroutine[Any, Any, tuple[list[Row], list[str]]]]


async def _engine() -> tuple[list[Row], list[str]]:
    return [await bench_engine.holds(appendonly=False), await bench_engine.holds(appendonly=True)], []


async def _line() -> tuple[list[Row], list[str]]:
    return await bench_engine.line(), []


async def _persist() -> tuple[list[Row], list[str]]:
    return [await bench_engine.persist()], []


async def _holding() -> tuple[list[Row], list[str]]:
    return [*await bench_holding.best_available(), *await bench_holding.expiry()], []


async def _imports() -> tuple[list[Row], list[str]]:
    return [await bench_imports.imports()], []


PARTS: dict[str, Part] = {
    "engine": _engine,
    "http": bench_http.requests_and_polls,
    "journeys": bench_http.whole_journeys,
    "cards": bench_http.card_journeys,
    "hot": bench_goods.hot_unit,
    "slots": bench_slots.slots,
    "orders": bench_goods.paid_orders,
    "drain": bench_drain.drained_orders,
    "coupons": bench_coupons.coupons,
    "imports": _imports,
    "maps": bench_maps.maps,
    "holding": _holding,
    "rest": bench_rest.rest,
    "persist": _persist,
    "line": _line,
}


def measure(name: str) -> tuple[list[Row], list[str]]:
    """Run one part."""
    # The driver shares the machine with what it measures: looking for garbage in cycles was a tenth of what it takes.
    tame_collector()
    return uvloop.run(PARTS[name]())


def main() -> int:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all of them unless named")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    chosen = parser.parse_args()
    take_turns()  # as `lastseat` does: also the driver, the twins and the stores, which are measured beside it
    if unknown := set(chosen.parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    notes: list[str] = []
    # Each in a process of its own, so that none drives with what the one before it left in memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for name in chosen.parts or PARTS:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            measured, said = processes.submit(measure, name).result()
            rows += measured
            notes += said
    print_table(rows, notes)
    write(rows, chosen.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
