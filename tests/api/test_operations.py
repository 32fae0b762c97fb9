"""What every route has in common: bodies, keys, ids, methods, and problems in one form."""

import base64
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from api.app import operations
from api.house import House
from tests.api.calling import Person, Show, problem, raw

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


@pytest.mark.parametrize("path", ["/v1/me//GET", "/v1/me//GET/x", "/v1/concerts//GET"])
async def test_a_path_with_nothing_between_its_slashes_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert problem(await http.get(path)) == (404, "not_found")


ODD_ID = "0" * 32 + "\n"


def cursor(place: object) -> str:
    """The `next` of a page that nobody was told."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/orders", {"lines": [{"variant_id": ODD_ID, "quantity": 1}]}),
        (f"/v1/orders/{'0' * 32}/payments", {"method": "BALANCE", "user_coupon_id": ODD_ID}),
        ("/v1/sessions", {"email": "a\x00@shop.test", "password": "correct horse"}),
    ],
)
async def test_a_body_with_what_no_store_takes_is_refused(people: list[Person], path: str, body: object) -> None:
    assert problem(await people[0].post(path, body)) == (400, "invalid_request")


async def test_a_query_with_what_no_store_takes_is_refused(operator: Person, people: list[Person], show: Show) -> None:
    days = {"product_id": ODD_ID}
    assert problem(await operator.get("/v1/admin/statistics/products/daily", params=days)) == (400, "invalid_request")
    page = {"cursor": cursor((0, ODD_ID))}
    assert problem(await people[0].get("/v1/payments", params=page)) == (400, "invalid_request")
    seats = f"/v1/admin/schedules/{show.schedule_id}/seats"
    for seat_no in ("A\x00", "A" * 21, 7):
        told = await operator.get(seats, params={"cursor": cursor(seat_no)})
        assert problem(told) == (400, "invalid_request")
    assert len((await operator.get(seats, params={"cursor": cursor("A-1-1")})).json()["items"]) == 9


async def test_a_path_names_its_methods(http: httpx.AsyncClient) -> None:
    answered = await http.put("/v1/me", json={})
    assert problem(answered) == (405, "method_not_allowed")
    assert answered.headers["allow"] == "DELETE, GET, HEAD"
    assert (await http.head("/v1/sessions")).headers["allow"] == "POST"


async def test_head_is_answered_as_get_without_its_content(
    http: httpx.AsyncClient, people: list[Person], show: Show
) -> None:
    unknown = f"/v1/concerts/{'0' * 32}"
    events = f"/v1/sales/{show.sale_id}/events"
    for path in ("/health/live", "/v1/concerts", unknown, "/v1/me", f"/v1/schedules/{show.schedule_id}/seats"):
        asked, told = await people[0].http.get(path), await people[0].http.head(path)
        assert told.status_code == asked.status_code
        assert told.content == b""
        assert {name: told.headers[name] for name in ("content-type", "content-length")} == {
            name: asked.headers[name] for name in ("content-type", "content-length")
        }
    told = await http.head(events)  # a stream that never ends by itself
    assert (told.status_code, told.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert (await http.head("/v1/sessions")).status_code == 405


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
    asked["Access-Control-Request-Method"] = "GET"
    # A browser decides by itself what encodings it takes, and is no gateway.
    read = {read.name for operation in operations() for read in operation.reads}
    for name in {"Authorization", "Visitor-Secret", *read} - {"Accept-Encoding", "Stripe-Signature"}:
        sent = asked | {"Access-Control-Request-Headers": name}
        assert (await http.options("/v1/concerts", headers=sent)).status_code == 204, name
    answered = await http.get("/health/live", headers={"Origin": "https://shop.example"})
    assert answered.headers["access-control-allow-origin"] == "https://shop.example"
    assert "Idempotent-Replayed" in answered.headers["access-control-expose-headers"]
    for headers in ({}, {"Origin": "https://shop.example"}, {"Origin": "https://evil.example"}):
        kept = (await http.get("/.well-known/jwks.json", headers=headers)).headers
        assert (kept["cache-control"], kept["vary"]) == ("public, max-age=300", "accept-encoding, origin")
    other = await http.get("/health/live", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
