"""The engine against its store: what one Python process gets through the gate, and what a waiting person weighs.

These call the engine itself, because that is what they measure; the rest of the benchmarks speak HTTP.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from engine import (
    accounts,
    authorisations,
    catalogue,
    ids,
    payments,
    rebuild,
    reservations,
    seat_copies,
    seats,
    settlement,
    waiting_room,
)
from engine.sales import Sale, SaleBook, Terms, stored_terms
from engine.settings import Settings
from engine.stores import embedded, migrations, outbox
from engine.stores.coalesce import Coalescer
from engine.stores.connections import Stores, open_redis, open_stores
from engine.stores.scripts import Gate
from loadtests import ceiling
from loadtests.results import Row, ratio_row
from loadtests.shop import DATA, scratch_folder

HOLDS = 30_000
SEATS = 300_000
ROUNDS = 3
CALLERS = 512
LINE = 1_000_000
LINE_SMALL = 1_000
SAMPLE = 5_000


@asynccontextmanager
async def store(*, appendonly: bool) -> AsyncIterator[tuple[Gate, str]]:
    """A private embedded Valkey, with its append-only file on or off."""
    with tempfile.TemporaryDirectory(prefix="lastseat-bench-") as folder, embedded.valkey(Path(folder)) as server:
        redis = open_redis(server.url)
        await redis.config_set("appendonly", "yes" if appendonly else "no")
        try:
            yield Gate(redis, deadline_s=30.0), server.url
        finally:
            await redis.aclose()


async def open_sale(gate: Gate, *, seats_total: int = 0, room: str = "off", **terms: int) -> Sale:
    """Write an open sale with seats A-1-<12 digits> straight to the store."""
    sale = Sale(sale_id=ids.random_id(), epoch=1, room=room, **terms)  # type: ignore[arg-type]  # terms by name
    more = ("version", 1, "repeat_window_ms", 3_600_000, "backlog_max", 0, "queue_no_ceiling", 10**9)
    await rebuild.CLEAR(gate, sale.keys, epoch=1, admitted=0, terms=(*stored_terms(sale), *more))
    for first in range(0, seats_total, 1000):
        rows = [value for n in range(first, min(first + 1000, seats_total)) for value in (f"A-1-{n:012d}", 5000, 0)]
        await seat_copies.LOAD_SEATS(gate, sale.keys, epoch=1, rows=rows)
    await rebuild.OPEN(gate, sale.keys, epoch=1)
    return sale


async def spread(count: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Do numbered work from many callers at once; returns how many a second."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    begun = time.perf_counter()
    await asyncio.gather(*[caller() for _ in range(CALLERS)])
    return count / (time.perf_counter() - begun)


async def _holds_through_the_gate(gate: Gate) -> float:
    sale = await open_sale(gate, seats_total=HOLDS)

    async def hold(n: int) -> None:
        held = await seats.hold(
            gate, sale, hold_id=f"h{n:012d}", buyer_id=f"b{n:012d}", fingerprint="f", seat_nos=(f"A-1-{n:012d}",)
        )
        if not isinstance(held, seats.Held):
            raise TypeError(f"a hold was answered {held}")

    return await spread(HOLDS, hold)


async def _holds_by_the_store(gate: Gate, url: str) -> ceiling.Ceiling:
    """The same script and file, one operation a call, by the fastest driver at hand."""
    sale = await open_sale(gate, seats_total=SEATS)
    await gate.redis.execute_command("SCRIPT LOAD", seats.HOLD.text)
    keys = seats.HOLD.key_values(sale.keys)
    where = urlsplit(url)
    host, port = str(where.hostname), int(where.port or 0)

    def command(number: str) -> list[str]:
        operation = ["1", f"h{number}", f"b{number}", "0", "f", f"A-1-{number}"]
        return ["EVALSHA", seats.HOLD.sha, str(len(keys)), *keys, str(len(operation)), *operation]

    measured = await asyncio.to_thread(
        ceiling.redis_benchmark, host, port, requests=HOLDS, random_range=SEATS, command=command("__rand_int__")
    )
    if measured is not None:
        return measured
    commands = [ceiling.encode(command(f"{number:012d}")) for number in range(HOLDS)]
    return await asyncio.to_thread(ceiling.drive, host, port, commands, first_word=b"held")


async def holds(*, appendonly: bool) -> Row:
    """Holds a second through the gate against the store's own ceiling."""
    ours, theirs = [], []
    driver = ""
    async with store(appendonly=appendonly) as (gate, url):
        for _ in range(ROUNDS):
            measured = await _holds_by_the_store(gate, url)
            theirs.append(measured.per_s)
            driver = measured.driver
            ours.append(await _holds_through_the_gate(gate))
            await gate.redis.flushall()
    return ratio_row(
        "engine_hold_vs_store_aof" if appendonly else "engine_hold_vs_store",
        statistics.median(ours),
        statistics.median(theirs),
        unit="holds/s",
        against=f"{driver}, {ceiling.CONNECTIONS} connections, pipeline {ceiling.PIPELINE}, one operation a call",
        wanted=0.7,
    )


