"""Coupons over HTTP: made, edited and removed by operators, one for each user, told once they are durable."""

import asyncio
from typing import Any

import httpx
import pytest

import api.coupons
from api.house import House
from tests.api.calling import Person, Worker, problem

FIVE_OFF = {
    "name": "Five off",
    "type": "FIXED",
    "discount_amount": 5000,
    "quantity": 2,
    "usable_from": "2026-01-01T00:00:00Z",
    "usable_to": "2036-01-01T00:00:00Z",
}
RATE = FIVE_OFF | {"type": "RATE", "discount_rate": 15, "max_discount_amount": 900} | {"discount_amount": None}


async def make(operator: Person, **coupon: object) -> str:
    """Make a source; its id."""
    made = await operator.post("/v1/admin/coupons", FIVE_OFF | coupon)
    assert made.status_code == 201, made.text
    coupon_id: str = made.json()["coupon_id"]
    return coupon_id


async def issue(person: Person, coupon_id: str, key: str | None = None) -> httpx.Response:
    return await person.post(f"/v1/coupons/{coupon_id}/issues", {}, key=key)


async def read(operator: Person, coupon_id: str) -> dict[str, Any]:
    document: dict[str, Any] = (await operator.get(f"/v1/admin/coupons/{coupon_id}")).json()
    return document


# Users ----------------------------------------------------------------------------------------------------------------


async def test_a_user_gets_one_whatever_the_key(operator: Person, people: list[Person], worker: Worker) -> None:
    coupon_id = await make(operator)
    async with worker.draining():
        first = await issue(people[0], coupon_id)
        again = await issue(people[0], coupon_id)
        other = await issue(people[1], coupon_id)
        gone = await issue(people[2], coupon_id)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert first.json() == again.json() != other.json()
    assert problem(gone) == (409, "coupons_gone")
    shown = (await people[0].get(f"/v1/coupons/{coupon_id}")).json()
    assert (shown["quantity"], shown["initial_quantity"], shown["status"]) == (0, 2, "SOLD_OUT")


async def test_what_a_user_owns_keeps_the_terms_of_its_issue(
    operator: Person, people: list[Person], worker: Worker
) -> None:
    me = people[0]
    coupon_id = await make(operator, minimum_spend=10_000)
    async with worker.draining():
        user_coupon_id = (await issue(me, coupon_id)).json()["user_coupon_id"]
    await operator.patch(f"/v1/admin/coupons/{coupon_id}", {"discount_amount": 1, "minimum_spend": None}, version=1)
    mine = (await me.get(f"/v1/user-coupons/{user_coupon_id}")).json()
    assert mine == {
        "name": "Five off",
        "type": "FIXED",
        "discount_amount": 5000,
        "minimum_spend": 10_000,
        "usable_from": "2026-01-01T00:00:00.000Z",
        "usable_to": "2036-01-01T00:00:00.000Z",
        "user_coupon_id": user_coupon_id,
        "coupon_id": coupon_id,
        "status": "AVAILABLE",
        "created_at": mine["created_at"],
    }
    assert (await me.get("/v1/user-coupons")).json() == {"items": [mine], "next": None}
    assert problem(await people[1].get(f"/v1/user-coupons/{user_coupon_id}")) == (404, "not_found")
    assert (await people[1].get("/v1/user-coupons")).json()["items"] == []
    assert "minimum_spend" not in (await me.get(f"/v1/coupons/{coupon_id}")).json()


async def test_an_issue_that_is_not_durable_in_time_has_an_address(
    operator: Person, people: list[Person], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.coupons, "ANSWER_WITHIN_S", 0.05)
    coupon_id = await make(operator)
    begun = await issue(people[0], coupon_id)
    assert begun.status_code == 202
    location = begun.headers["location"]
    assert location == f"/v1/user-coupons/{begun.json()['user_coupon_id']}"
    assert int(begun.headers["retry-after"]) >= 1
    assert problem(await people[0].get(location)) == (404, "not_found")
    assert (await issue(people[0], coupon_id)).status_code == 202
    await worker.drain()
    assert (await people[0].get(location)).json()["status"] == "AVAILABLE"
    assert (await issue(people[0], coupon_id)).status_code == 200


