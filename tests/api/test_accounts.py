"""People sign up, sign in and are forgotten."""

import asyncio
import threading

import httpx
import jwt
import pytest

from api.house import House, refresh_people
from engine import accounts
from tests.api.calling import ADMIN_KEY, Person, problem, raw

ADA = {"email": "ada@example.org", "password": "correct horse", "name": "Ada"}


async def sign_up(http: httpx.AsyncClient, body: object = None, key: str = "k1") -> httpx.Response:
    return await http.post("/v1/accounts", json=body or ADA, headers={"Idempotency-Key": key})


async def token_of(http: httpx.AsyncClient) -> str:
    await sign_up(http)
    answered = await http.post("/v1/sessions", json={"email": ADA["email"], "password": ADA["password"]})
    assert answered.status_code == 201
    token: str = answered.json()["access_token"]
    return token


async def test_somebody_signs_up_and_in(http: httpx.AsyncClient) -> None:
    made = await sign_up(http)
    assert made.status_code == 201
    answered = await http.post("/v1/sessions", json={"email": "ADA@example.org", "password": "correct horse"})
    assert answered.json() | {"access_token": ""} == {"access_token": "", "token_type": "Bearer", "expires_in": 43200}
    me = await http.get("/v1/me", headers={"Authorization": f"Bearer {answered.json()['access_token']}"})
    assert me.json()["user_id"] == made.json()["user_id"]
    assert (me.json()["email"], me.json()["name"]) == ("ada@example.org", "Ada")


async def test_an_email_is_the_same_in_capitals_that_postgres_does_not_know(http: httpx.AsyncClient) -> None:
    eva = ADA | {"email": "\u0130da.\u00c9va@example.org"}
    assert (await sign_up(http, eva)).status_code == 201
    for email in (eva["email"], eva["email"].lower()):
        answered = await http.post("/v1/sessions", json={"email": email, "password": eva["password"]})
        assert answered.status_code == 201, email


async def test_a_repeated_sign_up_answers_the_same_account(http: httpx.AsyncClient) -> None:
    first, second = await sign_up(http), await sign_up(http)
    assert second.status_code == 201
    assert second.headers["idempotent-replayed"] == "true"
    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers


async def test_a_key_is_not_taken_for_another_sign_up(http: httpx.AsyncClient) -> None:
    await sign_up(http)
    assert problem(await sign_up(http, ADA | {"name": "Eve"})) == (422, "idempotency_key_reused")
    assert problem(await sign_up(http, ADA | {"password": "wrong horse"})) == (422, "idempotency_key_reused")


async def test_an_email_is_taken_whatever_its_case(http: httpx.AsyncClient) -> None:
    await sign_up(http)
    assert problem(await sign_up(http, ADA | {"email": "ADA@Example.org"}, "k2")) == (409, "email_taken")


async def test_identical_sign_ups_at_once_make_one_account(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(sign_up(http) for _ in range(10)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["user_id"] for answered in answers}) == 1


async def test_sign_ups_of_one_email_at_once_make_one_account(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(sign_up(http, key=f"k{number}") for number in range(5)))
    assert sorted(answered.status_code for answered in answers) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (ADA | {"email": "nobody"}, "email"),
        (ADA | {"password": "short"}, "password"),
        (ADA | {"name": ""}, "name"),
        (ADA | {"name": "a\x00b"}, "name"),
        (ADA | {"admin": True}, "admin"),
        ({"email": "a@b.c", "name": "A"}, "password"),
        ([], ""),
    ],
)
async def test_a_sign_up_says_what_is_wrong_with_it(http: httpx.AsyncClient, body: object, path: str) -> None:
    answered = await http.post("/v1/accounts", json=body, headers={"Idempotency-Key": "k"})
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


async def test_a_wrong_password_and_an_unknown_email_are_told_alike(http: httpx.AsyncClient) -> None:
    await sign_up(http)
    wrong = await http.post("/v1/sessions", json={"email": ADA["email"], "password": "wrong horse"})
    unknown = await http.post("/v1/sessions", json={"email": "eve@example.org", "password": "correct horse"})
    assert problem(wrong) == problem(unknown) == (401, "not_signed_in")
    assert wrong.json() == unknown.json()
    assert wrong.headers["www-authenticate"] == "Bearer"


