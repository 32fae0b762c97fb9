"""Reconciliation: what a process left half done between Redis and Postgres is finished."""

from collections.abc import Sequence
from typing import Final

import asyncpg
import msgspec

from engine import authorisations, seat_blocks, seats, wares
from engine.refusals import NotFound
from engine.sales import Sale
from engine.stores import queries
from engine.stores.replies import Refusal
from engine.stores.scripts import Gate

SQL = queries.load("payments")

# A PENDING row this long past its deadline was not told of its end.
FORGOTTEN_S: Final = 60.0
# What has moved within so long is in somebody's hands.
MOVING_S: Final = 2.0


class Reconciled(msgspec.Struct):
    """What one pass of the reconciler did."""

    confirmed: int = 0
    ended: int = 0
    abandoned: int = 0
    restored: int = 0


async def find_unfinished(postgres: asyncpg.Pool, sale_ids: Sequence[str]) -> list[str]:
    """Which of these sales Postgres has anything of that may have to be finished, here or at a card gateway."""
    rows = await SQL.find_unfinished.fetch(postgres, sale_ids, MOVING_S, FORGOTTEN_S)
    return [row["sale_id"] for row in rows]


async def reconcile(
    gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, idle_s: float = 5.0, most: int = 200
) -> Reconciled:
    """Finish what a process left half done, at most `most` of each; every step may be repeated after a crash.

    Payments that stand still are confirmed again; what Redis does not know any more is voided. Holds whose payment
    never came to a row are abandoned past their pay deadline. What is to be given back is given back, and seats that an
    operator blocks or unblocks are. Rows whose end nobody heard of are ended.
    """
    done = Reconciled()
    for row in await SQL.list_unsettled.fetch(postgres, sale.sale_id, idle_s, most):
        await _settle_idle(gate, postgres, sale, row, done)
    await _leave_overdue(gate, postgres, sale, most, done)
    done.restored = await give_back(gate, postgres, sale, most=most)
    if sale.kind == "seats":
        await seat_blocks.finish(gate, postgres, sale.sale_id)
    async with postgres.acquire() as connection:
        forgotten = await wares.of(sale).rows.list_forgotten(connection, sale, within_s=FORGOTTEN_S, most=most)
    for hold_id in forgotten:
        done.ended += await _end_if_lost(gate, postgres, sale, hold_id)
    return done


async def _settle_idle(gate: Gate, postgres: asyncpg.Pool, sale: Sale, row: asyncpg.Record, done: Reconciled) -> None:
    scripts = wares.of(sale).scripts
    hold = {"hold_id": row["hold_id"], "fence": row["fence"], "payment_id": row["payment_id"]}
    if row["status"] == "AUTHORISED":
        confirmed = await scripts.confirm(gate, sale, **hold)
        if isinstance(confirmed, seats.Confirmed):
            done.confirmed += 1  # the outbox has it, or gets it now
        elif isinstance(confirmed, seats.HoldUnknown | seats.PaymentMismatch):
            done.ended += await authorisations.end(postgres, {row["payment_id"]: "VOIDED"}, copy_of=sale)
        return
    # PENDING: abandon first; only its answer shuts the door that a confirmation could still come through.
    abandoned = await scripts.abandon(gate, sale, **hold)
    if isinstance(abandoned, seats.Abandoned | seats.HoldUnknown):
        done.ended += await authorisations.end(postgres, {row["payment_id"]: "FAILED"}, copy_of=sale)


async def _leave_overdue(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    """Lead payments past their deadline out of PAYING, each by the door that its row names."""
    scripts = wares.of(sale).scripts
    overdue = await scripts.overdue(gate, sale, most=most)
    if not isinstance(overdue, seats.Overdue):
        return
    rows = await SQL.find_payments.fetch(postgres, [hold.payment_id for hold in overdue.holds])
    statuses = {row["payment_id"]: row["status"] for row in rows}
    for hold in overdue.holds:
        match statuses.get(hold.payment_id, "FAILED"):
            case "FAILED" | "VOIDED":
                await scripts.abandon(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.abandoned += 1
            case "PENDING" | "AUTHORISED" | "IN_DOUBT":
                pass  # settled above, or by an operator
            case _:
                # Paid for: a copy that was rebuilt in between missed it.
                await scripts.confirm(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.confirmed += 1


async def give_back(gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, most: int) -> int:
    """Make holds in Redis what they are here, of at most so many; returns of how many."""
    async with postgres.acquire() as connection, connection.transaction():
        return await wares.of(sale).rows.restore(gate, connection, sale, most=most)


async def _end_if_lost(gate: Gate, postgres: asyncpg.Pool, sale: Sale, hold_id: str) -> bool:
    """End the row of a hold that Redis knows as ended, or not at all in the copy that is open now."""
    found = await wares.of(sale).scripts.find(gate, sale, hold_id=hold_id)
    if isinstance(found, NotFound):
        reason = "EXPIRED"
    elif isinstance(found, Refusal) or found.state != "ENDED":
        return False
    else:
        reason = found.reason or "EXPIRED"
    async with postgres.acquire() as connection, connection.transaction():
        if not await SQL.lock_copy.fetchval(connection, sale.sale_id, sale.epoch):
            return False
        await wares.of(sale).rows.end(connection, {hold_id: reason})
    return True
