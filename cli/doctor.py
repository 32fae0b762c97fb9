"""`lastseat doctor`: what an operator should change, and the line to change."""

import asyncio
import platform
from collections.abc import Iterable
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any, Literal

import asyncpg
import msgspec
from rich.console import Console
from rich.text import Text

from engine.settings import Settings
from engine.stores import embedded, migrations, queries
from engine.stores.connections import RedisClient, open_postgres, open_redis
from engine.stores.safety import Finding, inspect_postgres, inspect_redis

SQL = queries.load("audit")

CLOCKS_APART_MAX_MS = 2000

State = Literal["well", "warning", "refused"]
MARKS: dict[State, str] = {"well": "[green]✓[/]", "warning": "[yellow]![/]", "refused": "[bold red]✗[/]"}


class Symptom(msgspec.Struct, frozen=True):
    """One thing that was looked at: what stands there, and the line to change where it should not."""

    subject: str
    state: State
    what: str
    change: str | None = None


class Examination(msgspec.Struct, frozen=True):
    """Everything that was looked at; not `well` while sales would be refused."""

    well: bool
    symptoms: list[Symptom]


async def examine(settings: Settings) -> Examination:
    """Look at this program, both stores, the schema, the clocks and the work behind the API."""
    symptoms = [
        Symptom("program", "well", f"lastseat {version('lastseat')} on Python {platform.python_version()}"),
        Symptom("data", "well", _whereabouts(settings)),
    ]
    async with AsyncExitStack() as stack:
        provided = embedded.provide(settings)
        known = await asyncio.to_thread(provided.__enter__)
        stack.push_async_callback(asyncio.to_thread, provided.__exit__, None, None, None)
        redis = open_redis(str(known.redis_url))
        stack.push_async_callback(redis.aclose)
        postgres = await open_postgres(str(known.postgres_url), connections_max=2)
        stack.push_async_callback(postgres.close)
        symptoms += [
            Symptom("redis", "well", await _describe_redis(redis)),
            *_symptoms("redis", await inspect_redis(redis)),
        ]
        symptoms += [
            Symptom("postgres", "well", f"Postgres {await postgres.fetchval('SHOW server_version')}"),
            *_symptoms("postgres", await inspect_postgres(postgres)),
            await _compare_clocks(redis, postgres),
            await _compare_schema(postgres),
        ]
        if symptoms[-1].state == "well":
            symptoms.append(await _look_for_workers(postgres))
    return Examination(all(symptom.state != "refused" for symptom in symptoms), symptoms)


def show(examination: Examination, console: Console) -> None:
    """Show what was found, a line each, and below it what to change."""
    for symptom in examination.symptoms:
        console.print(Text.from_markup(MARKS[symptom.state]), f"{symptom.subject:<9}", Text(symptom.what))
        if symptom.change:
            console.print(Text(f"            change: {symptom.change}", style="bold"))


def _symptoms(subject: str, findings: Iterable[Finding]) -> list[Symptom]:
    return [
        Symptom(subject, "refused" if finding.refuse else "warning", finding.what, finding.change)
        for finding in findings
    ]


def _whereabouts(settings: Settings) -> str:
    if settings.redis_url and settings.postgres_url:
        return "both stores are servers of your own"
    return f"embedded servers keep their data in {settings.data_path}"


async def _describe_redis(redis: RedisClient) -> str:
    facts: Any = await redis.info()
    each = facts.values() if "redis_version" not in facts else [facts]  # a cluster answers by node
    names = sorted({_name_of(node) for node in each})
    return ", ".join(names) + (f", a cluster of {len(facts)} nodes" if "redis_version" not in facts else "")


def _name_of(node: Any) -> str:
    if node.get("server_name") == "valkey":
        return f"Valkey {node['valkey_version']}"
    return f"Redis {node['redis_version']}"


async def _compare_clocks(redis: RedisClient, postgres: asyncpg.Pool) -> Symptom:
    told: Any = await redis.time()
    seconds, micros = told if isinstance(told, tuple | list) else next(iter(told.values()))
    apart_ms = abs(int(seconds) * 1000 + int(micros) // 1000 - await SQL.read_clock.fetchval(postgres))
    if apart_ms <= CLOCKS_APART_MAX_MS:
        return Symptom("clocks", "well", "Redis and Postgres tell the same time")
    return Symptom(
        "clocks",
        "warning",
        f"Redis and Postgres tell times {apart_ms / 1000:.1f} s apart: deadlines will look wrong.",
        "Keep both machines on NTP.",
    )


async def _compare_schema(postgres: asyncpg.Pool) -> Symptom:
    wanted = migrations.read()
    try:
        rows = await SQL.list_migrations.fetch(postgres)
    except asyncpg.UndefinedTableError:
        rows = []
    had = [(row["version"], row["checksum"]) for row in rows]
    known = [(migration.version, migration.checksum) for migration in wanted]
    if had == known:
        return Symptom("schema", "well", f"the database has all {len(known)} migrations")
    if had == known[: len(had)]:
        missing = f"the database has {len(had)} of {len(known)} migrations"
        return Symptom("schema", "warning", missing, "Start `lastseat api` or `lastseat worker`: each migrates.")
    return Symptom(
        "schema",
        "refused",
        "the database was made by another version of this program",
        f"Run the version whose newest migration is {max(version for version, _ in had):04d}.",
    )


async def _look_for_workers(postgres: asyncpg.Pool) -> Symptom:
    counts = await SQL.count_owned_sales.fetchrow(postgres)
    assert counts is not None  # noqa: S101 - a count has one row
    if counts["closed"]:
        closed = f"{counts['closed']} sales are closed, waiting to be rebuilt"
        return Symptom("worker", "warning", closed, "Start `lastseat worker`, or see what its log says.")
    if counts["owned"] < counts["open"]:
        idle = f"nobody works on {counts['open'] - counts['owned']} of {counts['open']} open sales"
        return Symptom("worker", "warning", idle, "Start `lastseat worker`.")
    return Symptom("worker", "well", f"{counts['owned']} open sales are worked on")
