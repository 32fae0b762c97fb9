"""Goods: orders of one hot unit against their ceilings, orders paid to the commit, and the writer alone.

Two API processes stand on both sides of each ratio. What was answered is counted in Postgres after every run.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import asyncpg

from engine import accounts, authorisations, ids, orders, products, rebuild, sales, stock
from engine.authorisations import Authorisation
from engine.payments import Payment
from engine.products import NewProduct, NewVariant
from engine.sales import Sale, SaleBook, Terms
from engine.seats import Paying, PaymentRunning
from engine.settings import Settings
from engine.stores import migrations, outbox
from engine.stores.coalesce import Coalescer
from engine.stores.connections import Stores, open_stores
from engine.stores.outbox import Reader
from loadtests.bench_engine import spread
from loadtests.bench_http import (
    BY_BALANCE,
    JOURNEY_CALLERS,
    Journeys,
    Measured,
    cost_of,
    drive,
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
# A row locked and committed for each order is slow: fewer of them take as long.
ROW_REQUESTS = 1_500
# Longer than any run: what is held stays held.
HOLD_S = 3600
CALLERS = 128
BUYERS = 2_000
FACTS = 10_000

FRAMEWORK = f"by a handler of the framework, {PROCESSES} API processes"


class Bench:
    """One shop, a hot variant and its crowd; each method measures one thing once."""

    def __init__(self, running: Shop, tokens: Sequence[str], variant_id: str) -> None:
        self._client = running.client
        self._tokens = tokens
        self._order = {"lines": [{"variant_id": variant_id, "quantity": 1}]}

    async def orders(self, path: str = "/v1/orders", count: int = REQUESTS) -> Measured:
        """One unit each, always of the same variant."""
        return await self._drive(path, self._order, count, CALLERS)

    async def _drive(self, path: str, body: object, count: int, callers: int) -> Measured:
        who = [headers(self._tokens[n % len(self._tokens)]) for n in range(count)]
        requests = [self._client.encode("POST", path, headers=each, body=body) for each in who]
        return await drive(self._client, requests, 201, callers=callers)


async def hot_unit() -> tuple[list[Row], list[str]]:
    """Orders of one variant that takes all the load, against the no-op and against a row in Postgres."""
    async with shop(processes=PROCESSES) as running:
        tokens = await running.make_buyers(BUYERS)
        units = REQUESTS * (ROUNDS + 1)
        sale_id, variant_id = await running.make_drop(units, hold_s=HOLD_S)
        bench = Bench(running, tokens, variant_id)
        row = {"variant_id": variant_id, "quantity": 2 * units}
        await running.client.request("POST", "/twins/units", headers=headers(tokens[0]), body=row)
        found: dict[str, list[float]] = {name: [] for name in ("noop", "rows", "bare_noop", "bare_rows")}
        runs: list[Journeys] = []
        await bench.orders()  # warm
        await bench.orders("/twins/framework/orders")
        await bench.orders("/twins/framework/order_rows", ROW_REQUESTS)
        for _ in range(ROUNDS):
            found["noop"].append((await bench.orders("/twins/framework/orders")).per_s)
            meter = Meter(await parts_of(running))
            ordered = await bench.orders()
            runs.append(Journeys(REQUESTS, ordered.per_s, {}, [], meter.spent_s()))
            found["rows"].append((await bench.orders("/twins/framework/order_rows", ROW_REQUESTS)).per_s)
            found["bare_noop"].append((await bench.orders("/twins/orders")).per_s)
            found["bare_rows"].append((await bench.orders("/twins/order_rows", ROW_REQUESTS)).per_s)
        await _check(running, HELD, sale_id, {"orders": units, "units": units}, within_s=60.0)
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
            endings[f"pay {paid.status}"] += 1

    meter = Meter(await parts_of(running))
    began = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(JOURNEY_CALLERS)])
    took = time.perf_counter() - began
    cpu_s = meter.spent_s()
    if endings != {"pay 201": len(tokens)}:
        raise RuntimeError(f"of {len(tokens)} orders: {dict(endings)}")
    count = len(tokens)
    wanted = {**dict.fromkeys(("orders", "units", "items", "payments"), count), "left": 0, "money": count * PRICE}
    await _check(running, PAID, sale_id, wanted)
    return Journeys(count, count / took, times, [], cpu_s)


PAID = """
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


