"""How tests call the API, and what they hold its answers against."""

import re
from typing import Any

import httpx
import jsonschema
import msgspec

from api import openapi
from api.app import operations
from engine import ids

ADMIN_KEY = "an operator's key, for tests"


class Contract:
    """The OpenAPI document, as something that an answer keeps or breaks."""

    def __init__(self) -> None:
        self.document = openapi.document_of(operations(), version="0")
        # Read back as a client reads it.
        self.document = msgspec.json.decode(msgspec.json.encode(self.document))
        self._paths = [
            (re.compile(re.sub(r"{\w+}", "[^/]+", path)), methods) for path, methods in self.document["paths"].items()
        ]

    async def check(self, response: httpx.Response) -> None:
        """Fail if the document does not allow this answer to its request."""
        await response.aread()
        request = response.request
        for path, methods in self._paths:
            operation = methods.get(request.method.lower())
            if operation and path.fullmatch(request.url.path):
                self._check(response, operation["responses"])
                return
        assert response.status_code in {404, 405} or request.method == "OPTIONS", (
            f"{request.method} {request.url.path} is not in the document"
        )

    def _check(self, response: httpx.Response, described: dict[str, Any]) -> None:
        assert str(response.status_code) in described, f"{response.status_code} is not in the document: {response.text}"
        expected = described[str(response.status_code)]
        for name in expected.get("headers", {}):
            if name in {"WWW-Authenticate"}:
                assert name in response.headers, name
        if "content" not in expected:
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

    async def patch(self, path: str, body: object, *, version: int | None = None) -> httpx.Response:
        """Edit what had this version."""
        sent = self.headers | ({} if version is None else {"If-Match": f'"{version}"'})
        return await self.http.patch(path, headers=sent, json=body)


def problem(response: httpx.Response) -> tuple[int, str]:
    """The status and the word of a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    word: str = response.json()["type"].removeprefix("/problems/")
    assert response.json()["status"] == response.status_code
    assert response.json()["title"]
    return response.status_code, word


def hall(rows: int = 2, numbers: int = 5, price: int = 1000) -> list[dict[str, object]]:
    """The seats A-1-1 … of a small hall."""
    return [
        {"section": "A", "row": str(row), "number": number, "category": "R", "price": price}
        for row in range(1, rows + 1)
        for number in range(1, numbers + 1)
    ]
