"""What the audit finds: an invariant while it is judged, what breaks it, and the questions asked of Postgres."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg
import msgspec

from engine.coupon_audit import Source
from engine.sale_audit import Hall, Rows
from engine.stores import queries

SQL = queries.load("audit")

FINDINGS_MAX = 20
"""How many findings a check spells out; it counts all of them."""

TITLES: Mapping[str, str] = {
    "I1": "Every seat and every unit is counted once, and a seat has at most one live claim",
    "I2": "Everything that a client heard confirmed is in Postgres",
    "I3": "What was confirmed was charged once, and nothing else was",
    "I4": "One operation, one effect",
    "I5": "The line is kept: places, rate and room",
    "I6": "Every balance is the sum of its history",
    "I7": "Nothing is left half-done",
    "I9": "At rest, Redis says what Postgres says",
    "I13": "Every entry was applied once, in order",
}

Verdict = Literal["true", "false", "unknown"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant: whether it holds, what was looked at, what breaks it, what kept it from being proved."""

    invariant: str
    title: str
    verdict: Verdict
    looked_at: dict[str, int]
    found: int
    findings: list[str]
    unknown: list[str]


@dataclass
class Case:
    """An invariant while it is being judged."""

    invariant: str
    looked_at: dict[str, int]
    found: int = 0
    findings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    lying: set[str] = field(default_factory=set)

    def accuse(self, finding: str) -> None:
        """Say one thing that breaks it."""
        self.found += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def accuse_copy(self, hall: "Hall | Source", finding: str) -> None:
        """Accuse the copy of a sale in Redis."""
        self.lying.add(hall.sale_id)
        self.accuse(f"sale {hall.sale_id}: {finding}")

    def accuse_all(self, rows: Rows, say: Callable[[asyncpg.Record], str], *, lying: bool = False) -> None:
        """Accuse each row, and with `lying` its sale's copy; a query answers with some, and in each with the total."""
        self.lying.update(row["sale_id"] for row in rows if lying)
        self.findings += [say(row) for row in rows[: FINDINGS_MAX - len(self.findings)]]
        self.found += rows[0]["total"] if rows else 0

    def doubt(self, halls: Iterable["Hall | Source"]) -> None:
        """Leave the case open for each sale that did not come to rest."""
        self.unknown += [f"sale {hall.sale_id}: {hall.moving}" for hall in halls if hall.moving]

    def judge(self) -> Check:
        """What it comes to."""
        return Check(
            invariant=self.invariant,
            title=TITLES[self.invariant],
            verdict="false" if self.found else "unknown" if self.unknown else "true",
            looked_at=self.looked_at,
            found=self.found,
            findings=self.findings,
            unknown=self.unknown,
        )


class Questions:
    """The questions of `sql/audit.sql`, each asked for as many rows as a check spells out."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        self._counts: asyncpg.Record | None = None

    async def count(self, *names: str) -> dict[str, int]:
        """How many records of these kinds there are."""
        if self._counts is None:
            self._counts = await SQL.count_records.fetchrow(self._postgres)
        assert self._counts is not None  # noqa: S101 - a SELECT without FROM has one row
        return {name.replace("_", " "): self._counts[name] for name in names}

    async def ask(self, name: str, *arguments: object) -> Rows:
        """Ask for what is wrong: some rows, and in each how many there are."""
        return await getattr(SQL, name).fetch(self._postgres, FINDINGS_MAX, *arguments)  # type: ignore[no-any-return]

    async def read(self, name: str) -> Rows:
        """Read all rows of what is compared with Redis."""
        return await getattr(SQL, name).fetch(self._postgres)  # type: ignore[no-any-return]

    async def read_clock(self) -> int:
        """The database's clock, in milliseconds."""
        now_ms: int = await SQL.read_clock.fetchval(self._postgres)
        return now_ms


def in_chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Cut a long list into parts of at most this size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
