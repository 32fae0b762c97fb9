"""Rushes over HTTP, through processes that are killed meanwhile: exactly what there is, is sold and issued.

The first test is the control: a shop that reads, then writes, sells more than it has in the same harness.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from cli import processes
from engine.settings import Settings
from loadtests.audit import audit, describe
from loadtests.client import Answer, Client, NoAnswer
from loadtests.shop import Shop
from tests.workers.working import until

UNITS, ORDERS = 500, 5_000
COUPONS, ISSUES = 1_000, 10_000
BUYERS = 1_000
AT_ONCE = 200
ATTEMPTS_MAX = 400
# How much is sold or issued when a process of each kind is killed, more or less.
KILLED_AFTER = {"api": (60, 240, 420), "worker": (120, 330)}
KILLED_AFTER_COUPONS = {"api": (100, 450, 800), "worker": (250, 600)}


@dataclass
class Faces:
    """Two API processes and two workers, each of which may be killed at any moment and comes back."""

    environ: dict[str, str]
    logs: Path
    ports: tuple[int, int]
    running: dict[tuple[str, int], "subprocess.Popen[bytes]"] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    dice: random.Random = field(default_factory=lambda: random.Random(11))
    due: list[tuple[int, str]] = field(default_factory=list)

    def plan(self, moments: Mapping[str, Sequence[int]]) -> None:
        """Say after how much a process of each kind is killed; which one, and when about then, is up to the dice."""
        self.due = sorted((after + self.dice.randrange(40), kind) for kind, times in moments.items() for after in times)

    def kill_after(self, done: int) -> None:
        """Kill the next one if so much is enough for it."""
        if self.due and done >= self.due[0][0]:
            self.kill(self.due.pop(0)[1], self.dice.randrange(2))

    def start(self, kind: str, at: int) -> None:
        """Start one of them, in a group of its own: what it starts dies with it."""
        command = ["loadtests.twins"] if kind == "api" else ["cli.main", "worker"]
        with (self.logs / f"{kind}-{at}.log").open("ab") as log:
            self.running[kind, at] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**self.environ, "LASTSEAT_PORT": str(self.ports[at])},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, kind: str, at: int) -> None:
        """End one of them and all that it started, at once and without a word, and start another in its place."""
        self.end(kind, at)
        self.killed[kind] += 1
        self.start(kind, at)

    def end(self, kind: str, at: int) -> None:
        """End one of them."""
        process = self.running.pop((kind, at))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass
class Doors:
    """Both API processes, as a client sees them: who gets no answer knocks at the other one, with the same key."""

    faces: Faces
    clients: tuple[Client, Client]
    shop: Shop
    redis: Redis
    postgres: asyncpg.Pool

    async def ask(self, method: str, path: str, token: str, key: str, body: object = None) -> Answer:
        """Ask until it is answered for good."""
        headers = {"authorization": f"Bearer {token}", "idempotency-key": key}
        for attempt in range(ATTEMPTS_MAX):
            client = self.clients[(hash(key) + attempt) % 2]
            try:
                answer = await client.request(method, path, headers=headers, body=body)
            except NoAnswer:
                await asyncio.sleep(0.05)  # what was killed is being started again, and tells nobody when it listens
                continue
            if answer.status not in (429, 503):
                return answer
            await asyncio.sleep(0.1)  # told to ask again: what it waits for is in other processes
        raise AssertionError(f"{method} {path} was never answered")

    async def is_decided(self, payment_id: str) -> bool:
        """Whether no payment of this id runs any more, or yet."""
        running: int = await self.postgres.fetchval(
            "SELECT count(*) FROM payments WHERE payment_id = $1 AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')",
            payment_id,
        )
        return running == 0

    async def is_issued(self, user_coupon_id: str) -> bool:
        """Whether this coupon is durable."""
        rows = await self.postgres.fetch("SELECT FROM user_coupons WHERE user_coupon_id = $1", user_coupon_id)
        return len(rows) == 1

    async def check(self) -> None:
        """Assert every invariant."""
        report = await audit(self.redis, self.postgres, settle_s=30.0)
        assert report.verdict == "true", describe(report)


@pytest.fixture
async def doors(
    redis: Redis, redis_url: str, postgres: asyncpg.Pool, postgres_url: str, tmp_path: Path
) -> AsyncIterator[Doors]:
    settings = Settings(
        redis_url=redis_url,
        queue_redis_url=redis_url,
        postgres_url=postgres_url,
        data_dir=str(tmp_path),
        workers=1,
        admin_key="lsk_rushes_and_nothing_else",
    )
    ports = (processes.free_port("127.0.0.1"), processes.free_port("127.0.0.1"))
    # What they leave behind when they are killed is left there.
    faces = Faces({**os.environ, **settings.to_environment(), "TMPDIR": str(tmp_path)}, tmp_path, ports)
    try:
        for kind in ("api", "worker"):
            for at in (0, 1):
                faces.start(kind, at)
        async with Client("127.0.0.1", ports[0]) as first, Client("127.0.0.1", ports[1]) as second:
            for client in (first, second):
                await until_ready(client)
            shop = Shop(first, tmp_path, settings, {})
            yield Doors(faces, (first, second), shop, redis, postgres)
    finally:
        for kind, at in list(faces.running):
            faces.end(kind, at)


async def until_ready(client: Client) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(NoAnswer):
                if (await client.request("GET", "/health/ready")).status == 200:
                    return
            await asyncio.sleep(0.05)


async def spread(count: int, work: Callable[[int], Any]) -> None:
    """Do numbered work, so much of it at once."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as callers:
        for _ in range(AT_ONCE):
            callers.create_task(caller())


