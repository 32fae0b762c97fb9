"""Waiting for seats that come back, over HTTP."""

from typing import Any

import pytest

from api.house import House
from engine import seat_waiting_lists, variant_waiting_lists, waiting_lists
from tests.api.calling import Person, Show, Worker, problem, stock_up


@pytest.fixture
async def path(show: Show) -> str:
    """Where one waits for seats of the show."""
    return f"/v1/schedules/{show.schedule_id}/waiting-list"


async def hold(show: Show, person: Person, *seat_nos: str) -> str:
    held = await show.reserve(person, *seat_nos)
    assert held.status_code == 201, held.text
    return f"/v1/reservations/{held.json()['reservation_id']}"


async def serve(house: House, show: Show, worker: Worker) -> None:
    """What the worker does a few times a second."""
    sale = await house.book.read(show.sale_id)
    assert sale is not None
    await seat_waiting_lists.serve(house.stores, sale)
    await worker.drain()
    await waiting_lists.follow(house.postgres)


async def mine(person: Person) -> dict[str, Any]:
    listed = await person.get("/v1/waiting-list")
    assert listed.status_code == 200, listed.text
    entry: dict[str, Any] = listed.json()["items"][0]
    return entry


async def test_from_waiting_to_a_confirmed_reservation(
    house: House, show: Show, people: list[Person], worker: Worker, path: str
) -> None:
    ann, ben, cid = people
    await show.set_room(state="open")  # an offer needs no place in line
    await show.set_room(state="off")
    held = await hold(show, cid, "A-1-1", "A-1-2")
    joined = await ann.post(path, {"quantity": 2}, key="k")
    assert joined.status_code == 201, joined.text
    entry = joined.json()
    assert entry.pop("created_at")
    assert entry.pop("server_time")
    assert entry == {
        "entry_id": entry["entry_id"],
        "schedule_id": show.schedule_id,
        "sale_id": show.sale_id,
        "status": "WAITING",
        "ahead": 0,
        "quantity": 2,
        "adjacent": True,
        "accessible": False,
    }
    again = await ann.post(path, {"quantity": 2}, key="k")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.json()["entry_id"] == entry["entry_id"]
    assert problem(await ann.post(path, {"quantity": 1}, key="k")) == (422, "idempotency_key_reused")
    second = await ben.post(path, {"quantity": 1, "adjacent": False, "price_max": 10**9, "category": "R"})
    assert (second.status_code, second.json()["ahead"]) == (201, 1)

    assert (await cid.delete(held)).status_code == 200
    seats = (await ann.get(f"/v1/schedules/{show.schedule_id}/seats")).json()["seats"]
    assert {seat["seat_no"] for seat in seats if seat["status"] == "BLOCKED"} >= {"A-1-1", "A-1-2"}
    await show.set_room(state="open")
    await serve(house, show, worker)
    offered = await mine(ann)
    assert (offered["status"], offered["ahead"]) == ("OFFERED", 0)
    reservation = (await ann.get(f"/v1/reservations/{offered['reservation_id']}")).json()
    assert (reservation["status"], [seat["seat_no"] for seat in reservation["seats"]]) == (
        "PENDING",
        ["A-1-1", "A-1-2"],
    )
    assert reservation["expires_at"] == offered["expires_at"]
    assert (await mine(ben))["status"] == "WAITING"

    async with worker.draining():
        paid = await ann.post(f"/v1/reservations/{offered['reservation_id']}/payments", {"method": "BALANCE"})
    assert paid.status_code == 201, paid.text
    await serve(house, show, worker)
    taken = await mine(ann)
    assert (taken["status"], taken["reservation_id"], "expires_at" in taken) == (
        "TAKEN",
        offered["reservation_id"],
        False,
    )
    left = await ann.delete(f"/v1/waiting-list/{entry['entry_id']}")
    assert (left.status_code, left.json()["status"]) == (200, "TAKEN")  # what is bought is cancelled elsewhere


