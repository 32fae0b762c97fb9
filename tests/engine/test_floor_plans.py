"""The records of a sale's copy say the same as what it offers, whatever the hall looks like."""

import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from engine import floor_plans, ids
from engine.catalogue import Area, Block, Seat, Tier
from engine.floor_plans import (
    Unit,
    area_records,
    block_records,
    bounds_of,
    floor_of,
    in_position,
    numbers_of,
    place_scores,
    price_records,
    ranges_of,
    tier_records,
    unit_records,
    units_of,
)

SALE = "5" * 32
BLOCKS = (Block(block="fans", access_code="LIED"), Block(block="sponsor", channel="bank"))
AREAS = (Area(area="Pit", category="P", price=7, quantity=3), Area(area="Lawn", category="S", price=5, quantity=2))

halls = st.lists(
    st.builds(
        Seat,
        section=st.sampled_from(["A", "B", "Upper Circle"]),
        row=st.sampled_from(["1", "2", "10"]),
        number=st.integers(1, 12),
        category=st.sampled_from(["R", "S"]),
        price=st.integers(0, 9),
        accessible=st.booleans(),
        blocked=st.booleans(),
        block=st.sampled_from([None, None, "fans", "sponsor"]),
    ),
    unique_by=lambda seat: seat.seat_no,
    max_size=60,
)
halls_and_taken = halls.flatmap(
    lambda seats: st.tuples(
        st.just(seats), st.sets(st.sampled_from([seat.seat_no for seat in seats])) if seats else st.just(set())
    )
)


def seat(number: int, row: str = "1", section: str = "A", category: str = "R", block: str | None = None) -> Seat:
    return Seat(section=section, row=row, number=number, category=category, price=5, block=block)


def alike(one: Seat, other: Seat) -> bool:
    return (one.section, one.row, one.category, one.block, one.number + 1) == (
        other.section,
        other.row,
        other.category,
        other.block,
        other.number,
    )


# The hall -------------------------------------------------------------------------------------------------------------


@given(halls)
def test_every_seat_is_in_one_unit_at_its_position(listed: list[Seat]) -> None:
    seats = in_position(listed)
    assert sorted(seats, key=lambda each: each.seat_no) == sorted(listed, key=lambda each: each.seat_no)
    names = [
        f"{unit.section}-{unit.row}-{unit.first_number + offset}"
        for unit in units_of(seats)
        for offset in range(unit.length)
    ]
    assert names == [each.seat_no for each in seats]
    positions = [unit.first_position + offset for unit in units_of(seats) for offset in range(unit.length)]
    assert positions == list(range(len(seats)))


@given(halls)
def test_seats_are_in_one_unit_when_they_are_adjacent_and_alike(listed: list[Seat]) -> None:
    seats = in_position(listed)
    starts = {unit.first_position for unit in units_of(seats)}
    for position in range(1, len(seats)):
        assert (position not in starts) == alike(seats[position - 1], seats[position])


@given(halls)
def test_rows_stand_in_the_order_in_which_they_were_listed(listed: list[Seat]) -> None:
    seats = in_position(listed)
    assert list(dict.fromkeys(each.section for each in seats)) == list(dict.fromkeys(each.section for each in listed))
    for section in {each.section for each in listed}:
        rows = [list(dict.fromkeys(each.row for each in some if each.section == section)) for some in (listed, seats)]
        assert rows[0] == rows[1]


@given(halls_and_taken)
def test_the_floor_says_what_is_free(hall: tuple[list[Seat], set[str]]) -> None:
    seats, taken = in_position(hall[0]), hall[1]
    floor = floor_of(seats, taken)
    assert len(floor) == len(seats)
    for each, byte in zip(seats, floor.decode(), strict=True):
        assert byte == ("T" if each.seat_no in taken else "A" if each.accessible else "F")


@given(halls_and_taken)
def test_a_bound_is_the_longest_free_run_of_its_unit(hall: tuple[list[Seat], set[str]]) -> None:
    seats, taken = in_position(hall[0]), hall[1]
    units, floor = units_of(seats), floor_of(seats, taken)
    for unit, bound in zip(units, bounds_of(units, floor), strict=True):
        longest = run = 0
        for each in seats[unit.first_position : unit.first_position + unit.length]:
            run = 0 if each.seat_no in taken else run + 1
            longest = max(longest, run)
        assert bound == (64 if unit.block is None else 192) + longest


def test_a_bound_stays_a_printable_byte() -> None:
    seats = [seat(number) for number in range(1, 501)]
    assert bounds_of(units_of(seats), floor_of(seats, ())) == b"|"  # 64 + 60


