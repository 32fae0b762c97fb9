"""A sale in Redis, written without Postgres: how a test looks at it and changes it behind its back."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.sales import Sale
from engine.stores.scripts import FOLDER, Gate

HOUR_MS = 3_600_000


def _record_fields() -> list[str]:
    """The order of a record's fields, from the one place that says it."""
    text = (Path(FOLDER) / "shared" / "holds.lua").read_text(encoding="utf-8")
    found = re.search(r"local FIELDS = \{(.*?)\}", text, re.DOTALL)
    assert found
    return re.findall(r'"(\w+)"', found.group(1))


RECORD_FIELDS = _record_fields()


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


@dataclass
class HeldSale(StoredSale):
    """A sale with holds, whatever it sells."""

    async def records(self) -> dict[str, dict[str, str]]:
        """Every record, by hold."""
        rows = await self.fields("holds")
        return {hold_id: dict(zip(RECORD_FIELDS, row.split("|"), strict=True)) for hold_id, row in rows.items()}

    async def rewrite(self, hold_id: str, **changes: Any) -> None:
        """Change fields of a record behind the scripts' back, its score in the sorted sets too."""
        keys = self.sale.keys
        record = (await self.records())[hold_id] | {name: str(value) for name, value in changes.items()}
        await self.redis.hset(keys.holds, hold_id, "|".join(record[name] for name in RECORD_FIELDS))
        if record["state"] == "HELD":
            await self.redis.zadd(keys.deadlines, {hold_id: record["expires_at_ms"]})
        if record["state"] == "PAYING":
            await self.redis.zadd(keys.paying, {hold_id: record["pay_deadline_ms"]})

    async def lapse(self, hold_id: str, *, ago_ms: int = 1) -> None:
        """Let a hold's own deadline lie behind."""
        await self.rewrite(hold_id, expires_at_ms=await self.now_ms() - ago_ms)

    async def check_holds(
        self, records: Mapping[str, Mapping[str, str]], units_of: Callable[[Mapping[str, str]], int]
    ) -> None:
        """Assert what is true of holds at every moment; `units_of` a record is how much it counts for its buyer."""
        # The sorted sets say when, and only of whom it matters.
        in_state = {
            state: {hold_id for hold_id, record in records.items() if record["state"] == state}
            for state in ("HELD", "PAYING", "SOLD", "ENDED")
        }
        scores = {name: await self.scores(name) for name in ("deadlines", "paying", "ended")}
        assert scores["deadlines"].keys() == in_state["HELD"]
        for each, free_at_ms in scores["deadlines"].items():
            assert 0 <= free_at_ms - int(records[each]["expires_at_ms"]) <= await self.term("release_jitter_ms")
        assert scores["paying"] == {each: int(records[each]["pay_deadline_ms"]) for each in in_state["PAYING"]}
        assert scores["ended"].keys() == in_state["SOLD"] | in_state["ENDED"] | (await self.fields("restored")).keys()

        # Counts per buyer are what the records add up to.
        rows = await self.fields("buyers")
        sums: dict[str, tuple[int, int, set[str]]] = {}
        for hold_id, record in records.items():
            sold, ended, open_ids = sums.get(record["buyer_id"], (0, 0, set()))
            sold += units_of(record) if record["state"] == "SOLD" else 0
            ended += record["state"] == "ENDED"
            sums[record["buyer_id"]] = (
                sold,
                ended,
                open_ids | ({hold_id} if record["state"] in {"HELD", "PAYING"} else set()),
            )
        for buyer_id in rows.keys() | sums.keys():
            sold_text, ended_text, open_text = rows.get(buyer_id, "0 0 ").split(" ")
            open_list = [each for each in open_text.split(",") if each]
            sold, ended, open_ids = sums.get(buyer_id, (0, 0, set()))
            assert (int(ended_text), sorted(open_list)) == (ended, sorted(open_ids))
            assert int(sold_text) >= sold  # what was sold stays counted when its record is forgotten

        # The fence grows, and both streams are numbered and chained without a gap.
        fences = [int(record["fence"]) for record in records.values()]
        assert len(set(fences)) == len(fences)
        assert max(fences, default=0) <= await self.term("fence")
        for stream in ("journal", "outbox"):
            await self.check_stream(stream)
