"""Concerts and schedules: made whole or not at all, edited by version, told in pages."""

import asyncio
from typing import Any

import httpx
import pytest

from api.house import House
from tests.api.calling import Person, hall, problem

START = "2027-05-01T19:00:00+09:00"
PIT = {"area": "Pit", "category": "STANDING", "price": 600, "quantity": 3}
TABLE = "section,row,number,category,price,accessible,blocked\n"


async def concert(operator: Person, title: str = "Winterreise") -> str:
    made = await operator.post("/v1/admin/concerts", {"title": title})
    assert made.status_code == 201, made.text
    concert_id: str = made.json()["concert_id"]
    return concert_id


async def import_table(operator: Person, concert_id: str, table: str | bytes, query: str = "") -> httpx.Response:
    return await operator.http.post(
        f"/v1/admin/concerts/{concert_id}/schedules?start_at=2027-05-01T10:00:00Z&{query}",
        content=table if isinstance(table, bytes) else table.encode(),
        headers=operator.headers | {"Idempotency-Key": "k", "Content-Type": "text/csv"},
    )


async def test_a_concert_is_made_shown_and_edited(operator: Person, http: httpx.AsyncClient) -> None:
    body = {"title": "Winterreise", "artist": "Duo", "venue": "Hall", "poster_image_url": "https://x.example/p.png"}
    made = await operator.post("/v1/admin/concerts", body, key="k")
    again = await operator.post("/v1/admin/concerts", body, key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert made.json() == again.json()
    path = f"/v1/admin/concerts/{made.json()['concert_id']}"
    edited = await operator.patch(path, {"title": "Die schöne Müllerin", "venue": None}, version=1)
    assert (edited.json()["title"], edited.json()["venue"], edited.json()["artist"]) == (
        "Die schöne Müllerin",
        None,
        "Duo",
    )
    assert edited.headers["etag"] == '"2"'
    shown = await http.get(f"/v1/concerts/{made.json()['concert_id']}")
    assert shown.json() == edited.json()
    assert shown.headers["etag"] == '"2"'


async def test_an_edit_names_the_version_it_was_made_of(operator: Person) -> None:
    path = f"/v1/admin/concerts/{await concert(operator)}"
    assert problem(await operator.patch(path, {"title": "A"})) == (400, "invalid_request")
    answers = await asyncio.gather(*(operator.patch(path, {"title": name}, version=1) for name in "ABC"))
    assert sorted(answered.status_code for answered in answers) == [200, 412, 412]
    assert problem(await operator.patch(path, {"title": "A"}, version=1)) == (412, "stale_version")
    nowhere = f"/v1/admin/concerts/{'0' * 32}"
    assert problem(await operator.patch(nowhere, {"title": "A"}, version=1)) == (404, "not_found")


async def test_a_key_makes_one_concert(operator: Person) -> None:
    await operator.post("/v1/admin/concerts", {"title": "A"}, key="k")
    assert problem(await operator.post("/v1/admin/concerts", {"title": "B"}, key="k")) == (
        422,
        "idempotency_key_reused",
    )


async def test_concerts_are_told_newest_first(operator: Person, http: httpx.AsyncClient) -> None:
    for title in "ABCDE":
        await concert(operator, title)
    first = (await http.get("/v1/concerts?limit=2")).json()
    second = (await http.get(f"/v1/concerts?limit=2&cursor={first['next']}")).json()
    third = (await http.get(f"/v1/concerts?limit=2&cursor={second['next']}")).json()
    assert [item["title"] for page in (first, second, third) for item in page["items"]] == list("EDCBA")
    assert third["next"] is None


async def test_a_schedule_is_on_sale_as_soon_as_it_is_made(operator: Person, http: httpx.AsyncClient) -> None:
    concert_id = await concert(operator)
    body: dict[str, Any] = {"start_at": START, "per_buyer_max": 4, "seats": hall()}
    body["seats"][0] |= {"accessible": True, "blocked": True}
    made = await operator.post(f"/v1/admin/concerts/{concert_id}/schedules", body)
    assert made.status_code == 201, made.text
    schedule = (await http.get(f"/v1/schedules/{made.json()['schedule_id']}")).json()
    assert schedule == {
        "schedule_id": made.json()["schedule_id"],
        "concert_id": concert_id,
        "sale_id": made.json()["sale_id"],
        "start_at": "2027-05-01T10:00:00.000Z",
        "opens_at": None,
        "closes_at": None,
        "seats_total": 10,
        "seats_available": 9,
        "per_buyer_max": 4,
        "areas": [],
        "tiers": [],
        "version": 1,
    }
    assert (await http.get(f"/v1/concerts/{concert_id}")).json()["schedules"] == [schedule]
    sale = (await http.get(f"/v1/sales/{schedule['sale_id']}")).json()
    assert (sale["kind"], sale["name"], sale["state"]) == ("seats", "Winterreise", "open")
    drawn = (await http.get(f"/v1/schedules/{schedule['schedule_id']}/seats")).json()
    assert drawn["full"] is True
    assert [seat["status"] for seat in drawn["seats"]] == ["BLOCKED"] + ["FREE"] * 9
    assert drawn["seats"][0] | {"status": ""} == {
        "seat_no": "A-1-1",
        "section": "A",
        "row": "1",
        "number": 1,
        "category": "R",
        "price": 1000,
        "accessible": True,
        "status": "",
    }


async def test_a_schedule_is_made_once(operator: Person) -> None:
    path = f"/v1/admin/concerts/{await concert(operator)}/schedules"
    body = {"start_at": START, "seats": hall()}
    answers = await asyncio.gather(*(operator.post(path, body, key="k") for _ in range(3)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["schedule_id"] for answered in answers}) == 1
    for change in ({"hold_s": 60}, {"start_at": "2027-05-02T19:00:00+09:00"}, {"areas": [PIT]}):
        other = await operator.post(path, body | change, key="k")
        assert problem(other) == (422, "idempotency_key_reused")


async def test_a_table_of_seats_makes_a_schedule(operator: Person, http: httpx.AsyncClient) -> None:
    table = "\ufeff" + TABLE + 'Upper Circle,12,7,"Cat, 1",50000,true,\r\nA,B,1,R,0,,1\n\n'
    made = await import_table(operator, await concert(operator), table, "per_buyer_max=2&hold_s=120")
    assert made.status_code == 201, made.text
    drawn = (await http.get(f"/v1/schedules/{made.json()['schedule_id']}/seats")).json()
    assert [(seat["seat_no"], seat["accessible"], seat["status"]) for seat in drawn["seats"]] == [
        ("A-B-1", False, "BLOCKED"),
        ("Upper Circle-12-7", True, "FREE"),
    ]
    assert (await http.get(f"/v1/schedules/{made.json()['schedule_id']}")).json()["per_buyer_max"] == 2


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        (TABLE, [(1, "")]),
        ("", [(1, name) for name in ("section", "row", "number", "category", "price")]),
        ("section,row,number,category,price,colour\nA,1,1,R,5,red\n", [(1, "colour")]),
        (TABLE + "A,1,one,R,5,,\nA,1,2,R,-5,,\nA,1,3,R,5,maybe,\n", [(2, "number"), (3, "price"), (4, "accessible")]),
        (TABLE + ",1,0,,x,5,\n", [(2, name) for name in ("section", "number", "category", "price", "accessible")]),
        (TABLE + "A,1,1,R,5,,\nA,1,2,R,,,\nA,1,1,R,5,,\n", [(3, "price"), (4, "number")]),
        (TABLE + "A,0,1,R,5,,\n" + "A,1,0,R,5,,\n" * 200, [(line, "number") for line in range(3, 103)]),
        (TABLE + "A,1,1,R,5,,\nA,1,1,R,5,,\n", [(3, "number")]),
        (TABLE + "A,1,1,R,5\n", [(2, "")]),
        (TABLE + ",1,1,R,5,,\nA-B,1,1,R,5,,\n", [(2, "section"), (3, "section")]),
        (TABLE + "ABCDEFGHIJ,ABCDEFGHI,1,R,5,,\n", [(2, "")]),
        (TABLE + '"A,1,1,R,5,,\n', [(2, "")]),
    ],
)
async def test_a_table_names_every_line_that_is_wrong(
    operator: Person, house: House, table: str, wrong: list[tuple[int, str]]
) -> None:
    answered = await import_table(operator, await concert(operator), table)
    assert problem(answered) == (400, "invalid_request")
    assert [(error["line"], error["column"]) for error in answered.json()["errors"]] == wrong
    assert await house.postgres.fetchval("SELECT count(*) FROM sales") == 0


