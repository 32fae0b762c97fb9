"""A cart holds nothing, has a bound, and tells today's prices and stock."""

import asyncio
from typing import Any

import asyncpg
import pytest

from engine import accounts, carts, ids, products
from engine.carts import AMOUNT_MAX, LINES_MAX, Cart, Line
from engine.products import SHOP, NewProduct, NewVariant, Product
from engine.refusals import LimitReached, NotFound

USER = "b" * 32


@pytest.fixture
async def postgres(postgres: asyncpg.Pool) -> asyncpg.Pool:
    """A database with one person in it."""
    await accounts.create_many(postgres, user_ids=[USER], fingerprint="f")
    return postgres


async def stock(postgres: asyncpg.Pool, sizes: int = 2, price: int = 500, status: str = "ON_SALE") -> Product:
    """A product in so many sizes, three of each."""
    made = await products.create(
        postgres,
        key_id=ids.random_id(),
        sale_id=None,
        listed=[
            NewProduct(
                name="Tee",
                category="Shirts",
                price=price,
                status=status,
                variants=tuple([NewVariant(size=str(number), stock=3) for number in range(sizes)]),
            )
        ],
        fingerprint="f",
    )
    assert isinstance(made, tuple)
    return made[0][0]


async def put(postgres: asyncpg.Pool, variant_id: str, quantity: int = 1, user_id: str = USER) -> Any:
    return await carts.put(postgres, user_id=user_id, variant_id=variant_id, quantity=quantity)


async def test_a_cart_is_filled_changed_and_emptied(postgres: asyncpg.Pool) -> None:
    tee = await stock(postgres)
    first, second = [variant.variant_id for variant in tee.variants]
    assert await carts.find(postgres, USER) == Cart(())
    await put(postgres, second, 7)
    await put(postgres, first)
    cart = await put(postgres, second, 2)
    lines = [(line.variant_id, line.quantity) for line in cart.lines]
    assert lines == [(second, 2), (first, 1)]
    assert cart.lines[0] == Line(
        variant_id=second,
        product_id=tee.product_id,
        sale_id=SHOP,
        name="Tee",
        size="1",
        quantity=2,
        unit_price=500,
        available=3,
    )
    assert cart.amount == 1500
    assert await carts.find(postgres, USER) == cart
    assert [line.variant_id for line in (await carts.remove(postgres, user_id=USER, variant_id=second)).lines] == [
        first
    ]
    assert len((await carts.remove(postgres, user_id=USER, variant_id=second)).lines) == 1
    await carts.empty(postgres, USER)
    assert await carts.find(postgres, USER) == Cart(())


async def test_a_cart_tells_todays_price_and_what_is_on_sale(postgres: asyncpg.Pool) -> None:
    tee = await stock(postgres)
    await put(postgres, tee.variants[0].variant_id, 2)
    edits: list[tuple[dict[str, object], tuple[int, int]]] = [
        ({"price": 700}, (700, 3)),
        ({"status": "STOPPED"}, (700, 0)),
        ({"status": "HIDDEN", "name": "Shirt"}, (700, 0)),
        ({"status": "DRAFT"}, (700, 0)),
        ({"status": "ON_SALE"}, (700, 3)),
    ]
    for version, (changes, told) in enumerate(edits, start=1):
        await products.edit(postgres, product_id=tee.product_id, version=version, changes=changes)
        [line] = (await carts.find(postgres, USER)).lines
        assert (line.unit_price, line.available) == told


@pytest.mark.parametrize(
    ("status", "is_taken"), [("ON_SALE", True), ("STOPPED", True), ("DRAFT", False), ("HIDDEN", False)]
)
async def test_only_what_is_shown_is_put_into_a_cart(postgres: asyncpg.Pool, status: str, is_taken: bool) -> None:  # noqa: FBT001
    tee = await stock(postgres, status=status)
    answer = await put(postgres, tee.variants[0].variant_id)
    assert isinstance(answer, Cart) == is_taken
    assert is_taken or answer == NotFound()
    assert await put(postgres, "0" * 32) == NotFound()


async def test_a_cart_has_at_most_a_hundred_lines_however_they_come(postgres: asyncpg.Pool) -> None:
    variants = [variant for _ in range(2) for variant in (await stock(postgres, sizes=60)).variants]
    answers = await asyncio.gather(*(put(postgres, variant.variant_id) for variant in variants))
    assert answers.count(LimitReached(LINES_MAX, LINES_MAX)) == 20
    cart = await carts.find(postgres, USER)
    assert len(cart.lines) == LINES_MAX
    # A line that is there may still change.
    assert isinstance(await put(postgres, cart.lines[0].variant_id, 9), Cart)


async def test_what_a_cart_costs_stays_exact(postgres: asyncpg.Pool) -> None:
    variants = (await stock(postgres, sizes=10, price=10**12)).variants
    for variant in variants[:9]:
        assert isinstance(await put(postgres, variant.variant_id, 1000), Cart)
    assert await put(postgres, variants[9].variant_id, 8) == LimitReached(AMOUNT_MAX, 9008 * 10**12)
    assert isinstance(await put(postgres, variants[9].variant_id, 7), Cart)


async def test_the_cart_of_somebody_who_was_wiped_stays_empty(postgres: asyncpg.Pool) -> None:
    tee = await stock(postgres)
    await accounts.wipe(postgres, USER)
    assert await put(postgres, tee.variants[0].variant_id) is None
    assert await carts.find(postgres, USER) == Cart(())


@pytest.mark.parametrize("quantity", [0, -1, 1001])
async def test_no_line_has_another_quantity_than_one_to_a_thousand(postgres: asyncpg.Pool, quantity: int) -> None:
    tee = await stock(postgres)
    with pytest.raises(asyncpg.CheckViolationError):
        await put(postgres, tee.variants[0].variant_id, quantity)
