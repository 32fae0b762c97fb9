"""The HTTP face against its own ceilings, and whole journeys to the commit; everything in one run, over real HTTP."""

import asyncio
import itertools
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec
from redis.asyncio import Redis

from loadtests.client import Answer, Client
from loadtests.cpu import Meter, parent_of
from loadtests.results import Row, ratio_row
from loadtests.shop import PRICE, Shop, seat_no, shop

ROUNDS = 5
REQUESTS = 6_000
# What holds and joins leave for the worker is done by then: whoever is measured next does not pay for it.
REST_S = 0.5
# The minute when everybody wants the same: with 64 at once one process waits for the store a third of its time.
CALLERS = 256
JOURNEY_ROUNDS = 3
# A round begins with everybody in one step and ends with few: so long that this is a twentieth of it, and not a tenth.
JOURNEYS = 20_000
CARD_JOURNEYS = 4_000
JOURNEY_CALLERS = 2048
JOURNEY_PROCESSES = 2

_keys = itertools.count()


@dataclass
class Measured:
    """A rate, and the time of each request in milliseconds."""

    per_s: float
    times_ms: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """The time that this share of the requests stayed within."""
        times = sorted(self.times_ms)
        return times[min(len(times) - 1, int(len(times) * share))]


async def drive(client: Client, requests: Sequence[bytes], status: int, *, callers: int = CALLERS) -> Measured:
    """Send prepared requests from so many callers; raises RuntimeError for any answer but the one wanted."""
    numbers = iter(range(len(requests)))
    times: list[float] = []

    async def caller() -> None:
        for n in numbers:
            began = time.perf_counter()
            answer = await client.send(requests[n])
            times.append((time.perf_counter() - began) * 1000)
            if answer.status != status:
                raise RuntimeError(f"wanted {status}, got {answer.status} {answer.body.decode()[:300]}")

    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(callers)])
    return Measured(len(requests) / (time.perf_counter() - began), times)


def headers(token: str, **more: str) -> dict[str, str]:
    """What a buyer sends with a write."""
    return {"authorization": f"Bearer {token}", "idempotency-key": f"k{next(_keys)}", **more}


class Bench:
    """One shop and its crowd; each method measures one thing once."""

    def __init__(self, shop: Shop, tokens: list[str]) -> None:
        self.shop = shop
        self.client = shop.client
        self.tokens = tokens
        self._row = itertools.count(1)

    def _post(self, path: str, n: int, body: object) -> bytes:
        return self.client.encode("POST", path, headers=headers(self.tokens[n % len(self.tokens)]), body=body)

    async def noop_posts(self, path: str = "/twins/framework", *, callers: int = CALLERS) -> Measured:
        """The POST no-op: same sign-in, key header, body and validation, a constant answer."""
        requests = [self._post(path, n, {"seats": [seat_no(n)]}) for n in range(REQUESTS)]
        return await drive(self.client, requests, 201, callers=callers)

    async def noop_gets(self, path: str = "/twins/framework") -> Measured:
        """The GET no-op: same sign-in, a constant answer."""
        named = [headers(token) for token in self.tokens]
        requests = [self.client.encode("GET", path, headers=named[n % len(named)]) for n in range(REQUESTS)]
        return await drive(self.client, requests, 200)

    async def reservations(self, schedule_id: str) -> Measured:
        """One seat each for everybody, all free, the room off."""
        path = f"/v1/schedules/{schedule_id}/reservations"
        requests = [self._post(path, n, {"seats": [seat_no(n)]}) for n in range(REQUESTS)]
        return await drive(self.client, requests, 201)

    async def rows(self, path: str = "/twins/framework/rows") -> Measured:
        """The twin that holds a seat by one UPDATE … RETURNING."""
        requests = [self._post(path, n, {"seats": [f"A-1-{next(self._row)}"]}) for n in range(REQUESTS)]
        return await drive(self.client, requests, 201)

    async def joins(self, sale_id: str, tokens: Sequence[str]) -> Measured:
        """Everybody joins once."""
        path = f"/v1/sales/{sale_id}/queue/tokens"
        requests = [self.client.encode("POST", path, headers=headers(token), body={}) for token in tokens]
        return await drive(self.client, requests, 201)

    async def polls(self, sale_id: str, places: Sequence[tuple[str, str]]) -> Measured:
        """People behind `serving` ask where they are."""
        path = f"/v1/sales/{sale_id}/queue/token"
        named = [{"authorization": f"Bearer {token}", "queue-token": place} for token, place in places]
        requests = [self.client.encode("GET", path, headers=named[n % len(named)]) for n in range(REQUESTS)]
        return await drive(self.client, requests, 200)


