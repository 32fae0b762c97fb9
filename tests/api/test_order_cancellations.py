"""Goods that were paid are given back over HTTP: quoted first, once, and only by those who may."""

from typing import Any

import pytest

from api.house import House
from engine import rebuild
from tests.api.calling import Person, Worker, problem, stock_up

PRICE = 500


class Stand:
    """A sale of tees, ten of size M and three of L, that is open."""

    def __init__(self, house: House, worker: Worker, made: dict[str, Any]) -> None:
        self.house = house
        self.worker = worker
        self.sale_id: str = made["sale_id"]
        self.m, self.l = [variant["variant_id"] for variant in made["variants"]]

    def lines(self, m: int = 0, l: int = 0) -> list[dict[str, object]]:  # noqa: E741 - a size
        """Lines of a request."""
        named = ((self.m, m), (self.l, l))
        return [{"variant_id": variant_id, "quantity": quantity} for variant_id, quantity in named if quantity]

    async def order(self, person: Person, **units: int) -> dict[str, Any]:
        """Order, which must succeed."""
        ordered = await person.post("/v1/orders", {"lines": self.lines(**units)})
        assert ordered.status_code == 201, ordered.text
        found: dict[str, Any] = ordered.json()
        return found | {"path": f"/v1/orders/{found['order_id']}"}

    async def buy(self, person: Person, **units: int) -> dict[str, Any]:
        """Order and pay; answers the paid order."""
        ordered = await self.order(person, **units)
        async with self.worker.draining():
            paid = await person.post(f"{ordered['path']}/payments", {"method": "BALANCE"})
        assert paid.status_code == 201, paid.text
        found: dict[str, Any] = (await person.get(ordered["path"])).json()
        assert found["status"] == "PAID"
        return found | {"path": ordered["path"]}


async def open_stand(house: House, operator: Person, worker: Worker, **terms: object) -> Stand:
    """Make a drop and open it."""
    drop = await operator.post("/v1/admin/sales", {"name": "Drop"} | terms)
    assert drop.status_code == 201, drop.text
    variants = [{"size": "M", "stock": 10}, {"size": "L", "stock": 3}]
    made = await stock_up(operator, sale_id=drop.json()["sale_id"], price=PRICE, variants=variants)
    # The drop was open before it had products, so it is written anew.
    assert await rebuild.demand(house.stores, made["sale_id"], reason="a test lists products")
    await house.book.refresh()
    return Stand(house, worker, made)


@pytest.fixture
async def stand(house: House, operator: Person, worker: Worker) -> Stand:
    """One without a policy."""
    return await open_stand(house, operator, worker)


async def balance(person: Person) -> int:
    amount: int = (await person.get("/v1/balance")).json()["amount"]
    return amount


# Quote and cancel -----------------------------------------------------------------------------------------------------


