"""Coupons over HTTP: issued ones, told after their commit, and refused ones, counted apart."""

import statistics
from collections.abc import Sequence

from loadtests.bench_http import Bench, Measured, drive, headers
from loadtests.results import Row
from loadtests.shop import Shop, shop

ROUNDS = 3
USERS = 6_000
PROCESSES = 2
# As many as keep both processes busy while each of them waits for a commit.
CALLERS = 512
NOOP = f"POST no-op by a handler of the framework, {PROCESSES} API processes, {CALLERS} callers"


async def coupons() -> tuple[list[Row], list[str]]:
    """Issues a second, each durable when it is told, and refusals a second, against the POST no-op."""
    async with shop(processes=PROCESSES, connections_max=CALLERS) as running:
        tokens = await running.make_buyers(USERS)
        bench = Bench(running, tokens)
        found: dict[str, list[float]] = {"noop": [], "issued": [], "refused": []}
        times_ms: list[float] = []
        await _ask(running, tokens, await _make_source(running, USERS), 201)  # warm
        for _ in range(ROUNDS):
            found["noop"].append((await bench.noop_posts(callers=CALLERS)).per_s)
            issued = await _ask(running, tokens, await _make_source(running, USERS), 201)
            found["issued"].append(issued.per_s)
            times_ms += issued.times_ms
            gone = await _make_source(running, 1)
            await _ask(running, tokens[:1], gone, 201)
            found["refused"].append((await _ask(running, tokens[1:], gone, 409)).per_s)
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        _row("coupon_issue_vs_noop", middle["issued"], middle["noop"], "issues/s"),
        _row("coupon_refusal_vs_noop", middle["refused"], middle["noop"], "refusals/s"),
    ]
    whole = Measured(middle["issued"], times_ms)
    waited = f"{whole.percentile(0.5):.0f}/{whole.percentile(0.99):.0f}"
    return rows, [f"A coupon from the request to its commit, p50/p99 in ms with {CALLERS} callers: {waited}."]


def _row(name: str, ours: float, theirs: float, unit: str) -> Row:
    return Row(name, value=ours, unit=unit, against=f"{theirs:,.0f} req/s: {NOOP}", ratio=ours / theirs)


async def _make_source(running: Shop, quantity: int) -> str:
    coupon_id = await running.make_coupons(quantity)
    await running.settle()
    return coupon_id


async def _ask(running: Shop, tokens: Sequence[str], coupon_id: str, status: int) -> Measured:
    """One request of each user; raises RuntimeError for any answer but this one."""
    path = f"/v1/coupons/{coupon_id}/issues"
    requests = [running.client.encode("POST", path, headers=headers(token), body={}) for token in tokens]
    return await drive(running.client, requests, status, callers=CALLERS)
