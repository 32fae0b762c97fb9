"""Seats are held, kept longer, given back; a key acts once, and what is not mine is not there."""

import asyncio

import httpx
import pytest

from api.app import create_app
from api.house import House, open_house
from engine.settings import Settings
from tests.api.calling import Person, Show, Worker, problem, put_on, stock_up


async def age(house: House, show: Show) -> None:
    """Let every hold of the sale lapse, as if it had been made long ago."""
    sale = await house.book.find(show.sale_id)
    assert sale is not None
    await house.stores.redis.execute_command("HINCRBY", sale.keys.sale, "now_ms", 10_000_000)


async def test_seats_are_held_at_the_price_they_have(people: list[Person], show: Show) -> None:
    held = await show.reserve(people[0], "A-1-2", "A-1-1")
    assert held.status_code == 201, held.text
    reservation = held.json()
    assert reservation["seats"] == [
        {"seat_no": "A-1-2", "price": 1000, "status": "HELD"},
        {"seat_no": "A-1-1", "price": 1000, "status": "HELD"},
    ]
    assert (reservation["status"], reservation["amount"], reservation["currency"]) == ("PENDING", 2000, "KRW")
    assert (reservation["sale_id"], reservation["schedule_id"]) == (show.sale_id, show.schedule_id)
    assert reservation["server_time"] == reservation["created_at"] < reservation["expires_at"]
    drawn = (await people[0].get(f"/v1/schedules/{show.schedule_id}/seats")).json()
    assert [seat["seat_no"] for seat in drawn["seats"] if seat["status"] == "HELD"] == ["A-1-1", "A-1-2"]


async def test_a_reservation_is_there_before_postgres_has_it_and_after(
    people: list[Person], show: Show, worker: Worker
) -> None:
    held = (await show.reserve(people[0], "A-1-1")).json()
    path = f"/v1/reservations/{held['reservation_id']}"
    before = (await people[0].get(path)).json()
    await worker.drain()
    after = (await people[0].get(path)).json()
    for found in (before, after):
        assert found | {"server_time": held["server_time"]} == held
        assert found["server_time"] >= held["server_time"]
    listed = (await people[0].get("/v1/reservations")).json()
    assert [item["reservation_id"] for item in listed["items"]] == [held["reservation_id"]]


async def test_every_process_knows_a_hold_of_a_sale_that_was_just_made(
    settings: Settings, operator: Person, people: list[Person]
) -> None:
    async with open_house(settings) as other:
        face = create_app(settings)
        face.house = other
        transport = httpx.ASGITransport(app=face)  # type: ignore[arg-type]  # both are ASGI, typed by different names
        async with httpx.AsyncClient(transport=transport, base_url="http://lastseat.test") as http:
            show = await put_on(operator)
            held = (await show.reserve(people[0], "A-1-1")).json()
            found = await http.get(f"/v1/reservations/{held['reservation_id']}", headers=people[0].headers)
            assert (found.status_code, found.json()["status"]) == (200, "PENDING")
            variant_id = (await stock_up(operator))["variants"][0]["variant_id"]
            held = (await people[0].post("/v1/orders", {"lines": [{"variant_id": variant_id, "quantity": 1}]})).json()
            found = await http.get(f"/v1/orders/{held['order_id']}", headers=people[0].headers)
            assert (found.status_code, found.json()["status"]) == (200, "PENDING")


async def test_what_is_not_mine_is_not_there(people: list[Person], show: Show, worker: Worker) -> None:
    ada, ben, _ = people
    held = (await show.reserve(ada, "A-1-1")).json()
    path = f"/v1/reservations/{held['reservation_id']}"
    for _ in ("only in Redis", "in Postgres too"):
        assert problem(await ben.get(path)) == (404, "not_found")
        assert problem(await ben.delete(path)) == (404, "not_found")
        assert problem(await ben.post(f"{path}/extension")) == (404, "not_found")
        assert problem(await ben.post(f"{path}/releases", {"seats": ["A-1-1"]})) == (404, "not_found")
        assert problem(await ben.post(f"{path}/payments", {"method": "BALANCE"})) == (404, "not_found")
        await worker.drain()
    assert (await ada.get(path)).json()["status"] == "PENDING"
    assert (await ben.get("/v1/reservations")).json()["items"] == []
    assert problem(await ben.get(f"/v1/reservations/{'0' * 32}")) == (404, "not_found")