async def test_a_quote_and_then_a_part(house: House, operator: Person, people: list[Person], worker: Worker) -> None:
    policy = [{"hours_before": 24, "percent": 50}]
    stand, (ann, ben, _) = await open_stand(house, operator, worker, refund_policy=policy), people
    bought = await stand.buy(ann, m=3, l=1)
    quoted = await ann.get(f"{bought['path']}/cancellations/quote?lines={stand.m}:2,{stand.l}:1")
    assert quoted.status_code == 200, quoted.text
    told = quoted.json()
    assert told.pop("server_time")
    lines = stand.lines(m=2, l=1)
    assert told == {
        "lines": lines,
        "amount": 750,
        "kept": 750,
        "percent": 50,
        "policy_hours": 24,
        "currency": "KRW",
    }
    assert (await ann.get(f"{bought['path']}/cancellations/quote")).json()["amount"] == 1000

    cancelled = await ann.post(f"{bought['path']}/cancellations", {"lines": lines}, key="k")
    assert cancelled.status_code == 201, cancelled.text
    made = cancelled.json()
    assert (made["lines"], made["amount"], made["kept"], made["reason"]) == (lines, 750, 750, "USER")
    assert made["refunds"] == [made["refund"]]
    assert (made["refund"]["to"], made["refund"]["status"], made["refund"]["amount"]) == ("BALANCE", "DONE", 750)
    assert await balance(ann) == 100_000 - 2000 + 750
    assert (await ann.get("/v1/balance/history")).json()["items"][0]["type"] == "REFUND"

    found = (await ann.get(bought["path"])).json()
    assert found["status"] == "PARTIALLY_REFUNDED"
    assert {item["size"]: item.get("refunded_quantity") for item in found["items"]} == {"M": 2, "L": 1}
    payment = (await ann.get(f"/v1/payments/{found['payment']['payment_id']}")).json()
    assert (payment["status"], payment["refunded_amount"]) == ("PARTIALLY_REFUNDED", 750)
    owned = (await ann.get("/v1/items")).json()["items"]
    assert sorted("returned_at" in item for item in owned) == [False, True, True, True]
    assert (await stand.order(ben, m=9, l=3))["status"] == "PENDING"

    again = await ann.post(f"{bought['path']}/cancellations", {"lines": lines}, key="k")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json() == made
    other = await ann.post(f"{bought['path']}/cancellations", {"lines": stand.lines(m=1)}, key="k")
    assert problem(other) == (422, "idempotency_key_reused")
    assert (await ann.get(f"/v1/refunds/{made['refund']['refund_id']}")).json() == made["refund"]
    assert (await ann.get("/v1/refunds")).json()["items"] == [made["refund"]]


async def test_without_a_policy_all_of_it_comes_back(stand: Stand, people: list[Person]) -> None:
    bought = await stand.buy(people[0], m=2)
    quoted = (await people[0].get(f"{bought['path']}/cancellations/quote")).json()
    assert (quoted["amount"], quoted["kept"], quoted["percent"], quoted["policy_hours"]) == (1000, 0, 100, None)
    cancelled = await people[0].post(f"{bought['path']}/cancellations", {"refund_to": "BALANCE"})
    assert cancelled.json()["lines"] == stand.lines(m=2)
    found = (await people[0].get(bought["path"])).json()
    assert (found["status"], found["expires_at"]) == ("REFUNDED", None)
    assert await balance(people[0]) == 100_000


async def test_deleting_an_order_that_is_paid_cancels_it(stand: Stand, people: list[Person]) -> None:
    ann = people[0]
    bought = await stand.buy(ann, m=2, l=1)
    await ann.post(f"{bought['path']}/cancellations", {"lines": stand.lines(m=1)})
    for _ in range(2):
        deleted = await ann.delete(bought["path"])
        assert deleted.status_code == 200, deleted.text
        assert deleted.json()["status"] == "REFUNDED"
        assert await balance(ann) == 100_000
    refused = await ann.post(f"{bought['path']}/cancellations")
    assert problem(refused) == (409, "cancellation_closed")
    assert refused.json()["reason"] == "ENDED"


async def test_a_policy_that_reaches_no_nearer(
    house: House, operator: Person, people: list[Person], worker: Worker
) -> None:
    policy = [{"hours_before": 1, "percent": 50}]
    stand = await open_stand(house, operator, worker, refund_policy=policy)
    bought = await stand.buy(people[0], m=1)
    await house.postgres.execute("UPDATE sales SET closes_at = now() + interval '59 minutes'")
    for refused in (
        await people[0].post(f"{bought['path']}/cancellations"),
        await people[0].get(f"{bought['path']}/cancellations/quote"),
        await people[0].delete(bought["path"]),
    ):
        assert problem(refused) == (409, "cancellation_closed")
        assert refused.json()["reason"] == "TOO_LATE"
    assert (await people[0].get(bought["path"])).json()["status"] == "PAID"


