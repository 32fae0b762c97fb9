"""Order cancellations: units of an order are given back, and are left for others again.

Of a line of q units for which T was paid after its discount, T * r // q is refunded once r of them went back, and of
that the percentage of the policy. What of it is money, policy and record is in `cancellations`.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import asyncpg
import msgspec

from engine import cancellations, ids, statistics
from engine.cancellations import (
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
from engine.refusals import IdempotencyKeyReused
from engine.sales import SaleBook
from engine.statistics import Refunded
from engine.stock import Units, UnitUnknown
from engine.stores import queries
from engine.stores.queries import Connection
from engine.stores.scripts import Gate

SQL = queries.load("order_cancellations")
ORDERS = queries.load("orders")


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What cancelling these units now would pay back; the rule is None where the sale has no policy."""

    units: tuple[Units, ...]
    amount: int
    kept: int
    rule: Rule | None


# Quote and cancel -----------------------------------------------------------------------------------------------------


async def quote(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    order_id: str,
    user_id: str,
    units: Sequence[Units] = (),
) -> Quote | Refused:
    """Say what cancelling these units of a user's order now would pay back, all that are left when none is named."""
    share = await cancellations.quote(gate, postgres, book, UNITS, hold_id=order_id, user_id=user_id, lines=_sum(units))
    if not isinstance(share, Share):
        return share
    parts = tuple([Units(part.name, part.quantity) for part in share.parts])
    return Quote(units=parts, amount=share.amount, kept=share.kept, rule=share.rule)


async def cancel(
    gate: Gate,
    postgres: asyncpg.Pool,
    book: SaleBook,
    *,
    cancellation_id: str,
    order_id: str,
    user_id: str | None = None,
    units: Sequence[Units] = (),
    refund_to: RefundTo = "SOURCE",
) -> Cancellation | IdempotencyKeyReused | Refused:
    """Give units of a paid order back, all that are left when none is named; refund what the policy says.

    A variant that is named twice is one line. Who may, and what a repeat is answered, `cancellations.cancel` says.
    """
    lines = _sum(units)
    told = sorted(Units(variant_id, quantity).told for variant_id, quantity in lines.items())
    wish = Wish(
        cancellation_id=cancellation_id,
        hold_id=order_id,
        lines=lines,
        refund_to=refund_to,
        fingerprint=ids.fingerprint(order_id, refund_to, *told),
    )
    return await cancellations.cancel(gate, postgres, book, UNITS, wish, user_id=user_id)


def _sum(units: Sequence[Units]) -> Counter[str]:
    lines: Counter[str] = Counter()
    for each in units:
        lines[each.variant_id] += each.quantity
    return lines


# What is of units -----------------------------------------------------------------------------------------------------


def rule_of(policy: Sequence[Rule], *, closes_at: datetime | None, now: datetime) -> Rule | CancellationClosed | None:
    """Find the rule that counts, by the hours that are left until the sale closes; the first where it never does.

    Goods begin at no moment, so without a policy everything is paid back at any time.
    """
    if not policy:
        return None
    return cancellations.first_rule(policy, None if closes_at is None else closes_at - now)


async def _find_terms(connection: asyncpg.Pool | Connection, order_id: str) -> Terms | None:
    row = await SQL.find_terms.fetchrow(connection, order_id)
    if row is None:
        return None
    return Terms(
        user_id=row["user_id"],
        sale_id=row["sale_id"],
        status=row["status"],
        rule=rule_of(msgspec.convert(row["refund_policy"], list[Rule]), closes_at=row["closes_at"], now=row["now"]),
    )


async def _lock(connection: Connection, order_ids: Sequence[str]) -> dict[str, Bought]:
    bought = {row["hold_id"]: Bought(**row) for row in await SQL.lock_orders.fetch(connection, order_ids)}
    for row in await SQL.find_items.fetch(connection, order_ids):
        line = Line(row["total_price"], row["quantity"], row["refunded_quantity"])
        bought[row["order_id"]].lines[row["variant_id"]] = line
    return bought


async def _write(connection: Connection, sale_id: str, given_back: Sequence[GivenBack]) -> None:  # noqa: ARG001
    """Write that these units are left again, whose they are not any more, and count them on the day of today."""
    lines = [
        (each.wish.hold_id, part.name, part.quantity, part.amount) for each in given_back for part in each.share.parts
    ]
    order_ids, variant_ids, quantities, _ = map(list, zip(*lines, strict=True))
    # The variants before the lines: the worker that sells has them in this order, see sql/cancellations.sql.
    left: Counter[str] = Counter()
    for _, variant_id, quantity, _ in lines:
        left[variant_id] += quantity
    await ORDERS.lock_variants.fetch(connection, list(left))
    await SQL.add_left.execute(connection, list(left), list(left.values()))
    await ORDERS.lock_sold_items.fetch(connection, order_ids)
    await SQL.lower_items.execute(connection, order_ids, variant_ids, quantities)
    await SQL.return_user_items.execute(connection, order_ids, variant_ids, quantities)
    await SQL.refund_orders.execute(
        connection,
        [each.wish.hold_id for each in given_back],
        [each.share.is_whole for each in given_back],
    )
    await SQL.add_cancellations.execute_many(
        connection,
        [
            (
                each.wish.cancellation_id,
                each.wish.hold_id,
                each.bought.user_id,
                [part.name for part in each.share.parts],
                [part.quantity for part in each.share.parts],
                each.reason,
                each.share.amount,
                each.share.kept,
                each.wish.refund_to,
                each.wish.fingerprint,
            )
            for each in given_back
        ],
    )
    await statistics.count_refunded(
        connection,
        [
            Refunded(
                cancellation_id=each.wish.cancellation_id,
                order_id=each.wish.hold_id,
                variant_id=part.name,
                quantity=part.quantity,
                amount=part.amount,
            )
            for each in given_back
            for part in each.share.parts
        ],
    )


UNITS: Final = Kind(
    name="stock",
    bought=frozenset({"PAID", "PARTIALLY_REFUNDED"}),
    unknown=UnitUnknown,
    find_terms=_find_terms,
    lock=_lock,
    write=_write,
)
