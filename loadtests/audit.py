"""The audit of a run: what stands in both stores, held against what its clients heard."""

from pathlib import Path

import asyncpg

from engine.audit import GRACE_S, SETTLE_S, Report, describe
from engine.audit import audit as look
from engine.stores.connections import RedisClient
from loadtests import history

__all__ = ["Report", "audit", "describe"]


async def audit(
    redis: RedisClient,
    postgres: asyncpg.Pool,
    *,
    history_path: Path | None = None,
    settle_s: float = SETTLE_S,
    grace_s: int = GRACE_S,
) -> Report:
    """Check every invariant; I2 only where there is a file of what clients heard."""
    heard = list(history.read(history_path)) if history_path is not None else None
    return await look(redis, postgres, heard=heard, settle_s=settle_s, grace_s=grace_s)
