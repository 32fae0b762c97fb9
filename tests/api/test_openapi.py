"""The document tells of every operation all that a client must know, and nothing that is not there."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from api import openapi
from api.app import operations
from api.callers import ANYONE


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return openapi.document_of(operations(), version="1.2.3")


def values(node: Any, name: str) -> Iterator[Any]:
    """Every value that stands under this name, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(node, list):
        for item in node:
            yield from values(item, name)


async def test_the_document_that_is_served_is_the_one_of_the_operations(
    http: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    served = (await http.get("/openapi.json")).json()
    assert served["paths"].keys() == document["paths"].keys()
    assert served["openapi"] == "3.1.0"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = {reference.removeprefix("#/components/schemas/") for reference in values(document, "$ref")}
    assert names
    assert names <= document["components"]["schemas"].keys()


def test_every_schema_is_a_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_what_a_pattern_takes_ends_with_no_line_break(document: dict[str, Any]) -> None:
    texts = ("A", "A-1-1", "0" * 32, "pm_card_visa", "https://shop.test/x", "someone@shop.test")
    for pattern in set(values(document["components"]["schemas"], "pattern")):
        taken = [text for text in texts if re.search(pattern, text)]
        assert taken, pattern
        # As a program reads it, and as the schema says it: in JSON Schema `$` is the very end.
        if not re.search(pattern, "a\nb"):
            assert not [text for text in taken if re.search(pattern, f"{text}\n")], pattern


def test_every_operation_has_a_name_of_its_own_and_a_sentence(document: dict[str, Any]) -> None:
    described = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert all(operation["summary"].endswith(".") for operation in described)


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], f"{method} {path} {status}"
            assert {"500", "503"} <= operation["responses"].keys()


def test_what_a_route_demands_is_a_parameter(document: dict[str, Any]) -> None:
    for operation in operations():
        described = document["paths"][operation.path][operation.method.lower()]
        required = {parameter["name"] for parameter in described["parameters"] if parameter["required"]}
        assert ("Idempotency-Key" in required) == operation.keyed
        assert ("If-Match" in required) == operation.edits
        assert ("security" in described) == (operation.caller is not ANYONE)
        assert set(operation.ids) <= required
        if operation.keyed and operation.method == "POST":
            success = min(described["responses"])
            assert "Idempotent-Replayed" in described["responses"][success]["headers"]


def test_every_post_takes_a_key_but_for_signing_in_and_what_a_gateway_signs() -> None:
    keyless = {operation.path for operation in operations() if operation.method == "POST" and not operation.keyed}
    assert keyless == {"/v1/sessions", "/v1/webhooks/stripe"}


def test_what_is_versioned_has_an_etag(document: dict[str, Any]) -> None:
    shown = document["paths"]["/v1/concerts/{concert_id}"]["get"]["responses"]["200"]
    assert shown["headers"].keys() == {"ETag"}
    edited = document["paths"]["/v1/admin/concerts/{concert_id}"]["patch"]
    assert edited["responses"]["412"]["content"]["application/problem+json"]["schema"] == {
        "$ref": "#/components/schemas/problem_stale_version"
    }


def test_what_is_answered_may_depend_on_what_was_sent(document: dict[str, Any]) -> None:
    made = document["paths"]["/v1/admin/products"]["post"]
    assert made["requestBody"]["content"].keys() == {"application/json", "text/csv"}
    assert made["responses"]["201"]["content"]["application/json"]["schema"] == {
        "anyOf": [{"$ref": "#/components/schemas/ProductMade"}, {"$ref": "#/components/schemas/ProductsMade"}]
    }


def test_a_problem_says_its_fields(document: dict[str, Any]) -> None:
    taken = document["components"]["schemas"]["problem_seat_taken"]
    assert taken["properties"]["type"] == {"const": "/problems/seat_taken"}
    assert set(taken["required"]) == {"type", "title", "status", "seats"}
    assert "Retry-After" in document["paths"]["/health/ready"]["get"]["responses"]["503"]["headers"]
