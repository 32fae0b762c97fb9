"""The API as Schemathesis reads its OpenAPI document: by every check it has, on a real process, the same each time.

It tries each limit of each schema, each header missing or malformed, each method that a path does not know, and answers
with a request to repeat what it found. `test_fuzz` draws requests that mean something; this draws those that a document
of our own making would not think of.
"""

import asyncio
import sys
from pathlib import Path

from api.app import operations
from engine.settings import Settings
from tests.api.calling import ADMIN_KEY, Person, stock_up
from tests.api.test_server import running

REQUESTS = "8"
"""How many requests are drawn for each operation, beside those that its schemas ask for."""

LEFT_OUT = {
    "events_listen": "a stream has no end to wait for",
    "accounts_wipe_me": "whoever asks it is nobody from then on",
    "sales_rebuild_sale": "every time the sale is closed for a while",
    "audit_find": "without a worker it waits ten seconds for rest, every time",
}

CONFIG = """
[auth.openapi.operator]
bearer = "{operator}"
[auth.openapi.user]
bearer = "{user}"
[auth.openapi.visitor]
api_key = "a visitor's secret, for tests"

# A schema cannot say that a cursor is one of ours, that a card pays, or that a version is the newest.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "402", "403", "404", "409", "412", "422", "429", "503"]
# A visitor is whoever has made a secret up: none is wrong.
[[operations]]
include-operation-id = "waiting_room_join"
checks.ignored_auth.enabled = false

[parameters]
"path.concert_id" = "{concert_id}"
"path.schedule_id" = "{schedule_id}"
"path.sale_id" = "{sale_id}"
"path.reservation_id" = "{reservation_id}"
"path.user_id" = "{user_id}"
"path.product_id" = "{product_id}"
"path.variant_id" = "{variant_id}"
"""


async def test_schemathesis_finds_nothing(settings: Settings, tmp_path: Path) -> None:
    async with running(settings, LASTSEAT_WORKERS="1") as server:
        config = tmp_path / "schemathesis.toml"
        config.write_text(CONFIG.format(operator=ADMIN_KEY, **await furnish(server.operator)))
        left_out = [argument for name in LEFT_OUT for argument in ("--exclude-operation-id", name)]
        judging = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(config), "run", f"{server.http.base_url}/openapi.json"),
            "--generation-deterministic",
            *("--max-examples", REQUESTS, "--phases", "coverage,fuzzing", "--continue-on-failure", *left_out),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        told = (await judging.communicate())[0].decode()
        assert judging.returncode == 0, told
        every = len(operations())
        assert f"Tested: {every - len(LEFT_OUT)}" in told


async def furnish(operator: Person) -> dict[str, str]:
    """Make something of everything; returns a user's token, and ids by their names in paths."""
    people = (await operator.post("/v1/admin/accounts", {"count": 2, "balance": 100_000})).json()["items"]
    concert_id = (await operator.post("/v1/admin/concerts", {"title": "One night"})).json()["concert_id"]
    seats = [{"section": "A", "row": "1", "number": number, "category": "R", "price": 500} for number in range(1, 20)]
    terms = {"start_at": "2031-05-01T19:00:00Z", "seats": seats}
    schedule = (await operator.post(f"/v1/admin/concerts/{concert_id}/schedules", terms)).json()
    user = Person(operator.http, people[0]["user_id"], people[0]["access_token"])
    held = await user.post(f"/v1/schedules/{schedule['schedule_id']}/reservations", {"seats": ["A-1-1"]})
    product = await stock_up(operator)
    variant_id = product["variants"][0]["variant_id"]
    await user.put(f"/v1/cart/items/{variant_id}", {"quantity": 1})
    return {
        "product_id": product["product_id"],
        "variant_id": variant_id,
        "user": people[0]["access_token"],
        "user_id": people[1]["user_id"],
        "concert_id": concert_id,
        "schedule_id": schedule["schedule_id"],
        "sale_id": schedule["sale_id"],
        "reservation_id": held.json()["reservation_id"],
    }