async def test_too_many_that_are_not_durable_are_refused(
    operator: Person, people: list[Person], house: House, worker: Worker
) -> None:
    coupon_id = await make(operator)
    keys = (await house.book.find(coupon_id)).keys  # type: ignore[union-attr]
    await house.stores.redis.execute_command("HSET", keys.sale, "backlog_max", "5", "outbox_n", "6")
    busy = await issue(people[0], coupon_id)
    assert problem(busy) == (503, "busy")
    assert int(busy.headers["retry-after"]) >= 1
    await house.stores.redis.execute_command("HSET", keys.sale, "outbox_n", "0")
    async with worker.draining():
        assert (await issue(people[0], coupon_id)).status_code == 201


@pytest.mark.parametrize(
    ("coupon", "answer", "told"),
    [
        ({"status": "DRAFT"}, (404, "not_found"), {}),
        ({"status": "PAUSED"}, (409, "not_issuing"), {"reason": "PAUSED"}),
        (
            {"issue_from": "2035-01-01T00:00:00Z"},
            (409, "not_issuing"),
            {"reason": "NOT_STARTED", "starts_at": "2035-01-01T00:00:00.000Z"},
        ),
        ({"issue_to": "2026-01-02T00:00:00Z"}, (409, "not_issuing"), {"reason": "ENDED"}),
    ],
)
async def test_what_is_not_issued_now_says_why(
    coupon: dict[str, object], answer: tuple[int, str], told: dict[str, str], operator: Person, people: list[Person]
) -> None:
    coupon_id = await make(operator, **coupon)
    refused = await issue(people[0], coupon_id)
    assert problem(refused) == answer
    assert {name: refused.json()[name] for name in told} == told
    assert (await read(operator, coupon_id))["quantity"] == 2


async def test_a_deleted_source_is_gone_and_what_was_issued_stays(
    operator: Person, people: list[Person], worker: Worker
) -> None:
    coupon_id = await make(operator)
    async with worker.draining():
        mine = await issue(people[0], coupon_id)
        for _ in range(2):
            assert (await operator.delete(f"/v1/admin/coupons/{coupon_id}")).status_code == 204
        assert problem(await issue(people[1], coupon_id)) == (404, "not_found")
        assert (await issue(people[0], coupon_id)).json() == mine.json()
    for path in (f"/v1/coupons/{coupon_id}", f"/v1/admin/coupons/{coupon_id}"):
        assert problem(await operator.get(path)) == (404, "not_found")
    assert (await people[0].get("/v1/coupons")).json()["items"] == []
    assert (await operator.get("/v1/admin/coupons")).json()["items"] == []
    owned = (await people[0].get("/v1/user-coupons")).json()["items"]
    assert [each["user_coupon_id"] for each in owned] == [mine.json()["user_coupon_id"]]


async def test_sources_are_listed_newest_first_and_drafts_to_operators_alone(
    operator: Person, people: list[Person]
) -> None:
    made = [await make(operator, name=name, status=status) for name, status in (("a", "ISSUING"), ("b", "DRAFT"))]
    made.append((await operator.post("/v1/admin/coupons", RATE)).json()["coupon_id"])
    page = (await people[0].get("/v1/coupons?limit=1")).json()
    assert [item["coupon_id"] for item in page["items"]] == [made[2]]
    [item] = page["items"]
    assert (item["type"], item["discount_rate"], item["max_discount_amount"]) == ("RATE", 15, 900)
    assert "discount_amount" not in item
    rest = (await people[0].get(f"/v1/coupons?limit=1&cursor={page['next']}")).json()
    assert ([item["coupon_id"] for item in rest["items"]], rest["next"]) == ([made[0]], None)
    assert problem(await people[0].get(f"/v1/coupons/{made[1]}")) == (404, "not_found")
    every = (await operator.get("/v1/admin/coupons")).json()["items"]
    assert [item["coupon_id"] for item in every] == made[::-1]


