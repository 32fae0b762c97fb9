"""The writer of orders alone: how fast one process brings what Redis has decided to Postgres, by the engine itself."""

import asyncio
import statistics
import time

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
from loadtests.results import Row
from loadtests.shop import DATA, scratch_folder

ROUNDS = 5
ALONE_ROUNDS = 3
ORDERS = 10_000
# A writer brings all the sales that it owns to Postgres side by side: while one waits, another is written.
DROPS = 4
PRICE = 5000


async def drained_orders() -> tuple[list[Row], list[str]]:
    """Paid orders that one writer brings to Postgres in a second: both streams are full when it starts."""
    with scratch_folder() as folder:
        async with open_stores(Settings(data_dir=str(folder / DATA))) as stores:
            connection = await asyncpg.connect(stores.settings.postgres_url)
            await migrations.migrate(connection)
            await connection.close()
            rates = [await _rate(stores, DROPS) for _ in range(ROUNDS)]
            alone = [await _rate(stores, 1) for _ in range(ALONE_ROUNDS)]
    row = Row(
        "drain_orders_per_s",
        value=statistics.median(rates),
        unit="orders/s",
        against=f"1 writer, {DROPS} drops side by side, both streams of each: held and sold, paid by balance",
        at_least=10_000,
    )
    return [row], [f"Of one drop alone the same writer brings {statistics.median(alone):,.0f} orders a second."]


async def _rate(stores: Stores, drops: int) -> float:
    """Orders that were brought a second, all of so many drops whose streams are full when it starts."""
    made = [await _sold_out(stores, ORDERS // drops) for _ in range(drops)]
    sale_ids = [sale.sale_id for sale in made]
    generations = await outbox.take_ownership(stores.postgres, "bench", sale_ids=sale_ids)
    readers = [
        Reader(stores.gate, stores.postgres, sale.keys, stream, generations[sale.sale_id], handler)
        for sale in made
        for stream, handler in rebuild.handlers(sale).items()
    ]
    begun = time.perf_counter()
    drained = sum(await asyncio.gather(*[_drain(reader) for reader in readers]))
    took = time.perf_counter() - begun
    paid = await stores.postgres.fetchval(
        "SELECT count(*) FROM orders WHERE sale_id = ANY ($1::uuid[]) AND status = 'PAID'", sale_ids
    )
    if (drained, paid) != (2 * ORDERS, ORDERS):
        raise RuntimeError(f"of {ORDERS} orders {drained} facts were drained and {paid} orders are paid")
    return ORDERS / took


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
