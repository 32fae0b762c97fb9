"""The seats of a schedule as an operator lists them: in JSON, or as a table in CSV with the same columns.

Both are checked by the same declaration. Nothing is made unless every seat is right, and the answer names what is
wrong with each, up to a bound, rather than the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from api import tables
from api.bodies import whole
from api.operations import Body, Table
from api.problems import Misfit
from api.tables import misfit_in, refuse
from engine.catalogue import PRICE_MAX, SEATS_MAX, Seat

# What separates the parts of a seat number, of records and of lists elsewhere may stand in no part.
Part = Annotated[
    str,
    Meta(
        pattern=whole(r"[^-|,=\x00-\x20\x7f]([^-|,=\x00-\x1f\x7f]*[^-|,=\x00-\x20\x7f])?"),
        max_length=16,
        description="Without - | , = and without a space at either end.",
    ),
]
Category = Annotated[str, Meta(min_length=1, max_length=100, pattern=whole(r"[^\x00-\x1f\x7f]*"))]
Price = Annotated[int, Meta(ge=0, le=PRICE_MAX)]


class NewSeat(Body, frozen=True):
    """One numbered seat. Its `seat_no` is section-row-number, of at most 20 characters."""

    section: Part
    row: Part
    number: Annotated[int, Meta(ge=1, le=999_999)]
    category: Category
    price: Price
    accessible: bool = False
    blocked: bool = False

    def __post_init__(self) -> None:
        """Refuse a name that is too long as a whole."""
        if len(self.section) + len(self.row) + len(str(self.number)) > 18:
            raise ValueError("Expected section, row and number of at most 18 characters together")

    def seat(self) -> Seat:
        """The seat, as the engine knows it."""
        return Seat(
            section=self.section,
            row=self.row,
            number=self.number,
            category=self.category,
            price=self.price,
            accessible=self.accessible,
            blocked=self.blocked,
        )


@dataclass(frozen=True)
class Listed:
    """Seats in the order they were listed, and the line of each where they came as a table."""

    seats: Sequence[Seat]
    lines: Sequence[int] | None = None

    def where(self, index: int) -> str:
        """The place of a seat, in words."""
        return f"seats[{index}]" if self.lines is None else f"line {self.lines[index]}"

    def misfit(self, index: int, message: str) -> Misfit:
        """Something wrong with a seat."""
        if self.lines is None:
            return Misfit(f"seats[{index}]", message)
        return misfit_in(self.lines[index], "number", message)


def read_json(new: Sequence[NewSeat]) -> Listed:
    """The seats of a JSON body; raises Refused if one is listed twice."""
    listed = Listed([each.seat() for each in new])
    refuse(list(_repeated(listed)))
    return listed


def read_csv(table: Table) -> Listed:
    """The seats of a table; raises Refused with the line and the column of each thing wrong with it."""
    rows = tables.read(table, NewSeat, most=SEATS_MAX)
    listed = Listed([row.seat() for row in rows.read], rows.lines)
    refuse([*rows.wrong, *_repeated(listed)])
    return listed


def _repeated(listed: Listed) -> Iterator[Misfit]:
    """A misfit for each seat that was listed before."""
    first: dict[str, int] = {}
    for index, seat in enumerate(listed.seats):
        before = first.setdefault(seat.seat_no, index)
        if before != index:
            yield listed.misfit(index, f"{seat.seat_no} is listed twice, first as {listed.where(before)}")
