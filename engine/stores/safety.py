"""Whether an outside store may be trusted with sales, and if not, the line to change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import ResponseError

# The first patch of each branch without the use-after-free faults of the Lua engine.
VALKEY_PATCHES: Mapping[tuple[int, int], int] = {(8, 1): 7, (9, 0): 5, (9, 1): 2}
REDIS_PATCHES: Mapping[tuple[int, int], int] = {(7, 4): 9, (8, 2): 6}
POSTGRES_MIN = 15


@dataclass(frozen=True)
class Finding:
    """Something about a store that an operator should change; no sale may be made before, if `refuse`."""

    refuse: bool
    what: str
    change: str


async def inspect_redis(redis: Redis | RedisCluster) -> list[Finding]:
    """Look at persistence, eviction and version; on a cluster, of each primary."""
    if isinstance(redis, Redis):
        return await _inspect_server(redis.execute_command)
    await redis.initialize()
    findings: dict[Finding, None] = {}  # in order, each once
    for node in redis.get_primaries():
        findings |= dict.fromkeys(await _inspect_server(node.execute_command))
    return list(findings)


async def inspect_postgres(postgres: asyncpg.Pool) -> list[Finding]:
    """Look at what a commit means there, and at the version."""
    row = await postgres.fetchrow(
        """
        SELECT current_setting('server_version_num')::int / 10000 AS version,
          current_setting('synchronous_commit') AS synchronous_commit,
          current_setting('fsync') AS fsync,
          current_setting('full_page_writes') AS full_page_writes,
          pg_is_in_recovery() AS is_replica
        """
    )
    assert row is not None  # noqa: S101  a SELECT without FROM has one row
    findings = []
    if row["version"] < POSTGRES_MIN:
        findings.append(
            _refusal(f"Postgres {row['version']} is too old.", f"Install Postgres {POSTGRES_MIN} or newer.")
        )
    if row["is_replica"]:
        findings.append(_refusal("Postgres is a read-only replica.", "Name its primary in LASTSEAT_POSTGRES_URL."))
    if row["synchronous_commit"] == "off":
        findings.append(_refusal("A commit is not on disk when it is answered.", "synchronous_commit = on"))
    findings.extend(
        _warning(f"Postgres can lose or tear what it wrote: {name} is off.", f"{name} = on")
        for name in ("fsync", "full_page_writes")
        if row[name] == "off"
    )
    return findings


def _refusal(what: str, change: str) -> Finding:
    return Finding(refuse=True, what=what, change=change)


def _warning(what: str, change: str) -> Finding:
    return Finding(refuse=False, what=what, change=change)


async def _inspect_server(execute: Callable[..., Any]) -> list[Finding]:
    findings = [_judge_version(await execute("INFO"))]
    try:
        lines = {
            name: (await execute("CONFIG GET", name)).get(name) for name in ("maxmemory-policy", "appendonly", "save")
        }
    except ResponseError:
        findings.append(
            _warning(
                "Redis does not let its configuration be read: eviction and persistence are unknown.",
                "Allow CONFIG GET to this user.",
            )
        )
    else:
        findings.extend((_judge_eviction(lines["maxmemory-policy"]), _judge_persistence(lines)))
    return [finding for finding in findings if finding is not None]


def _judge_eviction(policy: str | None) -> Finding | None:
    if policy == "noeviction":
        return None
    return _refusal(
        f"Redis would throw away seats when full: maxmemory-policy is {policy}.",
        "maxmemory-policy noeviction",
    )


def _judge_persistence(lines: Mapping[str, str | None]) -> Finding | None:
    if lines["appendonly"] == "yes":
        return None
    if not lines["save"]:
        return _refusal("Redis keeps nothing on disk: a restart would empty every sale.", "appendonly yes")
    return _warning(
        "Redis keeps snapshots only: a restart would forget minutes of every sale.",
        "appendonly yes",
    )


def _judge_version(facts: Mapping[str, Any]) -> Finding | None:
    is_valkey = facts.get("server_name") == "valkey"
    name, patches = ("Valkey", VALKEY_PATCHES) if is_valkey else ("Redis", REDIS_PATCHES)
    version = str(facts["valkey_version" if is_valkey else "redis_version"])
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    branch = (major, minor)
    if branch > max(patches) or (branch in patches and patch >= patches[branch]):
        return None
    wanted = ", ".join(f"{first}.{second}.{third}" for (first, second), third in patches.items())
    return _warning(f"{name} {version} has known faults in its Lua engine.", f"Install {name} {wanted} or newer.")
