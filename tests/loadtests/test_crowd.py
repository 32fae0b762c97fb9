"""Simulated buyers before a door that answers as the test says."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from loadtests import crowd, history
from loadtests.client import Client
from loadtests.crowd import Crowd, Habit, Person, Tally
from loadtests.history import History

SALE, SCHEDULE, HOLD, PAYMENT, ENTRY = "5a1e", "5c4e", "10", "9a", "e1"

Answered = tuple[int, dict[str, str], Any]
Said = Answered | None
Script = dict[str, list[Said]]

WAITING: Answered = (201, {}, {"token": "t1", "status": "WAITING", "poll_after_ms": 1, "queue_no": 1})
ACTIVE: Answered = (200, {}, {"token": "t2", "status": "ACTIVE", "poll_after_ms": 1, "queue_no": 1})
SEATS = [{"seat_no": f"A-1-{n}", "section": "A", "row": "1", "number": n, "status": "FREE"} for n in (1, 2)]
MAP: Answered = (200, {}, {"map_version": 1, "full": True, "seats": SEATS})
SOLD_OUT: Answered = (200, {}, {"map_version": 1, "full": True, "seats": [{**SEATS[0], "status": "SOLD"}]})
HELD: Answered = (201, {}, {"reservation_id": HOLD, "amount": 100})
SUCCESS: Answered = (201, {}, {"payment_id": PAYMENT, "status": "SUCCESS", "final_amount": 100})
LEFT: Answered = (200, {}, {"token": "t3", "status": "LEFT", "poll_after_ms": 1})


def problem(status: int, word: str, headers: dict[str, str] | None = None) -> Said:
    return status, headers or {}, {"type": f"/problems/{word}"}


class Door:
    """Answers each kind of request with what its list says next, the last one again and again; None: no answer."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.served: list[asyncio.Task[None]] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.asked if name != "board"]

    def keys(self, name: str) -> set[str]:
        return {headers["idempotency-key"] for asked, headers in self.asked if asked == name}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.served.append(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines if line)
                await reader.readexactly(int(headers.get("content-length", "0")))
                name = self._name(first)
                self.asked.append((name, headers))
                said = self.script[name]
                answer = said.pop(0) if len(said) > 1 else said[0]
                if answer is None:
                    break
                status, sent, body = answer
                content = b"" if status == 304 else json.dumps(body).encode()
                head = "".join(f"{key}: {value}\r\n" for key, value in sent.items())
                writer.write(f"HTTP/1.1 {status} -\r\n{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def _name(self, first: str) -> str:
        method, path, _ = first.split(" ")
        return {
            f"POST /v1/sales/{SALE}/queue/tokens": "join",
            f"GET /v1/sales/{SALE}/queue/token": "poll",
            f"DELETE /v1/sales/{SALE}/queue/token": "leave",
            f"GET /v1/schedules/{SCHEDULE}/seats": "map",
            f"POST /v1/schedules/{SCHEDULE}/reservations": "reserve",
            f"DELETE /v1/reservations/{HOLD}": "release",
            f"POST /v1/reservations/{HOLD}/payments": "pay",
            f"GET /v1/payments/{PAYMENT}": "payment",
            f"GET /v1/schedules/{SCHEDULE}": "board",
            f"POST /v1/schedules/{SCHEDULE}/waiting-list": "wait",
            "GET /v1/waiting-list": "my list",
            f"DELETE /v1/waiting-list/{ENTRY}": "wait no more",
            f"GET /v1/reservations/{HOLD}": "offer",
            f"POST /v1/reservations/{HOLD}/cancellations": "cancel",
        }[f"{method} {path.partition('?')[0]}"]


@asynccontextmanager
async def at(door: Door) -> AsyncIterator[Client]:
    server = await asyncio.start_server(door.serve, "127.0.0.1", 0)
    async with Client("127.0.0.1", server.sockets[0].getsockname()[1], connections_max=4) as client:
        yield client
    server.close()
    await asyncio.gather(*door.served)


async def send(script: Script, tmp_path: Path, habit: Habit = Habit.BUYS, wish: int = 1) -> tuple[Door, Tally]:
    door = Door({"board": [(200, {}, {"seats_available": 2})], "leave": [LEFT], **script})
    person = Person(user_id="a0", access_token="token", habit=habit, wish=wish, visits=False)
    async with at(door) as client:
        with History(tmp_path / "history.jsonl") as kept:
            going = Crowd(
                client, sale_id=SALE, schedule_id=SCHEDULE, people=[person], history=kept, arrive_within_s=0, think_s=0
            )
            return door, await going.run()


SMOOTH: Script = {
    "join": [WAITING], "poll": [ACTIVE], "map": [MAP], "reserve": [HELD], "pay": [SUCCESS], "release": [(200, {}, {})],
}  # fmt: skip


async def test_a_buyer_goes_from_the_street_to_the_seat_and_remembers_what_was_heard(tmp_path: Path) -> None:
    door, tally = await send(SMOOTH, tmp_path)
    assert door.names() == ["join", "poll", "map", "reserve", "pay"]
    assert tally.endings == Counter({"bought": 1})
    assert tally.stages == Counter({"joined": 1, "admitted": 1, "reserved": 1, "sold": 1})
    heard = list(history.read(tmp_path / "history.jsonl"))
    assert [(line.event, line.reservation_id, line.payment_id) for line in heard] == [
        ("held", HOLD, None),
        ("confirmed", HOLD, PAYMENT),
    ]
    assert {line.key for line in heard} == door.keys("reserve") | door.keys("pay")


async def test_a_write_without_an_answer_is_sent_again_with_its_key(tmp_path: Path) -> None:
    door, tally = await send({**SMOOTH, "reserve": [None, None, HELD], "pay": [None, SUCCESS]}, tmp_path)
    assert tally.endings == Counter({"bought": 1})
    assert tally.repeats == 3
    assert len(door.keys("reserve")) == len(door.keys("pay")) == 1


async def test_who_is_told_to_come_back_comes_back_with_the_same_key(tmp_path: Path) -> None:
    busy = problem(503, "busy", {"retry-after": "0"})
    door, tally = await send({**SMOOTH, "reserve": [busy, HELD]}, tmp_path)
    assert tally.endings == Counter({"bought": 1})
    assert tally.refusals == Counter({("reserve", "busy"): 1})
    assert len(door.keys("reserve")) == 1


async def test_nothing_new_means_to_wait_as_long_again(tmp_path: Path) -> None:
    first = (200, {"etag": '"1"'}, WAITING[2])
    door, tally = await send({**SMOOTH, "poll": [first, (304, {"retry-after": "0"}, None), ACTIVE]}, tmp_path)
    assert tally.endings == Counter({"bought": 1})
    assert [headers.get("if-none-match") for name, headers in door.asked if name == "poll"] == [None, '"1"', '"1"']


async def test_a_seat_that_is_taken_means_to_look_again(tmp_path: Path) -> None:
    changed: Answered = (200, {}, {"map_version": 2, "full": False, "seats": [{"seat_no": "A-1-1", "status": "HELD"}]})
    door, tally = await send({**SMOOTH, "map": [MAP, changed], "reserve": [problem(409, "seat_taken"), HELD]}, tmp_path)
    assert door.names() == ["join", "poll", "map", "reserve", "map", "reserve", "pay"]
    assert tally.endings == Counter({"bought": 1})


async def test_a_payment_that_is_not_known_yet_is_asked_for(tmp_path: Path) -> None:
    pending = (202, {"location": f"/v1/payments/{PAYMENT}", "retry-after": "0"}, {"status": "PENDING"})
    asked = [(200, {"retry-after": "0"}, {"status": "PENDING"}), (200, {}, SUCCESS[2])]
    door, tally = await send({**SMOOTH, "pay": [pending], "payment": list(asked)}, tmp_path)
    assert door.names()[-3:] == ["pay", "payment", "payment"]
    assert tally.endings == Counter({"bought": 1})


async def test_who_has_too_little_money_gives_the_seats_back_and_leaves(tmp_path: Path) -> None:
    door, tally = await send({**SMOOTH, "pay": [problem(402, "insufficient_balance")]}, tmp_path)
    assert door.names()[-3:] == ["pay", "release", "leave"]
    assert tally.endings == Counter({"had too little money": 1})


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        ({"join": [problem(409, "queue_closed")]}, "turned away"),
        ({"poll": [(200, {}, {"token": "t", "status": "EXPIRED", "poll_after_ms": 1})]}, "lost the place"),
        ({"reserve": [problem(403, "not_admitted")]}, "lost the place"),
        ({"reserve": [problem(409, "limit_reached")]}, "refused: limit_reached"),
        ({"pay": [problem(409, "hold_ended")]}, "refused: hold_ended"),
        ({"map": [SOLD_OUT]}, "came too late"),
    ],
)  # fmt: skip
async def test_a_journey_may_end_otherwise(script: Script, ending: str, tmp_path: Path) -> None:
    _, tally = await send({**SMOOTH, **script}, tmp_path)
    assert tally.endings == Counter({ending: 1})


