"""The outbox: entries of a stream become rows in order, each once, and anything else is noticed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.stores import outbox
from engine.stores.connections import RedisClient, open_postgres
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

SALE_ID = "5a1e" * 8
KEYS = SaleKeys(SALE_ID)


@pytest.fixture(autouse=True)
async def sale(postgres: asyncpg.Pool) -> None:
    """A sale that is open in epoch 1, with nothing applied."""
    await postgres.execute(
        "INSERT INTO sales (sale_id, kind, name, epoch, store_state) VALUES ($1, 'seats', 'One night', 1, 'open')", SALE_ID
    )
    await postgres.execute(
        "INSERT INTO stream_watermarks (sale_id, stream, epoch, n, entry_id) "
        "VALUES ($1, 'outbox', 1, 0, '0-0'), ($1, 'journal', 1, 0, '0-0')",
        SALE_ID,
    )


class Writer:
    """Appends entries as the scripts do; a test may lie about any part of one."""

    def __init__(self, redis: RedisClient, stream: Stream = "outbox") -> None:
        self.redis = redis
        self.stream: Stream = stream
        self.key = getattr(KEYS, stream)
        self.n = 0
        self.before = "0-0"

    async def append(
        self, *, kind: str = "noted", n: int | None = None, before: str | None = None, epoch: int = 1, **fields: str
    ) -> str:
        self.n = self.n + 1 if n is None else n
        entry: dict[Any, Any] = {
            "epoch": epoch, "n": self.n, "before": before or self.before, "kind": kind, **fields
        }  # fmt: skip
        self.before = (await self.redis.xadd(self.key, entry)).decode()
        await self.redis.hset(KEYS.sale, mapping={"epoch": 1, "state": "open", f"{self.stream}_n": self.n})  # type: ignore[misc]
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
    return [row["name"] for row in await postgres.fetch("SELECT name FROM installation ORDER BY created_at, name")]


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


async def test_a_second_reader_of_the_same_generation_applies_nothing_twice(
    gate: Gate, postgres: asyncpg.Pool
) -> None:
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
    ids = [await writer.append(**({"sql": sql} if at == 6 else {})) for at in range(20)]
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
    assert all(before[1] + 1 == after[0] for before, after in zip(applied, applied[1:], strict=False))


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
    "fault",
    [
        pytest.param(lambda entry: entry.fields["missing"], id="a field is missing"),
        pytest.param(lambda entry: int(entry.kind), id="a field is no number"),
    ],
)
async def test_an_entry_that_cannot_be_read_is_dead_lettered(
    gate: Gate, postgres: asyncpg.Pool, fault: Callable[[Entry], object]
) -> None:
    async def apply(connection: Connection, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.n == 2:
                fault(entry)
        await note(connection, entries)

    writer = Writer(gate.redis)
    ids = [await writer.append() for _ in range(3)]
    reader = await open_reader(gate, postgres, handler=Handler(apply=apply, bury=bury_nothing))
    assert await reader.drain() == 3
    assert await noted(postgres) == [ids[0], ids[2]]
    assert await postgres.fetchval("SELECT n FROM dead_letters") == 2


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
async def test_a_transaction_that_was_crossed_is_repeated_whole(
    gate: Gate, postgres: asyncpg.Pool, code: str
) -> None:
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


@asynccontextmanager
async def losing_answers(postgres_url: str, *, after: bytes) -> AsyncIterator[tuple[asyncpg.Pool, list[bytes]]]:
    """A pool whose connection dies once: `after` reaches Postgres and is carried out, and its answer is lost."""
    lost: list[bytes] = []
    parameters = asyncpg.connect_utils._parse_connect_arguments  # noqa: F841 - the address is split below
    socket = _socket_of(postgres_url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(socket)

        async def back() -> None:
            while block := await up_reader.read(65536):
                if lost and lost[-1] is not None and writer.is_closing():
                    return
                writer.write(block)

        answering = asyncio.create_task(back())
        while block := await reader.read(65536):
            if after in block and not lost:
                answering.cancel()
                up_writer.write(block)
                lost.append(await up_reader.read(65536))
                break
            up_writer.write(block)
        answering.cancel()
        writer.close()
        up_writer.close()

    server = await asyncio.start_unix_server(serve, path=f"{socket}.lossy")
    async with server:
        pool = await open_postgres(postgres_url)
        yield pool, lost
        await pool.close()


def _socket_of(_url: str) -> str:
    raise NotImplementedError