async def test_who_leaves_gives_the_offer_back(
    house: House, show: Show, people: list[Person], worker: Worker, path: str
) -> None:
    ann, ben, _ = people
    held = await hold(show, ben, "A-1-1")
    entry = (await ann.post(path, {"quantity": 1})).json()
    await ben.delete(held)
    await serve(house, show, worker)
    offered = await mine(ann)
    assert offered["status"] == "OFFERED"
    left = await ann.delete(f"/v1/waiting-list/{entry['entry_id']}")
    assert (left.status_code, left.json()["status"], left.json()["reason"]) == (200, "LEFT", "USER")
    again = await ann.delete(f"/v1/waiting-list/{entry['entry_id']}")
    assert (again.status_code, again.json()["status"]) == (200, "LEFT")
    reservation = (await ann.get(f"/v1/reservations/{offered['reservation_id']}")).json()
    assert (reservation["status"], reservation["reason"]) == ("CANCELLED", "USER")
    await serve(house, show, worker)
    await serve(house, show, worker)
    assert (await show.reserve(ben, "A-1-1")).status_code == 201


async def test_an_offer_that_is_being_paid_is_not_given_back(
    house: House, show: Show, people: list[Person], worker: Worker, path: str
) -> None:
    ann, ben, _ = people
    held = await hold(show, ben, "A-1-1")
    entry = (await ann.post(path, {"quantity": 1})).json()
    await ben.delete(held)
    await serve(house, show, worker)
    reservation_id = (await mine(ann))["reservation_id"]
    await ann.post(f"/v1/reservations/{reservation_id}/payments", {"method": "BALANCE"})  # nobody has persisted it
    assert problem(await ann.delete(f"/v1/waiting-list/{entry['entry_id']}")) == (409, "payment_running")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 400, "invalid_request"),
        ({"quantity": 0}, 400, "invalid_request"),
        ({"quantity": 21}, 400, "invalid_request"),
        ({"quantity": -1}, 400, "invalid_request"),
        ({"quantity": 10**12}, 400, "invalid_request"),
        ({"quantity": "2"}, 400, "invalid_request"),
        ({"quantity": 1, "price_max": -1}, 400, "invalid_request"),
        ({"quantity": 1, "price_max": 10**13}, 400, "invalid_request"),
        ({"quantity": 1, "price_max": 0}, 400, "invalid_request"),
        ({"quantity": 1, "seats": ["A-1-1"]}, 400, "invalid_request"),
        ({"quantity": 1, "category": "no such"}, 404, "offer_unknown"),
        ({"quantity": 1, "section": "no such"}, 404, "offer_unknown"),
        ({"quantity": 1, "section": "a|b"}, 400, "invalid_request"),
    ],
)
async def test_a_wish_that_nobody_can_fill_is_refused(
    house: House, people: list[Person], path: str, body: dict[str, Any], status: int, word: str
) -> None:
    assert problem(await people[0].post(path, body)) == (status, word)
    assert (await people[0].get("/v1/waiting-list")).json() == {"items": [], "next": None}
    assert await house.postgres.fetchval("SELECT count(*) FROM sales WHERE waiting_list") == 0


async def test_more_than_are_side_by_side_is_told_how_many_there_are(people: list[Person], path: str) -> None:
    refused = await people[0].post(path, {"quantity": 20})
    assert problem(refused) == (400, "invalid_request")
    [error] = refused.json()["errors"]
    assert error["path"] == "quantity"
    assert "side by side" in error["message"]


async def test_only_who_is_signed_in_waits_and_only_ones_own_entries_are_seen(
    house: House, people: list[Person], path: str
) -> None:
    ann, ben, _ = people
    entry = (await ann.post(path, {"quantity": 1})).json()
    assert problem(await ben.delete(f"/v1/waiting-list/{entry['entry_id']}")) == (404, "not_found")
    assert (await ben.get("/v1/waiting-list")).json()["items"] == []
    stranger = Person(ann.http, "", "")
    assert problem(await stranger.post(path, {"quantity": 1})) == (401, "not_signed_in")
    assert problem(await ann.post(f"/v1/schedules/{'0' * 32}/waiting-list", {"quantity": 1})) == (404, "not_found")
    assert problem(await ann.delete(f"/v1/waiting-list/{'0' * 32}")) == (404, "not_found")
    unkeyed = await ann.http.post(path, headers=ann.headers, json={"quantity": 1})
    assert problem(unkeyed) == (400, "key_required")
    assert (await mine(ann))["status"] == "WAITING"

    for _ in range(4):
        assert (await ann.post(path, {"quantity": 1})).status_code == 201
    refused = await ann.post(path, {"quantity": 1})
    assert problem(refused) == (409, "limit_reached")
    assert (refused.json()["limit"], refused.json()["have"]) == (5, 5)
    first = (await ann.get("/v1/waiting-list?limit=3")).json()
    rest = (await ann.get(f"/v1/waiting-list?limit=3&cursor={first['next']}")).json()
    numbers = [item["ahead"] for item in first["items"] + rest["items"]]
    assert (numbers, rest["next"]) == ([4, 3, 2, 1, 0], None)

    assert (await ann.delete("/v1/me")).status_code == 200
    assert await house.postgres.fetchval("SELECT count(*) FROM waiting_list_entries WHERE status = 'WAITING'") == 0


