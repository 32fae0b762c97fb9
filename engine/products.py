"""Products: what the shop and its drops sell, each in one variant or several with a stock of their own.

A product belongs to a sale of kind `stock`: the standing one, which opens with the first product that names no sale,
or a drop. What is left of a variant is `quantity`, all that there ever was is `initial_quantity`; a restock adds to
both.

Redis is told of every change. Changes of a sale's products are numbered under the lock of its row, and a product says
which was its last, so what a copy has not heard is what was changed after the last number that it knows. It is told in
that order, in parts of whole products, each of which moves the number on. A process that dies in between leaves a copy
that is behind, which the sale's owner sees.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, cast

import asyncpg
import msgspec

from engine import ids, sales
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.sales import Sale, StaleVersion, Terms
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script

PRICE_MAX: Final = 10**12
# Units of a variant at first, and of one restock.
STOCK_MAX: Final = 10**9
VARIANTS_MAX: Final = 100
# What all units of a product may cost together, and how many there may ever be: every sum of them is exact wherever
# numbers are doubles.
VALUE_MAX: Final = 2**53 - 1

# The standing sale, of every product that belongs to no drop.
SHOP: Final = ids.derive("shop")

Status = Literal["DRAFT", "ON_SALE", "STOPPED", "HIDDEN"]
STATUSES: Final[tuple[Status, ...]] = ("DRAFT", "ON_SALE", "STOPPED", "HIDDEN")
# What the public sees; of these only what is ON_SALE is sold.
SHOWN: Final[tuple[Status, ...]] = ("ON_SALE", "STOPPED")

# What a variant is called stands this long in a process before it is read again.
_FRESH_S: Final = 5.0
_LABELS_KEPT_MAX: Final = 100_000

# Variants in one call: a few milliseconds of the store's time.
TOLD_AT_ONCE: Final = 500

SQL = queries.load("products")


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of a product."""

    name: str
    category: str
    description: str | None = None
    price: int
    status: str = "ON_SALE"


class NewVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A size, or none, and how many units there are of it."""

    size: str | None = None
    stock: int


class NewProduct(Label, frozen=True, kw_only=True):
    """A product as an operator lists it, with at least one variant and no size twice."""

    variants: tuple[NewVariant, ...]


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A product in one of its sizes: what is left, and all that there ever was."""

    variant_id: str
    size: str | None
    quantity: int
    initial_quantity: int


class Product(Label, frozen=True, kw_only=True):
    """A product as it stands, its variants in the operator's order."""

    product_id: str
    sale_id: str
    variants: tuple[Variant, ...]
    fingerprint: str
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def value(self) -> int:
        """What all units that there ever were of it cost today."""
        return value_of(price=self.price, units=sum(variant.initial_quantity for variant in self.variants))


class VariantLabel(msgspec.Struct, frozen=True):
    """What a variant is called, whose sale sells it, and the sizes of its product in the operator's order."""

    sale_id: str
    product_id: str
    name: str
    size: str | None
    siblings: tuple[tuple[str, str | None], ...]


class Restocked(Variant, frozen=True, kw_only=True):
    """A variant that more units came to, as it now stands."""

    product_id: str
    sale_id: str


def value_of(*, price: int, units: int) -> int:
    """What so many units cost, and at least how many there are: what is given away is counted, too."""
    return units * max(price, 1)


# Making ---------------------------------------------------------------------------------------------------------------


async def create(
    postgres: asyncpg.Pool, *, key_id: str, sale_id: str | None, listed: Sequence[NewProduct], fingerprint: str
) -> tuple[list[Product], bool] | IdempotencyKeyReused | NotFound:
    """Make these products in a sale, the standing one unless another is named, all of them or none.

    Answers them as they now stand, and whether an earlier request made them. `key_id` is what the request's key makes;
    the id of each product follows from it. The sale may be not yet open: it is written to Redis next, or told.
    """
    product_ids = [ids.derive("product", key_id, str(number)) for number in range(len(listed))]
    if await find(postgres, product_ids[0]) is None:
        async with postgres.acquire() as connection, connection.transaction():
            if sale_id is None:
                await sales.create(connection, sale_id=SHOP, kind="stock", terms=Terms(name="shop"))
            # Before the first row that refers to it: a lock is never raised while others wait for it.
            if await SQL.lock_sale.fetchval(connection, sale_id or SHOP) != "stock":
                return NotFound()
            added = await _add(connection, sale_id or SHOP, product_ids, listed, fingerprint)
    else:
        added = False
    first = await find(postgres, product_ids[0])
    if first is None or first.fingerprint != fingerprint:
        return IdempotencyKeyReused()
    found = {product.product_id: product for product in await _find_many(postgres, product_ids)}
    return [found[product_id] for product_id in product_ids], not added


