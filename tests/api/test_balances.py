"""Money is added once, seen at once, and told in a history."""

import asyncio

import pytest

from engine.balances import AMOUNT_MAX
from tests.api.calling import Person, problem


async def test_money_that_is_added_is_there(people: list[Person]) -> None:
    charged = await people[0].post("/v1/balance/charges", {"amount": 500})
    assert charged.status_code == 201
    assert (charged.json()["amount"], charged.json()["balance_after"]) == (500, 100_500)
    balance = await people[0].get("/v1/balance")
    assert balance.json() == {
        "amount": 100_500,
        "set_aside": 0,
        "available": 100_500,
        "currency": "KRW",
        "version": 2,
    }
    assert balance.headers["etag"] == '"2"'


async def test_fifty_identical_charges_at_once_add_once(people: list[Person]) -> None:
    answers = await asyncio.gather(*(people[0].post("/v1/balance/charges", {"amount": 7}, key="k") for _ in range(50)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["charge_id"] for answered in answers}) == 1
    assert sum("idempotent-replayed" not in answered.headers for answered in answers) == 1
    assert (await people[0].get("/v1/balance")).json()["amount"] == 100_007


async def test_a_key_belongs_to_its_caller_and_body(people: list[Person]) -> None:
    ada, ben, _ = people
    assert (await ada.post("/v1/balance/charges", {"amount": 7}, key="k")).status_code == 201
    assert problem(await ada.post("/v1/balance/charges", {"amount": 8}, key="k")) == (422, "idempotency_key_reused")
    assert (await ben.post("/v1/balance/charges", {"amount": 8}, key="k")).status_code == 201


async def test_a_balance_has_a_limit(people: list[Person]) -> None:
    answered = await people[0].post("/v1/balance/charges", {"amount": AMOUNT_MAX}, key="k")
    assert problem(answered) == (409, "limit_reached")
    assert (answered.json()["limit"], answered.json()["have"]) == (AMOUNT_MAX, 100_000)
    assert (await people[0].post("/v1/balance/charges", {"amount": 1}, key="k")).status_code == 201


@pytest.mark.parametrize("amount", [0, -1, 1.5, "1", True, None, AMOUNT_MAX + 1, 10**30])
async def test_an_amount_is_a_whole_number(people: list[Person], amount: object) -> None:
    answered = await people[0].post("/v1/balance/charges", {"amount": amount})
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == ["amount"]


async def test_the_history_is_told_in_pages_newest_first(people: list[Person]) -> None:
    for amount in (1, 2, 3, 4):
        await people[0].post("/v1/balance/charges", {"amount": amount})
    first = (await people[0].get("/v1/balance/history?limit=3")).json()
    assert [item["amount"] for item in first["items"]] == [4, 3, 2]
    second = (await people[0].get(f"/v1/balance/history?limit=3&cursor={first['next']}")).json()
    assert [(item["amount"], item["balance_after"]) for item in second["items"]] == [(1, 100_001), (100_000, 100_000)]
    assert second["next"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "cursor=x", "cursor=eA==", "cursor=LTE="])
async def test_a_page_that_is_none_is_refused(people: list[Person], query: str) -> None:
    answered = await people[0].get(f"/v1/balance/history?{query}")
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [query.partition("=")[0]]


async def test_an_operator_adds_money_and_says_why(people: list[Person], operator: Person) -> None:
    path = f"/v1/admin/users/{people[0].user_id}/balance/charges"
    assert (await operator.post(path, {"amount": 5, "reason": "sorry"})).json()["balance_after"] == 100_005
    history = (await people[0].get("/v1/balance/history")).json()
    assert history["items"][0] | {"at": ""} == {
        "type": "CHARGE",
        "amount": 5,
        "balance_after": 100_005,
        "reason": "sorry",
        "at": "",
    }
    assert problem(await people[0].post(path, {"amount": 5, "reason": "me"})) == (401, "not_signed_in")
    nobody = f"/v1/admin/users/{'0' * 32}/balance/charges"
    assert problem(await operator.post(nobody, {"amount": 5, "reason": "x"})) == (404, "not_found")