async def _join(gate: Gate, sale: Sale, first: int, count: int) -> float:
    async def join(n: int) -> None:
        joined = await waiting_room.join(gate, sale, owner=f"{first + n:032x}")
        if not isinstance(joined, waiting_room.Joined):
            raise TypeError(f"a join was answered {joined}")

    return await spread(count, join)


async def _drained(gate: Gate, sale: Sale) -> None:
    """Trim the journal to its last entry, as its owner does once Postgres has it."""
    head = await outbox.HEAD(gate, sale.keys)
    if not isinstance(head, outbox.Head):
        raise TypeError(f"the head of the streams was answered {head}")
    watermark = outbox.Watermark(1, 1, head.journal_n, head.journal_id)
    await outbox.announce(gate, sale.keys, "journal", watermark)


async def _admit_rate(gate: Gate, sale: Sale) -> float:
    """People admitted a second of script time, in calls of 200."""
    admitted, begun = 0, time.perf_counter()
    while admitted < SAMPLE:
        reply = await waiting_room.admit(gate, sale, most=200)
        count = getattr(reply, "count", 0)
        if not count:
            raise TypeError(f"nobody was admitted: {reply}")
        admitted += count
    return admitted / (time.perf_counter() - begun)


async def line() -> list[Row]:
    """Bytes a waiting person takes at a million, and how join and admit go there against a thousand."""
    rows = []
    async with store(appendonly=False) as (gate, _url):
        caps = {"active_max": 2 * SAMPLE * ROUNDS, "admitted_per_minute_max": 2 * SAMPLE * ROUNDS}
        joins_small, admits_small, joins_large, admits_large = [], [], [], []
        for _ in range(ROUNDS):
            small = await open_sale(gate, room="open", **caps)
            await _join(gate, small, 0, LINE_SMALL)
            joins_small.append(await _join(gate, small, LINE_SMALL, SAMPLE))
            await _drained(gate, small)
            admits_small.append(await _admit_rate(gate, small))
        await gate.redis.flushall()
        large = await open_sale(gate, room="open", **caps)
        before = (await gate.redis.info("memory"))["used_memory"]
        for first in range(0, LINE, 100_000):
            await _join(gate, large, first, 100_000)
            await _drained(gate, large)
        after = (await gate.redis.info("memory"))["used_memory"]
        rows.append(
            Row(
                "bytes_per_waiter", value=(after - before) / LINE, unit="bytes", against=f"{LINE:,} joined", at_most=250
            )
        )
        for at in range(ROUNDS):
            joins_large.append(await _join(gate, large, LINE + at * SAMPLE, SAMPLE))
            await _drained(gate, large)
        for _ in range(ROUNDS):
            admits_large.append(await _admit_rate(gate, large))
            await _drained(gate, large)
        for name, few, many in (
            ("join_flatness_1m", joins_small, joins_large),
            ("admit_flatness_1m", admits_small, admits_large),
        ):
            # Time is the inverse of the rate: how much longer one takes at a million than at a thousand.
            rows.append(
                Row(
                    name,
                    value=1e6 / statistics.median(many),
                    unit="µs each",
                    against=f"{1e6 / statistics.median(few):.1f} µs at {LINE_SMALL:,}",
                    ratio=statistics.median(few) / statistics.median(many),
                    at_most=1.5,
                )
            )
    return rows


