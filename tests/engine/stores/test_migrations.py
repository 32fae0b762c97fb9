"""Forward only, each step once, however many start at the same time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from engine.stores import embedded, migrations
from engine.stores.migrations import MigrationFault
from tests.conftest import fresh_database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two migrations that depend on each other."""
    (tmp_path / "0001_seats.sql").write_text("CREATE TABLE seats (seat_no text); CREATE INDEX ON seats (seat_no);")
    (tmp_path / "0002_prices.sql").write_text("ALTER TABLE seats ADD price bigint NOT NULL DEFAULT 0;")
    return tmp_path


@pytest.fixture
async def empty_url(postgres_server: embedded.Server) -> AsyncIterator[str]:
    """The address of a database in which nothing is."""
    async with fresh_database(postgres_server.url) as url:
        yield url


@pytest.fixture
async def connection(empty_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database in which nothing is."""
    connection = await asyncpg.connect(empty_url)
    yield connection
    await connection.close()


async def test_each_migration_is_applied_once_and_in_order(connection: asyncpg.Connection, folder: Path) -> None:
    assert [step.name for step in await migrations.migrate(connection, folder)] == ["seats", "prices"]
    assert await migrations.migrate(connection, folder) == []
    assert await connection.fetchval("SELECT count(price) FROM seats") == 0
    rows = await connection.fetch("SELECT version, name FROM schema_migrations ORDER BY version")
    assert [tuple(row) for row in rows] == [(1, "seats"), (2, "prices")]


async def test_a_later_migration_is_applied_to_what_is_there(connection: asyncpg.Connection, folder: Path) -> None:
    await migrations.migrate(connection, folder)
    (folder / "0003_rows.sql").write_text("INSERT INTO seats VALUES ('A-1-1', 100)")
    assert [step.version for step in await migrations.migrate(connection, folder)] == [3]
    assert await connection.fetchval("SELECT price FROM seats") == 100


async def test_many_who_migrate_at_once_apply_each_migration_once(empty_url: str, folder: Path) -> None:
    async def migrate() -> int:
        connection = await asyncpg.connect(empty_url)
        try:
            return len(await migrations.migrate(connection, folder))
        finally:
            await connection.close()

    assert sorted(await asyncio.gather(*(migrate() for _ in range(8)))) == [0] * 7 + [2]


async def test_a_failing_migration_leaves_whole_steps_only(connection: asyncpg.Connection, folder: Path) -> None:
    third = folder / "0003_wrong.sql"
    third.write_text("INSERT INTO seats VALUES ('A-1-1', 100); SELECT no_such_function();")
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await migrations.migrate(connection, folder)
    assert await connection.fetchval("SELECT count(*) FROM seats") == 0
    assert await connection.fetchval("SELECT max(version) FROM schema_migrations") == 2

    # The lock was given back, and the mended step is the next one.
    third.write_text("INSERT INTO seats VALUES ('A-1-1', 100);")
    assert [step.version for step in await migrations.migrate(connection, folder)] == [3]


async def test_an_edited_migration_is_refused(connection: asyncpg.Connection, folder: Path) -> None:
    await migrations.migrate(connection, folder)
    (folder / "0001_seats.sql").write_text("CREATE TABLE seats (seat_no varchar);")
    with pytest.raises(MigrationFault, match=r"0001_seats\.sql is not what this database had"):
        await migrations.migrate(connection, folder)


async def test_a_database_newer_than_the_code_is_refused(connection: asyncpg.Connection, folder: Path) -> None:
    await migrations.migrate(connection, folder)
    (folder / "0002_prices.sql").unlink()
    with pytest.raises(MigrationFault, match="newer than this code: it has 0002_prices"):
        await migrations.migrate(connection, folder)


@pytest.mark.parametrize("name", ["0003_a_gap.sql", "2_short.sql", "0002-dash.sql"])
def test_a_misnumbered_migration_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "0001_seats.sql").touch()
    (tmp_path / name).touch()
    with pytest.raises(MigrationFault, match="expected 0002"):
        migrations.read(tmp_path)


def test_the_migrations_of_this_code_are_in_order() -> None:
    assert [step.version for step in migrations.read()][:1] == [1]
