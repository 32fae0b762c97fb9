"""Waiting lists of variants: units that came back, or came anew, are offered to those who wait for so many of them.

How an entry lives is in `waiting_lists`.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg

from engine import sales, waiting_lists
from engine.refusals import Busy, LimitReached, NotFound, SaleClosed, SlowDown
from engine.sales import Sale, SaleBook
from engine.seats import HoldKnown, SaleNotOpen
from engine.shelf import UnitWish
from engine.stock import SoldOut, Units, UnitUnknown, units_of
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script
from engine.waiting_lists import GATHER_MS, Answer, Entry, Kind, Newcomer, Offered, Refused, Served

SQL = queries.load("variant_waiting_lists")

# Units that one may wait for at once, as many as a line of an order may have.
QUANTITY_MAX: Final = 1000
# Variants that one pass looks at, variants that one script gives to the public.
SHELF_MAX: Final = 500
PUBLISHED_AT_ONCE: Final = 100


# --- replies ----------------------------------------------------------------------------------------------------------


class FreedUnits(Reply, frozen=True):
    """What the waiting list has of each variant, and since when it was seen there; `left` variants are more."""

    now_ms: int
    left: int
    rows: tuple[str, ...]

    @property
    def units(self) -> dict[str, int]:
        """How many units of each variant."""
        return {each.variant_id: each.quantity for each in units_of([row.split(" ")[0] for row in self.rows])}

    @property
    def since(self) -> dict[str, int]:
        """When each variant was first seen there, in milliseconds."""
        return {row.partition(":")[0]: int(row.partition(" ")[2]) for row in self.rows}


class PublishedUnits(Reply, frozen=True):
    """So many units are the public's now."""

    count: int


NotOffered = HoldKnown | SoldOut | UnitUnknown | LimitReached | SaleNotOpen | SaleClosed | SlowDown | Busy | Unavailable

FREED_UNITS = Script("waiting_lists/freed_units", SaleKeys, FreedUnits | Unavailable)
OFFER_UNITS = Script("waiting_lists/offer_units", SaleKeys, Offered | NotOffered)
PUBLISH_UNITS = Script("waiting_lists/publish_units", SaleKeys, PublishedUnits | Unavailable)


# --- what the owner and who waits do ----------------------------------------------------------------------------------


async def join(stores: Stores, book: SaleBook, *, entry_id: str, user_id: str, wish: UnitWish) -> Entry | Refused:
    """Wait for units of a variant that the public sees; the rest is as `waiting_lists.join` says.

    Nobody asks whether so many ever were: more may come.
    """
    known = await waiting_lists.find(stores.postgres, entry_id, wish)
    if known is not None:
        return known
    sale_id = await SQL.find_sale.fetchval(stores.postgres, wish.variant_id)
    sale = await book.find(sale_id) if sale_id else None
    if sale is None:
        return NotFound()
    return await waiting_lists.join(stores, book, sale, UNITS, entry_id=entry_id, user_id=user_id, wish=wish)


async def serve(stores: Stores, sale: Sale) -> Served:
    """Give units that were freed to those who wait, and the rest to the public."""
    return await waiting_lists.serve(stores, sale, UNITS)


async def give_back(stores: Stores, sale: Sale) -> int:
    """Give the public all units that were freed for a list that is over; returns how many."""
    return await waiting_lists.give_back(stores, sale, UNITS)


async def _count_bought(connection: Connection, sale_id: str, user_id: str) -> int:
    return int(await SQL.count_bought.fetchval(connection, sale_id, user_id))


async def _add(connection: Connection, sale: Sale, newcomer: Newcomer, wish: UnitWish) -> None:
    await SQL.add_entry.execute(
        connection,
        newcomer.entry_id,
        sale.sale_id,
        wish.variant_id,
        newcomer.user_id,
        wish.quantity,
        newcomer.hold_id,
        wish.fingerprint,
    )


# --- what was freed ---------------------------------------------------------------------------------------------------


async def _look(stores: Stores, sale: Sale) -> "_Shelf | None":
    freed = await sales.ask(stores.gate, sale, FREED_UNITS, most=SHELF_MAX)
    return _Shelf(sale, freed) if isinstance(freed, FreedUnits) else None


class _Shelf:
    """Units that were freed, by variant."""

    def __init__(self, sale: Sale, freed: FreedUnits) -> None:
        self._sale = sale
        self._freed = freed
        self._units = freed.units
        # These wait for their product to be on sale again, and whoever waits for them, too.
        self._stopped: dict[str, int] = {}

    @property
    def was_empty(self) -> bool:
        return not self._freed.rows

    @property
    def more(self) -> bool:
        return self._freed.left > 0

    def is_bare(self) -> bool:
        return not self._units

    async def list_waiting(self, postgres: asyncpg.Pool, *, after: int, most: int) -> Sequence[asyncpg.Record]:
        return await SQL.list_waiting.fetch(postgres, list(self._units), list(self._units.values()), after, most)

    async def offer(self, gate: Gate, entry: asyncpg.Record) -> Answer | None:
        wish = UnitWish(variant_id=entry["variant_id"], quantity=entry["quantity"])
        if self._units.get(wish.variant_id, 0) < wish.quantity:
            return None
        answer = await sales.ask(
            gate,
            self._sale,
            OFFER_UNITS,
            hold_id=entry["hold_id"],
            buyer_id=entry["user_id"],
            fingerprint=wish.fingerprint,
            variant_id=wish.variant_id,
            quantity=wish.quantity,
        )
        match answer:
            case Offered():
                self._leave(wish.variant_id, self._units[wish.variant_id] - wish.quantity)
            case SoldOut():
                [shortage] = answer.lines
                self._leave(wish.variant_id, shortage.available)
                return None
            case UnitUnknown():
                self._stopped[wish.variant_id] = self._units.pop(wish.variant_id)
                return None
            case _:
                pass
        return answer

    def _leave(self, variant_id: str, quantity: int) -> None:
        self._units[variant_id] = quantity
        if quantity == 0:
            del self._units[variant_id]

    async def publish(self, stores: Stores, *, keep: bool) -> int:
        given = self._units if keep else self._units | self._stopped
        if keep and given:
            awaited = {row["variant_id"] for row in await SQL.list_awaited.fetch(stores.postgres, list(given))}
            since = self._freed.since
            given = {
                variant_id: quantity
                for variant_id, quantity in given.items()
                if variant_id not in awaited or self._freed.now_ms - since[variant_id] >= GATHER_MS
            }
        lines = [Units(variant_id, quantity).told for variant_id, quantity in given.items()]
        published = 0
        for at in range(0, len(lines), PUBLISHED_AT_ONCE):
            answer = await sales.ask(stores.gate, self._sale, PUBLISH_UNITS, lines=lines[at : at + PUBLISHED_AT_ONCE])
            if not isinstance(answer, PublishedUnits):
                break
            published += answer.count
        return published


UNITS: Final = Kind(count_bought=_count_bought, add=_add, look=_look)