async def test_nobody_waits_for_a_sale_that_has_not_begun_or_is_over(
    operator: Person, show: Show, people: list[Person], path: str
) -> None:
    version = (await operator.get(f"/v1/admin/schedules/{show.schedule_id}")).json()["version"]
    edit: dict[str, Any] = {"opens_at": "2027-01-01T00:00:00Z"}
    changed = await operator.patch(f"/v1/admin/schedules/{show.schedule_id}", edit, version=version)
    assert changed.status_code == 200, changed.text
    refused = await people[0].post(path, {"quantity": 1})
    assert problem(refused) == (409, "sale_not_open")
    assert refused.json()["opens_at"] == "2027-01-01T00:00:00.000Z"
    edit = {"opens_at": None, "closes_at": "2026-01-01T00:00:00Z"}
    changed = await operator.patch(f"/v1/admin/schedules/{show.schedule_id}", edit, version=version + 1)
    assert changed.status_code == 200, changed.text
    assert problem(await people[0].post(path, {"quantity": 1})) == (409, "sale_closed")


# Units ----------------------------------------------------------------------------------------------------------------


async def mug(operator: Person, stock: int = 2, **product: object) -> tuple[str, str]:
    """A product and its only variant, of which there are so many."""
    made = await stock_up(operator, variants=[{"stock": stock}], **product)
    return made["product_id"], made["variants"][0]["variant_id"]


async def serve_units(house: House, sale_id: str, worker: Worker) -> None:
    """What the worker does a few times a second."""
    sale = await house.book.read(sale_id)
    assert sale is not None
    await variant_waiting_lists.serve(house.stores, sale)
    await worker.drain()
    await waiting_lists.follow(house.postgres)


async def test_from_waiting_for_units_to_a_paid_order(
    house: House, operator: Person, people: list[Person], worker: Worker
) -> None:
    ann, ben, _ = people
    _, variant_id = await mug(operator)
    order = {"lines": [{"variant_id": variant_id, "quantity": 2}]}
    assert (await ben.post("/v1/orders", order)).status_code == 201
    assert problem(await ann.post("/v1/orders", order)) == (409, "sold_out")
    path = f"/v1/variants/{variant_id}/waiting-list"
    joined = await ann.post(path, {"quantity": 2}, key="k")
    assert joined.status_code == 201, joined.text
    entry = joined.json()
    assert entry.pop("created_at")
    assert entry.pop("server_time")
    assert entry == {
        "entry_id": entry["entry_id"],
        "variant_id": variant_id,
        "sale_id": entry["sale_id"],
        "status": "WAITING",
        "ahead": 0,
        "quantity": 2,
    }
    again = await ann.post(path, {"quantity": 2}, key="k")
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert problem(await ann.post(path, {"quantity": 1}, key="k")) == (422, "idempotency_key_reused")

    restocked = await operator.post(f"/v1/admin/variants/{variant_id}/restocks", {"quantity": 3})
    assert restocked.status_code == 201, restocked.text
    assert problem(await ben.post("/v1/orders", order)) == (409, "sold_out")  # the list has them
    await serve_units(house, entry["sale_id"], worker)
    offered = await mine(ann)
    assert (offered["status"], "reservation_id" in offered) == ("OFFERED", False)
    [shown] = (await ann.get("/v1/orders")).json()["items"]
    assert (shown["order_id"], shown["status"], shown["total_amount"]) == (offered["order_id"], "PENDING", 1000)
    assert shown["expires_at"] == offered["expires_at"]
    async with worker.draining():
        paid = await ann.post(f"/v1/orders/{offered['order_id']}/payments", {"method": "BALANCE"})
    assert paid.status_code == 201, paid.text
    await serve_units(house, entry["sale_id"], worker)
    assert ((await mine(ann))["status"], "expires_at" in await mine(ann)) == ("TAKEN", False)
    one = {"lines": [{"variant_id": variant_id, "quantity": 1}]}
    assert (await ben.post("/v1/orders", one)).status_code == 201  # the third is the public's


