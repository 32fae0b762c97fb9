"""An operator decides a payment in doubt: a fact that could not be applied, or a gateway that did not answer."""

import pytest

from api.house import House
from engine.stores.keys import SaleKeys
from tests.api.calling import Person, Show, Worker, problem
from tests.api.test_card_payments import card, gateway, settings, settings_of_gateway
from tests.api.test_payments import BALANCE, hold
from tests.gateways import Operator

__all__ = ["gateway", "settings", "settings_of_gateway"]

GOOD, BAD = {"as": "AUTHORISED", "note": "seen on the bank's statement"}, {"as": "FAILED", "note": "nothing there"}


async def dead_lettered(person: Person, show: Show, worker: Worker, house: House) -> tuple[str, str]:
    """A payment whose fact Postgres refused to apply; returns its reservation's path and its id."""
    path = await hold(person, show, "A-1-1")
    await house.postgres.execute("ALTER TABLE tickets ADD CONSTRAINT none_today CHECK (seat_no <> 'A-1-1') NOT VALID")
    house.till._answer_within_s = 0.05
    paying = await person.post(f"{path}/payments", BALANCE)
    await worker.drain()
    return path, paying.json()["payment_id"]


@pytest.mark.parametrize(("body", "status", "balance"), [(GOOD, "SUCCESS", 99_000), (BAD, "FAILED", 100_000)])
async def test_a_fact_that_could_not_be_applied_is_decided_once(
    people: list[Person],
    operator: Person,
    show: Show,
    worker: Worker,
    house: House,
    body: object,
    status: str,
    balance: int,
) -> None:
    path, payment_id = await dead_lettered(people[0], show, worker, house)
    (listed,) = (await operator.get("/v1/admin/payments?state=IN_DOUBT")).json()["items"]
    assert (listed["payment_id"], listed["status"]) == (payment_id, "PENDING")
    address = f"/v1/admin/payments/{payment_id}/resolution"
    if body is GOOD:
        assert problem(await operator.post(address, GOOD)) == (409, "still_in_doubt")
    await house.postgres.execute("ALTER TABLE tickets DROP CONSTRAINT none_today")
    resolved = await operator.post(address, body, key="k")
    assert (resolved.status_code, resolved.json()["status"]) == (200, status)
    again = await operator.post(address, body, key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert problem(await operator.post(address, body, key="another")) == (409, "not_in_doubt")
    assert (await people[0].get("/v1/balance")).json()["amount"] == balance
    assert (await people[0].get(path)).json()["status"] == ("CONFIRMED" if body is GOOD else "CANCELLED")
    kept = await house.postgres.fetchrow("SELECT note FROM payment_resolutions WHERE payment_id = $1", payment_id)
    assert kept is not None
    assert kept["note"] in {GOOD["note"], BAD["note"]}


async def test_a_silent_gateway_is_asked_again_or_given_up(
    people: list[Person],
    operator: Person,
    show: Show,
    house: House,
    gateway: Operator,
) -> None:
    path = await hold(people[0], show, "A-1-1")
    await gateway.switch("error_kept", operation="authorise")
    waiting = await people[0].post(f"{path}/payments", card("pm_card_visa"))
    assert waiting.status_code == 202
    payment_id = waiting.json()["payment_id"]
    await gateway.switch("stale", operation="search", times=5)
    address = f"/v1/admin/payments/{payment_id}/resolution"
    assert problem(await operator.post(address, GOOD)) == (409, "still_in_doubt")
    resolved = await operator.post(address, BAD)
    assert resolved.json()["status"] == "FAILED"
    assert (await people[0].get(path)).json()["status"] == "PENDING"
    errands = await house.postgres.fetch("SELECT kind FROM gateway_operations WHERE payment_id = $1", payment_id)
    assert [errand["kind"] for errand in errands] == ["VOID"]


async def test_a_payment_is_not_given_up_while_its_sale_is_rebuilt(
    people: list[Person], operator: Person, show: Show, house: House, gateway: Operator
) -> None:
    path = await hold(people[0], show, "A-1-1")
    await gateway.switch("error_kept", operation="authorise")
    payment_id = (await people[0].post(f"{path}/payments", card("pm_card_visa"))).json()["payment_id"]
    address, sale = f"/v1/admin/payments/{payment_id}/resolution", SaleKeys(show.sale_id).sale
    await house.stores.redis.execute_command("HSET", sale, "state", "rebuilding")
    assert problem(await operator.post(address, BAD, key="k")) == (503, "busy")
    assert await house.postgres.fetchval("SELECT status FROM payments") == "IN_DOUBT"
    await house.stores.redis.execute_command("HSET", sale, "state", "open")
    assert (await operator.post(address, BAD, key="k")).json()["status"] == "FAILED"


async def test_a_payment_that_nobody_doubts_or_knows_is_not_resolved(
    people: list[Person], operator: Person, show: Show, worker: Worker
) -> None:
    path = await hold(people[0], show, "A-1-1")
    async with worker.draining():
        paid = (await people[0].post(f"{path}/payments", BALANCE)).json()
    refused = await operator.post(f"/v1/admin/payments/{paid['payment_id']}/resolution", BAD)
    assert problem(refused) == (409, "not_in_doubt")
    assert refused.json()["state"] == "SUCCESS"
    assert problem(await operator.post(f"/v1/admin/payments/{'0' * 32}/resolution", BAD)) == (404, "not_found")
    assert problem(await people[0].post(f"/v1/admin/payments/{'0' * 32}/resolution", BAD))[0] in {401, 403}
