"""`schema.sql` is for reading and the migrations are for running; both make the same database."""

from collections.abc import Mapping
from pathlib import Path

import asyncpg

from engine.stores import embedded, migrations
from tests.conftest import fresh_database

SCHEMA = Path(migrations.MIGRATIONS).parent / "schema.sql"

# What Postgres itself says of everything in the schema, in words that do not depend on the order of making.
DESCRIPTIONS: Mapping[str, str] = {
    "column": """
        SELECT c.relname || '.' || a.attname,
          concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
            'identity ' || nullif(a.attidentity::text, ''), 'generated ' || nullif(a.attgenerated::text, ''),
            'default ' || pg_get_expr(d.adbin, d.adrelid), 'collation ' || nullif(a.attcollation, 0))
        FROM pg_attribute AS a
        JOIN pg_class AS c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND a.attnum > 0 AND NOT a.attisdropped
        """,
    "relation": """
        SELECT c.relname,
          concat_ws(' ', c.relkind, c.relpersistence, c.reloptions::text, pg_get_partkeydef(c.oid),
            pg_get_expr(c.relpartbound, c.oid),
            CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END)
        FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
        """,
    "constraint": """
        SELECT coalesce(nullif(conrelid, 0)::regclass::text, '') || '.' || conname, pg_get_constraintdef(oid)
        FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
        """,
    "index": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "function": """
        SELECT oid::regprocedure::text, pg_get_functiondef(oid)
        FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        """,
    "trigger": """
        SELECT tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid)
        FROM pg_trigger
        WHERE NOT tgisinternal
        """,
    "enum": """
        SELECT enumtypid::regtype || '.' || enumlabel, enumsortorder::text
        FROM pg_enum
        """,
    "extension": "SELECT extname, '' FROM pg_extension",
}


async def test_the_migrations_make_what_the_schema_says(postgres_server: embedded.Server) -> None:
    async with fresh_database(postgres_server.url) as url:
        connection = await asyncpg.connect(url)
        await migrations.migrate(connection)
        await connection.execute("DROP TABLE schema_migrations")  # how the schema came, not what it is
        migrated = await describe(connection)
        await connection.close()
    async with fresh_database(postgres_server.url) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(SCHEMA.read_text(encoding="utf-8"))
        written = await describe(connection)
        await connection.close()
    assert any(kind == "column" for kind, _ in written)
    assert migrated == written


async def test_a_difference_of_any_kind_is_seen(postgres_server: embedded.Server) -> None:
    changes = [
        "ALTER TABLE t ALTER b TYPE bigint",
        "ALTER TABLE t ALTER b DROP NOT NULL",
        "ALTER TABLE t ALTER b SET DEFAULT 2",
        "ALTER TABLE t DROP CONSTRAINT positive",
        "DROP INDEX t_b",
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "ALTER TYPE e ADD VALUE 'z'",
        "CREATE VIEW v AS SELECT a FROM t",
        "ALTER TABLE t SET (fillfactor = 70)",
    ]
    async with fresh_database(postgres_server.url) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(
            """
            CREATE TABLE t (a bigint PRIMARY KEY, b int NOT NULL DEFAULT 1 CONSTRAINT positive CHECK (b > 0));
            CREATE INDEX t_b ON t (b);
            CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
            CREATE TYPE e AS ENUM ('a');
            """
        )
        for change in changes:
            before = await describe(connection)
            await connection.execute(change)
            assert await describe(connection) != before, change
        await connection.close()


async def describe(connection: asyncpg.Connection) -> dict[tuple[str, str], str]:
    """Everything in the schema `public`: what kind of thing, its name, and its definition."""
    return {
        (kind, name): definition
        for kind, query in DESCRIPTIONS.items()
        for name, definition in await connection.fetch(query)
    }