async def test_lines_are_the_long_form_of_seats(people: list[Person], show: Show) -> None:
    lines = {"lines": [{"seat_no": "A-1-1"}, {"seat_no": "A-1-2"}]}
    held = await people[0].post(show.path, lines, key="k")
    again = await show.reserve(people[0], "A-1-2", "A-1-1", key="k")
    assert held.status_code == again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["reservation_id"] == held.json()["reservation_id"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, ""),
        ({"seats": ["A-1-1"], "lines": [{"seat_no": "A-1-1"}]}, ""),
        ({"seats": []}, "seats"),
        ({"seats": ["A-1-1"] * 21}, "seats"),
        ({"seats": ["A-1-1", 5]}, "seats[1]"),
        ({"seats": ["A,1"]}, "seats[0]"),
        ({"seats": ["A-1-1 | 2"]}, "seats[0]"),
        ({"lines": [{"seat_no": "A-1-1", "area": "Pit", "quantity": 1}]}, "lines[0]"),
        ({"lines": [{"area": "Pit"}]}, "lines[0]"),
        ({"lines": [{"seat_no": "A-1-1", "quantity": 2}]}, "lines[0]"),
        ({"lines": [{"seat_no": "A-1-1", "tier": "a|b"}]}, "lines[0].tier"),
        ({"lines": [{"seat_no": "A-1-1", "tier": "a"}, {"seat_no": "A-1-1", "tier": "b"}]}, ""),
        ({"lines": [{"area": "Pit", "quantity": 15}, {"area": "Lawn", "quantity": 15}]}, ""),
        ({"best_available": {"quantity": 0}}, "best_available.quantity"),
        ({"best_available": {"quantity": 2, "near": "A-1-1"}}, "best_available.near"),
        ({"seats": ["A-1-1"], "channel": ""}, "channel"),
    ],
)
async def test_a_wish_says_what_is_wrong_with_it(people: list[Person], show: Show, body: object, path: str) -> None:
    answered = await people[0].post(show.path, body)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


async def test_every_seat_in_the_way_is_named(people: list[Person], show: Show) -> None:
    ada, ben, _ = people
    await show.reserve(ada, "A-1-1")
    await show.reserve(ben, "A-1-2")
    refused = await show.reserve(ada, "A-1-1", "A-1-2", "A-1-3", key="k")
    assert problem(refused) == (409, "seat_taken")
    assert refused.json()["seats"] == [
        {"seat_no": "A-1-1", "reason": "yours"},
        {"seat_no": "A-1-2", "reason": "held"},
    ]
    # A refusal changed nothing: the same key may ask again.
    assert (await show.reserve(ada, "A-1-3", key="k")).status_code == 201


async def test_seats_that_do_not_exist_are_named(people: list[Person], show: Show) -> None:
    refused = await show.reserve(people[0], "A-1-1", "B-9-9")
    assert problem(refused) == (404, "seat_unknown")
    assert refused.json()["seat_nos"] == ["B-9-9"]
    nowhere = await people[0].post(f"/v1/schedules/{'0' * 32}/reservations", {"seats": ["A-1-1"]})
    assert problem(nowhere) == (404, "not_found")


async def test_a_buyer_has_a_limit(people: list[Person], show: Show) -> None:
    await show.reserve(people[0], "A-1-1", "A-1-2", "A-1-3")
    refused = await show.reserve(people[0], "A-1-4", "A-1-5")
    assert problem(refused) == (409, "limit_reached")
    assert (refused.json()["limit"], refused.json()["have"]) == (4, 3)


async def test_a_sale_begins_and_ends(people: list[Person], operator: Person) -> None:
    early = await put_on(operator, opens_at="2100-01-01T00:00:00+02:00")
    refused = await early.reserve(people[0], "A-1-1")
    assert problem(refused) == (409, "sale_not_open")
    assert refused.json()["opens_at"] == "2099-12-31T22:00:00.000Z"
    assert int(refused.headers["retry-after"]) > 10**9
    assert (await people[0].get(f"/v1/sales/{early.sale_id}")).json()["state"] == "upcoming"
    late = await put_on(operator, closes_at="2020-01-01T00:00:00Z")
    assert problem(await late.reserve(people[0], "A-1-1")) == (409, "sale_closed")
    assert (await people[0].get(f"/v1/sales/{late.sale_id}")).json()["state"] == "closed"


async def test_fifty_identical_requests_at_once_hold_once(people: list[Person], show: Show) -> None:
    answers = await asyncio.gather(*(show.reserve(people[0], "A-1-1", "A-1-2", key="k") for _ in range(50)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["reservation_id"] for answered in answers}) == 1
    assert sum("idempotent-replayed" not in answered.headers for answered in answers) == 1


async def test_a_key_is_for_one_wish(people: list[Person], show: Show) -> None:
    ada, ben, _ = people
    assert (await show.reserve(ada, "A-1-1", key="k")).status_code == 201
    assert problem(await show.reserve(ada, "A-1-2", key="k")) == (422, "idempotency_key_reused")
    assert (await show.reserve(ben, "A-1-2", key="k")).status_code == 201