async def test_only_who_signed_in_gets_one_and_the_request_has_a_key(operator: Person, people: list[Person]) -> None:
    coupon_id = await make(operator)
    path = f"/v1/coupons/{coupon_id}/issues"
    assert problem(await operator.http.post(path, json={}, headers={"Idempotency-Key": "k"})) == (401, "not_signed_in")
    no_key = await people[0].http.post(path, json={}, headers=people[0].headers)
    assert problem(no_key) == (400, "key_required")
    assert problem(await issue(people[0], "0" * 32)) == (404, "not_found")


async def test_a_source_is_no_sale_and_a_sale_no_source(operator: Person, people: list[Person], show: Any) -> None:
    coupon_id = await make(operator)
    for path in (f"/v1/sales/{coupon_id}", f"/v1/sales/{coupon_id}/queue", f"/v1/sales/{coupon_id}/events"):
        assert problem(await people[0].get(path)) == (404, "not_found")
    assert problem(await people[0].post(f"/v1/sales/{coupon_id}/queue/tokens", {})) == (404, "not_found")
    room = f"/v1/admin/sales/{coupon_id}/queue"
    assert problem(await operator.get(room)) == (404, "not_found")
    assert problem(await operator.patch(room, {"state": "open"})) == (404, "not_found")
    product = {"name": "Tee", "category": "Shirts", "price": 1, "variants": [{"stock": 1}], "sale_id": coupon_id}
    assert problem(await operator.post("/v1/admin/products", product)) == (404, "not_found")
    assert problem(await issue(people[0], show.sale_id)) == (404, "not_found")
    rebuilt = await operator.post(f"/v1/admin/sales/{coupon_id}/rebuild", {})
    assert rebuilt.json() == {"sale_id": coupon_id, "epoch": 2}


async def test_a_thousand_requests_of_one_user_are_one_coupon(
    operator: Person, people: list[Person], worker: Worker
) -> None:
    coupon_id = await make(operator, quantity=10)
    async with worker.draining():
        answers = await asyncio.gather(*(issue(people[0], coupon_id) for _ in range(200)))
    assert {answered.status_code for answered in answers} <= {200, 201}
    assert [answered.status_code for answered in answers].count(201) == 1
    assert len({answered.json()["user_coupon_id"] for answered in answers}) == 1
    assert (await read(operator, coupon_id))["quantity"] == 9


# Operators ------------------------------------------------------------------------------------------------------------


