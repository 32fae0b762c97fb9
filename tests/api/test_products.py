"""Products: made one by one or by a table, shown to whom they are for, edited by version, restocked by key."""

import asyncio
from typing import Any

import httpx
import pytest

from api.house import House
from engine import accounts, audit, ids
from engine.products import SHOP
from tests.api.calling import Person, Show, Worker, problem, stock_up

TABLE = "name,category,description,price,status,size,stock\n"
BODY: dict[str, Any] = {"name": "Tee", "category": "Shirts", "price": 500, "variants": [{"size": "M", "stock": 5}]}


async def import_table(operator: Person, table: str | bytes, query: str = "", key: str = "k") -> httpx.Response:
    return await operator.http.post(
        f"/v1/admin/products{query}",
        content=table if isinstance(table, bytes) else table.encode(),
        headers=operator.headers | {"Idempotency-Key": key, "Content-Type": "text/csv"},
    )


async def count(house: House, table: str = "products") -> int:
    rows: int = await house.postgres.fetchval(f"SELECT count(*) FROM {table}")
    return rows


async def test_a_product_is_made_and_shown(operator: Person, http: httpx.AsyncClient) -> None:
    made = await stock_up(operator, description="Cotton.\nWash cold.")
    assert made["sale_id"] == SHOP
    assert [variant["size"] for variant in made["variants"]] == ["M", "L"]
    shown = await http.get(f"/v1/products/{made['product_id']}")
    medium, large = [variant["variant_id"] for variant in made["variants"]]
    assert shown.json() == {
        "product_id": made["product_id"],
        "sale_id": SHOP,
        "name": "Tee",
        "description": "Cotton.\nWash cold.",
        "category": "Shirts",
        "price": 500,
        "status": "ON_SALE",
        "variants": [
            {"variant_id": medium, "size": "M", "available": 5},
            {"variant_id": large, "size": "L", "available": 0},
        ],
    }
    assert (await http.get("/v1/products")).json() == {"items": [shown.json()], "next": None}
    seen = await operator.get(f"/v1/admin/products/{made['product_id']}")
    assert seen.headers["etag"] == '"1"'
    assert (seen.json()["version"], seen.json()["variants"][0]) == (
        1,
        {"variant_id": medium, "size": "M", "quantity": 5, "initial_quantity": 5},
    )
    sale = (await http.get(f"/v1/sales/{SHOP}")).json()
    assert (sale["kind"], sale["name"], sale["state"]) == ("stock", "shop", "open")


async def test_a_product_needs_no_size(operator: Person) -> None:
    made = await stock_up(operator, variants=[{"stock": 1}])
    assert [variant["size"] for variant in made["variants"]] == [None]


async def test_a_key_makes_one_product(operator: Person, house: House) -> None:
    answers = await asyncio.gather(*(operator.post("/v1/admin/products", BODY, key="k") for _ in range(3)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["product_id"] for answered in answers}) == 1
    assert [answered.headers.get("idempotent-replayed") for answered in answers].count("true") == 2
    for change in ({"price": 501}, {"variants": [{"size": "M", "stock": 6}]}, {"sale_id": SHOP}):
        reused = await operator.post("/v1/admin/products", BODY | change, key="k")
        assert problem(reused) == (422, "idempotency_key_reused")
    assert problem(await import_table(operator, TABLE + "Tee,Shirts,,500,,M,5\n")) == (422, "idempotency_key_reused")
    assert await count(house) == 1


async def test_the_public_sees_what_is_shown(operator: Person, http: httpx.AsyncClient) -> None:
    made = {status: await stock_up(operator, status=status) for status in ("DRAFT", "ON_SALE", "STOPPED", "HIDDEN")}
    listed = (await http.get("/v1/products")).json()["items"]
    assert [(product["status"], [each["available"] for each in product["variants"]]) for product in listed] == [
        ("STOPPED", [0, 0]),
        ("ON_SALE", [5, 0]),
    ]
    for status in ("DRAFT", "HIDDEN"):
        path = f"products/{made[status]['product_id']}"
        assert problem(await http.get(f"/v1/{path}")) == (404, "not_found")
        assert (await operator.get(f"/v1/admin/{path}")).json()["status"] == status
    every = (await operator.get("/v1/admin/products")).json()["items"]
    assert [product["status"] for product in every] == ["HIDDEN", "STOPPED", "ON_SALE", "DRAFT"]