async def test_a_payment_that_runs_and_an_order_that_nobody_paid(
    stand: Stand, people: list[Person], worker: Worker, house: House
) -> None:
    ann = people[0]
    path = (await stand.order(ann, m=1))["path"]
    refused = await ann.post(f"{path}/cancellations", key="k")
    assert problem(refused) == (409, "cancellation_closed")
    assert refused.json()["reason"] == "UNPAID"
    house.till._answer_within_s = 0.05
    paying = await ann.post(f"{path}/payments", {"method": "BALANCE"})
    assert paying.status_code == 202
    for refused in (
        await ann.post(f"{path}/cancellations", key="k"),
        await ann.get(f"{path}/cancellations/quote"),
        await ann.delete(path),
    ):
        assert problem(refused) == (409, "payment_running")
        assert refused.json()["payment_id"] == paying.json()["payment_id"]
    await worker.drain()
    # A refusal changed nothing: the same key may ask again.
    assert (await ann.post(f"{path}/cancellations", key="k")).status_code == 201


async def test_what_is_not_mine_is_not_there(stand: Stand, people: list[Person]) -> None:
    ann, ben, _ = people
    bought = await stand.buy(ann, m=1)
    for path in (bought["path"], f"/v1/orders/{'0' * 32}", "/v1/orders/nonsense"):
        assert problem(await ben.post(f"{path}/cancellations")) == (404, "not_found")
        assert problem(await ben.get(f"{path}/cancellations/quote")) == (404, "not_found")
    assert problem(await ben.delete(bought["path"])) == (404, "not_found")
    assert (await ann.get(bought["path"])).json()["status"] == "PAID"


async def test_more_than_was_bought_is_named(stand: Stand, people: list[Person]) -> None:
    bought = await stand.buy(people[0], m=2)
    for lines, unknown in (
        (stand.lines(m=3), stand.m),
        (stand.lines(m=1, l=1), stand.l),
        ([*stand.lines(m=1), *stand.lines(m=2)], stand.m),
    ):
        refused = await people[0].post(f"{bought['path']}/cancellations", {"lines": lines})
        assert problem(refused) == (404, "unit_unknown")
        assert refused.json()["variant_ids"] == [unknown]
    assert (await people[0].get(bought["path"])).json()["status"] == "PAID"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"lines": []}, "lines"),
        ({"lines": [{"variant_id": "0" * 32, "quantity": 0}]}, "lines[0].quantity"),
        ({"lines": [{"variant_id": "0" * 32, "quantity": -1}]}, "lines[0].quantity"),
        ({"lines": [{"variant_id": "no", "quantity": 1}]}, "lines[0].variant_id"),
        ({"lines": [{"variant_id": f"{at:032x}", "quantity": 1} for at in range(101)]}, "lines"),
        ({"refund_to": "CARD"}, "refund_to"),
        ({"seats": ["A-1-1"]}, "seats"),
    ],
)
async def test_a_wish_says_what_is_wrong_with_it(people: list[Person], body: object, path: str) -> None:
    answered = await people[0].post(f"/v1/orders/{'0' * 32}/cancellations", body)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


@pytest.mark.parametrize(
    "lines",
    [
        "x",
        f"{'0' * 32}:0",
        f"{'0' * 32}:-1",
        f"{'0' * 32}:1,",
        f"{'0' * 32}",
        ",".join([f"{'0' * 32}:1"] * 101),
        "a" * 9999,
    ],
)
async def test_a_quote_says_what_is_wrong_with_it(people: list[Person], lines: str) -> None:
    answered = await people[0].get(f"/v1/orders/{'0' * 32}/cancellations/quote?lines={lines}")
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == ["lines"]


# Operators ------------------------------------------------------------------------------------------------------------


async def test_an_operator_cancels_for_somebody_in_full(
    house: House, operator: Person, people: list[Person], worker: Worker
) -> None:
    policy = [{"hours_before": 1, "percent": 0}]
    stand = await open_stand(house, operator, worker, refund_policy=policy)
    bought = await stand.buy(people[0], m=2)
    path = f"/v1/admin{bought['path'].removeprefix('/v1')}/cancellations"
    assert problem(await people[0].post(path)) == (401, "not_signed_in")
    for repeated in (None, "true"):
        cancelled = await operator.post(path, {"lines": stand.lines(m=1)}, key="k")
        assert (cancelled.status_code, cancelled.headers.get("idempotent-replayed")) == (201, repeated)
        assert (cancelled.json()["reason"], cancelled.json()["amount"]) == ("ADMIN", PRICE)
    assert await balance(people[0]) == 100_000 - PRICE