# The writer alone -----------------------------------------------------------------------------------------------------


async def drained_orders() -> tuple[list[Row], list[str]]:
    """Paid orders that one writer brings to Postgres in a second: both streams are full when it starts."""
    rates = []
    with tempfile.TemporaryDirectory(prefix="lastseat-bench-") as folder:
        async with open_stores(Settings(data_dir=folder)) as stores:
            connection = await asyncpg.connect(stores.settings.postgres_url)
            await migrations.migrate(connection)
            await connection.close()
            for _ in range(ROUNDS):
                sale = await _sold_out(stores, FACTS)
                generation = (await outbox.take_ownership(stores.postgres, "bench", sale_ids=[sale.sale_id]))[
                    sale.sale_id
                ]
                readers = [
                    Reader(stores.gate, stores.postgres, sale.keys, stream, generation, handler)
                    for stream, handler in rebuild.handlers(sale).items()
                ]
                begun = time.perf_counter()
                drained = await asyncio.gather(*[_drain(reader) for reader in readers])
                rates.append(FACTS / (time.perf_counter() - begun))
                paid = await stores.postgres.fetchval(
                    "SELECT count(*) FROM orders WHERE sale_id = $1 AND status = 'PAID'", sale.sale_id
                )
                if (*drained, paid) != (FACTS, FACTS, FACTS):
                    raise RuntimeError(f"of {FACTS} orders {drained} facts were drained and {paid} orders are paid")
    row = Row(
        "drain_orders_per_s",
        value=statistics.median(rates),
        unit="orders/s",
        against="1 writer, both streams: order held and sold, paid by balance; nothing else running",
        at_least=10_000,
    )
    return [row], []


async def _drain(reader: Reader) -> int:
    drained = 0
    while count := await reader.drain():
        drained += count
    return drained


async def _sold_out(stores: Stores, count: int) -> Sale:
    """A drop of which every unit was just paid and confirmed in Redis, and nothing yet in Postgres but the payments."""
    sale_id, variant_id = await make_drop(stores.postgres, count)
    await rebuild.ensure_open(stores, sale_id)
    sale = await SaleBook(stores.postgres).find(sale_id)
    if sale is None:
        raise LookupError(f"sale {sale_id} was not opened")
    buyers = [ids.random_id() for _ in range(count)]
    await accounts.create_many(stores.postgres, user_ids=buyers, fingerprint="bench")
    await stores.postgres.execute("UPDATE balances SET amount = 1000000")
    authorise: Coalescer[Authorisation, Payment | PaymentRunning] = Coalescer(
        lambda requests: authorisations.authorise(stores.postgres, requests), most=authorisations.BATCH_MAX
    )

    async def buy(n: int) -> None:
        hold_id, payment_id = ids.derive_in(sale.sale_id, str(n)), ids.random_id()
        wanted = [stock.Units(variant_id, 1)]
        await stock.hold(stores.gate, sale, hold_id=hold_id, buyer_id=buyers[n], fingerprint="f", units=wanted)
        paying = await stock.pay(stores.gate, sale, hold_id=hold_id, buyer_id=buyers[n], payment_id=payment_id)
        if not isinstance(paying, Paying):
            raise TypeError(f"a payment was answered {paying}")
        request = Authorisation(
            payment_id=payment_id,
            fingerprint="f",
            holding=orders.holding_of(sale, hold_id, buyers[n], paying),
            pay_deadline_ms=paying.pay_deadline_ms,
        )
        await authorise.submit(request)
        await stock.confirm(stores.gate, sale, hold_id=hold_id, fence=paying.fence, payment_id=payment_id)

    await spread(count, buy)
    return sale


async def make_drop(postgres: asyncpg.Pool, units: int) -> tuple[str, str]:
    """Write the rows of a drop of so many units of one variant; returns its sale's id and the variant's."""
    sale_id = ids.random_id()
    await sales.create_drop(postgres, sale_id=sale_id, terms=Terms(name="Bench"), fingerprint=sale_id)
    listed = NewProduct(name="Hot", category="BENCH", price=PRICE, variants=(NewVariant(stock=units),))
    made = await products.create(
        postgres, key_id=ids.random_id(), sale_id=sale_id, listed=[listed], fingerprint=sale_id
    )
    if not isinstance(made, tuple):
        raise TypeError(f"a product was answered {made}")
    return sale_id, made[0][0].variants[0].variant_id
