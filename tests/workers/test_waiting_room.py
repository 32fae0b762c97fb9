"""The line: a worker calls its head, and nobody loses a place when the store is lost."""

from typing import Any

import pytest

from engine import ids, waiting_room
from engine.stores.connections import Stores
from tests.engine.test_rebuild import lose
from tests.shop import Shop, open_shop
from tests.workers.working import shift, until
from workers.loops import REST_MAX_S, Bell
from workers.waiting_room import QUIET_EVERY_S, admit


async def join(shop: Shop, name: str) -> int:
    joined = await waiting_room.join(shop.stores.gate, await shop.sale(), owner=ids.derive("person", name))
    assert isinstance(joined, waiting_room.Joined), joined
    return joined.queue_no


async def put_back(shop: Shop, name: str, queue_no: int) -> Any:
    return await waiting_room.put_back(
        shop.stores.gate, await shop.sale(), owner=ids.derive("person", name), queue_no=queue_no
    )


async def kept(shop: Shop) -> dict[int, str]:
    """The line as Postgres knows it."""
    rows = await shop.stores.postgres.fetch(
        "SELECT queue_no, status FROM queue_tokens WHERE sale_id = $1", shop.sale_id
    )
    return {row["queue_no"]: row["status"] for row in rows}


async def test_the_head_of_an_open_line_is_called_within_the_cap(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, room="open", active_max=2)
    numbers = [await join(shop, name) for name in ("ann", "bob", "cid")]
    async with shift(stores_any):

        async def two_are_in() -> bool:
            return await kept(shop) == {numbers[0]: "ACTIVE", numbers[1]: "ACTIVE", numbers[2]: "WAITING"}

        await until(two_are_in)

        async def is_remembered() -> bool:
            return bool((await shop.row())["serving"] == numbers[1])

        await until(is_remembered)


async def test_a_paused_line_stands_still(stores: Stores) -> None:
    paused, running = await open_shop(stores, room="paused"), await open_shop(stores, room="open")
    number = await join(paused, "ann")
    other = await join(running, "bob")
    async with shift(stores):

        async def the_other_moved() -> bool:
            return (await kept(running)).get(other) == "ACTIVE"

        await until(the_other_moved)
        assert await kept(paused) in ({}, {number: "WAITING"})


async def test_people_keep_their_places_when_everything_is_lost(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, room="open", active_max=1)
    first = await join(shop, "first")
    numbers = {name: await join(shop, name) for name in ("ann", "bob", "cid")}
    async with shift(stores_any):

        async def is_in() -> bool:
            return await kept(shop) == {first: "ACTIVE"} | dict.fromkeys(numbers.values(), "WAITING")

        await until(is_in)
        await lose(stores_any)

        async def is_rebuilt() -> bool:
            row = await shop.row()
            return bool(row["store_state"] == "open" and row["epoch"] == 2)

        await until(is_rebuilt)
        newcomer = await join(shop, "newcomer")
        # They come back in any order, each with the number that the signed token carries.
        for name in ("cid", "ann", "bob"):
            back = await put_back(shop, name, numbers[name])
            assert back == waiting_room.PutBack(numbers[name], "WAITING")
    redis: Any = stores_any.redis
    line = await redis.zrange((await shop.sale()).keys.waiting, 0, -1, withscores=True)
    assert [int(score) for _, score in line] == [*numbers.values(), newcomer]


async def test_somebody_who_is_known_to_have_ended_is_not_put_back(stores: Stores) -> None:
    shop = await open_shop(stores, room="open", active_max=1)
    number = await join(shop, "ann")
    await waiting_room.leave(stores.gate, await shop.sale(), owner=ids.derive("person", "ann"), queue_no=number)
    await shop.drain()
    await lose(stores)
    await shop.rebuild()
    assert await put_back(shop, "ann", number) == waiting_room.PutBack(number, "LEFT")
    assert await stores.redis.zcard((await shop.sale()).keys.waiting) == 0


async def test_a_number_that_was_never_given_out_is_not_put_back(stores: Stores) -> None:
    shop = await open_shop(stores, room="open")
    await lose(stores)
    await shop.rebuild()
    ceiling = int(await shop.term("queue_no"))
    assert not isinstance(await put_back(shop, "ann", ceiling + 1), waiting_room.PutBack)


async def test_a_line_rests_unless_somebody_stands_in_it(stores: Stores) -> None:
    shop = await open_shop(stores, room="open", active_max=1)
    sale, bell = await shop.sale(), Bell()

    async def is_rung() -> bool:
        bell.rest_max_s = 0.001
        return await bell.rest()

    for name, rings in ((None, False), ("ann", False), ("bob", True)):  # she is in, and he waits for her to leave
        if name:
            await join(shop, name)
        assert not await admit(bell, stores, sale)
        assert bell.rest_max_s == QUIET_EVERY_S  # what lapses inside is ended
        assert await is_rung() is rings


async def test_where_there_is_no_line_nothing_is_asked(stores: Stores) -> None:
    shop = await open_shop(stores)
    bell, before = Bell(), stores.gate.statistics.batches
    assert not await admit(bell, stores, await shop.sale())
    assert (stores.gate.statistics.batches, bell.rest_max_s) == (before, REST_MAX_S)


async def test_whoever_joins_a_quiet_line_is_called_because_the_journal_tells_of_it(
    stores_any: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.waiting_room.QUIET_EVERY_S", 3600.0)
    shop = await open_shop(stores_any, room="open", active_max=2)
    async with shift(stores_any):
        for name in ("ann", "bob"):
            queue_no = await join(shop, name)

            async def is_in(queue_no: int = queue_no) -> bool:
                return (await kept(shop)).get(queue_no) == "ACTIVE"

            await until(is_in)
