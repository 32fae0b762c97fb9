"""docs/data-model.md against the schema: what it names exists, and no column of a diagram is without a row."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COLUMNS = {1: 55, 2: 84, 3: 75, 4: 53, 5: 76}
"""How many columns each diagram has; the fifth counts those that its comments suggest."""


@dataclass(frozen=True)
class Diagram:
    """One diagram as the page tells it: its columns, and the table that places each of them."""

    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, str, str]]


def read_diagrams() -> dict[int, Diagram]:
    page = (ROOT / "docs" / "data-model.md").read_text()
    diagrams = {}
    for part in re.split(r"^### Diagram ", page, flags=re.MULTILINE)[1:]:
        listed = re.search(r"```text\n(.*?)```", part, re.DOTALL)
        assert listed is not None
        columns = [
            (entity, column)
            for line in listed[1].splitlines()
            for entity, _, names in [line.partition(": ")]
            for column in names.split()
        ]
        rows = [
            (cells[0], cells[1], cells[2], cells[3])
            for line in part.splitlines()
            if line.startswith("| ")
            for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
            if cells[0] != "entity"
        ]
        diagrams[int(part.split(":")[0])] = Diagram(columns, rows)
    return diagrams


def read_schema() -> set[str]:
    """Every `table.column` of schema.sql."""
    schema = (ROOT / "sql" / "schema.sql").read_text()
    return {
        f"{table}.{column}"
        for table, body in re.findall(r"^CREATE TABLE (\w+) \(\n(.*?)^\)", schema, re.DOTALL | re.MULTILINE)
        for column in re.findall(r"^  ([a-z]\w*) ", body, re.MULTILINE)
    }


DIAGRAMS = read_diagrams()
SCHEMA = read_schema()


def test_the_page_lists_every_column_of_five_diagrams() -> None:
    assert {number: len(diagram.columns) for number, diagram in DIAGRAMS.items()} == COLUMNS


@pytest.mark.parametrize("number", COLUMNS)
def test_every_column_of_a_diagram_has_one_row(number: int) -> None:
    diagram = DIAGRAMS[number]
    assert [(entity, column) for entity, column, _, _ in diagram.rows] == diagram.columns


@pytest.mark.parametrize("number", COLUMNS)
def test_what_a_row_names_exists_or_is_marked_for_later(number: int) -> None:
    wrong = []
    for entity, column, place, reason in DIAGRAMS[number].rows:
        now = set(re.findall(r"(?<!later: )`(\w+\.\w+)`", place))
        later = set(re.findall(r"later: `(\w+\.\w+)`", place))
        nowhere = place == "—"
        if nowhere == bool(now | later) or (nowhere and not reason) or now - SCHEMA or later & SCHEMA:
            wrong.append((entity, column, place))
    assert wrong == []


def test_the_schema_was_read() -> None:
    assert {"users.email", "seats.sold", "payments.balance_amount", "restores.done_at"} <= SCHEMA
    assert all(not name.endswith((".constraint", ".primary", ".unique", ".foreign")) for name in SCHEMA)
