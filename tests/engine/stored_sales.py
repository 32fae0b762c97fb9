"""A sale in Redis, written without Postgres: how a test looks at it and changes it behind its back."""

from dataclasses import dataclass
from typing import Any

from engine.sales import Sale
from engine.stores.scripts import Gate

HOUR_MS = 3_600_000


@dataclass
class StoredSale:
    """A sale, and the gate through which a test acts on it."""

    redis: Any
    gate: Gate
    sale: Sale

    async def set(self, **terms: Any) -> None:
        """Change terms of the sale behind its back."""
        await self.redis.hset(self.sale.keys.sale, mapping=terms)

    async def term(self, name: str) -> int:
        """A number among the sale's terms and counters."""
        return int(await self.redis.hget(self.sale.keys.sale, name) or 0)

    async def now_ms(self) -> int:
        """The store's clock."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def scores(self, name: str) -> dict[str, int]:
        """A sorted set."""
        rows = await self.redis.zrange(getattr(self.sale.keys, name), 0, -1, withscores=True)
        return {member.decode(): int(score) for member, score in rows}

    async def fields(self, name: str) -> dict[str, str]:
        """A hash."""
        rows = await self.redis.hgetall(getattr(self.sale.keys, name))
        return {field.decode(): value.decode() for field, value in rows.items()}

    async def entries(self, stream: str = "journal") -> list[dict[str, str]]:
        """The entries of a stream, each with its id."""
        rows = await self.redis.xrange(getattr(self.sale.keys, stream))
        return [
            {"id": entry_id.decode()} | {name.decode(): value.decode() for name, value in fields.items()}
            for entry_id, fields in rows
        ]

    async def check_stream(self, stream: str) -> None:
        """Assert that a stream is numbered and chained without a gap, and that the sale counts what it holds."""
        entries = await self.entries(stream)
        assert [int(entry["n"]) for entry in entries] == list(range(1, len(entries) + 1))
        assert [entry["before"] for entry in entries] == ["0-0", *[entry["id"] for entry in entries]][: len(entries)]
        assert await self.term(f"{stream}_n") == len(entries)