@given(halls)
def test_ranges_name_the_units_of_a_section_and_of_a_category(listed: list[Seat]) -> None:
    units = units_of(in_position(listed))
    by: list[Callable[[Unit], str]] = [lambda unit: unit.section, lambda unit: unit.category]
    for name_of in by:
        told = ranges_of(units, name_of)
        for name in {name_of(unit) for unit in units}:
            bounds = [tuple(map(int, each.split("-"))) for each in told.pop(name).split(",")]
            numbers = [number for first, last in bounds for number in range(first, last + 1)]
            assert numbers == [number for number, unit in enumerate(units) if name_of(unit) == name]
            assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(bounds))
        assert told == {}


def test_a_hall_of_every_kind() -> None:
    seats = in_position(
        [
            seat(2, row="10"),
            seat(1, row="10"),
            seat(4, row="10"),
            seat(5, row="10", category="S"),
            seat(1, row="9", block="fans"),
            seat(2, row="9"),
        ]
    )
    numbers = numbers_of(seats, AREAS, BLOCKS)
    assert (numbers.categories, numbers.blocks, numbers.areas) == (
        {"R": 1, "S": 2, "P": 3},
        {"fans": 1, "sponsor": 2},
        {"Pit": 1, "Lawn": 2},
    )
    assert unit_records(units_of(seats), numbers) == [
        "A|10|1|0|0|1|2",
        "A|10|1|0|2|4|1",
        "A|10|2|0|3|5|1",
        "A|9|1|1|4|1|1",
        "A|9|1|0|5|2|1",
    ]
    assert ranges_of(units_of(seats), lambda unit: unit.category) == {"R": "0-1,3-4", "S": "2-2"}
    assert price_records(seats, units_of(seats), AREAS, numbers) == {
        "A-10-1": "5|1|0|0|0|F",
        "A-10-2": "5|1|0|1|0|F",
        "A-10-4": "5|1|0|2|1|F",
        "A-10-5": "5|2|0|3|2|F",
        "A-9-1": "5|1|1|4|3|F",
        "A-9-2": "5|1|0|5|4|F",
        "Pit-GA-1": "7|3|0||10000001|P",
        "Pit-GA-2": "7|3|0||10000002|P",
        "Pit-GA-3": "7|3|0||10000003|P",
        "Lawn-GA-1": "5|2|0||20000001|P",
        "Lawn-GA-2": "5|2|0||20000002|P",
    }


# Beside the hall ------------------------------------------------------------------------------------------------------


def test_places_are_scored_by_area_and_number_while_they_are_free() -> None:
    numbers = numbers_of([], AREAS, ())
    assert area_records(AREAS, numbers) == {"Pit": "1|1|0|3", "Lawn": "2|2|0|2"}
    assert place_scores(AREAS, numbers, {"Pit-GA-2", "Lawn-GA-1"}) == {
        "Pit-GA-1": 10_000_001,
        "Pit-GA-3": 10_000_003,
        "Lawn-GA-2": 20_000_002,
    }


def test_a_tier_without_a_cap_is_not_one_with_a_cap_of_none() -> None:
    numbers = numbers_of([], AREAS, ())
    tiers = (Tier(tier="child", category="P", price=3), Tier(tier="child", category="S", price=0, max=0))
    assert tier_records(tiers, numbers) == {"child|1": "3|", "child|2": "0|0"}


def test_a_block_tells_its_times_and_only_a_hash_of_its_code() -> None:
    blocks = (
        Block(block="fans", access_code="LIED", opens_at=datetime(2027, 1, 1, tzinfo=UTC)),
        Block(block="sponsor", channel="bank", closes_at=datetime(2027, 1, 2, tzinfo=UTC)),
    )
    records = block_records(SALE, blocks, numbers_of([], (), blocks))
    assert records == {
        "1": f"{floor_plans.code_hash(SALE, 'LIED')}||1798761600000|0",
        "2": "|bank|0|1798848000000",
    }
    assert re.fullmatch(r"[0-9a-f]{16}", floor_plans.code_hash(SALE, "LIED"))
    assert floor_plans.code_hash(SALE, "LIED") != floor_plans.code_hash(ids.random_id(), "LIED")


@given(halls)
def test_a_price_record_leads_back_to_its_seat(listed: list[Seat]) -> None:
    seats = in_position(listed)
    numbers = numbers_of(seats, AREAS, BLOCKS)
    records = price_records(seats, units_of(seats), AREAS, numbers)
    assert len(records) == len(seats) + 5
    for each in seats:
        *told, kind = records[each.seat_no].split("|")
        price, category_no, block_no, position, unit_no = map(int, told)
        assert (price, numbers.categories[each.category]) == (each.price, category_no)
        assert numbers.of_block(each.block) == block_no
        assert seats[position] == each
        unit = units_of(seats)[unit_no]
        assert unit.first_position <= position < unit.first_position + unit.length
        assert kind == ("A" if each.accessible else "F")