async def test_products_are_told_newest_first_by_category(operator: Person, http: httpx.AsyncClient) -> None:
    for name in "ABCDE":
        await stock_up(operator, name=name, category="Hats & Caps")
    await stock_up(operator)
    assert (await http.get("/v1/products?category=Shoes")).json() == {"items": [], "next": None}
    first = (await http.get("/v1/products?limit=2&category=Hats%20%26%20Caps")).json()
    second = (await http.get(f"/v1/products?limit=9&category=Hats+%26+Caps&cursor={first['next']}")).json()
    assert [product["name"] for product in first["items"] + second["items"]] == list("EDCBA")
    assert second["next"] is None
    assert len((await operator.get("/v1/admin/products?category=Shirts")).json()["items"]) == 1
    assert problem(await http.get("/v1/products?category=%00")) == (400, "invalid_request")


async def test_an_edit_names_the_version_it_was_made_of(operator: Person, http: httpx.AsyncClient) -> None:
    made = await stock_up(operator)
    path = f"/v1/admin/products/{made['product_id']}"
    assert problem(await operator.patch(path, {"price": 1})) == (400, "invalid_request")
    answers = await asyncio.gather(*(operator.patch(path, {"price": price}, version=1) for price in (1, 2, 3)))
    assert sorted(answered.status_code for answered in answers) == [200, 412, 412]
    assert problem(await operator.patch(path, {"price": 4}, version=1)) == (412, "stale_version")
    edited = await operator.patch(path, {"name": "Shirt", "description": None, "status": "STOPPED"}, version=2)
    assert edited.headers["etag"] == '"3"'
    assert (edited.json()["name"], edited.json()["category"], edited.json()["status"]) == ("Shirt", "Shirts", "STOPPED")
    shown = (await http.get(f"/v1/products/{made['product_id']}")).json()
    assert (shown["name"], shown["price"]) == ("Shirt", edited.json()["price"])
    nowhere = f"/v1/admin/products/{'0' * 32}"
    assert problem(await operator.patch(nowhere, {"price": 4}, version=1)) == (404, "not_found")


async def test_a_restock_adds_once(operator: Person, http: httpx.AsyncClient) -> None:
    made = await stock_up(operator)
    variant_id = made["variants"][1]["variant_id"]
    path = f"/v1/admin/variants/{variant_id}/restocks"
    first = await operator.post(path, {"quantity": 3}, key="k")
    assert first.status_code == 201
    assert first.json() == {
        "restock_id": first.json()["restock_id"],
        "product_id": made["product_id"],
        "sale_id": SHOP,
        "variant_id": variant_id,
        "size": "L",
        "quantity": 3,
        "initial_quantity": 3,
    }
    again = await operator.post(path, {"quantity": 3}, key="k")
    assert (again.json(), again.headers["idempotent-replayed"]) == (first.json(), "true")
    assert problem(await operator.post(path, {"quantity": 4}, key="k")) == (422, "idempotency_key_reused")
    shown = (await http.get(f"/v1/products/{made['product_id']}")).json()
    assert [variant["available"] for variant in shown["variants"]] == [5, 3]
    nowhere = f"/v1/admin/variants/{'0' * 32}/restocks"
    assert problem(await operator.post(nowhere, {"quantity": 1})) == (404, "not_found")


@pytest.mark.parametrize("quantity", [0, -1, 10**9 + 1, 2**63, 1.5, "1", None])
async def test_a_restock_is_of_a_number_of_units(operator: Person, house: House, quantity: object) -> None:
    made = await stock_up(operator)
    path = f"/v1/admin/variants/{made['variants'][0]['variant_id']}/restocks"
    assert problem(await operator.post(path, {"quantity": quantity})) == (400, "invalid_request")
    assert await count(house, "restocks") == 0


