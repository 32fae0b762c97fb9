"""A sale with a line in Redis, written without Postgres, and what must be true of it after every script."""

from dataclasses import dataclass, field
from typing import Any

from engine import ids, waiting_room
from engine.sales import Sale
from engine.stores.scripts import Gate

HOUR_MS = 3_600_000

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
class Line:
    """A line, and the ways in which a test acts on it, looks at it and ages it."""

    redis: Any
    gate: Gate
    sale: Sale
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
        return await waiting_room.SNAPSHOT(
            self.gate, self.sale.keys, epoch=1, gone_seq=gone_seq, ended_since_ms=ended_since_ms, most=most
        )

    async def signs(self, *people: tuple[str, int, int]) -> Any:
        """Note signs of life: name, number, milliseconds until the next poll is overdue."""
        flat = [value for name, queue_no, in_ms in people for value in (owner_of(name), queue_no, in_ms)]
        return await waiting_room.SIGNS(self.gate, self.sale.keys, epoch=1, signs=flat)

    async def set(self, **terms: Any) -> None:
        """Change terms of the sale behind its back."""
        await self.redis.hset(self.sale.keys.sale, mapping=terms)

    async def term(self, name: str) -> int:
        return int(await self.redis.hget(self.sale.keys.sale, name) or 0)

    async def now_ms(self) -> int:
        """The store's clock."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def scores(self, name: str) -> dict[str, int]:
        """A sorted set."""
        rows = await self.redis.zrange(getattr(self.sale.keys, name), 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in rows}

    async def records(self, name: str) -> dict[str, str]:
        """A hash."""
        rows = await self.redis.hgetall(getattr(self.sale.keys, name))
        return {each.decode(): value.decode() for each, value in rows.items()}

    async def entries(self, stream: str = "journal") -> list[dict[str, str]]:
        """The entries of a stream, each with its id."""
        rows = await self.redis.xrange(getattr(self.sale.keys, stream))
        return [
            {"id": entry_id.decode()} | {name.decode(): value.decode() for name, value in fields.items()}
            for entry_id, fields in rows
        ]

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
        admissions = await self.records("admissions")
        if admissions:
            aged = {int(second) - ms // 1000: count for second, count in admissions.items()}
            await self.redis.execute_command("DEL", self.sale.keys.admissions)
            await self.redis.hset(self.sale.keys.admissions, mapping=aged)
        await self.set(now_ms=max(0, await self.term("now_ms") - ms))

    async def lose(self) -> None:
        """Lose the store: what a rebuild writes of a line is all that is left."""
        kept = await self.records("sale")
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
        tokens = {owner: record.split("|") for owner, record in (await self.records("tokens")).items()}
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
        ended = await self.records("ended_tokens")
        assert set(map(str, numbers)) & ended.keys() == set()
        assert ended.keys() == (await self.scores("ended_tokens_at")).keys()
        assert (await self.scores("alive")).keys() <= {str(number) for number in numbers}
        # Whoever is above serving waits, or is among the gone: so a place can be told without asking.
        above = {number for number in waiting.values() if number > serving}
        gone = {int(number) for number in await self.scores("gone") if int(number) > serving}
        assert not above & gone
        if serving < await self.term("queue_no") < 1_000_000:
            assert above | gone == set(range(serving + 1, await self.term("queue_no") + 1))
        entries = await self.entries()
        assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry["before"] for entry in entries] == ["0-0", *[entry["id"] for entry in entries]][: len(entries)]
        assert await self.term("journal_n") == len(entries)


STATUSES = ("ACTIVE", "SKIPPED", "RETURNED")


async def open_line(redis: Any, *, shebang: bool = True, **terms: Any) -> Line:
    """Write an open room with nobody in it."""
    sale = Sale(sale_id=ids.random_id(), room=str(terms.get("room", "open")))
    await redis.hset(sale.keys.sale, mapping=TERMS | terms)
    return Line(redis, Gate(redis, shebang=shebang, deadline_s=30), sale)
