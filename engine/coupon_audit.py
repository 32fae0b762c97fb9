"""What the audit reads of sources of coupons, and what both stores tell differently of one at rest."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from engine.stores import queries
from engine.stores.connections import RedisClient
from engine.stores.keys import CouponKeys

SQL = queries.load("audit")


@dataclass(frozen=True)
class Copy:
    """What Redis has of a source."""

    terms: Mapping[str, str]
    users: frozenset[str]


@dataclass(frozen=True)
class Books:
    """What Postgres has of a source, read in one transaction."""

    epoch: int
    store_state: str
    applied: int
    initial_quantity: int
    quantity: int
    version: int
    users: frozenset[str]


@dataclass(frozen=True)
class Source:
    """A source as both stores tell it; `closed` says why nothing is issued, `moving` why the two cannot be compared."""

    sale_id: str
    copy: Copy
    books: Books
    closed: str | None
    moving: str | None


async def come_to_rest(redis: RedisClient, postgres: asyncpg.Pool, coupon_id: str, until: float) -> Source:
    """Read a source until both stores stand still and agree, or the time is up; as the audit does with a sale."""
    while True:
        before = await _read_copy(redis, coupon_id)
        books = await _read_books(postgres, coupon_id)
        after = await _read_copy(redis, coupon_id)
        closed = _why_closed(after, books)
        source = Source(coupon_id, after, books, closed, closed or _why_moving(before, after, books))
        if source.moving is None and not any(differences(source)):
            return source
        if asyncio.get_running_loop().time() >= until:
            return source
        await asyncio.sleep(0.1)


def differences(source: Source) -> Iterator[str]:
    """What the two stores tell differently of a source at rest: who has one, how many there are, how many are left."""
    copy, books = source.copy, source.books
    for user_id in sorted(copy.users ^ books.users):
        yield f"user {user_id} has a coupon of it in {'Redis' if user_id in copy.users else 'Postgres'} only"
    there_are = int(copy.terms.get("quantity", "0"))
    if there_are != books.initial_quantity:
        yield f"Redis says that there were {there_are} of it, Postgres says {books.initial_quantity}"
    if there_are - len(copy.users) != books.quantity:
        yield f"Redis has {there_are - len(copy.users)} of it left, Postgres {books.quantity}"


async def _read_copy(redis: RedisClient, coupon_id: str) -> Copy:
    keys, client = CouponKeys(coupon_id), cast("Any", redis)
    terms, users = await asyncio.gather(client.hgetall(keys.sale), client.hkeys(keys.issued))
    return Copy(
        terms={name.decode(): value.decode() for name, value in terms.items()},
        users=frozenset(user_id.decode() for user_id in users),
    )


async def _read_books(postgres: asyncpg.Pool, coupon_id: str) -> Books:
    async with postgres.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        progress = await SQL.find_progress.fetch(connection, coupon_id)
        row = await SQL.find_source.fetchrow(connection, coupon_id)
        assert row is not None  # noqa: S101 - sources are never removed, only hidden
        users = await SQL.list_source_users.fetch(connection, coupon_id)
    applied = {each["stream"]: each["n"] for each in progress if each["watermark_epoch"] == each["epoch"]}
    return Books(
        epoch=progress[0]["epoch"],
        store_state=progress[0]["store_state"],
        applied=applied.get("outbox", 0),
        users=frozenset(user["user_id"] for user in users),
        **row,
    )


def _why_closed(copy: Copy, books: Books) -> str | None:
    if books.store_state != "open":
        return f"it is {books.store_state} in Postgres"
    if not copy.terms:
        return "it is not in Redis"
    if copy.terms["epoch"] != str(books.epoch) or copy.terms["state"] != "open":
        return f"it is {copy.terms['state']} in Redis, in epoch {copy.terms['epoch']} of {books.epoch}"
    return None


def _why_moving(before: Copy, after: Copy, books: Books) -> str | None:
    behind = int(after.terms.get("outbox_n", "0")) - books.applied
    if behind > 0:
        return f"{behind:,} entries of its outbox are not applied: is a worker running?"
    if after.terms.get("version") != str(books.version):
        return "its terms are on their way"
    return "it keeps changing" if before != after else None
