"""What was bought is given back over HTTP: quoted first, once, and only by those who may."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.house import House
from engine import seat_cancellations
from tests.api.calling import Person, Show, Worker, problem, put_on

HALF = {"refund_policy": [{"hours_before": 24, "percent": 50}]}


async def buy(person: Person, show: Show, worker: Worker, *seat_nos: str) -> dict[str, Any]:
    """Hold and pay seats; answers the confirmed reservation."""
    held = await show.reserve(person, *seat_nos)
    assert held.status_code == 201, held.text
    path = f"/v1/reservations/{held.json()['reservation_id']}"
    async with worker.draining():
        paid = await person.post(f"{path}/payments", {"method": "BALANCE"})
    assert paid.status_code == 201, paid.text
    found: dict[str, Any] = (await person.get(path)).json()
    assert found["status"] == "CONFIRMED"
    return found | {"path": path}


async def balance(person: Person) -> int:
    amount: int = (await person.get("/v1/balance")).json()["amount"]
    return amount


async def begin(house: House) -> None:
    """Let the event have begun."""
    await house.postgres.execute("UPDATE schedules SET start_at = now() - interval '1 hour'")


# Quote and cancel -----------------------------------------------------------------------------------------------------


async def test_a_quote_and_then_a_part(operator: Person, people: list[Person], worker: Worker) -> None:
    show, (ann, ben, _) = await put_on(operator, **HALF), people
    bought = await buy(ann, show, worker, "A-1-1", "A-1-2", "A-1-3")
    quoted = await ann.get(f"{bought['path']}/cancellations/quote?seats=A-1-1,A-1-3")
    assert quoted.status_code == 200, quoted.text
    told = quoted.json()
    assert told.pop("server_time")
    assert told == {
        "seats": ["A-1-1", "A-1-3"],
        "amount": 1000,
        "kept": 1000,
        "percent": 50,
        "policy_hours": 24,
        "currency": "KRW",
    }
    whole = (await ann.get(f"{bought['path']}/cancellations/quote")).json()
    assert (whole["seats"], whole["amount"]) == (["A-1-1", "A-1-2", "A-1-3"], 1500)

    cancelled = await ann.post(f"{bought['path']}/cancellations", {"seats": ["A-1-1", "A-1-3"]}, key="k")
    assert cancelled.status_code == 201, cancelled.text
    made = cancelled.json()
    assert (made["seats"], made["amount"], made["kept"], made["reason"]) == (["A-1-1", "A-1-3"], 1000, 1000, "USER")
    assert made["refunds"] == [made["refund"]]
    assert (made["refund"]["to"], made["refund"]["status"], made["refund"]["amount"]) == ("BALANCE", "DONE", 1000)
    assert await balance(ann) == 100_000 - 3000 + 1000
    assert (await ann.get("/v1/balance/history")).json()["items"][0]["type"] == "REFUND"

    found = (await ann.get(bought["path"])).json()
    assert found["status"] == "CONFIRMED"
    assert {seat["seat_no"]: seat["status"] for seat in found["seats"]} == {
        "A-1-1": "RELEASED",
        "A-1-2": "SOLD",
        "A-1-3": "RELEASED",
    }
    payment = (await ann.get(f"/v1/payments/{found['payment']['payment_id']}")).json()
    assert (payment["status"], payment["refunded_amount"]) == ("PARTIALLY_REFUNDED", 1000)
    tickets = (await ann.get("/v1/tickets")).json()["items"]
    assert sorted(ticket["status"] for ticket in tickets) == ["CANCELLED", "CANCELLED", "VALID"]
    assert (await show.reserve(ben, "A-1-1", "A-1-3")).status_code == 201

    again = await ann.post(f"{bought['path']}/cancellations", {"seats": ["A-1-1", "A-1-3"]}, key="k")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert again.json() == made
    other = await ann.post(f"{bought['path']}/cancellations", {"seats": ["A-1-2"]}, key="k")
    assert problem(other) == (422, "idempotency_key_reused")
    refund_id = made["refund"]["refund_id"]
    assert (await ann.get(f"/v1/refunds/{refund_id}")).json() == made["refund"]
    assert problem(await ben.get(f"/v1/refunds/{refund_id}")) == (404, "not_found")
    assert (await ann.get("/v1/refunds")).json() == {"items": [made["refund"]], "next": None}
    assert (await ben.get("/v1/refunds")).json()["items"] == []


async def test_refunds_come_in_pages(people: list[Person], show: Show, worker: Worker) -> None:
    bought = await buy(people[0], show, worker, "A-1-1", "A-1-2", "A-1-3")
    for at in (1, 2, 3):
        await people[0].post(f"{bought['path']}/cancellations", {"seats": [f"A-1-{at}"]})
    first = (await people[0].get("/v1/refunds?limit=2")).json()
    second = (await people[0].get(f"/v1/refunds?limit=2&cursor={first['next']}")).json()
    assert (len(first["items"]), len(second["items"]), second["next"]) == (2, 1, None)
    assert len({item["refund_id"] for item in first["items"] + second["items"]}) == 3


async def test_deleting_a_reservation_that_is_confirmed_cancels_it(
    people: list[Person], show: Show, worker: Worker
) -> None:
    ann = people[0]
    bought = await buy(ann, show, worker, "A-1-1", "A-1-2")
    await ann.post(f"{bought['path']}/cancellations", {"seats": ["A-1-1"]})
    for _ in range(2):
        deleted = await ann.delete(bought["path"])
        assert deleted.status_code == 200, deleted.text
        assert (deleted.json()["status"], deleted.json()["reason"]) == ("CANCELLED", "USER")
        assert await balance(ann) == 100_000
    refused = await ann.post(f"{bought['path']}/cancellations")
    assert problem(refused) == (409, "cancellation_closed")
    assert refused.json()["reason"] == "ENDED"


async def test_deleting_by_the_policy(operator: Person, people: list[Person], worker: Worker) -> None:
    show = await put_on(operator, **HALF)
    bought = await buy(people[0], show, worker, "A-1-1")
    assert (await people[0].delete(bought["path"])).status_code == 200
    assert await balance(people[0]) == 100_000 - 500


async def test_after_the_start_nothing_is_given_back(
    house: House, people: list[Person], show: Show, worker: Worker
) -> None:
    ann = people[0]
    bought = await buy(ann, show, worker, "A-1-1")
    await begin(house)
    for refused in (
        await ann.post(f"{bought['path']}/cancellations"),
        await ann.get(f"{bought['path']}/cancellations/quote"),
        await ann.delete(bought["path"]),
    ):
        assert problem(refused) == (409, "cancellation_closed")
        assert (refused.json()["reason"], refused.json()["seat_nos"]) == ("STARTED", [])
    assert (await ann.get(bought["path"])).json()["status"] == "CONFIRMED"


async def test_a_payment_that_runs_and_a_hold_that_nobody_paid(
    people: list[Person], show: Show, worker: Worker, house: House
) -> None:
    ann = people[0]
    held = (await show.reserve(ann, "A-1-1")).json()
    path = f"/v1/reservations/{held['reservation_id']}"
    refused = await ann.post(f"{path}/cancellations", key="k")
    assert problem(refused) == (409, "cancellation_closed")
    assert refused.json()["reason"] == "UNPAID"
    house.till._answer_within_s = 0.05
    paying = await ann.post(f"{path}/payments", {"method": "BALANCE"})
    assert paying.status_code == 202
    for refused in (
        await ann.post(f"{path}/cancellations", key="k"),
        await ann.get(f"{path}/cancellations/quote"),
        await ann.delete(path),
    ):
        assert problem(refused) == (409, "payment_running")
        assert refused.json()["payment_id"] == paying.json()["payment_id"]
    await worker.drain()
    # A refusal changed nothing: the same key may ask again.
    assert (await ann.post(f"{path}/cancellations", key="k")).status_code == 201


async def test_what_is_not_mine_is_not_there(people: list[Person], show: Show, worker: Worker) -> None:
    ann, ben, _ = people
    bought = await buy(ann, show, worker, "A-1-1")
    for path in (bought["path"], f"/v1/reservations/{'0' * 32}", "/v1/reservations/nonsense"):
        assert problem(await ben.post(f"{path}/cancellations")) == (404, "not_found")
        assert problem(await ben.get(f"{path}/cancellations/quote")) == (404, "not_found")
    assert problem(await ben.delete(bought["path"])) == (404, "not_found")
    assert problem(await ben.get(f"/v1/refunds/{'0' * 32}")) == (404, "not_found")
    assert (await ann.get(bought["path"])).json()["status"] == "CONFIRMED"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"seats": []}, "seats"),
        ({"seats": ["A-1-1"] * 21}, "seats"),
        ({"seats": ["A,1"]}, "seats[0]"),
        ({"seats": "A-1-1"}, "seats"),
        ({"refund_to": "CARD"}, "refund_to"),
        ({"amount": 5}, "amount"),
    ],
)
async def test_a_wish_says_what_is_wrong_with_it(
    people: list[Person], show: Show, worker: Worker, body: object, path: str
) -> None:
    bought = await buy(people[0], show, worker, "A-1-1")
    answered = await people[0].post(f"{bought['path']}/cancellations", body)
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == [path]


@pytest.mark.parametrize("seats", ["A-1-1,,A-1-2", "x", ",".join(["A-1-1"] * 21), "A" * 500])
async def test_a_quote_says_what_is_wrong_with_it(people: list[Person], show: Show, seats: str) -> None:
    held = (await show.reserve(people[0], "A-1-1")).json()
    answered = await people[0].get(f"/v1/reservations/{held['reservation_id']}/cancellations/quote?seats={seats}")
    assert problem(answered) == (400, "invalid_request")
    assert [error["path"] for error in answered.json()["errors"]] == ["seats"]


async def test_seats_that_are_not_of_the_reservation_are_named(
    people: list[Person], show: Show, worker: Worker
) -> None:
    bought = await buy(people[0], show, worker, "A-1-1")
    refused = await people[0].post(f"{bought['path']}/cancellations", {"seats": ["A-1-1", "A-2-2"]})
    assert problem(refused) == (404, "seat_unknown")
    assert refused.json()["seat_nos"] == ["A-2-2"]


# Operators ------------------------------------------------------------------------------------------------------------


async def test_an_operator_cancels_for_somebody_in_full(
    house: House, operator: Person, people: list[Person], worker: Worker
) -> None:
    show = await put_on(operator, **HALF)
    bought = await buy(people[0], show, worker, "A-1-1", "A-1-2")
    await begin(house)
    path = f"/v1/admin{bought['path'].removeprefix('/v1')}/cancellations"
    assert problem(await people[0].post(path)) == (401, "not_signed_in")
    for repeated in (None, "true"):
        cancelled = await operator.post(path, {"seats": ["A-1-2"]}, key="k")
        assert (cancelled.status_code, cancelled.headers.get("idempotent-replayed")) == (201, repeated)
        assert (cancelled.json()["reason"], cancelled.json()["amount"]) == ("ADMIN", 1000)
    assert await balance(people[0]) == 100_000 - 1000


async def test_an_event_is_called_off(house: House, operator: Person, people: list[Person], worker: Worker) -> None:
    show = await put_on(operator, start_at=(datetime.now(UTC) - timedelta(hours=1)).isoformat(), **HALF)
    ann, ben, cat = people
    path = f"/v1/admin/schedules/{show.schedule_id}/cancellation"
    assert problem(await operator.get(path)) == (404, "not_found")
    await buy(ann, show, worker, "A-1-1", "A-1-2")
    await buy(ben, show, worker, "A-1-3")
    held = (await show.reserve(ben, "A-1-4")).json()
    await worker.drain()
    assert problem(await ann.post(path)) == (401, "not_signed_in")

    called_off = await operator.post(path)
    assert called_off.status_code == 202, called_off.text
    assert called_off.headers["location"] == path
    assert (called_off.json()["total"], called_off.json()["done"]) == (3, 0)
    assert "idempotent-replayed" not in called_off.headers
    assert (await operator.post(path)).headers["idempotent-replayed"] == "true"
    assert problem(await show.reserve(cat, "A-1-5")) == (409, "sale_closed")
    assert (await house.book.read(show.sale_id)).room == "closed"  # type: ignore[union-attr]
    # Nobody puts it on sale again.
    schedule = f"/v1/admin/schedules/{show.schedule_id}"
    version = (await operator.get(schedule)).json()["version"]
    reopened = await operator.patch(schedule, {"closes_at": "2031-01-01T00:00:00Z"}, version=version)
    assert problem(reopened) == (409, "sale_closed")
    room = await operator.patch(f"/v1/admin/sales/{show.sale_id}/queue", {"state": "open"})
    assert problem(room) == (409, "sale_closed")
    assert problem(await show.reserve(cat, "A-1-5")) == (409, "sale_closed")

    assert await seat_cancellations.go_on(house.stores, house.book)
    await worker.drain()
    assert not await seat_cancellations.go_on(house.stores, house.book)
    told = (await operator.get(path)).json()
    assert (told["total"], told["done"]) == (3, 3)
    assert told["finished_at"] >= told["created_at"]
    assert [await balance(person) for person in people] == [100_000] * 3
    ended = (await ben.get(f"/v1/reservations/{held['reservation_id']}")).json()
    assert (ended["status"], ended["reason"]) == ("CANCELLED", "EVENT_CANCELLED")
    refunds = (await ann.get("/v1/refunds")).json()["items"]
    assert [(refund["amount"], refund["reason"]) for refund in refunds] == [(2000, "EVENT_CANCELLED")]


async def test_an_event_that_nobody_knows_is_not_called_off(operator: Person) -> None:
    path = f"/v1/admin/schedules/{'0' * 32}/cancellation"
    assert problem(await operator.post(path)) == (404, "not_found")
    assert problem(await operator.get(path)) == (404, "not_found")
