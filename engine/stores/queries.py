"""SQL as source: one file a domain in ``sql/``, a header a statement, each statement an attribute here.

::

    -- name: lock_balances
    -- Balances of these users, locked in id order.
    SELECT …;

``queries.load("balances").lock_balances.fetch(connection, user_ids)`` runs it; asyncpg keeps it prepared.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

FOLDER = Path(__file__).resolve().parents[2] / "sql"

Executor = asyncpg.Connection | asyncpg.Pool

# A connection inside a transaction, whether it came from a pool or not.
Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy

_HEADER = re.compile(r"^-- name: (\w+)\n((?:--.*\n)+)", re.MULTILINE)


class Query:
    """One statement, with its name and the sentence that says what it does."""

    def __init__(self, domain: str, name: str, says: str, text: str) -> None:
        self.domain = domain
        self.name = name
        self.says = says
        self.text = text

    def __repr__(self) -> str:
        return f"<Query {self.domain}.{self.name}>"

    async def fetch(self, connection: Any, *args: object) -> list[asyncpg.Record]:
        """Run it and return all its rows."""
        rows: list[asyncpg.Record] = await connection.fetch(self.text, *args)
        return rows

    async def fetchrow(self, connection: Any, *args: object) -> asyncpg.Record | None:
        """Run it and return its first row, or None."""
        row: asyncpg.Record | None = await connection.fetchrow(self.text, *args)
        return row

    async def fetchval(self, connection: Any, *args: object) -> Any:
        """Run it and return the first column of its first row, or None."""
        return await connection.fetchval(self.text, *args)

    async def execute(self, connection: Any, *args: object) -> int:
        """Run it and return how many rows it touched: an update of 0 rows is an answer."""
        status: str = await connection.execute(self.text, *args)
        count = status.rsplit(" ", 1)[-1]
        return int(count) if count.isdigit() else 0

    async def execute_many(self, connection: Any, rows: Sequence[Sequence[object]]) -> None:
        """Run it once for each row of arguments, in one round trip."""
        await connection.executemany(self.text, rows)


class Queries:
    """The statements of one domain; an attribute each."""

    def __init__(self, domain: str, statements: dict[str, Query]) -> None:
        self.domain = domain
        self._statements = statements

    def __getattr__(self, name: str) -> Query:
        try:
            return self._statements[name]
        except KeyError:
            raise AttributeError(f"sql/{self.domain}.sql has no statement named {name}") from None

    def __iter__(self) -> Iterator[Query]:
        return iter(self._statements.values())


@cache
def load(domain: str) -> Queries:
    """Read ``sql/<domain>.sql``.

    Raises ValueError for a statement that is named twice or has no text.
    """
    source = (FOLDER / f"{domain}.sql").read_text(encoding="utf-8")
    headers = list(_HEADER.finditer(source))
    if len(headers) != source.count("-- name"):
        raise ValueError(f"sql/{domain}.sql: a header is `-- name: <name>`, then a comment that says what it does")
    before = source[: headers[0].start()] if headers else source
    if any(line and not line.startswith("--") for line in before.splitlines()):
        raise ValueError(f"sql/{domain}.sql: its first statement has no header")
    statements: dict[str, Query] = {}
    for header, following in zip(headers, [*headers[1:], None], strict=True):
        text = source[header.end() : following.start() if following else len(source)].strip().rstrip(";").strip()
        name = header.group(1)
        if not text or name in statements:
            raise ValueError(f"sql/{domain}.sql: {name} has no text or is named twice")
        says = " ".join(line.removeprefix("--").strip() for line in header.group(2).splitlines())
        statements[name] = Query(domain, name, says, text)
    return Queries(domain, statements)


def all_queries() -> Iterator[Query]:
    """Every statement of every domain, for the test that prepares each of them."""
    for path in sorted(FOLDER.glob("*.sql")):
        if path.stem != "schema":
            yield from load(path.stem)
