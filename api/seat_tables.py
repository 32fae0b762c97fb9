"""The seats of a schedule as an operator lists them: in JSON, or as a table in CSV with the same columns.

Both are checked by the same declaration. Nothing is made unless every seat is right, and the answer names what is
wrong with each, up to a bound, rather than the first.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from api.bodies import misfit_of
from api.operations import Body, Table
from api.problems import InvalidRequest, Misfit, Refused
from engine.catalogue import PRICE_MAX, SEATS_MAX, Seat

MISFITS_MAX = 100

COLUMNS = ("section", "row", "number", "category", "price", "accessible", "blocked")
REQUIRED = COLUMNS[:5]

# What separates the parts of a seat number, of records and of lists elsewhere may stand in no part.
Part = Annotated[
    str,
    Meta(
        pattern=r"^[^-|,=\x00-\x20\x7f]([^-|,=\x00-\x1f\x7f]*[^-|,=\x00-\x20\x7f])?$",
        max_length=16,
        description="Without - | , = and without a space at either end.",
    ),
]
Category = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
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


CELLS = {field.name: field.type for field in msgspec.structs.fields(NewSeat)}


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
        return _misfit(self.lines[index], "number", message)


def read_json(new: Sequence[NewSeat]) -> Listed:
    """The seats of a JSON body; raises Refused if one is listed twice."""
    listed = Listed([each.seat() for each in new])
    refuse(list(_repeated(listed)))
    return listed


def read_csv(table: Table) -> Listed:
    """The seats of a table; raises Refused with the line and the column of each thing wrong with it."""
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = table.count(b"\n", 0, fault.start) + 1
        raise Refused(InvalidRequest(errors=[_misfit(line, "", "Expected UTF-8")])) from fault
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    seats: list[Seat] = []
    lines: list[int] = []
    wrong: list[Misfit] = []
    try:
        columns = [name.strip() for name in next(rows, [])]
        refuse(_misnamed(columns))
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                wrong.append(_misfit(rows.line_num, "", f"Expected {len(columns)} columns, got {len(row)}"))
            else:
                # An empty cell of an optional column says nothing.
                cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
                given = {name: cell for name, cell in cells.items() if cell or name in REQUIRED}
                try:
                    seats.append(msgspec.convert(given, NewSeat, strict=False).seat())
                    lines.append(rows.line_num)
                except msgspec.ValidationError as fault:
                    wrong += _misfits_in(given, rows.line_num) or [_misfit(rows.line_num, *misfit_of(str(fault)))]
            if len(wrong) >= MISFITS_MAX or len(seats) > SEATS_MAX:
                break
    except csv.Error as fault:
        wrong.append(_misfit(rows.line_num, "", f"No CSV: {fault}"))
    listed = Listed(seats, lines)
    refuse([*wrong, *_repeated(listed)])
    return listed


def refuse(wrong: Sequence[Misfit]) -> None:
    """Raise Refused with these, if there are any."""
    if wrong:
        raise Refused(InvalidRequest(errors=list(wrong[:MISFITS_MAX])))


def _misfits_in(cells: dict[str, str], line: int) -> list[Misfit]:
    """Everything wrong with the cells of a line, each by itself: msgspec stops at the first."""
    wrong = []
    for name, cell in cells.items():
        try:
            msgspec.convert(cell, CELLS[name], strict=False)
        except msgspec.ValidationError as fault:
            wrong.append(_misfit(line, name, misfit_of(str(fault))[1]))
    return wrong


def _misnamed(columns: Sequence[str]) -> list[Misfit]:
    wrong = [_misfit(1, name, "No column has this name") for name in columns if name not in COLUMNS]
    wrong += [_misfit(1, name, "This column is missing") for name in REQUIRED if name not in columns]
    wrong += [_misfit(1, name, "This column is there twice") for name in COLUMNS if columns.count(name) > 1]
    return wrong


def _repeated(listed: Listed) -> Iterator[Misfit]:
    """A misfit for each seat that was listed before."""
    first: dict[str, int] = {}
    for index, seat in enumerate(listed.seats):
        before = first.setdefault(seat.seat_no, index)
        if before != index:
            yield listed.misfit(index, f"{seat.seat_no} is listed twice, first as {listed.where(before)}")


def _misfit(line: int, column: str, message: str) -> Misfit:
    return Misfit(f"line {line}, {column}" if column else f"line {line}", message, line=line, column=column)