async def _add(
    connection: Connection, sale_id: str, product_ids: Sequence[str], listed: Sequence[NewProduct], fingerprint: str
) -> bool:
    """Add products with their variants; False where a request with the same key was quicker, and nothing is added."""

    async def add(first: int, end: int) -> int:
        rows = listed[first:end]
        columns = [[getattr(row, field) for row in rows] for field in Label.__struct_fields__]
        return await SQL.add_products.execute(connection, sale_id, fingerprint, first, product_ids[first:end], *columns)

    # Whoever adds the first adds them all.
    if not await add(0, 1):
        return False
    await add(1, len(listed))
    variants = [
        (ids.derive("variant", product_id, str(number)), product_id, variant.size, variant.stock, number)
        for product_id, product in zip(product_ids, listed, strict=True)
        for number, variant in enumerate(product.variants, start=1)
    ]
    await SQL.add_variants.execute(connection, sale_id, *map(list, zip(*variants, strict=True)))
    await SQL.number_changes.execute(connection, sale_id, product_ids)
    return True


# Finding --------------------------------------------------------------------------------------------------------------


async def find(postgres: asyncpg.Pool | Connection, product_id: str) -> Product | None:
    """One product by id, in whatever state."""
    found = await _find_many(postgres, [product_id])
    return found[0] if found else None


async def list_products(
    postgres: asyncpg.Pool,
    *,
    statuses: Sequence[Status],
    category: str | None = None,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Product]:
    """Products in these states, newest first, from before a place in that order on."""
    made_at, product_id = before or (None, None)
    rows = await SQL.list_products.fetch(postgres, list(statuses), category, made_at, product_id, most)
    return await _with_variants(postgres, rows)


async def _find_many(postgres: asyncpg.Pool | Connection, product_ids: Sequence[str]) -> list[Product]:
    return await _with_variants(postgres, await SQL.find_products.fetch(postgres, product_ids))


async def _with_variants(postgres: asyncpg.Pool | Connection, rows: Sequence[asyncpg.Record]) -> list[Product]:
    variants: defaultdict[str, list[Variant]] = defaultdict(list)
    for row in await SQL.list_variants.fetch(postgres, [row["product_id"] for row in rows]):
        values = dict(row)
        variants[values.pop("product_id")].append(Variant(**values))
    return [Product(**row, variants=tuple(variants[row["product_id"]])) for row in rows]


# Changing -------------------------------------------------------------------------------------------------------------


async def edit(
    postgres: asyncpg.Pool, *, product_id: str, version: int, changes: Mapping[str, Any]
) -> Product | StaleVersion | LimitReached | NotFound:
    """Change what these fields of a product say, if it still has this version; what was held before keeps its price."""
    async with postgres.acquire() as connection, connection.transaction():
        product = await _lock(connection, product_id)
        if product is None:
            return NotFound()
        if product.version != version:
            return StaleVersion(product.version)
        edited = msgspec.structs.replace(product, **changes)
        if edited.value > VALUE_MAX:
            return LimitReached(VALUE_MAX, edited.value)
        said = [getattr(edited, field) for field in Label.__struct_fields__]
        await SQL.edit_product.execute(connection, product_id, *said)
        await SQL.number_changes.execute(connection, product.sale_id, [product_id])
    return await find(postgres, product_id) or NotFound()