async def commands_of(redis: Redis) -> int:
    """How many commands the store has run."""
    return int((await redis.info("stats"))["total_commands_processed"])


async def requests_and_polls() -> tuple[list[Row], list[str]]:
    """Reservations, joins and polls against the no-ops and the row-locking twin, one API process."""
    async with shop(processes=1) as running:
        tokens = await running.make_buyers(REQUESTS)
        bench = Bench(running, tokens)
        await running.client.request(
            "POST", "/twins/seats", headers=headers(tokens[0]), body={"seats": [f"A-1-{REQUESTS * ROUNDS * 2}"]}
        )
        found: dict[str, list[float]] = {
            name: []
            for name in ("post", "get", "reserve", "rows", "join", "poll", "bare_post", "bare_get", "bare_rows")
        }
        waiting_sale = await _line(running, bench, tokens[:500])
        redis = Redis.from_url(str(running.settings.redis_url))
        schedule_id, _ = await running.make_sale(REQUESTS)
        await bench.reservations(schedule_id)  # warm
        await bench.noop_posts()
        commands, polled_s = 0, 0.0
        for _ in range(ROUNDS):
            found["post"].append((await bench.noop_posts()).per_s)
            schedule_id, _ = await running.make_sale(REQUESTS)
            await running.settle()
            found["reserve"].append((await bench.reservations(schedule_id)).per_s)
            await asyncio.sleep(REST_S)
            found["rows"].append((await bench.rows()).per_s)
            _, sale_id = await running.make_sale(1)
            await running.open_room(sale_id, state="prequeue")
            await running.settle()
            found["join"].append((await bench.joins(sale_id, tokens)).per_s)
            await asyncio.sleep(REST_S)
            found["get"].append((await bench.noop_gets()).per_s)
            found["bare_rows"].append((await bench.rows("/twins/rows")).per_s)
            found["bare_post"].append((await bench.noop_posts("/twins/noop")).per_s)
            found["bare_get"].append((await bench.noop_gets("/twins/noop")).per_s)
            before, began = await commands_of(redis), time.perf_counter()
            found["poll"].append((await bench.polls(*waiting_sale)).per_s)
            polled_s += time.perf_counter() - began
            commands += await commands_of(redis) - before
        idle_before = await commands_of(redis)
        await asyncio.sleep(2.0)
        idle = (await commands_of(redis) - idle_before) / 2.0
        await redis.aclose()
    middle = {name: statistics.median(values) for name, values in found.items()}
    noop = f"POST no-op by a handler of the framework, 1 API process, {CALLERS} callers"
    rows = [
        ratio_row("http_reserve_vs_noop", middle["reserve"], middle["post"], unit="req/s", against=noop, wanted=0.8),
        ratio_row("http_join_vs_noop", middle["join"], middle["post"], unit="req/s", against=noop, wanted=0.8),
        ratio_row(
            "http_reserve_vs_pg_row",
            middle["reserve"],
            middle["rows"],
            unit="req/s",
            against="UPDATE … RETURNING through a pool by a handler of the framework, 1 API process",
            wanted=2.0,
        ),
        ratio_row(
            "status_vs_noop",
            middle["poll"],
            middle["get"],
            unit="req/s",
            against="GET no-op by a handler of the framework, 1 API process",
            wanted=2.0,
        ),
    ]
    note = (
        f"Store commands while {REQUESTS * ROUNDS / polled_s:,.0f} polls a second were answered: "
        f"{commands / polled_s:,.0f}/s; at rest: {idle:,.0f}/s. They grow with time, not with polls."
    )
    bare = (
        f"By our own face, without the framework's handlers: POST no-op {middle['bare_post']:,.0f}/s, "
        f"GET no-op {middle['bare_get']:,.0f}/s, UPDATE … RETURNING {middle['bare_rows']:,.0f}/s (reservations are "
        f"{middle['reserve'] / middle['bare_post']:.2f} of that no-op and "
        f"{middle['reserve'] / middle['bare_rows']:.2f} of that row, "
        f"joins {middle['join'] / middle['bare_post']:.2f}, polls {middle['poll'] / middle['bare_get']:.2f})."
    )
    return rows, [note, bare]


