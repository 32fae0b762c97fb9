"""What a schedule offers beside seats: made whole or not at all, told to buyers and operators, edited by version."""

import json
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from api.house import House
from tests.api.calling import Person, Show, hall, problem

START = "2027-05-01T19:00:00+09:00"
PIT = {"area": "Pit", "category": "STANDING", "price": 600, "quantity": 3}
LAWN = {"area": "Lawn", "category": "STANDING", "price": 400, "quantity": 2}
CHILD = {"tier": "child", "category": "R", "price": 500, "max": 4}
STUDENT = {"tier": "student", "category": "STANDING", "price": 300}
FANS = {"block": "fans", "seats": ["A-1-1", "A-1-2"], "access_code": "LIED", "opens_at": "2027-01-01T00:00:00Z"}
BANK = {"block": "bank", "section": "Lawn", "channel": "bank.example", "closes_at": "2027-04-01T00:00:00Z"}
OFFER: dict[str, Any] = {"areas": [PIT, LAWN], "tiers": [CHILD, STUDENT], "blocks": [FANS, BANK]}

TABLE = "section,row,number,category,price,accessible,blocked\n"


async def concert(operator: Person) -> str:
    made = await operator.post("/v1/admin/concerts", {"title": "Winterreise"})
    concert_id: str = made.json()["concert_id"]
    return concert_id


async def offer(operator: Person, **body: Any) -> httpx.Response:
    path = f"/v1/admin/concerts/{await concert(operator)}/schedules"
    return await operator.post(path, {"start_at": START, "seats": hall()} | body)


async def offered(operator: Person, **body: Any) -> Show:
    made = await offer(operator, **(OFFER | body))
    assert made.status_code == 201, made.text
    return Show(operator, made.json())


async def import_table(operator: Person, table: str, **query: object) -> httpx.Response:
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
    return await operator.http.post(
        f"/v1/admin/concerts/{await concert(operator)}/schedules?{urlencode({'start_at': START} | said)}",
        content=table.encode(),
        headers=operator.headers | {"Idempotency-Key": "k", "Content-Type": "text/csv"},
    )


# Made and told --------------------------------------------------------------------------------------------------------


async def test_buyers_see_areas_and_tiers_and_nothing_of_blocks(operator: Person, http: httpx.AsyncClient) -> None:
    show = await offered(operator, opens_at="2026-12-24T00:00:00Z")
    told = await http.get(f"/v1/schedules/{show.schedule_id}")
    assert told.json() | {"version": 0, "concert_id": ""} == {
        "schedule_id": show.schedule_id,
        "concert_id": "",
        "sale_id": show.sale_id,
        "start_at": "2027-05-01T10:00:00.000Z",
        "opens_at": "2026-12-24T00:00:00.000Z",
        "closes_at": None,
        "seats_total": 15,
        "seats_available": 15,
        "per_buyer_max": None,
        # What is left of an area in a block is nobody's to know.
        "areas": [PIT | {"available": 3}, LAWN | {"available": 0}],
        "tiers": [{"tier": "child", "category": "R", "price": 500}, STUDENT],
        "version": 0,
    }
    listed = (await http.get("/v1/concerts")).json()["items"][0]
    assert listed["schedules"] == [told.json()]
    for secret in ("LIED", "bank.example", "fans"):
        assert secret not in told.text + json.dumps(listed)


async def test_the_map_shows_numbered_seats_and_blocks_as_blocked(operator: Person, http: httpx.AsyncClient) -> None:
    show = await offered(operator)
    drawn = await http.get(f"/v1/schedules/{show.schedule_id}/seats")
    assert [seat["seat_no"] for seat in drawn.json()["seats"] if seat["status"] == "BLOCKED"] == ["A-1-1", "A-1-2"]
    assert len(drawn.json()["seats"]) == 10
    assert "GA" not in drawn.text


async def test_nobody_takes_what_is_kept_back_by_naming_it(operator: Person, people: list[Person]) -> None:
    show = await offered(operator)
    assert problem(await show.reserve(people[0], "A-1-1")) == (409, "seat_taken")
    for place in ("Pit-GA-1", "Lawn-GA-1"):
        assert problem(await show.reserve(people[0], place)) == (404, "seat_unknown")
    assert (await show.reserve(people[0], "A-1-3")).status_code == 201


