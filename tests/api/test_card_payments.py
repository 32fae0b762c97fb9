"""Cards over the HTTP face: payments, charges and webhooks, with a simulated gateway beside it."""

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import msgspec
import pytest

from api.house import House
from engine.settings import Settings
from tests.api.calling import Person, Show, Worker, problem
from tests.api.test_payments import hold
from tests.gateways import WEBHOOK_SECRET, Operator, operating, running_gateway, with_gateway

CARD = {"method": "CARD", "card": {"payment_method_id": "pm_card_visa"}}
BACK = "http://shop.test/back"


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


def card(method: str, **more: object) -> dict[str, object]:
    """A payment by this card."""
    return {"method": "CARD", "card": {"payment_method_id": method}, **more}


def signed(body: bytes, *, secret: str = WEBHOOK_SECRET, at: float | None = None) -> dict[str, str]:
    """The headers of a webhook."""
    moment = int(at if at is not None else time.time())
    mac = hmac.new(secret.encode(), b"%d.%s" % (moment, body), hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={moment},v1={mac}", "content-type": "application/json"}


def event(ref: str, *, event_id: str = "evt_1", type_: str = "payment_intent.amount_capturable_updated") -> bytes:
    """What a gateway tells of an intent."""
    return msgspec.json.encode(
        {"id": event_id, "type": type_, "data": {"object": {"object": "payment_intent", "id": ref}}}
    )


async def test_a_card_pays(people: list[Person], show: Show, worker: Worker) -> None:
    path = await hold(people[0], show, "A-1-1")
    async with worker.draining():
        paid = await people[0].post(f"{path}/payments", CARD, key="k")
        again = await people[0].post(f"{path}/payments", CARD, key="k")
    assert paid.status_code == 201
    document = paid.json()
    assert (document["method"], document["status"], document["final_amount"]) == ("CARD", "SUCCESS", 1000)
    assert again.json()["payment_id"] == document["payment_id"]
    assert (await people[0].get(path)).json()["status"] == "CONFIRMED"


async def test_a_decline_says_why_and_until_when_to_try_another(
    people: list[Person], show: Show, worker: Worker
) -> None:
    path = await hold(people[0], show, "A-1-1")
    declined = await people[0].post(f"{path}/payments", card("pm_card_insufficientFunds"), key="k")
    assert problem(declined) == (402, "card_declined")
    assert declined.json()["decline_code"] == "insufficient_funds"
    assert declined.json()["expires_at"] == (await people[0].get(path)).json()["expires_at"]
    # Its key always answers its row.
    repeated = await people[0].post(f"{path}/payments", card("pm_card_insufficientFunds"), key="k")
    assert repeated.json()["payment_id"] == declined.json()["payment_id"]
    async with worker.draining():
        assert (await people[0].post(f"{path}/payments", CARD)).status_code == 201


async def test_a_buyer_who_must_act_is_sent_away_and_comes_back(
    people: list[Person], show: Show, worker: Worker, gateway: Operator
) -> None:
    path = await hold(people[0], show, "A-1-1")
    waiting = await people[0].post(f"{path}/payments", card("pm_action_required", return_url=BACK))
    assert waiting.status_code == 202
    assert waiting.headers["retry-after"] == "1"
    action = waiting.json()["action"]
    assert action["type"] == "REDIRECT"
    await gateway.act(action["url"], "approve")
    async with worker.draining():
        paid = await people[0].get(waiting.headers["location"])
    assert paid.json()["status"] == "SUCCESS"
    assert "action" not in paid.json()


async def test_a_webhook_brings_a_payment_on(
    people: list[Person], show: Show, worker: Worker, gateway: Operator, http: httpx.AsyncClient, house: House
) -> None:
    path = await hold(people[0], show, "A-1-1")
    waiting = await people[0].post(f"{path}/payments", card("pm_action_required", return_url=BACK))
    await gateway.act(waiting.json()["action"]["url"], "approve")
    ref = await house.postgres.fetchval("SELECT gateway_ref FROM payments")
    body = event(ref)
    async with worker.draining():
        for _ in range(2):  # and once more, as gateways do
            told = await http.post("/v1/webhooks/stripe", content=body, headers=signed(body))
            assert told.status_code == 200
    assert (await people[0].get(path)).json()["status"] == "CONFIRMED"
    assert await house.postgres.fetchval("SELECT count(*) FROM webhook_events") == 1


async def test_a_webhook_that_comes_before_its_time_or_about_nothing_is_harmless(
    people: list[Person], show: Show, http: httpx.AsyncClient, house: House
) -> None:
    path = await hold(people[0], show, "A-1-1")
    await people[0].post(f"{path}/payments", card("pm_action_required", return_url=BACK))
    ref = await house.postgres.fetchval("SELECT gateway_ref FROM payments")
    for body in (event(ref, type_="payment_intent.succeeded"), event("pi_of_nobody", event_id="evt_2")):
        told = await http.post("/v1/webhooks/stripe", content=body, headers=signed(body))
        assert told.status_code == 200
    assert await house.postgres.fetchval("SELECT status FROM payments") == "PENDING"


async def test_a_webhook_about_what_others_sold_is_harmless(
    http: httpx.AsyncClient, gateway: Operator, house: House
) -> None:
    asked = {"amount": "500", "currency": "krw", "capture_method": "manual", "payment_method": "pm_card_visa"}
    for at, payment_id in enumerate(("order-17", "f" * 31 + "é", "F" * 32)):
        form = {**asked, "confirm": "true", "metadata[payment_id]": payment_id}
        async with gateway.session.post(f"{gateway.base}/v1/payment_intents", data=form) as made:
            body = event((await made.json())["id"], event_id=f"evt_{at}")
        told = await http.post("/v1/webhooks/stripe", content=body, headers=signed(body))
        assert told.status_code == 200, told.text
    assert await house.postgres.fetchval("SELECT count(*) FROM webhook_events") == 3


@pytest.mark.parametrize("headers", [{}, {"stripe-signature": "t=1,v1=0"}, {"stripe-signature": "é"}])
async def test_a_forged_webhook_changes_nothing(http: httpx.AsyncClient, house: House, headers: dict[str, str]) -> None:
    body = event("pi_1")
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    told = await http.post("/v1/webhooks/stripe", content=body, headers=raw)
    assert problem(told) == (400, "invalid_request")
    assert await house.postgres.fetchval("SELECT count(*) FROM webhook_events") == 0


async def test_an_old_or_foreign_signature_is_none(http: httpx.AsyncClient) -> None:
    body = event("pi_1")
    for headers in (signed(body, secret="whsec_of_another"), signed(body, at=1_000_000)):
        assert problem(await http.post("/v1/webhooks/stripe", content=body, headers=headers))[0] == 400


async def test_a_split_payment_tells_its_parts(people: list[Person], show: Show, worker: Worker) -> None:
    path = await hold(people[0], show, "A-1-1")
    body = {"method": "SPLIT", "balance_amount": 400, "card": {"payment_method_id": "pm_card_visa"}}
    async with worker.draining():
        paid = await people[0].post(f"{path}/payments", body)
    assert paid.status_code == 201
    assert paid.json()["parts"] == {"balance": 400, "card": 600}
    assert (await people[0].get("/v1/balance")).json()["amount"] == 99_600


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"method": "CARD"}, "card"),
        ({"method": "BALANCE", "card": {"payment_method_id": "pm_card_visa"}}, "card"),
        ({"method": "CARD", "card": {"payment_method_id": "4242424242424242"}}, "card.payment_method_id"),
        ({"method": "CARD", "card": {"number": "4242424242424242"}}, "card.number"),
        ({**CARD, "balance_amount": 1}, "balance_amount"),
        ({**CARD, "method": "SPLIT"}, "balance_amount"),
        ({**CARD, "method": "SPLIT", "balance_amount": 0}, "balance_amount"),
        ({**CARD, "return_url": "javascript:alert(1)"}, "return_url"),
        ({"method": "CASH"}, "method"),
    ],
)
async def test_a_payment_that_makes_no_sense_is_refused(
    people: list[Person], show: Show, body: object, path: str
) -> None:
    held = await hold(people[0], show, "A-1-1")
    answered = await people[0].post(f"{held}/payments", body)
    assert problem(answered) == (400, "invalid_request")
    assert answered.json()["errors"][0]["path"] == path


