"""Reconciliation: what a process left half done between Redis and Postgres is finished."""

from typing import Final

import asyncpg
import msgspec

from engine import authorisations, reservations, seat_blocks, seats
from engine.refusals import NotFound
from engine.sales import Sale
from engine.stores import queries
from engine.stores.scripts import Gate

SQL = queries.load("payments")
RESERVATIONS = queries.load("reservations")

# A PENDING row this long past its deadline was not told of its end.
FORGOTTEN_S: Final = 60.0


class Reconciled(msgspec.Struct):
    """What one pass of the reconciler did."""

    confirmed: int = 0
    ended: int = 0
    abandoned: int = 0
    restored: int = 0


async def reconcile(
    gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, idle_s: float = 5.0, most: int = 200
) -> Reconciled:
    """Finish what a process left half done, at most `most` of each; every step may be repeated after a crash.

    Payments that stand still are confirmed again; what Redis does not know any more is voided. Holds whose payment
    never came to a row are abandoned past their pay deadline. Seats to be given back are given back, and those that an
    operator blocks or unblocks are. Rows whose end nobody heard of are ended.
    """
    done = Reconciled()
    for row in await SQL.list_unsettled.fetch(postgres, sale.sale_id, idle_s, most):
        await _settle_idle(gate, postgres, sale, row, done)
    await _leave_overdue(gate, postgres, sale, most, done)
    done.restored = await give_back(gate, postgres, sale, most=most)
    await seat_blocks.finish(gate, postgres, sale.sale_id)
    for row in await RESERVATIONS.list_forgotten.fetch(postgres, sale.sale_id, FORGOTTEN_S, most):
        done.ended += await _end_if_lost(gate, postgres, sale, row["reservation_id"])
    return done


async def _settle_idle(gate: Gate, postgres: asyncpg.Pool, sale: Sale, row: asyncpg.Record, done: Reconciled) -> None:
    hold = {"hold_id": row["reservation_id"], "fence": row["fence"], "payment_id": row["payment_id"]}
    if row["status"] == "AUTHORISED":
        confirmed = await seats.confirm(gate, sale, **hold)
        if isinstance(confirmed, seats.Confirmed):
            done.confirmed += 1  # the outbox has it, or gets it now
        elif isinstance(confirmed, seats.HoldUnknown | seats.PaymentMismatch):
            done.ended += await authorisations.end(postgres, {row["payment_id"]: "VOIDED"}, copy_of=sale)
        return
    # PENDING: abandon first; only its answer shuts the door that a confirmation could still come through.
    abandoned = await seats.abandon(gate, sale, **hold)
    if isinstance(abandoned, seats.Abandoned | seats.HoldUnknown):
        done.ended += await authorisations.end(postgres, {row["payment_id"]: "FAILED"}, copy_of=sale)


async def _leave_overdue(gate: Gate, postgres: asyncpg.Pool, sale: Sale, most: int, done: Reconciled) -> None:
    """Lead payments past their deadline out of PAYING, each by the door that its row names."""
    overdue = await seats.overdue(gate, sale, most=most)
    if not isinstance(overdue, seats.Overdue):
        return
    rows = await SQL.find_payments.fetch(postgres, [hold.payment_id for hold in overdue.holds])
    statuses = {row["payment_id"]: row["status"] for row in rows}
    for hold in overdue.holds:
        match statuses.get(hold.payment_id, "FAILED"):
            case "FAILED" | "VOIDED":
                await seats.abandon(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.abandoned += 1
            case "PENDING" | "AUTHORISED" | "IN_DOUBT":
                pass  # settled above, or by an operator
            case _:
                # Paid for: a copy that was rebuilt in between missed it.
                await seats.confirm(gate, sale, hold_id=hold.hold_id, fence=hold.fence, payment_id=hold.payment_id)
                done.confirmed += 1


async def give_back(gate: Gate, postgres: asyncpg.Pool, sale: Sale, *, most: int) -> int:
    """Make seats in Redis what they are here, of at most so many reservations; returns of how many.

    The claims stay locked until Redis has answered: one that was given up in between would come back as SOLD, for ever.
    """
    done = 0
    async with postgres.acquire() as connection, connection.transaction():
        rows = await SQL.lock_restores.fetch(connection, sale.sale_id, most)
        wanted: dict[str, dict[str, str | None]] = {row["hold_id"]: {} for row in rows}
        for line in await SQL.find_all_lines.fetch(connection, list(wanted)):
            wanted[line["reservation_id"]][line["seat_no"]] = line["tier"]
        seat_nos = [seat_no for lines in wanted.values() for seat_no in lines]
        claims = {
            row["seat_no"]: (row["reservation_id"], row["fence"])
            for row in await SQL.lock_claims.fetch(connection, sale.sale_id, seat_nos)
        }
        for row in rows:
            restored = await seats.restore(
                gate,
                sale,
                hold_id=row["hold_id"],
                fence=row["fence"],
                buyer_id=row["user_id"],
                reason=row["reason"] or "LATE_UNFULFILLABLE",
                goes_next=row["token_goes_next"],
                claims=[
                    seats.Claim(seat_no, *claims.get(seat_no, (None, 0)), tier=tier)
                    for seat_no, tier in wanted[row["hold_id"]].items()
                ],
            )
            if isinstance(restored, seats.Restored | seats.HoldUnknown):
                await SQL.finish_restore.execute(connection, row["hold_id"])
                done += 1
    return done


async def _end_if_lost(gate: Gate, postgres: asyncpg.Pool, sale: Sale, reservation_id: str) -> bool:
    """End the row of a hold that Redis knows as ended, or not at all in the copy that is open now."""
    found = await seats.find(gate, sale, hold_id=reservation_id)
    if isinstance(found, seats.Hold):
        if found.state != "ENDED":
            return False
        reason = found.reason or "EXPIRED"
    elif isinstance(found, NotFound):
        reason = "EXPIRED"
    else:
        return False
    async with postgres.acquire() as connection, connection.transaction():
        if not await SQL.lock_copy.fetchval(connection, sale.sale_id, sale.epoch):
            return False
        await reservations.end(connection, {reservation_id: reason})
    return True
