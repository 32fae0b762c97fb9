"""Who came too late waits for what others give back, before a door that answers as the test says."""

from collections import Counter
from pathlib import Path

import pytest

from loadtests import history, latecomers
from loadtests.crowd import LATE, Crowd, Habit, Person, Purchase, Seat, Tally
from loadtests.history import History
from tests.loadtests.test_crowd import ENTRY, HOLD, SALE, SCHEDULE, SUCCESS, Answered, Door, Script, at, problem

JOINED: Answered = (201, {}, {"entry_id": ENTRY, "status": "WAITING"})
WAITING: Answered = (200, {}, {"items": [{"entry_id": ENTRY, "status": "WAITING"}]})
OFFERED: Answered = (200, {}, {"items": [{"entry_id": ENTRY, "status": "OFFERED", "reservation_id": HOLD}]})
OFFER: Answered = (200, {}, {"reservation_id": HOLD, "amount": 100, "seats": [{"seat_no": "A-1-1"}]})
GIVEN_BACK: Answered = (201, {}, {"cancellation_id": "c1"})

SMOOTH: Script = {
    "wait": [JOINED], "my list": [WAITING, OFFERED], "offer": [OFFER], "pay": [SUCCESS], "cancel": [GIVEN_BACK],
    "wait no more": [(200, {}, {})],
}  # fmt: skip


def person(name: str, habit: Habit = Habit.BUYS) -> Person:
    return Person(user_id=name, access_token="token", habit=habit, wish=1, visits=False)


async def come(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *late: Person, accessible: bool = False
) -> tuple[Door, Tally]:
    """One seat that somebody bought, and those who came too late for it."""
    monkeypatch.setattr(latecomers, "ASK_EVERY_S", 0.001)
    monkeypatch.setattr(latecomers, "PATIENCE_S", 0.005)
    door = Door(script)
    async with at(door) as client:
        with History(tmp_path / "history.jsonl") as kept:
            crowd = Crowd(client, sale_id=SALE, schedule_id=SCHEDULE, people=[], history=kept, think_s=0)
            crowd.hall = {"A-1-1": Seat("A-1-1", "SOLD", "A", "1", 1, accessible)}
            crowd.purchases = [Purchase(person("seller"), f"/v1/reservations/{HOLD}", ("A-1-1",))]
            crowd.late = list(late)
            crowd.tally.endings[LATE] = len(late)
            crowd.tally.stages["sold"] = 1
            await latecomers.come(crowd, seed=1)
            return door, crowd.tally


async def test_what_comes_back_is_let_go_by_the_first_and_bought_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = person("poor", Habit.POOR), person("first"), person("second"), person("third")
    door, tally = await come(SMOOTH, tmp_path, monkeypatch, *late)
    assert door.names()[:3] == ["wait", "wait", "cancel"]
    assert Counter(door.names()) >= Counter({"pay": 1, "wait no more": 1, "offer": 1})
    assert +tally.endings == Counter({LATE: 2, latecomers.LET_GO: 1, latecomers.BOUGHT: 1})
    assert (tally.stages["sold"], tally.stages["given back"], tally.stages["offered"]) == (1, 1, 2)
    [heard] = history.read(tmp_path / "history.jsonl")
    assert (heard.event, heard.user_id, heard.reservation_id, heard.seats) == ("confirmed", "second", HOLD, ("A-1-1",))


async def test_an_accessible_seat_is_kept_as_nobody_who_waits_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, tally = await come(SMOOTH, tmp_path, monkeypatch, person("first"), accessible=True)
    assert door.names() == []
    assert tally.stages["sold"] == 1


async def test_who_waits_in_vain_goes_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = {**SMOOTH, "my list": [WAITING]}
    door, tally = await come(script, tmp_path, monkeypatch, person("first"), person("second"))
    assert +tally.endings == Counter({latecomers.IN_VAIN: 2})
    assert "pay" not in door.names()
    assert door.names().count("wait no more") == 2


async def test_who_may_not_wait_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = {**SMOOTH, "wait": [problem(409, "sale_closed")]}
    _, tally = await come(script, tmp_path, monkeypatch, person("first"), person("second"))
    assert +tally.endings == Counter({"refused: sale_closed": 2})


async def test_where_nobody_came_too_late_nothing_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, tally = await come(SMOOTH, tmp_path, monkeypatch)
    assert door.names() == []
    assert tally.stages["sold"] == 1
