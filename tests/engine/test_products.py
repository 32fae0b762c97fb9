"""Products stand whole, once; they are edited by version and restocked by key."""

import asyncio
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from engine import accounts, ids, products, rebuild, sales
from engine.products import SHOP, SHOWN, STATUSES, VALUE_MAX, NewProduct, NewVariant, Product, Restocked
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound
from engine.sales import SaleBook, StaleVersion, Terms
from engine.stores.connections import Stores
from tests.shop import open_shop


def tee(**changes: Any) -> NewProduct:
    """A shirt in two sizes: five of the one, none of the other."""
    said: dict[str, Any] = {
        "name": "Tee",
        "category": "Shirts",
        "price": 20_000,
        "variants": (NewVariant(size="M", stock=5), NewVariant(size="L", stock=0)),
    }
    return NewProduct(**said | changes)


async def create(postgres: asyncpg.Pool, *listed: NewProduct, key: str = "k", **named: Any) -> Any:
    return await products.create(
        postgres, key_id=key, listed=listed or [tee()], **{"sale_id": None, "fingerprint": "f"} | named
    )


async def one(postgres: asyncpg.Pool, *listed: NewProduct, **named: Any) -> Product:
    [found], _ = await create(postgres, *listed, **named)
    assert isinstance(found, Product)
    return found


async def drop(postgres: asyncpg.Pool) -> str:
    sale_id = ids.derive("a drop")
    await sales.create_drop(postgres, sale_id=sale_id, terms=Terms(name="Drop"), fingerprint="f")
    return sale_id


# Making ---------------------------------------------------------------------------------------------------------------


async def test_a_product_opens_the_standing_sale(postgres: asyncpg.Pool) -> None:
    made = await one(postgres)
    assert (made.name, made.status, made.sale_id, made.version) == ("Tee", "ON_SALE", SHOP, 1)
    assert [(each.size, each.quantity, each.initial_quantity) for each in made.variants] == [("M", 5, 5), ("L", 0, 0)]
    assert len({each.variant_id for each in made.variants}) == 2
    sale = await SaleBook(postgres).find(SHOP)
    assert sale is not None
    assert (sale.kind, sale.name, sale.room, sale.store_state, sale.schedule_id) == (
        "stock",
        "shop",
        "off",
        "new",
        None,
    )
    assert await one(postgres, key="another") != made
    assert await postgres.fetchval("SELECT count(*) FROM sales") == 1


async def test_products_of_one_request_are_made_once(postgres: asyncpg.Pool) -> None:
    listed = [tee(), tee(name="Cap", variants=(NewVariant(stock=1),))]
    made = await asyncio.gather(*(create(postgres, *listed) for _ in range(4)))
    assert [repeated for _, repeated in made].count(False) == 1
    assert all(found == made[0][0] for found, _ in made)
    assert [product.name for product in made[0][0]] == ["Tee", "Cap"]
    assert await create(postgres, tee(), fingerprint="other") == IdempotencyKeyReused()
    assert await postgres.fetchval("SELECT count(*) FROM products") == 2


async def test_of_two_requests_under_one_key_the_first_stands_whole(postgres: asyncpg.Pool) -> None:
    short = create(postgres, tee(), fingerprint="short")
    long = create(postgres, *[tee(name=str(number)) for number in range(20)], fingerprint="long")
    answers = await asyncio.gather(short, long)
    assert answers.count(IdempotencyKeyReused()) == 1
    [made] = [found for found, _ in (each for each in answers if isinstance(each, tuple))]
    assert await postgres.fetchval("SELECT count(*) FROM products") == len(made)
    assert await postgres.fetchval("SELECT count(*) FROM product_variants") == 2 * len(made)


async def test_a_product_of_a_drop_belongs_to_it(postgres: asyncpg.Pool) -> None:
    sale_id = await drop(postgres)
    assert (await one(postgres, sale_id=sale_id)).sale_id == sale_id
    assert await postgres.fetchval("SELECT count(*) FROM sales") == 1


async def test_only_a_sale_of_goods_sells_products(stores: Stores) -> None:
    concert = await open_shop(stores)
    assert await create(stores.postgres, sale_id=concert.sale_id) == NotFound()
    assert await create(stores.postgres, sale_id="0" * 32) == NotFound()
    assert await stores.postgres.fetchval("SELECT count(*) FROM products") == 0


async def test_a_product_that_cannot_be_made_whole_is_not_made(postgres: asyncpg.Pool) -> None:
    twice = (NewVariant(stock=1), NewVariant(stock=2))
    with pytest.raises(asyncpg.UniqueViolationError):
        await create(postgres, tee(), tee(variants=twice))
    for table in ("sales", "products", "product_variants"):
        assert await postgres.fetchval(f"SELECT count(*) FROM {table}") == 0


# Finding --------------------------------------------------------------------------------------------------------------


async def test_products_are_listed_newest_first_and_an_import_in_its_order(postgres: asyncpg.Pool) -> None:
    await create(postgres, *[tee(name=name) for name in "CDE"], key="first")
    await create(postgres, *[tee(name=name) for name in "AB"], key="second")
    seen: list[str] = []
    before: tuple[datetime, str] | None = None
    while page := await products.list_products(postgres, statuses=SHOWN, before=before, most=2):
        seen += [product.name for product in page]
        before = page[-1].created_at, page[-1].product_id
    assert seen == ["A", "B", "C", "D", "E"]