async def test_an_operator_sees_all_of_it(operator: Person, people: list[Person]) -> None:
    policy = [{"hours_before": 48, "percent": 50}]
    show = await offered(operator, hold_s=400, pay_s=90, release_jitter_s=20, refund_policy=policy)
    path = f"/v1/admin/schedules/{show.schedule_id}"
    told = await operator.get(path)
    assert told.headers["etag"] == '"1"'
    shown = told.json()
    assert (shown["hold_s"], shown["pay_s"], shown["release_jitter_s"]) == (400, 90, 20)
    assert shown["refund_policy"] == policy
    assert [area["available"] for area in shown["areas"]] == [3, 2]
    assert shown["tiers"] == [CHILD, STUDENT | {"max": None}]
    assert shown["blocks"] == [
        {
            "block": "fans",
            "access_code": "LIED",
            "channel": None,
            "opens_at": "2027-01-01T00:00:00.000Z",
            "closes_at": None,
            "seats": 2,
        },
        {
            "block": "bank",
            "access_code": None,
            "channel": "bank.example",
            "opens_at": None,
            "closes_at": "2027-04-01T00:00:00.000Z",
            "seats": 2,
        },
    ]
    for refused in (await people[0].get(path), await people[0].get(f"{path}/seats")):
        assert problem(refused) == (401, "not_signed_in")
    nowhere = f"/v1/admin/schedules/{'0' * 32}"
    for missing in (await operator.get(nowhere), await operator.get(f"{nowhere}/seats")):
        assert problem(missing) == (404, "not_found")


async def test_an_operator_pages_through_every_seat(operator: Person) -> None:
    show = await offered(operator)
    path = f"/v1/admin/schedules/{show.schedule_id}/seats?limit=4"
    seats: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await operator.get(f"{path}&cursor={cursor}")).json()
        assert len(page["items"]) <= 4
        seats += page["items"]
        cursor = page["next"]
    by_no = {seat["seat_no"]: seat for seat in seats}
    assert len(seats) == len(by_no) == 15
    assert (by_no["A-1-1"]["block"], by_no["A-1-3"]["block"], by_no["Lawn-GA-2"]["block"]) == ("fans", None, "bank")
    assert by_no["Pit-GA-3"] == {
        "seat_no": "Pit-GA-3",
        "section": "Pit",
        "row": "GA",
        "number": 3,
        "category": "STANDING",
        "price": 600,
        "accessible": False,
        "blocked": False,
        "block": None,
        "area": "Pit",
        "sold": False,
    }
    assert problem(await operator.get(f"{path}&cursor=x")) == (400, "invalid_request")


async def test_a_table_takes_the_rest_from_the_query(operator: Person) -> None:
    table = TABLE + "A,1,1,R,1000,,\nA,1,2,R,1000,,\n"
    policy = [{"hours_before": 0, "percent": 80}]
    made = await import_table(operator, table, refund_policy=policy, release_jitter_s="5", **OFFER)
    assert made.status_code == 201, made.text
    assert made.json()["seats_total"] == 7
    shown = (await operator.get(f"/v1/admin/schedules/{made.json()['schedule_id']}")).json()
    assert (shown["refund_policy"], shown["release_jitter_s"]) == (policy, 5)
    assert [block["seats"] for block in shown["blocks"]] == [2, 2]
    assert [area["area"] for area in shown["areas"]] == ["Pit", "Lawn"]
    again = await operator.get(f"/v1/admin/schedules/{made.json()['schedule_id']}/seats?limit=1")
    assert again.json()["items"][0]["block"] == "fans"


async def test_areas_are_enough(operator: Person, http: httpx.AsyncClient) -> None:
    made = await offer(operator, seats=[], areas=[PIT])
    assert made.json()["seats_total"] == 3
    by_table = await import_table(operator, TABLE, areas=[PIT])
    assert by_table.json()["seats_total"] == 3
    drawn = await http.get(f"/v1/schedules/{made.json()['schedule_id']}/seats")
    assert drawn.json()["seats"] == []


async def test_a_long_hold_may_be_extended(operator: Person, house: House) -> None:
    show = await offered(operator, hold_s=3600)
    sale = await house.book.read(show.sale_id)
    assert sale is not None
    assert (sale.hold_s, sale.hold_max_s) == (3600, 10_800)
    edited = await operator.patch(f"/v1/admin/schedules/{show.schedule_id}", {"hold_s": 60}, version=1)
    assert edited.json()["hold_s"] == 60
    sale = await house.book.read(show.sale_id)
    assert sale is not None
    assert (sale.hold_s, sale.hold_max_s) == (60, 900)


