"""Races of the outbox, each beside the simpler rule that loses it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from engine import waiting_room
from engine.stores import outbox
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.outbox import Divergence, Entry, Handler, OwnershipLost, Reader
from engine.stores.queries import Connection
from engine.stores.scripts import Gate
from tests.shop import open_shop

SALE_ID = "5a1e" * 8
KEYS = SaleKeys(SALE_ID)


@pytest.fixture
async def sale(postgres: asyncpg.Pool) -> None:
    """A sale that is open in epoch 1, and a tally of what was applied."""
    await postgres.execute(
        "INSERT INTO sales (sale_id, kind, name, epoch, store_state) VALUES ($1, 'seats', 'Night', 1, 'open')", SALE_ID
    )
    await postgres.execute(
        "INSERT INTO stream_watermarks (sale_id, stream, epoch, n, entry_id) VALUES ($1, 'outbox', 1, 0, '0-0')",
        SALE_ID,
    )
    await postgres.execute("CREATE TABLE tally (fact text NOT NULL)")


async def append(redis: Any, n: int, before: str, fact: str) -> str:
    entry_id: bytes = await redis.xadd(
        KEYS.outbox, {"epoch": 1, "n": n, "before": before, "kind": "sold", "fact": fact}
    )
    await redis.hset(KEYS.sale, mapping={"epoch": "1", "state": "open", "outbox_n": str(n)})
    return entry_id.decode()


async def count(connection: Connection, entries: Sequence[Entry]) -> None:
    await connection.executemany("INSERT INTO tally (fact) VALUES ($1)", [(entry.fields["fact"],) for entry in entries])


async def bury_nothing(_connection: Connection, _entry: Entry) -> str | None:
    return None


async def tally(postgres: asyncpg.Pool) -> list[str]:
    return [row["fact"] for row in await postgres.fetch("SELECT fact FROM tally ORDER BY fact")]


def reader(gate: Gate, postgres: asyncpg.Pool, generation: int) -> Reader:
    return Reader(gate, postgres, KEYS, "outbox", generation, Handler(apply=count, bury=bury_nothing))


# Numbers given twice after a failover ---------------------------------------------------------------------------------


async def go_on_elsewhere(redis: Redis) -> None:
    second = (await redis.xrevrange(KEYS.outbox, count=1))[0][0].decode()
    third = await append(redis, 3, second, "C, another third")
    await append(redis, 4, third, "d")


async def drain_by_number(redis: Redis, postgres: asyncpg.Pool, watermark: int) -> int:
    """The simpler rule: whatever has the next number is next."""
    for _, fields in await redis.xrange(KEYS.outbox):
        if int(fields[b"n"]) == watermark + 1:
            await postgres.execute("INSERT INTO tally (fact) VALUES ($1)", fields[b"fact"].decode())
            watermark += 1
    return watermark


@pytest.mark.usefixtures("sale")
async def test_control_numbers_alone_skip_an_entry_that_was_given_twice(redis: Redis, postgres: asyncpg.Pool) -> None:
    first = await append(redis, 1, "0-0", "a")
    second = await append(redis, 2, first, "b")
    third = await append(redis, 3, second, "c, which is lost")
    watermark = await drain_by_number(redis, postgres, 0)
    await redis.xdel(KEYS.outbox, third)
    await go_on_elsewhere(redis)
    assert await drain_by_number(redis, postgres, watermark) == 4  # nothing was noticed
    assert "C, another third" not in await tally(postgres)


@pytest.mark.usefixtures("sale")
async def test_numbers_given_twice_after_a_failover_break_the_chain(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    generation = (await outbox.take_ownership(postgres, "worker"))[SALE_ID]
    owner = reader(gate, postgres, generation)
    first = await append(redis, 1, "0-0", "a")
    second = await append(redis, 2, first, "b")
    lost = await append(redis, 3, second, "c, which is lost")
    assert await owner.drain() == 3
    await redis.xdel(KEYS.outbox, lost)
    # `drain` keeps the watermark's entry alone; the replica that was promoted never heard of it.
    third = await append(redis, 3, second, "C, another third")
    await append(redis, 4, third, "d")
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None
    with pytest.raises(Divergence):
        await owner.drain()
    assert await tally(postgres) == ["a", "b", "c, which is lost"]


# A worker that was dead, or slept -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sale")
async def test_control_a_lease_alone_lets_a_worker_that_slept_apply_twice(redis: Redis, postgres: asyncpg.Pool) -> None:
    """The simpler rule: look at the lease, then write. Between the two a process can sleep for a minute."""
    await append(redis, 1, "0-0", "a")

    asleep, wakes = asyncio.Event(), asyncio.Event()

    async def drain(*, sleeps: bool) -> None:
        entries = await redis.xrange(KEYS.outbox)
        applied = await postgres.fetchval("SELECT n FROM stream_watermarks")
        if sleeps:
            asleep.set()
            await wakes.wait()
        for _, fields in entries:
            if int(fields[b"n"]) > applied:
                await postgres.execute("INSERT INTO tally (fact) VALUES ($1)", fields[b"fact"].decode())
                await postgres.execute("UPDATE stream_watermarks SET n = $1", int(fields[b"n"]))

    sleeping = asyncio.create_task(drain(sleeps=True))
    await asleep.wait()
    await drain(sleeps=False)  # its lease has lapsed: another owns the sale
    wakes.set()
    await sleeping
    assert await tally(postgres) == ["a", "a"]


@pytest.mark.usefixtures("sale")
async def test_a_worker_that_slept_through_a_take_over_is_fenced(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    asleep, wakes = asyncio.Event(), asyncio.Event()

    class Sleeper(Reader):
        """Sleeps between reading its entries and writing them."""

        async def apply(self, entries: Sequence[Entry]) -> None:
            asleep.set()
            await wakes.wait()
            await super().apply(entries)

    first = (await outbox.take_ownership(postgres, "sleeper"))[SALE_ID]
    sleeper = Sleeper(gate, postgres, KEYS, "outbox", first, Handler(apply=count, bury=bury_nothing))
    await append(redis, 1, "0-0", "a")
    sleeping = asyncio.create_task(sleeper.drain())
    await asleep.wait()
    await postgres.execute("UPDATE stream_owners SET until = now() - interval '1 second'")
    second = (await outbox.take_ownership(postgres, "second"))[SALE_ID]
    assert await reader(gate, postgres, second).drain() == 1
    wakes.set()
    with pytest.raises(OwnershipLost):
        await sleeping
    assert await tally(postgres) == ["a"]


@pytest.mark.usefixtures("sale")
@pytest.mark.parametrize("died", ["before its commit", "after its commit"])
async def test_a_dead_workers_batch_is_applied_once_whenever_it_died(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool, died: str
) -> None:
    first = (await outbox.take_ownership(postgres, "dead"))[SALE_ID]
    before = "0-0"
    for n in range(1, 4):
        before = await append(redis, n, before, f"{n}")
    dying = reader(gate, postgres, first)
    if died == "after its commit":
        entries = await outbox.read(redis, KEYS, "outbox", outbox.Watermark(1, first, 0, "0-0"))
        await dying._apply_or_bury(entries)  # nobody is told: it died right after
    await postgres.execute("UPDATE stream_owners SET until = now() - interval '1 second'")
    second = reader(gate, postgres, (await outbox.take_ownership(postgres, "next"))[SALE_ID])
    assert await second.drain() == (0 if died == "after its commit" else 3)
    assert await tally(postgres) == ["1", "2", "3"]
    rows = await postgres.fetch("SELECT first_n, last_n FROM applied_batches")
    assert [tuple(row) for row in rows] == [(1, 3)]


@pytest.mark.usefixtures("sale")
async def test_many_workers_forced_onto_one_stream_apply_each_entry_once(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    before = "0-0"
    for n in range(1, 41):
        before = await append(redis, n, before, f"{n:02}")
    generation = (await outbox.take_ownership(postgres, "one of many"))[SALE_ID]
    outcomes = await asyncio.gather(
        *[reader(gate, postgres, generation).drain() for _ in range(6)], return_exceptions=True
    )
    # One applies them all; whoever looks later finds nothing left, or that it was not the one.
    assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == 40
    assert 40 in outcomes
    assert all(isinstance(outcome, int | OwnershipLost) for outcome in outcomes)
    assert await tally(postgres) == [f"{n:02}" for n in range(1, 41)]


# The room's part of the journal ---------------------------------------------------------------------------------------


async def test_lost_joins_are_read_anew_from_the_room_and_the_sale_goes_on(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, room="open")
    sale, redis = await shop.sale(), stores_any.redis
    owners = [await shop.person(f"person {at}") for at in range(1, 7)]
    for owner in owners:
        assert isinstance(await waiting_room.join(stores_any.gate, sale, owner=owner), waiting_room.Joined)
    await waiting_room.leave(stores_any.gate, sale, owner=owners[3], queue_no=4)
    lost = [entry_id for entry_id, _ in await redis.xrange(sale.keys.journal)][1:4]
    await redis.xdel(sale.keys.journal, *lost)
    await shop.drain()
    rows = await stores_any.postgres.fetch("SELECT queue_no, owner, status FROM queue_tokens ORDER BY 1")
    assert [tuple(row) for row in rows] == [
        (at, owner, "LEFT" if at == 4 else "WAITING") for at, owner in enumerate(owners, 1)
    ]
    assert (await shop.row())["store_state"] == "open"
    assert await shop.inspect() is None
    await shop.check()


async def test_a_lost_hold_among_lost_joins_freezes_the_sale(stores: Stores) -> None:
    shop = await open_shop(stores)
    sale = await shop.sale()
    await shop.hold("A-1-1")
    await shop.hold("A-1-2")
    await stores.redis.xdel(sale.keys.journal, (await stores.redis.xrange(sale.keys.journal))[0][0])
    assert await shop.inspect() is not None
    with pytest.raises(Divergence):
        await shop.drain()
