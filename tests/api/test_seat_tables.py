"""A table says the same as a list in JSON, and whatever else comes as a table is refused and never breaks anything."""

import csv
import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.operations import Table
from api.problems import InvalidRequest, Misfit, Refused
from api.seat_tables import NewSeat, read_csv, read_json
from api.tables import MISFITS_MAX

COLUMNS = NewSeat.__struct_fields__

names = st.text(st.sampled_from("AbÜ 9.席"), min_size=1, max_size=5).filter(lambda name: name == name.strip())
seats = st.fixed_dictionaries(
    {
        "section": names,
        "row": names,
        "number": st.integers(1, 9999),
        "category": st.text(st.sampled_from("R,\"' é"), min_size=1, max_size=8).filter(
            lambda name: name == name.strip()
        ),
        "price": st.integers(0, 10**12),
        "accessible": st.booleans(),
        "blocked": st.booleans(),
    }
)
halls = st.lists(seats, max_size=20, unique_by=lambda seat: (seat["section"], seat["row"], seat["number"]))


def table_of(hall: list[dict[str, Any]], *, columns: tuple[str, ...] = COLUMNS, end: str = "\r\n") -> Table:
    written = io.StringIO()
    table = csv.writer(written, lineterminator=end)
    table.writerow(columns)
    for seat in hall:
        cells = [seat[name] for name in columns]
        table.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])
    return Table(written.getvalue().encode())


@given(halls, st.permutations(COLUMNS), st.sampled_from(["\n", "\r\n"]))
def test_a_table_says_what_json_says(hall: list[dict[str, Any]], columns: list[str], end: str) -> None:
    by_table = read_csv(table_of(hall, columns=tuple(columns), end=end))
    by_json = read_json(msgspec.convert(hall, list[NewSeat]))
    assert by_table.seats == by_json.seats
    assert by_table.lines == list(range(2, len(hall) + 2))


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from('A1,-"\n\r\0 é\ufeff'), max_size=200).map(
            lambda rows: b"section,row,number,category,price\n" + rows.encode()
        ),
    )
)
def test_what_is_no_table_is_refused_line_by_line(content: bytes) -> None:
    errors = errors_in(Table(content))
    assert len(errors) <= MISFITS_MAX
    # A quoted cell may go over several lines, and ends in the last of them.
    lines = content.count(b"\n") + content.count(b"\r") + 1
    assert all(isinstance(error.line, int) and 0 <= error.line <= lines for error in errors)


def errors_in(table: Table) -> list[Misfit]:
    """What is wrong with a table; of one that is right, that there is a line to each seat."""
    try:
        listed = read_csv(table)
    except Refused as refused:
        if isinstance(refused.refusal, InvalidRequest):
            return refused.refusal.errors
        raise
    assert listed.lines is not None
    assert len(listed.seats) == len(listed.lines)
    return []


@pytest.mark.parametrize("cell", ["", "5.5", "0x5", "五", "9" * 30, "NaN"])
def test_a_price_that_is_no_whole_number_is_refused(cell: str) -> None:
    errors = errors_in(Table(f"section,row,number,category,price\nA,1,1,R,{cell}\n".encode()))
    assert [error.column for error in errors] == ["price"]
