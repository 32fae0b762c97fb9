"""Freed seats, those who wait for them, the public, and two owners at once: each race with a control that loses."""

import asyncio
from typing import Any

import pytest

from engine import ids, sales, seat_waiting_lists, seats, waiting_lists
from engine.shelf import Wish
from engine.stores.connections import Stores
from engine.waiting_lists import Entry
from tests.shop import Shop, open_shop

PUBLIC = 20


@pytest.fixture
async def shop(stores_any: Stores) -> Shop:
    """Six seats; all are held by somebody who will give them back."""
    return await open_shop(stores_any)


async def join(shop: Shop, name: str, quantity: int = 1) -> Entry:
    entry = await seat_waiting_lists.join(
        shop.stores,
        shop.book,
        await shop.sale(),
        entry_id=ids.derive("entry", name),
        user_id=await shop.person(name),
        wish=Wish(quantity=quantity),
    )
    assert isinstance(entry, Entry), entry
    return entry


async def grab(shop: Shop, sale: sales.Sale, seat_no: str, at: int) -> bool:
    """One of the public tries to hold a seat."""
    held = await seats.hold(
        shop.stores.gate,
        sale,
        hold_id=ids.derive("grab", str(at)),
        buyer_id=ids.derive("public", str(at)),
        fingerprint="",
        seat_nos=[seat_no],
    )
    return isinstance(held, seats.Held)


async def offers_of(shop: Shop, *entries: Entry) -> list[list[str]]:
    """The seats that each of these was offered."""
    return [[line.seat_no for line in (await shop.find(entry.hold_id)).lines] for entry in entries]


# Against the public ---------------------------------------------------------------------------------------------------


async def test_control_offering_what_is_free_loses_it_to_the_public(shop: Shop) -> None:
    hold_id, sale = await shop.hold("A-1-1", by="holder"), await shop.sale()
    ann = await shop.person("ann")
    released, asked = asyncio.Event(), asyncio.Event()

    async def release_and_offer() -> bool:
        await shop.release(hold_id)  # free to all
        released.set()
        await asked.wait()  # a worker looks a few times a second, and the public asks all the time
        held = await seats.hold(
            shop.stores.gate, sale, hold_id=ids.random_id(), buyer_id=ann, fingerprint="", seat_nos=["A-1-1"]
        )
        return isinstance(held, seats.Held)

    async def keep_trying(at: int) -> bool:
        grabbed, turn = False, 0
        while not asked.is_set():
            turn, was_released = turn + 1, released.is_set()
            grabbed = await grab(shop, sale, "A-1-1", at * 1_000_000 + turn) or grabbed
            if was_released:
                asked.set()
        return grabbed

    offered, *grabbed = await asyncio.gather(release_and_offer(), *[keep_trying(at) for at in range(PUBLIC)])
    assert not offered
    assert sum(grabbed) == 1


async def test_what_is_freed_while_somebody_waits_is_never_the_publics(shop: Shop) -> None:
    hold_ids = [await shop.hold(f"A-1-{at}", by="holder") for at in range(1, 4)]
    waiting = [await join(shop, name) for name in ("ann", "ben", "cid")]
    sale, is_over = await shop.sale(), False

    async def keep_trying(at: int) -> int:
        grabbed, turn = 0, 0
        while not is_over:
            turn += 1
            for seat in (1, 2, 3):
                grabbed += await grab(shop, sale, f"A-1-{seat}", at * 1_000_000 + turn * 10 + seat)
        return grabbed

    async def free_and_serve() -> None:
        nonlocal is_over
        for hold_id in hold_ids:
            await shop.release(hold_id)
            await seat_waiting_lists.serve(shop.stores, sale)
        is_over = True

    public = [asyncio.create_task(keep_trying(at)) for at in range(4)]
    await free_and_serve()
    assert await asyncio.gather(*public) == [0] * 4
    assert sorted(await offers_of(shop, *waiting)) == [["A-1-1"], ["A-1-2"], ["A-1-3"]]


# Two owners at once ---------------------------------------------------------------------------------------------------