async def test_products_are_listed_by_state_and_category(postgres: asyncpg.Pool) -> None:
    for status in STATUSES:
        await create(postgres, tee(name=status, status=status), tee(name="Cap", category="Hats"), key=status)
    asked: dict[str, Any] = {"category": "Shirts", "before": None, "most": 9}
    shown = await products.list_products(postgres, statuses=SHOWN, **asked)
    assert {product.name for product in shown} == {"ON_SALE", "STOPPED"}
    every = await products.list_products(postgres, statuses=STATUSES, **asked)
    assert {product.name for product in every} == set(STATUSES)
    assert await products.find(postgres, "0" * 32) is None


# Changing -------------------------------------------------------------------------------------------------------------


async def test_one_of_two_edits_of_a_version_stands(postgres: asyncpg.Pool) -> None:
    made = await one(postgres)
    edits = await asyncio.gather(
        *(
            products.edit(postgres, product_id=made.product_id, version=1, changes={"price": price})
            for price in (1, 2, 3)
        )
    )
    [edited] = [edit for edit in edits if isinstance(edit, Product)]
    assert edits.count(StaleVersion(2)) == 2
    assert await products.find(postgres, made.product_id) == edited
    assert (edited.version, edited.name, edited.variants) == (2, made.name, made.variants)
    assert await products.edit(postgres, product_id="0" * 32, version=1, changes={}) == NotFound()


async def operator(postgres: asyncpg.Pool) -> str:
    return await accounts.own_key(postgres)


async def test_a_restock_adds_to_what_is_left_and_to_what_there_ever_was(postgres: asyncpg.Pool) -> None:
    made = await one(postgres)
    await postgres.execute("UPDATE product_variants SET quantity = 1 WHERE size = 'M'")
    more: dict[str, Any] = {"variant_id": made.variants[0].variant_id, "api_key_id": await operator(postgres)}
    asked = [products.restock(postgres, restock_id="a" * 32, quantity=7, **more) for _ in range(4)]
    answers = await asyncio.gather(*asked)
    assert [isinstance(each, tuple) and each[1] for each in answers].count(False) == 1
    variant = answers[0]
    assert isinstance(variant, tuple)
    assert variant[0] == Restocked(
        variant_id=made.variants[0].variant_id,
        product_id=made.product_id,
        sale_id=SHOP,
        size="M",
        quantity=8,
        initial_quantity=12,
    )
    assert await products.restock(postgres, restock_id="a" * 32, quantity=8, **more) == IdempotencyKeyReused()
    nothing = await products.restock(postgres, restock_id="b" * 32, quantity=1, **more | {"variant_id": "0" * 32})
    assert nothing == NotFound()
    rows = await postgres.fetch("SELECT variant_id, quantity, api_key_id FROM restocks")
    assert [tuple(row) for row in rows] == [(made.variants[0].variant_id, 7, accounts.COMMAND_LINE)]


async def test_what_a_product_is_worth_stays_exact(postgres: asyncpg.Pool) -> None:
    made = await one(postgres, tee(price=2**23, variants=(NewVariant(stock=2**29), NewVariant(size="L", stock=1))))
    more: dict[str, Any] = {"variant_id": made.variants[1].variant_id, "api_key_id": await operator(postgres)}
    left = VALUE_MAX // 2**23 - made.value // 2**23
    over = await products.restock(postgres, restock_id="a" * 32, quantity=left + 1, **more)
    assert over == LimitReached(VALUE_MAX, 2**23 * (VALUE_MAX // 2**23 + 1))
    assert isinstance(await products.restock(postgres, restock_id="b" * 32, quantity=left, **more), tuple)
    dearer = await products.edit(postgres, product_id=made.product_id, version=1, changes={"price": 2**24})
    assert isinstance(dearer, LimitReached)
    unchanged = await products.find(postgres, made.product_id)
    assert unchanged is not None
    assert (unchanged.version, unchanged.price, unchanged.variants[1].quantity) == (1, 2**23, left + 1)


async def test_restocks_of_two_sizes_at_once_stay_within_the_limit_together(postgres: asyncpg.Pool) -> None:
    # Each alone fits, both do not: whoever comes second counts the first.
    made = await one(postgres, tee(price=10**12, variants=(NewVariant(stock=0), NewVariant(size="L", stock=0))))
    api_key_id = await operator(postgres)
    answers = await asyncio.gather(
        *(
            products.restock(
                postgres,
                restock_id=ids.random_id(),
                variant_id=variant.variant_id,
                quantity=5000,
                api_key_id=api_key_id,
            )
            for variant in made.variants
        )
    )
    assert [type(each) for each in answers].count(LimitReached) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE products SET price = -1",
        "UPDATE products SET price = 1000000000001",
        "UPDATE products SET status = 'SOLD'",
        "UPDATE product_variants SET quantity = -1",
        "UPDATE product_variants SET quantity = 6",
        "UPDATE product_variants SET size = 'M'",
        "UPDATE product_variants SET size = NULL",
        "UPDATE product_variants SET sale_id = product_id",
        "DELETE FROM products",
    ],
)
async def test_what_must_never_be_in_stock_is_refused_by_the_database(postgres: asyncpg.Pool, statement: str) -> None:
    await one(postgres)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await postgres.execute(statement)


# The sale -------------------------------------------------------------------------------------------------------------


async def test_a_sale_of_goods_opens_without_seats_and_is_rebuilt(stores_any: Stores) -> None:
    stores = stores_any
    made = await one(stores.postgres)
    assert await rebuild.ensure_open(stores, made.sale_id)
    assert await rebuild.demand(stores, made.sale_id, reason="an operator asked")
    sale = await SaleBook(stores.postgres).find(made.sale_id)
    assert sale is not None
    assert (sale.epoch, sale.store_state, sale.kind) == (2, "open", "stock")
