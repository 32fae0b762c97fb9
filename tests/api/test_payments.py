"""A payment is answered by its row: SUCCESS once it is durable, and a key answers it for good."""

import asyncio

import pytest

from api.house import House
from tests.api.calling import Person, Show, Worker, problem

BALANCE = {"method": "BALANCE"}


async def hold(person: Person, show: Show, *seats: str) -> str:
    held = await show.reserve(person, *seats)
    assert held.status_code == 201, held.text
    return f"/v1/reservations/{held.json()['reservation_id']}"


async def test_a_paid_reservation_is_confirmed_and_has_its_tickets(
    people: list[Person], show: Show, worker: Worker
) -> None:
    path = await hold(people[0], show, "A-1-1", "A-1-2")
    async with worker.draining():
        paid = await people[0].post(f"{path}/payments", BALANCE, key="k")
    assert paid.status_code == 201, paid.text
    payment = paid.json()
    assert (payment["status"], payment["final_amount"], payment["currency"]) == ("SUCCESS", 2000, "KRW")
    assert payment["user_id"] == people[0].user_id
    reservation = (await people[0].get(path)).json()
    assert (reservation["status"], reservation["payment"]) == ("CONFIRMED", {"payment_id": payment["payment_id"]})
    tickets = (await people[0].get("/v1/tickets")).json()["items"]
    assert {ticket["ticket_no"] for ticket in tickets} == {seat["ticket_no"] for seat in reservation["seats"]}
    assert {(ticket["seat_no"], ticket["status"]) for ticket in tickets} == {("A-1-1", "VALID"), ("A-1-2", "VALID")}
    assert len({ticket["code"] for ticket in tickets}) == 2
    assert (await people[1].get("/v1/tickets")).json()["items"] == []
    balance = (await people[0].get("/v1/balance")).json()
    assert (balance["amount"], balance["set_aside"]) == (98_000, 0)
    used = (await people[0].get("/v1/balance/history")).json()["items"][0]
    assert (used["type"], used["amount"], used["payment_id"]) == ("USE", 2000, payment["payment_id"])
    drawn = (await people[0].get(f"/v1/schedules/{show.schedule_id}/seats?since=0")).json()
    assert sum(seat["status"] == "SOLD" for seat in drawn["seats"]) in {0, 2}  # the map is up to two seconds old
    schedule = (await people[0].get(f"/v1/schedules/{show.schedule_id}")).json()
    assert schedule["seats_available"] == 8


