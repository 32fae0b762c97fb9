"""The audit over the HTTP face."""

import api.audit
from api.house import House
from engine import accounts
from engine.stores.keys import SaleKeys
from tests.api.calling import Person, Show, Worker, problem
from tests.api.test_payments import BALANCE, hold


async def test_an_operator_has_every_invariant_proved(
    people: list[Person], operator: Person, show: Show, worker: Worker
) -> None:
    path = await hold(people[0], show, "A-1-1")
    async with worker.draining():
        await people[0].post(f"{path}/payments", BALANCE)
    await worker.drain()
    audited = await operator.get("/v1/admin/audit")
    assert audited.status_code == 200
    report = audited.json()
    assert (report["verdict"], report["sales"]) == ("true", 1)
    assert [check["invariant"] for check in report["checks"]] == ["I1", "I3", "I4", "I5", "I6", "I7", "I9", "I13"]


async def test_what_is_wrong_is_named(operator: Person, show: Show, house: House) -> None:
    await house.postgres.execute("UPDATE schedules SET seats_available = 1")
    report = (await operator.get("/v1/admin/audit")).json()
    assert report["verdict"] == "false"
    (wrong,) = [check for check in report["checks"] if check["verdict"] == "false"]
    assert wrong["invariant"] == "I1"
    assert show.schedule_id in wrong["findings"][0]
    assert report["to_rebuild"] == []


async def test_a_copy_that_lies_is_named(operator: Person, show: Show, house: House) -> None:
    await house.stores.redis.execute_command("HSET", SaleKeys(show.sale_id).seats, "A-1-1", f"SOLD {'a' * 32} 1")
    report = (await operator.get("/v1/admin/audit")).json()
    assert (report["verdict"], report["to_rebuild"]) == ("false", [show.sale_id])


async def test_it_is_for_operators_whose_key_says_so(people: list[Person], operator: Person, house: House) -> None:
    assert problem(await people[0].get("/v1/admin/audit")) == (401, "not_signed_in")
    for scope, status in ((accounts.AUDIT, 200), (accounts.SALES, 403)):
        key = await accounts.add_api_key(house.postgres, name=scope, scopes=[scope])
        assert (await Person(operator.http, "", key).get("/v1/admin/audit")).status_code == status


async def test_one_process_audits_once_at_a_time(operator: Person) -> None:
    async with api.audit._auditing:
        assert problem(await operator.get("/v1/admin/audit")) == (503, "busy")
    assert (await operator.get("/v1/admin/audit")).json()["verdict"] == "true"