# Persisting -----------------------------------------------------------------------------------------------------------

FACTS = 10_000


async def persist() -> Row:
    """Confirmed reservations that one writer brings to Postgres in a second: the outbox is full when it starts."""
    rates = []
    with scratch_folder() as folder:
        async with open_stores(Settings(data_dir=str(folder / DATA))) as stores:
            connection = await asyncpg.connect(stores.settings.postgres_url)
            await migrations.migrate(connection)
            await connection.close()
            for _ in range(ROUNDS):
                sale = await _sold_out(stores, FACTS)
                taken = await outbox.take_ownership(stores.postgres, "bench", sale_ids=[sale.sale_id])
                generation = taken[sale.sale_id]
                reader = outbox.Reader(
                    stores.gate, stores.postgres, sale.keys, "outbox", generation, settlement.handler(sale)
                )
                begun, drained = time.perf_counter(), 0
                while count := await reader.drain():
                    drained += count
                rates.append(drained / (time.perf_counter() - begun))
                if drained != FACTS:
                    raise RuntimeError(f"{drained} of {FACTS} facts were drained")
    return Row(
        "persist_per_s",
        value=statistics.median(rates),
        unit="reservations/s",
        against="1 writer, batches of 500, synchronous commit, nothing else running",
    )


async def _sold_out(stores: Stores, count: int) -> Sale:
    """A sale of which every seat was just paid and confirmed in Redis, and nothing yet in Postgres but the payments."""
    sale_id = await make_hall(stores.postgres, count)
    await rebuild.ensure_open(stores, sale_id)
    opened = await SaleBook(stores.postgres).find(sale_id)
    if opened is None:
        raise LookupError(f"sale {sale_id} was not opened")
    buyers = [ids.random_id() for _ in range(count)]
    await accounts.create_many(stores.postgres, user_ids=buyers, fingerprint="bench")
    await stores.postgres.execute("UPDATE balances SET amount = 1000000")
    authorise: Coalescer[authorisations.Authorisation, payments.Payment | seats.PaymentRunning] = Coalescer(
        lambda requests: authorisations.authorise(stores.postgres, requests), most=authorisations.BATCH_MAX
    )

    async def buy(n: int) -> None:
        hold_id, payment_id = ids.derive_in(opened.sale_id, str(n)), ids.random_id()
        await seats.hold(
            stores.gate, opened, hold_id=hold_id, buyer_id=buyers[n], fingerprint="f", seat_nos=(f"A-1-{n + 1}",)
        )
        paying = await seats.pay(stores.gate, opened, hold_id=hold_id, buyer_id=buyers[n], payment_id=payment_id)
        if not isinstance(paying, seats.Paying):
            raise TypeError(f"a payment was answered {paying}")
        request = authorisations.Authorisation(
            payment_id=payment_id,
            fingerprint="f",
            holding=reservations.holding_of(opened, hold_id, buyers[n], paying),
            pay_deadline_ms=paying.pay_deadline_ms,
        )
        await authorise.submit(request)
        await seats.confirm(stores.gate, opened, hold_id=hold_id, fence=paying.fence, payment_id=payment_id)

    await spread(count, buy)
    return opened


async def make_hall(postgres: asyncpg.Pool, count: int) -> str:
    """Write the rows of a concert with seats A-1-1 to A-1-<count>; returns its sale's id."""
    concert_id = ids.random_id()
    await catalogue.create_concert(postgres, concert_id=concert_id, poster=catalogue.Poster(title="Bench"))
    made = await catalogue.create_schedule(
        postgres,
        schedule_id=ids.random_id(),
        concert_id=concert_id,
        start_at=datetime(2030, 1, 1, tzinfo=UTC),
        terms=Terms(name="Bench"),
        seats=[
            catalogue.Seat(section="A", row="1", number=n, category="STANDARD", price=5000) for n in range(1, count + 1)
        ],
        fingerprint=concert_id,
    )
    if not isinstance(made, tuple):
        raise TypeError(f"a schedule was answered {made}")
    return made[0].sale_id
