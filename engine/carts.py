"""Carts: what people mean to buy. A cart holds nothing and freezes no price: an order does, once it is made of it."""

from typing import Final

import asyncpg
import msgspec

from engine.refusals import LimitReached, NotFound
from engine.stores import queries
from engine.stores.queries import Connection

LINES_MAX: Final = 100
QUANTITY_MAX: Final = 1000
# What a cart may cost: exact wherever numbers are doubles.
AMOUNT_MAX: Final = 2**53 - 1

SQL = queries.load("carts")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """So many of a variant at today's price; `available` is what is left, 0 where it is not on sale any more."""

    variant_id: str
    product_id: str
    sale_id: str
    name: str
    size: str | None
    quantity: int
    unit_price: int
    available: int


class Cart(msgspec.Struct, frozen=True):
    """A user's cart, in the order it was filled."""

    lines: tuple[Line, ...]

    @property
    def amount(self) -> int:
        """What all of it costs today."""
        return sum(line.unit_price * line.quantity for line in self.lines)


async def find(postgres: asyncpg.Pool | Connection, user_id: str) -> Cart:
    """A user's cart; who has put nothing into it has an empty one."""
    return Cart(tuple([Line(**row) for row in await SQL.list_items.fetch(postgres, user_id)]))


async def put(
    postgres: asyncpg.Pool, *, user_id: str, variant_id: str, quantity: int
) -> Cart | LimitReached | NotFound | None:
    """Have so many of a variant in the cart, in place of those that are in it; None where the user was wiped.

    There may be more than are left: nobody knows yet what is left when they are ordered. What the public does not see
    cannot be put into a cart. Harmless to repeat.
    """
    price = await SQL.find_price.fetchval(postgres, variant_id)
    if price is None:
        return NotFound()
    async with postgres.acquire() as connection, connection.transaction():
        if await SQL.lock_user.fetchrow(connection, user_id) is None:
            return None
        cart = await find(connection, user_id)
        others = [line for line in cart.lines if line.variant_id != variant_id]
        if len(others) >= LINES_MAX:
            return LimitReached(LINES_MAX, len(others))
        amount = Cart(tuple(others)).amount + price * quantity
        if amount > AMOUNT_MAX:
            return LimitReached(AMOUNT_MAX, amount)
        await SQL.put_item.execute(connection, user_id, variant_id, quantity)
        return await find(connection, user_id)


async def remove(postgres: asyncpg.Pool, *, user_id: str, variant_id: str) -> Cart:
    """Have nothing of a variant in the cart; harmless to repeat."""
    await SQL.remove_item.execute(postgres, user_id, variant_id)
    return await find(postgres, user_id)


async def empty(postgres: asyncpg.Pool | Connection, user_id: str) -> None:
    """Have nothing in the cart; harmless to repeat."""
    await SQL.empty.execute(postgres, user_id)