async def test_a_repeat_after_the_end_tells_the_end(people: list[Person], show: Show) -> None:
    held = (await show.reserve(people[0], "A-1-1", key="k")).json()
    given_back = await people[0].delete(f"/v1/reservations/{held['reservation_id']}")
    again = await show.reserve(people[0], "A-1-1", key="k")
    assert again.status_code == 201
    for ended in (given_back.json(), again.json()):
        assert (ended["status"], ended["reason"]) == ("CANCELLED", "USER")
        assert [seat["status"] for seat in ended["seats"]] == ["RELEASED"]


async def test_giving_up_is_harmless_to_repeat(people: list[Person], show: Show, worker: Worker) -> None:
    held = (await show.reserve(people[0], "A-1-1")).json()
    for _ in range(2):
        assert (await people[0].delete(f"/v1/reservations/{held['reservation_id']}")).json()["status"] == "CANCELLED"
    await worker.drain()
    assert (await people[0].delete(f"/v1/reservations/{held['reservation_id']}")).json()["status"] == "CANCELLED"
    assert (await show.reserve(people[1], "A-1-1")).status_code == 201


async def test_a_hold_lapses_without_a_sweep(people: list[Person], show: Show, house: House) -> None:
    held = (await show.reserve(people[0], "A-1-1")).json()
    await age(house, show)
    path = f"/v1/reservations/{held['reservation_id']}"
    ended = (await people[0].get(path)).json()
    assert (ended["status"], ended["reason"]) == ("CANCELLED", "EXPIRED")
    refused = await people[0].post(f"{path}/payments", {"method": "BALANCE"})
    assert problem(refused) == (409, "hold_ended")
    assert refused.json()["reason"] == "EXPIRED"
    assert problem(await people[0].post(f"{path}/extension")) == (409, "hold_ended")
    assert (await show.reserve(people[1], "A-1-1")).status_code == 201


async def test_part_of_a_hold_is_given_back(people: list[Person], show: Show) -> None:
    held = (await show.reserve(people[0], "A-1-1", "A-1-2")).json()
    path = f"/v1/reservations/{held['reservation_id']}/releases"
    left = await people[0].post(path, {"seats": ["A-1-1"]}, key="k")
    assert left.status_code == 200, left.text
    assert (left.json()["amount"], [seat["seat_no"] for seat in left.json()["seats"]]) == (1000, ["A-1-2"])
    again = await people[0].post(path, {"seats": ["A-1-1"]}, key="k")
    assert again.json()["amount"] == 1000
    assert again.headers["idempotent-replayed"] == "true"
    assert problem(await people[0].post(path, {"seats": ["A-1-2"]}, key="k")) == (422, "idempotency_key_reused")
    assert problem(await people[0].post(path, {"seats": ["A-1-1"]})) == (404, "seat_unknown")
    assert (await show.reserve(people[1], "A-1-1")).status_code == 201


async def test_a_hold_is_extended_as_often_as_the_sale_allows(people: list[Person], show: Show) -> None:
    held = (await show.reserve(people[0], "A-1-1")).json()
    path = f"/v1/reservations/{held['reservation_id']}/extension"
    first = await people[0].post(path, key="k1")
    assert first.status_code == 200, first.text
    assert first.json()["expires_at"] > held["expires_at"]
    again = await people[0].post(path, key="k1")
    assert again.json()["expires_at"] == first.json()["expires_at"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (await people[0].post(path, key="k2")).json()["expires_at"] > first.json()["expires_at"]
    assert problem(await people[0].post(path, key="k3")) == (409, "extension_spent")


async def test_a_lost_sale_is_told_as_one_being_rebuilt(people: list[Person], show: Show, house: House) -> None:
    await house.stores.redis.flushall()
    for answered in (
        await show.reserve(people[0], "A-1-1"),
        await people[0].get(f"/v1/schedules/{show.schedule_id}/seats"),
    ):
        assert problem(answered) == (503, "sale_rebuilding")
        assert answered.headers["retry-after"] == "1"


async def test_the_map_tells_what_changed(people: list[Person], show: Show) -> None:
    path = f"/v1/schedules/{show.schedule_id}/seats"
    version = (await people[0].get(path)).json()["map_version"]
    same = (await people[0].get(f"{path}?since={version}")).json()
    assert same == {"map_version": version, "full": False, "seats": []}
    assert (await people[0].get(f"{path}?since=0")).json()["full"] is True
    assert problem(await people[0].get(f"{path}?since=-1")) == (400, "invalid_request")
    assert problem(await people[0].get(f"/v1/schedules/{'0' * 32}/seats")) == (404, "not_found")
