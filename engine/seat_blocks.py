"""Seats that an operator takes off a running sale, and puts on it again: FREE <-> BLOCKED, in both stores.

What is to be done is a row first. To block, Redis comes next, which alone knows what is free, and Postgres last; to
unblock, Postgres comes with the row and Redis last. So whenever a process dies in between, Redis blocks a seat that
Postgres may not, and never the reverse; the row says what is left to do, and whoever comes next does it: another
operator, or the owner of the sale.

A sale has one such row at a time that is not done. Their numbers grow, and Redis keeps the highest: a copy that comes
late changes nothing. An answer of Redis counts for the copy of the sale that gave it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec
from redis.exceptions import RedisError

from engine import ids
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached
from engine.sales import Sale
from engine.seats import LookOn, OfferUnknown, SeatTaken
from engine.stores import queries
from engine.stores.connections import Stores, StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.replies import Reply, SaleRebuilding, Unavailable
from engine.stores.scripts import Gate, Script

SQL = queries.load("seat_blocks")

# Seats of one request: all of them change in one script, in a few milliseconds.
SEATS_MAX: Final = 1000
# Requests of other operators that are finished before one's own.
TURNS_MAX: Final = 8
# Calls for one request, each of which ends fifty of the lapsed holds in its way.
CALLS_MAX: Final = 1 + SEATS_MAX // 50


class SeatsBlocked(Reply, frozen=True):
    """The seats are the operator's; `count` of them were not before."""

    count: int


class SeatsUnblocked(Reply, frozen=True):
    """None of the seats is kept back any more; `count` of them were."""

    count: int


class Superseded(Reply, frozen=True):
    """The store has seen this number, or a higher one: it is not judged again."""


BLOCK = Script("seats/block", SaleKeys, SeatsBlocked | SeatTaken | LookOn | Superseded | Unavailable)
UNBLOCK = Script("seats/unblock", SaleKeys, SeatsUnblocked | Superseded | Unavailable)


class SeatBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Seats that were taken off their sale, or put on it again; `done_at` is None until both stores have it."""

    seat_block_id: str
    seat_block_no: int
    sale_id: str
    seat_nos: tuple[str, ...]
    blocked: bool
    fingerprint: str
    created_at: datetime
    done_at: datetime | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for: these seats, or all of a section, to be blocked or not."""

    seat_block_id: str
    seat_nos: tuple[str, ...] = ()
    section: str | None = None
    blocked: bool

    @property
    def fingerprint(self) -> str:
        """What tells this request from another one under the same id."""
        return ids.fingerprint("seat block", str(self.blocked), self.section or "", *self.seat_nos)


Refused = SeatTaken | OfferUnknown | LimitReached | IdempotencyKeyReused | Busy | Unavailable


# What callers see -----------------------------------------------------------------------------------------------------


async def change(stores: Stores, sale: Sale, asked: Asked) -> tuple[SeatBlock, bool] | Refused:
    """Block seats, or unblock them, all or none; answers what was done, and whether an earlier request did it.

    To be blocked a seat is free, or blocked already. Places of areas cannot be, as nobody names them, and seats of
    blocks are kept back by these. Of a section all that are not as they should be are changed. Raises StoreUnavailable
    where it is not known what became of it: then it is finished later, or was refused.
    """
    for _ in range(TURNS_MAX):
        found = await _begin(stores, sale, asked)
        if not isinstance(found, SeatBlock):
            return found
        is_mine = found.seat_block_id == asked.seat_block_id
        if is_mine and found.fingerprint != asked.fingerprint:
            return IdempotencyKeyReused()
        if is_mine and found.done_at is not None:
            return found, True
        refusal = await finish(stores.gate, stores.postgres, sale.sale_id, found.seat_block_id)
        if is_mine and refusal is not None:
            return refusal
        row = await SQL.find_seat_block.fetchrow(stores.postgres, asked.seat_block_id) if is_mine else None
        if row is not None and row["done_at"] is not None:
            return _seat_block(row), False
    return Busy(retry_after_ms=1000)


async def finish(
    gate: Gate, postgres: asyncpg.Pool, sale_id: str, seat_block_id: str | None = None
) -> SeatTaken | Busy | Unavailable | None:
    """Do what is left to do of the one row of a sale that is not done, if it is this one; None where nothing is left.

    Safe to run anywhere, any number of times at once. Raises StoreUnavailable.
    """
    row = await SQL.find_unfinished.fetchrow(postgres, sale_id)
    if row is None or seat_block_id not in {None, row["seat_block_id"]}:
        return None
    seat_block, epoch = _seat_block(row), row["epoch"]
    keys = SaleKeys(sale_id)
    asked: dict[str, Any] = {
        "epoch": epoch,
        "seat_block_no": seat_block.seat_block_no,
        "seat_nos": seat_block.seat_nos,
    }
    if not seat_block.blocked:
        unblocked = await UNBLOCK(gate, keys, **asked)
        return await _close(postgres, seat_block, epoch, unblocked)
    for _ in range(CALLS_MAX):
        blocked = await BLOCK(gate, keys, **asked)
        if not isinstance(blocked, LookOn):
            return await _close(postgres, seat_block, epoch, blocked)
    return Busy(retry_after_ms=1000)