async def test_a_payment_that_is_not_durable_yet_says_where_to_ask(
    people: list[Person], show: Show, worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.till, "_answer_within_s", 0.05)
    path = await hold(people[0], show, "A-1-1")
    pending = await people[0].post(f"{path}/payments", BALANCE, key="k")
    assert pending.status_code == 202
    assert pending.json()["status"] == "PENDING"
    assert int(pending.headers["retry-after"]) >= 1
    assert (await people[0].get(path)).json()["status"] == "PENDING"
    assert problem(await people[0].delete(path)) == (409, "payment_running")
    await worker.drain()
    settled = await people[0].get(pending.headers["location"])
    assert (settled.json()["payment_id"], settled.json()["status"]) == (pending.json()["payment_id"], "SUCCESS")
    assert problem(await people[1].get(pending.headers["location"])) == (404, "not_found")
    again = await people[0].post(f"{path}/payments", BALANCE, key="k")
    assert (again.status_code, again.json()["payment_id"]) == (201, pending.json()["payment_id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in pending.headers


async def test_fifty_identical_payments_at_once_take_the_money_once(
    people: list[Person], show: Show, worker: Worker
) -> None:
    path = await hold(people[0], show, "A-1-1")
    async with worker.draining():
        answers = await asyncio.gather(*(people[0].post(f"{path}/payments", BALANCE, key="k") for _ in range(50)))
    assert {answered.status_code for answered in answers} == {201}
    assert len({answered.json()["payment_id"] for answered in answers}) == 1
    assert (await people[0].get("/v1/balance")).json()["amount"] == 99_000


async def test_a_poor_buyer_is_told_what_is_missing_and_may_pay_again(
    operator: Person, show: Show, worker: Worker
) -> None:
    made = await operator.post("/v1/admin/accounts", {"count": 1, "balance": 1})
    poor = Person(operator.http, made.json()["items"][0]["user_id"], made.json()["items"][0]["access_token"])
    path = await hold(poor, show, "A-1-1")
    for _ in range(2):
        refused = await poor.post(f"{path}/payments", BALANCE, key="k")
        assert problem(refused) == (402, "insufficient_balance")
        assert (refused.json()["needed"], refused.json()["available"]) == (1000, 1)
    await poor.post("/v1/balance/charges", {"amount": 999})
    assert problem(await poor.post(f"{path}/payments", BALANCE, key="k")) == (402, "insufficient_balance")
    async with worker.draining():
        assert (await poor.post(f"{path}/payments", BALANCE, key="another")).status_code == 201
    failed = (await poor.get("/v1/payments")).json()["items"][-1]
    assert (failed["status"], failed["reason"]) == ("FAILED", "insufficient_balance")


async def test_only_one_payment_of_a_reservation_runs(
    people: list[Person], show: Show, worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.till, "_answer_within_s", 0.05)
    path = await hold(people[0], show, "A-1-1")
    first = (await people[0].post(f"{path}/payments", BALANCE, key="k1")).json()
    second = await people[0].post(f"{path}/payments", BALANCE, key="k2")
    assert problem(second)[1] in {"payment_running", "hold_ended"}
    await worker.drain()
    bought = await people[0].post(f"{path}/payments", BALANCE, key="k3")
    assert problem(bought) == (409, "hold_ended")
    assert bought.json()["reason"] == "SOLD"
    assert (await people[0].get(f"/v1/payments/{first['payment_id']}")).json()["status"] == "SUCCESS"


@pytest.mark.parametrize(
    "body", [{"method": "CARD", "card": {"payment_method_id": "pm_card_visa"}}, {"method": "CASH"}, {"method": 1}, {}]
)
async def test_without_a_gateway_there_is_no_other_method(people: list[Person], show: Show, body: object) -> None:
    path = await hold(people[0], show, "A-1-1")
    answered = await people[0].post(f"{path}/payments", body)
    assert problem(answered) == (400, "invalid_request")
    assert answered.json()["errors"][0]["path"] == "method"


async def test_a_repeat_with_another_reservation_is_another_payment(
    people: list[Person], show: Show, worker: Worker
) -> None:
    first, second = [await hold(people[0], show, seat) for seat in ("A-1-1", "A-1-2")]
    async with worker.draining():
        paid = [await people[0].post(f"{path}/payments", BALANCE, key="k") for path in (first, second)]
    assert [answered.status_code for answered in paid] == [201, 201]
    assert paid[0].json()["payment_id"] != paid[1].json()["payment_id"]


async def test_payments_are_listed_newest_first(
    people: list[Person], operator: Person, show: Show, worker: Worker
) -> None:
    paths = [await hold(people[0], show, seat) for seat in ("A-1-1", "A-1-2", "A-1-3")]
    async with worker.draining():
        paid = [(await people[0].post(f"{path}/payments", BALANCE)).json()["payment_id"] for path in paths]
    first = (await people[0].get("/v1/payments?limit=2")).json()
    second = (await people[0].get(f"/v1/payments?limit=2&cursor={first['next']}")).json()
    assert [item["payment_id"] for item in first["items"] + second["items"]] == paid[::-1]
    assert (await people[1].get("/v1/payments")).json()["items"] == []
    listed = (await operator.get("/v1/admin/payments?state=SUCCESS&limit=1")).json()
    assert [(item["payment_id"], item["state"]) for item in listed["items"]] == [(paid[-1], "SUCCESS")]
    assert (await operator.get("/v1/admin/payments")).json() == {"items": [], "next": None}
    assert problem(await operator.get("/v1/admin/payments?state=LOST")) == (400, "invalid_request")
