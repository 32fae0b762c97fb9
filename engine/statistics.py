"""Statistics: what was sold of each product, by days and by intervals, and which products sell best.

Both are counted from rows and never from what anybody says. The transaction that pays orders counts their units on the
day of `paid_at` in the zone of the installation (`count_sold`), and the one that gives some back counts these on its
own day, in columns of their own (`count_refunded`). So a day needs no run to be right, and one that is over stays as it
is.

Intervals follow what was *persisted*. A batch leaves a row for each product in `unaggregated_sales`; a run removes the
rows that it sees and adds them up, in one transaction. Neither numbers nor times decide what it takes, because neither
are in the order of the commits: what commits during a run is there for the next. Intervals count what was sold, before
refunds, and of each product and day they add up to the day's `sold_quantity`.
"""

import asyncio
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Final

import asyncpg
import msgspec

from engine.products import SHOWN
from engine.stores import queries
from engine.stores.coalesce import Coalescer
from engine.stores.queries import Connection

DAYS_MAX: Final = 365
BEST_SELLERS_MAX: Final = 100
# Together with a cache that keeps an answer as long again, nobody sees one that is older than a minute.
FRESH_S: Final = 30

FIGURES: Final = ("sold_quantity", "orders", "amount", "refunded_quantity", "refunded_amount")

SQL = queries.load("statistics")


class Refunded(msgspec.Struct, frozen=True, kw_only=True):
    """Units of an order's line that one cancellation gives back, and their money."""

    cancellation_id: str
    order_id: str
    variant_id: str
    quantity: int
    amount: int


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What was sold of a product on a day, and what was given back on it."""

    product_id: str
    day: date
    sold_quantity: int
    orders: int
    amount: int
    refunded_quantity: int
    refunded_amount: int
    aggregated_at: datetime


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Units of a product that came to be counted between two runs, of those that were paid for on one day."""

    product_id: str
    day: date
    aggregated_from: datetime
    aggregated_to: datetime
    sold_quantity: int


class BestSeller(msgspec.Struct, frozen=True, kw_only=True):
    """A product, and what was sold of it less what was given back."""

    product_id: str
    name: str
    sold_quantity: int
    amount: int