async def test_no_product_is_worth_more_than_can_be_counted(operator: Person, house: House) -> None:
    over = {"price": 10**12, "variants": [{"size": "M", "stock": 9007}, {"size": "L", "stock": 1}]}
    refused = await operator.post("/v1/admin/products", BODY | over)
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == ["variants"]
    assert await count(house) == 0
    made = await stock_up(operator, price=10**6, variants=[{"stock": 10**9}])
    path = f"/v1/admin/products/{made['product_id']}"
    dear = await operator.patch(path, {"price": 10**7}, version=1)
    assert problem(dear) == (409, "limit_reached")
    assert dear.json()["limit"] == 2**53 - 1
    restocks = f"/v1/admin/variants/{made['variants'][0]['variant_id']}/restocks"
    assert (await operator.post(restocks, {"quantity": 10**9})).status_code == 201
    assert (await operator.patch(path, {"price": 4 * 10**6}, version=1)).status_code == 200
    assert problem(await operator.post(restocks, {"quantity": 10**9})) == (409, "limit_reached")
    assert (await operator.get(path)).json()["variants"][0]["quantity"] == 2 * 10**9


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"category": ""}, "category"),
        ({"description": "\x00"}, "description"),
        ({"price": -1}, "price"),
        ({"price": 10**12 + 1}, "price"),
        ({"status": "SOLD"}, "status"),
        ({"sale_id": "shop"}, "sale_id"),
        ({"variants": []}, "variants"),
        ({"variants": [{"size": str(number), "stock": 1} for number in range(101)]}, "variants"),
        ({"variants": [{"size": "M", "stock": 1}, {"size": "M", "stock": 1}]}, "variants[1].size"),
        ({"variants": [{"stock": 1}, {"size": "M", "stock": 1}, {"size": None, "stock": 1}]}, "variants[2].size"),
        ({"variants": [{"size": " M", "stock": 1}]}, "variants[0].size"),
        ({"variants": [{"size": "M" * 51, "stock": 1}]}, "variants[0].size"),
        ({"variants": [{"stock": -1}]}, "variants[0].stock"),
        ({"variants": [{"stock": 10**9 + 1}]}, "variants[0].stock"),
        ({"variants": [{"stock": 1, "colour": "red"}]}, "variants[0].colour"),
    ],
)
async def test_a_product_says_what_is_wrong_with_it(
    operator: Person, house: House, changes: dict[str, Any], path: str
) -> None:
    answered = await operator.post("/v1/admin/products", BODY | changes)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]
    assert (await count(house), await count(house, "sales")) == (0, 0)


async def test_only_a_drop_sells_products(operator: Person, show: Show, house: House) -> None:
    for sale_id in (show.sale_id, "0" * 32):
        refused = await operator.post("/v1/admin/products", BODY | {"sale_id": sale_id})
        assert problem(refused) == (404, "not_found")
        table = await import_table(operator, TABLE + "Tee,Shirts,,500,,M,5\n", f"?sale_id={sale_id}")
        assert problem(table) == (404, "not_found")
    assert await count(house) == 0


async def test_products_are_for_operators_whose_key_says_so(
    operator: Person, people: list[Person], house: House
) -> None:
    assert problem(await people[0].post("/v1/admin/products", BODY)) == (401, "not_signed_in")
    key = await accounts.add_api_key(house.postgres, name="door", scopes=[accounts.TICKETS])
    assert problem(await Person(operator.http, "", key).post("/v1/admin/products", BODY)) == (403, "scope_missing")


# Tables ---------------------------------------------------------------------------------------------------------------


