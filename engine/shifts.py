"""Shifts: which workers live, how many sales each should own, and what is swept away once it is old."""

from datetime import datetime

import asyncpg
import msgspec

from engine.stores import queries
from engine.stores.outbox import LEASE_S

SQL = queries.load("shifts")

# How long rows of the line are kept.
QUEUE_DAYS = 30
ROWS_AT_ONCE = 5000


class Worker(msgspec.Struct, frozen=True):
    """A worker that lives, and how many sales it owns."""

    worker: str
    sales: int
    created_at: datetime
    updated_at: datetime


async def report(postgres: asyncpg.Pool, worker: str, owned: int) -> None:
    """Say that a worker lives and owns so many sales."""
    await SQL.keep_worker.execute(postgres, worker, owned)


async def find_share(postgres: asyncpg.Pool) -> int:
    """How many sales are each worker's fair share."""
    count = await SQL.count_shares.fetchrow(postgres, LEASE_S)
    assert count is not None  # noqa: S101 - counts always have a row
    share: int = -(-count["sales"] // max(1, count["workers"]))
    return share


async def leave(postgres: asyncpg.Pool, worker: str) -> None:
    """Say that a worker has stopped, so that the others take its share at once."""
    await SQL.remove_worker.execute(postgres, worker)


async def list_workers(postgres: asyncpg.Pool) -> list[Worker]:
    """The workers that live, the oldest first."""
    return [Worker(**row) for row in await SQL.list_workers.fetch(postgres, LEASE_S)]


async def forget(postgres: asyncpg.Pool) -> int:
    """Remove rows past their time, a bounded number in each transaction; returns how many."""
    forgotten = await SQL.forget_workers.execute(postgres)
    while count := await SQL.forget_queue_tokens.execute(postgres, QUEUE_DAYS, ROWS_AT_ONCE):
        forgotten += count
    return forgotten
