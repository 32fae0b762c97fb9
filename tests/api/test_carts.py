"""A cart over HTTP: filled line by line, told at today's prices, bounded, and its owner's alone."""

import asyncio

import pytest

from api.house import House
from engine.products import SHOP
from engine.stores.queries import Connection
from tests.api.calling import Person, problem, stock_up

# How many wait for what this connection has locked.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
EMPTY = {"items": [], "amount": 0, "currency": "KRW"}


async def variants(operator: Person, sizes: int = 2, **product: object) -> list[str]:
    """The variants of a new product, three of each."""
    made = await stock_up(operator, variants=[{"size": str(size), "stock": 3} for size in range(sizes)], **product)
    return [variant["variant_id"] for variant in made["variants"]]


async def test_a_cart_is_filled_changed_and_emptied(operator: Person, people: list[Person]) -> None:
    me = people[0]
    first, second = await variants(operator)
    assert (await me.get("/v1/cart")).json() == EMPTY
    put = await me.put(f"/v1/cart/items/{first}", {"quantity": 7})
    assert put.json() == {
        "items": [
            {
                "variant_id": first,
                "product_id": put.json()["items"][0]["product_id"],
                "sale_id": SHOP,
                "name": "Tee",
                "size": "0",
                "quantity": 7,
                "unit_price": 500,
                "available": 3,
            }
        ],
        "amount": 3500,
        "currency": "KRW",
    }
    assert (await me.put(f"/v1/cart/items/{first}", {"quantity": 7})).json() == put.json()
    await me.put(f"/v1/cart/items/{second}", {"quantity": 1})
    assert (await me.put(f"/v1/cart/items/{first}", {"quantity": 1})).json()["amount"] == 1000
    assert (await people[1].get("/v1/cart")).json() == EMPTY
    for _ in range(2):
        left = await me.delete(f"/v1/cart/items/{first}")
        assert [item["variant_id"] for item in left.json()["items"]] == [second]
    for _ in range(2):
        assert (await me.delete("/v1/cart")).json() == EMPTY
    assert (await me.get("/v1/cart")).json() == EMPTY


async def test_a_cart_freezes_no_price_and_keeps_what_is_not_on_sale_any_more(
    operator: Person, people: list[Person]
) -> None:
    made = await stock_up(operator)
    variant_id = made["variants"][0]["variant_id"]
    await people[0].put(f"/v1/cart/items/{variant_id}", {"quantity": 2})
    product = f"/v1/admin/products/{made['product_id']}"
    await operator.patch(product, {"price": 800}, version=1)
    cart = (await people[0].get("/v1/cart")).json()
    assert (cart["amount"], cart["items"][0]["unit_price"], cart["items"][0]["available"]) == (1600, 800, 5)
    await operator.patch(product, {"status": "HIDDEN"}, version=2)
    cart = (await people[0].get("/v1/cart")).json()
    assert (cart["items"][0]["quantity"], cart["items"][0]["available"]) == (2, 0)
    again = await people[0].put(f"/v1/cart/items/{variant_id}", {"quantity": 1})
    assert problem(again) == (404, "not_found")
    assert (await people[0].delete(f"/v1/cart/items/{variant_id}")).json() == EMPTY


@pytest.mark.parametrize("quantity", [0, -1, 1001, 2**63, 10**30, 1.5, "1", None, [1]])
async def test_a_line_has_a_number_of_units(operator: Person, people: list[Person], quantity: object) -> None:
    first, _ = await variants(operator)
    await people[0].put(f"/v1/cart/items/{first}", {"quantity": 2})
    refused = await people[0].put(f"/v1/cart/items/{first}", {"quantity": quantity})
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == ["quantity"]
    assert (await people[0].get("/v1/cart")).json()["items"][0]["quantity"] == 2


async def test_what_does_not_exist_is_put_into_no_cart(operator: Person, people: list[Person]) -> None:
    draft, _ = await variants(operator, status="DRAFT")
    for variant_id in (draft, "0" * 32, "x"):
        assert problem(await people[0].put(f"/v1/cart/items/{variant_id}", {"quantity": 1})) == (404, "not_found")
    assert (await people[0].get("/v1/cart")).json() == EMPTY
    assert problem(await operator.get("/v1/cart")) == (401, "not_signed_in")


async def test_a_cart_takes_a_hundred_lines(operator: Person, people: list[Person]) -> None:
    listed = await variants(operator, 100) + await variants(operator, 5)
    answers = await asyncio.gather(*(people[0].put(f"/v1/cart/items/{each}", {"quantity": 1}) for each in listed))
    refused = [answered for answered in answers if answered.status_code != 200]
    assert {problem(answered) for answered in refused} == {(409, "limit_reached")}
    assert (len(refused), refused[0].json()["limit"], refused[0].json()["have"]) == (5, 100, 100)
    assert len((await people[0].get("/v1/cart")).json()["items"]) == 100


async def test_ten_thousand_lines_at_once_are_no_line(operator: Person, people: list[Person]) -> None:
    first, _ = await variants(operator)
    lines = [{"variant_id": first, "quantity": 1}] * 10_000
    refused = await people[0].put(f"/v1/cart/items/{first}", lines)
    assert problem(refused) == (413, "body_too_large")
    assert problem(await people[0].put(f"/v1/cart/items/{first}", lines[:100])) == (400, "invalid_request")
    assert (await people[0].get("/v1/cart")).json() == EMPTY


async def test_who_is_wiped_has_no_cart(operator: Person, people: list[Person], house: House) -> None:
    first, second = await variants(operator)
    await people[0].put(f"/v1/cart/items/{first}", {"quantity": 1})
    await people[1].put(f"/v1/cart/items/{first}", {"quantity": 1})
    await people[0].delete("/v1/me")
    # Another process may not know it yet.
    house.user_tokens.wiped.clear()
    assert problem(await people[0].put(f"/v1/cart/items/{second}", {"quantity": 1})) == (401, "not_signed_in")
    assert (await people[0].get("/v1/cart")).json() == EMPTY
    assert await house.postgres.fetchval("SELECT count(*) FROM cart_items") == 1


async def test_whose_request_crosses_another_one_is_told_to_come_back(
    operator: Person, people: list[Person], house: House
) -> None:
    me = people[0]
    first, second = await variants(operator)
    for variant_id in (first, second):
        await me.put(f"/v1/cart/items/{variant_id}", {"quantity": 1})
    async with house.postgres.acquire() as connection:
        crossing = connection.transaction()
        await crossing.start()
        # Postgres ends whoever looks for the crossing first: that is the request.
        await connection.execute("SET LOCAL deadlock_timeout = '1min'")
        await _take(connection, me, second)
        emptying = asyncio.create_task(me.delete("/v1/cart"))
        async with asyncio.timeout(10):
            while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - it has to be asked
                await asyncio.sleep(0.01)
            await _take(connection, me, first)
            assert problem(await emptying) == (503, "busy")
        await crossing.rollback()
    assert len((await me.get("/v1/cart")).json()["items"]) == 2
    assert (await me.delete("/v1/cart")).json() == EMPTY


async def _take(connection: Connection, person: Person, variant_id: str) -> None:
    await connection.execute(
        "UPDATE cart_items SET quantity = 2 WHERE user_id = $1 AND variant_id = $2", person.user_id, variant_id
    )
