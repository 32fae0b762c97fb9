"""A drop in both stores and the people who buy from it, by the same steps as `tests/shop.py` takes with a concert."""

from dataclasses import dataclass, field
from typing import Any

from engine import (
    accounts,
    authorisations,
    ids,
    orders,
    products,
    rebuild,
    sales,
    stock,
    variant_waiting_lists,
    waiting_lists,
)
from engine.authorisations import Authorisation
from engine.products import NewProduct, NewVariant
from engine.sales import SaleBook, Terms
from engine.seats import Confirmed, Paying
from engine.shelf import UnitWish
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

    # Who waits -----------------------------------------------------------------------------------------------------

    async def restock(self, name: str, quantity: int) -> None:
        """So many more units come, and the store hears of it."""
        self.made += 1
        restocked = await products.restock(
            self.stores.postgres,
            restock_id=ids.derive_in(self.sale_id, "restock", str(self.made)),
            variant_id=self.variants[name],
            quantity=quantity,
            api_key_id=await accounts.own_key(self.stores.postgres),
        )
        assert isinstance(restocked, tuple), restocked
        assert isinstance(await products.tell(self.stores.gate, self.stores.postgres, await self.sale()), products.Told)

    async def try_join(self, by: str, key: str = "", **units: int) -> Any:
        """Wait for units of one variant, `mug=2`; the answer, whatever it is."""
        [(name, quantity)] = units.items()
        return await variant_waiting_lists.join(
            self.stores,
            self.book,
            entry_id=ids.derive("entry", by, key),
            user_id=await self.person(by),
            wish=UnitWish(variant_id=self.variants[name], quantity=quantity),
        )

    async def join(self, by: str, key: str = "", **units: int) -> waiting_lists.Entry:
        """The same, which must succeed."""
        entry = await self.try_join(by, key, **units)
        assert isinstance(entry, waiting_lists.Entry), entry
        return entry

    async def serve(self) -> waiting_lists.Served:
        """What the sale's owner does a few times a second."""
        return await variant_waiting_lists.serve(self.stores, await self.sale())

    async def offer_of(self, entry: waiting_lists.Entry) -> stock.Hold:
        """What was offered, which must be there."""
        found = await stock.find(self.stores.gate, await self.sale(), hold_id=entry.hold_id)
        assert isinstance(found, stock.Hold), found
        return found

    async def waiting(self) -> dict[str, str]:
        """How each entry stands, by name of its user, in order of joining."""
        rows = await self.rows("SELECT user_id, status FROM waiting_list_entries ORDER BY entry_no")
        names = {user_id: name for name, user_id in self.people.items()}
        return {names[user_id]: status for user_id, status in rows}

    # What a test looks at ------------------------------------------------------------------------------------------

    async def freed(self) -> dict[str, int]:
        """What the waiting list has of each variant that it has anything of."""
        rows = await self.stores.redis.hgetall((await self.sale()).keys.stock_freed)  # type: ignore[misc]
        names = {variant_id: name for name, variant_id in self.variants.items()}
        return {names[variant_id.decode()]: int(units) for variant_id, units in rows.items()}

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
