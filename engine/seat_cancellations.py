"""Seat cancellations: seats of a reservation are given back until their event starts; events that are off.

What of it is money, policy and record is in `cancellations`.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from engine import cancellations, ids, offers, reservations, sales
from engine.cancellations import (
    IN_FULL,
    Bought,
    Cancellation,
    CancellationClosed,
    GivenBack,
    Kind,
    Line,
    RefundTo,
    Refused,
    Rule,
    Share,
    Terms,
    Wish,
)
from engine.payments import LIVE
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import Checkpoint, Sale, SaleBook
from engine.seats import SeatUnknown
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.queries import Connection
from engine.stores.scripts import Gate

SQL = queries.load("seat_cancellations")

# Seats whose buyers one transaction refunds when an event is off.
SEATS_AT_ONCE: Final = 400


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What cancelling these seats now would pay back, and by which rule."""

    seat_nos: tuple[str, ...]
    amount: int
    kept: int
    percent: int
    policy_hours: int


class CallOff(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is off, and how many of its reservations have ended so far."""

    schedule_id: str
    sale_id: str
    total: int
    done: int
    created_at: datetime
    finished_at: datetime | None
    repeated: bool = False


# Quote and cancel -----------------------------------------------------------------------------------------------------


async def quote(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    reservation_id: str,
    user_id: str,
    seat_nos: Sequence[str] = (),
) -> Quote | Refused:
    """Say what cancelling these seats of a user's reservation now would pay back, all of them when none is named."""
    lines = dict.fromkeys(seat_nos, 1)
    share = await cancellations.quote(gate, postgres, book, SEATS, hold_id=reservation_id, user_id=user_id, lines=lines)
    if not isinstance(share, Share):
        return share
    rule = share.rule or IN_FULL
    return Quote(
        seat_nos=tuple([part.name for part in share.parts]),
        amount=share.amount,
        kept=share.kept,
        percent=rule.percent,
        policy_hours=rule.hours_before,
    )


async def cancel(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    cancellation_id: str,
    reservation_id: str,
    user_id: str | None = None,
    seat_nos: Sequence[str] = (),
    refund_to: RefundTo = "SOURCE",
) -> Cancellation | IdempotencyKeyReused | Refused:
    """Give seats of a confirmed reservation back, all of them when none is named; refund what the policy says.

    Who may, and what a repeat is answered, is as `cancellations.cancel` says.
    """
    wish = Wish(
        cancellation_id=cancellation_id,
        hold_id=reservation_id,
        lines=dict.fromkeys(seat_nos, 1),
        refund_to=refund_to,
        fingerprint=ids.fingerprint(reservation_id, refund_to, *sorted(set(seat_nos))),
    )
    return await cancellations.cancel(gate, postgres, book, SEATS, wish, user_id=user_id)


# What is of seats -----------------------------------------------------------------------------------------------------


def rule_of(policy: Sequence[Rule], *, start_at: datetime, now: datetime) -> Rule | CancellationClosed:
    """Find the rule that counts, by the hours that are left until the start.

    From the start on nothing is cancelled, whatever the policy says; nor is it when a policy is given and no rule of it
    matches any more. No policy is one rule: everything, until the start.
    """
    if now >= start_at:
        return CancellationClosed(reason="STARTED")
    return cancellations.first_rule(policy or (IN_FULL,), start_at - now)


async def _find_terms(connection: asyncpg.Pool | Connection, reservation_id: str) -> Terms | None:
    row = await SQL.find_terms.fetchrow(connection, reservation_id)
    if row is None:
        return None
    return Terms(
        user_id=row["user_id"],
        sale_id=row["sale_id"],
        status=row["status"],
        rule=rule_of(msgspec.convert(row["refund_policy"], list[Rule]), start_at=row["start_at"], now=row["now"]),
        is_called_off=row["is_called_off"],
    )


async def _lock(connection: Connection, reservation_ids: Sequence[str]) -> dict[str, Bought]:
    """Lock reservations and the tickets of what they claim, each by id."""
    bought = {row["hold_id"]: Bought(**row) for row in await SQL.lock_reservations.fetch(connection, reservation_ids)}
    for row in await SQL.lock_tickets.fetch(connection, reservation_ids):
        line = Line(row["price"], is_redeemed=row["ticket_status"] == "REDEEMED")
        bought[row["reservation_id"]].lines[row["seat_no"]] = line
    return bought


async def _write(connection: Connection, sale_id: str, given_back: Sequence[GivenBack]) -> None:
    lines = [(each.wish.hold_id, part.name) for each in given_back for part in each.share.parts]
    reservation_ids, seat_nos = map(list, zip(*lines, strict=True))
    # The schedule before the claims: see the head of sql/cancellations.sql.
    await SQL.count_given_back.execute(connection, sale_id, seat_nos)
    await SQL.end_claims.execute(connection, reservation_ids, seat_nos)
    await SQL.mark_unsold.execute(connection, sale_id, seat_nos)
    await SQL.cancel_tickets.execute(connection, reservation_ids, seat_nos)
    await SQL.cancel_reservations.execute(
        connection,
        [each.wish.hold_id for each in given_back],
        [each.reason if each.share.is_whole else None for each in given_back],
    )
    await SQL.add_cancellations.execute_many(
        connection,
        [
            (
                each.wish.cancellation_id,
                each.wish.hold_id,
                each.bought.user_id,
                [part.name for part in each.share.parts],
                each.reason,
                each.share.amount,
                each.share.kept,
                each.wish.refund_to,
                each.wish.fingerprint,
            )
            for each in given_back
        ],
    )


SEATS: Final = Kind(
    name="seats",
    bought=frozenset({"CONFIRMED"}),
    unknown=SeatUnknown,
    find_terms=_find_terms,
    lock=_lock,
    write=_write,
)


# An event that is off -------------------------------------------------------------------------------------------------


async def call_off(stores: Stores, book: SaleBook, *, schedule_id: str) -> CallOff | NotFound:
    """Call an event off: its sale is closed now, and everybody is refunded in full by `go_on`; harmless to repeat.

    The row and the closing are one transaction. A process that dies before Redis has heard leaves terms that are ahead,
    and the sale's owner sends them again.
    """
    async with stores.postgres.acquire() as connection, connection.transaction():
        added = await SQL.add_call_off.fetchrow(connection, schedule_id)
        if added is not None:
            changes = {"closes_at": added["now"], "room": "closed"}
            await sales.edit(connection, sale_id=added["sale_id"], changes=changes)
    found = await find_call_off(stores.postgres, schedule_id)
    if found is None:
        return NotFound()
    sale = await book.read(found.sale_id)
    if sale is not None:
        await offers.send(stores.gate, stores.postgres, sale)
    return msgspec.structs.replace(found, repeated=added is None)


async def find_call_off(postgres: asyncpg.Pool, schedule_id: str) -> CallOff | None:
    """How far an event that is off has come."""
    row = await SQL.find_call_off.fetchrow(postgres, schedule_id)
    return CallOff(**row) if row else None


async def go_on(stores: Stores, book: SaleBook, *, most: int = SEATS_AT_ONCE) -> bool:
    """Do one batch of every event that is off; True when there is more to do at once.

    A batch and its progress are one transaction under the lock of the event's row, so it matters to nobody which worker
    does it, or where one dies.
    """
    more = False
    for row in await SQL.list_unfinished.fetch(stores.postgres):
        batch = _batch(stores, book, row["schedule_id"], row["sale_id"], most)
        if await cancellations.transact(stores.postgres, batch):
            more = True
            await cancellations.tell_redis(stores.gate, stores.postgres, book, row["sale_id"], most=most)
    return more


def _batch(
    stores: Stores, book: SaleBook, schedule_id: str, sale_id: str, most: int
) -> Callable[[Connection], Awaitable[bool]]:
    async def do(connection: Connection) -> bool:
        if not await SQL.lock_unfinished.fetch(connection, schedule_id):
            return False
        standing = [row["reservation_id"] for row in await SQL.list_standing.fetch(connection, sale_id, most)]
        done = await _end_all(connection, schedule_id, sale_id, standing) if standing else 0
        if done:
            await SQL.count_called_off.execute(connection, schedule_id, done)
            return True
        # What runs is led to its end by whoever leads it anyway: a sale that is confirmed comes back here as bought.
        sale = await book.read(sale_id)
        # In this order: what Redis still knew has been brought here once it is quiet.
        is_over = (
            sale is not None
            and await _is_quiet(stores.gate, sale)
            and not await SQL.is_standing.fetchval(connection, sale_id)
        )
        if is_over:
            await SQL.finish_call_off.execute(connection, schedule_id)
        return False

    return do


async def _is_quiet(gate: Gate, sale: Sale) -> bool:
    """Whether Redis knows that the sale is closed, and Postgres all that happened in it."""
    told = await sales.ask(gate, sale, sales.CHECKPOINT, queue_no_ceiling=0)
    if not isinstance(told, Checkpoint):
        return False
    return told.version >= sale.version and told.outbox_behind == 0 and told.journal_behind == 0


async def _end_all(connection: Connection, schedule_id: str, sale_id: str, reservation_ids: Sequence[str]) -> int:
    """End these reservations: what was bought is refunded in full, what is only held is given back."""
    locked = await cancellations.lock(connection, SEATS, reservation_ids)
    given_back: list[GivenBack] = []
    held: dict[str, str] = {}
    for reservation_id, bought in locked.bought.items():
        is_paid_for = bought.payment is not None and bought.payment.status in LIVE
        if bought.status == "PENDING" and not is_paid_for:
            held[reservation_id] = "EVENT_CANCELLED"
            continue
        share = cancellations.judge(SEATS, bought, "EVENT_CANCELLED", IN_FULL, {})
        if isinstance(share, Share):
            wish = Wish(
                cancellation_id=ids.derive("called off", schedule_id, reservation_id),
                hold_id=reservation_id,
                lines={},
                refund_to="SOURCE",
                fingerprint="",
            )
            given_back.append(GivenBack(wish, "EVENT_CANCELLED", bought, share))
    if held:
        await cancellations.add_restores(
            connection, sale_id, [locked.bought[reservation_id] for reservation_id in held]
        )
        await reservations.end(connection, held)
    if given_back:
        await cancellations.write(connection, SEATS, sale_id, locked, given_back)
    return len(held) + len(given_back)
