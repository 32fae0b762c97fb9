"""Polls, answered from a process's memory as long as nobody's turn has come."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from engine import rooms
from engine.refusals import NotFound
from engine.rooms import POLL_MIN_MS, POLL_UNKNOWN_MS, Eta, Place, Room, Rooms
from engine.stores.connections import Stores, StoreUnavailable
from engine.stores.replies import SaleUnknown
from engine.stores.scripts import ScriptFault
from engine.waiting_room import GRACE_MS, POLL_MAX_MS, Joined, Snapshot
from tests.engine.lines import RecordedLine, open_recorded_line, owner_of, user


@dataclass
class Front:
    """A line, and one process that answers polls."""

    line: RecordedLine
    rooms: Rooms

    async def poll(self, name: str, queue_no: int, epoch: int = 1, visitor_name: str = "") -> Any:
        return await self.rooms.poll(
            self.line.sale, owner=owner_of(name), queue_no=queue_no, epoch=epoch, visitor=visitor_name
        )

    async def place(self, name: str, queue_no: int, **more: Any) -> Place:
        """Poll, which must be answered with a place."""
        place = await self.poll(name, queue_no, **more)
        assert isinstance(place, Place), place
        return place

    async def commands(self) -> int:
        """Batches that this process has sent to the store."""
        return self.line.gate.statistics.batches


@pytest.fixture
async def front(stores_any: Stores) -> Front:
    line = await open_recorded_line(stores_any)
    return Front(line, Rooms(line.gate, line.book, line.postgres))


# --- polls ------------------------------------------------------------------------------------------------------------


async def test_a_poll_behind_serving_sends_nothing_to_the_store(front: Front) -> None:
    await front.line.set(room="paused")
    numbers = await front.line.joined(*[f"p{number}" for number in range(30)])
    await front.rooms.refresh()
    before = await front.commands()
    for _ in range(3):
        places = await asyncio.gather(*[front.place(f"p{number}", number + 1) for number in range(30)])
        assert [place.position for place in places] == numbers
    assert await front.commands() == before


async def test_a_quiet_room_is_read_seldom_and_anew_by_whoever_asks(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    await front.line.set(room="paused")
    await front.line.joined("ann", "bob")
    await front.rooms.refresh()
    monkeypatch.setattr(rooms, "QUIET_AFTER_S", 0.0)
    monkeypatch.setattr(rooms, "QUIET_EVERY_S", 3600.0)
    await front.line.leave("ann", 1)
    before = await front.commands()
    await front.rooms.refresh()
    assert await front.commands() == before
    assert (await front.place("bob", 2)).ahead == 0
    assert await front.commands() == before + 1
    monkeypatch.setattr(rooms, "QUIET_EVERY_S", 0.0)
    await front.rooms.refresh()
    assert await front.commands() == before + 3  # and bob's sign of life


async def test_a_quiet_room_answers_from_what_is_known_while_the_store_is_away(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    await front.line.joined("ann", "bob")
    await front.rooms.refresh()
    monkeypatch.setattr(rooms, "QUIET_AFTER_S", 0.0)

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr("engine.waiting_room.snapshot", away)
    assert (await front.place("bob", 2)).ahead == 1


async def test_a_place_is_exact_as_people_leave_and_are_called(front: Front) -> None:
    names = [f"p{number}" for number in range(1, 13)]
    await front.line.joined(*names)
    await front.rooms.refresh()
    live = dict(zip(names, range(1, 13), strict=True))
    for gone in ("p3", "p12", "p7", "p1"):
        await front.line.leave(gone, live.pop(gone))
        await front.rooms.refresh()
        for at, (name, queue_no) in enumerate(live.items()):
            assert ((place := await front.place(name, queue_no)).ahead, place.position) == (at, at + 1)
    await front.line.admit(2)
    await front.rooms.refresh()
    behind = [(name, queue_no) for name, queue_no in live.items() if queue_no > 4]
    assert [(await front.place(*each)).ahead for each in behind] == list(range(len(behind)))


async def test_people_who_are_called_before_the_line_count_as_ahead(front: Front) -> None:
    await front.line.joined("ann", "bob", "cat")
    await front.line.admit(1)
    await front.line.age(POLL_MAX_MS + 120_000)
    await front.line.set(room="paused")
    await front.line.admit()
    await front.line.enter("ann", 1)
    await front.rooms.refresh()
    assert (await front.place("cat", 3)).ahead == 2


async def test_the_poll_of_somebody_whose_turn_it_is_enters(front: Front) -> None:
    await front.line.joined("ann")
    await front.line.admit()
    await front.rooms.refresh()
    place = await front.place("ann", 1)
    assert (place.status, place.position, place.ahead) == ("ACTIVE", 0, 0)
    assert abs(place.expires_at_ms - place.now_ms - 600_000) < 2_000
    assert (await front.line.fields("tokens"))[user("ann")].split("|")[2] == "1"


async def test_the_answer_is_kept_until_its_deadline_or_until_its_end_is_named(front: Front) -> None:
    await front.line.joined("ann", "bob")
    await front.line.admit()
    await front.rooms.refresh()
    for name, queue_no in (("ann", 1), ("bob", 2)):
        await front.place(name, queue_no)
    before = await front.commands()
    for _ in range(20):
        await front.place("ann", 1)
        await front.place("bob", 2)
    assert await front.commands() == before
    await front.line.leave("ann", 1)
    await front.rooms.refresh()
    assert (await front.place("ann", 1)).status == "LEFT"
    before = await front.commands()
    assert (await front.place("bob", 2)).status == "ACTIVE"
    assert await front.commands() == before


async def test_somebody_who_left_is_told_so_although_the_line_has_not_passed_their_number(front: Front) -> None:
    await front.line.joined("ann", "bob")
    await front.line.leave("bob", 2)
    await front.rooms.refresh()
    assert (await front.place("bob", 2)).status == "LEFT"


async def test_signs_of_life_are_written_in_batches_and_only_near_the_front(front: Front) -> None:
    await front.line.set(admitted_per_minute_max=5)
    await front.line.joined(*[f"p{number}" for number in range(1, 31)])
    await front.rooms.refresh()
    await asyncio.gather(*[front.place(f"p{number}", number) for number in range(1, 31)])
    assert await front.line.scores("alive") == {}
    before = await front.commands()
    await front.rooms.refresh()
    assert await front.commands() - before == 2  # a snapshot, and one batch of signs
    alive = await front.line.scores("alive")
    assert alive.keys() == {str(number) for number in range(1, 11)}  # two minutes at five a minute
    now_ms = await front.line.now_ms()
    assert all(POLL_MIN_MS + GRACE_MS - 2_000 < at - now_ms <= POLL_MAX_MS + GRACE_MS for at in alive.values())


async def test_whoever_goes_on_polling_is_not_passed_over_when_the_rate_falls_and_rises(front: Front) -> None:
    await front.line.set(admitted_per_minute_max=100, active_max=50)
    names = [f"p{number}" for number in range(1, 101)]
    await front.line.joined(*names)
    await front.line.admit()
    for _ in range(3):
        await front.rooms.refresh()
        await asyncio.gather(*[front.poll(name, number) for number, name in enumerate(names, 1)])
        await front.rooms.refresh()
        await front.line.age(61_000)  # nobody leaves, so nobody was admitted in the last minute
        for number in range(1, 51):
            await front.line.redis.zadd(front.line.sale.keys.active, {user(f"p{number}"): 9e15})
    await front.rooms.refresh()
    await asyncio.gather(*[front.poll(name, number) for number, name in enumerate(names, 1)])
    await front.rooms.refresh()
    await front.line.set(active_max=100)
    admitted = await front.line.admit()
    assert (admitted.count, admitted.skipped) == (50, 0)


async def test_a_sign_that_could_not_be_written_is_written_later(front: Front) -> None:
    await front.line.joined("ann")
    await front.rooms.refresh()
    await front.place("ann", 1)
    room = await front.rooms.find(front.line.sale)
    assert isinstance(room, Room)
    key, kept = front.line.sale.keys.alive, dict(room.signs)
    await front.line.redis.execute_command("SET", key, "in the way")
    with pytest.raises(ScriptFault):
        await front.rooms.refresh()
    assert room.signs == kept
    await front.line.redis.execute_command("DEL", key)
    await front.rooms.refresh()
    assert (await front.line.scores("alive")).keys() == {"1"}
    assert room.signs == {}


@pytest.mark.parametrize("room", ["off", "bypass"])
async def test_without_a_room_everybody_is_active_and_keeps_their_number(front: Front, room: str) -> None:
    await front.line.joined("ann")
    await front.line.set(room=room)
    place = await front.place("ann", 1)
    assert (place.status, place.queue_no, place.expires_at_ms) == ("ACTIVE", 1, 0)


async def test_another_persons_number_is_not_found_once_its_turn_has_come(front: Front) -> None:
    await front.line.joined("ann")
    await front.line.admit()
    await front.rooms.refresh()
    assert await front.poll("bob", 1) == NotFound()


async def test_a_sale_that_the_store_does_not_know_is_refused(front: Front) -> None:
    await front.line.redis.execute_command("DEL", front.line.sale.keys.sale)
    assert await front.poll("ann", 1) == SaleUnknown()


async def test_a_new_copy_of_the_sale_is_read_from_its_first_departure_on(front: Front) -> None:
    await front.line.joined("ann", "bob", "cat", "dan")
    for name, queue_no in (("bob", 2), ("cat", 3)):
        await front.line.leave(name, queue_no)
    await front.rooms.refresh()
    await front.line.lose()
    await front.line.set(epoch=2, serving=0)
    await front.line.begin_epoch(2)
    await front.line.joined("eve", "fay", "gus")
    await front.line.leave("fay", 1_000_002)
    await front.rooms.refresh()
    assert (await front.place("gus", 1_000_003, epoch=2)).ahead == 1
    assert (await front.place("eve", 1_000_001, epoch=2)).ahead == 0


async def test_a_token_of_an_older_epoch_is_put_back_and_answered_for_the_new_one(front: Front) -> None:
    await front.line.joined("ann", "bob")
    await front.line.lose()
    await front.line.set(epoch=2)
    await front.line.begin_epoch(2)
    place = await front.place("bob", 2)
    assert (place.epoch, place.queue_no, place.status, place.ahead) == (2, 2, "WAITING", 0)
    assert await front.line.scores("waiting") == {user("bob"): 2}


async def test_a_token_shown_before_this_process_has_heard_of_the_new_copy_is_put_back(front: Front) -> None:
    await front.line.joined("ann", "bob")
    await front.line.admit(1)
    await front.rooms.refresh()
    await front.line.lose()
    await front.line.set(epoch=2, serving=1)
    await front.line.postgres.execute("UPDATE sales SET epoch = 2")
    place = await front.place("ann", 1)
    assert (place.epoch, place.queue_no, place.status) == (2, 1, "WAITING")
    # One that is unknown in its own copy stays so.
    assert await front.poll("cat", 1, epoch=2) == NotFound()


@pytest.mark.parametrize("by", ["user", "visitor"])
async def test_a_number_that_postgres_knows_as_ended_is_not_put_back(front: Front, by: str) -> None:
    await front.line.joined("vic")
    await front.line.tie("vic", "ann", 1)
    await front.line.leave("ann", 1)
    await front.line.record()
    await front.line.lose()
    name = "ann" if by == "user" else "vic"
    assert (await front.place(name, 1, epoch=0)).status == "LEFT"
    await front.line.postgres.execute("UPDATE queue_tokens SET ended_at = ended_at - interval '61 minutes'")
    assert await front.poll(name, 1, epoch=0) == NotFound()
    assert await front.line.scores("waiting") == {}


# --- places and times of a room ---------------------------------------------------------------------------------------


def _room(**more: Any) -> Room:
    """A room of which a snapshot has been read: by default ten people wait, 1 to 10."""
    seen: dict[str, Any] = {
        "epoch": 1, "now_ms": 1, "room": "open", "serving": 0, "queue_no": 10, "draining_no": 0, "waiting": 10,
        "behind": 10, "returned": 0, "active": 0, "active_max": 1, "admitted_per_minute_max": 60, "admitted": 0,
        "admitted_in_s": 1, "gone_seq": 0, "more": 0, "gone_count": 0, "queue_nos": (),
    }  # fmt: skip
    room = Room(lambda: 1.0)
    room.take(Snapshot(**seen | more))
    return room


def test_after_a_loss_numbers_that_nobody_has_are_not_counted() -> None:
    # 1 … 10 are back, then the counter went on at a million, where two have joined and one of them left.
    room = _room(queue_no=1_000_003, waiting=12, behind=12, gone_count=1, queue_nos=("1000002",))
    assert [room.ahead_of(number) for number in (1, 10, 1_000_001, 1_000_003)] == [0, 9, 10, 11]
    # Of 1 … 10 only two are back: whoever is far behind them is told the most it can be.
    room = _room(queue_no=1_000_000, waiting=2, behind=2)
    assert room.ahead_of(9) == 1


def test_somebody_who_joined_after_the_snapshot_is_behind_everybody() -> None:
    assert _room().ahead_of(13) == 12


@pytest.mark.parametrize("state", ["prequeue", "paused", "closed"])
def test_nobody_knows_how_long_it_takes_while_nobody_is_admitted(state: str) -> None:
    assert _room(room=state, admitted=5).eta_of(3) == Eta(known=False)


def test_the_time_to_wait_follows_the_rate_and_is_unknown_without_one() -> None:
    assert _room(active=1).eta_of(3) == Eta(known=False)
    assert _room(active=0, active_max=5).eta_of(3) == Eta(known=True, p50_s=1, p90_s=2)
    eta = _room(active=1, admitted=60, admitted_in_s=30).eta_of(99)
    assert (eta.known, eta.p50_s) == (True, 50)
    assert eta.p90_s is not None
    assert eta.p90_s > 50


def test_the_next_poll_is_sooner_near_the_front_spread_and_bounded() -> None:
    room = _room(admitted=60, admitted_in_s=60)
    near = {room.poll_after_ms(Eta(known=True, p50_s=5, p90_s=9)) for _ in range(200)}
    far = {room.poll_after_ms(Eta(known=True, p50_s=5_000, p90_s=9_000)) for _ in range(200)}
    unknown = {room.poll_after_ms(Eta(known=False)) for _ in range(200)}
    assert len(near) > 50
    assert max(near) < min(far)
    assert all(POLL_MIN_MS <= after <= POLL_MAX_MS for after in near | far | unknown)


def test_by_the_rate_of_a_first_second_nobody_is_sent_away_for_half_a_minute() -> None:
    long = Eta(known=True, p50_s=600, p90_s=900)
    after = {seen_s: _room(admitted=8, admitted_in_s=seen_s).poll_after_ms(long) for seen_s in (1, 10, 61)}
    assert after[1] <= POLL_UNKNOWN_MS * 1.2
    assert 8_000 <= after[10] <= 12_000
    assert after[61] == POLL_MAX_MS


def test_a_joined_person_is_told_the_same_as_a_poll_would(front: Front) -> None:
    room = _room()
    place = front.rooms.joined(room, Joined(11, 1, "WAITING"))
    assert (place.queue_no, place.ahead, place.status) == (11, 10, "WAITING")
