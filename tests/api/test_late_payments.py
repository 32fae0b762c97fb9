"""Late money over the HTTP face: a buyer who finishes at their bank after the shop gave up."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from api.house import House
from engine import cards, errands
from engine.settings import Settings
from tests.api.calling import Person, Show, Worker, problem
from tests.api.test_card_payments import BACK, card, event, signed
from tests.api.test_orders import ordered, tees
from tests.api.test_payments import hold
from tests.gateways import Operator, operating, running_gateway, with_gateway


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody by itself."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(settings_of_gateway: Settings) -> AsyncIterator[Operator]:
    """Whoever operates it, and acts for buyers."""
    async with operating(settings_of_gateway) as operator:
        yield operator


@pytest.fixture
async def settings(settings: Settings, settings_of_gateway: Settings) -> Settings:
    """An installation with that gateway."""
    return with_gateway(settings, settings_of_gateway)


async def work(house: House, sale_id: str, worker: Worker) -> None:
    """What the workers do with what stands still."""
    sale = await house.book.read(sale_id)
    assert sale is not None
    assert house.cards is not None
    await house.postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
    await cards.reconcile(house.cards, house.postgres, sale)
    await worker.drain()
    await house.postgres.execute("UPDATE gateway_operations SET due_at = now() WHERE status = 'PENDING'")
    await errands.drive(house.postgres, house.cards.gateway)


async def finish_too_late(
    house: House, show: Show, worker: Worker, gateway: Operator, person: Person, *seat_nos: str
) -> tuple[str, str]:
    """Hold and pay, and say yes at the bank once all is over; answers where the payment is, and the gateway's name."""
    path = await hold(person, show, *seat_nos)
    return await finish_paying_too_late(house, show.sale_id, worker, gateway, person, path)


async def finish_paying_too_late(
    house: House, sale_id: str, worker: Worker, gateway: Operator, person: Person, path: str
) -> tuple[str, str]:
    """The same with what is held there already."""
    waiting = await person.post(f"{path}/payments", card("pm_action_late", return_url=BACK))
    assert waiting.status_code == 202
    await house.postgres.execute("UPDATE payments SET pay_deadline = now() - interval '1 minute'")
    await work(house, sale_id, worker)
    assert (await person.delete(path)).status_code == 200
    await worker.drain()
    await gateway.act(waiting.json()["action"]["url"], "approve")
    return waiting.headers["location"], await house.postgres.fetchval("SELECT gateway_ref FROM payments")


async def tell(http: httpx.AsyncClient, ref: str, event_id: str = "evt_1") -> None:
    """The gateway tells of it."""
    body = event(ref, event_id=event_id)
    told = await http.post("/v1/webhooks/stripe", content=body, headers=signed(body))
    assert told.status_code == 200, told.text


async def test_who_finishes_late_gets_the_seats_by_another_payment(
    people: list[Person],
    show: Show,
    worker: Worker,
    gateway: Operator,
    http: httpx.AsyncClient,
    house: House,
    operator: Person,
) -> None:
    location, ref = await finish_too_late(house, show, worker, gateway, people[0], "A-1-1", "A-1-2")
    assert "late" not in (await people[0].get(location)).json()
    async with worker.draining():
        await tell(http, ref)
        await tell(http, ref)
        await tell(http, ref, "evt_2")
    await work(house, show.sale_id, worker)
    await work(house, show.sale_id, worker)

    ended = (await people[0].get(location)).json()
    assert ended["status"] == "FAILED"
    late = ended["late"]
    assert late["status"] == "SOLD"
    paid = (await people[0].get(f"/v1/payments/{late['payment_id']}")).json()
    assert (paid["status"], paid["method"], paid["final_amount"]) == ("SUCCESS", "CARD", 2000)
    bought = (await people[0].get(f"/v1/reservations/{late['reservation_id']}")).json()
    assert (bought["status"], bought["payment"]["payment_id"]) == ("CONFIRMED", late["payment_id"])
    listed = (await people[0].get("/v1/payments")).json()["items"]
    assert [payment.get("late", {}).get("status") for payment in listed] == [None, "SOLD"]
    assert len((await people[0].get("/v1/tickets")).json()["items"]) == 2
    (standing,) = await gateway.ledger(ended["payment_id"])
    assert (standing["captured"], standing["refunded"]) == (2000, 0)

    (told,) = (await operator.get("/v1/admin/late-payments")).json()["items"]
    assert (told["gateway_ref"], told["payment_id"], told["amount"]) == (ref, ended["payment_id"], 2000)
    assert told["late"] == late


async def test_who_finishes_late_gets_goods_by_another_order(
    people: list[Person],
    operator: Person,
    worker: Worker,
    gateway: Operator,
    http: httpx.AsyncClient,
    house: House,
) -> None:
    [tee] = await tees(operator, 5)
    held = await ordered(people[0], (tee, 2))
    location, ref = await finish_paying_too_late(
        house, held["sale_id"], worker, gateway, people[0], f"/v1/orders/{held['order_id']}"
    )
    async with worker.draining():
        await tell(http, ref)
    await work(house, held["sale_id"], worker)
    late = (await people[0].get(location)).json()["late"]
    assert (late["status"], "reservation_id" in late) == ("SOLD", False)
    bought = (await people[0].get(f"/v1/orders/{late['order_id']}")).json()
    assert (bought["status"], bought["payment"]["payment_id"]) == ("PAID", late["payment_id"])
    assert len((await people[0].get("/v1/items")).json()["items"]) == 2


async def test_who_finishes_late_and_finds_the_seats_gone_has_the_money_back(
    people: list[Person],
    show: Show,
    worker: Worker,
    gateway: Operator,
    http: httpx.AsyncClient,
    house: House,
    operator: Person,
) -> None:
    locations = []
    for number, seat_no in enumerate(("A-1-1", "A-1-2")):
        location, _ = await finish_too_late(house, show, worker, gateway, people[0], seat_no)
        assert (await show.reserve(people[1], seat_no)).status_code == 201
        ref = await house.postgres.fetchval("SELECT gateway_ref FROM payments ORDER BY created_at DESC LIMIT 1")
        await tell(http, ref, f"evt_{number}")
        locations.append(location)
    await work(house, show.sale_id, worker)
    for location in locations:
        ended = (await people[0].get(location)).json()
        assert (ended["status"], ended["late"]) == ("FAILED", {"status": "RETURNED", "reason": "seat_taken"})
        (standing,) = await gateway.ledger(ended["payment_id"])
        assert (standing["status"], standing["authorised"], standing["captured"]) == ("canceled", 0, 0)

    first = (await operator.get("/v1/admin/late-payments?limit=1")).json()
    second = (await operator.get(f"/v1/admin/late-payments?limit=1&cursor={first['next']}")).json()
    assert [page["items"][0]["payment_id"] for page in (first, second)] == [
        location.rpartition("/")[2] for location in reversed(locations)
    ]
    assert second["next"] is None


async def test_only_an_operator_for_payments_sees_late_payments(people: list[Person]) -> None:
    assert problem(await people[0].get("/v1/admin/late-payments")) == (401, "not_signed_in")
