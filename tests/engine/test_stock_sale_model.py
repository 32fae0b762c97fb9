"""A sale of goods in both stores, whatever is done with it in whatever order: once all rests, every sum is right.

Buyers hold, give back, extend, pay with and without a coupon and cancel; processes die between any two steps, so that
each step is a rule of its own; operators restock; workers drain, sweep, reconcile, and write everything anew after
Redis was lost or went back in time. At the end everything comes to rest, and both stores must say the same.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from engine import authorisations, ids, order_cancellations, orders, products, reconciliation, stock
from engine.authorisations import Authorisation
from engine.payments import Payment
from engine.seats import Paying
from engine.settings import Settings
from engine.stock import Units
from engine.stores import embedded, migrations
from engine.stores.connections import Stores, open_listener, open_postgres, open_redis
from engine.stores.outbox import Divergence
from engine.stores.scripts import Gate
from tests.conftest import fresh_database
from tests.engine.test_discounts import coupon
from tests.goods import Goods, open_goods
from tests.races.test_failover import Copy

BUYERS = ("ann", "bob")
VARIANTS = ("mug", "cap_s")
RICH = 20_000
"""What each buyer has: some orders are too dear."""

some = st.integers(0, 10**6)
buyers = st.sampled_from(BUYERS)
variants = st.sampled_from(VARIANTS)


# What must find nothing, whatever was done last.
ALWAYS = {
    "what is set aside is what live payments want": """
        SELECT user_id
        FROM balances
        LEFT JOIN payments USING (user_id)
        GROUP BY user_id, set_aside, amount
        HAVING amount < set_aside OR set_aside <> coalesce(
          sum(balance_amount) FILTER (WHERE payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')), 0
        )
    """,
    "a coupon is a payment's as long as that may still buy, or did": """
        SELECT user_coupons.user_coupon_id, payments.payment_id
        FROM user_coupons
        FULL JOIN payments ON payments.payment_id = user_coupons.payment_id
        WHERE (CASE user_coupons.status
          WHEN 'RESERVED' THEN payments.status IN ('AUTHORISED', 'IN_DOUBT')
          WHEN 'USED' THEN payments.status IN ('SUCCESS', 'PARTIALLY_REFUNDED')
          WHEN 'AVAILABLE' THEN user_coupons.payment_id IS NULL
          ELSE payments.user_coupon_id IS NULL OR payments.status IN ('FAILED', 'VOIDED', 'REFUNDED')
        END) IS NOT TRUE
    """,
}
# And once nothing runs any more.
AT_REST = {
    "I1: what is left and what was sold is what there ever was": """
        SELECT variant_id
        FROM product_variants AS variants
        WHERE initial_quantity <> quantity + coalesce(
          (
            SELECT sum(lines.quantity - refunded_quantity)
            FROM order_items AS lines
            WHERE lines.variant_id = variants.variant_id AND status = 'SOLD'
          ), 0
        )
    """,
    "what was sold is owned, unit by unit": """
        SELECT order_id
        FROM order_items AS lines
        WHERE (CASE status WHEN 'SOLD' THEN quantity - refunded_quantity ELSE 0 END) <> (
          SELECT count(*)
          FROM user_items
          WHERE user_items.order_id = lines.order_id
            AND user_items.variant_id = lines.variant_id
            AND returned_at IS NULL
        )
    """,
    "nothing waits": """
        SELECT payment_id FROM payments WHERE status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
        UNION ALL
        SELECT order_id FROM orders WHERE status = 'PENDING'
    """,
    "I3: an order is paid once or not at all, and what its lines cost": """
        SELECT order_id
        FROM orders
        WHERE total_amount <> (
            SELECT sum(total_price) FROM order_items AS lines WHERE lines.order_id = orders.order_id
          )
          OR (status IN ('PAID', 'PARTIALLY_REFUNDED', 'REFUNDED')) <> (
            SELECT count(*) = 1
            FROM payments
            WHERE payments.order_id = orders.order_id
              AND payments.status IN ('SUCCESS', 'PARTIALLY_REFUNDED', 'REFUNDED')
              AND final_amount = total_amount
          )
    """,
    "I6: a balance is what was there, less what was paid, and its history says the same": f"""
        SELECT user_id
        FROM balances
        WHERE amount <> {RICH} - coalesce(
            (
              SELECT sum(final_amount - refunded_amount)
              FROM payments
              WHERE payments.user_id = balances.user_id
                AND payments.status IN ('SUCCESS', 'PARTIALLY_REFUNDED', 'REFUNDED')
            ), 0
          )
          OR amount <> {RICH} + coalesce(
            (
              SELECT sum(CASE type WHEN 'USE' THEN -history.amount ELSE history.amount END)
              FROM balance_history AS history
              WHERE history.user_id = balances.user_id
            ), 0
          )
    """,
}


class Sale(RuleBasedStateMachine):
    """What may happen to a drop; the answers are not looked at, only what comes of them."""

    settings_: ClassVar[Settings]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.goods = self.runner.run(self._open())
        self.orders: list[tuple[str, str]] = []
        self.begun: list[Authorisation] = []
        self.decided: list[Authorisation] = []
        self.copy: Copy | None = None
        self.made = 0

    async def _open(self) -> Goods:
        stores = await self.stack.enter_async_context(opened(self.settings_))
        goods = await open_goods(stores, per_buyer_max=12)
        for by in BUYERS:
            await goods.set_balance(by, RICH)
            await coupon(goods, of=by)
            await coupon(goods, of=by, name="b", type="RATE", discount_amount=None, discount_rate=30)
        await stores.postgres.execute(
            "INSERT INTO api_keys (api_key_id, key_hash, name, scopes) VALUES ($1, '', '', '{}')", ids.derive("key")
        )
        return goods

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    def next(self, name: str) -> str:
        """An id that was never used."""
        self.made += 1
        return ids.derive(name, str(self.made))

    # Buyers ---------------------------------------------------------------------------------------------------------

    @rule(
        by=buyers,
        first=variants,
        count=st.integers(1, 4),
        second=variants,
        more=st.integers(0, 3),
        named=st.sampled_from(("", "a", "b")),
        steps=st.integers(1, 4),
    )
    def buy(self, by: str, first: str, count: int, second: str, more: int, named: str, steps: int) -> None:
        """Hold, begin to pay, have funds set aside, confirm; whoever asks may die after any of these."""
        self.run(self._buy(by, Counter({first: count}) + Counter({second: more}), (named, by), steps))

    async def _buy(self, by: str, units: Counter[str], named: tuple[str, str], steps: int) -> None:
        order_id = ids.derive_in(self.goods.sale_id, self.next("order"))
        if not isinstance(await self.goods.try_hold(order_id, by=by, **units), stock.Held):
            return
        self.orders.append((order_id, by))
        if steps > 1:
            await self._pay(order_id, by, named, steps - 1)

    @precondition(lambda self: self.orders)
    @rule(at=some, named=st.sampled_from(("", "a", "b")), of=buyers, steps=st.integers(1, 3))
    def pay(self, at: int, named: str, of: str, steps: int) -> None:
        """The same for what is held, with a coupon that may be somebody else's."""
        order_id, by = self.orders[at % len(self.orders)]
        self.run(self._pay(order_id, by, (named, of), steps))

    async def _pay(self, order_id: str, by: str, named: tuple[str, str], steps: int) -> None:
        goods, payment_id, user_id = self.goods, self.next("payment"), await self.goods.person(by)
        sale = await goods.sale()
        paying = await stock.pay(goods.stores.gate, sale, hold_id=order_id, buyer_id=user_id, payment_id=payment_id)
        if not isinstance(paying, Paying):
            return
        request = Authorisation(
            payment_id=payment_id,
            fingerprint="",
            pay_deadline_ms=paying.pay_deadline_ms,
            holding=orders.holding_of(sale, order_id, user_id, paying),
            user_coupon_id=ids.derive("coupon", *named) if named[0] else None,
        )
        self.begun.append(request)
        if steps > 1 and await self._authorise(request) and steps > 2:
            await goods.confirm(request)

    async def _authorise(self, request: Authorisation) -> bool:
        [payment] = await authorisations.authorise(self.goods.stores.postgres, [request])
        if isinstance(payment, Payment) and payment.status == "AUTHORISED":
            self.decided.append(request)
            return True
        await self.goods.abandon(request)
        return False

    @precondition(lambda self: self.begun)
    @rule(at=some)
    def authorise_late(self, at: int) -> None:
        """A copy of the request arrives now."""
        self.run(self._authorise(self.begun[at % len(self.begun)]))

    @precondition(lambda self: self.decided)
    @rule(at=some)
    def confirm_late(self, at: int) -> None:
        self.run(self.goods.confirm(self.decided[at % len(self.decided)]))

    @precondition(lambda self: self.begun)
    @rule(at=some)
    def abandon(self, at: int) -> None:
        self.run(self.goods.abandon(self.begun[at % len(self.begun)]))

    @precondition(lambda self: self.orders)
    @rule(at=some, name=variants, count=st.integers(0, 2))
    def release(self, at: int, name: str, count: int) -> None:
        """Part of it, or all."""
        order_id, by = self.orders[at % len(self.orders)]
        units = [Units(self.goods.variants[name], count)] if count else []
        self.run(self._asked(stock.release, order_id, by, release_id=self.next("release"), units=units))

    @precondition(lambda self: self.orders)
    @rule(at=some)
    def extend(self, at: int) -> None:
        order_id, by = self.orders[at % len(self.orders)]
        self.run(self._asked(stock.extend, order_id, by, extension_id=self.next("extension")))

    async def _asked(self, verb: Any, order_id: str, by: str, **more: Any) -> Any:
        named = {"hold_id": order_id, "buyer_id": await self.goods.person(by), "fingerprint": ""}
        return await verb(self.goods.stores.gate, await self.goods.sale(), **named | more)

    @precondition(lambda self: self.orders)
    @rule(at=some, name=variants, count=st.integers(0, 2))
    def cancel(self, at: int, name: str, count: int) -> None:
        """Part of what was bought, or all of it."""
        order_id, by = self.orders[at % len(self.orders)]
        units = [Units(self.goods.variants[name], count)] if count else []
        self.run(self._cancel(order_id, by, units))

    async def _cancel(self, order_id: str, by: str, units: list[Units]) -> None:
        goods = self.goods
        await order_cancellations.cancel(
            goods.stores.gate,
            goods.stores.postgres,
            goods.book,
            cancellation_id=self.next("cancellation"),
            order_id=order_id,
            user_id=await goods.person(by),
            units=units,
        )

    # Operators and time ---------------------------------------------------------------------------------------------

    @rule(name=variants, count=st.integers(1, 3), dies=st.booleans())
    def restock(self, name: str, count: int, *, dies: bool) -> None:
        self.run(self._restock(name, count, dies=dies))

    async def _restock(self, name: str, count: int, *, dies: bool) -> None:
        goods, postgres = self.goods, self.goods.stores.postgres
        restock_id, key_id = self.next("restock"), ids.derive("key")
        variant_id = goods.variants[name]
        await products.restock(
            postgres, restock_id=restock_id, variant_id=variant_id, quantity=count, api_key_id=key_id
        )
        if not dies:
            await products.tell(goods.stores.gate, postgres, await goods.sale())

    @precondition(lambda self: self.orders)
    @rule(at=some)
    def lapse(self, at: int) -> None:
        """Its time is over; nobody has swept yet."""
        self.run(self._lapse(self.orders[at % len(self.orders)][0]))

    async def _lapse(self, order_id: str) -> None:
        redis: Any = self.goods.stores.redis
        keys = (await self.goods.sale()).keys
        record = await redis.hget(keys.holds, order_id)
        if record is not None and await redis.zscore(keys.deadlines, order_id) is not None:
            fields = record.decode().split("|")
            fields[6] = "1000"
            await redis.hset(keys.holds, order_id, "|".join(fields))
            await redis.zadd(keys.deadlines, {order_id: 1000})

    # Workers --------------------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(("sweep", "drain", "reconcile", "rebuild", "lose", "copy", "go_back")))
    def work(self, what: str) -> None:
        """What a worker does, and what it does where Redis was lost, or a replica that was behind is promoted."""
        self.run(getattr(self, f"_{what}")())

    async def _sweep(self) -> None:
        await stock.expire(self.goods.stores.gate, await self.goods.sale(), most=100)

    async def _drain(self) -> None:
        try:
            await self.goods.drain()
        except Divergence:
            await self.goods.rebuild()

    async def _reconcile(self) -> None:
        goods = self.goods
        await reconciliation.reconcile(goods.stores.gate, goods.stores.postgres, await goods.sale(), idle_s=0)

    async def _rebuild(self) -> None:
        await self.goods.rebuild()

    async def _lose(self) -> None:
        await self.goods.stores.redis.flushall()
        await self.goods.rebuild()

    async def _copy(self) -> None:
        self.copy = await Copy.of(self.goods)

    async def _go_back(self) -> None:
        if self.copy is not None:
            await self.copy.promote()
            await self.goods.rebuild()

    # What must be true ----------------------------------------------------------------------------------------------

    @invariant()
    def what_is_set_aside_is_what_live_payments_want(self) -> None:
        self.run(self._check(ALWAYS))

    async def _check(self, uneven: Mapping[str, str]) -> None:
        for what, query in uneven.items():
            assert await self.goods.rows(query) == [], what

    def teardown(self) -> None:
        """Everything comes to rest, and is looked at."""
        try:
            self.run(self._rest())
        finally:
            self.run(self._close())
            self.runner.close()

    async def _rest(self) -> None:
        goods = self.goods
        redis, keys = goods.stores.redis, (await goods.sale()).keys
        await products.tell(goods.stores.gate, goods.stores.postgres, await goods.sale())
        for _ in range(3):
            await self._drain()
            await goods.stores.postgres.execute("UPDATE orders SET expires_at = now() - interval '1 hour'")
            for order_id in await redis.zrange(keys.paying, 0, -1):
                await redis.zadd(keys.paying, {order_id: 1})
            await self._reconcile()
            for order_id, _ in self.orders:
                await self._lapse(order_id)
            await self._sweep()
        await self._drain()
        assert await goods.left() == await goods.left_in_postgres()
        assert await redis.zcard(keys.paying) == 0
        await self._check(ALWAYS | AT_REST)

    async def _close(self) -> None:
        tables = await self.goods.rows(
            "SELECT string_agg(format('%I', tablename), ', ') FROM pg_tables WHERE schemaname = 'public' "
            "AND tablename NOT IN ('schema_migrations', 'installation')"
        )
        await self.goods.stores.postgres.execute(f"TRUNCATE {tables[0][0]} CASCADE")
        await self.goods.stores.redis.flushall()
        await self.stack.aclose()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Stores]:
    """Both stores, in this machine's own loop."""
    redis, listener = open_redis(str(settings.redis_url)), open_listener(str(settings.redis_url))
    pool = await open_postgres(str(settings.postgres_url), connections_max=4)
    try:
        yield Stores(settings=settings, redis=redis, gate=Gate(redis), listener=listener, postgres=pool)
    finally:
        await pool.close()
        await listener.aclose()
        await redis.aclose()


@pytest.mark.timeout(300)
def test_whatever_is_done_with_a_sale_of_goods_both_stores_agree_once_it_rests(
    valkey_server: embedded.Server, postgres_of_model: str
) -> None:
    Sale.settings_ = Settings(
        redis_url=valkey_server.url, queue_redis_url=valkey_server.url, postgres_url=postgres_of_model
    )
    run_state_machine_as_test(
        Sale,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


@pytest.fixture
def postgres_of_model(postgres_server: embedded.Server) -> Any:
    """A migrated database; the machine runs loops of its own, so no loop may run around it."""
    runner = asyncio.Runner()
    database = migrated(postgres_server)
    yield runner.run(database.__aenter__())
    runner.run(database.__aexit__(None, None, None))
    runner.close()


@asynccontextmanager
async def migrated(server: embedded.Server) -> AsyncIterator[str]:
    """A database as the migrations leave it."""
    async with fresh_database(server.url) as url:
        connection = await asyncpg.connect(url)
        await migrations.migrate(connection)
        await connection.close()
        yield url
