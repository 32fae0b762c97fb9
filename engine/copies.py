"""Copies: what a sale is in Redis, written anew from Postgres; the part of it that is the same for seats and for units.

`seat_copies` and `stock_copies` know what is held and bought in a sale of their kind: they say which holds stand in
the new copy, write them, and say what must be counted then. When, in which epoch and by whom, says `rebuild`.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import asyncpg
import msgspec

from engine import errands
from engine.errands import Leg
from engine.sales import Sale
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.queries import Connection
from engine.stores.replies import Reply, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate

Row: TypeAlias = asyncpg.Record | Mapping[str, Any]
R = TypeVar("R", bound=Reply)
T = TypeVar("T")

SQL = queries.load("copies")


class Loaded(Reply, frozen=True):
    """So many rows were written."""

    count: int


class SaleOpen(Reply, frozen=True):
    """The sale is open: nothing may be written into it any more."""


# What every script that writes rows into a copy answers.
LoadedAnswer = Loaded | SaleOpen | SaleUnknown | StaleEpoch


class RebuildFailed(Exception):
    """A rebuild stopped: the sale stays closed, and the next attempt begins from the first step."""


class Contents(Protocol):
    """What a new copy has beside its terms and its line, as the transaction that began its epoch found it."""

    @property
    def holds(self) -> Sequence[Row]:
        """The holds that stand in it, and those that are remembered."""

    async def write(self, stores: Stores, sale: Sale, *, ended_tokens: int) -> Reply:
        """Write everything; answers what `count` must find then, beside so many ended tokens."""

    async def count(self, gate: Gate, sale: Sale) -> Reply:
        """Count what stands in the store."""


class Verdict(msgspec.Struct, frozen=True):
    """What stands of the holds that Postgres has, and what becomes of the rest."""

    standing: frozenset[str]
    voided_payment_ids: tuple[str, ...]
    endings: Mapping[str, str]


def decide(take: Callable[[Row], bool], live_payments: Iterable[Row], unpaid: Iterable[Row]) -> Verdict:
    """Say which holds stand beside what is bought: the first who paid comes first, then the first who held.

    Args:
        take: takes all that the hold of a row has, if all of it is still there; says whether it did.
        live_payments: payment_id and hold_id of each, the first authorised first.
        unpaid: hold_id and lapsed of each, the oldest first.
    """
    standing: set[str] = set()
    voided: list[str] = []
    endings: dict[str, str] = {}
    for payment in live_payments:
        if take(payment):
            standing.add(payment["hold_id"])
        else:
            voided.append(payment["payment_id"])
            endings[payment["hold_id"]] = "LATE_UNFULFILLABLE"
    for hold in unpaid:
        if not hold["lapsed"] and take(hold):
            standing.add(hold["hold_id"])
        else:
            endings[hold["hold_id"]] = "EXPIRED"
    return Verdict(frozenset(standing), tuple(voided), endings)


async def void(connection: Connection, payment_ids: Sequence[str]) -> None:
    """Void payments for what is somebody else's, and let go what was set aside for them, by cards too."""
    if not payment_ids:
        return
    await SQL.lock_balances.fetch(connection, payment_ids)
    await SQL.lock_payments.fetch(connection, payment_ids)
    voided = await SQL.void_payments.fetch(connection, payment_ids)
    await SQL.free_funds.execute(
        connection, [row["user_id"] for row in voided], [row["balance_amount"] for row in voided]
    )
    legs = [Leg(row["payment_id"], row["card_amount"]) for row in voided if row["decline_code"] is None]
    await errands.add(connection, "VOID", legs)


def standing(holds: Iterable[asyncpg.Record], verdict: Verdict) -> list[asyncpg.Record]:
    """The holds that are written: those that stand, and what was sold or has ended.

    A payment that was authorised this moment for a hold of the lost copy is not among them: its `confirm` will hear
    that, and it is voided.
    """
    return [row for row in holds if row["state"] in {"SOLD", "ENDED"} or row["hold_id"] in verdict.standing]


def expect(reply: Reply, kind: type[R]) -> R:
    """The reply, which must be of this kind. Raises RebuildFailed."""
    if not isinstance(reply, kind):
        raise RebuildFailed(f"expected {kind.__name__}, the store answered {reply}")
    return reply


def chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Rows in parts of this size, so that no call keeps other sales of the shard waiting."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


async def pages(
    postgres: asyncpg.Pool, query: queries.Query, sale_id: str, after: object, column: str, size: int
) -> AsyncIterator[list[asyncpg.Record]]:
    """Read a long list a page at a time, each from after the last row of the one before."""
    while rows := await query.fetch(postgres, sale_id, after, size):
        yield rows
        after = rows[-1][column]
