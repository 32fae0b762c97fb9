"""The line over HTTP: a place that is one's own, told honestly, and nobody else's."""

import asyncio
import secrets

import httpx
import jwt
import pytest

from api.house import House
from engine import waiting_room
from engine.tokens import QueueToken, QueueTokens
from tests.api.calling import Person, Show, Worker, problem, raw
from tests.workers.working import until


class Visitor:
    """Somebody without an account, known by a secret."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.headers = {"Visitor-Secret": secrets.token_urlsafe(16)}


async def join(person: Person | Visitor, show: Show) -> httpx.Response:
    headers = person.headers | {"Idempotency-Key": "join"}
    return await person.http.post(f"/v1/sales/{show.sale_id}/queue/tokens", headers=headers, json={})


async def poll(
    person: Person | Visitor, show: Show, token: str, headers: dict[str, str] | None = None
) -> httpx.Response:
    sent = person.headers | {"Queue-Token": token} | (headers or {})
    return await person.http.get(f"/v1/sales/{show.sale_id}/queue/token", headers=sent)


async def admit(house: House, show: Show, most: int = 100) -> None:
    """What the worker does at every tick, and what the processes then see."""
    sale = await house.book.read(show.sale_id)
    assert sale is not None
    admitted = await waiting_room.admit(house.gate, sale, most=most)
    assert isinstance(admitted, waiting_room.Admitted)
    await house.rooms.refresh()


async def see(house: House) -> None:
    """Refresh what this process knows of the sales and their rooms."""
    await house.book.refresh()
    await house.rooms.refresh()


async def lose(operator: Person, show: Show, house: House) -> None:
    """Lose the store, and have the sale written anew."""
    await house.stores.redis.flushall()
    await house.postgres.execute("UPDATE stream_owners SET until = now()")
    rebuilt = await operator.post(f"/v1/admin/sales/{show.sale_id}/rebuild")
    assert rebuilt.status_code == 200, rebuilt.text


async def test_a_room_that_is_off_lets_everybody_in(people: list[Person], show: Show) -> None:
    joined = await join(people[0], show)
    assert joined.status_code == 201, joined.text
    assert (joined.json()["status"], joined.json()["queue_no"], joined.json()["ahead"]) == ("ACTIVE", 0, 0)
    assert (await show.reserve(people[0], "A-1-1", token=joined.json()["token"])).status_code == 201
    assert (await show.reserve(people[0], "A-1-2")).status_code == 201
    await show.set_room(state="open")
    assert problem(await poll(people[0], show, joined.json()["token"])) == (403, "not_admitted")
    assert problem(await show.reserve(people[0], "A-1-3", token=joined.json()["token"])) == (403, "not_admitted")


async def test_a_line_is_joined_waited_in_and_entered(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="open", active_max=1)
    joined = [(await join(person, show)).json() for person in people]
    assert [place["queue_no"] for place in joined] == [1, 2, 3]
    assert [place["status"] for place in joined] == ["WAITING"] * 3
    refused = await show.reserve(people[0], "A-1-1", token=joined[0]["token"])
    assert problem(refused) == (403, "not_admitted")
    assert refused.json()["queue_url"] == f"/v1/sales/{show.sale_id}/queue"
    await admit(house, show)
    first, second, third = [
        await poll(person, show, place["token"]) for person, place in zip(people, joined, strict=True)
    ]
    assert (first.json()["status"], first.json()["position"]) == ("ACTIVE", 0)
    assert first.json()["expires_at"] > first.json()["server_time"]
    assert [(place.json()["status"], place.json()["position"], place.json()["ahead"]) for place in (second, third)] == [
        ("WAITING", 1, 0),
        ("WAITING", 2, 1),
    ]
    for place in (first, second, third):
        assert int(place.headers["retry-after"]) == -(-place.json()["poll_after_ms"] // 1000)
    held = await show.reserve(people[0], "A-1-1", token=first.json()["token"])
    assert held.status_code == 201, held.text
    assert problem(await show.reserve(people[1], "A-1-2", token=second.json()["token"])) == (403, "not_admitted")
    assert problem(await show.reserve(people[1], "A-1-2", token=first.json()["token"])) == (403, "not_admitted")
    assert problem(await show.reserve(people[1], "A-1-2")) == (403, "not_admitted")


async def test_joining_again_keeps_the_place(people: list[Person], show: Show) -> None:
    await show.set_room(state="open")
    first, again = await join(people[0], show), await join(people[0], show)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["token"] == again.json()["token"]
    answers = await asyncio.gather(*(join(people[1], show) for _ in range(50)))
    assert sorted(answered.status_code for answered in answers) == [200] * 49 + [201]
    assert {answered.json()["queue_no"] for answered in answers} == {2}


async def test_a_poll_that_learns_nothing_is_a_304(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="paused")
    token = (await join(people[0], show)).json()["token"]
    await see(house)
    first = await poll(people[0], show, token)
    unchanged = await poll(people[0], show, token, {"If-None-Match": first.headers["etag"]})
    assert unchanged.status_code == 304
    assert unchanged.content == b""
    assert unchanged.headers["etag"] == first.headers["etag"]
    assert (await poll(people[0], show, token, {"If-None-Match": f"W/{first.headers['etag']}"})).status_code == 304
    assert int(unchanged.headers["retry-after"]) >= 1
    await show.set_room(state="open")
    await admit(house, show)
    changed = await poll(people[0], show, token, {"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "ACTIVE")


async def test_polls_of_those_who_wait_cost_no_command(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="paused")
    token = (await join(people[0], show)).json()["token"]
    await see(house)
    before = house.gate.statistics.operations
    for _ in range(50):
        assert (await poll(people[0], show, token)).json()["status"] == "WAITING"
    # The process refreshes its snapshots meanwhile, whoever polls.
    assert house.gate.statistics.operations - before < 25


async def test_rooms_are_read_again_after_a_pass_that_failed_as_none_should(
    show: Show, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await show.set_room(state="open")
    await see(house)
    sale = await house.book.read(show.sale_id)
    assert sale is not None
    await house.stores.redis.set(sale.keys.admissions, "no hash")

    async def has_failed() -> bool:
        return any("not refreshed: ScriptFault" in record.getMessage() for record in caplog.records)

    await until(has_failed)
    await house.stores.redis.delete(sale.keys.admissions)
    seen = set()

    async def is_read_again() -> bool:
        # The first time that somebody asks, the room is read for them; from then on only in the background.
        answered = await show.operator.get(f"/v1/sales/{show.sale_id}/queue")
        seen.add(answered.json()["updated_at"])
        return len(seen) > 2

    await until(is_read_again)


async def test_a_token_is_its_owners_and_its_sales(
    people: list[Person], operator: Person, show: Show, house: House
) -> None:
    await show.set_room(state="open")
    token = (await join(people[0], show)).json()["token"]
    read = house.queue_tokens.verify(token)
    assert read is not None
    forged = QueueTokens("another secret").sign(read)
    elsewhere = house.queue_tokens.sign(QueueToken("e" * 32, 1, read.owner, 1))
    for presented in (forged, elsewhere, token[:-1] + "A", token + "A", "", "é"):
        sent = raw({"Queue-Token": presented} | people[0].headers)
        answered = await operator.http.get(f"/v1/sales/{show.sale_id}/queue/token", headers=sent)
        assert problem(answered) == (404, "not_found"), presented
    assert problem(await poll(people[1], show, token)) == (404, "not_found")
    nobody = await operator.http.get(f"/v1/sales/{show.sale_id}/queue/token", headers={"Queue-Token": token})
    assert problem(nobody) == (401, "not_signed_in")
    without = await people[0].get(f"/v1/sales/{show.sale_id}/queue/token")
    assert problem(without) == (400, "invalid_request")
    assert problem(await people[0].get(f"/v1/sales/{'0' * 32}/queue/token")) == (404, "not_found")


async def test_a_visitor_waits_and_becomes_whoever_signs_in(
    people: list[Person], http: httpx.AsyncClient, show: Show, house: House
) -> None:
    await show.set_room(state="open")
    visitor = Visitor(http)
    token = (await join(visitor, show)).json()["token"]
    await admit(house, show)
    assert (await poll(visitor, show, token)).json()["status"] == "ACTIVE"
    assert problem(await poll(Visitor(http), show, token)) == (404, "not_found")
    stolen = await show.reserve(people[1], "A-1-1", token=token)
    assert problem(stolen) == (403, "not_admitted")
    held = await people[0].post(show.path, {"seats": ["A-1-1"]}, headers={"Queue-Token": token} | visitor.headers)
    assert held.status_code == 201, held.text
    own = await poll(people[0], show, token, visitor.headers)
    assert own.json()["status"] == "ACTIVE"
    assert (await poll(people[0], show, own.json()["token"])).json()["queue_no"] == 1
    assert (await join(people[0], show)).json()["queue_no"] == 1
    late = await people[1].post(show.path, {"seats": ["A-1-2"]}, headers={"Queue-Token": token} | visitor.headers)
    assert problem(late) == (403, "not_admitted")


@pytest.mark.parametrize("secret", ["", "x" * 21, "x" * 129, "é" * 30])
async def test_a_visitors_secret_is_long_enough(http: httpx.AsyncClient, show: Show, secret: str) -> None:
    answered = await http.post(
        f"/v1/sales/{show.sale_id}/queue/tokens",
        headers=raw({"Visitor-Secret": secret, "Idempotency-Key": "k"}),
        json={},
    )
    assert problem(answered) == (400, "invalid_request")
    assert answered.json()["errors"][0]["path"] == "Visitor-Secret"
    nobody = await http.post(f"/v1/sales/{show.sale_id}/queue/tokens", headers={"Idempotency-Key": "k"}, json={})
    assert problem(nobody) == (401, "not_signed_in")


async def test_somebody_enters_without_holding_yet(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="open")
    token = (await join(people[0], show)).json()["token"]
    path = f"/v1/sales/{show.sale_id}/queue/token/entry"
    early = await people[0].post(path, headers={"Queue-Token": token})
    assert early.json()["status"] == "WAITING"
    await admit(house, show)
    for _ in range(2):
        entered = await people[0].post(path, headers={"Queue-Token": token}, key="k")
        assert (entered.status_code, entered.json()["status"]) == (200, "ACTIVE")


async def test_leaving_gives_back_what_is_held(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="open")
    token = (await join(people[0], show)).json()["token"]
    await admit(house, show)
    held = (await show.reserve(people[0], "A-1-1", token=token)).json()
    path = f"/v1/sales/{show.sale_id}/queue/token"
    for _ in range(2):
        left = await people[0].http.delete(path, headers=people[0].headers | {"Queue-Token": token})
        assert (left.status_code, left.json()["status"]) == (200, "LEFT")
    reservation = (await people[0].get(f"/v1/reservations/{held['reservation_id']}")).json()
    assert (reservation["status"], reservation["reason"]) == ("CANCELLED", "USER")
    assert (await poll(people[0], show, token)).json()["status"] == "LEFT"
    assert problem(await show.reserve(people[0], "A-1-1", token=token)) == (403, "not_admitted")
    assert (await join(people[0], show)).json()["queue_no"] == 2


async def test_a_place_of_a_lost_store_can_be_given_up(
    people: list[Person], operator: Person, show: Show, house: House, worker: Worker
) -> None:
    await show.set_room(state="paused")
    tokens = [(await join(person, show)).json()["token"] for person in people]
    await worker.drain()
    await lose(operator, show, house)
    await see(house)
    path = f"/v1/sales/{show.sale_id}/queue/token"
    for _ in range(2):
        left = await people[0].http.delete(path, headers=people[0].headers | {"Queue-Token": tokens[0]})
        assert (left.status_code, left.json()["status"]) == (200, "LEFT")
    assert (await poll(people[0], show, tokens[0])).json()["status"] == "LEFT"
    assert (await poll(people[1], show, tokens[1])).json()["status"] == "WAITING"


async def test_a_visitors_token_is_its_users_also_before_the_process_hears_that_the_store_was_lost(
    people: list[Person], operator: Person, show: Show, house: House, worker: Worker
) -> None:
    await show.set_room(state="paused")
    visitor = Visitor(operator.http)
    token = (await join(visitor, show)).json()["token"]
    await worker.drain()
    stale = await house.book.read(show.sale_id)
    assert stale is not None
    await lose(operator, show, house)
    house.book._sales[show.sale_id] = stale  # as another process still knows it
    people[0].headers |= visitor.headers
    place = (await poll(people[0], show, token)).json()
    assert (place["queue_no"], place["status"]) == (1, "WAITING")


async def test_who_has_bought_is_told_so(people: list[Person], show: Show, house: House, worker: Worker) -> None:
    await show.set_room(state="open")
    token = (await join(people[0], show)).json()["token"]
    await admit(house, show)
    held = (await show.reserve(people[0], "A-1-1", token=token)).json()
    async with worker.draining():
        paid = await people[0].post(f"/v1/reservations/{held['reservation_id']}/payments", {"method": "BALANCE"})
    assert paid.status_code == 201, paid.text
    await see(house)
    assert (await poll(people[0], show, token)).json()["status"] == "PROCESSED"


async def test_a_closed_line_takes_nobody(people: list[Person], show: Show) -> None:
    await show.set_room(state="closed")
    assert problem(await join(people[0], show)) == (409, "queue_closed")


async def test_the_line_is_public(people: list[Person], http: httpx.AsyncClient, show: Show, house: House) -> None:
    path = f"/v1/sales/{show.sale_id}/queue"
    assert (await http.get(path)).json()["state"] == "off"
    await show.set_room(state="open", active_max=1)
    for person in people:
        await join(person, show)
    await admit(house, show)
    told = await http.get(path)
    assert told.headers["cache-control"] == "public, max-age=1"
    queue = told.json()
    assert queue["updated_at"] <= queue["server_time"]
    assert queue | {"updated_at": "", "server_time": "", "rate_per_minute": 0} == {
        "state": "open",
        "opens_at": None,
        "serving": 1,
        "last_queue_no": 3,
        "waiting": 2,
        "active": 1,
        "rate_per_minute": 0,
        "updated_at": "",
        "server_time": "",
    }
    assert problem(await http.get(f"/v1/sales/{'0' * 32}/queue")) == (404, "not_found")


async def test_a_pass_is_verified_by_anybody(people: list[Person], show: Show, house: House) -> None:
    await show.set_room(state="open")
    token = (await join(people[0], show)).json()["token"]
    await admit(house, show)
    active = (await poll(people[0], show, token)).json()
    keys = (await people[0].http.get("/.well-known/jwks.json")).json()["keys"]
    key = next(key for key in keys if key["kid"] == jwt.get_unverified_header(active["pass"])["kid"])
    claims = jwt.decode(active["pass"], jwt.PyJWK(key), ["EdDSA"], audience=show.sale_id, options={"verify_exp": False})
    assert (claims["sub"], claims["queue_no"]) == (people[0].user_id, 1)
    assert (await poll(people[0], show, token)).json()["pass"] == active["pass"]


async def test_places_outlive_the_store(
    people: list[Person], operator: Person, show: Show, house: House, worker: Worker
) -> None:
    await show.set_room(state="open", active_max=1)
    tokens = [(await join(person, show)).json()["token"] for person in people]
    await worker.drain()
    await lose(operator, show, house)
    await see(house)
    places = [(await poll(person, show, token)).json() for person, token in zip(people, tokens, strict=True)]
    assert [place["queue_no"] for place in places] == [1, 2, 3]
    assert [place["status"] for place in places] == ["WAITING"] * 3
    assert all(place["token"] != token for place, token in zip(places, tokens, strict=True))