# How it is done -------------------------------------------------------------------------------------------------------


async def _begin(stores: Stores, sale: Sale, asked: Asked) -> SeatBlock | Refused:
    """The row of this request, or the one of another that must be done first, or why there is none."""
    postgres = stores.postgres
    row = await SQL.find_seat_block.fetchrow(postgres, asked.seat_block_id)
    if row is not None:
        return _seat_block(row)
    wanted = await _judge(stores.gate, postgres, sale, asked)
    if not isinstance(wanted, list):
        return wanted
    async with postgres.acquire() as connection, connection.transaction():
        copy = await SQL.lock_sale.fetchrow(connection, sale.sale_id)
        if copy is None or copy["store_state"] != "open":
            return SaleRebuilding()
        row = await SQL.find_unfinished.fetchrow(connection, sale.sale_id) or await SQL.find_seat_block.fetchrow(
            connection, asked.seat_block_id
        )
        if row is not None:
            return _seat_block(row)
        await SQL.add_seat_block.execute(
            connection, asked.seat_block_id, sale.sale_id, wanted, asked.blocked, asked.fingerprint
        )
        if not asked.blocked:
            await SQL.mark_seats.execute(connection, sale.sale_id, wanted, asked.blocked)
        made = await SQL.find_seat_block.fetchrow(connection, asked.seat_block_id)
        assert made is not None  # noqa: S101 - it was just added
        return _seat_block(made)


async def _judge(
    gate: Gate, postgres: asyncpg.Pool, sale: Sale, asked: Asked
) -> list[str] | SeatTaken | OfferUnknown | LimitReached:
    """The seats that are asked for, by number, or which of them never are an operator's to ask for."""
    if asked.section is not None:
        rows = await SQL.list_section.fetch(postgres, sale.sale_id, asked.section)
        if not rows:
            return OfferUnknown((f"section {asked.section}",))
        wanted = [row["seat_no"] for row in rows if row["blocked"] != asked.blocked]
    else:
        rows = await SQL.list_seats.fetch(postgres, sale.sale_id, asked.seat_nos)
        wanted = list(dict.fromkeys(asked.seat_nos))
    if len(wanted) > SEATS_MAX:
        return LimitReached(limit=SEATS_MAX, have=len(wanted))
    facts = {row["seat_no"]: row for row in rows}
    reasons = {
        seat_no: "unknown" if seat_no not in facts or facts[seat_no]["is_place"] else "kept"
        for seat_no in wanted
        if seat_no not in facts or facts[seat_no]["is_place"] or facts[seat_no]["is_kept"]
    }
    if not asked.blocked and not reasons:
        # Somebody else may have it: then it is not the operator's to give.
        others = [seat_no for seat_no in wanted if not facts[seat_no]["blocked"]]
        reasons = await _find_others(gate, sale, others)
    if reasons:
        return SeatTaken(tuple([f"{seat_no} {reason}" for seat_no, reason in reasons.items()]))
    return wanted


async def _find_others(gate: Gate, sale: Sale, seat_nos: Sequence[str]) -> dict[str, str]:
    """Who has each of these seats that are not free: a buyer, or the waiting list."""
    if not seat_nos:
        return {}
    try:
        standing: list[bytes | None] = await gate.redis.hmget(sale.keys.seats, list(seat_nos))
    except RedisError as fault:
        raise StoreUnavailable(f"seats of sale {sale.sale_id} cannot be read: {fault}") from fault
    found = {}
    for seat_no, value in zip(seat_nos, standing, strict=True):
        if value is not None and value != b"BLOCKED - 0":
            state, hold_id, _fence = value.decode().split(" ")
            found[seat_no] = "waiting_list" if hold_id == "list" else state.lower()
    return found


async def _close(
    postgres: asyncpg.Pool,
    seat_block: SeatBlock,
    epoch: int,
    answer: SeatsBlocked | SeatsUnblocked | SeatTaken | Superseded | Unavailable,
) -> SeatTaken | Busy | Unavailable | None:
    """Write down what Redis answered in this copy of the sale, unless another copy counts by now."""
    if isinstance(answer, Unavailable):
        return answer
    async with postgres.acquire() as connection, connection.transaction():
        copy = await SQL.lock_sale.fetchrow(connection, seat_block.sale_id)
        if copy is None or copy["epoch"] != epoch:
            return SaleRebuilding()
        match answer:
            case SeatsBlocked() | SeatsUnblocked():
                is_first = await SQL.finish.fetchval(connection, seat_block.seat_block_id)
                if is_first and seat_block.blocked:
                    await SQL.mark_seats.execute(
                        connection, seat_block.sale_id, seat_block.seat_nos, seat_block.blocked
                    )
                return None
            case SeatTaken():
                await SQL.remove.execute(connection, seat_block.seat_block_id)
                return answer
            case Superseded():
                # It is done, or was refused and nobody lived to say so: a higher number waits until this row is closed.
                await SQL.remove.execute(connection, seat_block.seat_block_id)
                return Busy(retry_after_ms=1000)


def _seat_block(row: asyncpg.Record) -> SeatBlock:
    values = {name: row[name] for name in SeatBlock.__struct_fields__}
    return SeatBlock(**values | {"seat_nos": tuple(row["seat_nos"])})
