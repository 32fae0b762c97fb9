"""Bring a database to the schema of this code: forward only, each step in a transaction of its own, once."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

MIGRATIONS = Path(__file__).parents[2] / "sql" / "migrations"

# One installation migrates at a time. The number means nothing; it only has to be nobody else's.
_LOCK = 6_102_518_842_001

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  version integer PRIMARY KEY,
  name text NOT NULL,
  checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationFault(Exception):
    """The database and the migrations of this code contradict each other."""


@dataclass(frozen=True)
class Migration:
    """One file of `sql/migrations/`, named `NNNN_what_it_does.sql`."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, by which an edit of an applied migration is noticed."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(folder: Path = MIGRATIONS) -> list[Migration]:
    """Read every migration in order; raises MigrationFault unless their numbers go up from 0001 by one."""
    migrations = []
    for number, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        named = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if named is None or int(named[1]) != number:
            raise MigrationFault(f"{path.name}: expected {number:04d}_what_it_does.sql")
        migrations.append(Migration(number, named[2], path.read_text(encoding="utf-8")))
    return migrations


async def migrate(connection: asyncpg.Connection, folder: Path = MIGRATIONS) -> list[Migration]:
    """Apply what this database has not had yet and return it; any number of processes may call this at once.

    Raises MigrationFault if an applied migration was edited or if the database is newer than this code, and
    then changes nothing. Each migration commits with its own record, so a failure leaves whole steps only.
    """
    migrations = read(folder)
    applied_now = []
    # Held by the session, because the steps below commit one by one; given back also if this process dies.
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(_TABLE)
        rows = await connection.fetch("SELECT version, name, checksum FROM schema_migrations ORDER BY version")
        _compare(migrations, rows)
        for migration in migrations[len(rows) :]:
            async with connection.transaction():
                await connection.execute(migration.text)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
            applied_now.append(migration)
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    return applied_now


def _compare(migrations: list[Migration], rows: list[asyncpg.Record]) -> None:
    """Refuse a database that this code did not make."""
    if len(rows) > len(migrations):
        newest = rows[-1]
        raise MigrationFault(
            f"The database is newer than this code: it has {newest['version']:04d}_{newest['name']}, "
            f"and this code ends at {len(migrations):04d}. Run the newer code."
        )
    for migration, row in zip(migrations, rows, strict=False):
        if (migration.version, migration.checksum) != (row["version"], row["checksum"]):
            raise MigrationFault(
                f"{migration.version:04d}_{migration.name}.sql is not what this database had: "
                f"{row['version']:04d}_{row['name']}. An applied migration is never edited: write a new one."
            )
