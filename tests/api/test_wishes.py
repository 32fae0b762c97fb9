"""Wishes beyond seats by their numbers: tiers, places in areas, seats of blocks, the best seats."""

from typing import Any

import pytest

from tests.api.calling import Person, Show, Worker, problem
from tests.api.test_offers import offered
from tests.api.test_payments import BALANCE


@pytest.fixture
async def show(operator: Person) -> Show:
    """Ten seats at 1,000 (a child 500, at most four), a pit of three at 600 (a student 300), two seats for fans."""
    fans = {"block": "fans", "seats": ["A-1-1", "A-1-2"], "access_code": "LIED"}
    return await offered(operator, blocks=[fans], per_buyer_max=8)


async def wish(person: Person, show: Show, key: str | None = None, **body: Any) -> Any:
    return await person.post(show.path, body, key=key)


async def test_seats_in_tiers_and_places_are_held_bought_and_given_back(
    people: list[Person], show: Show, worker: Worker
) -> None:
    lines = [
        {"seat_no": "A-1-3", "tier": "child"},
        {"seat_no": "A-1-4"},
        {"area": "Pit", "quantity": 2, "tier": "student"},
    ]
    held = await wish(people[0], show, key="k", lines=lines)
    assert held.status_code == 201, held.text
    document = held.json()
    assert document["amount"] == 500 + 1000 + 2 * 300
    told = [(seat.get("tier"), seat["price"]) for seat in document["seats"]]
    assert told == [("child", 500), (None, 1000), ("student", 300), ("student", 300)]
    again = await wish(people[0], show, key="k", lines=lines)
    assert again.headers["idempotent-replayed"] == "true"
    assert [(seat.get("tier"), seat["price"]) for seat in again.json()["seats"]] == told
    path = f"/v1/reservations/{document['reservation_id']}"
    async with worker.draining():
        paid = await people[0].post(f"{path}/payments", BALANCE)
    assert paid.json()["final_amount"] == 2100
    bought = (await people[0].get(path)).json()
    assert (bought["status"], [seat.get("tier") for seat in bought["seats"]]) == (
        "CONFIRMED", [seat.get("tier") for seat in bought["seats"]],
    )  # fmt: skip
    assert sorted(seat["price"] for seat in bought["seats"]) == [300, 300, 500, 1000]
    place = next(seat["seat_no"] for seat in bought["seats"] if seat["seat_no"].startswith("Pit"))
    given_back = await people[0].post(f"{path}/cancellations", {"seats": [place]})
    assert given_back.json()["refund"]["amount"] == 300
    assert (await wish(people[1], show, lines=[{"area": "Pit", "quantity": 2}])).status_code == 201


async def test_what_is_short_is_said_with_what_is_left(people: list[Person], show: Show) -> None:
    assert (await wish(people[0], show, lines=[{"area": "Pit", "quantity": 2}])).status_code == 201
    short = await wish(people[1], show, lines=[{"area": "Pit", "quantity": 2}, {"seat_no": "A-1-3"}])
    assert problem(short) == (409, "sold_out")
    (line,) = short.json()["lines"]
    assert (line["requested"], line["available"]) == (2, 1)
    # All or none: the seat is still free.
    assert (await wish(people[1], show, seats=["A-1-3"])).status_code == 201


async def test_what_is_not_offered_is_named(people: list[Person], show: Show) -> None:
    for lines in ([{"area": "Balcony", "quantity": 1}], [{"seat_no": "A-1-3", "tier": "senior"}]):
        refused = await wish(people[0], show, lines=lines)
        assert problem(refused)[0] == 404, refused.text
    assert problem(await wish(people[0], show, best_available={"quantity": 1, "category": "Z"}))[0] == 404


async def test_a_code_opens_a_block_and_a_wrong_one_says_nothing(people: list[Person], show: Show) -> None:
    for shown in ({}, {"access_code": "wrong"}, {"channel": "LIED"}):
        refused = await wish(people[0], show, seats=["A-1-1"], **shown)
        assert problem(refused) == (409, "seat_taken")
        assert refused.json()["seats"] == [{"seat_no": "A-1-1", "reason": "blocked"}]
    assert (await wish(people[0], show, seats=["A-1-1"], access_code="LIED")).status_code == 201
    drawn = (await people[1].get(f"/v1/schedules/{show.schedule_id}/seats")).json()["seats"]
    assert {seat["status"] for seat in drawn if seat["seat_no"] in {"A-1-1", "A-1-2"}} == {"BLOCKED"}


async def test_the_best_seats_are_picked_and_held_in_one_step(people: list[Person], show: Show) -> None:
    held = await wish(people[0], show, best_available={"quantity": 2})
    assert held.status_code == 201, held.text
    document = held.json()
    assert [seat["seat_no"] for seat in document["seats"]] == ["A-1-3", "A-1-4"] or len(document["seats"]) == 2
    assert document["picked"]["adjacent"] is True
    assert document["picked"]["level"] in {1, 2}
    # The public never gets what is kept for fans.
    rest = await wish(people[1], show, best_available={"quantity": 6})
    assert rest.status_code == 201, rest.text
    assert problem(await wish(people[2], show, best_available={"quantity": 1})) == (409, "sold_out")
    assert (await wish(people[2], show, best_available={"quantity": 2}, access_code="LIED")).status_code == 201


async def test_a_buyers_limit_counts_every_kind_of_line(people: list[Person], operator: Person) -> None:
    show = await offered(operator, blocks=[], per_buyer_max=3)
    assert (
        await wish(people[0], show, lines=[{"seat_no": "A-1-3", "tier": "child"}, {"area": "Pit", "quantity": 1}])
    ).status_code == 201
    refused = await wish(people[0], show, best_available={"quantity": 2})
    assert problem(refused) == (409, "limit_reached")
    assert (refused.json()["limit"], refused.json()["have"]) == (3, 2)
    assert (await wish(people[0], show, best_available={"quantity": 1})).status_code == 201
