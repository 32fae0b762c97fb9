"""Which seats of the shelf fill whose wish, against trying every choice."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.shelf import FreedSeat, Wish, accepts, fill


def seat(section: str, row: str, number: int, **more: Any) -> FreedSeat:
    plain: dict[str, Any] = {"category": "R", "price": 100}
    return FreedSeat(seat_no=f"{section}-{row}-{number}", section=section, row_name=row, number=number, **plain | more)


def row_of(*numbers: int, row: str = "1", **more: Any) -> list[FreedSeat]:
    return [seat("A", row, number, **more) for number in numbers]


@pytest.mark.parametrize(
    ("wish", "shelf", "filled"),
    [
        (Wish(quantity=1), row_of(3), ["A-1-3"]),
        (Wish(quantity=2), row_of(3), None),
        (Wish(quantity=2), row_of(3, 5), None),
        (Wish(quantity=2, adjacent=False), row_of(3, 5), ["A-1-3", "A-1-5"]),
        (Wish(quantity=2), [*row_of(4), *row_of(5, row="2")], None),
        # The shortest run that is long enough, so that a larger group still fits.
        (Wish(quantity=2), row_of(1, 2, 3, 4, 6, 7), ["A-1-6", "A-1-7"]),
        (Wish(quantity=1), row_of(1, 2, 4), ["A-1-4"]),
        # The longest runs first where they need not be together: in few rows.
        (Wish(quantity=2, adjacent=False), [*row_of(1), *row_of(1, 2, row="2")], ["A-2-1", "A-2-2"]),
        (Wish(quantity=1, price_max=99), row_of(1), None),
        (Wish(quantity=1, price_max=100), row_of(1), ["A-1-1"]),
        (Wish(quantity=1, category="S"), row_of(1), None),
        (Wish(quantity=1, section="B"), row_of(1), None),
        # Neighbours of another category are neighbours, unless the wish asks for one.
        (Wish(quantity=2), [*row_of(1), *row_of(2, category="S")], ["A-1-1", "A-1-2"]),
        (Wish(quantity=2, category="R"), [*row_of(1), *row_of(2, category="S")], None),
        # Accessible seats are kept for who needs one.
        (Wish(quantity=1), row_of(1, accessible=True), None),
        (Wish(quantity=2, accessible=1), [*row_of(1), *row_of(2, accessible=True)], ["A-1-1", "A-1-2"]),
        (Wish(quantity=2, accessible=1), row_of(1, 2), None),
        (Wish(quantity=2, accessible=1), [*row_of(1, 2), *row_of(3, accessible=True)], ["A-1-2", "A-1-3"]),
        (
            Wish(quantity=2, accessible=1, adjacent=False),
            [*row_of(1, 2), *row_of(9, accessible=True, row="2")],
            ["A-2-9", "A-1-1"],
        ),
    ],
)
def test_what_fills_a_wish(wish: Wish, shelf: list[FreedSeat], filled: list[str] | None) -> None:
    assert fill(wish, shelf) == filled


def test_places_of_an_area_are_beside_each_other_wherever_they_are() -> None:
    lawn = [seat("Lawn", "GA", number, area="Lawn") for number in (2, 40, 900)]
    assert fill(Wish(quantity=3), lawn) == ["Lawn-GA-2", "Lawn-GA-40", "Lawn-GA-900"]
    assert fill(Wish(quantity=4), lawn) is None


shelves = st.lists(
    st.builds(
        seat,
        section=st.sampled_from("AB"),
        row=st.sampled_from("12"),
        number=st.integers(1, 6),
        category=st.sampled_from("RS"),
        price=st.sampled_from([100, 200]),
        accessible=st.booleans(),
    ),
    max_size=9,
    unique_by=lambda each: each.seat_no,
)
wish_parts = st.builds(
    Wish,
    quantity=st.integers(1, 4),
    adjacent=st.booleans(),
    category=st.none() | st.just("R"),
    section=st.none() | st.just("A"),
    price_max=st.none() | st.just(150),
    accessible=st.integers(0, 1),
)


def is_filled(wish: Wish, chosen: Sequence[FreedSeat]) -> bool:
    """Whether these seats are what was wished for, told without looking for them."""
    rows = {(each.section, each.row_name) for each in chosen}
    numbers = sorted(each.number for each in chosen)
    together = len(rows) == 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return (
        len(chosen) == wish.quantity
        and all(accepts(wish, each) for each in chosen)
        and sum(each.accessible for each in chosen) >= wish.accessible
        and (together or not wish.adjacent)
    )


@given(shelf=shelves, wish=wish_parts)
def test_a_wish_is_filled_whenever_any_choice_fills_it(shelf: list[FreedSeat], wish: Wish) -> None:
    filled = fill(wish, shelf)
    by_no = {each.seat_no: each for each in shelf}
    if filled is None:
        assert not any(is_filled(wish, chosen) for chosen in combinations(shelf, wish.quantity))
    else:
        assert len(set(filled)) == len(filled)
        assert is_filled(wish, [by_no[seat_no] for seat_no in filled])
