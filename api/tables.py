"""Tables in CSV, read by the declaration that also checks the same thing in JSON.

Its fields are the columns, in any order; those without a default are required. What is wrong is named by line and
column, up to a bound, rather than the first of it.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from api.bodies import misfit_of
from api.operations import Body, Table
from api.problems import InvalidRequest, Misfit, Refused

MISFITS_MAX = 100

R = TypeVar("R", bound=Body)


@dataclass
class Rows(Generic[R]):
    """What was read of a table: its rows and the line of each, and what is wrong with those that were not."""

    read: list[R] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    wrong: list[Misfit] = field(default_factory=list)


def read(table: Table, kind: type[R], *, most: int) -> Rows[R]:
    """The rows of a table, no more than one above `most`; raises Refused where it is no table with these columns."""
    fields = {each.name: each for each in msgspec.structs.fields(kind)}
    required = [name for name, each in fields.items() if each.required]
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = table.count(b"\n", 0, fault.start) + 1
        raise Refused(InvalidRequest(errors=[misfit_in(line, "", "Expected UTF-8")])) from fault
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: Rows[R] = Rows()
    try:
        columns = [name.strip() for name in next(reader, [])]
        refuse(_misnamed(columns, list(fields), required))
        for row in reader:
            if not row:
                continue
            line = reader.line_num
            if len(row) != len(columns):
                rows.wrong.append(misfit_in(line, "", f"Expected {len(columns)} columns, got {len(row)}"))
            else:
                # An empty cell of an optional column says nothing.
                cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
                given = {name: cell for name, cell in cells.items() if cell or name in required}
                try:
                    rows.read.append(msgspec.convert(given, kind, strict=False))
                    rows.lines.append(line)
                except msgspec.ValidationError as fault:
                    types = {name: fields[name].type for name in given}
                    rows.wrong += _misfits_in(given, types, line) or [misfit_in(line, *misfit_of(str(fault)))]
            if len(rows.wrong) >= MISFITS_MAX or len(rows.read) > most:
                break
    except csv.Error as fault:
        rows.wrong.append(misfit_in(reader.line_num, "", f"No CSV: {fault}"))
    return rows


def refuse(wrong: Sequence[Misfit]) -> None:
    """Raise Refused with these, if there are any."""
    if wrong:
        raise Refused(InvalidRequest(errors=list(wrong[:MISFITS_MAX])))


def misfit_in(line: int, column: str, message: str) -> Misfit:
    """Something wrong with a cell, or with a line where no column is named."""
    return Misfit(f"line {line}, {column}" if column else f"line {line}", message, line=line, column=column)


def _misfits_in(cells: dict[str, str], types: dict[str, object], line: int) -> list[Misfit]:
    """Everything wrong with the cells of a line, each by itself: msgspec stops at the first."""
    wrong = []
    for name, cell in cells.items():
        try:
            msgspec.convert(cell, types[name], strict=False)
        except msgspec.ValidationError as fault:
            wrong.append(misfit_in(line, name, misfit_of(str(fault))[1]))
    return wrong


def _misnamed(columns: Sequence[str], known: Sequence[str], required: Sequence[str]) -> list[Misfit]:
    wrong = [misfit_in(1, name, "No column has this name") for name in columns if name not in known]
    wrong += [misfit_in(1, name, "This column is missing") for name in required if name not in columns]
    wrong += [misfit_in(1, name, "This column is there twice") for name in known if columns.count(name) > 1]
    return wrong
