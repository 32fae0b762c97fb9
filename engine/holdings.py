"""Holdings: what Postgres is told of a hold, and how a hold's row stands, whether it holds seats or units.

Seats are told by `reservations`, units by `orders`; `wares` says which of the two a sale has. What both must be able to
do for a payment is named here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import asyncpg
import msgspec

from engine.sales import Sale
from engine.seats import HoldUnknown, Paying, Restored
from engine.stores.outbox import Entry
from engine.stores.queries import Connection
from engine.stores.replies import Unavailable
from engine.stores.scripts import Gate

# What is held by what it is called: each seat once, of each variant so many units.
Lines = Mapping[str, int]


class Holding(Protocol):
    """What a row needs to know of a hold."""

    @property
    def kind(self) -> str:
        """What its sale sells."""

    @property
    def hold_id(self) -> str:
        """One id from hold to end."""

    @property
    def sale_id(self) -> str:
        """The sale."""

    @property
    def user_id(self) -> str:
        """The buyer."""

    @property
    def epoch(self) -> int:
        """The copy of the sale that held it."""

    @property
    def fence(self) -> int:
        """The number of the hold."""

    @property
    def amount(self) -> int:
        """What all of it costs."""

    @property
    def lines(self) -> Lines:
        """What is held."""


class Standing(msgspec.Struct):
    """A row that is locked: how it stands, and what it holds or claims."""

    user_id: str
    status: str
    fence: int
    lines: dict[str, int] = {}


class Beside(msgspec.Struct, frozen=True):
    """What stands beside a payment that is asked for: whether it has a row, and the live payment of its hold."""

    payment_id: str
    hold_id: str
    is_known: bool
    live_payment_id: str | None


class Wanted(msgspec.Struct, frozen=True):
    """What a payment was for, as the store is told to hold it again: lines, what one of each cost, and all of it."""

    lines: tuple[str, ...]
    prices: tuple[int, ...]
    amount: int


class Sold(msgspec.Struct, frozen=True):
    """A hold whose sale stands."""

    hold_id: str
    user_id: str
    payment_id: str
    discount: int = 0


async def restore_all(
    restore: Callable[..., Awaitable[Restored | HoldUnknown | Unavailable]],
    gate: Gate,
    sale: Sale,
    rows: Sequence[asyncpg.Record],
    claims: Mapping[str, Sequence[object]],
) -> list[str]:
    """Ask Redis to make these holds what their claims say; answers those that are so now.

    All are asked in one moment: the caller keeps what they depend on locked until the last has answered. What went
    wrong with one stops no other, and is raised where none is done.
    """
    asked = [
        restore(
            gate,
            sale,
            hold_id=row["hold_id"],
            fence=row["fence"],
            buyer_id=row["user_id"],
            reason=row["reason"] or "LATE_UNFULFILLABLE",
            goes_next=row["token_goes_next"],
            claims=claims[row["hold_id"]],
        )
        for row in rows
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    done = [
        row["hold_id"] for row, answer in zip(rows, answers, strict=True) if isinstance(answer, Restored | HoldUnknown)
    ]
    for answer in answers:
        if isinstance(answer, BaseException) and not done:
            raise answer
    return done


class Claims(Protocol):
    """Who has what, while a batch is decided: each sale sees what those before it took."""

    def allow(self, hold_id: str, lines: Lines) -> bool:
        """Whether this hold may have all of it."""

    def take(self, hold_id: str, lines: Lines) -> None:
        """It has it now."""


class Rows(Protocol):
    """The module that keeps the rows of a kind of holds."""

    def holding_of(self, sale: Sale, hold_id: str, user_id: str, paying: Paying) -> Holding:
        """What transaction A needs to know of a hold that is PAYING."""

    async def record(self, connection: Connection, sale: Sale, entries: Sequence[Entry]) -> None:
        """Write what the journal says of holds."""

    async def add(self, connection: Connection, holdings: Sequence[Holding]) -> None:
        """Write PENDING rows with their lines; what is there already, however it stands, stays."""

    async def lock(self, connection: Connection, hold_ids: Sequence[str]) -> dict[str, Standing]:
        """Lock rows in id order and answer how they stand; their lines are still to be read."""

    async def read_beside(
        self, connection: Connection, rows: Mapping[str, Standing], payment_ids: Sequence[str], hold_ids: Sequence[str]
    ) -> list[Beside]:
        """Read what stands beside these payments, and the lines of the locked rows."""

    async def keep(self, connection: Connection, kept: Mapping[str, Lines]) -> None:
        """Leave rows that still wait these lines of those they have."""

    async def end(self, connection: Connection, endings: Mapping[str, str]) -> None:
        """End rows that still wait, each with its reason, and their lines."""

    async def read_claims(self, connection: Connection, sale: Sale, rows: Mapping[str, Standing]) -> Claims:
        """Read the lines of locked rows, and who has what of them or how much of it is left, under locks."""

    async def sell(self, connection: Connection, sale: Sale, sold: Sequence[Sold]) -> None:
        """Write sales that stand: rows, claims, and all that a buyer owns then."""

    async def record_restored(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Take over what Redis says it has given back, where anything here depends on it."""

    async def restore(self, gate: Gate, connection: Connection, sale: Sale, *, most: int) -> int:
        """Make holds in Redis what they are here, of at most so many rows; returns of how many."""

    async def list_forgotten(self, connection: Connection, sale: Sale, *, within_s: float, most: int) -> list[str]:
        """List rows long past their deadline that no live payment keeps."""

    async def find_wanted(self, connection: asyncpg.Pool | Connection, payment_id: str) -> Wanted | None:
        """What a payment that has ended was for; None where no store could hold it again."""

    async def explain(self, connection: Connection, hold_id: str, user_id: str) -> str | None:
        """Why a user's hold that Redis has forgotten is over, SOLD where it was bought; None without a row."""