class BestSellers(msgspec.Struct, frozen=True, kw_only=True):
    """The products that sold best on these days, as they stood at a moment."""

    first_day: date
    last_day: date
    aggregated_at: datetime
    items: tuple[BestSeller, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a product and day that is not what the rows behind it come to."""

    product_id: str
    day: date
    figure: str
    kept: int
    counted: int

    def __str__(self) -> str:
        return f"product {self.product_id}, {self.day}: {self.figure} {self.kept}, and the rows come to {self.counted}"


# Counting -------------------------------------------------------------------------------------------------------------


async def count_sold(connection: Connection, order_ids: Sequence[str]) -> None:
    """Count orders, in the transaction that has just paid them; it is not asked twice for one.

    A second time would count them twice, and `check` would tell.
    """
    if order_ids:
        await SQL.count_sold.execute(connection, order_ids)


async def count_refunded(connection: Connection, refunded: Sequence[Refunded]) -> None:
    """Write down what is given back of lines and count it, in the transaction that does give it back.

    Raises asyncpg.UniqueViolationError for lines that their cancellation has given back before.
    """
    if refunded:
        columns = ([getattr(each, field) for each in refunded] for field in Refunded.__struct_fields__)
        await SQL.count_refunded.execute(connection, *columns)


async def aggregate(postgres: asyncpg.Pool) -> int:
    """Make one interval of everything that was committed since the last; returns how many rows it has.

    Any number of processes may call this at once: one waits for the other, and finds what that one left.
    """
    async with postgres.acquire() as connection, connection.transaction():
        begins = await SQL.lock_aggregation.fetchval(connection)
        # A statement of its own, which sees what the one before it may have waited for.
        return await SQL.aggregate.execute(connection, begins)


# Reading --------------------------------------------------------------------------------------------------------------


async def list_days(
    postgres: asyncpg.Pool,
    *,
    first: date,
    last: date,
    product_id: str | None,
    before: tuple[date, str] | None,
    most: int,
) -> list[Day]:
    """Days of all products or of one, the newest first, from below a place in that order on."""
    rows = await SQL.list_days.fetch(postgres, first, last, product_id, *(before or (None, None)), most)
    return [Day(**row) for row in rows]


async def list_intervals(
    postgres: asyncpg.Pool,
    *,
    first: date,
    last: date,
    product_id: str | None,
    before: tuple[datetime, str, date] | None,
    most: int,
) -> list[Interval]:
    """Intervals with units of these days, of all products or of one, the newest first, from below a place on."""
    rows = await SQL.list_intervals.fetch(postgres, first, last, product_id, *(before or (None, None, None)), most)
    return [Interval(**row) for row in rows]


async def find_best_sellers(postgres: asyncpg.Pool, days: int) -> BestSellers:
    """The products that sold best today and on the days before, so many days in all; only what is shown.

    By quantity, then amount, both less what was given back on these days; then by id.
    """
    clock = await SQL.find_today.fetchrow(postgres)
    assert clock is not None  # noqa: S101 - a SELECT without FROM has one row
    first, last = clock["today"] - timedelta(days=days - 1), clock["today"]
    rows = await SQL.list_best_sellers.fetch(postgres, first, last, SHOWN, BEST_SELLERS_MAX)
    return BestSellers(
        first_day=first, last_day=last, aggregated_at=clock["now"], items=tuple(BestSeller(**row) for row in rows)
    )


class Charts:
    """The best sellers as one process tells them: at most half a minute old."""

    def __init__(self, postgres: asyncpg.Pool) -> None:
        self._postgres = postgres
        # By how many days: at most as many as there may be.
        self._known: dict[int, tuple[float, BestSellers]] = {}
        # However many ask at once, one read answers them all.
        self._read = Coalescer(self._read_stale, most=256, in_flight_max=1)

    async def find(self, *, days: int, limit: int) -> BestSellers:
        """The products that sold best within so many days, today included."""
        found = self._fresh(days) or await self._read.submit(days)
        return msgspec.structs.replace(found, items=found.items[:limit])

    def _fresh(self, days: int) -> BestSellers | None:
        until, found = self._known.get(days, (0.0, None))
        return found if asyncio.get_running_loop().time() < until else None

    async def _read_stale(self, asked: list[int]) -> list[BestSellers]:
        answers = {}
        for days in dict.fromkeys(asked):
            # Some of them were read by the batch before this one.
            found = self._fresh(days)
            if found is None:
                began = asyncio.get_running_loop().time()
                found = await find_best_sellers(self._postgres, days)
                self._known[days] = began + FRESH_S, found
            answers[days] = found
        return [answers[days] for days in asked]


# Counting anew --------------------------------------------------------------------------------------------------------


async def recompute(postgres: asyncpg.Pool, first: date, last: date) -> list[Difference]:
    """Count these days anew from the rows of orders and refunds, put right what differs, and answer what did.

    Where nothing does, nothing is locked or written. Otherwise whoever counts waits for this.
    """
    async with postgres.acquire() as connection:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if not await _compare(connection, first, last):
                return []
        async with connection.transaction():
            # In this order: an interval run takes the first alone, and who counts the second alone.
            await SQL.lock_aggregation.fetchval(connection)
            await SQL.lock_days.execute(connection)
            rows = await SQL.compare_days.fetch(connection, first, last)
            await SQL.put_days_right.execute(
                connection,
                [row["product_id"] for row in rows],
                [row["day"] for row in rows],
                *([row["counted"][place] for row in rows] for place in range(len(FIGURES))),
            )
            # Only now: the days may have changed.
            unlike = await SQL.compare_intervals.fetch(connection, first, last)
            await SQL.put_intervals_right.execute(
                connection,
                [row["product_id"] for row in unlike],
                [row["day"] for row in unlike],
                [row["counted"] - row["aggregated"] for row in unlike],
            )
    return _differences(rows, unlike)


async def check(postgres: asyncpg.Pool) -> list[str]:
    """What contradicts the rows, a line each: days, intervals, and what was given back of lines.

    It reads everything at one moment, so it finds nothing while others count.
    """
    async with (
        postgres.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        found = [str(difference) for difference in await _compare(connection, date.min, date.max)]
        found += [
            f"order {row['order_id']}, variant {row['variant_id']}: {row['kept']} units are given back, "
            f"and its cancellations come to {row['counted']}"
            for row in await SQL.find_unlike_refunds.fetch(connection)
        ]
        return found + [
            f"the interval from {row['aggregated_from']} to {row['aggregated_to']} begins before another has ended"
            for row in await SQL.find_overlapping_intervals.fetch(connection)
        ]


async def _compare(connection: Connection, first: date, last: date) -> list[Difference]:
    return _differences(
        await SQL.compare_days.fetch(connection, first, last),
        await SQL.compare_intervals.fetch(connection, first, last),
    )


def _differences(days: Sequence[asyncpg.Record], intervals: Sequence[asyncpg.Record]) -> list[Difference]:
    return [
        Difference(product_id=row["product_id"], day=row["day"], figure=figure, kept=kept, counted=counted)
        for row in days
        for figure, kept, counted in zip(FIGURES, row["kept"], row["counted"], strict=True)
        if kept != counted
    ] + [
        Difference(
            product_id=row["product_id"],
            day=row["day"],
            figure="intervals",
            kept=row["aggregated"],
            counted=row["counted"],
        )
        for row in intervals
    ]
