"""My tickets, and the door: a published key reads the code, and a ticket opens once."""

import asyncio

import httpx
import jwt
import pytest

from engine import accounts
from engine.stores.connections import Stores
from tests.api.calling import Person, Show, Worker, problem


async def buy(person: Person, show: Show, worker: Worker, *seats: str) -> list[dict[str, str]]:
    """Seats that somebody paid for: their tickets, in the order of the seats."""
    held = await show.reserve(person, *seats)
    path = f"/v1/reservations/{held.json()['reservation_id']}"
    async with worker.draining():
        paid = await person.post(f"{path}/payments", {"method": "BALANCE"})
    assert paid.status_code == 201, paid.text
    listed: list[dict[str, str]] = (await person.get("/v1/tickets?limit=100")).json()["items"]
    return sorted((item for item in listed if item["seat_no"] in seats), key=lambda item: item["seat_no"])


def door_of(ticket: dict[str, str]) -> str:
    return f"/v1/admin/tickets/{ticket['ticket_no']}/redemptions"


async def test_the_published_keys_read_a_code(people: list[Person], show: Show, worker: Worker) -> None:
    one, other = await buy(people[0], show, worker, "A-1-1", "A-1-2")
    keys = (await people[0].http.get("/.well-known/jwks.json")).json()
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(one["code"])["kid"]]
    claims = jwt.decode(one["code"], key, ["EdDSA"], audience=show.schedule_id)
    assert claims == {"aud": show.schedule_id, "sub": one["ticket_no"], "seat_no": "A-1-1"}
    assert one["code"] != other["code"]
    assert (await people[0].get("/v1/tickets")).json()["items"] == [other, one]


async def test_my_tickets_come_in_pages_and_are_mine(people: list[Person], show: Show, worker: Worker) -> None:
    bought = await buy(people[0], show, worker, "A-1-1", "A-1-2", "A-1-3")
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await people[0].get(f"/v1/tickets?limit=2&cursor={cursor}")).json()
        found += [item["ticket_no"] for item in page["items"]]
        cursor = page["next"]
    assert found == sorted((item["ticket_no"] for item in bought), key=int, reverse=True)
    assert (await people[1].get("/v1/tickets")).json() == {"items": [], "next": None}
    assert problem(await people[1].get("/v1/tickets?cursor=x")) == (400, "invalid_request")
    assert problem(await people[1].http.get("/v1/tickets")) == (401, "not_signed_in")


async def test_a_ticket_opens_the_door_once(people: list[Person], operator: Person, show: Show, worker: Worker) -> None:
    (ticket,) = await buy(people[0], show, worker, "A-1-1")
    opened = await operator.post(door_of(ticket), {"code": ticket["code"]}, key="k")
    assert opened.status_code == 200, opened.text
    told = opened.json()
    assert told == {
        "ticket_no": ticket["ticket_no"],
        "schedule_id": show.schedule_id,
        "seat_no": "A-1-1",
        "status": "REDEEMED",
        "at": told["at"],
    }
    assert "idempotent-replayed" not in opened.headers
    again = await operator.post(door_of(ticket), {"code": ticket["code"]}, key="k")
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (200, told, "true")
    refused = await operator.post(door_of(ticket))
    assert problem(refused) == (409, "already_redeemed")
    assert refused.json()["at"] == told["at"]
    assert problem(await operator.post(door_of(ticket), {}, key="k")) == (422, "idempotency_key_reused")
    (shown,) = (await people[0].get("/v1/tickets")).json()["items"]
    assert shown == ticket | {"status": "REDEEMED"}


async def test_fifty_doors_open_once(people: list[Person], operator: Person, show: Show, worker: Worker) -> None:
    (ticket,) = await buy(people[0], show, worker, "A-1-1")
    answers = await asyncio.gather(*(operator.post(door_of(ticket)) for _ in range(50)))
    assert sorted(answered.status_code for answered in answers) == [200] + [409] * 49
    assert len({answered.json()["at"] for answered in answers}) == 1


async def test_a_ticket_that_was_given_back_opens_no_door(
    people: list[Person], operator: Person, show: Show, worker: Worker
) -> None:
    (ticket,) = await buy(people[0], show, worker, "A-1-1")
    cancelled = await people[0].delete(f"/v1/reservations/{ticket['reservation_id']}")
    assert cancelled.json()["status"] == "CANCELLED"
    assert problem(await operator.post(door_of(ticket))) == (409, "ticket_cancelled")
    assert [item["status"] for item in (await people[0].get("/v1/tickets")).json()["items"]] == ["CANCELLED"]


async def test_what_is_no_ticket_is_not_found(
    people: list[Person], operator: Person, show: Show, worker: Worker
) -> None:
    one, other = await buy(people[0], show, worker, "A-1-1", "A-1-2")
    for number in ("0", "-1", "1e3", "01", "9" * 18, "9" * 30, "x", "f" * 32, "%D9%A1"):
        assert problem(await operator.post(f"/v1/admin/tickets/{number}/redemptions")) == (404, "not_found")
    for code in (other["code"], "x", one["code"] + "="):
        assert problem(await operator.post(door_of(one), {"code": code}, key="k")) == (404, "not_found")
    # What was refused changed nothing: the same key may ask again.
    assert (await operator.post(door_of(one), {"code": one["code"]}, key="k")).status_code == 200


@pytest.mark.parametrize(
    ("body", "path"), [({"code": 5}, "code"), ({"code": ""}, "code"), ({"code": "x" * 1025}, "code"), ({"at": 1}, "at")]
)
async def test_a_scan_says_what_is_wrong_with_it(operator: Person, body: object, path: str) -> None:
    refused = await operator.post("/v1/admin/tickets/1/redemptions", body)
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == [path]


async def test_only_the_keys_of_doors_redeem(
    people: list[Person], operator: Person, show: Show, worker: Worker, stores: Stores
) -> None:
    (ticket,) = await buy(people[0], show, worker, "A-1-1")
    door, till = [
        Person(operator.http, "", await accounts.add_api_key(stores.postgres, name=scope, scopes=[scope]))
        for scope in (accounts.TICKETS, accounts.BALANCES)
    ]
    assert problem(await till.post(door_of(ticket))) == (403, "scope_missing")
    assert problem(await people[0].post(door_of(ticket))) == (401, "not_signed_in")
    without_key: httpx.Response = await door.http.post(door_of(ticket), headers=door.headers, json={})
    assert problem(without_key) == (400, "key_required")
    assert (await door.post(door_of(ticket))).status_code == 200
    assert problem(await door.post("/v1/admin/accounts", {"count": 1})) == (403, "scope_missing")