async def test_control_offers_under_new_ids_are_made_twice(shop: Shop) -> None:
    for at in (1, 2):
        await shop.release(await shop.hold(f"A-1-{at}", by="holder"))
    ann, sale = await shop.person("ann"), await shop.sale()
    all_have_looked = asyncio.Barrier(2)

    async def serve_naively(worker: int) -> Any:
        standing = await shop.states()
        free = [seat_no for seat_no in ("A-1-1", "A-1-2") if seat_no not in standing]
        await all_have_looked.wait()
        return await seats.hold(
            shop.stores.gate,
            sale,
            hold_id=ids.random_id(),
            buyer_id=ann,
            fingerprint="",
            seat_nos=[free[worker]],
        )

    answers = await asyncio.gather(serve_naively(0), serve_naively(1))
    assert [type(answer) for answer in answers] == [seats.Held, seats.Held]  # one who waits has two offers


async def test_two_owners_offer_each_seat_once_and_to_each_who_waits_once(shop: Shop) -> None:
    hold_ids = [await shop.hold(f"A-1-{at}", by="holder") for at in range(1, 7)]
    waiting = [await join(shop, f"person {at}") for at in range(8)]
    sale, is_over = await shop.sale(), False

    async def own() -> None:
        while not is_over:
            await seat_waiting_lists.serve(shop.stores, sale)

    async def free() -> None:
        nonlocal is_over
        for hold_id in hold_ids:
            await shop.release(hold_id)
            await asyncio.sleep(0.01)
        while "BLOCKED" in (await shop.states()).values():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        is_over = True

    async with asyncio.timeout(30):
        await asyncio.gather(own(), own(), own(), free())
    offers = await offers_of(shop, *waiting[:6])
    assert sorted(seat_no for seat_nos in offers for seat_no in seat_nos) == [f"A-1-{at}" for at in range(1, 7)]
    await shop.drain()
    statuses = await shop.rows("SELECT status FROM waiting_list_entries ORDER BY entry_no")
    assert statuses == [("OFFERED",)] * 6 + [("WAITING",)] * 2


# Joining and closing in one moment ------------------------------------------------------------------------------------


async def _overlooked(shop: Shop) -> bool:
    """Whether somebody waits in a sale that has no list."""
    [(waits, has_list)] = await shop.rows(
        "SELECT EXISTS (SELECT FROM waiting_list_entries WHERE status = 'WAITING'), waiting_list FROM sales"
    )
    return bool(waits and not has_list)


async def test_control_closing_a_list_without_the_lock_overlooks_who_joins(shop: Shop) -> None:
    await join(shop, "ann")
    await shop.stores.postgres.execute("UPDATE waiting_list_entries SET status = 'LEFT', reason = 'USER'")
    user_id, sale = await shop.person("ben"), await shop.sale()
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        # Somebody joins without the lock: the list is open, so there is nothing to change in the sale's row.
        await connection.execute(
            "INSERT INTO waiting_list_entries (entry_id, sale_id, schedule_id, user_id, quantity, adjacent, "
            "hold_id, status, fingerprint) VALUES ($1, $2, $3, $4, 1, true, $5, 'WAITING', '')",
            ids.random_id(),
            sale.sale_id,
            sale.schedule_id,
            user_id,
            ids.random_id(),
        )
        await waiting_lists.SQL.close_list.execute(shop.stores.postgres, sale.sale_id)
    assert await _overlooked(shop)


async def test_a_list_that_is_closed_while_somebody_joins_overlooks_nobody(shop: Shop) -> None:
    for turn in range(25):
        await join(shop, f"first {turn}")
        await shop.stores.postgres.execute(
            "UPDATE waiting_list_entries SET status = 'LEFT', reason = 'USER' WHERE status = 'WAITING'"
        )
        sale = await shop.sale()
        await shop.person(f"second {turn}")
        await asyncio.gather(seat_waiting_lists.serve(shop.stores, sale), join(shop, f"second {turn}"))
        assert not await _overlooked(shop)
        assert await shop.term("waiting_list") == "1"