async def test_a_table_makes_many_products(operator: Person, http: httpx.AsyncClient, house: House) -> None:
    table = (
        "\ufeff"
        + TABLE
        + "Tee,Shirts,Cotton,500,,M,5\r\n"
        + '"Cap, red",Hats,,300,DRAFT,,7\r\n'
        + "Tee,Shirts,,500,,L,0\r\n\r\n"
        + 'Tee,Shirts,Cotton,500,ON_SALE,"X,L",1\r\n'
    )
    made = await import_table(operator, table)
    assert made.status_code == 201, made.text
    tee, cap = made.json()["items"]
    assert (tee["name"], cap["name"], tee["sale_id"]) == ("Tee", "Cap, red", SHOP)
    assert [variant["size"] for variant in tee["variants"]] == ["M", "L", "X,L"]
    assert [variant["size"] for variant in cap["variants"]] == [None]
    [shown] = (await http.get("/v1/products")).json()["items"]
    assert (shown["description"], shown["status"], shown["price"]) == ("Cotton", "ON_SALE", 500)
    assert [variant["available"] for variant in shown["variants"]] == [5, 0, 1]
    again = await import_table(operator, table)
    assert (again.json(), again.headers["idempotent-replayed"]) == (made.json(), "true")
    assert problem(await import_table(operator, table + "Sock,Hats,,1,,,1\n")) == (422, "idempotency_key_reused")
    assert await count(house) == 2


async def test_a_table_fills_a_drop(operator: Person) -> None:
    sale_id = (await operator.post("/v1/admin/sales", {"name": "Drop"})).json()["sale_id"]
    made = await import_table(operator, TABLE + "Tee,Shirts,,500,,M,5\n", f"?sale_id={sale_id}")
    assert made.json()["items"][0]["sale_id"] == sale_id
    assert problem(await import_table(operator, TABLE, "?sale_id=shop")) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        (TABLE, [(1, "")]),
        ("", [(1, name) for name in ("name", "category", "price", "stock")]),
        ("name,category,price,stock,colour\nTee,Shirts,5,1,red\n", [(1, "colour")]),
        (TABLE + ",Shirts,,-5,SOLD,M,many\n", [(2, "name"), (2, "price"), (2, "status"), (2, "stock")]),
        (TABLE + "Tee,Shirts,,500,,M,5\nTee,Hats,,501,,L,5\n", [(3, "category"), (3, "price")]),
        (TABLE + "Tee,Shirts,A,500,,M,5\nTee,Shirts,B,500,DRAFT,L,5\n", [(3, "description")]),
        (TABLE + "Tee,Shirts,,500,DRAFT,M,5\nCap,Hats,,5,,,1\nTee,Shirts,,500,HIDDEN,L,5\n", [(4, "status")]),
        (TABLE + "Tee,Shirts,,500,,M,5\nTee,Shirts,,500,,M,5\n", [(3, "size")]),
        (TABLE + "Tee,Shirts,,500,,,5\nTee,Shirts,,500,, ,5\n", [(3, "size")]),
        (TABLE + f"Tee,Shirts,,500,,{'M' * 51},5\n", [(2, "size")]),
        (TABLE + "Tee,Shirts,,1000000000000,,M,9007\nTee,Shirts,,1000000000000,,L,1\n", [(2, "stock")]),
        (TABLE + "".join([f"Tee,Shirts,,5,,{number},5\n" for number in range(102)]), [(102, "size")]),
        (TABLE + "Tee,Shirts,,500\n", [(2, "")]),
        (TABLE + '"Tee,Shirts,,500,,M,5\n', [(2, "")]),
        (
            TABLE + "".join([f"{number},Shirts,,5,,,-1\n" for number in range(200)]),
            [(n, "stock") for n in range(2, 102)],
        ),
        (TABLE + "".join([f"{number},Shirts,,5,,,1\n" for number in range(10_002)]), [(10_002, "")]),
    ],
)
async def test_a_table_names_every_line_that_is_wrong(
    operator: Person, house: House, table: str, wrong: list[tuple[int, str]]
) -> None:
    answered = await import_table(operator, table)
    assert problem(answered) == (400, "invalid_request")
    assert [(error["line"], error["column"]) for error in answered.json()["errors"]] == wrong
    assert (await count(house), await count(house, "sales")) == (0, 0)


