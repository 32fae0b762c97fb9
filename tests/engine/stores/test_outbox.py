"""The outbox: entries of a stream become rows in order, each once, and anything else is noticed."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.stores import outbox
from engine.stores.connections import open_postgres
from engine.stores.keys import SaleKeys
from engine.stores.outbox import (
    BATCH_MAX,
    CHANNEL,
    Divergence,
    Entry,
    Handler,
    OwnershipLost,
    Reader,
    Stream,
    Watermark,
)
from engine.stores.queries import Connection
from engine.stores.scripts import Gate
from tests.wires import losing_answers

SALE_ID = "5a1e" * 8
KEYS = SaleKeys(SALE_ID)


@pytest.fixture(autouse=True)
async def sale(postgres: asyncpg.Pool) -> None:
    """A sale that is open in epoch 1, with nothing applied."""
    await postgres.execute(
        "INSERT INTO sales (sale_id, kind, name, epoch, store_state) VALUES ($1, 'seats', 'One night', 1, 'open')",
        SALE_ID,
    )
    await postgres.execute(
        "INSERT INTO stream_watermarks (sale_id, stream, epoch, n, entry_id) "
        "VALUES ($1, 'outbox', 1, 0, '0-0'), ($1, 'journal', 1, 0, '0-0')",
        SALE_ID,
    )


class Writer:
    """Appends entries as the scripts do; a test may lie about any part of one."""

    def __init__(self, redis: Any, stream: Stream = "outbox") -> None:
        self.redis = redis
        self.stream: Stream = stream
        self.key = getattr(KEYS, stream)
        self.n = 0
        self.before = "0-0"
        self.holds = "0-0"

    async def append(
        self, *, kind: str = "noted", n: int | None = None, before: str | None = None, epoch: int = 1, **fields: str
    ) -> str:
        self.n = self.n + 1 if n is None else n
        entry: dict[Any, Any] = {
            "epoch": epoch, "n": self.n, "before": before or self.before, "kind": kind, "holds": self.holds, **fields
        }  # fmt: skip
        self.before = (await self.redis.xadd(self.key, entry)).decode()
        self.holds = self.before if kind in outbox.ABOUT_HOLDS else self.holds
        await self.redis.hset(KEYS.sale, mapping={"epoch": 1, "state": "open", f"{self.stream}_n": self.n})
        return self.before


async def note(connection: Connection, entries: Sequence[Entry]) -> None:
    """Write one row an entry, in a table that wants nothing else; `sql` of an entry is run before."""
    for entry in entries:
        if "sql" in entry.fields:
            await connection.execute(entry.fields["sql"])
        await connection.execute("INSERT INTO installation (name, value) VALUES ($1, $2)", entry.entry_id, entry.kind)


async def bury_nothing(_connection: Connection, _entry: Entry) -> str | None:
    return None


async def noted(postgres: asyncpg.Pool) -> list[str]:
    """The ids of the entries that were applied, in order."""
    return [
        row["name"]
        for row in await postgres.fetch(
            "SELECT name FROM installation WHERE name <> 'time_zone' ORDER BY created_at, name"
        )
    ]


async def ranges(postgres: asyncpg.Pool, stream: Stream = "outbox") -> list[tuple[int, int]]:
    """The applied ranges of numbers."""
    rows = await postgres.fetch(
        "SELECT first_n, last_n FROM applied_batches WHERE stream = $1 ORDER BY first_n", stream
    )
    return [(row["first_n"], row["last_n"]) for row in rows]


async def own(postgres: asyncpg.Pool, owner: str = "first") -> int:
    return (await outbox.take_ownership(postgres, owner))[SALE_ID]


async def open_reader(
    gate: Gate,
    postgres: asyncpg.Pool,
    *,
    stream: Stream = "outbox",
    generation: int | None = None,
    handler: Handler | None = None,
) -> Reader:
    generation = await own(postgres) if generation is None else generation
    return Reader(gate, postgres, KEYS, stream, generation, handler or Handler(apply=note, bury=bury_nothing))


async def lapse(postgres: asyncpg.Pool) -> None:
    """Age the lease."""
    await postgres.execute("UPDATE stream_owners SET until = now() - interval '1 second'")


# In order, once -------------------------------------------------------------------------------------------------------


async def test_entries_are_applied_in_order_and_the_watermark_moves_with_them(
    gate_any: Gate, postgres: asyncpg.Pool
) -> None:
    writer = Writer(gate_any.redis)
    ids = [await writer.append() for _ in range(3)]
    reader = await open_reader(gate_any, postgres)
    assert await reader.drain() == 3
    assert await noted(postgres) == ids
    assert await outbox.find_watermark(postgres, SALE_ID, "outbox") == Watermark(1, 1, 3, ids[-1])
    assert await ranges(postgres) == [(1, 3)]


async def test_nothing_new_is_no_batch(gate: Gate, postgres: asyncpg.Pool) -> None:
    writer = Writer(gate.redis)
    await writer.append()
    reader = await open_reader(gate, postgres)
    assert [await reader.drain() for _ in range(3)] == [1, 0, 0]
    assert await ranges(postgres) == [(1, 1)]


@pytest.mark.parametrize("stream", ["outbox", "journal"])
async def test_a_batch_is_bounded_and_the_next_goes_on(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool, stream: Stream
) -> None:
    most = BATCH_MAX[stream]
    async with redis.pipeline(transaction=False) as pipe:
        for n in range(1, most + 2):
            before = "0-0" if n == 1 else f"{n - 1}-0"
            pipe.xadd(getattr(KEYS, stream), {"epoch": 1, "n": n, "before": before, "kind": "noted"}, id=f"{n}-0")
        await pipe.execute()

    async def ignore(_connection: Connection, _entries: Sequence[Entry]) -> None:
        pass

    reader = await open_reader(gate, postgres, stream=stream, handler=Handler(apply=ignore, bury=bury_nothing))
    assert [await reader.drain(), await reader.drain()] == [most, 1]
    assert await ranges(postgres, stream) == [(1, most), (most + 1, most + 1)]


async def test_a_second_reader_of_the_same_generation_applies_nothing_twice(gate: Gate, postgres: asyncpg.Pool) -> None:
    writer = Writer(gate.redis)
    generation = await own(postgres)
    one, other = [await open_reader(gate, postgres, generation=generation) for _ in range(2)]
    assert [await one.drain(), await other.drain()] == [0, 0]  # both know the watermark
    entry_id = await writer.append()
    assert await one.drain() == 1
    with pytest.raises(OwnershipLost):
        await other.drain()
    assert await noted(postgres) == [entry_id]
    assert await other.drain() == 0


# Breaks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param({"n": 3}, id="a gap"),
        pytest.param({"n": 1}, id="a number seen before"),
        pytest.param({"before": "7-7"}, id="another predecessor"),
        pytest.param({"epoch": 2}, id="another epoch"),
    ],
)
async def test_a_break_in_the_chain_is_divergence(gate: Gate, postgres: asyncpg.Pool, lie: dict[str, Any]) -> None:
    writer = Writer(gate.redis)
    first = await writer.append()
    await writer.append(**lie)
    reader = await open_reader(gate, postgres)
    assert await reader.drain() == 1  # what stands before the break is applied
    with pytest.raises(Divergence):
        await reader.drain()
    assert await noted(postgres) == [first]


async def test_an_entry_that_no_script_wrote_is_divergence(gate: Gate, redis: Redis, postgres: asyncpg.Pool) -> None:
    await redis.xadd(KEYS.outbox, {"hello": "there"})
    reader = await open_reader(gate, postgres)
    with pytest.raises(Divergence):
        await reader.drain()


@pytest.mark.parametrize("strange", [b"there", b"\xff"])
async def test_what_stands_before_such_an_entry_is_applied(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool, strange: bytes
) -> None:
    writer = Writer(redis)
    ids = [await writer.append() for _ in range(2)]
    await redis.xadd(KEYS.outbox, {"hello": strange})
    reader = await open_reader(gate, postgres)
    assert await reader.drain() == 2
    assert await noted(postgres) == ids
    with pytest.raises(Divergence):
        await reader.drain()


async def test_trimmed_entries_that_were_not_applied_are_divergence(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    writer = Writer(redis)
    for _ in range(5):
        await writer.append()
    await redis.xtrim(KEYS.outbox, maxlen=2, approximate=False)
    reader = await open_reader(gate, postgres)
    with pytest.raises(Divergence):
        await reader.drain()


# A break that is about the room alone ---------------------------------------------------------------------------------


async def write_room_anew(_gate: Gate, connection: Connection) -> None:
    await connection.execute("INSERT INTO installation (name, value) VALUES ('room', 'read anew')")


RESYNCING = Handler(apply=note, bury=bury_nothing, resync=write_room_anew)


async def test_lost_entries_about_the_room_alone_resync_the_room_and_freeze_nothing(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    writer = Writer(redis, "journal")
    held = await writer.append(kind="held")
    reader = await open_reader(gate, postgres, stream="journal", handler=RESYNCING)
    assert await reader.drain() == 1
    lost = [await writer.append(kind="joined"), await writer.append(kind="admitted")]
    ids = [await writer.append(kind="joined"), await writer.append(kind="released")]
    await redis.xdel(KEYS.journal, *lost)
    assert await outbox.inspect(gate, postgres, KEYS, 1) is None
    assert await reader.drain() == 2
    assert set(await noted(postgres)) == {held, "room", *ids}
    assert await ranges(postgres, "journal") == [(1, 1), (2, 3), (4, 5)]
    assert await outbox.find_watermark(postgres, SALE_ID, "journal") == Watermark(1, 1, 5, ids[-1], ids[-1])
    assert await postgres.fetchval("SELECT store_state FROM sales") == "open"


@pytest.mark.parametrize("kind", sorted(outbox.ABOUT_HOLDS))
async def test_a_lost_entry_about_a_hold_is_divergence(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool, kind: str
) -> None:
    writer = Writer(redis, "journal")
    await writer.append(kind="joined")
    reader = await open_reader(gate, postgres, stream="journal", handler=RESYNCING)
    assert await reader.drain() == 1
    lost = await writer.append(kind=kind)
    await writer.append(kind="joined")
    await redis.xdel(KEYS.journal, lost)
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None
    with pytest.raises(Divergence):
        await reader.drain()


async def test_a_script_that_failed_half_way_is_divergence_even_between_entries_about_the_room(
    gate: Gate, postgres: asyncpg.Pool
) -> None:
    writer = Writer(gate.redis, "journal")
    await writer.append(kind="joined")
    await writer.append(kind="joined", n=3)  # whoever was given 2 wrote no entry, and may have been a hold
    reader = await open_reader(gate, postgres, stream="journal", handler=RESYNCING)
    assert await reader.drain() == 1
    with pytest.raises(Divergence):
        await reader.drain()


async def test_a_number_of_the_room_given_twice_is_divergence(gate: Gate, redis: Redis, postgres: asyncpg.Pool) -> None:
    writer = Writer(redis, "journal")
    first = await writer.append(kind="joined")
    await writer.append(kind="joined")
    reader = await open_reader(gate, postgres, stream="journal", handler=RESYNCING)
    assert await reader.drain() == 2
    await writer.append(kind="joined", n=2, before=first)
    with pytest.raises(Divergence):
        await reader.drain()


async def test_the_outbox_is_never_passed_over(gate: Gate, redis: Redis, postgres: asyncpg.Pool) -> None:
    writer = Writer(redis)
    await writer.append()
    reader = await open_reader(gate, postgres, handler=RESYNCING)
    assert await reader.drain() == 1
    lost = await writer.append()
    await writer.append()
    await redis.xdel(KEYS.outbox, lost)
    with pytest.raises(Divergence):
        await reader.drain()


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("SELECT 1 / 0", id="class 22"),
        pytest.param("INSERT INTO installation (name, value) VALUES ('x', NULL)", id="class 23"),
    ],
)
async def test_an_entry_that_postgres_refuses_is_dead_lettered_and_the_rest_flows(
    gate: Gate, postgres: asyncpg.Pool, sql: str
) -> None:
    writer = Writer(gate.redis)
    ids = [await (writer.append(sql=sql) if at == 6 else writer.append()) for at in range(20)]
    reader = await open_reader(gate, postgres)
    assert await reader.drain() == 20
    assert await noted(postgres) == ids[:6] + ids[7:]
    letter = await postgres.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["n"], letter["entry_id"], letter["kind"]) == (7, ids[6], "noted")
    assert letter["fields"]["sql"] == sql
    applied = await ranges(postgres)
    assert applied[0][0] == 1
    assert applied[-1][1] == 20
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(applied))


async def test_what_an_entry_leaves_when_it_is_buried_is_in_the_letters_transaction(
    gate: Gate, postgres: asyncpg.Pool
) -> None:
    async def bury(connection: Connection, entry: Entry) -> str | None:
        await connection.execute("INSERT INTO installation (name, value) VALUES ('buried', $1)", entry.entry_id)
        return "0f" * 16

    writer = Writer(gate.redis)
    entry_id = await writer.append(sql="SELECT 1 / 0")
    reader = await open_reader(gate, postgres, handler=Handler(apply=note, bury=bury))
    assert await reader.drain() == 1
    assert await postgres.fetchval("SELECT value FROM installation WHERE name = 'buried'") == entry_id
    assert await postgres.fetchval("SELECT payment_id FROM dead_letters") == "0f" * 16


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda entry: entry.text("missing"), id="a field is missing"),
        pytest.param(lambda entry: entry.number("word"), id="a field is no number"),
        pytest.param(lambda entry: entry.numbers("word"), id="a field is no list of numbers"),
        pytest.param(lambda entry: entry.id("word"), id="a field is no id"),
    ],
)
async def test_an_entry_that_cannot_be_read_is_dead_lettered(
    gate: Gate, postgres: asyncpg.Pool, read: Callable[[Entry], object]
) -> None:
    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.n == 2:
                read(entry)
        await note(connection, entries)

    writer = Writer(gate.redis)
    ids = [await writer.append(word="seven") for _ in range(3)]
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    assert await reader.drain() == 3
    assert await noted(postgres) == [ids[0], ids[2]]
    assert await postgres.fetchval("SELECT n FROM dead_letters") == 2


async def test_a_fault_of_our_own_is_no_dead_letter(gate: Gate, postgres: asyncpg.Pool) -> None:
    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await note(connection, entries)
        raise KeyError("a bug")

    writer = Writer(gate.redis)
    await writer.append()
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    for _ in range(2):
        with pytest.raises(KeyError, match="a bug"):
            await reader.drain()
    assert await postgres.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await noted(postgres) == []


async def test_an_entry_with_an_id_that_is_none_is_dead_lettered(gate: Gate, postgres: asyncpg.Pool) -> None:
    """The driver refuses it before Postgres does, as an error of the interface."""

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        for entry in entries:
            await connection.fetchval("SELECT $1::uuid", entry.fields.get("hold_id", "00" * 16))
        await note(connection, entries)

    writer = Writer(gate.redis)
    ids = [await writer.append(), await writer.append(hold_id="nonsense"), await writer.append()]
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    assert await reader.drain() == 3
    assert await noted(postgres) == [ids[0], ids[2]]


@pytest.mark.parametrize("code", ["40P01", "40001"])
async def test_a_transaction_that_was_crossed_is_repeated_whole(gate: Gate, postgres: asyncpg.Pool, code: str) -> None:
    attempts: list[int] = []

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await note(connection, entries)
        attempts.append(len(entries))
        if len(attempts) < 3:
            await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")

    writer = Writer(gate.redis)
    ids = [await writer.append() for _ in range(4)]
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    assert await reader.drain() == 4
    assert attempts == [4, 4, 4]
    assert await noted(postgres) == ids
    assert await postgres.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_a_connection_that_is_killed_in_the_middle_is_repeated_whole(gate: Gate, postgres: asyncpg.Pool) -> None:
    attempts: list[int] = []

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await note(connection, entries)
        attempts.append(len(entries))
        if len(attempts) == 1:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    writer = Writer(gate.redis)
    ids = [await writer.append() for _ in range(2)]
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    assert await reader.drain() == 2
    assert attempts == [2, 2]
    assert await noted(postgres) == ids


async def test_a_commit_whose_answer_was_lost_is_not_applied_again(
    gate: Gate, postgres: asyncpg.Pool, postgres_url: str
) -> None:
    writer = Writer(gate.redis)
    ids = [await writer.append() for _ in range(3)]
    generation = await own(postgres)
    async with losing_answers(postgres_url, to=b"COMMIT;") as url:
        lossy = await open_postgres(url)
        reader = await open_reader(gate, lossy, generation=generation)
        assert await reader.drain() == 3
        await lossy.close()
    assert await noted(postgres) == ids
    assert await ranges(postgres) == [(1, 3)]


# Ownership ------------------------------------------------------------------------------------------------------------


async def test_a_sale_has_one_owner_however_many_ask_at_once(postgres: asyncpg.Pool) -> None:
    taken = await asyncio.gather(*[outbox.take_ownership(postgres, f"worker {at}") for at in range(6)])
    assert sorted(len(sales) for sales in taken) == [0, 0, 0, 0, 0, 1]


async def test_a_lapsed_lease_is_taken_over_by_the_next_generation(postgres: asyncpg.Pool) -> None:
    assert await outbox.take_ownership(postgres, "first") == {SALE_ID: 1}
    assert await outbox.take_ownership(postgres, "second") == {}
    await lapse(postgres)
    assert await outbox.take_ownership(postgres, "second") == {SALE_ID: 2}
    assert await outbox.renew_ownership(postgres, "first", {SALE_ID: 1}) == {}
    assert await outbox.renew_ownership(postgres, "second", {SALE_ID: 2}) == {SALE_ID: 2}


async def test_an_owner_that_was_late_and_not_replaced_goes_on(postgres: asyncpg.Pool) -> None:
    owned = await outbox.take_ownership(postgres, "first")
    await lapse(postgres)
    assert await outbox.renew_ownership(postgres, "first", owned) == owned
    assert await outbox.take_ownership(postgres, "second") == {}


async def test_what_is_given_back_is_taken_at_once(postgres: asyncpg.Pool) -> None:
    owned = await outbox.take_ownership(postgres, "first")
    await outbox.give_back_ownership(postgres, "second", owned)  # not its own: nothing happens
    assert await outbox.take_ownership(postgres, "second") == {}
    await outbox.give_back_ownership(postgres, "first", owned)
    assert await outbox.take_ownership(postgres, "second") == {SALE_ID: 2}


async def test_only_the_sales_named_are_taken(postgres: asyncpg.Pool) -> None:
    assert await outbox.take_ownership(postgres, "first", sale_ids=["00" * 16]) == {}
    assert await outbox.take_ownership(postgres, "first", sale_ids=[SALE_ID]) == {SALE_ID: 1}


async def test_an_owner_of_an_older_generation_writes_nothing(gate: Gate, postgres: asyncpg.Pool) -> None:
    writer = Writer(gate.redis)
    first = await open_reader(gate, postgres)
    assert await first.drain() == 0
    await lapse(postgres)
    second = await open_reader(gate, postgres, generation=await own(postgres, "second"))
    entry_id = await writer.append()
    with pytest.raises(OwnershipLost):
        await first.drain()
    assert await noted(postgres) == []
    assert await second.drain() == 1
    assert await noted(postgres) == [entry_id]
    with pytest.raises(OwnershipLost):  # also when it asks again
        await first.drain()


async def test_a_take_over_waits_for_the_batch_under_way_and_goes_on_after_it(
    gate: Gate, postgres: asyncpg.Pool
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        await note(connection, entries)
        reached.set()
        await go_on.wait()

    writer = Writer(gate.redis)
    ids = [await writer.append() for _ in range(2)]
    first = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    draining = asyncio.create_task(first.drain())
    await reached.wait()
    await lapse(postgres)
    taking = asyncio.create_task(outbox.take_ownership(postgres, "second"))
    done, _ = await asyncio.wait([taking], timeout=0.2)
    assert not done
    go_on.set()
    assert await draining == 2
    second = await open_reader(gate, postgres, generation=(await taking)[SALE_ID])
    ids.append(await writer.append())
    assert await second.drain() == 1
    assert await noted(postgres) == ids


# After the commit -----------------------------------------------------------------------------------------------------


async def test_the_number_is_published_after_the_commit(
    gate: Gate, redis: Redis, listener: Redis, postgres: asyncpg.Pool
) -> None:
    writer = Writer(redis)
    reader = await open_reader(gate, postgres)
    async with listener.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        await writer.append()
        await writer.append()
        assert await reader.drain() == 2
        async with asyncio.timeout(5):
            async for message in channel.listen():
                if message["type"] == "message":
                    break
    assert message["data"].decode() == f"{SALE_ID} 1 2"
    assert await ranges(postgres) == [(1, 2)]


@pytest.mark.parametrize("stream", ["outbox", "journal"])
async def test_the_sale_learns_the_number_and_the_stream_keeps_the_last_applied_entry(
    gate_any: Gate, postgres: asyncpg.Pool, stream: Stream
) -> None:
    redis = gate_any.redis
    writer = Writer(redis, stream)
    ids = [await writer.append() for _ in range(5)]
    reader = await open_reader(gate_any, postgres, stream=stream)
    assert await reader.drain() == 5
    assert await redis.hget(KEYS.sale, f"{stream}_persisted_n") == b"5"
    kept = await redis.xrange(getattr(KEYS, stream))
    assert [entry_id.decode() for entry_id, _ in kept] == [ids[-1]]
    ids.append(await writer.append())
    assert await reader.drain() == 1
    assert await noted(postgres) == ids


async def test_an_older_persisted_number_never_replaces_a_newer_one(gate: Gate, redis: Any) -> None:
    writer = Writer(redis)
    ids = [await writer.append() for _ in range(3)]
    for n in (3, 1):
        await outbox.PERSIST(gate, KEYS, epoch=1, name="outbox", n=n, entry_id=ids[n - 1], channel=CHANNEL, message="")
    assert await redis.hget(KEYS.sale, "outbox_persisted_n") == b"3"
    assert await redis.xlen(KEYS.outbox) == 1


async def test_a_store_that_dies_after_the_commit_is_no_fault_of_the_batch(gate: Gate, postgres: asyncpg.Pool) -> None:
    writer = Writer(gate.redis)
    reader = await open_reader(gate, postgres)
    last = Watermark(1, reader.generation, 1, await writer.append(), "0-0")
    elsewhere = Gate(Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2), deadline_s=0.3)
    assert await outbox.announce(elsewhere, KEYS, "outbox", last) is False
    assert await reader.drain() == 1


@pytest.mark.parametrize("stream", ["outbox", "journal"])
async def test_what_its_reader_could_not_announce_any_more_the_next_one_does(
    gate_any: Gate, postgres: asyncpg.Pool, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = gate_any.redis
    writer = Writer(redis, stream)
    ids = [await writer.append() for _ in range(3)]
    first = await open_reader(gate_any, postgres, stream=stream)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "announce", _dies)
        with pytest.raises(DiedError):
            await first.drain()
    assert await redis.hget(KEYS.sale, f"{stream}_persisted_n") is None
    await lapse(postgres)
    second = await open_reader(gate_any, postgres, stream=stream, generation=await own(postgres, "second"))
    assert await second.drain() == 0
    assert await redis.hget(KEYS.sale, f"{stream}_persisted_n") == b"3"
    assert [entry_id.decode() for entry_id, _ in await redis.xrange(getattr(KEYS, stream))] == [ids[-1]]


async def test_what_the_store_did_not_hear_is_announced_again_and_what_it_heard_is_not(
    gate: Gate, redis: Any, postgres: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(redis)
    await writer.append()
    reader = await open_reader(gate, postgres)
    said: list[int] = []
    announce = outbox.announce

    async def counted(gate: Gate, keys: SaleKeys, stream: Stream, watermark: Watermark) -> bool:
        said.append(watermark.n)
        return len(said) > 1 and await announce(gate, keys, stream, watermark)

    monkeypatch.setattr(outbox, "announce", counted)
    assert await reader.drain() == 1
    assert await redis.hget(KEYS.sale, "outbox_persisted_n") is None
    for _ in range(3):
        assert await reader.drain() == 0
    assert said == [1, 1]
    assert await redis.hget(KEYS.sale, "outbox_persisted_n") == b"1"


class DiedError(Exception):
    """The worker is gone."""


async def _dies(*_: object) -> bool:
    raise DiedError


# Head against watermark -----------------------------------------------------------------------------------------------


async def test_a_healthy_sale_has_nothing_to_say(gate_any: Gate, postgres: asyncpg.Pool) -> None:
    assert await outbox.inspect(gate_any, postgres, KEYS, 1) == "the store does not know the sale"
    writer, journal = Writer(gate_any.redis), Writer(gate_any.redis, "journal")
    for _ in range(2):
        await writer.append()
        await journal.append()
    assert await outbox.inspect(gate_any, postgres, KEYS, 1) is None  # behind, and readable
    generation = await own(postgres)
    for stream in outbox.STREAMS:
        await (await open_reader(gate_any, postgres, stream=stream, generation=generation)).drain()
        assert await outbox.inspect(gate_any, postgres, KEYS, 1) is None


async def _applied(gate: Gate, postgres: asyncpg.Pool, count: int = 3) -> Writer:
    writer = Writer(gate.redis)
    for _ in range(count):
        await writer.append()
    reader = await open_reader(gate, postgres)
    assert await reader.drain() == count
    return writer


async def test_a_store_that_lost_its_last_entries_has_diverged(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    writer = await _applied(gate, postgres)
    await redis.xdel(KEYS.outbox, writer.before)
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_the_same_number_with_another_entry_has_diverged(
    gate: Gate, redis: Redis, postgres: asyncpg.Pool
) -> None:
    writer = await _applied(gate, postgres)
    await redis.delete(KEYS.outbox)
    await writer.append(n=3)
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_a_higher_number_with_nothing_to_read_has_diverged(
    gate: Gate, redis: Any, postgres: asyncpg.Pool
) -> None:
    """Another history whose clock ran behind: its entries come before the one that Postgres applied."""
    await _applied(gate, postgres)
    await redis.delete(KEYS.outbox)
    for n in range(1, 6):
        await redis.xadd(KEYS.outbox, {"epoch": 1, "n": n, "before": f"{n - 1}-0", "kind": "noted"}, id=f"{n}-0")
    await redis.hset(KEYS.sale, "outbox_n", "5")
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_a_number_without_its_entry_has_diverged(gate: Gate, redis: Any, postgres: asyncpg.Pool) -> None:
    await _applied(gate, postgres)
    await redis.hincrby(KEYS.sale, "outbox_n", 1)  # a script failed between the two
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_a_break_behind_the_watermark_has_diverged(gate: Gate, postgres: asyncpg.Pool) -> None:
    writer = await _applied(gate, postgres)
    await writer.append(n=5)
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_another_epoch_in_the_store_has_diverged(gate: Gate, redis: Any, postgres: asyncpg.Pool) -> None:
    await _applied(gate, postgres)
    await redis.hset(KEYS.sale, "epoch", "2")
    assert await outbox.inspect(gate, postgres, KEYS, 1) is not None


async def test_a_rebuild_under_way_is_not_divergence(gate: Gate, postgres: asyncpg.Pool) -> None:
    await _applied(gate, postgres)
    await postgres.execute("UPDATE stream_watermarks SET epoch = 2, n = 0, entry_id = '0-0'")
    assert await outbox.inspect(gate, postgres, KEYS, 1) is None


# Freezing -------------------------------------------------------------------------------------------------------------


async def test_a_frozen_sale_says_why_and_is_frozen_once(
    postgres: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    assert await outbox.freeze(postgres, SALE_ID, 1, "a gap")
    assert not await outbox.freeze(postgres, SALE_ID, 1, "another")
    row = await postgres.fetchrow("SELECT store_state, frozen_reason FROM sales")
    assert row is not None
    assert tuple(row) == ("frozen", "a gap")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_sale_in_another_epoch_is_not_frozen(postgres: asyncpg.Pool) -> None:
    assert not await outbox.freeze(postgres, SALE_ID, 7, "old news")
    assert await postgres.fetchval("SELECT store_state FROM sales") == "open"
