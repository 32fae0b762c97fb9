"""A fuzzer that cannot contradict the OpenAPI document: whatever is sent, the answer is one that the document states.

Requests are drawn from the document itself: ids of what there is and of what is not, bodies that its schemas allow and
bodies broken in one place. Every answer is held against the document (`Contract`), none is a 500, and what a schema
forbids is never taken. The seed is fixed, and each finding names its request.
"""

import copy
import random
import re
import string
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.api.calling import ADMIN_KEY, Contract, Person, Show, Worker, stock_up
from tests.api.test_coupons import FIVE_OFF
from tests.api.test_payments import BALANCE, hold

REQUESTS = 40
SEED = 20_261

DOCUMENT = Contract().document
OPERATIONS = [
    pytest.param(method.upper(), path, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
    # A stream has no end to wait for.
    if "text/event-stream" not in described["responses"].get("200", {}).get("content", {})
]
TEXTS = ["", " ", "0", "-1", "null", "é", "\x00", "a" * 300, "' OR 1=1 --", "../..", "A-1-1", "9" * 40, "\ud7ff", "💺"]
NUMBERS = [0, 1, -1, 2, 2**31, 2**63 - 1, 2**63, 10**12, 10**12 + 1, 10**30, 0.5, 1e308]


class Draw:
    """Values by schema, from a seed."""

    def __init__(self, seed: object) -> None:
        self.dice = random.Random(repr(seed))

    def by(self, schema: dict[str, Any]) -> Any:
        """A value that this schema allows, as far as this draws them."""
        if "$ref" in schema:
            return self.by(_resolved(schema))
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.dice.choice(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.by(self.dice.choice(schema[several]))
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                count = self.dice.randint(schema.get("minItems", 0), min(schema.get("maxItems", 3), 3))
                return [self.by(schema.get("items", {})) for _ in range(count)]
            case "string":
                return self._text(schema)
            case "integer":
                low, high = schema.get("minimum", 0), schema.get("maximum", 10**6)
                return self.dice.choice([low, high, self.dice.randint(low, high), min(low + 1, high)])
            case "boolean":
                return self.dice.random() < 0.5
            case "null":
                return None
        return self.dice.choice([None, 1, "x", [], {}])

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.by(shape)
            for name, shape in schema.get("properties", {}).items()
            if name in required or self.dice.random() < 0.5
        }

    def _text(self, schema: dict[str, Any]) -> str:
        if schema.get("format") == "date-time":
            return self.dice.choice(["2031-05-01T19:00:00Z", "2031-05-01T19:00:00.123+09:00", "2001-01-01T00:00:00Z"])
        if "pattern" in schema:
            # Words of ours that most patterns take; what one does not take is a broken request, which is drawn, too.
            fitting = [
                text
                for text in ("A", "A-1-1", "pm_card_visa", "http://shop.test/x", "word", "someone@shop.test", "a" * 32)
                if re.search(schema["pattern"], text)
            ]
            return self.dice.choice(fitting or ["word"])
        low, high = schema.get("minLength", 0), schema.get("maxLength", 20)
        return "".join(self.dice.choices(string.ascii_letters, k=self.dice.randint(low, max(low, min(high, low + 5)))))

    def broken(self, value: Any) -> Any:
        """The same with one thing wrong, somewhere in it."""
        places = list(_places(value))
        at = self.dice.choice(places)
        wrong: Any = self.dice.choice([*TEXTS[:10], *NUMBERS, None, [], {}, True, [[]] * 3, {"a": {"b": 1}}])
        if not at:
            return wrong
        changed = copy.deepcopy(value)
        holder = changed
        for step in at[:-1]:
            holder = holder[step]
        if isinstance(holder, dict) and self.dice.random() < 0.3:
            del holder[at[-1]]
        elif isinstance(holder, dict) and self.dice.random() < 0.2:
            holder["nobody_knows_this"] = wrong
        else:
            holder[at[-1]] = wrong
        return changed


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _places(value: Any, at: tuple[Any, ...] = ()) -> Any:
    yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _places(inner, (*at, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _places(inner, (*at, number))


@pytest.fixture
async def known(people: list[Person], operator: Person, show: Show, worker: Worker) -> dict[str, list[str]]:
    """Ids of everything there is, by their names in paths: held, bought, paid."""
    held = await hold(people[0], show, "A-1-1")
    bought = await hold(people[0], show, "A-1-2")
    async with worker.draining():
        paid = (await people[0].post(f"{bought}/payments", BALANCE)).json()
    concert_id = (await people[0].get(f"/v1/schedules/{show.schedule_id}")).json()["concert_id"]
    product = await stock_up(operator)
    variant_id = product["variants"][0]["variant_id"]
    await people[0].put(f"/v1/cart/items/{variant_id}", {"quantity": 2})
    coupon_id = (await operator.post("/v1/admin/coupons", FIVE_OFF)).json()["coupon_id"]
    async with worker.draining():
        mine = (await people[0].post(f"/v1/coupons/{coupon_id}/issues", {})).json()
    return {
        "product_id": [product["product_id"]],
        "variant_id": [variant_id],
        "reservation_id": [path.rpartition("/")[2] for path in (held, bought)],
        "payment_id": [paid["payment_id"]],
        "user_id": [people[1].user_id],
        "concert_id": [concert_id],
        "schedule_id": [show.schedule_id],
        "sale_id": [show.sale_id, coupon_id],
        "coupon_id": [coupon_id],
        "user_coupon_id": [mine["user_coupon_id"]],
    }


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_no_request_has_an_answer_that_the_document_does_not_state(
    method: str, path: str, people: list[Person], known: dict[str, list[str]]
) -> None:
    described = DOCUMENT["paths"][path][method.lower()]
    draw = Draw((SEED, method, path))
    content = described.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema")
    fitting = ADMIN_KEY if "/admin/" in path else people[0].headers["Authorization"][7:]
    foreign = [ADMIN_KEY, *[person.headers["Authorization"][7:] for person in people], "nobody's", ""]
    for number in range(REQUESTS):
        address = re.sub(
            r"{\w+}",
            lambda found: draw.dice.choice(
                known.get(found[0][1:-1], ["1"]) if draw.dice.random() < 0.8 else ["0" * 32, "A" * 32, "x", "%00", "1"]
            ),
            path,
        )
        query = {
            each["name"]: draw.by(each["schema"]) if draw.dice.random() < 0.7 else draw.dice.choice(TEXTS[:12])
            for each in described["parameters"]
            if each["in"] == "query" and draw.dice.random() < 0.5
        }
        headers = {
            each["name"]: '"1"'
            if each["name"] == "If-Match" and draw.dice.random() < 0.7
            else draw.dice.choice(["k", '"7"', f"k{number}", f"l{number}", "x y", "*"])
            for each in described["parameters"]
            if each["in"] == "header" and draw.dice.random() < 0.9
        }
        token = fitting if draw.dice.random() < 0.85 else draw.dice.choice(foreign)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        body: Any = None
        allowed = True
        if schema is not None:
            body = draw.by(schema)
            if draw.dice.random() < 0.6:
                body = draw.broken(body)
            whole = {**schema, "components": DOCUMENT["components"]}
            allowed = jsonschema.Draft202012Validator(whole).is_valid(body)
            headers["Content-Type"] = "application/json"
        sent = msgspec.json.encode(body) if schema is not None else b""
        told = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in query.items()}
        answered = await people[0].http.request(method, address, params=told, headers=headers, content=sent)
        asked = f"{method} {answered.request.url} {headers} {sent[:500]!r}"
        assert answered.status_code != 500, asked
        assert allowed or answered.status_code >= 400, f"{asked} was taken: {answered.text[:300]}"