async def test_a_table_that_is_no_text_names_the_line(operator: Person) -> None:
    answered = await import_table(operator, await concert(operator), TABLE.encode() + b"A,1,1,\xff,5,,\n")
    assert [error["line"] for error in answered.json()["errors"]] == [2]


async def test_a_table_without_its_date_is_refused(operator: Person) -> None:
    answered = await operator.http.post(
        f"/v1/admin/concerts/{await concert(operator)}/schedules",
        content=TABLE + "A,1,1,R,5,,\n",
        headers=operator.headers | {"Idempotency-Key": "k", "Content-Type": "text/csv"},
    )
    assert [error["path"] for error in answered.json()["errors"]] == ["start_at"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"start_at": "2027-05-01T19:00:00"}, "start_at"),
        ({"start_at": "9999-12-31T23:59:59Z"}, ""),
        ({"seats": []}, "seats"),
        ({"seats": [*hall(), *hall(1, 1)]}, "seats[10]"),
        ({"seats": [hall()[0] | {"row": " 1"}]}, "seats[0].row"),
        ({"seats": [hall()[0] | {"number": 0}]}, "seats[0].number"),
        ({"seats": [hall()[0] | {"price": 10**12 + 1}]}, "seats[0].price"),
        ({"seats": [hall()[0] | {"tier": "child"}]}, "seats[0].tier"),
        ({"hold_s": 0}, "hold_s"),
        ({"release_jitter_s": 3601}, "release_jitter_s"),
        ({"opens_at": START, "closes_at": START}, ""),
    ],
)
async def test_a_schedule_says_what_is_wrong_with_it(operator: Person, changes: dict[str, Any], path: str) -> None:
    body = {"start_at": START, "seats": hall()} | changes
    answered = await operator.post(f"/v1/admin/concerts/{await concert(operator)}/schedules", body)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


