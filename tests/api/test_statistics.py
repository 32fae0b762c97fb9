"""Everybody sees what sells best; operators see days and intervals, in parts, of a product or of all."""

from typing import Any

import httpx
import pytest

from api.house import House
from engine import ids, statistics
from engine.accounts import add_api_key
from engine.statistics import FRESH_S
from tests.api.calling import Person, problem
from tests.engine.sold_goods import PRICE, Stand, open_stand, utc

DAILY = "/v1/admin/statistics/products/daily"
INTERVAL = "/v1/admin/statistics/products/interval"


@pytest.fixture
async def stand(house: House) -> Stand:
    """Somebody who sells."""
    return await open_stand(house.postgres)


async def test_what_sells_best_is_told_in_order_and_may_be_kept(stand: Stand, http: httpx.AsyncClient) -> None:
    tee, cap = await stand.product("Tee"), await stand.product("Cap")
    await stand.sell({tee.variants[0].variant_id: 1})
    order_id = await stand.sell({cap.variants[0].variant_id: 5})
    await stand.give_back(order_id, cap.variants[0].variant_id, 2, 2 * PRICE)
    answered = await http.get("/v1/products/popular")
    assert answered.headers["cache-control"] == f"public, max-age={FRESH_S}"
    told = answered.json()
    assert told["items"] == [
        {"rank": 1, "product_id": cap.product_id, "name": "Cap", "sold_quantity": 3, "amount": 3 * PRICE},
        {"rank": 2, "product_id": tee.product_id, "name": "Tee", "sold_quantity": 1, "amount": PRICE},
    ]
    assert told["from"] < told["to"] == told["aggregated_at"][:10]
    assert len((await http.get("/v1/products/popular?limit=1&days=3")).json()["items"]) == 1
    one_day = (await http.get("/v1/products/popular?days=1")).json()
    assert one_day["from"] == one_day["to"] == told["to"]


@pytest.mark.parametrize("query", ["days=0", "days=366", "limit=0", "limit=101", "days=x"])
async def test_a_chart_has_its_limits(http: httpx.AsyncClient, query: str) -> None:
    refused = await http.get(f"/v1/products/popular?{query}")
    assert problem(refused) == (400, "invalid_request")
    assert refused.json()["errors"][0]["path"] == query.partition("=")[0]


async def listed(operator: Person, path: str, query: str = "") -> list[dict[str, Any]]:
    """All of a list, two at a time."""
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answered = await operator.get(f"{path}?limit=2{cursor}{query}")
        assert answered.status_code == 200, answered.text
        items += answered.json()["items"]
        if answered.json()["next"] is None:
            return items
        cursor = f"&cursor={answered.json()['next']}"


async def test_operators_read_days_and_intervals_in_parts(stand: Stand, house: House, operator: Person) -> None:
    made = [await stand.product(name) for name in ("Tee", "Cap")]
    for day in (1, 2, 3):
        for product in made:
            await stand.sell({product.variants[0].variant_id: day}, utc(f"2026-03-0{day}T12:00"))
    await statistics.aggregate(house.postgres)
    days = await listed(operator, DAILY)
    assert [item["day"] for item in days] == ["2026-03-03"] * 2 + ["2026-03-02"] * 2 + ["2026-03-01"] * 2
    assert {key: value for key, value in days[0].items() if key not in {"product_id", "aggregated_at"}} == {
        "day": "2026-03-03",
        "sold_quantity": 3,
        "orders": 1,
        "amount": 3 * PRICE,
        "refunded_quantity": 0,
        "refunded_amount": 0,
    }
    tee = made[0].product_id
    window = f"&from=2026-03-02&to=2026-03-03&product_id={tee}"
    for path in (DAILY, INTERVAL):
        told = await listed(operator, path, window)
        assert [(item["product_id"], item["day"], item["sold_quantity"]) for item in told] == [
            (tee, "2026-03-03", 3),
            (tee, "2026-03-02", 2),
        ]
        assert await listed(operator, path, f"&product_id={ids.derive('nothing')}") == []
    intervals = await listed(operator, INTERVAL)
    assert len({(item["product_id"], item["day"]) for item in intervals}) == len(intervals) == 6
    assert all(item["aggregated_from"] <= item["aggregated_to"] for item in intervals)


@pytest.mark.parametrize("path", [DAILY, INTERVAL])
@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("from=2026-03-02&to=2026-03-01", "to"),
        ("from=2026-02-30", "from"),
        ("to=yesterday", "to"),
        ("product_id=tee", "product_id"),
        ("limit=101", "limit"),
        ("cursor=x", "cursor"),
    ],
)
async def test_a_range_that_is_none_is_named(operator: Person, path: str, query: str, named: str) -> None:
    refused = await operator.get(f"{path}?{query}")
    assert problem(refused) == (400, "invalid_request")
    assert refused.json()["errors"][0]["path"] == named


async def test_days_are_for_operators_of_the_catalogue(house: House, http: httpx.AsyncClient) -> None:
    async with house.postgres.acquire() as connection:
        key = await add_api_key(connection, name="till", scopes=("payments",))
    for path in (DAILY, INTERVAL):
        assert problem(await http.get(path)) == (401, "not_signed_in")
        assert problem(await Person(http, "", key).get(path)) == (403, "scope_missing")
