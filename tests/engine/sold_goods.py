"""Products whose orders are written as rows: what statistics count, without all that comes before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import asyncpg

from engine import ids, products, statistics
from engine.products import SHOP, NewProduct, NewVariant, Product
from engine.statistics import Refunded
from engine.stores.queries import Connection

PRICE = 500


@dataclass
class Stand:
    """Who sells, and what they may do: each order is paid and counted in one transaction."""

    postgres: asyncpg.Pool
    user_id: str
    made: int = field(default=0)

    async def product(self, name: str = "Tee", *, sizes: int = 1, status: products.Status = "ON_SALE") -> Product:
        """A product in so many sizes."""
        variants = tuple(NewVariant(size=str(size), stock=10**6) for size in range(sizes))
        listed = [NewProduct(name=name, category="Shirts", price=PRICE, status=status, variants=variants)]
        self.made += 1
        key_id = ids.derive("products", str(self.made))
        made = await products.create(self.postgres, key_id=key_id, sale_id=None, listed=listed, fingerprint="")
        assert isinstance(made, tuple), made
        return made[0][0]

    async def pay(
        self, connection: Connection, units: Mapping[str, int], at: datetime | None = None, *, discount: int = 0
    ) -> str:
        """An order of these units by variant, paid at a moment or now; the discount is on its first line."""
        self.made += 1
        order_id = ids.derive("order", str(self.made))
        original = PRICE * sum(units.values())
        await connection.execute(
            "INSERT INTO orders (order_id, sale_id, user_id, epoch, fence, fingerprint, status, original_amount, "
            "discount_amount, total_amount, user_coupon_id, expires_at, created_at, paid_at) "
            "VALUES ($1::uuid, $2, $3, 1, 1, '', 'PAID', $4::bigint, $5::bigint, $4 - $5, "
            "CASE WHEN $5 > 0 THEN $1::uuid END, now(), now(), coalesce($6, now()))",
            order_id,
            SHOP,
            self.user_id,
            original,
            discount,
            at,
        )
        await connection.executemany(
            "INSERT INTO order_items (order_id, variant_id, sale_id, quantity, unit_price, discount_amount, "
            "total_price, status) VALUES ($1, $2, $3, $4::bigint, $5::bigint, $6::bigint, $4 * $5 - $6, 'SOLD')",
            [
                (order_id, variant_id, SHOP, quantity, PRICE, 0 if place else discount)
                for place, (variant_id, quantity) in enumerate(units.items())
            ],
        )
        return order_id

    async def sell(self, units: Mapping[str, int], at: datetime | None = None, **more: Any) -> str:
        """Pay for an order and count it."""
        async with self.postgres.acquire() as connection, connection.transaction():
            order_id = await self.pay(connection, units, at, **more)
            await statistics.count_sold(connection, [order_id])
        return order_id

    async def give_back(self, order_id: str, variant_id: str, quantity: int, amount: int, key: str = "") -> None:
        """Cancel units of a line."""
        cancellation_id = ids.derive("cancellation", order_id, variant_id, key)
        async with self.postgres.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE order_items SET refunded_quantity = refunded_quantity + $3 "
                "WHERE order_id = $1 AND variant_id = $2",
                order_id,
                variant_id,
                quantity,
            )
            refunded = Refunded(
                cancellation_id=cancellation_id,
                order_id=order_id,
                variant_id=variant_id,
                quantity=quantity,
                amount=amount,
            )
            await statistics.count_refunded(connection, [refunded])

    async def live_in(self, time_zone: str) -> None:
        """Count days of this zone."""
        await self.postgres.execute("UPDATE installation SET value = $1 WHERE name = 'time_zone'", time_zone)

    async def days(self) -> dict[tuple[str, str], tuple[int, int, int, int, int]]:
        """Every day: sold, orders, amount, refunded and the amount of that, by product and day."""
        found = await statistics.list_days(
            self.postgres, first=date.min, last=date.max, product_id=None, before=None, most=10_000
        )
        return {
            (each.product_id, each.day.isoformat()): (
                each.sold_quantity,
                each.orders,
                each.amount,
                each.refunded_quantity,
                each.refunded_amount,
            )
            for each in found
        }

    async def intervals(self) -> list[statistics.Interval]:
        """Every interval, the oldest first."""
        found = await statistics.list_intervals(
            self.postgres, first=date.min, last=date.max, product_id=None, before=None, most=10_000
        )
        return found[::-1]


async def open_stand(postgres: asyncpg.Pool) -> Stand:
    """A stand with a buyer."""
    user_id = ids.derive("buyer")
    await postgres.execute("INSERT INTO users (user_id, subject, fingerprint) VALUES ($1, 'buyer', '')", user_id)
    return Stand(postgres, user_id)


def utc(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
