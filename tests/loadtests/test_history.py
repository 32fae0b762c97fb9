"""The file of what clients heard."""

from pathlib import Path

import pytest

from loadtests import history
from loadtests.history import Heard, History

HELD = Heard(
    event="held", sale_id="5a1e", user_id="0b", key="k1", reservation_id="1d", seats=("A-1-1", "A-1-2"), amount=20
)
CONFIRMED = Heard(
    event="confirmed", sale_id="5a1e", user_id="0b", key="k2", reservation_id="1d", seats=("A-1-1",), amount=10,
    payment_id="9a",
)  # fmt: skip


def test_what_was_recorded_is_read_in_order(tmp_path: Path) -> None:
    for heard in (HELD, CONFIRMED):
        with History(tmp_path / "kept" / "history.jsonl") as kept:
            kept.record(heard)
    assert list(history.read(tmp_path / "kept" / "history.jsonl")) == [HELD, CONFIRMED]


def test_a_line_torn_by_a_kill_was_not_heard_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with History(path) as kept:
        kept.record(HELD)
    with path.open("ab") as file:
        file.write(b'{"event":"confirmed","sale')
    assert list(history.read(path)) == [HELD]
    with History(path) as kept:
        kept.record(CONFIRMED)
    assert list(history.read(path)) == [HELD, CONFIRMED]


def test_a_line_that_is_no_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"event": "confirmed"}\n')
    with pytest.raises(ValueError, match="line 1"):
        list(history.read(path))
