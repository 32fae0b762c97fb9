"""Repair: what Redis or a counter says wrongly is made what the rows of Postgres say.

Claims, payments and the history of balances are what is true: they are never touched, and no money is moved. Counts
kept beside them are counted anew, and sales are written to Redis anew. What is wrong with the true rows themselves is
for a person.
"""

import msgspec

from engine import rebuild
from engine.audit import Report
from engine.stores import queries
from engine.stores.connections import Stores

SQL = queries.load("repair")

REBUILT_WITHIN_S = 120.0


class Repaired(msgspec.Struct, frozen=True):
    """What was changed."""

    seats: int
    schedules: int
    rebuilt: list[str]
    not_rebuilt: list[str]


async def repair(stores: Stores, report: Report) -> Repaired:
    """Make the counters of Postgres and the copies in Redis what the rows say, where the report found them wrong.

    A sale that merely sold on while it was looked at is left alone: writing it anew would close it for seconds.
    """
    wrong = {check.invariant for check in report.checks if check.verdict == "false"}
    seats = schedules = 0
    if "I1" in wrong:
        async with stores.postgres.acquire() as connection, connection.transaction():
            await SQL.lock_schedules.execute(connection)
            seats = await SQL.mark_seats.execute(connection)
            schedules = await SQL.count_seats.execute(connection)
    rebuilt: list[str] = []
    not_rebuilt: list[str] = []
    for sale_id in report.to_rebuild:
        is_open = await rebuild.demand(stores, sale_id, reason="the audit found it wrong", within_s=REBUILT_WITHIN_S)
        (rebuilt if is_open else not_rebuilt).append(sale_id)
    return Repaired(seats, schedules, rebuilt, not_rebuilt)