async def _line(running: Shop, bench: Bench, tokens: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """A line that moves so slowly that nobody in it is near; returns its sale and their sign-in and queue tokens."""
    _, sale_id = await running.make_sale(1)
    await running.open_room(sale_id, state="prequeue", admitted_per_minute_max=1)
    path = f"/v1/sales/{sale_id}/queue/tokens"
    places = []
    for token in tokens:
        answer = await bench.client.request("POST", path, headers=headers(token), body={})
        places.append((token, answer.json()["token"]))
    return sale_id, places


# Journeys -------------------------------------------------------------------------------------------------------------


@dataclass
class Journeys:
    """Whole journeys: how many a second, the times of each step, how far Postgres was behind."""

    count: int
    per_s: float
    times_ms: dict[str, list[float]]
    lags_ms: list[float]
    cpu_s: Mapping[str, float]


class Lag:
    """Samples how long a number of the outbox takes from the store to Postgres, fifty times a second."""

    def __init__(self, redis: Redis, sale_id: str) -> None:
        self._redis = redis
        self._key = f"{{sale:{sale_id}}}:sale"
        self.lags_ms: list[float] = []

    async def sample(self) -> None:
        """Sample until cancelled."""
        given: list[tuple[int, float]] = []
        while True:
            given_n, persisted_n = await self._redis.execute_command(  # type: ignore[no-untyped-call]
                "HMGET", self._key, "outbox_n", "outbox_persisted_n"
            )
            now = time.perf_counter()
            if given_n is not None and (not given or int(given_n) > given[-1][0]):
                given.append((int(given_n), now))
            while given and given[0][0] <= int(persisted_n or 0):
                self.lags_ms.append((now - given.pop(0)[1]) * 1000)
            await asyncio.sleep(0.02)


class _Place(msgspec.Struct):
    """What a buyer needs to know of a place in line."""

    token: str
    status: str
    poll_after_ms: int


class _Held(msgspec.Struct):
    """What a buyer needs to know of a reservation."""

    reservation_id: str


class _Payment(msgspec.Struct):
    """What a buyer needs to know of a payment."""

    payment_id: str
    status: str


read_place = msgspec.json.Decoder(_Place).decode
read_held = msgspec.json.Decoder(_Held).decode
read_payment = msgspec.json.Decoder(_Payment).decode

BY_BALANCE: Mapping[str, Any] = {"method": "BALANCE"}
BY_CARD: Mapping[str, Any] = {"method": "CARD", "card": {"payment_method_id": "pm_card_visa"}}


async def journeys(
    running: Shop, tokens: Sequence[str], count: int, tender: Mapping[str, Any] = BY_BALANCE
) -> Journeys:
    """Join, ask, reserve, pay, a seat each; ends when every payment is durable, and counts what Postgres has."""
    schedule_id, sale_id = await running.make_sale(count)
    await running.open_room(sale_id)
    await running.settle()
    times: dict[str, list[float]] = {"join": [], "status": [], "reserve": [], "pay": []}
    endings: Counter[str] = Counter()
    numbers = iter(range(count))
    client = running.client

    async def step(name: str, request: bytes) -> Answer:
        began = time.perf_counter()
        answer = await client.send(request)
        times[name].append((time.perf_counter() - began) * 1000)
        return answer

    async def journey(n: int) -> None:
        token = tokens[n]
        path = f"/v1/sales/{sale_id}/queue/tokens"
        joined = await step("join", client.encode("POST", path, headers=headers(token), body={}))
        place = read_place(joined.body)
        asking = {"authorization": f"Bearer {token}", "queue-token": place.token}
        status = client.encode("GET", f"/v1/sales/{sale_id}/queue/token", headers=asking)
        while place.status == "WAITING":
            await asyncio.sleep(place.poll_after_ms / 1000)
            place = read_place((await step("status", status)).body)
        named = headers(token, **{"queue-token": place.token})
        path = f"/v1/schedules/{schedule_id}/reservations"
        held = await step("reserve", client.encode("POST", path, headers=named, body={"seats": [seat_no(n)]}))
        if held.status != 201:
            endings[f"reserve {held.status} {held.body.decode()[:120]}"] += 1
            return
        path = f"/v1/reservations/{read_held(held.body).reservation_id}/payments"
        paid = await step("pay", client.encode("POST", path, headers=headers(token), body=tender))
        endings[await ending_of(client, token, paid)] += 1

    async def caller() -> None:
        for n in numbers:
            await journey(n)

    redis = Redis.from_url(str(running.settings.redis_url))
    lag = Lag(redis, sale_id)
    sampling = asyncio.create_task(lag.sample())
    meter = Meter(await parts_of(running))
    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(JOURNEY_CALLERS)])
    took = time.perf_counter() - began
    cpu_s = meter.spent_s()
    sampling.cancel()
    await asyncio.gather(sampling, return_exceptions=True)
    await redis.aclose()
    if endings != {PAID: count}:
        raise RuntimeError(f"of {count} journeys: {dict(endings)}")
    await _check_counts(running, sale_id, count)
    return Journeys(count, count / took, times, lag.lags_ms, cpu_s)


