"""Wares: what a sale sells decides which scripts hold it, and which rows tell of it.

Both modules of a kind do the same by the same names, so whoever pays, settles or reconciles need not ask which it is.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from engine import orders, reservations, seats, stock
from engine.holdings import Rows
from engine.refusals import NotFound
from engine.sales import Sale
from engine.seats import (
    Abandoned,
    Confirmed,
    Expired,
    HoldSold,
    HoldUnknown,
    Overdue,
    PayingAnswer,
    PaymentMismatch,
)
from engine.stores.replies import Unavailable
from engine.stores.scripts import Gate

HeldAgainAnswer = seats.HeldAgainAnswer | stock.HeldAgainAnswer


class Hold(Protocol):
    """A hold as Redis has it; its lines are seats or units."""

    @property
    def hold_id(self) -> str:
        """Its id."""

    @property
    def buyer_id(self) -> str:
        """Whose it is."""

    @property
    def state(self) -> str:
        """HELD, PAYING, SOLD or ENDED."""

    @property
    def reason(self) -> str | None:
        """Why it ended."""

    @property
    def fence(self) -> int:
        """Its number."""

    @property
    def expires_at_ms(self) -> int:
        """Its deadline."""

    @property
    def payment_id(self) -> str | None:
        """The payment that runs, or has bought it."""


class Scripts(Protocol):
    """The module whose verbs move a kind of holds in Redis."""

    async def find(self, gate: Gate, sale: Sale, *, hold_id: str) -> Hold | NotFound | Unavailable:
        """Find a hold by its id."""

    async def hold_again(
        self,
        gate: Gate,
        sale: Sale,
        *,
        hold_id: str,
        buyer_id: str,
        fingerprint: str,
        lines: Sequence[str],
        prices: Sequence[int],
    ) -> HeldAgainAnswer:
        """Hold what a payment was for that came too late."""

    async def release(
        self, gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, release_id: str, fingerprint: str
    ) -> seats.ReleasedAnswer | stock.ReleasedAnswer:
        """Give a hold back whole."""

    async def pay(self, gate: Gate, sale: Sale, *, hold_id: str, buyer_id: str, payment_id: str) -> PayingAnswer:
        """Begin a payment."""

    async def confirm(
        self, gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
    ) -> Confirmed | PaymentMismatch | HoldUnknown | Unavailable:
        """Sell what this payment pays."""

    async def abandon(
        self, gate: Gate, sale: Sale, *, hold_id: str, fence: int, payment_id: str
    ) -> Abandoned | HoldSold | HoldUnknown | Unavailable:
        """Give a payment up."""

    async def expire(self, gate: Gate, sale: Sale, *, most: int) -> Expired | Unavailable:
        """End lapsed holds."""

    async def overdue(self, gate: Gate, sale: Sale, *, most: int) -> Overdue | Unavailable:
        """List payments past their deadline."""


class Ware(msgspec.Struct, frozen=True):
    """How a kind of sale is held, and how it is written down."""

    scripts: Scripts
    rows: Rows


BY_KIND: Final[Mapping[str, Ware]] = {"seats": Ware(seats, reservations), "stock": Ware(stock, orders)}


def of(sale: Sale) -> Ware:
    """What this sale sells."""
    return BY_KIND[sale.kind]
