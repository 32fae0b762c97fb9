"""SQL files: a header a statement, each statement an attribute."""

from pathlib import Path

import asyncpg
import pytest

from engine.stores import queries


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(queries, "FOLDER", tmp_path)
    queries.load.cache_clear()
    return tmp_path


async def test_a_statement_runs_by_its_name(folder: Path, postgres: asyncpg.Pool) -> None:
    (folder / "sums.sql").write_text(
        "-- Sums.\n\n-- name: add\n-- The sum\n-- of two numbers.\nSELECT $1::int + $2::int AS total;\n\n"
        "-- name: touch\n-- Touches no row.\nUPDATE users SET name = name WHERE false;\n"
    )
    sums = queries.load("sums")
    assert [query.name for query in sums] == ["add", "touch"]
    assert sums.add.says == "The sum of two numbers."
    assert await sums.add.fetchval(postgres, 2, 3) == 5
    row = await sums.add.fetchrow(postgres, 2, 3)
    assert row is not None
    assert row["total"] == 5
    assert [row["total"] for row in await sums.add.fetch(postgres, 1, 1)] == [2]
    assert await sums.touch.execute(postgres) == 0


def test_an_unknown_statement_says_where_it_was_looked_for(folder: Path) -> None:
    (folder / "sums.sql").write_text("-- name: add\n-- One.\nSELECT 1;\n")
    with pytest.raises(AttributeError, match=r"sql/sums\.sql"):
        _ = queries.load("sums").subtract


@pytest.mark.parametrize(
    "text", ["-- name: a\n-- One.\nSELECT 1;\n-- name: a\n-- Two.\nSELECT 2;\n", "-- name: a\n-- Nothing.\n\n"]
)
def test_a_statement_twice_or_without_text_is_refused(folder: Path, text: str) -> None:
    (folder / "sums.sql").write_text(text)
    with pytest.raises(ValueError, match="a has no text or is named twice"):
        queries.load("sums")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-- name: a\n-- One.\nSELECT 1;\n-- name: b\nSELECT 2;\n", "a comment that says"),
        ("-- name a\n-- One.\nSELECT 1;\n", "a comment that says"),
        ("-- Sums.\nSELECT 1;\n-- name: a\n-- One.\nSELECT 1;\n", "first statement has no header"),
    ],
)
def test_a_statement_without_its_header_is_refused(folder: Path, text: str, said: str) -> None:
    (folder / "sums.sql").write_text(text)
    with pytest.raises(ValueError, match=said):
        queries.load("sums")
