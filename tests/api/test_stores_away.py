"""A store that is away is a 503 with Retry-After, soon, with bounded sockets; when it is back, so is everything."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from api import events
from api.app import operations
from api.face import Face
from api.house import House, open_house
from engine import rooms, sales
from engine.settings import Settings
from engine.tokens import QueueToken
from tests.api.calling import ADMIN_KEY, Contract, Person, PromptTransport, Show, problem, put_on, stock_up
from tests.api.proxy import Proxy, before
from tests.api.test_coupons import make
from tests.api.test_fuzz import DOCUMENT, Draw

# Connections that one process may open to either store in these tests, and those that its subscriptions hold.
CONNECTIONS_MAX = 4
LISTENING_MAX = 2


class Shop:
    """An application with a proxy before each of its stores."""

    def __init__(self, http: httpx.AsyncClient, house: House, redis: Proxy, postgres: Proxy) -> None:
        self.http = http
        self.house = house
        self.redis = redis
        self.postgres = postgres
        self.operator = Person(http, "", ADMIN_KEY)
        self.buyer: Person
        self.show: Show


@pytest.fixture
async def shop(settings: Settings, contract: Contract) -> AsyncIterator[Shop]:
    async with (
        before(str(settings.redis_url)) as (redis, redis_url),
        before(str(settings.postgres_url)) as (postgres, postgres_url),
        open_house(
            msgspec.structs.replace(
                settings,
                redis_url=redis_url,
                postgres_url=postgres_url,
                redis_connections_max=CONNECTIONS_MAX,
                postgres_connections_max=CONNECTIONS_MAX,
            )
        ) as house,
    ):
        # Ten seconds is what a browser waits; a test need not.
        face = Face([dataclasses.replace(operation, deadline_s=3.0) for operation in operations()])
        face.house = house
        async with httpx.AsyncClient(
            transport=PromptTransport(face),
            base_url="http://lastseat.test",
            event_hooks={"response": [contract.check]},
            timeout=30,
        ) as http:
            shop = Shop(http, house, redis, postgres)
            made = await shop.operator.post("/v1/admin/accounts", {"count": 1, "balance": 5000})
            shop.buyer = Person(http, made.json()["items"][0]["user_id"], made.json()["items"][0]["access_token"])
            shop.show = await put_on(shop.operator)
            yield shop
            redis.restore()
            postgres.restore()


def all_busy(answers: list[httpx.Response]) -> None:
    assert {problem(answered) for answered in answers} == {(503, "busy")}
    assert all(int(answered.headers["retry-after"]) >= 1 for answered in answers)


@pytest.mark.parametrize("how", ["hang", "cut"])
async def test_without_redis_holds_are_told_to_come_back(shop: Shop, how: str) -> None:
    getattr(shop.redis, how)()
    began = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(shop.show.reserve(shop.buyer, "A-1-1", key=f"k{n}") for n in range(50)))
    assert asyncio.get_running_loop().time() - began < 8
    all_busy(answers)
    assert shop.redis.connections <= CONNECTIONS_MAX + LISTENING_MAX
    all_busy([await shop.http.get("/health/ready")])
    assert (await shop.http.get("/health/live")).status_code == 200
    # Money needs Postgres alone.
    assert (await shop.buyer.get("/v1/balance")).json()["amount"] == 5000
    shop.redis.restore()
    assert (await shop.http.get("/health/ready")).status_code == 200
    # Whatever became of the fifty, at most one holds the seat, and its key says so.
    again = [await shop.show.reserve(shop.buyer, "A-1-1", key=f"k{n}") for n in range(50)]
    assert sum(answered.status_code == 201 for answered in again) == 1


@pytest.mark.parametrize("store", ["redis", "postgres"])
async def test_no_route_breaks_when_a_store_is_away(shop: Shop, store: str) -> None:
    """What an operation says when it cannot do its work is in the document, and no fault of ours."""
    product = await stock_up(shop.operator)
    known = {
        "sale_id": shop.show.sale_id,
        "schedule_id": shop.show.schedule_id,
        "concert_id": (await shop.http.get(f"/v1/schedules/{shop.show.schedule_id}")).json()["concert_id"],
        "reservation_id": (await shop.show.reserve(shop.buyer, "A-1-1")).json()["reservation_id"],
        "product_id": product["product_id"],
        "variant_id": product["variants"][0]["variant_id"],
        "coupon_id": await make(shop.operator),
        "user_id": shop.buyer.user_id,
        "ticket_no": "1",
    }
    getattr(shop, store).cut()

    async def ask(method: str, path: str, described: dict[str, Any]) -> str:
        draw = Draw((method, path))
        schema = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        address = re.sub(r"{(\w+)}", lambda name: known.get(name[1], "0" * 32), path)
        caller = shop.operator if "/admin/" in path else shop.buyer
        answered = await shop.http.request(
            method,
            address,
            headers=caller.headers | {"Idempotency-Key": "k", "If-Match": '"1"', "Queue-Token": "x"},
            **({} if schema is None else {"json": draw.by(schema)}),
        )
        return f"{method} {path} {answered.status_code}"

    answers = await asyncio.gather(
        *(
            ask(method.upper(), path, described)
            for path, methods in DOCUMENT["paths"].items()
            for method, described in methods.items()
            if (path, method) != ("/v1/me", "delete")  # whoever asks it is nobody from then on
            and "text/event-stream" not in described["responses"].get("200", {}).get("content", {})
        )
    )
    assert [told for told in answers if told.endswith(" 500")] == []


async def test_who_has_no_deadline_waits_no_longer_for_postgres(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sales, rooms, events):
        monkeypatch.setattr(module, "FIND_WITHIN_S", 0.5)
    await shop.show.set_room(state="open")
    face = Face(operations())
    face.house = shop.house
    lost = shop.house.queue_tokens.sign(QueueToken(shop.show.sale_id, 0, shop.buyer.user_id, 1))
    headers = shop.buyer.headers | {"Queue-Token": lost}
    shop.postgres.hang()
    async with httpx.AsyncClient(transport=PromptTransport(face), base_url="http://lastseat.test") as http:
        async with asyncio.timeout(5):
            answers = await asyncio.gather(
                *(
                    http.get(f"/v1/sales/{sale_id}/{what}", headers=headers)
                    for sale_id in ("0" * 32, shop.show.sale_id)
                    for what in ("queue/token", "events")
                )
            )
    all_busy(answers)


@pytest.mark.parametrize("how", ["hang", "cut"])
async def test_without_postgres_holds_go_on_and_money_waits(shop: Shop, how: str) -> None:
    getattr(shop.postgres, how)()
    began = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(shop.buyer.post("/v1/balance/charges", {"amount": 1}, key="k") for _ in range(30)))
    assert asyncio.get_running_loop().time() - began < 8
    all_busy(answers)
    assert shop.postgres.connections <= 2 * CONNECTIONS_MAX
    all_busy([await shop.http.get("/health/ready")])
    assert (await shop.show.reserve(shop.buyer, "A-1-1")).status_code == 201
    shop.postgres.restore()
    async with asyncio.timeout(10):
        while (answered := await shop.buyer.post("/v1/balance/charges", {"amount": 1}, key="k")).status_code != 201:
            assert problem(answered) == (503, "busy")
    assert (await shop.buyer.get("/v1/balance")).json()["amount"] == 5001
