"""Orders over HTTP: lines or a cart, all of it or nothing; paid, given back, owned."""

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from api.house import House
from engine import carts, coupons, ids, stock, waiting_room
from engine.settings import Settings
from tests.api.calling import Person, Show, Worker, problem, stock_up
from tests.api.test_coupons import issue, make
from tests.gateways import running_gateway, with_gateway

BALANCE = {"method": "BALANCE"}


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody by itself."""
    with running_gateway() as settings:
        yield settings


async def tees(operator: Person, *stocks: int, **product: object) -> list[str]:
    """The variants of a new product, of each so many."""
    variants = [{"size": str(size), "stock": stock} for size, stock in enumerate(stocks)]
    made = await stock_up(operator, variants=variants, **product)
    return [variant["variant_id"] for variant in made["variants"]]


def of(*wanted: tuple[str, int]) -> dict[str, Any]:
    """An order of these."""
    return {"lines": [{"variant_id": variant_id, "quantity": quantity} for variant_id, quantity in wanted]}


async def ordered(person: Person, *wanted: tuple[str, int], key: str | None = None) -> dict[str, Any]:
    """An order that is held."""
    answered = await person.post("/v1/orders", of(*wanted), key=key)
    assert answered.status_code == 201, answered.text
    document: dict[str, Any] = answered.json()
    return document


# Held -----------------------------------------------------------------------------------------------------------------


async def test_an_order_holds_all_its_lines_until_its_deadline(operator: Person, people: list[Person]) -> None:
    small, large = await tees(operator, 5, 5)
    made = await ordered(people[0], (small, 2), (large, 1), (small, 1))
    assert [(item["variant_id"], item["quantity"], item["total_price"]) for item in made["items"]] == [
        (small, 3, 1500),
        (large, 1, 500),
    ]
    assert (made["status"], made["original_amount"], made["discount_amount"], made["total_amount"]) == (
        *("PENDING", 2000, 0),
        2000,
    )
    assert made["expires_at"] > made["created_at"]
    path = f"/v1/orders/{made['order_id']}"
    found = (await people[0].get(path)).json()
    assert {**found, "server_time": None} == {**made, "server_time": None}
    assert problem(await people[1].get(path)) == (404, "not_found")
    assert problem(await people[0].get(f"/v1/reservations/{made['order_id']}")) == (404, "not_found")
    assert problem(await people[0].post(f"/v1/reservations/{made['order_id']}/payments", BALANCE)) == (404, "not_found")


async def test_a_key_orders_once(operator: Person, people: list[Person]) -> None:
    [tee] = await tees(operator, 5)
    first = await people[0].post("/v1/orders", of((tee, 2)), key="k")
    again = await people[0].post("/v1/orders", of((tee, 2)), key="k")
    assert first.json()["order_id"] == again.json()["order_id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert problem(await people[0].post("/v1/orders", of((tee, 3)), key="k")) == (422, "idempotency_key_reused")
    assert (await ordered(people[1], (tee, 3)))["status"] == "PENDING"


async def test_who_leaves_the_line_of_a_drop_gives_the_units_back(
    operator: Person, people: list[Person], house: House
) -> None:
    drop = (await operator.post("/v1/admin/sales", {"name": "Drop"})).json()["sale_id"]
    [tee] = await tees(operator, 5, sale_id=drop)
    assert (await operator.patch(f"/v1/admin/sales/{drop}/queue", {"state": "open"})).status_code == 200
    ann = people[0]
    line = {"Queue-Token": (await ann.post(f"/v1/sales/{drop}/queue/tokens")).json()["token"]}
    sale = await house.book.read(drop)
    assert sale is not None
    await waiting_room.admit(house.gate, sale, most=1)
    made = await ann.post("/v1/orders", of((tee, 2)), headers=line)
    assert made.status_code == 201, made.text
    assert await stock.left(house.gate, sale, [tee]) == {tee: 3}

    left = await ann.http.delete(f"/v1/sales/{drop}/queue/token", headers=ann.headers | line)

    assert (left.status_code, left.json()["status"]) == (200, "LEFT")
    assert await stock.left(house.gate, sale, [tee]) == {tee: 5}
    given_up = (await ann.get(f"/v1/orders/{made.json()['order_id']}")).json()
    assert (given_up["status"], given_up["reason"]) == ("CANCELLED", "USER")


async def test_every_shortage_is_told_with_the_other_sizes(operator: Person, people: list[Person]) -> None:
    small, large, none = await tees(operator, 2, 5, 0)
    refused = await people[0].post("/v1/orders", of((small, 3), (none, 1)))
    assert problem(refused) == (409, "sold_out")
    assert refused.json()["lines"] == [
        {
            "variant_id": small,
            "requested": 3,
            "available": 2,
            "other_sizes": [{"variant_id": large, "size": "1", "available": 5}],
        },
        {
            "variant_id": none,
            "requested": 1,
            "available": 0,
            "other_sizes": [
                {"variant_id": small, "size": "0", "available": 2},
                {"variant_id": large, "size": "1", "available": 5},
            ],
        },
    ]
    assert (await ordered(people[0], (small, 2)))["status"] == "PENDING"


async def test_units_are_given_back_in_part_and_whole(operator: Person, people: list[Person]) -> None:
    small, large = await tees(operator, 5, 5)
    path = f"/v1/orders/{(await ordered(people[0], (small, 3), (large, 1)))['order_id']}"
    left = await people[0].post(f"{path}/releases", of((small, 2)), key="k")
    again = await people[0].post(f"{path}/releases", of((small, 2)), key="k")
    assert left.json()["total_amount"] == again.json()["total_amount"] == 1000
    assert again.headers["idempotent-replayed"] == "true"
    assert problem(await people[0].post(f"{path}/releases", of((small, 2)))) == (404, "unit_unknown")
    for _ in range(2):
        ended = (await people[0].delete(path)).json()
        assert (ended["status"], ended["reason"]) == ("CANCELLED", "USER")
    assert problem(await people[0].post(f"{path}/extension", {})) == (409, "hold_ended")
    assert (await ordered(people[1], (small, 5), (large, 5)))["status"] == "PENDING"


async def test_a_hold_is_extended(operator: Person, people: list[Person]) -> None:
    [tee] = await tees(operator, 5)
    made = await ordered(people[0], (tee, 1))
    extended = await people[0].post(f"/v1/orders/{made['order_id']}/extension", {})
    assert extended.json()["expires_at"] > made["expires_at"]


# Paid -----------------------------------------------------------------------------------------------------------------


async def test_a_paid_order_is_owned_unit_by_unit(operator: Person, people: list[Person], worker: Worker) -> None:
    small, large = await tees(operator, 5, 5)
    made = await ordered(people[0], (small, 2), (large, 1))
    path = f"/v1/orders/{made['order_id']}"
    async with worker.draining():
        paid = await people[0].post(f"{path}/payments", BALANCE, key="k")
    assert paid.status_code == 201, paid.text
    payment = paid.json()
    assert (payment["order_id"], payment["status"], payment["final_amount"]) == (made["order_id"], "SUCCESS", 1500)
    assert "reservation_id" not in payment
    order = (await people[0].get(path)).json()
    assert (order["status"], order["expires_at"], order["payment"]) == (
        *("PAID", None),
        {"payment_id": payment["payment_id"]},
    )
    items = (await people[0].get("/v1/items")).json()["items"]
    assert sorted(item["variant_id"] for item in items) == sorted([small, small, large])
    assert {item["name"] for item in items} == {"Tee"}
    assert (await people[1].get("/v1/items")).json()["items"] == []
    shown = (await people[0].get(f"/v1/products/{items[0]['product_id']}")).json()
    assert [variant["available"] for variant in shown["variants"]] == [3, 4]
    assert (await people[0].get("/v1/orders")).json()["items"][0]["order_id"] == made["order_id"]
    again = await people[0].post(f"{path}/payments", BALANCE, key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert problem(await people[0].post(f"{path}/payments", BALANCE)) == (409, "hold_ended")


async def test_a_coupon_takes_something_off(operator: Person, people: list[Person], worker: Worker) -> None:
    [tee] = await tees(operator, 5)
    coupon_id = await make(operator, discount_amount=300)
    async with worker.draining():
        mine = (await issue(people[0], coupon_id)).json()["user_coupon_id"]
        path = f"/v1/orders/{(await ordered(people[0], (tee, 2)))['order_id']}"
        foreign = await people[1].post("/v1/orders", of((tee, 1)))
        stolen = await people[1].post(
            f"/v1/orders/{foreign.json()['order_id']}/payments", BALANCE | {"user_coupon_id": mine}
        )
        paid = await people[0].post(f"{path}/payments", BALANCE | {"user_coupon_id": mine})
    assert problem(stolen) == (409, "coupon_unusable")
    assert stolen.json()["reason"] == "UNKNOWN"
    payment = paid.json()
    assert (payment["original_amount"], payment["discount_amount"], payment["final_amount"]) == (1000, 300, 700)
    assert payment["user_coupon_id"] == mine
    order = (await people[0].get(path)).json()
    assert (order["original_amount"], order["discount_amount"], order["total_amount"]) == (1000, 300, 700)
    assert [(item["discount_amount"], item["total_price"]) for item in order["items"]] == [(300, 700)]
    used = (await people[0].get(f"/v1/user-coupons/{mine}")).json()
    assert (used["status"], used["order_id"]) == ("USED", order["order_id"])
    other = f"/v1/orders/{(await ordered(people[0], (tee, 1)))['order_id']}/payments"
    refused = await people[0].post(other, BALANCE | {"user_coupon_id": mine})
    assert (problem(refused), refused.json()["reason"]) == ((409, "coupon_unusable"), "USED")


async def test_a_coupon_that_is_not_durable_yet_is_judged_before_anything_moves(
    operator: Person, people: list[Person], worker: Worker, house: House
) -> None:
    [tee] = await tees(operator, 5)
    coupon_id = await make(operator)
    sale = await house.book.find(coupon_id)
    assert sale is not None
    issued = await coupons.issue(house.gate, sale, user_id=people[0].user_id)
    assert isinstance(issued, coupons.Issued)
    mine = coupons.user_coupon_id_of(coupon_id, people[0].user_id)
    path = f"/v1/orders/{(await ordered(people[0], (tee, 2)))['order_id']}/payments"
    early = await people[0].post(path, BALANCE | {"user_coupon_id": mine}, key="k")
    assert problem(early) == (409, "coupon_pending")
    assert int(early.headers["retry-after"]) >= 1
    assert (await people[0].get("/v1/payments")).json()["items"] == []
    await worker.drain()
    async with worker.draining():
        paid = await people[0].post(path, BALANCE | {"user_coupon_id": mine}, key="k")
    assert (paid.status_code, paid.json()["final_amount"]) == (201, 0)


# A cart ---------------------------------------------------------------------------------------------------------------


async def test_a_cart_is_ordered_once_and_loses_only_what_was_ordered(operator: Person, people: list[Person]) -> None:
    me = people[0]
    small, large = await tees(operator, 5, 5)
    await me.put(f"/v1/cart/items/{small}", {"quantity": 2})
    await me.put(f"/v1/cart/items/{large}", {"quantity": 1})
    first = await me.post("/v1/orders", {"from_cart": True}, key="k")
    assert first.status_code == 201, first.text
    assert first.json()["total_amount"] == 1500
    assert (await me.get("/v1/cart")).json()["items"] == []
    await me.put(f"/v1/cart/items/{small}", {"quantity": 3})
    again = await me.post("/v1/orders", {"from_cart": True}, key="k")
    assert (again.json()["order_id"], again.json()["total_amount"]) == (first.json()["order_id"], 1500)
    assert [item["quantity"] for item in (await me.get("/v1/cart")).json()["items"]] == [3]
    reused = await me.post("/v1/orders", {"from_cart": True, "sale_id": ids.random_id()}, key="k")
    assert problem(reused) == (422, "idempotency_key_reused")


async def test_two_clicks_at_once_are_one_order(operator: Person, people: list[Person]) -> None:
    [tee] = await tees(operator, 5)
    await people[0].put(f"/v1/cart/items/{tee}", {"quantity": 2})
    clicks = await asyncio.gather(*[people[0].post("/v1/orders", {"from_cart": True}, key="k") for _ in range(8)])
    assert {click.status_code for click in clicks} == {201}
    assert len({click.json()["order_id"] for click in clicks}) == 1
    assert (await people[0].get("/v1/cart")).json()["items"] == []
    assert len((await people[0].get("/v1/orders")).json()["items"]) <= 1


async def test_two_clicks_under_two_keys_order_a_cart_once(operator: Person, people: list[Person]) -> None:
    [tee] = await tees(operator, 50)
    await people[0].put(f"/v1/cart/items/{tee}", {"quantity": 2})
    clicks = await asyncio.gather(*[people[0].post("/v1/orders", {"from_cart": True}) for _ in range(8)])
    assert sorted(click.status_code for click in clicks) == [201] + [409] * 7
    assert {problem(click) for click in clicks if click.status_code == 409} == {(409, "cart_empty")}
    assert (await people[0].get("/v1/cart")).json()["items"] == []


async def test_a_cart_that_is_short_stays_as_it_is_and_its_key_tries_again(
    operator: Person, people: list[Person]
) -> None:
    me = people[0]
    [tee] = await tees(operator, 2)
    await me.put(f"/v1/cart/items/{tee}", {"quantity": 3})
    assert problem(await me.post("/v1/orders", {"from_cart": True}, key="k")) == (409, "sold_out")
    assert [item["quantity"] for item in (await me.get("/v1/cart")).json()["items"]] == [3]
    await me.put(f"/v1/cart/items/{tee}", {"quantity": 2})
    assert (await me.post("/v1/orders", {"from_cart": True}, key="k")).status_code == 201


@pytest.mark.parametrize(
    "lives_on", ["the journal", "the same request", "the same request with a token that is refused"]
)
async def test_who_dies_between_the_hold_and_the_emptying_of_the_cart_orders_once(
    operator: Person, people: list[Person], worker: Worker, monkeypatch: pytest.MonkeyPatch, lives_on: str
) -> None:
    me = people[0]
    small, large = await tees(operator, 5, 5)
    await me.put(f"/v1/cart/items/{small}", {"quantity": 2})
    with monkeypatch.context() as dying:

        async def dies(*_: object) -> None:
            raise asyncpg.InterfaceError("the process died here")

        dying.setattr(carts, "finish", dies)
        assert (await me.post("/v1/orders", {"from_cart": True}, key="k")).status_code >= 500
    # Meanwhile the buyer goes on filling it.
    await me.put(f"/v1/cart/items/{small}", {"quantity": 3})
    await me.put(f"/v1/cart/items/{large}", {"quantity": 1})
    if lives_on == "the same request":
        assert (await me.post("/v1/orders", {"from_cart": True}, key="k")).status_code == 201
    elif lives_on != "the journal":
        token = {"Queue-Token": "nobody's"}
        refused = await me.post("/v1/orders", {"from_cart": True}, key="k", headers=token)
        assert problem(refused) == (403, "not_admitted")
    await worker.drain()
    left = {item["variant_id"]: item["quantity"] for item in (await me.get("/v1/cart")).json()["items"]}
    assert left == {small: 1, large: 1}
    [order] = (await me.get("/v1/orders")).json()["items"]
    assert [(item["variant_id"], item["quantity"]) for item in order["items"]] == [(small, 2)]
    # Whoever tells it again, the cart loses nothing more.
    assert (await me.post("/v1/orders", {"from_cart": True}, key="k")).json()["order_id"] == order["order_id"]
    await worker.drain()
    assert len((await me.get("/v1/cart")).json()["items"]) == 2
    assert len((await me.get("/v1/orders")).json()["items"]) == 1


# Refused --------------------------------------------------------------------------------------------------------------


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


# By card, and on seats ------------------------------------------------------------------------------------------------


class TestCards:
    """With a simulated gateway beside the house."""

    @pytest.fixture
    async def settings(self, settings: Settings, settings_of_gateway: Settings) -> Settings:
        """An installation with that gateway."""
        return with_gateway(settings, settings_of_gateway)

    @pytest.mark.parametrize(
        ("tender", "parts"),
        [
            ({"method": "CARD", "card": {"payment_method_id": "pm_card_visa"}}, None),
            (
                {"method": "SPLIT", "balance_amount": 400, "card": {"payment_method_id": "pm_card_visa"}},
                {"balance": 400, "card": 600},
            ),
        ],
    )
    async def test_a_card_pays_an_order_and_gets_it_back(
        self, operator: Person, people: list[Person], worker: Worker, tender: dict[str, Any], parts: object
    ) -> None:
        [tee] = await tees(operator, 5)
        path = f"/v1/orders/{(await ordered(people[0], (tee, 2)))['order_id']}"
        async with worker.draining():
            paid = await people[0].post(f"{path}/payments", tender)
            assert (paid.status_code, paid.json()["status"], paid.json().get("parts")) == (201, "SUCCESS", parts)
            given_back = await people[0].post(f"{path}/cancellations", of((tee, 1)))
        assert given_back.status_code == 201, given_back.text
        order = (await people[0].get(path)).json()
        assert (order["status"], order["items"][0]["refunded_quantity"]) == ("PARTIALLY_REFUNDED", 1)
        assert (await people[0].delete(path)).json()["status"] == "REFUNDED"

    async def test_a_declined_card_leaves_the_order_to_another(
        self, operator: Person, people: list[Person], worker: Worker
    ) -> None:
        [tee] = await tees(operator, 5)
        coupon_id = await make(operator, discount_amount=300)
        async with worker.draining():
            mine = (await issue(people[0], coupon_id)).json()["user_coupon_id"]
            path = f"/v1/orders/{(await ordered(people[0], (tee, 2)))['order_id']}"
            bad = {"method": "CARD", "card": {"payment_method_id": "pm_card_insufficientFunds"}}
            declined = await people[0].post(f"{path}/payments", bad | {"user_coupon_id": mine})
            assert problem(declined) == (402, "card_declined")
            assert declined.json()["expires_at"] == (await people[0].get(path)).json()["expires_at"]
            assert (await people[0].get(f"/v1/user-coupons/{mine}")).json()["status"] == "AVAILABLE"
            paid = await people[0].post(f"{path}/payments", BALANCE | {"user_coupon_id": mine})
        assert (paid.status_code, paid.json()["final_amount"]) == (201, 700)


async def test_a_coupon_on_seats_comes_back_when_all_of_them_do(
    operator: Person, people: list[Person], worker: Worker, show: Show
) -> None:
    me = people[0]
    coupon_id = await make(operator, discount_amount=301)
    async with worker.draining():
        mine = (await issue(me, coupon_id)).json()["user_coupon_id"]
        path = f"/v1/reservations/{(await show.reserve(me, 'A-1-1', 'A-1-2')).json()['reservation_id']}"
        paid = await me.post(f"{path}/payments", BALANCE | {"user_coupon_id": mine})
        assert (paid.status_code, paid.json()["final_amount"]) == (201, 1699)
        part = await me.post(f"{path}/cancellations", {"seats": ["A-1-1"]})
        assert part.json()["refund"]["amount"] == 849
        assert (await me.get(f"/v1/user-coupons/{mine}")).json()["status"] == "USED"
        rest = await me.post(f"{path}/cancellations", {})
        assert rest.json()["refund"]["amount"] == 850
    assert (await me.get(f"/v1/user-coupons/{mine}")).json()["status"] == "AVAILABLE"
    assert (await me.get("/v1/balance")).json()["amount"] == 100_000