# What is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({"seats": [], "areas": []}, ["seats"]),
        ({"areas": [PIT | {"area": "A"}]}, ["areas[0].area"]),
        ({"areas": [PIT, LAWN, PIT]}, ["areas[2].area"]),
        ({"areas": [PIT | {"area": "a" * 16}]}, ["areas[0].area"]),
        ({"areas": [PIT | {"area": "a-b"}]}, ["areas[0].area"]),
        ({"areas": [PIT | {"quantity": 0}]}, ["areas[0].quantity"]),
        ({"areas": [PIT | {"quantity": 100_001}]}, ["areas[0].quantity"]),
        ({"areas": [PIT | {"quantity": 99_991}]}, ["areas"]),
        ({"areas": [PIT | {"quantity": 90_000, "price": 10**12}]}, [""]),
        ({"areas": [PIT | {"quantity": 90_000}], "tiers": [STUDENT | {"price": 10**12}]}, [""]),
        ({"tiers": [CHILD | {"category": "Loge"}]}, ["tiers[0].category"]),
        ({"tiers": [CHILD, CHILD | {"price": 1}]}, ["tiers[1]"]),
        ({"tiers": [CHILD | {"tier": "a|b"}]}, ["tiers[0].tier"]),
        ({"tiers": [CHILD | {"max": -1}]}, ["tiers[0].max"]),
        ({"blocks": [FANS | {"channel": "x"}]}, ["blocks[0]"]),
        ({"blocks": [{"block": "fans", "section": "A"}]}, ["blocks[0]"]),
        ({"blocks": [FANS | {"section": "A"}]}, ["blocks[0]"]),
        ({"blocks": [{"block": "fans", "access_code": "x"}]}, ["blocks[0]"]),
        ({"blocks": [FANS | {"closes_at": FANS["opens_at"]}]}, ["blocks[0]"]),
        ({"blocks": [FANS | {"closes_at": "9999-12-31T23:59:59Z"}]}, ["blocks[0]"]),
        ({"blocks": [FANS | {"access_code": " x"}]}, ["blocks[0].access_code"]),
        ({"blocks": [BANK]}, ["blocks[0].section"]),
        ({"blocks": [FANS | {"seats": ["A-1-1", "A-9-9", "A-1-1"]}]}, ["blocks[0].seats[1]", "blocks[0].seats[2]"]),
        ({"blocks": [FANS, FANS | {"seats": ["A-1-3"]}]}, ["blocks[1].block"]),
        ({"blocks": [FANS, FANS | {"block": "more", "seats": ["A-1-3", "A-1-2"]}]}, ["blocks[1].seats[1]"]),
        ({"areas": [PIT], "blocks": [FANS | {"seats": ["Pit-GA-1"]}]}, ["blocks[0].seats[0]"]),
        (
            {"areas": [LAWN], "blocks": [BANK, {"block": "more", "section": "Lawn", "channel": "x"}]},
            ["blocks[1].section"],
        ),
        (
            {"areas": [PIT | {"area": "A"}], "tiers": [STUDENT | {"category": "?"}], "blocks": [BANK]},
            ["areas[0].area", "tiers[0].category", "blocks[0].section"],
        ),
        (
            {"blocks": [{"block": "all", "section": "A", "channel": "x"}, FANS]},
            [f"blocks[1].seats[{n}]" for n in (0, 1)],
        ),
    ],
)
async def test_an_offer_says_what_is_wrong_with_it(
    operator: Person, house: House, body: dict[str, Any], paths: list[str]
) -> None:
    answered = await offer(operator, **body)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == paths
    for table in ("sales", "seats", "areas", "tiers", "blocks"):
        assert await house.postgres.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_seat_that_is_listed_twice_is_named_by_both_places(operator: Person) -> None:
    by_table = await import_table(operator, TABLE + "A,1,1,R,5,,\nA,1,2,R,5,,\nA,1,1,R,6,,\n")
    assert by_table.json()["errors"] == [
        {
            "path": "line 4, number",
            "message": "A-1-1 is listed twice, first as line 2",
            "line": 4,
            "column": "number",
        }
    ]
    by_json = await offer(operator, seats=[*hall(1, 2), *hall(1, 1)])
    assert by_json.json()["errors"] == [{"path": "seats[2]", "message": "A-1-1 is listed twice, first as seats[0]"}]


