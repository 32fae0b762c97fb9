"""What a sale offers, written to a new copy of it in Redis: prices, the floor, areas, tiers and blocks.

The records are those of `floor_plans`. Holds are loaded after them and close off their own seats once more.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import asyncpg
import msgspec

from engine import catalogue, floor_plans, sales
from engine.catalogue import Offering, Seat
from engine.refusals import SaleClosed
from engine.sales import Configured, Sale, SaleBook, StaleVersion
from engine.stores.connections import Stores
from engine.stores.keys import SaleKeys
from engine.stores.replies import Unavailable
from engine.stores.scripts import Argument, Gate

# Fields and bytes in one call: a millisecond of the store's time.
FIELDS_AT_ONCE: Final = 1000
BYTES_AT_ONCE: Final = 16_384

Rows = tuple[Argument, ...]


class Plan(msgspec.Struct, frozen=True):
    """The records of everything a sale offers: of each seat and place, and what `sales/load_offer` writes by key."""

    prices: Mapping[str, str]
    keys: Mapping[str, Sequence[Rows]]

    def parts(self) -> Iterator[tuple[str, Rows]]:
        """What is written, as (key, rows) of bounded size."""
        for name, parts in self.keys.items():
            for part in parts:
                yield name, part


async def read(postgres: asyncpg.Pool, sale_id: str, taken: AbstractSet[str]) -> Plan:
    """Read what a sale offers and draw its plan, which takes a tenth of a second for the largest halls."""
    listed = await catalogue.list_seats_in_order(postgres, sale_id)
    offering = (await catalogue.find_offerings(postgres, [sale_id]))[sale_id]
    return await asyncio.to_thread(draw, sale_id, listed, offering, taken)


async def send(gate: Gate, postgres: asyncpg.Pool, sale: Sale) -> Configured | Unavailable:
    """Write the terms of a sale with its tiers and blocks to the store, unless newer ones stand there.

    All of it at once: the store knows one version of a sale, so what was left out would never be sent. A sale that is
    being rebuilt gets everything anyway.
    """
    categories = await catalogue.list_categories(postgres, sale.sale_id)
    offering = (await catalogue.find_offerings(postgres, [sale.sale_id]))[sale.sale_id]
    numbers = floor_plans.Numbers(
        categories={category: number for number, category in enumerate(categories, start=1)},
        blocks={block.block: number for number, block in enumerate(offering.blocks, start=1)},
        areas={},
    )
    records = {
        **{f"tiers:{key}": record for key, record in floor_plans.tier_records(offering.tiers, numbers).items()},
        **{
            f"blocks:{key}": record
            for key, record in floor_plans.block_records(sale.sale_id, offering.blocks, numbers).items()
        },
    }
    flat = [value for pair in records.items() for value in pair]
    terms = (*sales.stored_terms(sale), *flat)
    return await sales.ask(gate, sale, sales.CONFIGURE, version=sale.version, terms=terms)


async def configure(
    stores: Stores, book: SaleBook, *, sale_id: str, changes: Mapping[str, object], version: int | None = None
) -> Sale | SaleClosed | StaleVersion | None:
    """Change the terms of a sale or its room: first in the row, then in the store; None where there is no such sale.

    A process that dies between the two leaves a row that is ahead; the sale's owner sees that and sends the terms
    again. A room set to `draining` without a cut-off lets in whoever had a number before.
    """
    known = await book.find(sale_id)
    if known is None or known.kind == "coupon":
        return None
    if changes.get("room") == "draining" and "draining_no" not in changes:
        changes = {**changes, "draining_no": await _last_queue_no(stores, sale_id)}
    async with stores.postgres.acquire() as connection, connection.transaction():
        if await sales.would_sell_again(connection, sale_id=sale_id, changes=changes):
            return SaleClosed()
        edited = await sales.edit(connection, sale_id=sale_id, changes=changes, version=version)
    if not isinstance(edited, Sale):
        return edited
    sale = await book.read(sale_id)
    assert sale is not None  # noqa: S101 - sales are never deleted
    await send(stores.gate, stores.postgres, sale)
    return sale


async def _last_queue_no(stores: Stores, sale_id: str) -> int:
    """The last number that was given out in line, or 0; a plain read of one field, which needs no script."""
    queue_no = await stores.redis.execute_command("HGET", SaleKeys(sale_id).sale, "queue_no")
    return int(queue_no or 0)


def draw(sale_id: str, listed: Sequence[Seat], offering: Offering, taken: AbstractSet[str] = frozenset()) -> Plan:
    """The plan of a hall in which these seats and places are taken, and the blocked ones not free either."""
    numbers = floor_plans.numbers_of(listed, offering.areas, offering.blocks)
    seats = floor_plans.in_position(listed)
    units = floor_plans.units_of(seats)
    floor = floor_plans.floor_of(seats, {*taken, *(seat.seat_no for seat in seats if seat.blocked)})
    sections = floor_plans.ranges_of(units, lambda unit: unit.section)
    categories = floor_plans.ranges_of(units, lambda unit: unit.category)
    places = floor_plans.place_scores(offering.areas, numbers, taken)
    return Plan(
        prices=floor_plans.price_records(seats, units, offering.areas, numbers),
        keys={
            "tiers": _fields(floor_plans.tier_records(offering.tiers, numbers)),
            "blocks": _fields(floor_plans.block_records(sale_id, offering.blocks, numbers)),
            "areas": _fields(floor_plans.area_records(offering.areas, numbers)),
            "units": _fields(dict(enumerate(floor_plans.unit_records(units, numbers)))),
            "sections": _fields(sections),
            "categories": _fields(categories),
            "places": _fields({score: place for place, score in places.items()}),
            "floor": _bytes(floor),
            "bounds": _bytes(floor_plans.bounds_of(units, floor)),
        },
    )


def _fields(records: Mapping[str, str] | Mapping[int, str]) -> list[Rows]:
    pairs: list[Argument] = [value for pair in records.items() for value in pair]
    return [tuple(pairs[at : at + 2 * FIELDS_AT_ONCE]) for at in range(0, len(pairs), 2 * FIELDS_AT_ONCE)]


def _bytes(whole: bytes) -> list[Rows]:
    return [(at, whole[at : at + BYTES_AT_ONCE]) for at in range(0, len(whole), BYTES_AT_ONCE)]
