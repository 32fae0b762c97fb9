"""A drop in both stores and the people who buy from it, by the same steps as `tests/shop.py` takes with a concert."""

from dataclasses import dataclass, field
from typing import Any

from engine import authorisations, ids, orders, products, rebuild, sales, stock
from engine.authorisations import Authorisation
from engine.products import NewProduct, NewVariant
from engine.sales import SaleBook, Terms
from engine.seats import Confirmed, Paying
from engine.stock import Units
from engine.stores.connections import Stores
from engine.stores.outbox import Entry
from tests.shop import Selling

PRICES = {"mug": 1_200, "cap": 2_500}
EACH = 10


@dataclass
class Goods(Selling):
    """A sale of mugs and caps in small and large, ten of each, and every step that a process would take with it."""

    variants: dict[str, str] = field(default_factory=dict)

    # What an API process does --------------------------------------------------------------------------------------

    async def hold(self, *, by: str = "ann", **units: int) -> str:
        """Hold units, `mug=2, cap_l=1`; returns the hold."""
        self.made += 1
        order_id = ids.derive_in(self.sale_id, "order", str(self.made))
        held = await self.try_hold(order_id, by=by, **units)
        assert isinstance(held, stock.Held), held
        return order_id

    async def try_hold(self, order_id: str, *, by: str = "ann", **units: int) -> Any:
        """Hold units under this id; the reply, whatever it is."""
        lines = [Units(self.variants[name], quantity) for name, quantity in units.items()]
        return await stock.hold(
            self.stores.gate,
            await self.sale(),
            hold_id=order_id,
            buyer_id=await self.person(by),
            fingerprint=ids.fingerprint(*[line.told for line in lines]),
            units=lines,
        )

    async def release(self, order_id: str, *, by: str = "ann", **units: int) -> None:
        """Give back these units, or all."""
        released = await stock.release(
            self.stores.gate,
            await self.sale(),
            hold_id=order_id,
            buyer_id=await self.person(by),
            release_id=ids.derive("release", order_id, str(units)),
            fingerprint="",
            units=[Units(self.variants[name], quantity) for name, quantity in units.items()],
        )
        assert isinstance(released, stock.Released), released

    async def begin_payment(self, order_id: str, *, by: str = "ann") -> Authorisation:
        """HELD to PAYING: the first step of a payment."""
        sale, user_id = await self.sale(), await self.person(by)
        payment_id = ids.derive("payment of", order_id)
        paying = await stock.pay(self.stores.gate, sale, hold_id=order_id, buyer_id=user_id, payment_id=payment_id)
        assert isinstance(paying, Paying), paying
        return Authorisation(
            payment_id=payment_id,
            fingerprint="",
            pay_deadline_ms=paying.pay_deadline_ms,
            holding=orders.holding_of(sale, order_id, user_id, paying),
        )

    async def authorise(self, order_id: str, *, by: str = "ann") -> Authorisation:
        """Funds are set aside: the second step."""
        request = await self.begin_payment(order_id, by=by)
        await self.set_funds_aside(request)
        return request

    async def confirm(self, request: Authorisation) -> Any:
        """PAYING to SOLD: the third step."""
        return await stock.confirm(
            self.stores.gate,
            await self.sale(),
            hold_id=request.holding.hold_id,
            fence=request.holding.fence,
            payment_id=request.payment_id,
        )

    async def abandon(self, request: Authorisation) -> Any:
        """PAYING to HELD or free: the other door."""
        return await stock.abandon(
            self.stores.gate,
            await self.sale(),
            hold_id=request.holding.hold_id,
            fence=request.holding.fence,
            payment_id=request.payment_id,
        )

    async def buy(self, *, by: str = "ann", **units: int) -> Authorisation:
        """Hold, pay and confirm; the worker has not heard of it."""
        request = await self.authorise(await self.hold(by=by, **units), by=by)
        assert isinstance(await self.confirm(request), Confirmed)
        return request

    async def rival(self, *, by: str, **units: int) -> Authorisation:
        """A request to pay for units that Redis gave away twice, as it can after a failover."""
        sale = await self.sale()
        order_id = ids.derive_in(self.sale_id, "rival", by, str(units))
        items = tuple([stock.Line(self.variants[name], count, _price(name)) for name, count in units.items()])
        return Authorisation(
            payment_id=ids.derive("payment of", order_id),
            fingerprint="",
            pay_deadline_ms=4_000_000_000_000,
            holding=orders.Holding(
                order_id=order_id,
                sale_id=sale.sale_id,
                user_id=await self.person(by),
                epoch=sale.epoch,
                fence=500,
                queue_no=0,
                fingerprint="",
                amount=sum(item.price * item.quantity for item in items),
                expires_at_ms=4_000_000_000_000,
                created_at_ms=1_900_000_000_000,
                items=items,
            ),
        )

    # What a test looks at ------------------------------------------------------------------------------------------

    async def left(self) -> dict[str, int]:
        """What Redis has of each variant."""
        left = await stock.left(self.stores.gate, await self.sale(), list(self.variants.values()))
        assert isinstance(left, dict), left
        return {name: left[variant_id] for name, variant_id in self.variants.items()}

    async def left_in_postgres(self) -> dict[str, int]:
        """What Postgres has of each variant."""
        rows = dict(
            await self.rows("SELECT variant_id, quantity FROM product_variants WHERE sale_id = $1", self.sale_id)
        )
        return {name: rows[variant_id] for name, variant_id in self.variants.items()}

    async def order(self, order_id: str) -> tuple[str, str | None]:
        """Status and reason of an order's row."""
        [row] = await self.rows("SELECT status, reason FROM orders WHERE order_id = $1", order_id)
        return row[0], row[1]

    async def lines(self, order_id: str) -> dict[str, tuple[int, str, int]]:
        """Of each line of an order: its quantity, how it stands, and what Redis counts for it."""
        rows = await self.rows(
            "SELECT variant_id, quantity, status, counted FROM order_items WHERE order_id = $1", order_id
        )
        names = {variant_id: name for name, variant_id in self.variants.items()}
        return {names[variant_id]: (quantity, status, counted) for variant_id, quantity, status, counted in rows}

    async def check(self) -> None:
        """Assert that Redis and Postgres say the same once nothing runs, and that no unit was made or lost."""
        assert await self.left() == await self.left_in_postgres()
        sold = dict(
            await self.rows(
                "SELECT variant_id, sum(quantity - refunded_quantity)::bigint FROM order_items "
                "WHERE sale_id = $1 AND status = 'SOLD' GROUP BY variant_id",
                self.sale_id,
            )
        )
        for name, quantity in (await self.left_in_postgres()).items():
            assert quantity + sold.get(self.variants[name], 0) == EACH
        owned = await self.rows("SELECT count(*) FROM user_items WHERE returned_at IS NULL")
        assert owned == [(sum(sold.values()),)]
        aside = await self.rows("SELECT coalesce(sum(set_aside), 0)::bigint FROM balances")
        live = await self.rows(
            "SELECT coalesce(sum(balance_amount), 0)::bigint FROM payments "
            "WHERE status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')"
        )
        assert aside == live


