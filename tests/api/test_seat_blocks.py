"""Seats are taken off a running sale over HTTP, all or none, once for a key."""

from typing import Any

from tests.api.calling import Person, Show, hall, problem, put_on


def path(show: Show) -> str:
    return f"/v1/admin/schedules/{show.schedule_id}/seat-blocks"


async def left(person: Person, show: Show) -> tuple[int, int]:
    """What of the schedule is available, and how much there is."""
    told: dict[str, Any] = (await person.get(f"/v1/schedules/{show.schedule_id}")).json()
    return told["seats_available"], told["seats_total"]


async def test_seats_are_blocked_and_unblocked(operator: Person, people: list[Person]) -> None:
    show, ann = await put_on(operator), people[0]
    made = await operator.post(path(show), {"seats": ["A-1-1", "A-1-2"], "blocked": True}, key="k")
    assert made.status_code == 201, made.text
    told = made.json()
    assert told.pop("seat_block_id")
    assert told.pop("created_at")
    assert told == {"schedule_id": show.schedule_id, "blocked": True, "seats": ["A-1-1", "A-1-2"]}
    assert await left(ann, show) == (8, 10)
    seat_map = (await ann.get(f"/v1/schedules/{show.schedule_id}/seats")).json()
    blocked = {seat["seat_no"] for seat in seat_map["seats"] if seat["status"] == "BLOCKED"}
    assert blocked == {"A-1-1", "A-1-2"}
    refused = await show.reserve(ann, "A-1-1")
    assert problem(refused) == (409, "seat_taken")
    assert refused.json()["seats"] == [{"seat_no": "A-1-1", "reason": "blocked"}]
    seats = (await operator.get(f"/v1/admin/schedules/{show.schedule_id}/seats")).json()["items"]
    assert {seat["seat_no"] for seat in seats if seat["blocked"]} == {"A-1-1", "A-1-2"}

    undone = await operator.post(path(show), {"section": "A", "blocked": False})
    assert undone.json()["seats"] == ["A-1-1", "A-1-2"]
    assert await left(ann, show) == (10, 10)
    assert (await show.reserve(ann, "A-1-1")).status_code == 201

    # The key remembers what it did, and does not do it again.
    again = await operator.post(path(show), {"seats": ["A-1-1", "A-1-2"], "blocked": True}, key="k")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert await left(ann, show) == (10, 10)
    other = await operator.post(path(show), {"seats": ["A-1-1"], "blocked": True}, key="k")
    assert problem(other) == (422, "idempotency_key_reused")


async def test_a_seat_that_is_not_the_operators_is_named_and_nothing_changes(
    operator: Person, people: list[Person]
) -> None:
    show = await put_on(
        operator,
        seats=[*hall(), {"section": "V", "row": "1", "number": 1, "category": "R", "price": 1}],
        areas=[{"area": "Lawn", "category": "GA", "price": 1, "quantity": 3}],
        blocks=[{"block": "fans", "section": "V", "channel": "fans"}],
    )
    await show.reserve(people[0], "A-1-1")
    body = {"seats": ["A-1-1", "A-1-2"], "blocked": True}
    held = await operator.post(path(show), body, key="k")
    assert problem(held) == (409, "seat_taken")
    assert held.json()["seats"] == [{"seat_no": "A-1-1", "reason": "held"}]
    never = await operator.post(path(show), {"seats": ["V-1-1", "Lawn-GA-1", "Z-1-1"], "blocked": True})
    assert never.json()["seats"] == [
        {"seat_no": "V-1-1", "reason": "kept"},
        {"seat_no": "Lawn-GA-1", "reason": "unknown"},
        {"seat_no": "Z-1-1", "reason": "unknown"},
    ]
    assert await left(people[0], show) == (14, 14)
    # Refused is not remembered.
    assert (await operator.post(path(show), body | {"seats": ["A-1-2"]}, key="k")).status_code == 201


async def test_what_is_asked_for_is_said_once_and_by_operators(operator: Person, people: list[Person]) -> None:
    show = await put_on(operator)
    wanted = {"seats": ["A-1-1"], "blocked": True}
    for body in ({"blocked": True}, wanted | {"section": "A"}, {"seats": ["A-1-1"]}, {"seats": [], "blocked": True}):
        assert problem(await operator.post(path(show), body)) == (400, "invalid_request")
    too_many = {"seats": [f"A-1-{number}" for number in range(1001)], "blocked": True}
    assert problem(await operator.post(path(show), too_many)) == (400, "invalid_request")
    assert problem(await people[0].post(path(show), wanted))[0] == 401
    nowhere = path(show).replace(show.schedule_id, "0" * 32)
    assert problem(await operator.post(nowhere, wanted)) == (404, "not_found")
    unknown = await operator.post(path(show), {"section": "B", "blocked": True})
    assert unknown.json()["offers"] == [{"kind": "section", "name": "B"}]