async def test_who_drops_seats_never_pays(tmp_path: Path) -> None:
    door, tally = await send(SMOOTH, tmp_path, Habit.DROPS)
    assert "pay" not in door.names()
    assert tally.endings == Counter({"walked away": 1})


@pytest.mark.parametrize(("habit", "ending"), [(Habit.LEAVES, "left the line"), (Habit.VANISHES, "never polled again")])
async def test_some_do_not_wait_to_the_end(habit: Habit, ending: str, tmp_path: Path) -> None:
    _, tally = await send({**SMOOTH, "poll": [(200, {}, WAITING[2])]}, tmp_path, habit)
    assert tally.endings == Counter({ending: 1})


def test_a_crowd_is_the_same_for_the_same_dice_and_has_every_habit() -> None:
    accounts = [(f"user{number}", "token") for number in range(1000)]
    people = crowd.gather(accounts, random.Random(7))
    assert people == crowd.gather(accounts, random.Random(7))
    assert {person.habit for person in people} == set(Habit)
    assert {person.wish for person in people} == set(crowd.WISHES)


def test_a_percentile_is_one_of_the_times() -> None:
    tally = Tally()
    assert tally.percentile("pay", 0.5) == 0.0
    tally.times_ms["pay"] = [3.0, 1.0, 2.0, 4.0]
    assert [tally.percentile("pay", share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]
