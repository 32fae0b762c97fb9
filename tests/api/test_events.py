"""Events: what changes is told to everybody who listens, once it was written, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import msgspec
import pytest

from api import channels, events
from api.app import create_app
from api.channels import Channel, Frame, Listener
from api.face import Face
from api.house import House, open_house
from engine import seat_maps
from engine.settings import Settings
from engine.stores.connections import Stores
from tests.api.calling import ADMIN_KEY, Person, Show, problem, put_on
from tests.api.listening import Ear, Event, listening, serving, until
from tests.api.proxy import before
from tests.api.test_server import running


@pytest.fixture
async def port(app: Face) -> AsyncIterator[int]:
    """Where the application of this test is served."""
    async with serving(app) as port:
        yield port


def path_of(show: Show) -> str:
    return f"/v1/sales/{show.sale_id}/events"


async def hear_change(ear: Ear, seat_no: str) -> Event:
    """The next event that tells of this seat."""
    while True:
        told = await ear.next("seats")
        if any(seat["seat_no"] == seat_no for seat in told.told["seats"]):
            return told


def listeners(house: House) -> list[Listener]:
    return [listener for channel in house.events._channels.values() for listener in channel.listeners]


# What is told ---------------------------------------------------------------------------------------------------------


async def test_a_change_is_told_to_who_listens(people: list[Person], show: Show, port: int) -> None:
    async with listening(port, show.sale_id) as ear:
        assert (ear.status, ear.headers["content-type"]) == (200, "text/event-stream")
        assert ear.headers["cache-control"] == "no-store"
        first = await ear.next()
        assert (first.name, ear.retry) == ("reset", 3000)
        version = first.told["map_version"]
        assert first.event_id == f"{version // 10**9}-{version}"

        held = (await show.reserve(people[0], "A-1-1", "A-1-2")).json()
        told = await ear.next("seats")
        assert told.event_id == f"{told.told['map_version'] // 10**9}-{told.told['map_version']}"
        assert told.told["map_version"] > version
        assert sorted(told.told["seats"], key=lambda seat: seat["seat_no"]) == [
            {"seat_no": "A-1-1", "status": "HELD"},
            {"seat_no": "A-1-2", "status": "HELD"},
        ]
        await people[0].delete(f"/v1/reservations/{held['reservation_id']}")
        back = await ear.next("seats")
        assert {seat["status"] for seat in back.told["seats"]} == {"FREE"}
        assert back.told["map_version"] > told.told["map_version"]


async def test_a_drop_without_seats_tells_of_its_line(operator: Person, port: int) -> None:
    sale_id = (await operator.post("/v1/admin/sales", {"name": "Drop"})).json()["sale_id"]
    await operator.patch(f"/v1/admin/sales/{sale_id}/queue", {"state": "open"})
    async with listening(port, sale_id) as ear:
        assert (await ear.next()).name == "reset"
        told = await ear.next("queue")
        assert (told.told["state"], told.told["waiting"]) == ("open", 0)


async def test_nothing_personal_is_told(people: list[Person], show: Show, port: int) -> None:
    await show.set_room(state="open")
    async with listening(port, show.sale_id) as ear:
        await ear.next("reset")
        token = (await people[0].post(f"/v1/sales/{show.sale_id}/queue/tokens")).json()
        while (await ear.next("queue")).told["last_queue_no"] < 1:
            pass
    for secret in (people[0].user_id, token["token"], "Bearer", "owner"):
        assert secret not in ear.heard.decode()


async def test_how_the_line_stands_is_told_when_it_changes(people: list[Person], show: Show, port: int) -> None:
    async with listening(port, show.sale_id) as ear:
        assert (await ear.next("queue")).told["state"] == "off"
        await show.set_room(state="paused")
        await people[0].post(f"/v1/sales/{show.sale_id}/queue/tokens")
        while (told := (await ear.next("queue")).told)["last_queue_no"] < 1:
            pass
        public = (await people[0].get(f"/v1/sales/{show.sale_id}/queue")).json()
        at = ("updated_at", "server_time")
        assert {name: value for name, value in told.items() if name not in at} == {
            name: value for name, value in public.items() if name not in at
        }
        # Who comes later is told at once, and nobody is told the same again.
        async with listening(port, show.sale_id) as late:
            assert (await late.next("queue")).told["last_queue_no"] == 1
        await show.reserve(people[0], "A-1-1")
        await show.set_room(state="closed")
        assert (await ear.next("queue")).told["state"] == "closed"


async def test_silence_is_filled_with_comments(show: Show, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "COMMENTS_EVERY_S", 0.05)
    async with listening(port, show.sale_id) as ear:
        async with asyncio.timeout(5):
            while ear.comments < 2:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await ear.next("nothing")


# Where one was --------------------------------------------------------------------------------------------------------


async def test_who_comes_back_is_told_what_was_missed(people: list[Person], show: Show, port: int) -> None:
    async with listening(port, show.sale_id) as ear:
        known = (await ear.next("reset")).event_id
        held = (await show.reserve(people[0], "A-1-1")).json()
        await hear_change(ear, "A-1-1")
        await show.reserve(people[0], "A-1-2")
        last = await hear_change(ear, "A-1-2")
        await people[0].delete(f"/v1/reservations/{held['reservation_id']}")
        newest = await hear_change(ear, "A-1-1")

        async with listening(port, show.sale_id, headers={"Last-Event-ID": known}) as back:
            missed = await back.next("seats")
            assert (missed.event_id, missed.told["map_version"]) == (newest.event_id, newest.told["map_version"])
            assert {seat["seat_no"]: seat["status"] for seat in missed.told["seats"]} == {
                "A-1-1": "FREE",
                "A-1-2": "HELD",
            }
        async with listening(port, show.sale_id, headers={"Last-Event-ID": last.event_id}) as back:
            assert (await back.next("seats")).told["seats"] == [{"seat_no": "A-1-1", "status": "FREE"}]
        # The header is newer than the address, which a browser repeats as it was.
        version = known.split("-")[1]
        headers = {"Last-Event-ID": newest.event_id}
        async with (
            listening(port, show.sale_id, f"?since={version}", headers) as back,
            listening(port, show.sale_id, f"?since={version}") as late,
        ):
            assert (await late.next("seats")).told == missed.told
            await show.reserve(people[1], "A-2-1")
            assert (await back.next("seats")).told["seats"] == [{"seat_no": "A-2-1", "status": "HELD"}]
            assert (await late.next("seats")).told["seats"] == [{"seat_no": "A-2-1", "status": "HELD"}]


@pytest.mark.parametrize(
    "last", ["", "x", "1-", "1-5-6", "-1--1", "9" * 30, "2-1000000000", "1-1", "1-²", "5-5000000000"]
)
async def test_who_was_elsewhere_begins_anew(show: Show, port: int, last: str) -> None:
    async with listening(port, show.sale_id, headers={"Last-Event-ID": last}) as ear:
        assert (await ear.next()).name == "reset"


async def test_a_rebuild_is_told_as_a_reset(
    people: list[Person], operator: Person, show: Show, house: House, port: int
) -> None:
    async with listening(port, show.sale_id) as ear:
        first = await ear.next("reset")
        await house.postgres.execute("UPDATE stream_owners SET until = now()")
        rebuilt = await operator.post(f"/v1/admin/sales/{show.sale_id}/rebuild")
        assert rebuilt.status_code == 200, rebuilt.text
        again = await ear.next("reset")
        assert again.told["map_version"] // 10**9 == first.told["map_version"] // 10**9 + 1
        await show.reserve(people[0], "A-1-1")
        assert (await ear.next("seats")).told["seats"] == [{"seat_no": "A-1-1", "status": "HELD"}]
        async with listening(port, show.sale_id, headers={"Last-Event-ID": first.event_id}) as back:
            assert (await back.next()).name == "reset"


async def test_where_more_changed_than_is_told_the_map_is_fetched_again(
    people: list[Person], show: Show, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat_maps, "CHANGES_MAX", 2)
    async with listening(port, show.sale_id) as ear:
        await ear.next("reset")
        await show.reserve(people[0], "A-1-1", "A-1-2")
        assert len((await ear.next("seats")).told["seats"]) == 2
        await show.reserve(people[0], "A-1-3")
        await hear_change(ear, "A-1-3")
        await show.reserve(people[1], "A-2-1", "A-2-2", "A-2-3")
        again = await ear.next()
        while again.name == "queue":
            again = await ear.next()
        assert again.name == "reset"
        path = f"/v1/schedules/{show.schedule_id}/seats?since={again.told['map_version']}"
        assert (await people[0].get(path)).json() == {
            "map_version": again.told["map_version"],
            "full": False,
            "seats": [],
        }
        await show.reserve(people[2], "A-1-4")
        await hear_change(ear, "A-1-4")


# However many ---------------------------------------------------------------------------------------------------------


async def test_many_listen_and_one_looks(
    people: list[Person], show: Show, house: House, stores: Stores, port: int
) -> None:
    async with AsyncExitStack() as stack:
        ears = [await stack.enter_async_context(listening(port, show.sale_id)) for _ in range(60)]
        for ear in ears:
            await ear.next("queue")
        await stores.redis.config_resetstat()
        began = asyncio.get_running_loop().time()
        heard: list[set[bytes]] = []
        for number in range(1, 4):
            await show.reserve(people[0], f"A-1-{number}")
            for ear in ears:
                ear.heard = b""
            told = await asyncio.gather(*[hear_change(ear, f"A-1-{number}") for ear in ears])
            assert len({each.event_id for each in told}) == 1
            heard.append({ear.heard for ear in ears})
        looks = (asyncio.get_running_loop().time() - began) / 0.25 + 2
        counted = await stores.redis.info("commandstats")
        # A look is one small script; three holds, and the room once a second.
        assert counted["cmdstat_evalsha"]["calls"] <= looks + 3 + looks
        assert len(house.events._pollers) == 1
        # What was written once is the same for all.
        assert all(len(each) == 1 for each in heard)
    await until(lambda: not house.events._channels)


async def test_one_more_than_the_process_takes_is_told_to_come_back(
    http: httpx.AsyncClient, show: Show, house: House, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.events, "_most", 2)
    async with listening(port, show.sale_id) as one, listening(port, show.sale_id) as other:
        refused = await http.get(path_of(show))
        assert problem(refused) == (503, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        await asyncio.gather(one.next("reset"), other.next("reset"))
        one.hang_up()
        await until(lambda: len(listeners(house)) == 1)
        async with listening(port, show.sale_id) as late:
            assert (late.status, (await late.next()).name) == (200, "reset")
    await until(lambda: not house.events._channels)
    assert house.events._pollers == {}


async def test_who_does_not_read_is_given_up_and_holds_nobody_up(
    people: list[Person], show: Show, house: House, port: int
) -> None:
    async with listening(port, show.sale_id) as deaf, listening(port, show.sale_id) as ear:
        await asyncio.gather(deaf.next("reset"), ear.next("reset"))
        (channel,) = house.events._channels.values()
        # More than every buffer on the way takes: one is left behind, the other keeps up.
        async with asyncio.timeout(20):
            while min(listener.at for listener in channel.listeners) >= channel.next_no - 3:
                channel.publish(Frame(b"event: noise\ndata: 0\n" + b":" * 500_000 + b"\n\n"))
                await channel.wake_all()
                await ear.next("noise")
        stuck = min(channel.listeners, key=lambda listener: listener.at)
        assert stuck.sends_since is not None
        stuck.sends_since -= events.STUCK_AFTER_S + 1
        events._give_up_the_stuck(channel, before=asyncio.get_running_loop().time() - events.STUCK_AFTER_S)
        await until(lambda: stuck not in channel.listeners)
        await show.reserve(people[0], "A-1-1")
        await hear_change(ear, "A-1-1")
        with pytest.raises((EOFError, asyncio.IncompleteReadError)):
            await deaf.next("nothing")


async def test_who_is_too_far_behind_is_told_to_fetch_the_map() -> None:
    channel = Channel("5a" * 16, 10**9)
    listener = Listener(channel.next_no, channel.version)
    for version in range(10**9 + 1, 10**9 + 3):
        channel.publish(Frame(b"%d\n" % version, version))
    assert channel.take(listener) == b"1000000001\n1000000002\n"
    assert channel.take(listener) == b""
    for version in range(10**9 + 3, 10**9 + 3 + channels.FRAMES_KEPT_MAX + 1):
        channel.publish(Frame(b"%d\n" % version, version))
    newest = channel.version
    assert channel.take(listener) == (b'id: 1-%d\nevent: reset\ndata: {"map_version":%d}\n\n' % (newest, newest))
    assert channel.take(listener) == b""
    # Many bytes are too far behind, too; and who knows more than was told is not told it again.
    for _ in range(3):
        channel.publish(Frame(b"x" * channels.BYTES_KEPT_MAX))
    assert channel.take(listener).startswith(b"id: 1-")
    ahead = Listener(channel.next_no, newest + 2)
    for version in range(newest + 1, newest + 4):
        channel.publish(Frame(b"%d\n" % version, version))
    assert channel.take(ahead) == b"%d\n" % (newest + 3)


# What ends it ---------------------------------------------------------------------------------------------------------


async def test_a_sale_that_is_not_there_tells_nothing(http: httpx.AsyncClient, show: Show, house: House) -> None:
    assert problem(await http.get(f"/v1/sales/{'0' * 32}/events")) == (404, "not_found")
    assert problem(await http.get(f"{path_of(show)}?since=-1")) == (400, "invalid_request")
    await house.stores.redis.flushall()
    assert problem(await http.get(path_of(show))) == (503, "sale_rebuilding")
    assert house.events._channels == {}


async def test_the_streams_outlive_a_store_that_was_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "TRIES_AGAIN_AFTER_S", 0.05)
    async with (
        before(str(settings.redis_url)) as (redis, redis_url),
        open_house(msgspec.structs.replace(settings, redis_url=redis_url)) as house,
    ):
        app = create_app(settings)
        app.house = house
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]  # both are ASGI, typed by different names
        async with (
            serving(app) as port,
            httpx.AsyncClient(transport=transport, base_url="http://lastseat.test") as http,
        ):
            operator = Person(http, "", ADMIN_KEY)
            made = (await operator.post("/v1/admin/accounts", {"count": 1})).json()["items"][0]
            show = await put_on(operator)
            async with listening(port, show.sale_id) as ear:
                await ear.next("reset")
                redis.cut()
                await until(lambda: "the events of sale" in caplog.text)
                redis.restore()
                await show.reserve(Person(http, made["user_id"], made["access_token"]), "A-1-1")
                await hear_change(ear, "A-1-1")


async def test_browsers_of_the_shop_may_listen(people: list[Person], show: Show, port: int) -> None:
    async with listening(port, show.sale_id, headers={"Origin": "https://shop.example"}) as ear:
        assert ear.headers["access-control-allow-origin"] == "https://shop.example"
        await ear.next("reset")
        await show.reserve(people[0], "A-1-1")
        await hear_change(ear, "A-1-1")


async def test_a_stop_ends_the_streams(settings: Settings, show: Show) -> None:
    async with running(settings, LASTSEAT_WORKERS="1") as server, listening(server.port, show.sale_id) as ear:
        await ear.next("reset")
        server.process.terminate()
        async with asyncio.timeout(10):
            await ear.hear_end()
            assert await server.process.wait() == 0
