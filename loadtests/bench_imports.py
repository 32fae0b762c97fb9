"""How long it takes to put a hall on sale: one request with a table of seats, until anybody may hold them."""

import statistics
import time

from loadtests.results import Row
from loadtests.shop import PRICE, Shop, shop

SEATS = 10_000
ROUNDS = 5
PER_ROW = 40
WANTED_S = 2.0


async def imports() -> Row:
    """Import a hall of 10,000 seats several times over HTTP; answers the middle one of the times."""
    table = _table(SEATS)
    async with shop() as running:
        times = [await _import(running, table) for _ in range(ROUNDS)]
    return Row(
        "import_10k_seats_s",
        value=statistics.median(times),
        unit="s",
        against=f"one CSV over HTTP, written to both stores; slowest {max(times):.2f} s of {ROUNDS}",
        at_most=WANTED_S,
    )


async def _import(running: Shop, table: bytes) -> float:
    concert = await running.order("POST", "/v1/admin/concerts", {"title": "Import"})
    path = f"/v1/admin/concerts/{concert['concert_id']}/schedules?start_at=2030-01-01T20:00:00Z"
    began = time.perf_counter()
    made = await running.order("POST", path, table, content_type="text/csv")
    took = time.perf_counter() - began
    if made["seats_total"] != SEATS:
        raise RuntimeError(f"wanted {SEATS} seats, got {made['seats_total']}")
    return took


def _table(seats: int) -> bytes:
    """A hall with rows of forty seats, some of them accessible, in two categories."""
    lines = ["section,row,number,category,price,accessible,blocked"]
    places = [(n // PER_ROW + 1, n % PER_ROW + 1) for n in range(seats)]
    lines += [
        f"Stalls,{row},{number},{'R' if row % 10 else 'S'},{PRICE},{'true' if number == 1 else ''},"
        for row, number in places
    ]
    return "\n".join(lines).encode()
