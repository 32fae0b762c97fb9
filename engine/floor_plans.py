"""What a sale offers, as the records that its copy in Redis is made of: pure functions of what Postgres has.

Scripts know categories, blocks and areas by their place in the operator's lists, from 1 on; 0 is no block. Every
numbered seat has a position, from 0 on. Positions go through the hall as the operator listed it, the best seats first:
sections and rows in the order in which each was named first, and a row by its numbers. A *unit* is a maximal run of
seats that are adjacent (their numbers follow each other) and alike in section, row, category and block; so whatever
lies in one unit may be sold side by side, and no two seats of different units may.

RECORDS, fields joined by |, lists inside by ,
  prices       hash    seat_no -> price|category_no|block_no|position|unit_no|kind, kind F, or A where accessible; of a
                       place in an area the position is empty, its score stands in place of a unit, its kind is P
  tiers        hash    tier|category_no -> price|max; an empty max is no cap
  blocks       hash    block_no -> access_code_hash|channel|opens_at_ms|closes_at_ms; 0 is no such bound
  areas        hash    area -> area_no|category_no|block_no|quantity
  places       zset    seat_no of each free place in an area, scored by area_no * 10^7 + number
  units        hash    unit_no, from 0 on -> section|row|category_no|block_no|first_position|first_number|length
  floor        string  one byte a position: F free, A free and accessible, T neither
  bounds       string  one byte a unit: 64 + the longest run of free seats in it, of which 60 or more are 60; and 128
                       more for a unit of a block, so that nobody looks at it to whom it is not open
  sections     hash    section -> unit_nos as first-last,first-last…
  categories   hash    category -> unit_nos as first-last,first-last…
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

import msgspec

from engine import ids
from engine.catalogue import Area, Block, Seat, Tier
from engine.sales import milliseconds

FREE: Final = ord("F")
ACCESSIBLE: Final = ord("A")
TAKEN: Final = ord("T")

AREA_SCORE: Final = 10**7
BOUND_ZERO: Final = 64
BOUND_ZERO_IN_BLOCK: Final = 128 + BOUND_ZERO
BOUND_MAX: Final = 60

# Accessible seats are kept back from whoever does not ask for one, but they may be asked for: a bound counts them.
_FREE_RUN = re.compile(rb"[FA]+")


class Numbers(msgspec.Struct, frozen=True):
    """The number by which scripts know each category, block and area."""

    categories: Mapping[str, int]
    blocks: Mapping[str, int]
    areas: Mapping[str, int]

    def of_block(self, block: str | None) -> int:
        """The number of a block, 0 for none."""
        return 0 if block is None else self.blocks[block]


class Unit(msgspec.Struct, frozen=True):
    """Adjacent seats that are alike."""

    section: str
    row: str
    category: str
    block: str | None
    first_position: int
    first_number: int
    length: int


def numbers_of(seats: Iterable[Seat], areas: Sequence[Area], blocks: Sequence[Block]) -> Numbers:
    """Number the categories in the order in which seats and then areas name them, blocks and areas as listed."""
    categories = dict.fromkeys([*(seat.category for seat in seats), *(area.category for area in areas)])
    return Numbers(
        categories={category: number for number, category in enumerate(categories, start=1)},
        blocks={block.block: number for number, block in enumerate(blocks, start=1)},
        areas={area.area: number for number, area in enumerate(areas, start=1)},
    )


# The hall -------------------------------------------------------------------------------------------------------------


def in_position(seats: Iterable[Seat]) -> list[Seat]:
    """Numbered seats in the order of their positions, from the order in which they were listed."""
    sections: dict[str, dict[str, list[Seat]]] = {}
    for seat in seats:
        sections.setdefault(seat.section, {}).setdefault(seat.row, []).append(seat)
    rows = [row for of_section in sections.values() for row in of_section.values()]
    return [seat for row in rows for seat in sorted(row, key=_number_of)]


def _number_of(seat: Seat) -> int:
    return seat.number


def units_of(seats: Sequence[Seat]) -> list[Unit]:
    """The units of a hall whose seats are in position."""

    def kin(placed: tuple[int, Seat]) -> tuple[object, ...]:
        position, seat = placed
        # Along adjacent seats of one row, number and position grow together.
        return seat.section, seat.row, seat.category, seat.block, seat.number - position

    units = []
    for _, run in groupby(enumerate(seats), key=kin):
        (position, first), *rest = run
        units.append(
            Unit(
                section=first.section,
                row=first.row,
                category=first.category,
                block=first.block,
                first_position=position,
                first_number=first.number,
                length=1 + len(rest),
            )
        )
    return units


def floor_of(seats: Sequence[Seat], taken: Container[str]) -> bytes:
    """One byte for each seat in position; `taken` has whatever is not free, blocked seats too."""
    return bytes(
        [TAKEN if seat.seat_no in taken else ACCESSIBLE if seat.accessible else FREE for seat in seats],
    )


def bounds_of(units: Sequence[Unit], floor: bytes) -> bytes:
    """One byte for each unit: how many seats of it may be free side by side."""
    return bytes(
        [
            (BOUND_ZERO if unit.block is None else BOUND_ZERO_IN_BLOCK) + min(_longest_free(unit, floor), BOUND_MAX)
            for unit in units
        ]
    )


def _longest_free(unit: Unit, floor: bytes) -> int:
    run = floor[unit.first_position : unit.first_position + unit.length]
    return max([len(free) for free in _FREE_RUN.findall(run)], default=0)


def ranges_of(units: Sequence[Unit], name_of: Callable[[Unit], str]) -> dict[str, str]:
    """The numbers of the units that share a name, as `first-last,first-last…`."""
    ranges: dict[str, list[list[int]]] = {}
    for unit_no, unit in enumerate(units):
        mine = ranges.setdefault(name_of(unit), [])
        if mine and mine[-1][1] == unit_no - 1:
            mine[-1][1] = unit_no
        else:
            mine.append([unit_no, unit_no])
    return {name: ",".join([f"{first}-{last}" for first, last in mine]) for name, mine in ranges.items()}


# Records --------------------------------------------------------------------------------------------------------------


def unit_records(units: Sequence[Unit], numbers: Numbers) -> list[str]:
    """The records of `units`, in their order."""
    return [
        f"{unit.section}|{unit.row}|{numbers.categories[unit.category]}|{numbers.of_block(unit.block)}"
        f"|{unit.first_position}|{unit.first_number}|{unit.length}"
        for unit in units
    ]


def price_records(
    seats: Sequence[Seat], units: Sequence[Unit], areas: Sequence[Area], numbers: Numbers
) -> dict[str, str]:
    """The records of `prices`: of seats in position, then of every place."""
    unit_nos = [unit_no for unit_no, unit in enumerate(units) for _ in range(unit.length)]
    records = {
        seat.seat_no: f"{seat.price}|{numbers.categories[seat.category]}|{numbers.of_block(seat.block)}"
        f"|{position}|{unit_nos[position]}|{'A' if seat.accessible else 'F'}"
        for position, seat in enumerate(seats)
    }
    for area in areas:
        of_all = f"{area.price}|{numbers.categories[area.category]}|{numbers.of_block(area.block)}|"
        records |= {place: f"{of_all}|{score}|P" for place, score in place_scores([area], numbers, ()).items()}
    return records


def area_records(areas: Sequence[Area], numbers: Numbers) -> dict[str, str]:
    """The records of `areas`."""
    return {
        area.area: f"{numbers.areas[area.area]}|{numbers.categories[area.category]}"
        f"|{numbers.of_block(area.block)}|{area.quantity}"
        for area in areas
    }


def place_scores(areas: Sequence[Area], numbers: Numbers, taken: Container[str]) -> dict[str, int]:
    """The members of `places` and their scores: places that are not taken."""
    return {
        seat_no: numbers.areas[area.area] * AREA_SCORE + number
        for area in areas
        for number, seat_no in enumerate(area.seat_nos, start=1)
        if seat_no not in taken
    }


def tier_records(tiers: Sequence[Tier], numbers: Numbers) -> dict[str, str]:
    """The records of `tiers`."""
    return {
        f"{tier.tier}|{numbers.categories[tier.category]}": f"{tier.price}|{'' if tier.max is None else tier.max}"
        for tier in tiers
    }


def block_records(sale_id: str, blocks: Sequence[Block], numbers: Numbers) -> dict[str, str]:
    """The records of `blocks`, by number."""
    return {
        str(numbers.blocks[block.block]): f"{_code_of(sale_id, block)}|{block.channel or ''}"
        f"|{milliseconds(block.opens_at)}|{milliseconds(block.closes_at)}"
        for block in blocks
    }


def _code_of(sale_id: str, block: Block) -> str:
    return "" if block.access_code is None else code_hash(sale_id, block.access_code)


def code_hash(sale_id: str, access_code: str) -> str:
    """What Redis keeps of an access code, and what a request that names one is compared by."""
    return ids.fingerprint("access code", sale_id, access_code)