PAID = "SUCCESS"
ASK_AGAIN_S = 0.25


async def ending_of(client: Client, token: str, paid: Answer) -> str:
    """How a payment ended: one that takes longer than its answer may is asked for until it is decided."""
    if paid.status not in {201, 202}:
        return f"pay {paid.status} {paid.body.decode()[:120]}"
    payment = read_payment(paid.body)
    while payment.status == "PENDING":
        await asyncio.sleep(ASK_AGAIN_S)
        path = f"/v1/payments/{payment.payment_id}"
        asked = await client.request("GET", path, headers={"authorization": f"Bearer {token}"})
        payment = read_payment(asked.body)
    return payment.status


COUNTS = """
SELECT
  (SELECT count(*) FROM reservations WHERE sale_id = $1 AND status = 'CONFIRMED') AS reservations,
  (SELECT count(*) FROM tickets WHERE sale_id = $1) AS tickets,
  (SELECT count(*) FROM seats WHERE sale_id = $1 AND sold) AS seats,
  (SELECT count(*) FROM payments WHERE sale_id = $1 AND status = 'SUCCESS') AS payments,
  (SELECT coalesce(sum(amount), 0) FROM balance_history JOIN payments USING (payment_id) WHERE sale_id = $1)
    + (SELECT coalesce(sum(card_amount), 0) FROM payments WHERE sale_id = $1 AND status = 'SUCCESS') AS money
"""


async def parts_of(running: Shop) -> dict[str, int]:
    """The processes of a shop by what they do, its stores among them; each with all that it started is one part."""
    redis = Redis.from_url(str(running.settings.redis_url))
    postgres = await asyncpg.connect(str(running.settings.postgres_url))
    try:
        valkey_pid = int((await redis.info("server"))["process_id"])
        postgres_pid = parent_of(postgres.get_server_pid())
    finally:
        await postgres.close()
        await redis.aclose()
    return {**running.processes, "Postgres": postgres_pid, "Valkey": valkey_pid}


