"""The operators' hand on a sale's waiting room; drops, which are sales of goods."""

import asyncio

import pytest

from api.house import House
from engine import waiting_room
from tests.api.calling import Person, Show, Worker, problem, stock_up


async def test_a_room_is_edited_in_the_version_that_was_read_where_one_is_named(operator: Person, show: Show) -> None:
    path = f"/v1/admin/sales/{show.sale_id}/queue"
    read = await operator.get(path)
    assert read.headers["etag"] == f'"{read.json()["version"]}"'
    assert read.json()["state"] == "off"
    first = await operator.patch(path, {"state": "paused"}, version=read.json()["version"])
    assert (first.status_code, first.json()["state"]) == (200, "paused")
    assert first.headers["etag"] == f'"{first.json()["version"]}"'
    late = await operator.patch(path, {"state": "open"}, version=read.json()["version"])
    assert problem(late) == (412, "stale_version")
    assert (await operator.get(path)).json()["state"] == "paused"


async def test_a_room_is_paused_at_once_without_reading_it_first(operator: Person, show: Show) -> None:
    path = f"/v1/admin/sales/{show.sale_id}/queue"
    assert (await operator.patch(path, {"state": "paused"})).status_code == 200
    sent = operator.headers | {"If-Match": "no etag"}
    refused = await operator.http.patch(path, headers=sent, json={"state": "open"})
    assert problem(refused) == (400, "invalid_request")


async def test_a_room_drains_up_to_any_number_that_a_double_counts(operator: Person, show: Show, house: House) -> None:
    path = f"/v1/admin/sales/{show.sale_id}/queue"
    assert problem(await operator.patch(path, {"state": "draining", "draining_no": 2**53})) == (400, "invalid_request")
    drained = await operator.patch(path, {"state": "draining", "draining_no": 2**53 - 1})
    assert (drained.status_code, drained.json()["draining_no"]) == (200, 2**53 - 1)
    await house.rooms.refresh()
    assert (await operator.http.get(f"/v1/sales/{show.sale_id}/queue")).json()["state"] == "draining"


async def test_the_room_of_no_sale_is_not_found(operator: Person) -> None:
    assert problem(await operator.get(f"/v1/admin/sales/{'0' * 32}/queue")) == (404, "not_found")


# Drops ----------------------------------------------------------------------------------------------------------------


async def test_a_drop_is_made_and_shown(operator: Person, house: House) -> None:
    body = {
        "name": "Sneakers",
        "opens_at": "2027-05-01T19:00:00+09:00",
        "closes_at": "2027-05-02T19:00:00+09:00",
        "per_buyer_max": 2,
        "hold_s": 600,
        "pay_s": 300,
        "refund_policy": [{"hours_before": 0, "percent": 50}],
    }
    made = await operator.post("/v1/admin/sales", body)
    assert made.status_code == 201, made.text
    sale_id = made.json()["sale_id"]
    shown = (await operator.get(f"/v1/sales/{sale_id}")).json()
    assert shown | {"server_time": ""} == {
        "sale_id": sale_id,
        "kind": "stock",
        "name": "Sneakers",
        "opens_at": "2027-05-01T10:00:00.000Z",
        "closes_at": "2027-05-02T10:00:00.000Z",
        "state": "upcoming",
        "server_time": "",
    }
    sale = await house.book.read(sale_id)
    assert sale is not None
    assert (sale.per_buyer_max, sale.hold_s, sale.hold_max_s, sale.pay_s, sale.room) == (2, 600, 1800, 300, "off")
    assert sale.refund_policy == ({"hours_before": 0, "percent": 50},)
    assert (sale.store_state, sale.schedule_id) == ("open", None)


async def test_a_key_makes_one_drop(operator: Person, house: House) -> None:
    answers = await asyncio.gather(*(operator.post("/v1/admin/sales", {"name": "Drop"}, key="k") for _ in range(3)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["sale_id"] for answered in answers}) == 1
    assert [answered.headers.get("idempotent-replayed") for answered in answers].count("true") == 2
    for change in ({"name": "Another"}, {"per_buyer_max": 1}):
        reused = await operator.post("/v1/admin/sales", {"name": "Drop"} | change, key="k")
        assert problem(reused) == (422, "idempotency_key_reused")
    assert await house.postgres.fetchval("SELECT count(*) FROM sales") == 1


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "Drop", "kind": "seats"}, "kind"),
        ({"name": "Drop", "per_buyer_max": 0}, "per_buyer_max"),
        ({"name": "Drop", "hold_s": 9}, "hold_s"),
        ({"name": "Drop", "opens_at": "2027-05-01T19:00:00"}, "opens_at"),
        ({"name": "Drop", "opens_at": "2027-05-01T10:00:00Z", "closes_at": "2027-05-01T10:00:00Z"}, ""),
        ({"name": "Drop", "refund_policy": [{"hours_before": 1, "percent": 101}]}, "refund_policy[0].percent"),
    ],
)
async def test_a_drop_says_what_is_wrong_with_it(
    operator: Person, house: House, body: dict[str, object], path: str
) -> None:
    refused = await operator.post("/v1/admin/sales", body)
    assert problem(refused) == (400, "invalid_request")
    assert [error["path"] for error in refused.json()["errors"]] == [path]
    assert await house.postgres.fetchval("SELECT count(*) FROM sales") == 0


async def test_a_drop_has_a_line_and_passes_the_audit(
    operator: Person, people: list[Person], house: House, worker: Worker
) -> None:
    sale_id = (await operator.post("/v1/admin/sales", {"name": "Drop"})).json()["sale_id"]
    await stock_up(operator, sale_id=sale_id)
    room = await operator.patch(f"/v1/admin/sales/{sale_id}/queue", {"state": "open", "active_max": 1})
    assert room.json()["state"] == "open"
    tokens = [(await person.post(f"/v1/sales/{sale_id}/queue/tokens")).json()["token"] for person in people]
    sale = await house.book.read(sale_id)
    assert sale is not None
    await waiting_room.admit(house.gate, sale, most=100)
    await house.rooms.refresh()
    polled = [
        (await person.get(f"/v1/sales/{sale_id}/queue/token", headers={"Queue-Token": token})).json()
        for person, token in zip(people, tokens, strict=True)
    ]
    assert [(each["queue_no"], each["status"]) for each in polled] == [(1, "ACTIVE"), (2, "WAITING"), (3, "WAITING")]
    public = (await operator.http.get(f"/v1/sales/{sale_id}/queue")).json()
    assert (public["state"], public["serving"], public["active"]) == ("open", 1, 1)
    rebuilt = await operator.post(f"/v1/admin/sales/{sale_id}/rebuild")
    assert rebuilt.json() == {"sale_id": sale_id, "epoch": 2}
    await worker.drain()
    report = (await operator.get("/v1/admin/audit")).json()
    assert (report["verdict"], report["sales"]) == ("true", 1), report