async def test_a_key_makes_one_source(operator: Person) -> None:
    first = await operator.post("/v1/admin/coupons", FIVE_OFF, key="k")
    again = await operator.post("/v1/admin/coupons", FIVE_OFF, key="k")
    assert first.json() == again.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = await operator.post("/v1/admin/coupons", FIVE_OFF | {"quantity": 3}, key="k")
    assert problem(other) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"discount_rate": 10}, "discount_rate"),
        ({"discount_amount": None}, "discount_amount"),
        ({"discount_amount": 0}, "discount_amount"),
        ({"discount_amount": 10**12 + 1}, "discount_amount"),
        ({"max_discount_amount": 5}, "max_discount_amount"),
        ({"type": "RATE"}, "discount_rate"),
        ({"type": "RATE", "discount_rate": 10}, "discount_amount"),
        ({"type": "RATE", "discount_amount": None, "discount_rate": 101}, "discount_rate"),
        ({"type": "RATE", "discount_amount": None, "discount_rate": 0}, "discount_rate"),
        ({"type": "RATE", "discount_amount": None, "discount_rate": 12.5}, "discount_rate"),
        ({"type": "GIFT"}, "type"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": 10**7 + 1}, "quantity"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"status": "SOLD_OUT"}, "status"),
        ({"minimum_spend": 0}, "minimum_spend"),
        ({"usable_to": "2026-01-01T00:00:00Z"}, "usable_to"),
        ({"usable_from": "2037-01-01T00:00:00Z"}, "usable_to"),
        ({"usable_from": "1999-01-01T00:00:00Z"}, "usable_from"),
        ({"usable_to": "2036-01-01T00:00:00"}, "usable_to"),
        ({"issue_from": "2026-05-01T00:00:00Z", "issue_to": "2026-05-01T00:00:00Z"}, "issue_to"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_bad_terms_make_nothing(wrong: dict[str, object], path: str, operator: Person) -> None:
    refused = await operator.post("/v1/admin/coupons", FIVE_OFF | wrong)
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == [path]
    assert (await operator.get("/v1/admin/coupons")).json()["items"] == []


async def test_an_edit_takes_effect_at_once(operator: Person, people: list[Person], worker: Worker) -> None:
    coupon_id = await make(operator, quantity=1)
    path = f"/v1/admin/coupons/{coupon_id}"
    async with worker.draining():
        await issue(people[0], coupon_id)
        assert problem(await issue(people[1], coupon_id)) == (409, "coupons_gone")
        more = await operator.patch(path, {"quantity": 2, "name": "Six off"}, version=1)
        assert (more.json()["quantity"], more.json()["status"], more.headers["etag"]) == (1, "ISSUING", '"2"')
        assert (await issue(people[1], coupon_id)).status_code == 201
    few = await operator.patch(path, {"quantity": 1}, version=2)
    assert (problem(few), few.json()["issued"]) == ((409, "quantity_taken"), 2)
    paused = await operator.patch(path, {"quantity": 3, "status": "PAUSED"}, version=2)
    assert paused.json()["status"] == "PAUSED"
    assert problem(await issue(people[2], coupon_id)) == (409, "not_issuing")
    assert (await operator.patch(path, {"status": "CLOSED"}, version=3)).status_code == 200
    refused = await operator.patch(path, {"status": "ISSUING"}, version=4)
    assert (problem(refused), refused.json()["reason"]) == ((409, "not_issuing"), "CLOSED")


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        ({"usable_to": "2025-01-01T00:00:00Z"}, "usable_to"),
        ({"discount_rate": 10}, "discount_rate"),
        ({"discount_amount": None}, "discount_amount"),
        ({"quantity": 0}, "quantity"),
        ({"status": "SOLD_OUT"}, "status"),
        ({"status": "DRAFT"}, "status"),
        ({"type": "RATE"}, "type"),
        ({"issue_from": "2026-01-02T00:00:00Z", "issue_to": "2026-01-01T00:00:00Z"}, "issue_to"),
    ],
)
async def test_a_bad_edit_changes_nothing(edit: dict[str, object], path: str, operator: Person) -> None:
    coupon_id = await make(operator)
    before = await read(operator, coupon_id)
    refused = await operator.patch(f"/v1/admin/coupons/{coupon_id}", edit, version=1)
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == [path]
    assert await read(operator, coupon_id) == before


async def test_an_edit_names_the_version_it_was_made_of(operator: Person) -> None:
    coupon_id = await make(operator)
    path = f"/v1/admin/coupons/{coupon_id}"
    assert (await operator.get(path)).headers["etag"] == '"1"'
    assert problem(await operator.patch(path, {"name": "New"}, version=2)) == (412, "stale_version")
    assert problem(await operator.patch(path, {"name": "New"})) == (400, "invalid_request")
    assert problem(await operator.patch(f"/v1/admin/coupons/{'0' * 32}", {}, version=1)) == (404, "not_found")
    assert problem(await operator.delete(f"/v1/admin/coupons/{'0' * 32}")) == (404, "not_found")
