"""Orders over HTTP: lines or a cart, all of it or nothing; paid, given back, owned."""

import pytest

from tests.api.calling import Person, problem, stock_up


async def test_a_cart_with_nothing_in_it_is_not_ordered(people: list[Person]) -> None:
    refused = await people[0].post("/v1/orders", {"from_cart": True})
    assert problem(refused) == (409, "cart_empty")


async def test_what_several_sales_sell_is_not_one_order(operator: Person, people: list[Person]) -> None:
    drop = (await operator.post("/v1/admin/sales", {"name": "Drop"})).json()["sale_id"]
    of_shop, of_drop = [
        (await stock_up(operator, name=name, **more))["variants"][0]["variant_id"]
        for name, more in (("Tee", {}), ("Print", {"sale_id": drop}))
    ]
    lines = [{"variant_id": variant_id, "quantity": 1} for variant_id in (of_shop, of_drop)]
    refused = await people[0].post("/v1/orders", {"lines": lines})
    assert problem(refused) == (409, "mixed_sales")
    groups = {group["sale_id"]: group["variant_ids"] for group in refused.json()["groups"]}
    assert groups[drop] == [of_drop]
    assert len(groups) == 2
    for variant_id in (of_shop, of_drop):
        await people[0].put(f"/v1/cart/items/{variant_id}", {"quantity": 1})
    assert problem(await people[0].post("/v1/orders", {"from_cart": True})) == (409, "mixed_sales")
    assert len((await people[0].get("/v1/cart")).json()["items"]) == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"from_cart": False},
        {"lines": []},
        {"lines": [{"variant_id": "0" * 32, "quantity": 1}], "from_cart": True},
        {"lines": [{"variant_id": "0" * 32, "quantity": 1}], "sale_id": "0" * 32},
        *[{"lines": [{"variant_id": "0" * 32, "quantity": quantity}]} for quantity in (0, -1, 1001, 1.5, "1", None)],
        {"lines": [{"variant_id": "no id", "quantity": 1}]},
        {"lines": [{"variant_id": "0" * 32}]},
        {"lines": [{"variant_id": f"{number:032x}", "quantity": 1} for number in range(101)]},
    ],
)
async def test_what_is_no_order_is_refused(people: list[Person], body: object) -> None:
    assert problem(await people[0].post("/v1/orders", body)) == (400, "invalid_request")


async def test_ten_thousand_lines_are_refused_before_anything_is_read(people: list[Person]) -> None:
    body = {"lines": [{"variant_id": f"{number:032x}", "quantity": 1} for number in range(10_000)]}
    assert problem(await people[0].post("/v1/orders", body)) == (413, "body_too_large")


async def test_an_unknown_variant_is_named(operator: Person, people: list[Person]) -> None:
    made = await stock_up(operator)
    lines = [{"variant_id": each, "quantity": 1} for each in (made["variants"][0]["variant_id"], "0e" * 16)]
    refused = await people[0].post("/v1/orders", {"lines": lines})
    assert problem(refused) == (404, "unit_unknown")
    assert refused.json()["variant_ids"] == ["0e" * 16]


async def test_an_order_needs_a_key(people: list[Person]) -> None:
    assert problem(await people[0].http.post("/v1/orders", headers=people[0].headers, json={"from_cart": True})) == (
        400,
        "key_required",
    )