@pytest.mark.timeout(120)
async def test_five_thousand_orders_sell_exactly_five_hundred_while_processes_are_killed(doors: Doors) -> None:
    tokens = await doors.shop.make_buyers(BUYERS)
    sold_by_the_twin = await sell_by_the_twin(doors, tokens)
    assert sold_by_the_twin > 20

    sale_id, variant_id = await doors.shop.make_drop(UNITS)
    body = {"lines": [{"variant_id": variant_id, "quantity": 1}]}
    doors.faces.plan(KILLED_AFTER)
    told: Counter[str] = Counter()
    paid: list[str] = []

    async def buy(n: int) -> None:
        token = tokens[n % BUYERS]
        ordered = await doors.ask("POST", "/v1/orders", token, f"order-{n}", body)
        told[f"order {ordered.status}"] += 1
        if ordered.status != 201:
            return
        order_id = ordered.json()["order_id"]
        doors.faces.kill_after(told["order 201"])
        for attempt in range(ATTEMPTS_MAX):
            answer = await doors.ask(
                "POST", f"/v1/orders/{order_id}/payments", token, f"pay-{n}-{attempt}", {"method": "BALANCE"}
            )
            while answer.status == 202:
                # Whoever takes over from a process that was killed waits for its lease first.
                await until(partial(doors.is_decided, answer.json()["payment_id"]), within_s=60)
                answer = await doors.ask(
                    "POST", f"/v1/orders/{order_id}/payments", token, f"pay-{n}-{attempt}", {"method": "BALANCE"}
                )
            if answer.status == 201:
                paid.append(answer.json()["payment_id"])
                return
        raise AssertionError(f"order {n} was never paid")

    await spread(ORDERS, buy)

    assert told == {"order 201": UNITS, "order 409": ORDERS - UNITS}
    assert doors.faces.killed == {kind: len(moments) for kind, moments in KILLED_AFTER.items()}
    assert len(set(paid)) == UNITS
    stands = await doors.postgres.fetchrow(
        "SELECT (SELECT count(*) FROM orders WHERE sale_id = $1 AND status = 'PAID') AS orders, "
        "(SELECT count(*) FROM payments WHERE sale_id = $1 AND status = 'SUCCESS') AS payments, "
        "(SELECT quantity FROM product_variants WHERE sale_id = $1) AS left",
        sale_id,
    )
    assert stands is not None
    assert tuple(stands) == (UNITS, UNITS, 0)
    await doors.check()


async def sell_by_the_twin(doors: Doors, tokens: Sequence[str]) -> int:
    """Sixty who want one of twenty units of the twin; how many it says it sold.

    Whoever reads and then writes may by chance be left alone between the two: it gets ten goes to sell too many.
    """
    sold = 0
    for go in range(10):
        variant_id = f"{go:x}" * 32
        await doors.ask("POST", "/twins/units", tokens[0], f"units-{go}", {"variant_id": variant_id, "quantity": 20})
        body = {"lines": [{"variant_id": variant_id, "quantity": 1}]}
        answers = await asyncio.gather(
            *(doors.ask("POST", "/twins/naive_orders", tokens[n], f"naive-{go}-{n}", body) for n in range(60))
        )
        sold = [answer.status for answer in answers].count(201)
        if sold > 20:
            break
    return sold


@pytest.mark.timeout(180)
async def test_ten_thousand_requests_issue_exactly_a_thousand_coupons_while_processes_are_killed(doors: Doors) -> None:
    tokens = await doors.shop.make_buyers(ISSUES // 4)
    coupon_id = await doors.shop.make_coupons(COUPONS)
    doors.faces.plan(KILLED_AFTER_COUPONS)
    issued: set[tuple[str, str]] = set()
    told: Counter[int] = Counter()

    async def ask(n: int) -> None:
        token = tokens[n % len(tokens)]
        answer = await doors.ask("POST", f"/v1/coupons/{coupon_id}/issues", token, f"issue-{n}", {})
        while answer.status == 202:
            # Whoever takes over from a worker that was killed waits for its lease first.
            await until(partial(doors.is_issued, answer.json()["user_coupon_id"]), within_s=60)
            answer = await doors.ask("POST", f"/v1/coupons/{coupon_id}/issues", token, f"issue-{n}", {})
        told[answer.status] += 1
        if answer.status in (200, 201):
            issued.add((token, answer.json()["user_coupon_id"]))
            doors.faces.kill_after(len(issued))

    await spread(ISSUES, ask)

    assert doors.faces.killed == {kind: len(moments) for kind, moments in KILLED_AFTER_COUPONS.items()}
    assert told.total() == ISSUES
    assert told.keys() <= {200, 201, 409}
    assert len(issued) == len({token for token, _ in issued}) == COUPONS
    assert told[201] <= COUPONS <= told[200] + told[201]
    assert await doors.postgres.fetchval("SELECT count(*) FROM user_coupons WHERE coupon_id = $1", coupon_id) == COUPONS
    assert await doors.postgres.fetchval("SELECT quantity FROM coupons WHERE coupon_id = $1", coupon_id) == 0
    await doors.check()
