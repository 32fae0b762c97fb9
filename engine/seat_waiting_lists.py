"""Waiting lists of seats: what may be wished for, and which of the seats that came back are offered to whom.

How an entry lives is in `waiting_lists`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import asyncpg
import msgspec

from engine import sales, waiting_lists
from engine.refusals import Busy, LimitReached, SaleClosed, SlowDown
from engine.sales import Sale, SaleBook
from engine.seats import HoldKnown, OfferUnknown, SaleNotOpen, SeatTaken, SeatUnknown
from engine.shelf import FreedSeat, Wish, accepts, fill
from engine.stores import queries
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.queries import Connection
from engine.stores.replies import Reply, Unavailable
from engine.stores.scripts import Gate, Script
from engine.waiting_lists import GATHER_MS, Answer, Entry, Kind, Newcomer, Offered, Refused, Served

SQL = queries.load("seat_waiting_lists")

# Seats that one pass looks at, seats that one script gives to the public.
SHELF_MAX: Final = 500
PUBLISHED_AT_ONCE: Final = 100


class NeverFits(msgspec.Struct, frozen=True):
    """No more than so many seats are as wished, sold or not."""

    seats: int


# --- replies ----------------------------------------------------------------------------------------------------------


class Freed(Reply, frozen=True):
    """What the waiting list has, each seat with the moment it was freed; `left` are more."""

    now_ms: int
    left: int
    rows: tuple[str, ...]

    @property
    def since(self) -> dict[str, int]:
        """When each seat was freed, in milliseconds."""
        return {seat_no: int(ms) for seat_no, ms in (row.rsplit(" ", 1) for row in self.rows)}


class Published(Reply, frozen=True):
    """So many seats are the public's now."""

    count: int


NotOffered = (
    HoldKnown | SeatTaken | SeatUnknown | LimitReached | SaleNotOpen | SaleClosed | SlowDown | Busy | Unavailable
)

FREED = Script("waiting_lists/freed", SaleKeys, Freed | Unavailable)
OFFER = Script("waiting_lists/offer", SaleKeys, Offered | NotOffered)
PUBLISH = Script("waiting_lists/publish", SaleKeys, Published | Unavailable)


# --- what the owner and who waits do ----------------------------------------------------------------------------------


async def join(
    stores: Stores, book: SaleBook, sale: Sale, *, entry_id: str, user_id: str, wish: Wish
) -> Entry | NeverFits | OfferUnknown | Refused:
    """Wait for seats of a sale of seats; the rest is as `waiting_lists.join` says."""
    known = await waiting_lists.find(stores.postgres, entry_id, wish)
    if known is not None:
        return known
    never = await _judge(stores.postgres, sale, wish)
    if never is not None:
        return never
    return await waiting_lists.join(stores, book, sale, SEATS, entry_id=entry_id, user_id=user_id, wish=wish)


async def serve(stores: Stores, sale: Sale) -> Served:
    """Give seats that were freed to those who wait, and the rest to the public."""
    return await waiting_lists.serve(stores, sale, SEATS)


async def give_back(stores: Stores, sale: Sale) -> int:
    """Give the public every seat that was freed for a list that is over; returns how many."""
    return await waiting_lists.give_back(stores, sale, SEATS)


# --- what may be wished for -------------------------------------------------------------------------------------------


async def _judge(postgres: asyncpg.Pool, sale: Sale, wish: Wish) -> NeverFits | OfferUnknown | None:
    """Whether the hall has what is wished for at all."""
    names = await SQL.find_names.fetchrow(postgres, sale.sale_id, wish.category, wish.section)
    assert names is not None  # noqa: S101 - it answers one row
    unknown = [f"{kind} {getattr(wish, kind)}" for kind in ("category", "section") if not names[kind]]
    if unknown:
        return OfferUnknown(tuple(unknown))
    known = _measured(sale.sale_id)
    question = msgspec.structs.replace(wish, quantity=0, adjacent=False, accessible=min(wish.accessible, 1))
    if question not in known:
        if len(known) >= _MEASURES_MAX:
            known.clear()
        row = await SQL.measure.fetchrow(
            postgres, sale.sale_id, wish.category, wish.section, wish.price_max, wish.accessible > 0
        )
        assert row is not None  # noqa: S101 - it answers one row
        known[question] = (row["seats"], row["adjacent"])
    in_all, side_by_side = known[question]
    most = side_by_side if wish.adjacent else in_all
    return NeverFits(most) if wish.quantity > most else None