async def test_sign_ins_beyond_the_short_line_are_told_to_come_back(http: httpx.AsyncClient, house: House) -> None:
    await sign_up(http)
    open_the_door = threading.Event()
    waiting = [
        asyncio.create_task(house.passwords._run(open_the_door.wait)) for _ in range(house.passwords.under_way_max)
    ]
    await asyncio.sleep(0)
    body = {"email": ADA["email"], "password": ADA["password"]}
    answered = await http.post("/v1/sessions", json=body)
    assert problem(answered) == (503, "busy")
    assert answered.headers["retry-after"] == "1"
    open_the_door.set()
    await asyncio.gather(*waiting)
    assert (await http.post("/v1/sessions", json=body)).status_code == 201


async def test_who_is_forgotten_is_no_longer_signed_in(http: httpx.AsyncClient) -> None:
    headers = {"Authorization": f"Bearer {await token_of(http)}"}
    wiped = await http.delete("/v1/me", headers=headers)
    assert (wiped.json()["email"], wiped.json()["name"]) == (None, None)
    assert problem(await http.get("/v1/me", headers=headers)) == (401, "not_signed_in")
    again = await http.post("/v1/sessions", json={"email": ADA["email"], "password": ADA["password"]})
    assert problem(again) == (401, "not_signed_in")
    assert (await sign_up(http, key="another")).status_code == 201


async def test_other_processes_hear_who_was_forgotten(http: httpx.AsyncClient, house: House) -> None:
    token = await token_of(http)
    user_id = house.user_tokens.verify(token, house.clock.now_ms)
    assert user_id is not None
    await accounts.wipe(house.postgres, user_id)
    await refresh_people(house)
    answered = await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
    assert problem(answered) == (401, "not_signed_in")


async def test_a_token_counts_for_twelve_hours(http: httpx.AsyncClient, house: House) -> None:
    token = await token_of(http)
    now_ms = house.clock.now_ms
    assert house.user_tokens.verify(token, now_ms + 43_199_000 - 1000)
    assert house.user_tokens.verify(token, now_ms + 43_201_000) is None


async def test_tokens_that_are_not_ours_are_refused(http: httpx.AsyncClient) -> None:
    token = await token_of(http)
    head, claims, signature = token.split(".")
    unsigned = jwt.encode({"iss": "lastseat", "sub": "a" * 32, "exp": 9_999_999_999}, "", "none")
    foreign = jwt.encode({"iss": "lastseat", "sub": "a" * 32, "exp": 9_999_999_999}, "x" * 32, "HS256")
    for forged in (f"{head}.{claims}.{signature[::-1]}", unsigned, foreign, "", "x", "é", ADMIN_KEY):
        answered = await http.get("/v1/me", headers=raw({"Authorization": f"Bearer {forged}"}))
        assert problem(answered) == (401, "not_signed_in"), forged
    for scheme in ("Basic", "bearer"):
        answered = await http.get("/v1/me", headers={"Authorization": f"{scheme} {token}"})
        assert answered.status_code == (200 if scheme == "bearer" else 401)
    assert problem(await http.get("/v1/me")) == (401, "not_signed_in")


async def test_an_operator_makes_accounts_that_can_call_at_once(operator: Person) -> None:
    made = await operator.post("/v1/admin/accounts", {"count": 3, "balance": 500}, key="bulk")
    assert len({item["user_id"] for item in made.json()["items"]}) == 3
    person = Person(operator.http, "", made.json()["items"][2]["access_token"])
    assert (await person.get("/v1/balance")).json()["amount"] == 500
    again = await operator.post("/v1/admin/accounts", {"count": 3, "balance": 500}, key="bulk")
    assert again.headers["idempotent-replayed"] == "true"
    assert [item["user_id"] for item in again.json()["items"]] == [item["user_id"] for item in made.json()["items"]]
    assert (await person.get("/v1/balance")).json()["amount"] == 500
    other = await operator.post("/v1/admin/accounts", {"count": 4, "balance": 500}, key="bulk")
    assert problem(other) == (422, "idempotency_key_reused")


async def test_an_operators_key_needs_the_scope(operator: Person, house: House) -> None:
    key = await accounts.add_api_key(house.postgres, name="reads", scopes=[accounts.AUDIT])
    answered = await Person(operator.http, "", key).post("/v1/admin/accounts", {"count": 1})
    assert problem(answered) == (403, "scope_missing")
    assert answered.json()["scope"] == "accounts"
    await house.postgres.execute("UPDATE api_keys SET revoked_at = now() WHERE name = 'reads'")
    answered = await Person(operator.http, "", key).post("/v1/admin/accounts", {"count": 1})
    assert problem(answered) == (401, "not_signed_in")


async def test_a_user_is_no_operator(people: list[Person]) -> None:
    assert problem(await people[0].post("/v1/admin/accounts", {"count": 1})) == (401, "not_signed_in")
