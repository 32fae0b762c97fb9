"""A drop in both stores, and orders that Postgres has, written behind everybody's back: what rebuilds are tried on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine import ids, products, rebuild, sales, stock
from engine.products import NewProduct, NewVariant
from engine.sales import Sale, SaleBook, Terms
from engine.stores import outbox
from engine.stores.connections import Stores

PRICES = {"mug": 1_200, "cap": 2_500}
EACH = 10

LIVE = ("PENDING", "AUTHORISED", "IN_DOUBT")


@dataclass
class Drop:
    """One sale of stock, a product a name with one variant of it."""

    stores: Stores
    sale_id: str
    book: SaleBook
    product_ids: dict[str, str] = field(default_factory=dict)
    variant_ids: dict[str, str] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=dict)
    made: int = 0

    async def sale(self) -> Sale:
        """The sale as its row stands."""
        sale = await self.book.read(self.sale_id)
        assert sale is not None
        return sale

    async def person(self, name: str) -> str:
        """Somebody with money; the same name is the same person."""
        if name not in self.people:
            user_id = self.people[name] = ids.derive("person", name)
            await self.stores.postgres.execute(
                "INSERT INTO users (user_id, subject, fingerprint) VALUES ($1, $2, '')", user_id, user_id
            )
            await self.stores.postgres.execute("INSERT INTO balances (user_id, amount) VALUES ($1, 10000000)", user_id)
        return self.people[name]

    # What Postgres has ------------------------------------------------------------------------------------------------

    async def order(
        self,
        *,
        by: str = "ann",
        status: str = "PENDING",
        reason: str | None = None,
        refunded: Mapping[str, int] | None = None,
        age_s: int = 0,
        expires_in_s: int = 300,
        **units: int,
    ) -> str:
        """An order of these units, `mug=2`, made and ended or paid so long ago; returns its id."""
        self.made += 1
        order_id = ids.derive_in(self.sale_id, "order", str(self.made))
        is_paid = status in {"PAID", "PARTIALLY_REFUNDED", "REFUNDED"}
        amount = sum(PRICES[name] * quantity for name, quantity in units.items())
        await self.stores.postgres.execute(
            "INSERT INTO orders (order_id, sale_id, user_id, epoch, fence, fingerprint, status, reason, "
            "original_amount, total_amount, expires_at, created_at, paid_at, ended_at) "
            "VALUES ($1, $2, $3, 1, $4::bigint, 'f', $5, $6, $7, $7, "
            "date_trunc('milliseconds', now()) + make_interval(secs => $8), "
            "now() - make_interval(secs => $9) + $4::bigint * interval '1 millisecond', "
            "CASE WHEN $10 THEN now() - make_interval(secs => $9) END, "
            "CASE WHEN $11 THEN now() - make_interval(secs => $9) END)",
            *(order_id, self.sale_id, await self.person(by), self.made, status, reason, amount),
            *(expires_in_s, age_s, is_paid, status in {"EXPIRED", "CANCELLED"}),
        )
        for name, quantity in units.items():
            await self.stores.postgres.execute(
                "INSERT INTO order_items (order_id, variant_id, sale_id, quantity, unit_price, total_price, status, "
                "refunded_quantity, counted) "
                "VALUES ($1, $2, $3, $4::bigint, $5::bigint, $4::bigint * $5::bigint, $6, $7, $8)",
                *(order_id, self.variant_ids[name], self.sale_id, quantity, PRICES[name]),
                "SOLD" if is_paid else "HELD" if status == "PENDING" else "ENDED",
                (refunded or {}).get(name, 0),
                quantity if is_paid else 0,
            )
            if is_paid:
                await self.stores.postgres.execute(
                    "UPDATE product_variants SET quantity = quantity - $2 WHERE variant_id = $1",
                    self.variant_ids[name],
                    quantity - (refunded or {}).get(name, 0),
                )
        return order_id

    async def payment(self, order_id: str, status: str = "AUTHORISED", *, card: bool = False) -> str:
        """A payment of an order, in this state; what may still buy something has its funds set aside."""
        row = await self.stores.postgres.fetchrow("SELECT * FROM orders WHERE order_id = $1", order_id)
        assert row is not None
        self.made += 1
        payment_id = ids.derive("payment", str(self.made))
        amount = row["total_amount"]
        await self.stores.postgres.execute(
            "INSERT INTO payments (payment_id, sale_id, order_id, user_id, epoch, fence, fingerprint, method, status, "
            "original_amount, final_amount, balance_amount, card_amount, pay_deadline, authorised_at, paid_at) "
            "VALUES ($1, $2, $3, $4, 1, $5, 'f', $6, $7, $8, $8, $9, $10, now() + interval '10 minutes', "
            "CASE WHEN $7 <> 'PENDING' THEN now() END, CASE WHEN $7 = 'SUCCESS' THEN now() END)",
            *(payment_id, self.sale_id, order_id, row["user_id"], row["fence"], "CARD" if card else "BALANCE"),
            *(status, amount, 0 if card else amount, amount if card else 0),
        )
        if status in LIVE and not card:
            await self.stores.postgres.execute(
                "UPDATE balances SET set_aside = set_aside + $2 WHERE user_id = $1", row["user_id"], amount
            )
        return payment_id

    async def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """What Postgres answers, as plain tuples."""
        return [tuple(row) for row in await self.stores.postgres.fetch(sql, *arguments)]

    async def standing(self, order_id: str) -> tuple[str, str | None]:
        """Status and reason of an order."""
        [row] = await self.rows("SELECT status, reason FROM orders WHERE order_id = $1", order_id)
        return row[0], row[1]

    async def set_aside(self, name: str) -> int:
        """What of somebody's balance is set aside."""
        [(amount,)] = await self.rows("SELECT set_aside FROM balances WHERE user_id = $1", await self.person(name))
        return int(amount)

    # What Redis has ---------------------------------------------------------------------------------------------------

    async def own(self, owner: str = "test") -> int:
        """Own the sale's streams, whoever did before."""
        await self.stores.postgres.execute(
            "UPDATE stream_owners SET until = now() - interval '1 second' WHERE sale_id = $1", self.sale_id
        )
        return (await outbox.take_ownership(self.stores.postgres, owner, sale_ids=[self.sale_id]))[self.sale_id]

    async def rebuild(self) -> Sale:
        """Write the sale anew, as its owner does."""
        return await rebuild.rebuild(self.stores, self.sale_id, await self.own())

    async def fields(self, name: str) -> dict[str, str]:
        """A hash of the sale; what is kept by variant is told by name."""
        names = {variant_id: name for name, variant_id in self.variant_ids.items()}
        rows = await self.stores.redis.hgetall(getattr((await self.sale()).keys, name))  # type: ignore[misc]
        return {names.get(key.decode(), key.decode()): value.decode() for key, value in rows.items()}

    async def left(self) -> dict[str, int]:
        """What anybody may have of each variant."""
        return {name: int(left) for name, left in (await self.fields("stock")).items()}

    async def freed(self) -> dict[str, int]:
        """What the waiting list has of each variant."""
        return {name: int(left) for name, left in (await self.fields("stock_freed")).items()}

    async def find(self, order_id: str) -> stock.Hold:
        """The hold of this id, which must be known."""
        found = await stock.find(self.stores.gate, await self.sale(), hold_id=order_id)
        assert isinstance(found, stock.Hold), found
        return found

    async def hold(self, *, by: str = "ann", id_: str | None = None, **units: int) -> Any:
        """Hold units, under a new id unless one is given; the reply, whatever it is."""
        self.made += 1
        return await stock.hold(
            self.stores.gate,
            await self.sale(),
            hold_id=id_ or ids.derive_in(self.sale_id, "hold", str(self.made)),
            buyer_id=await self.person(by),
            fingerprint="f",
            units=[stock.Units(self.variant_ids[name], quantity) for name, quantity in units.items()],
        )

    async def check(self) -> None:
        """Assert I1: of each variant left + freed + held + paying + bought is what there ever was."""
        total = Counter(await self.left()) + Counter(await self.freed())
        names = {variant_id: name for name, variant_id in self.variant_ids.items()}
        for record in (await self.fields("holds")).values():
            state, units = record.split("|")[0], record.split("|")[12]
            if state in {"HELD", "PAYING"}:
                for each in stock.units_of(units.split(",")):
                    total[names[each.variant_id]] += each.quantity
        for variant_id, bought in await self.rows(
            "SELECT variant_id, sum(counted)::bigint FROM order_items WHERE sale_id = $1 GROUP BY variant_id",
            self.sale_id,
        ):
            total[names[variant_id]] += bought
        initial = await self.rows("SELECT variant_id, initial_quantity FROM product_variants")
        assert dict(total) == {names[variant_id]: count for variant_id, count in initial if count}


async def new_drop(stores: Stores, *, units: int = EACH, **terms: Any) -> Drop:
    """A drop of mugs and caps, ten of each unless said, that no store knows yet."""
    sale_id = ids.random_id()
    await sales.create_drop(stores.postgres, sale_id=sale_id, terms=Terms(name="Drop", **terms), fingerprint="f")
    drop = Drop(stores, sale_id, SaleBook(stores.postgres))
    listed = [
        NewProduct(name=name, category="Things", price=price, variants=(NewVariant(stock=units),))
        for name, price in PRICES.items()
    ]
    made = await products.create(
        stores.postgres, key_id=ids.random_id(), sale_id=sale_id, listed=listed, fingerprint="f"
    )
    assert isinstance(made, tuple)
    for product in made[0]:
        drop.product_ids[product.name] = product.product_id
        drop.variant_ids[product.name] = product.variants[0].variant_id
    return drop


async def open_drop(stores: Stores, **terms: Any) -> Drop:
    """The same, open."""
    drop = await new_drop(stores, **terms)
    assert await rebuild.ensure_open(stores, drop.sale_id)
    return drop
