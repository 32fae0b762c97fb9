"""What every route has in common: bodies, keys, ids, methods, and problems in one form."""

from collections.abc import AsyncIterator

import httpx
import pytest

from api.house import House
from tests.api.calling import Person, problem, raw

CHARGES = "/v1/balance/charges"


async def send(person: Person, content: bytes, **headers: str | bytes) -> httpx.Response:
    sent = person.headers | {"Idempotency-Key": "k", "Content-Type": "application/json"} | headers
    return await person.http.post(CHARGES, content=content, headers=raw(sent))


@pytest.mark.parametrize("content", [b"", b"{", b'{"amount":1', b"\xff\xfe", b'{"amount":1}x', b'{"amount":"\\ud800"}'])
async def test_a_body_that_is_no_json_is_told_so(people: list[Person], content: bytes) -> None:
    answered = await send(people[0], content)
    assert problem(answered) == (400, "invalid_request")
    assert answered.json()["errors"][0]["message"].startswith("No JSON")


async def test_a_body_nested_without_end_is_refused(people: list[Person]) -> None:
    assert problem(await send(people[0], b"[" * 60_000)) == (400, "invalid_request")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "text/csv", ""])
async def test_a_body_of_another_type_is_refused(people: list[Person], media_type: str) -> None:
    answered = await send(people[0], b'{"amount":1}', **{"Content-Type": media_type})
    assert problem(answered) == (415, "media_type")
    assert answered.json()["expected"] == ["application/json"]


async def test_a_charset_beside_the_type_is_welcome(people: list[Person]) -> None:
    answered = await send(people[0], b'{"amount":1}', **{"Content-Type": "Application/JSON; charset=utf-8"})
    assert answered.status_code == 201


async def test_a_huge_body_is_refused_whether_it_says_so_or_not(people: list[Person]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    assert problem(await send(people[0], b" " * 65_537)) == (413, "body_too_large")
    headers = people[0].headers | {"Idempotency-Key": "k", "Content-Type": "application/json"}
    answered = await people[0].http.post(CHARGES, content=endless(), headers=headers)
    assert problem(answered) == (413, "body_too_large")
    assert answered.json()["most"] == 65_536


@pytest.mark.parametrize("key", ["", "x" * 129, "a b", "ä"])
async def test_a_key_is_visible_ascii(people: list[Person], key: str) -> None:
    answered = await send(people[0], b'{"amount":1}', **{"Idempotency-Key": key.encode()})
    assert problem(answered) == (400, "invalid_request")
    assert answered.json()["errors"][0]["path"] == "Idempotency-Key"


async def test_a_post_needs_a_key(people: list[Person]) -> None:
    answered = await people[0].http.post(CHARGES, headers=people[0].headers, json={"amount": 1})
    assert problem(answered) == (400, "key_required")


async def test_an_unknown_path_is_not_found(http: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v2/concerts", "/v1/concerts/%2e%2e"):
        assert problem(await http.get(path)) == (404, "not_found")


@pytest.mark.parametrize("name", ["x", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "%00"])
async def test_an_id_that_can_be_none_is_not_found(http: httpx.AsyncClient, name: str) -> None:
    assert problem(await http.get(f"/v1/concerts/{name}")) == (404, "not_found")


async def test_a_path_names_its_methods(http: httpx.AsyncClient) -> None:
    answered = await http.put("/v1/me", json={})
    assert problem(answered) == (405, "method_not_allowed")
    assert answered.headers["allow"] == "DELETE, GET"


async def test_a_fault_of_ours_is_told_as_one(
    http: httpx.AsyncClient, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.postgres.execute("ALTER TABLE concerts RENAME TO mislaid")
    assert problem(await http.get("/v1/concerts")) == (500, "internal_error")
    assert "mislaid" not in caplog.text
    assert "UndefinedTableError" in caplog.text


async def test_browsers_of_the_shop_may_call(http: httpx.AsyncClient) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    allowed = await http.options(CHARGES, headers=asked | {"Access-Control-Request-Headers": "Idempotency-Key"})
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    asked["Access-Control-Request-Method"] = "PUT"
    filled = await http.options(f"/v1/cart/items/{'0' * 32}", headers=asked)
    assert filled.status_code == 204
    assert "PUT" in filled.headers["access-control-allow-methods"]
    answered = await http.get("/health/live", headers={"Origin": "https://shop.example"})
    assert answered.headers["access-control-allow-origin"] == "https://shop.example"
    assert "Idempotent-Replayed" in answered.headers["access-control-expose-headers"]
    other = await http.get("/health/live", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