# What a hall has never changes, and thousands ask the same of it; a price somebody thought of is asked once.
_MEASURES_MAX: Final = 256


@lru_cache(256)
def _measured(_sale_id: str) -> dict[Wish, tuple[int, int]]:
    return {}


async def _count_bought(connection: Connection, sale_id: str, user_id: str) -> int:
    return int(await SQL.count_bought.fetchval(connection, sale_id, user_id))


async def _add(connection: Connection, sale: Sale, newcomer: Newcomer, wish: Wish) -> None:
    await SQL.add_entry.execute(
        connection,
        newcomer.entry_id,
        sale.sale_id,
        sale.schedule_id,
        newcomer.user_id,
        wish.quantity,
        wish.adjacent,
        wish.category,
        wish.section,
        wish.price_max,
        wish.accessible,
        newcomer.hold_id,
        wish.fingerprint,
    )


# --- what was freed ---------------------------------------------------------------------------------------------------


async def _look(stores: Stores, sale: Sale) -> "_Shelf | None":
    freed = await sales.ask(stores.gate, sale, FREED, most=SHELF_MAX)
    if not isinstance(freed, Freed):
        return None
    rows = await SQL.find_seats.fetch(stores.postgres, sale.sale_id, list(freed.since)) if freed.rows else []
    return _Shelf(sale, freed, {row["seat_no"]: FreedSeat(**row) for row in rows})


class _Shelf:
    """Seats that were freed; those of a block are for nobody who waits."""

    def __init__(self, sale: Sale, freed: Freed, seats: dict[str, FreedSeat]) -> None:
        self._sale = sale
        self._freed = freed
        self._since = freed.since
        self._seats = seats
        # What is left fills none of these, and never will: it only becomes less.
        self._unserved: set[Wish] = set()

    @property
    def was_empty(self) -> bool:
        return not self._freed.rows

    @property
    def more(self) -> bool:
        return self._freed.left > 0

    def is_bare(self) -> bool:
        return not self._seats

    async def list_waiting(self, postgres: asyncpg.Pool, *, after: int, most: int) -> Sequence[asyncpg.Record]:
        seats = self._seats.values()
        return await SQL.list_waiting.fetch(
            postgres,
            self._sale.sale_id,
            after,
            list({seat.category for seat in seats}),
            list({seat.section for seat in seats}),
            min(seat.price for seat in seats),
            most,
        )

    async def offer(self, gate: Gate, entry: asyncpg.Record) -> Answer | None:
        wish = Wish(**{name: entry[name] for name in Wish.__struct_fields__})
        if wish in self._unserved:
            return None
        while (seat_nos := fill(wish, self._seats.values())) is not None:
            answer = await sales.ask(
                gate,
                self._sale,
                OFFER,
                hold_id=entry["hold_id"],
                buyer_id=entry["user_id"],
                fingerprint=wish.fingerprint,
                seat_nos=seat_nos,
            )
            match answer:
                case SeatTaken():
                    gone = [conflict.seat_no for conflict in answer.seats]
                case SeatUnknown():
                    gone = list(answer.seat_nos)
                case Offered():
                    for seat_no in seat_nos:
                        del self._seats[seat_no], self._since[seat_no]
                    return answer
                case _:
                    return answer
            for seat_no in gone:
                del self._seats[seat_no]
        self._unserved.add(wish)
        return None

    async def publish(self, stores: Stores, *, keep: bool) -> int:
        kept = {
            seat_no
            for seat_no, seat in self._seats.items()
            if keep
            and self._freed.now_ms - self._since[seat_no] < GATHER_MS
            and any(accepts(wish, seat) for wish in self._unserved)
        }
        seat_nos = [seat_no for seat_no in self._since if seat_no not in kept]
        published = 0
        for at in range(0, len(seat_nos), PUBLISHED_AT_ONCE):
            answer = await sales.ask(stores.gate, self._sale, PUBLISH, seat_nos=seat_nos[at : at + PUBLISHED_AT_ONCE])
            if not isinstance(answer, Published):
                break
            published += answer.count
        return published


SEATS: Final = Kind(count_bought=_count_bought, add=_add, look=_look)
