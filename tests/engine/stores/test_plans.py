"""No statement reads a table whole for the few rows it wants, whatever the server's statistics say of it.

A plan is chosen by statistics that know nothing of a rush: the shop is new, or nothing is pending between two sales, or
the sale on sale was made since they were gathered. Such a plan works on a small table and is kept while that grows.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import asyncpg
import pytest

from engine.stores import queries
from engine.stores.queries import Connection

# Tables that stay small, or of which one row is written for many buyers.
SMALL = frozenset(
    {
        "api_keys",
        "applied_batches",
        "areas",
        "blocks",
        "concerts",
        "coupons",
        "dead_letters",
        "installation",
        "late_payments",
        "messages",
        "product_daily_sales",
        "product_interval_sales",
        "product_variants",
        "products",
        "restocks",
        "restores",
        "sales",
        "sales_aggregation",
        "schedule_cancellations",
        "schedules",
        "seat_blocks",
        "stream_owners",
        "stream_watermarks",
        "tiers",
        "workers",
    }
)
# Who reads all there is, and no buyer waits for it.
WHOLE = frozenset({"audit", "coupon_copies", "rebuild", "repair", "seat_copies", "statistics", "stock_copies"})
# Statements that mean everything that an index of unfinished things has.
UNFINISHED = frozenset(
    {
        "errands.take_errands",
        "payments.find_unfinished",
        "waiting_lists.dismiss",
        "waiting_lists.follow",
        "waiting_lists.note_forgotten",
    }
)
# Statements that mean a whole sale: its seats once for each process, or whether anything of it is left.
OF_A_SALE = frozenset(
    {
        "catalogue.count_blocks",
        "catalogue.list_categories",
        "catalogue.list_every_seat",
        "catalogue.list_hidden_seats",
        "catalogue.list_seats",
        "catalogue.list_seats_in_order",
        "seat_blocks.list_section",
        "seat_cancellations.add_call_off",
        "seat_cancellations.is_standing",
        "seat_cancellations.list_standing",
        "seat_waiting_lists.find_names",
        "seat_waiting_lists.measure",
        "waiting_lists.close_list",
        "waiting_lists.is_awaited",
    }
)
READS = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")
ROWS = 5_000
OLD_SALES = ("a" * 32, "b" * 32, "c" * 32)
BATCH = 64

# A value of each type for a row of a filled table; `number` counts the rows.
VALUES: Mapping[str, str] = {
    "uuid": "gen_random_uuid()",
    "text": "md5(random()::text)",
    "bigint": "number",
    "integer": "number",
    "boolean": "false",
    "bytea": "uuid_send(gen_random_uuid())",
    "jsonb": "'{}'::jsonb",
    "timestamp with time zone": "now() - make_interval(secs => number)",
    "date": "current_date",
}
# An argument of each type: ids and numbers that no statistics have seen, as many as a batch has.
ARGUMENTS: Mapping[str, str] = {
    "uuid": "gen_random_uuid()",
    "text": "'Z-9-999'",
    "bigint": "999999",
    "integer": "100",
    "double precision": "100",
    "boolean": "true",
    "jsonb": "'{}'",
}


async def test_in_a_new_shop(postgres: asyncpg.Pool) -> None:
    async with postgres.acquire() as connection:
        assert await _misread(connection, "generic") == ""


async def test_in_a_shop_that_has_grown_since_its_plans_were_made(postgres: asyncpg.Pool) -> None:
    async with postgres.acquire() as connection:
        await _fill(connection)
        assert await _misread(connection, "generic") == ""


@pytest.mark.parametrize("mode", ["generic", "custom"])
async def test_in_a_sale_that_is_newer_than_the_statistics(postgres: asyncpg.Pool, mode: str) -> None:
    async with postgres.acquire() as connection:
        await _fill(connection)
        await connection.execute("VACUUM ANALYZE")
        assert await _misread(connection, mode) == ""


async def _fill(connection: Connection) -> None:
    """Rows of every table that grows, none of them unfinished; nobody checks what they mean or refer to."""
    columns = await connection.fetch(
        """
        SELECT table_name, column_name, data_type
        FROM information_schema.columns
        JOIN information_schema.tables USING (table_schema, table_name)
        WHERE table_schema = 'public' AND table_type = 'BASE TABLE'
          AND is_generated = 'NEVER' AND is_identity = 'NO' AND table_name <> ALL ($1::text[])
        """,
        sorted(SMALL | {"schema_migrations"}),
    )
    checks = await connection.fetch(
        """
        SELECT conrelid::regclass::text AS table_name, conname
        FROM pg_constraint
        WHERE contype = 'c' AND connamespace = 'public'::regnamespace
        """
    )
    for check in checks:
        await connection.execute(f"ALTER TABLE {check['table_name']} DROP CONSTRAINT {check['conname']}")
    old_sales = "(ARRAY[" + ", ".join(f"'{sale}'" for sale in OLD_SALES) + "]::uuid[])[1 + number % 3]"
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        for table in sorted({row["table_name"] for row in columns}):
            mine = {row["column_name"]: row["data_type"] for row in columns if row["table_name"] == table}
            values = [
                old_sales if name == "sale_id" else "'{}'" if kind == "ARRAY" else VALUES.get(kind, "NULL")
                for name, kind in mine.items()
            ]
            rows = f"SELECT {', '.join(values)} FROM generate_series(1, {ROWS}) AS number"
            await connection.execute(f"INSERT INTO {table} ({', '.join(mine)}) {rows}")


async def _misread(connection: Connection, mode: str) -> str:
    """What statements would read that they do not want, a line each."""
    await connection.execute(f"SET plan_cache_mode = force_{mode}_plan")
    misread: list[str] = []
    for query in queries.all_queries():
        name = f"{query.domain}.{query.name}"
        if query.domain in WHOLE or query.text.startswith("LOCK"):
            continue
        plan = await _plan(connection, query)
        misread += [f"{name}: {what}" for what in _whole(plan, name)]
    return "\n".join(misread)


async def _plan(connection: Connection, query: queries.Query) -> dict[str, Any]:
    await connection.execute(f"PREPARE planned AS {query.text}")
    try:
        kinds = await connection.fetchval(
            "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'planned'"
        )
        given = ", ".join(_argument(kind) for kind in kinds)
        (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE planned{f'({given})' if given else ''}")
    finally:
        await connection.execute("DEALLOCATE planned")
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _argument(kind: str) -> str:
    of = kind.removesuffix("[]")
    if of == kind:
        return ARGUMENTS.get(kind, "NULL")
    return f"ARRAY[{', '.join([ARGUMENTS.get(of, 'NULL')] * BATCH)}]::{kind}"


def _whole(node: dict[str, Any], name: str, table: str | None = None) -> Iterator[str]:
    """Tables and indexes that are read from end to end, or for a whole sale; for a bitmap the node above says whose."""
    kind, table, condition = node["Node Type"], node.get("Relation Name", table), node.get("Index Cond")
    if kind in READS and table not in SMALL:
        of = node.get("Index Name", table)
        if condition is None and name not in UNFINISHED:
            yield f"all of {of}"
        if condition and re.fullmatch(r"\(+\w*\.?sale_id = [^()]+\)+", condition) and name not in OF_A_SALE:
            yield f"a sale of {of}"
    if "hashed SubPlan" in json.dumps({key: value for key, value in node.items() if key != "Plans"}):
        yield "a hashed subplan"
    for part in node.get("Plans", ()):
        yield from _whole(part, name, table)