async def test_the_terms_of_a_schedule_are_edited_by_version(operator: Person, http: httpx.AsyncClient) -> None:
    made = await operator.post(
        f"/v1/admin/concerts/{await concert(operator)}/schedules", {"start_at": START, "seats": hall()}
    )
    path = f"/v1/admin/schedules/{made.json()['schedule_id']}"
    opens_at = "2026-12-24T00:00:00.000Z"
    edited = await operator.patch(path, {"opens_at": opens_at, "per_buyer_max": 1}, version=1)
    assert edited.status_code == 200, edited.text
    assert (edited.json()["opens_at"], edited.json()["per_buyer_max"], edited.json()["version"]) == (opens_at, 1, 2)
    assert problem(await operator.patch(path, {"per_buyer_max": 2}, version=1)) == (412, "stale_version")
    sale = (await http.get(f"/v1/sales/{made.json()['sale_id']}")).json()
    assert sale["opens_at"] == opens_at


async def test_a_room_is_set_by_an_operator(operator: Person) -> None:
    made = await operator.post(
        f"/v1/admin/concerts/{await concert(operator)}/schedules", {"start_at": START, "seats": hall()}
    )
    path = f"/v1/admin/sales/{made.json()['sale_id']}/queue"
    room = await operator.patch(path, {"state": "open", "active_max": 7})
    assert room.json() == {
        "sale_id": made.json()["sale_id"],
        "state": "open",
        "active_max": 7,
        "admitted_per_minute_max": 6000,
        "entry_s": 120,
        "session_s": 600,
        "recall_s": 300,
        "draining_no": None,
        "version": 2,
    }
    assert problem(await operator.patch(path, {"state": "ajar"})) == (400, "invalid_request")
    assert problem(await operator.patch(f"/v1/admin/sales/{'0' * 32}/queue", {})) == (404, "not_found")


async def test_a_sale_is_rebuilt_for_an_operator(operator: Person, http: httpx.AsyncClient) -> None:
    made = await operator.post(
        f"/v1/admin/concerts/{await concert(operator)}/schedules", {"start_at": START, "seats": hall()}
    )
    rebuilt = await operator.post(f"/v1/admin/sales/{made.json()['sale_id']}/rebuild")
    assert rebuilt.json() == {"sale_id": made.json()["sale_id"], "epoch": 2}
    assert (await http.get(f"/v1/schedules/{made.json()['schedule_id']}/seats")).json()["map_version"] >= 2 * 10**9
    assert problem(await operator.post(f"/v1/admin/sales/{'0' * 32}/rebuild")) == (404, "not_found")
