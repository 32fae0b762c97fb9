"""A sale with a line in Redis, and what must be true of it after every script."""

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from engine import ids, sales, waiting_room
from engine.sales import Sale, SaleBook
from engine.stores.connections import Stores
from engine.stores.outbox import Entry
from engine.stores.scripts import Gate
from tests.engine.stored_sales import HOUR_MS, StoredSale

TERMS: dict[str, Any] = {
    "epoch": 1,
    "state": "open",
    "room": "open",
    "active_max": 1000,
    "admitted_per_minute_max": 6000,
    "entry_ms": 120_000,
    "session_ms": 600_000,
    "recall_ms": 300_000,
    "queue_no_ceiling": 1_000_000,
    "hold_ms": 300_000,
    "hold_max_ms": 900_000,
    "pay_ms": 600_000,
    "repeat_window_ms": HOUR_MS,
}

# What ages when time goes by: sorted sets whose scores are moments.
MOMENTS = ("alive", "active", "skipped", "ended_tokens_at")


def user(name: str) -> str:
    """A user's id; the same name is the same user."""
    return ids.derive("user", name)


def visitor(name: str) -> str:
    """A visitor as an owner."""
    return "v" + ids.derive("visitor", name)


def owner_of(name: str) -> str:
    """The owner of this name: names that begin with v are visitors."""
    return visitor(name) if name.startswith("v") else user(name)