async def test_both_kinds_are_listed_and_left_alike(
    house: House, operator: Person, show: Show, people: list[Person], worker: Worker, path: str
) -> None:
    ann, ben, _ = people
    _, variant_id = await mug(operator, stock=0)
    seats = (await ann.post(path, {"quantity": 1})).json()
    units = (await ann.post(f"/v1/variants/{variant_id}/waiting-list", {"quantity": 1000})).json()
    listed = (await ann.get("/v1/waiting-list")).json()["items"]
    assert [(each["entry_id"], each.get("variant_id"), each.get("schedule_id")) for each in listed] == [
        (units["entry_id"], variant_id, None),
        (seats["entry_id"], None, show.schedule_id),
    ]
    await operator.post(f"/v1/admin/variants/{variant_id}/restocks", {"quantity": 1000})
    await serve_units(house, units["sale_id"], worker)
    offered = await mine(ann)
    assert offered["status"] == "OFFERED"
    assert problem(await ben.delete(f"/v1/waiting-list/{units['entry_id']}")) == (404, "not_found")
    for _ in range(2):
        left = await ann.delete(f"/v1/waiting-list/{units['entry_id']}")
        assert (left.status_code, left.json()["status"], left.json()["reason"]) == (200, "LEFT", "USER")
    order = (await ann.get(f"/v1/orders/{offered['order_id']}")).json()
    assert (order["status"], order["reason"]) == ("CANCELLED", "USER")


@pytest.mark.parametrize("quantity", [0, -1, 1001, 10**12, "2", None, 1.5])
async def test_one_waits_for_a_number_of_units(operator: Person, people: list[Person], quantity: object) -> None:
    _, variant_id = await mug(operator)
    refused = await people[0].post(f"/v1/variants/{variant_id}/waiting-list", {"quantity": quantity})
    assert problem(refused) == (400, "invalid_request")
    assert (await people[0].get("/v1/waiting-list")).json()["items"] == []


async def test_only_what_the_public_sees_is_waited_for_and_only_a_few_times(
    operator: Person, people: list[Person]
) -> None:
    ann = people[0]
    _, hidden = await mug(operator, status="DRAFT")
    assert problem(await ann.post(f"/v1/variants/{hidden}/waiting-list", {"quantity": 1})) == (404, "not_found")
    assert problem(await ann.post(f"/v1/variants/{'0' * 32}/waiting-list", {"quantity": 1})) == (404, "not_found")
    assert problem(await ann.post("/v1/variants/no-such/waiting-list", {"quantity": 1})) == (404, "not_found")
    _, variant_id = await mug(operator)
    path = f"/v1/variants/{variant_id}/waiting-list"
    assert problem(await ann.http.post(path, headers=ann.headers, json={"quantity": 1})) == (400, "key_required")
    assert problem(await Person(ann.http, "", "").post(path, {"quantity": 1})) == (401, "not_signed_in")
    for _ in range(5):
        assert (await ann.post(path, {"quantity": 1})).status_code == 201
    assert problem(await ann.post(path, {"quantity": 1})) == (409, "limit_reached")


async def test_nobody_waits_for_units_of_a_drop_before_it_opens_or_after_it_closed(
    house: House, operator: Person, people: list[Person]
) -> None:
    _, variant_id = await mug(operator)
    path = f"/v1/variants/{variant_id}/waiting-list"
    await house.postgres.execute("UPDATE sales SET opens_at = now() + interval '1 hour'")
    assert problem(await people[0].post(path, {"quantity": 1})) == (409, "sale_not_open")
    await house.postgres.execute("UPDATE sales SET opens_at = NULL, closes_at = now()")
    assert problem(await people[0].post(path, {"quantity": 1})) == (409, "sale_closed")