def confirmed(request: Authorisation, *, n: int) -> Entry:
    """The fact that this was sold, as it might stand in the outbox."""
    holding = request.holding
    fields = {"hold_id": holding.hold_id, "buyer_id": holding.user_id, "fence": str(holding.fence)}
    fields |= {"payment_id": request.payment_id, "queue_no": "0", "at_ms": "1900000000000"}
    return Entry(f"{n}-0", 1, n, f"{n - 1}-0", "confirmed", fields)


async def statuses(goods: Goods, *requests: Authorisation) -> list[str]:
    """How the payments of these stand."""
    return [await goods.payment(request.payment_id) for request in requests]


async def authorise(goods: Goods, *requests: Authorisation) -> list[str]:
    """Decide these payments in one transaction; how each stands then."""
    return [
        getattr(each, "status", type(each).__name__)
        for each in await authorisations.authorise(goods.stores.postgres, requests)
    ]


async def open_goods(stores: Stores, **terms: Any) -> Goods:
    """Make a drop whose sale is open."""
    await stores.postgres.execute(
        "INSERT INTO installation (name, value) VALUES ('currency', 'KRW') ON CONFLICT DO NOTHING"
    )
    sale_id = ids.random_id()
    made = await sales.create_drop(stores.postgres, sale_id=sale_id, terms=Terms(name="Drop", **terms), fingerprint="")
    assert isinstance(made, tuple)
    listed = [
        NewProduct(name="Mug", category="home", price=PRICES["mug"], variants=(NewVariant(stock=EACH),)),
        NewProduct(
            name="Cap",
            category="wear",
            price=PRICES["cap"],
            variants=(NewVariant(size="S", stock=EACH), NewVariant(size="L", stock=EACH)),
        ),
    ]
    added = await products.create(
        stores.postgres, key_id=ids.random_id(), sale_id=sale_id, listed=listed, fingerprint=""
    )
    assert isinstance(added, tuple)
    mug, cap = added[0]
    goods = Goods(stores, sale_id, SaleBook(stores.postgres))
    goods.variants = {
        "mug": mug.variants[0].variant_id,
        "cap_s": cap.variants[0].variant_id,
        "cap_l": cap.variants[1].variant_id,
    }
    assert await rebuild.ensure_open(stores, sale_id)
    return goods


def _price(name: str) -> int:
    return PRICES[name.partition("_")[0]]