def cost_of(runs: Sequence[Journeys]) -> str:
    """What a journey cost each part, and all of them together, in milliseconds of CPU: the middle of the runs."""
    cost = {part: statistics.median(run.cpu_s[part] * 1000 / run.count for run in runs) for part in runs[0].cpu_s}
    parts = ", ".join(f"{part} {ms:.3f}" for part, ms in cost.items())
    return f"CPU of a journey in ms: {sum(cost.values()):.3f}, of which {parts}." if cost else ""


async def _check_counts(running: Shop, sale_id: str, count: int) -> None:
    """Raise RuntimeError unless Postgres has exactly what was told."""
    postgres = await asyncpg.connect(str(running.settings.postgres_url))
    try:
        found = await postgres.fetchrow(COUNTS, str(uuid.UUID(sale_id)))
    finally:
        await postgres.close()
    wanted = {**dict.fromkeys(("reservations", "tickets", "seats", "payments"), count), "money": count * PRICE}
    if found is None or dict(found) != wanted:
        raise RuntimeError(f"after {count} journeys Postgres has {found}")


async def whole_journeys() -> tuple[list[Row], list[str]]:
    """Whole journeys a second with two API processes, a worker, both stores and the driver on this machine."""
    async with shop(processes=JOURNEY_PROCESSES, connections_max=JOURNEY_CALLERS) as running:
        tokens = await running.make_buyers(JOURNEYS)
        await journeys(running, tokens, JOURNEYS // 4)  # warm
        runs = [await journeys(running, tokens, JOURNEYS) for _ in range(JOURNEY_ROUNDS)]
    per_s = statistics.median(run.per_s for run in runs)
    lags = sorted(lag for run in runs for lag in run.lags_ms)
    lag_p99 = lags[int(len(lags) * 0.99)] if lags else 0.0
    rows = [
        Row(
            "journeys_per_s",
            value=per_s,
            unit="journeys/s",
            against=f"{JOURNEY_PROCESSES} API processes, 1 worker, {JOURNEY_CALLERS} buyers at once, "
            f"{JOURNEYS:,} a round, every count right",
            at_least=1500,
        ),
        Row("persist_lag_p99_ms", value=lag_p99, unit="ms", against="store to Postgres, while the journeys run"),
    ]
    steps = []
    for name in ("join", "status", "reserve", "pay"):
        measured = Measured(0.0, [each for run in runs for each in run.times_ms[name]])
        steps.append(f"{name} {measured.percentile(0.5):.0f}/{measured.percentile(0.99):.0f}")
    return rows, [f"Journeys, p50/p99 of each step in ms: {', '.join(steps)}.", cost_of(runs)]


async def card_journeys() -> tuple[list[Row], list[str]]:
    """The same journeys paid by card: a simulated gateway, one more process on this machine, is asked for each."""
    async with shop(processes=JOURNEY_PROCESSES, connections_max=JOURNEY_CALLERS, cards=True) as running:
        tokens = await running.make_buyers(CARD_JOURNEYS)
        await journeys(running, tokens, CARD_JOURNEYS // 4, BY_CARD)  # warm
        runs = [await journeys(running, tokens, CARD_JOURNEYS, BY_CARD) for _ in range(JOURNEY_ROUNDS)]
    row = Row(
        "card_journeys_per_s",
        value=statistics.median(run.per_s for run in runs),
        unit="journeys/s",
        against=f"{JOURNEY_PROCESSES} API processes, 1 worker and 1 simulated gateway, every count right",
    )
    pay = Measured(0.0, [each for run in runs for each in run.times_ms["pay"]])
    paying = f"Paying by card, p50/p99 in ms: {pay.percentile(0.5):.0f}/{pay.percentile(0.99):.0f}."
    return [row], [paying, cost_of(runs)]