async def test_the_same_key_with_another_card_is_refused(people: list[Person], show: Show, worker: Worker) -> None:
    path = await hold(people[0], show, "A-1-1")
    async with worker.draining():
        await people[0].post(f"{path}/payments", CARD, key="k")
        other = await people[0].post(f"{path}/payments", card("pm_card_mastercard"), key="k")
    assert problem(other) == (422, "idempotency_key_reused")


# Charges --------------------------------------------------------------------------------------------------------------


async def test_a_balance_is_charged_by_card_once(people: list[Person], gateway: Operator) -> None:
    body = {"amount": 5000, "card": {"payment_method_id": "pm_card_visa"}}
    charged = await people[0].post("/v1/balance/charges", body, key="k")
    assert charged.status_code == 201
    assert (charged.json()["status"], charged.json()["balance_after"]) == ("SUCCESS", 105_000)
    again = await people[0].post("/v1/balance/charges", body, key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert (await people[0].get("/v1/balance")).json()["amount"] == 105_000
    (standing,) = await gateway.ledger(charged.json()["charge_id"])
    assert standing["captured"] == 5000
    (item,) = [i for i in (await people[0].get("/v1/balance/history")).json()["items"] if i["reason"] == "card"]
    assert (item["type"], item["amount"]) == ("CHARGE", 5000)


async def test_one_key_charges_once_by_card_or_without(people: list[Person], gateway: Operator) -> None:
    ada, path = people[0], "/v1/balance/charges"
    visa = {"amount": 500, "card": {"payment_method_id": "pm_card_visa"}}
    assert (await ada.post(path, {"amount": 500}, key="without")).status_code == 201
    assert problem(await ada.post(path, visa, key="without")) == (422, "idempotency_key_reused")
    waits = {"amount": 500, "card": {"payment_method_id": "pm_action_required"}, "return_url": BACK}
    waiting = await ada.post(path, waits, key="by-card")
    assert waiting.status_code == 202
    assert problem(await ada.post(path, {"amount": 500}, key="by-card")) == (422, "idempotency_key_reused")
    await gateway.act(waiting.json()["action"]["url"], "approve")
    assert (await ada.get(waiting.headers["location"])).json()["status"] == "SUCCESS"
    assert (await ada.get("/v1/balance")).json()["amount"] == 101_000


async def test_a_charge_whose_key_remembers_a_fault_is_looked_up(people: list[Person], gateway: Operator) -> None:
    await gateway.switch("error_kept", operation="capture")
    body = {"amount": 5000, "card": {"payment_method_id": "pm_card_visa"}}
    charged = await people[0].post("/v1/balance/charges", body)
    assert (charged.status_code, charged.json()["status"]) == (201, "SUCCESS")
    assert (await people[0].get("/v1/balance")).json()["amount"] == 105_000


async def test_a_declined_charge_adds_nothing(people: list[Person]) -> None:
    body = {"amount": 5000, "card": {"payment_method_id": "pm_card_chargeDeclined"}}
    assert problem(await people[0].post("/v1/balance/charges", body)) == (402, "card_declined")
    assert (await people[0].get("/v1/balance")).json()["amount"] == 100_000


async def test_a_charge_waits_for_its_buyer(people: list[Person], gateway: Operator) -> None:
    body = {"amount": 5000, "card": {"payment_method_id": "pm_action_required"}, "return_url": BACK}
    waiting = await people[0].post("/v1/balance/charges", body)
    assert waiting.status_code == 202
    assert (await people[0].get("/v1/balance")).json()["amount"] == 100_000
    await gateway.act(waiting.json()["action"]["url"], "approve")
    assert (await people[0].get(waiting.headers["location"])).json()["status"] == "SUCCESS"
    assert problem(await people[1].get(waiting.headers["location"])) == (404, "not_found")
    assert (await people[0].get("/v1/balance")).json()["amount"] == 105_000


async def test_with_a_real_gateway_money_comes_from_a_card_alone(house: House, people: list[Person]) -> None:
    house.settings = msgspec.structs.replace(house.settings, stripe_api_key="rk_of_a_real_gateway")
    refused = await people[0].post("/v1/balance/charges", {"amount": 5000})
    assert problem(refused) == (400, "invalid_request")
    assert refused.json()["errors"][0]["path"] == "card"
