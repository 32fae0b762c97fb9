"""Carts: what people mean to buy. A cart holds nothing and freezes no price: an order does, once it is made of it."""

from collections.abc import Iterable, Sequence
from typing import Final

import asyncpg
import msgspec

from engine import ids
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.stores import queries
from engine.stores.queries import Connection
from engine.stores.replies import Refusal

LINES_MAX: Final = 100
QUANTITY_MAX: Final = 1000
# What a cart may cost: exact wherever numbers are doubles.
AMOUNT_MAX: Final = 2**53 - 1
# So long what a checkout takes is out of reach of others: a request lives shorter, and one that died took nothing.
CHECKOUT_S: Final = 30.0

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


# Checkout -------------------------------------------------------------------------------------------------------------


class Group(msgspec.Struct, frozen=True):
    """Variants in one order that one sale sells."""

    sale_id: str
    variant_ids: tuple[str, ...]


class MixedSales(Refusal, frozen=True):
    """These are sold by several sales, and an order is of one."""

    groups: tuple[Group, ...]


class CartEmpty(Refusal, frozen=True):
    """There is nothing in the cart to order."""


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """What an order takes from a cart; its id and lines are those of the first request with its key."""

    checkout_id: str
    order_id: str
    sale_id: str
    lines: tuple[tuple[str, int], ...]


async def check_out(
    postgres: asyncpg.Pool, *, checkout_id: str, user_id: str, sale_id: str | None
) -> Checkout | MixedSales | CartEmpty | IdempotencyKeyReused | None:
    """Take what one sale sells from a cart, to be ordered; None where the user was wiped.

    Nothing leaves the cart yet: that is `finish`, once units are held. A repeat takes what the first one took, also
    when the cart has changed since; another request at the same moment finds only what no other takes.
    """
    fingerprint = ids.fingerprint("cart", sale_id or "")
    async with postgres.acquire() as connection, connection.transaction():
        if await SQL.lock_user.fetchrow(connection, user_id) is None:
            return None
        earlier = await SQL.find_checkout.fetchrow(connection, checkout_id)
        if earlier is not None:
            if earlier["fingerprint"] != fingerprint:
                return IdempotencyKeyReused()
            lines = tuple(zip(earlier["variant_ids"], earlier["quantities"], strict=True))
            of_sale = await SQL.find_sale_of.fetchval(connection, lines[0][0])
            return Checkout(checkout_id=checkout_id, order_id=earlier["order_id"], sale_id=of_sale, lines=lines)
        cart = await find(connection, user_id)
        rows = await SQL.count_taken.fetch(connection, user_id, CHECKOUT_S)
        taken: dict[str, int] = {row["variant_id"]: row["quantity"] for row in rows}
        chosen = [
            (line, line.quantity - taken.get(line.variant_id, 0))
            for line in cart.lines
            if (sale_id is None or line.sale_id == sale_id) and line.quantity > taken.get(line.variant_id, 0)
        ]
        if not chosen:
            return CartEmpty()
        groups = group((line.variant_id, line.sale_id) for line, _ in chosen)
        if len(groups) > 1:
            return MixedSales(groups)
        order_id = ids.derive_in(groups[0].sale_id, "checkout", checkout_id)
        lines = tuple([(line.variant_id, quantity) for line, quantity in chosen])
        await SQL.add_checkout.execute(
            connection, checkout_id, user_id, order_id, fingerprint, *map(list, zip(*lines, strict=True))
        )
    return Checkout(checkout_id=checkout_id, order_id=order_id, sale_id=groups[0].sale_id, lines=lines)


def group(variants: Iterable[tuple[str, str]]) -> tuple[Group, ...]:
    """Sort variants, each with its sale, by sale."""
    of_sale: dict[str, list[str]] = {}
    for variant_id, sale_id in variants:
        of_sale.setdefault(sale_id, []).append(variant_id)
    return tuple([Group(sale_id, tuple(variant_ids)) for sale_id, variant_ids in of_sale.items()])


async def call_back(postgres: asyncpg.Pool, checkout_id: str) -> None:
    """Nothing was held: forget the checkout, so that its key may try again with the cart as it is then."""
    await SQL.remove_checkout.execute(postgres, checkout_id)


async def finish(connection: asyncpg.Pool | Connection, order_ids: Sequence[str]) -> None:
    """Take what these orders were made of out of the carts, once; an order that was made of none is passed over."""
    await SQL.finish_checkouts.execute(connection, order_ids)