@dataclass
class Line(StoredSale):
    """A line, and the ways in which a test acts on it, looks at it and ages it."""

    called: set[int] = field(default_factory=set)

    async def join(self, name: str = "ann") -> Any:
        return await waiting_room.join(self.gate, self.sale, owner=owner_of(name))

    async def joined(self, *names: str) -> list[int]:
        """Join, each of whom must get a place."""
        places = [await self.join(name) for name in names]
        assert all(isinstance(place, waiting_room.Joined) for place in places), places
        return [place.queue_no for place in places]

    async def enter(self, name: str, queue_no: int, **more: Any) -> Any:
        return await waiting_room.enter(self.gate, self.sale, owner=owner_of(name), queue_no=queue_no, **more)

    async def leave(self, name: str, queue_no: int) -> Any:
        return await waiting_room.leave(self.gate, self.sale, owner=owner_of(name), queue_no=queue_no)

    async def tie(self, visitor_name: str, user_name: str, queue_no: int) -> Any:
        return await waiting_room.tie(
            self.gate, self.sale, visitor=owner_of(visitor_name), user=owner_of(user_name), queue_no=queue_no
        )

    async def put_back(self, name: str, queue_no: int, visitor_name: str = "") -> Any:
        return await waiting_room.put_back(
            self.gate,
            self.sale,
            owner=owner_of(name),
            queue_no=queue_no,
            visitor=owner_of(visitor_name) if visitor_name else "",
        )

    async def admit(self, most: int = 100) -> Any:
        return await waiting_room.admit(self.gate, self.sale, most=most)

    async def snapshot(self, gone_seq: int = 0, ended_since_ms: int = 0, most: int = 100) -> Any:
        return await waiting_room.snapshot(
            self.gate, self.sale, gone_seq=gone_seq, ended_since_ms=ended_since_ms, most=most
        )

    async def signs(self, *people: tuple[str, int, int]) -> Any:
        """Note signs of life: name, number, milliseconds until the next poll is overdue."""
        signs = [(owner_of(name), queue_no, in_ms) for name, queue_no, in_ms in people]
        return await waiting_room.note_signs(self.gate, self.sale, signs=signs)

    async def told(self) -> list[tuple[str, ...]]:
        """What the journal says, without chain and times."""
        return [
            tuple(
                value for name, value in entry.items() if name not in {"id", "epoch", "n", "before", "holds", "at_ms"}
            )
            for entry in await self.entries()
        ]

    async def age(self, ms: int) -> None:
        """Let time go by: every moment that the store keeps lies so much further back."""
        for name in MOMENTS:
            key = getattr(self.sale.keys, name)
            for member, score in (await self.scores(name)).items():
                await self.redis.zadd(key, {member: score - ms})
        admissions = await self.fields("admissions")
        if admissions:
            aged = {int(second) - ms // 1000: count for second, count in admissions.items()}
            await self.redis.execute_command("DEL", self.sale.keys.admissions)
            await self.redis.hset(self.sale.keys.admissions, mapping=aged)
        await self.set(now_ms=max(0, await self.term("now_ms") - ms))

    async def lose(self) -> None:
        """Lose the store: what a rebuild writes of a line is all that is left."""
        kept = await self.fields("sale")
        keys = self.sale.keys
        for name in ("waiting", "alive", "tokens", "active", "skipped", "returned", "gone", "ties", "admissions"):
            await self.redis.execute_command("DEL", getattr(keys, name))
        for name in ("ended_tokens", "ended_tokens_at", "journal", "outbox", "sale"):
            await self.redis.execute_command("DEL", getattr(keys, name))
        terms = {name: kept[name] for name in TERMS if name in kept}
        first = kept["queue_no_ceiling"]
        await self.set(**terms | {"queue_no": first, "queue_no_ceiling": int(first) + 1_000_000})

    async def check(self) -> None:
        """Assert what is true of every line at every moment."""
        waiting, returned = await self.scores("waiting"), await self.scores("returned")
        active, skipped = await self.scores("active"), await self.scores("skipped")
        tokens = {owner: record.split("|") for owner, record in (await self.fields("tokens")).items()}
        # I5: one live token an owner, in the set that its status says, and one owner a number.
        by_status = {status: {owner for owner, record in tokens.items() if record[0] == status} for status in STATUSES}
        assert active.keys() == by_status["ACTIVE"]
        assert skipped.keys() == by_status["SKIPPED"]
        assert returned.keys() == by_status["RETURNED"]
        assert sum(map(len, by_status.values())) == len(tokens)
        assert not waiting.keys() & tokens.keys()
        assert returned == {owner: int(tokens[owner][1]) for owner in returned}
        numbers = [*waiting.values(), *(int(record[1]) for record in tokens.values())]
        assert len(numbers) == len(set(numbers))
        # Nobody was called above serving, and it never goes back.
        serving = await self.term("serving")
        self.called |= {int(record[1]) for record in tokens.values()}
        assert max(self.called, default=0) <= serving <= await self.term("queue_no")
        assert len(active) <= await self.term("active_max")
        # Nothing is written of somebody who waits but the place, until the turn is near.
        ended = await self.fields("ended_tokens")
        assert set(map(str, numbers)) & ended.keys() == set()
        assert ended.keys() == (await self.scores("ended_tokens_at")).keys()
        assert (await self.scores("alive")).keys() <= {str(number) for number in numbers}
        # Whoever is above serving waits, or is among the gone: so a place can be told without asking.
        above = {number for number in waiting.values() if number > serving}
        gone = {int(number) for number in await self.scores("gone") if int(number) > serving}
        assert not above & gone
        if serving < await self.term("queue_no") < 1_000_000:
            assert above | gone == set(range(serving + 1, await self.term("queue_no") + 1))
        await self.check_stream("journal")


STATUSES = ("ACTIVE", "SKIPPED", "RETURNED")


async def open_line(redis: Any, *, shebang: bool = True, **terms: Any) -> Line:
    """Write an open room with nobody in it."""
    sale = Sale(sale_id=ids.random_id(), room=str(terms.get("room", "open")))
    await redis.hset(sale.keys.sale, mapping=TERMS | terms)
    return Line(redis, Gate(redis, shebang=shebang, deadline_s=30), sale)


@dataclass
class RecordedLine(Line):
    """A line whose sale has a row in Postgres, as one that a process serves has."""

    postgres: asyncpg.Pool = field(kw_only=True)
    book: SaleBook = field(kw_only=True)

    async def journal(self, epoch: int = 1) -> list[Entry]:
        """The whole journal, as its owner reads it."""
        return [
            Entry(entry["id"], epoch, int(entry["n"]), entry["before"], entry["kind"], entry)
            for entry in await self.entries()
        ]

    async def record(self, *entries: Entry) -> None:
        """Apply these entries, or the whole journal, as its owner would."""
        async with self.postgres.acquire() as connection, connection.transaction():
            await waiting_room.record(connection, self.sale, entries or await self.journal())

    async def record_processed(self, queue_no: int, name: str) -> None:
        """Write that this person has bought."""
        async with self.postgres.acquire() as connection:
            await waiting_room.record_processed(connection, self.sale, [(queue_no, owner_of(name))])

    async def rows(self) -> dict[int, tuple[str, str]]:
        """What Postgres says of each number: status and owner."""
        rows = await self.postgres.fetch(
            "SELECT * FROM queue_tokens WHERE sale_id = $1 ORDER BY queue_no", self.sale.sale_id
        )
        for row in rows:
            assert (row["ended_at"] is not None) == (row["status"] in {"PROCESSED", "EXPIRED", "LEFT"})
            assert row["status"] != "ACTIVE" or row["admitted_at"] is not None
        return {row["queue_no"]: (row["status"], row["owner"]) for row in rows}

    async def begin_epoch(self, epoch: int) -> None:
        """The sale was written anew: its row has this epoch, and so has whoever reads it from now on."""
        await self.postgres.execute("UPDATE sales SET epoch = $2 WHERE sale_id = $1", self.sale.sale_id, epoch)
        sale = await self.book.read(self.sale.sale_id)
        assert sale is not None
        self.sale = sale


async def open_recorded_line(stores: Stores) -> RecordedLine:
    """Write an open room with nobody in it, in both stores."""
    sale_id, book = ids.random_id(), SaleBook(stores.postgres)
    async with stores.postgres.acquire() as connection:
        await sales.create(connection, sale_id=sale_id, kind="stock", terms=sales.Terms(name="drop", room="open"))
        await connection.execute("UPDATE sales SET epoch = 1, store_state = 'open' WHERE sale_id = $1", sale_id)
    await book.refresh()
    sale = await book.find(sale_id)
    assert sale is not None
    line = RecordedLine(stores.redis, stores.gate, sale, postgres=stores.postgres, book=book)
    await line.set(**TERMS)
    return line
