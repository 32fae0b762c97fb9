"""Messages over HTTP: who may send them, what they may be, and who hears them."""

from collections.abc import AsyncIterator

import httpx
import pytest

from api.face import Face
from api.house import House
from engine import accounts
from engine.settings import Settings
from tests.api.calling import Person, Show, problem, put_on
from tests.api.listening import listening, serving, until
from tests.api.test_server import running


@pytest.fixture
async def port(app: Face) -> AsyncIterator[int]:
    """Where the application of this test is served."""
    async with serving(app) as port:
        yield port


def path_of(show: Show) -> str:
    return f"/v1/admin/sales/{show.sale_id}/messages"


async def say(show: Show, text: object, *, key: str | None = None) -> httpx.Response:
    return await show.operator.post(path_of(show), {"text": text}, key=key)


# Sending --------------------------------------------------------------------------------------------------------------


async def test_a_message_is_sent_once_for_its_key(operator: Person, show: Show) -> None:
    sent = await say(show, "  Doors open at eight.  ", key="one")
    assert sent.status_code == 201
    assert sent.json()["text"] == "Doors open at eight."
    again = await say(show, "Doors open at eight. ", key="one")
    assert (again.status_code, again.json(), again.headers["idempotent-replayed"]) == (201, sent.json(), "true")
    assert "idempotent-replayed" not in sent.headers
    assert problem(await say(show, "At nine.", key="one")) == (422, "idempotency_key_reused")
    # The same key of another sale is another message.
    other = await put_on(operator)
    assert (await say(other, "At nine.", key="one")).status_code == 201
    assert (await operator.get(path_of(show))).json() == {"items": [sent.json()], "next": None}


@pytest.mark.parametrize(
    "text", ["", "   ", "a" * 501, "two\nlines", "a\x00", "\x7f", "bell\x07", "\x85", None, 7, ["x"]]
)
async def test_what_is_no_message_is_refused(show: Show, text: object) -> None:
    assert problem(await say(show, text)) == (400, "invalid_request")
    assert (await show.operator.get(path_of(show))).json()["items"] == []


async def test_a_message_may_have_500_characters_of_any_script(show: Show) -> None:
    for text in ("💺" * 500, "<b>&amp; \"'", "　문 열림　"):
        assert (await say(show, text)).json()["text"] == text


async def test_nothing_else_is_taken(show: Show) -> None:
    operator = show.operator
    assert problem(await operator.post(path_of(show), {"text": "x", "to": "all"})) == (400, "invalid_request")
    unkeyed = await operator.http.post(path_of(show), headers=operator.headers, json={"text": "x"})
    assert problem(unkeyed) == (400, "key_required")
    nowhere = f"/v1/admin/sales/{'0' * 32}/messages"
    assert problem(await operator.post(nowhere, {"text": "x"})) == (404, "not_found")
    assert problem(await operator.get(nowhere)) == (404, "not_found")
    assert problem(await operator.get(f"{path_of(show)}?cursor=x")) == (400, "invalid_request")


async def test_only_keys_for_sales_send_and_list(
    http: httpx.AsyncClient, house: House, people: list[Person], show: Show
) -> None:
    door = Person(http, "", await accounts.add_api_key(house.postgres, name="door", scopes=["tickets"]))
    desk = Person(http, "", await accounts.add_api_key(house.postgres, name="desk", scopes=["sales"]))
    for nobody, refusal in ((people[0], (401, "not_signed_in")), (door, (403, "scope_missing"))):
        assert problem(await nobody.post(path_of(show), {"text": "x"})) == refusal
        assert problem(await nobody.get(path_of(show))) == refusal
    assert (await desk.post(path_of(show), {"text": "x"}, key="one")).status_code == 201
    # A key is its operator's own.
    assert (await say(show, "y", key="one")).status_code == 201


