"""How tests call the API, and what they hold its answers against."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jsonschema
import msgspec

from api import openapi
from api.app import operations
from api.house import House
from engine import ids, rebuild
from engine.stores import outbox

ADMIN_KEY = "an operator's key, for tests"


class Contract:
    """The OpenAPI document, as something that an answer keeps or breaks."""

    def __init__(self) -> None:
        self.document = openapi.document_of(operations(), version="0")
        # Read back as a client reads it.
        self.document = msgspec.json.decode(msgspec.json.encode(self.document))
        self._paths = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path)), methods)
            # A path that is spelt out goes before one with an id in its place.
            for path, methods in sorted(self.document["paths"].items(), key=lambda item: item[0].count("{"))
        ]

    async def check(self, response: httpx.Response) -> None:
        """Fail if the document does not allow this answer to its request."""
        await response.aread()
        request = response.request
        for path, methods in self._paths:
            # The document leaves HEAD to HTTP: what GET answers, without its content.
            operation = methods.get("get" if request.method == "HEAD" else request.method.lower())
            if operation and path.fullmatch(request.url.path):
                self._check(response, operation["responses"])
                return
        told = response.status_code in {404, 405} or request.url.path in {"/docs", "/openapi.json"}
        assert told or request.method == "OPTIONS", f"{request.method} {request.url.path} is not in the document"

    def _check(self, response: httpx.Response, described: dict[str, Any]) -> None:
        assert str(response.status_code) in described, f"{response.status_code} is not in the document: {response.text}"
        expected = described[str(response.status_code)]
        if "WWW-Authenticate" in expected.get("headers", {}):
            assert "www-authenticate" in response.headers
        if "content" not in expected or response.request.method == "HEAD":
            assert not response.content
            return
        media_type = response.headers["content-type"].split(";")[0]
        by_type = {name.split(";")[0]: content for name, content in expected["content"].items()}
        assert media_type in by_type, f"{media_type} is not in the document"
        if media_type.endswith("json"):
            schema = {**by_type[media_type]["schema"], "components": self.document["components"]}
            jsonschema.Draft202012Validator(schema).validate(response.json())


class Person:
    """Somebody with an account, who calls with a token."""

    def __init__(self, http: httpx.AsyncClient, user_id: str, token: str) -> None:
        self.http = http
        self.user_id = user_id
        self.headers = {"Authorization": f"Bearer {token}"}

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask."""
        return await self.http.get(path, headers=self.headers | options.pop("headers", {}), **options)

    async def delete(self, path: str) -> httpx.Response:
        """Delete."""
        return await self.http.delete(path, headers=self.headers)

    async def post(
        self, path: str, body: object = None, *, key: str | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Post with a key, a new one unless it is given."""
        sent = self.headers | {"Idempotency-Key": key or ids.random_id()} | (headers or {})
        return await self.http.post(path, headers=sent, json={} if body is None else body)

    async def put(self, path: str, body: object) -> httpx.Response:
        """Put."""
        return await self.http.put(path, headers=self.headers, json=body)

    async def patch(self, path: str, body: object, *, version: int | None = None) -> httpx.Response:
        """Edit what had this version."""
        sent = self.headers | ({} if version is None else {"If-Match": f'"{version}"'})
        return await self.http.patch(path, headers=sent, json=body)


def raw(headers: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """Headers as they go over the wire, so that a test can send what a careful client would not."""
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
        for name, value in headers.items()
    ]


def problem(response: httpx.Response) -> tuple[int, str]:
    """The status and the word of a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    word: str = response.json()["type"].removeprefix("/problems/")
    assert response.json()["status"] == response.status_code
    assert response.json()["title"]
    return response.status_code, word


class PromptTransport(httpx.AsyncBaseTransport):
    """Calls an application in-process and returns its answer when that is sent, not when the application ends."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._running: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        content = await request.aread()
        answered: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()
        began: dict[str, Any] = {}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                began.update(message)
            else:
                answered.set_result(httpx.Response(began["status"], headers=began["headers"], content=message["body"]))

        scope = {
            "type": "http",
            "method": request.method,
            "path": request.url.path,
            "query_string": request.url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
        }
        task = asyncio.create_task(self._app(scope, receive, send))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await answered


def hall(rows: int = 2, numbers: int = 5, price: int = 1000) -> list[dict[str, object]]:
    """The seats A-1-1 … of a small hall."""
    return [
        {"section": "A", "row": str(row), "number": number, "category": "R", "price": price}
        for row in range(1, rows + 1)
        for number in range(1, numbers + 1)
    ]


class Show:
    """A schedule that is on sale."""

    def __init__(self, operator: Person, made: dict[str, str]) -> None:
        self.operator = operator
        self.schedule_id = made["schedule_id"]
        self.sale_id = made["sale_id"]

    @property
    def path(self) -> str:
        """Where its seats are reserved."""
        return f"/v1/schedules/{self.schedule_id}/reservations"

    async def reserve(
        self, person: Person, *seats: str, key: str | None = None, token: str | None = None
    ) -> httpx.Response:
        """Hold seats."""
        headers = {} if token is None else {"Queue-Token": token}
        return await person.post(self.path, {"seats": seats}, key=key, headers=headers)

    async def set_room(self, **room: object) -> None:
        """Change the waiting room."""
        answered = await self.operator.patch(f"/v1/admin/sales/{self.sale_id}/queue", room)
        assert answered.status_code == 200, answered.text


async def put_on(operator: Person, **terms: object) -> Show:
    """Put a small hall on sale."""
    concert = (await operator.post("/v1/admin/concerts", {"title": "Winterreise"})).json()
    body = {"start_at": "2027-05-01T10:00:00Z", "seats": hall()} | terms
    made = await operator.post(f"/v1/admin/concerts/{concert['concert_id']}/schedules", body)
    assert made.status_code == 201, made.text
    return Show(operator, made.json())


async def stock_up(operator: Person, **product: object) -> dict[str, Any]:
    """Put a product on sale, five of size M and none of L unless it says otherwise; returns its ids."""
    body: dict[str, object] = {
        "name": "Tee",
        "category": "Shirts",
        "price": 500,
        "variants": [{"size": "M", "stock": 5}, {"size": "L", "stock": 0}],
    }
    made = await operator.post("/v1/admin/products", body | product)
    assert made.status_code == 201, made.text
    document: dict[str, Any] = made.json()
    return document


class Worker:
    """Brings what a sale's streams say to Postgres, as the worker does."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._owned: dict[str, int] = {}

    async def drain(self) -> None:
        """Apply what is there now."""
        house = self._house
        self._owned |= await outbox.take_ownership(house.postgres, "tests", most=10)
        for sale_id, generation in self._owned.items():
            sale = await house.book.read(sale_id)
            assert sale is not None
            for stream, handler in rebuild.handlers(sale).items():
                reader = outbox.Reader(house.gate, house.postgres, sale.keys, stream, generation, handler)
                while await reader.drain():
                    pass

    @asynccontextmanager
    async def draining(self) -> AsyncIterator[None]:
        """Do so again and again until the end of the block."""
        ended = False

        async def drain() -> None:
            while not ended:
                await self.drain()
                await asyncio.sleep(0.01)

        task = asyncio.create_task(drain())
        try:
            yield
        finally:
            ended = True
            await task