async def restock(
    postgres: asyncpg.Pool, *, restock_id: str, variant_id: str, quantity: int, api_key_id: str
) -> tuple[Restocked, bool] | IdempotencyKeyReused | LimitReached | NotFound:
    """Add units to a variant, once; answers it as it now stands, and whether an earlier request added them."""
    fingerprint = ids.fingerprint(variant_id, str(quantity))
    variant = await SQL.find_variant.fetchrow(postgres, variant_id)
    if variant is None:
        return NotFound()
    async with postgres.acquire() as connection, connection.transaction():
        product = await _lock(connection, variant["product_id"])
        assert product is not None  # noqa: S101 - products are never deleted
        earlier = await SQL.find_restock.fetchval(connection, restock_id)
        if earlier is None:
            value = product.value + value_of(price=product.price, units=quantity)
            if value > VALUE_MAX:
                return LimitReached(VALUE_MAX, value)
            await SQL.add_restock.execute(connection, restock_id, variant_id, quantity, fingerprint, api_key_id)
            await SQL.restock.execute(connection, variant_id, quantity)
            await SQL.number_changes.execute(connection, product.sale_id, [product.product_id])
        elif earlier != fingerprint:
            return IdempotencyKeyReused()
        standing = await SQL.find_variant.fetchrow(connection, variant_id)
    assert standing is not None  # noqa: S101 - as above
    return Restocked(**standing), earlier is not None


async def _lock(connection: Connection, product_id: str) -> Product | None:
    """Lock a product and read it: its price and its units change one after the other."""
    await SQL.lock_product.execute(connection, product_id)
    # In a statement of its own, which sees what the one before it may have waited for.
    return await find(connection, product_id)


# In Redis -------------------------------------------------------------------------------------------------------------


class Told(Reply, frozen=True):
    """The store has heard of every change up to this one."""

    change_no: int


TELL = Script("products/tell", SaleKeys, Told | Unavailable)


async def tell(gate: Gate, postgres: asyncpg.Pool, sale: Sale) -> Told | Unavailable:
    """Tell the store whatever changed of a sale's products since it last heard.

    Safe to call at any time by any number of processes: what has been told is not told again, and a part that comes
    late changes nothing.
    """
    told = await sales.ask(gate, sale, TELL, after=0, change_no=0, rows=())
    while isinstance(told, Told):
        changed = await SQL.list_changed.fetch(postgres, sale.sale_id, told.change_no, TOLD_AT_ONCE)
        if not changed:
            break
        rows = [value for row in changed for value in (row["variant_id"], told_price(row), row["initial_quantity"])]
        told = await sales.ask(
            gate, sale, TELL, after=told.change_no, change_no=changed[-1]["change_no"], rows=tuple(rows)
        )
    return told


def told_price(row: Mapping[str, Any] | asyncpg.Record) -> str:
    """What a unit costs, as the store keeps it: after a `-` where it is not on sale."""
    return str(row["price"]) if row["status"] == "ON_SALE" else f"-{row['price']}"


# What variants are called ---------------------------------------------------------------------------------------------


class Labels:
    """What variants are called, as one process tells it: at most a few seconds old."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self._known: dict[str, tuple[float, VariantLabel]] = {}
        # However many ask at once, one read answers them all.
        self._read = Coalescer(self._read_stale, most=1024, in_flight_max=1)

    async def find(self, variant_ids: Sequence[str]) -> dict[str, VariantLabel]:
        """What these variants are called; those that do not exist are missing."""
        asked = {variant_id: self._fresh(variant_id) for variant_id in variant_ids}
        if None not in asked.values():
            return cast("dict[str, VariantLabel]", asked)
        # All that are stale are asked for at once.
        stale = {variant_id: self._read.submit(variant_id) for variant_id, label in asked.items() if label is None}
        found = {variant_id: label or await stale[variant_id] for variant_id, label in asked.items()}
        return {variant_id: label for variant_id, label in found.items() if label is not None}

    def _fresh(self, variant_id: str) -> VariantLabel | None:
        until, label = self._known.get(variant_id, (0.0, None))
        return label if asyncio.get_running_loop().time() < until else None

    async def _read_stale(self, variant_ids: list[str]) -> list[VariantLabel | None]:
        answers = {variant_id: self._fresh(variant_id) for variant_id in variant_ids}
        stale = [variant_id for variant_id, label in answers.items() if label is None]
        until = asyncio.get_running_loop().time() + _FRESH_S
        for row in await SQL.find_labels.fetch(self._postgres, stale) if stale else ():
            siblings = tuple(zip(row["sibling_ids"], row["sibling_sizes"], strict=True))
            label = VariantLabel(row["sale_id"], row["product_id"], row["name"], row["size"], siblings)
            answers[row["variant_id"]] = label
            self._known.pop(row["variant_id"], None)
            self._known[row["variant_id"]] = until, label
        while len(self._known) > _LABELS_KEPT_MAX:
            del self._known[next(iter(self._known))]
        return [answers[variant_id] for variant_id in variant_ids]