async def test_messages_are_listed_newest_first_in_pages(operator: Person, show: Show) -> None:
    sent = [(await say(show, f"Number {number}.")).json() for number in range(5)]
    await say(await put_on(operator), "Elsewhere.")
    first = (await operator.get(f"{path_of(show)}?limit=2")).json()
    second = (await operator.get(f"{path_of(show)}?limit=2&cursor={first['next']}")).json()
    third = (await operator.get(f"{path_of(show)}?limit=2&cursor={second['next']}")).json()
    assert [*first["items"], *second["items"], *third["items"]] == sent[::-1]
    assert third["next"] is None


# Hearing --------------------------------------------------------------------------------------------------------------


async def test_who_listens_hears_each_message_and_who_comes_later_the_last(show: Show, port: int) -> None:
    async with listening(port, show.sale_id) as ear:
        reset = await ear.next("reset")
        sent = [(await say(show, f"Number {number}.")).json() for number in range(3)]
        heard = [await ear.next("message") for _ in range(3)]
        assert [each.told for each in heard] == sent
        # They are no place to go on from.
        assert {each.event_id for each in heard} == {""}
        async with (
            listening(port, show.sale_id) as late,
            listening(port, show.sale_id, headers={"Last-Event-ID": reset.event_id}) as back,
        ):
            assert (await late.next("message")).told == sent[-1]
            assert (await back.next()).told == sent[-1]  # and no reset before it
            again = (await say(show, "To all.")).json()
            for each in (ear, late, back):
                assert (await each.next("message")).told == again


async def test_who_is_the_first_to_listen_is_told_the_last_message_once(show: Show, house: House, port: int) -> None:
    for number in range(2):
        await say(show, f"Number {number}.")
    async with listening(port, show.sale_id) as ear:
        assert (await ear.next("message")).told["text"] == "Number 1."
        await say(show, "Another.")
        assert (await ear.next("message")).told["text"] == "Another."
    await until(lambda: not house.events._channels)


async def test_what_is_older_than_an_hour_is_not_told(show: Show, house: House, port: int) -> None:
    await say(show, "Long ago.")
    sale = await house.book.find(show.sale_id)
    assert sale is not None
    redis = house.stores.redis
    for message, at_ms in await redis.zrange(sale.keys.messages, 0, -1, withscores=True):
        await redis.zadd(sale.keys.messages, {message: at_ms - 3_600_000})
    async with listening(port, show.sale_id) as ear:
        await ear.next("queue")
        await say(show, "Now.")
        assert (await ear.next("message")).told["text"] == "Now."
        (channel,) = house.events._channels.values()
        assert b"Now." in channel.notices.last()
        assert channel.notices._last is not None
        channel.notices._last = channel.notices._last[0], 0.0
        assert channel.notices.last() == b""
        async with listening(port, show.sale_id) as late:
            assert [(await late.next()).name for _ in range(2)] == ["reset", "queue"]


async def test_after_a_rebuild_nobody_is_told_again_and_new_messages_are_heard(
    show: Show, house: House, port: int
) -> None:
    async with listening(port, show.sale_id) as ear:
        await ear.next("reset")
        await say(show, "Before.")
        await ear.next("message")
        await house.postgres.execute("UPDATE stream_owners SET until = now()")
        rebuilt = await show.operator.post(f"/v1/admin/sales/{show.sale_id}/rebuild")
        assert rebuilt.status_code == 200, rebuilt.text
        await say(show, "After.")
        assert (await ear.next("message")).told["text"] == "After."
        # Whose process has just started: the rebuild has brought it back.
        async with listening(port, show.sale_id) as late:
            assert (await late.next("message")).told["text"] == "After."
    await until(lambda: not house.events._channels)
    async with listening(port, show.sale_id) as ear:
        assert (await ear.next("message")).told["text"] == "After."


async def test_every_process_tells_it(settings: Settings, show: Show, port: int) -> None:
    async with (
        running(settings, LASTSEAT_WORKERS="1") as server,
        listening(port, show.sale_id) as here,
        listening(server.port, show.sale_id) as there,
    ):
        await here.next("reset")
        await there.next("reset")
        sent = (await say(show, "To all.")).json()
        assert (await here.next("message")).told == (await there.next("message")).told == sent
        said_there = await server.operator.post(path_of(show), {"text": "From there."})
        assert (await here.next("message")).told == (await there.next("message")).told == said_there.json()