async def test_a_table_that_is_no_text_names_the_line(operator: Person) -> None:
    answered = await import_table(operator, TABLE.encode() + b"Tee,\xff,,500,,M,5\n")
    assert [error["line"] for error in answered.json()["errors"]] == [2]


async def test_a_large_table_is_made_whole(operator: Person, http: httpx.AsyncClient, house: House) -> None:
    rows = [f"Product {number // 4},Shirts,,500,,{number % 4},5\n" for number in range(10_000)]
    made = await import_table(operator, TABLE + "".join(rows), key=ids.random_id())
    assert len(made.json()["items"]) == 2500
    assert (await count(house), await count(house, "product_variants")) == (2500, 10_000)
    newest = (await http.get("/v1/products?limit=2")).json()["items"]
    assert [product["name"] for product in newest] == ["Product 0", "Product 1"]


# What whoever orders next sees ----------------------------------------------------------------------------------------


async def order(person: Person, variant_id: str, quantity: int = 1) -> httpx.Response:
    return await person.post("/v1/orders", {"lines": [{"variant_id": variant_id, "quantity": quantity}]})


async def test_what_was_just_made_is_ordered_at_once(operator: Person, people: list[Person]) -> None:
    """The first product opens the sale; later ones, one by one or as a table, come to one that sells."""
    for name in ("Tee", "Cap"):
        made = await stock_up(operator, name=name)
        assert (await order(people[0], made["variants"][0]["variant_id"], 5)).status_code == 201
        assert problem(await order(people[1], made["variants"][0]["variant_id"])) == (409, "sold_out")
    [mug] = (await import_table(operator, TABLE + "Mug,Home,,900,,,2\n")).json()["items"]
    ordered = await order(people[1], mug["variants"][0]["variant_id"], 2)
    assert (ordered.status_code, ordered.json()["total_amount"]) == (201, 1_800)


async def test_what_was_just_restocked_is_ordered_at_once_and_once(
    operator: Person, people: list[Person], worker: Worker, house: House
) -> None:
    variant_id = (await stock_up(operator))["variants"][1]["variant_id"]
    assert problem(await order(people[0], variant_id)) == (409, "sold_out")
    for _ in range(2):
        restocked = await operator.post(f"/v1/admin/variants/{variant_id}/restocks", {"quantity": 3}, key="more")
        assert restocked.status_code == 201
    assert (await order(people[0], variant_id, 2)).status_code == 201
    [short] = (await order(people[1], variant_id, 2)).json()["lines"]
    assert (short["requested"], short["available"]) == (2, 1)
    await worker.drain()
    assert (await audit.audit(house.stores.redis, house.postgres, settle_s=0)).verdict == "true"


async def test_the_next_order_costs_what_was_just_said_and_the_last_one_what_it_did(
    operator: Person, people: list[Person], worker: Worker
) -> None:
    made = await stock_up(operator)
    path, variant_id = f"/v1/admin/products/{made['product_id']}", made["variants"][0]["variant_id"]
    first = (await order(people[0], variant_id)).json()
    assert (await operator.patch(path, {"price": 700}, version=1)).status_code == 200
    assert (await order(people[1], variant_id)).json()["total_amount"] == 700
    await worker.drain()
    assert (await people[0].get(f"/v1/orders/{first['order_id']}")).json()["total_amount"] == 500


@pytest.mark.parametrize("status", ["DRAFT", "STOPPED", "HIDDEN"])
async def test_what_was_just_taken_off_sale_is_not_ordered_until_it_is_back(
    operator: Person, people: list[Person], status: str
) -> None:
    made = await stock_up(operator)
    path, variant_id = f"/v1/admin/products/{made['product_id']}", made["variants"][0]["variant_id"]
    await operator.patch(path, {"status": status}, version=1)
    assert problem(await order(people[0], variant_id)) == (404, "unit_unknown")
    await operator.patch(path, {"status": "ON_SALE"}, version=2)
    assert (await order(people[0], variant_id)).status_code == 201