async def test_an_area_that_is_a_section_of_a_table_names_its_line(operator: Person) -> None:
    answered = await import_table(operator, TABLE + "A,1,1,R,5,,\nPit,1,2,R,5,,\n", areas=[PIT])
    (error,) = answered.json()["errors"]
    assert (error["path"], "line 3" in error["message"]) == ("areas[0].area", True)


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ({"areas": "[{"}, "areas"),
        ({"areas": '{"area": "Pit"}'}, "areas"),
        ({"areas": [PIT, PIT | {"price": -1}]}, "areas[1].price"),
        ({"tiers": [CHILD | {"colour": "red"}]}, "tiers[0].colour"),
        ({"blocks": [{"block": "x", "section": "A"}]}, "blocks[0]"),
        ({"refund_policy": [{"hours_before": 1}]}, "refund_policy[0].percent"),
        ({"hold_s": "soon"}, "hold_s"),
        ({"opens_at": START, "closes_at": START}, ""),
    ],
)
async def test_what_is_wrong_in_the_query_is_named(operator: Person, query: dict[str, Any], path: str) -> None:
    answered = await import_table(operator, TABLE + "A,1,1,R,5,,\n", **query)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


# Edited ---------------------------------------------------------------------------------------------------------------


async def test_caps_and_blocks_are_edited_by_version(operator: Person) -> None:
    show = await offered(operator)
    path = f"/v1/admin/schedules/{show.schedule_id}"
    body = {
        "release_jitter_s": 9,
        "tiers": [{"tier": "child", "category": "R", "max": None}],
        "blocks": [
            {"block": "fans", "channel": "club", "opens_at": None},
            {"block": "bank", "opens_at": "2027-03-01T00:00:00Z"},
        ],
    }
    edited = await operator.patch(path, body, version=1)
    assert edited.status_code == 200, edited.text
    assert edited.headers["etag"] == '"2"'
    assert edited.json() == (await operator.get(path)).json()
    assert edited.json()["release_jitter_s"] == 9
    assert [tier["max"] for tier in edited.json()["tiers"]] == [None, None]
    assert [
        (block["access_code"], block["channel"], block["opens_at"], block["closes_at"], block["seats"])
        for block in edited.json()["blocks"]
    ] == [
        (None, "club", None, None, 2),
        (None, "bank.example", "2027-03-01T00:00:00.000Z", "2027-04-01T00:00:00.000Z", 2),
    ]
    assert problem(await operator.patch(path, body, version=1)) == (412, "stale_version")
    nowhere = f"/v1/admin/schedules/{'0' * 32}"
    assert problem(await operator.patch(nowhere, {}, version=1)) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"closes_at": "2026-12-01T00:00:00Z"}, "closes_at"),
        ({"tiers": [{"tier": "adult", "category": "R", "max": 1}]}, "tiers[0]"),
        ({"tiers": [{"tier": "child", "category": "R", "max": 1}] * 2}, "tiers[1]"),
        ({"tiers": [{"tier": "child", "category": "R"}]}, "tiers[0].max"),
        ({"tiers": [CHILD]}, "tiers[0].price"),
        ({"blocks": [{"block": "nobody"}]}, "blocks[0]"),
        ({"blocks": [{"block": "fans", "access_code": "a", "channel": "b"}]}, "blocks[0]"),
        ({"blocks": [{"block": "fans", "closes_at": "2026-01-01T00:00:00Z"}]}, "blocks[0].closes_at"),
        ({"blocks": [{"block": "fans", "seats": ["A-1-5"]}]}, "blocks[0].seats"),
        ({"areas": [PIT]}, "areas"),
        ({"seats": []}, "seats"),
    ],
)
async def test_an_edit_that_does_not_fit_changes_nothing(operator: Person, body: dict[str, Any], path: str) -> None:
    show = await offered(operator, opens_at="2026-12-24T00:00:00Z")
    address = f"/v1/admin/schedules/{show.schedule_id}"
    before = (await operator.get(address)).json()
    answered = await operator.patch(address, body, version=1)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]
    assert (await operator.get(address)).json() == before
