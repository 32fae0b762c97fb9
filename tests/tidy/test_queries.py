"""Every statement in `sql/` is one that a migrated database understands, says what it does, and is used."""

import re
from pathlib import Path

import asyncpg
import pytest

from engine.stores import queries

ROOT = Path(__file__).parents[2]
FACES = ("engine", "api", "workers", "cli", "loadtests")

QUERIES = list(queries.all_queries())


async def test_every_statement_prepares(postgres: asyncpg.Pool) -> None:
    wrong = {}
    async with postgres.acquire() as connection:
        for query in QUERIES:
            try:
                await connection.prepare(query.text)
            except asyncpg.PostgresError as fault:
                wrong[repr(query)] = str(fault)
    assert wrong == {}


@pytest.mark.parametrize("query", QUERIES, ids=repr)
def test_a_statement_says_what_it_does(query: queries.Query) -> None:
    assert query.says.endswith("."), query.says
    assert query.says[0].isupper(), query.says


def test_every_statement_is_used() -> None:
    sources = "\n".join(path.read_text() for face in FACES for path in (ROOT / face).rglob("*.py"))
    named = set(re.findall(r"\b[A-Z_]+\.(\w+)", sources)) | set(re.findall(r'"(\w+)"', sources))
    assert {query.name for query in QUERIES} - named == set()


def test_every_statement_that_is_named_exists() -> None:
    missing = set()
    for face in FACES:
        for path in (ROOT / face).rglob("*.py"):
            source = path.read_text()
            for variable, domain in re.findall(r'^(\w+) = queries\.load\("(\w+)"\)', source, re.MULTILINE):
                known = {query.name for query in queries.load(domain)}
                named = set(re.findall(rf"(?<![\w.]){variable}\.(\w+)", source))
                missing |= {f"{path.relative_to(ROOT)}: {variable}.{name}" for name in named - known}
    assert missing == set()
