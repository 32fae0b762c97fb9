"""The line in Redis: who stands where, who is called, how a token ends. On one Valkey and on a cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine import ids, seats, waiting_room
from engine.refusals import Busy, NotFound
from engine.stores.connections import RedisClient
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from engine.waiting_room import (
    GRACE_MS,
    POLL_MAX_MS,
    AdmittedWithoutNumber,
    Joined,
    Left,
    PutBack,
    QueueClosed,
    Tied,
    Token,
)
from tests.engine.lines import Line, open_line, owner_of, user, visitor
from tests.engine.stored_sales import HOUR_MS


@pytest.fixture
async def line(redis_any: RedisClient) -> Line:
    return await open_line(redis_any)


def _status(token: Any) -> tuple[str, int]:
    assert isinstance(token, Token), token
    return token.status, token.queue_no


# --- every script -----------------------------------------------------------------------------------------------------

SCRIPTS: dict[str, Callable[[Line], Awaitable[Any]]] = {
    "join": lambda line: line.join("ann"),
    "enter": lambda line: line.enter("ann", 1),
    "leave": lambda line: line.leave("ann", 1),
    "tie": lambda line: line.tie("vic", "ann", 1),
    "put_back": lambda line: line.put_back("ann", 1),
    "admit": lambda line: line.admit(),
    "signs": lambda line: line.signs(("ann", 1, 1000)),
    "snapshot": lambda line: line.snapshot(),
}


@pytest.mark.parametrize("script", SCRIPTS)
async def test_nothing_is_answered_without_the_sale_in_its_epoch(line: Line, script: str) -> None:
    ask = SCRIPTS[script]
    await line.set(state="rebuilding")
    assert await ask(line) == SaleRebuilding()
    await line.set(state="open", epoch=2)
    assert await ask(line) == StaleEpoch(2)
    await line.redis.execute_command("DEL", line.sale.keys.sale)
    assert await ask(line) == SaleUnknown()
    left = [
        await line.redis.execute_command("EXISTS", getattr(line.sale.keys, name))
        for name in ("waiting", "tokens", "journal")
    ]
    assert left == [0, 0, 0]


# --- join -------------------------------------------------------------------------------------------------------------


async def test_numbers_are_given_in_the_order_of_joining(line: Line) -> None:
    assert await line.join("ann") == Joined(1, 1, "WAITING")
    assert await line.join("bob") == Joined(2, 1, "WAITING")
    assert await line.told() == [("joined", "1", user("ann")), ("joined", "2", user("bob"))]
    await line.check()


async def test_joining_again_returns_the_same_place(line: Line) -> None:
    await line.joined("ann", "bob")
    assert await line.join("ann") == Joined(1, 0, "WAITING")
    await line.admit(1)
    assert await line.join("ann") == Joined(1, 0, "ACTIVE")
    assert len(await line.told()) == 3
    await line.check()


async def test_fifty_joins_of_one_owner_at_once_get_one_number(line: Line) -> None:
    places = await asyncio.gather(*[line.join("ann") for _ in range(50)])
    assert {place.queue_no for place in places} == {1}
    assert sum(place.created for place in places) == 1


async def test_whoever_waits_costs_one_member_of_one_set(line: Line) -> None:
    await line.joined("ann")
    kept = [
        name
        for name in ("waiting", "alive", "tokens", "active", "skipped", "returned", "ended_tokens", "gone", "ties")
        if await line.redis.execute_command("EXISTS", getattr(line.sale.keys, name))
    ]
    assert kept == ["waiting"]


@pytest.mark.parametrize("status", ["LEFT", "PROCESSED", "EXPIRED"])
async def test_after_the_end_a_new_join_gets_a_new_number_at_the_back(line: Line, status: str) -> None:
    await line.joined("ann", "bob")
    if status == "LEFT":
        await line.leave("ann", 1)
    else:
        await line.admit(1)
        await line.enter("ann", 1)
    if status == "EXPIRED":
        await line.age(600_000)
    if status == "PROCESSED":
        await _buy(line, "ann", 1)
    assert await line.join("ann") == Joined(3, 1, "WAITING")
    assert _status(await line.enter("ann", 1)) == (status, 1)
    await line.check()


@pytest.mark.parametrize("room", ["off", "bypass"])
async def test_without_a_room_everybody_is_let_in_without_a_number(line: Line, room: str) -> None:
    await line.set(room=room)
    for _ in range(2):
        assert await line.join("ann") == AdmittedWithoutNumber()
    assert await line.enter("ann", 1) == AdmittedWithoutNumber()
    assert await line.put_back("ann", 1) == AdmittedWithoutNumber()
    assert await line.told() == []


@pytest.mark.parametrize("room", ["prequeue", "open", "paused"])
async def test_these_rooms_take_people(line: Line, room: str) -> None:
    await line.set(room=room)
    assert await line.joined("ann") == [1]


async def test_a_closed_room_takes_nobody_new_and_keeps_who_is_there(line: Line) -> None:
    await line.joined("ann")
    await line.set(room="closed")
    assert await line.join("bob") == QueueClosed()
    assert await line.join("bob") == QueueClosed()
    assert await line.join("ann") == Joined(1, 0, "WAITING")


async def test_a_draining_room_takes_nobody_past_its_cut_off(line: Line) -> None:
    await line.joined("ann")
    await line.set(room="draining", draining_no=2)
    assert await line.joined("bob") == [2]
    assert await line.join("cat") == QueueClosed()


async def test_no_number_is_given_above_the_ceiling(line: Line) -> None:
    await line.set(queue_no_ceiling=1)
    assert await line.joined("ann") == [1]
    assert await line.join("bob") == Busy(1000)
    assert await line.join("ann") == Joined(1, 0, "WAITING")
    await line.set(queue_no_ceiling=2)
    assert await line.joined("bob") == [2]


async def test_nobody_joins_while_postgres_is_too_far_behind(line: Line) -> None:
    await line.set(backlog_max=1)
    assert await line.joined("ann", "bob") == [1, 2]
    assert await line.join("cat") == Busy(1000)
    await line.set(journal_persisted_n=1)
    assert await line.joined("cat") == [3]


# --- admit ------------------------------------------------------------------------------------------------------------


async def test_the_head_of_the_line_is_called_first(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    assert await line.admit(2) == waiting_room.Admitted(count=2, serving=2, skipped=0, expired=0, waiting=1, more=1)
    assert (await line.scores("active")).keys() == {user("ann"), user("bob")}
    assert (await line.told())[-1] == ("admitted", "1,2")
    assert (await line.admit(2)).count == 1
    assert (await line.admit(2)).count == 0
    await line.check()


async def test_no_more_are_active_than_the_cap_and_a_free_slot_is_given_again(line: Line) -> None:
    await line.set(active_max=2)
    await line.joined("ann", "bob", "cat")
    assert [(await line.admit()).count for _ in range(2)] == [2, 0]
    await line.leave("ann", 1)
    assert [(await line.admit()).count for _ in range(2)] == [1, 0]
    await line.check()


async def test_no_more_are_admitted_in_a_minute_than_the_rate(line: Line) -> None:
    await line.set(admitted_per_minute_max=2)
    await line.joined("ann", "bob", "cat", "dan")
    assert [(await line.admit()).count for _ in range(2)] == [2, 0]
    # The whole of the sixtieth second after it may lie within one minute of what was admitted at its end.
    await line.age(60_000)
    assert (await line.admit()).count == 0
    await line.age(1_000)
    assert [(await line.admit()).count for _ in range(2)] == [2, 0]
    assert len(await line.fields("admissions")) == 1  # older seconds are trimmed
    await line.check()


async def test_one_call_looks_at_no_more_people_than_it_is_told(line: Line) -> None:
    await line.joined(*[f"p{number}" for number in range(7)])
    await line.signs(*[(f"p{number}", number + 1, 1000) for number in range(4)])
    await line.age(2_000)
    first, second, third = [await line.admit(3) for _ in range(3)]
    assert (first.count, first.skipped, first.serving, first.more) == (0, 3, 3, 1)
    assert (second.count, second.skipped, second.serving) == (2, 1, 6)
    assert (third.count, third.skipped, third.serving, third.more) == (1, 0, 7, 0)
    await line.check()


async def test_the_absent_are_passed_over_and_nobody_noted_counts_as_alive(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.signs(("ann", 1, 1_000), ("bob", 2, 90_000))
    await line.age(2_000)
    assert (await line.admit()).skipped == 1
    assert (await line.scores("active")).keys() == {user("bob"), user("cat")}
    assert (await line.scores("skipped")).keys() == {user("ann")}
    assert await line.join("ann") == Joined(1, 0, "WAITING")
    await line.check()


async def test_the_first_deadline_is_the_promised_poll_and_the_entry_time(line: Line) -> None:
    await line.joined("ann", "bob")
    await line.signs(("ann", 1, 20_000 + GRACE_MS))
    before = await line.now_ms()
    await line.admit()
    after = await line.now_ms()
    deadlines = await line.scores("active")
    assert 20_000 + 120_000 - 1000 <= deadlines[user("ann")] - before <= 20_000 + 120_000
    # Of bob nothing was noted: the longest poll that is ever promised is assumed.
    assert before <= deadlines[user("bob")] - POLL_MAX_MS - 120_000 <= after


async def test_who_does_not_enter_is_skipped_keeps_priority_and_then_expires(line: Line) -> None:
    await line.set(active_max=1)
    await line.joined("ann", "bob")
    await line.admit()
    await line.age(POLL_MAX_MS + 120_000)
    assert (await line.admit()).skipped == 1
    assert (await line.scores("active")).keys() == {user("bob")}
    assert await line.join("ann") == Joined(1, 0, "WAITING")
    await line.check()
    await line.age(300_000)
    assert (await line.admit()).expired == 1
    assert (await line.told())[-1] == ("ended", "1", user("ann"), "EXPIRED")
    assert _status(await line.enter("ann", 1)) == ("EXPIRED", 1)
    assert (await line.admit()).expired == 0
    await line.check()


async def test_a_session_lapses_and_frees_its_slot(line: Line) -> None:
    await line.set(active_max=1)
    await line.joined("ann", "bob")
    await line.admit()
    await line.enter("ann", 1)
    await line.age(599_000)
    assert (await line.admit()).count == 0
    await line.age(1_000)
    admitted = await line.admit()
    assert (admitted.expired, admitted.count) == (1, 1)
    await line.check()


async def test_lapsed_tokens_are_ended_no_more_at_once_than_told(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.admit()
    for number, name in enumerate(("ann", "bob", "cat"), 1):
        await line.enter(name, number)
    await line.age(600_000)
    assert [((done := await line.admit(2)).expired, done.more) for _ in range(3)] == [(2, 1), (1, 0), (0, 0)]
    await line.check()


async def test_people_who_came_back_are_admitted_before_the_line_under_both_caps(line: Line) -> None:
    await line.set(active_max=2, admitted_per_minute_max=3)
    await line.joined("ann", "bob", "cat", "dan")
    await line.admit()
    await line.age(POLL_MAX_MS + 120_000)
    await line.set(room="paused")
    assert (await line.admit()).skipped == 2
    assert _status(await line.enter("bob", 2)) == ("WAITING", 2)
    assert _status(await line.enter("ann", 1)) == ("WAITING", 1)
    assert (await line.enter("bob", 2)).ahead == 1
    await line.set(room="open")
    assert (await line.admit()).count == 2
    assert (await line.scores("active")).keys() == {user("ann"), user("bob")}
    assert (await line.told())[-1] == ("admitted", "1,2")
    await line.leave("ann", 1)
    await line.leave("bob", 2)
    assert (await line.admit()).count == 1  # the rate counts people who came back
    assert await line.term("serving") == 3
    await line.check()


async def test_somebody_who_came_back_and_went_again_is_passed_over_again(line: Line) -> None:
    await line.joined("ann", "bob")
    await line.admit(1)
    await line.age(POLL_MAX_MS + 120_000)
    await line.set(room="paused")
    await line.admit()
    await line.enter("ann", 1, overdue_in_ms=1_000)
    await line.age(2_000)
    await line.set(room="open")
    admitted = await line.admit()
    assert (admitted.count, admitted.skipped) == (1, 1)
    assert (await line.scores("active")).keys() == {user("bob")}
    await line.check()


@pytest.mark.parametrize("room", ["prequeue", "paused", "closed", "off", "bypass"])
async def test_these_rooms_admit_nobody(line: Line, room: str) -> None:
    await line.joined("ann")
    await line.set(room=room)
    assert (await line.admit()).count == 0
    await line.set(room="open")
    assert (await line.admit()).count == 1


async def test_a_draining_room_admits_up_to_its_cut_off(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.set(room="draining", draining_no=2)
    assert [(await line.admit()).count for _ in range(2)] == [2, 0]
    await line.check()


async def test_serving_never_goes_back(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.admit(2)
    await line.age(POLL_MAX_MS + 120_000)
    await line.admit(1)
    await line.enter("ann", 1)
    await line.leave("cat", 3)
    assert (await line.admit()).serving == 3
    assert await line.term("serving") == 3
    await line.check()


async def test_ended_tokens_answer_for_an_hour_and_then_nothing_of_them_is_left(line: Line) -> None:
    await line.joined("vic", "bob")
    await line.tie("vic", "ann", 1)
    await line.leave("ann", 1)
    await line.age(HOUR_MS - 2_000)
    await line.admit()
    assert _status(await line.enter("ann", 1)) == ("LEFT", 1)
    assert _status(await line.enter("vic", 1)) == ("LEFT", 1)
    await line.age(2_000)
    await line.admit()
    assert await line.enter("ann", 1) == NotFound()
    for name in ("ended_tokens", "ties"):
        assert await line.fields(name) == {}
    assert await line.scores("gone") == {}
    await line.check()


async def test_departures_are_trimmed_once_the_line_has_passed_them(line: Line) -> None:
    await line.joined("ann", "bob", "cat", "dan", "eve")
    for name, queue_no in (("dan", 4), ("bob", 2)):
        await line.leave(name, queue_no)
    await line.admit(2)
    assert (await line.scores("gone")).keys() == {"4"}
    await line.admit(100)
    assert await line.scores("gone") == {}
    await line.check()


# --- enter ------------------------------------------------------------------------------------------------------------


async def test_entering_starts_the_session_once(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    first = await line.enter("ann", 1)
    assert first.status == "ACTIVE"
    assert 0 <= await line.now_ms() + 600_000 - first.expires_at_ms <= 2_000
    await line.age(1_000)
    second = await line.enter("ann", 1)
    assert second.expires_at_ms == first.expires_at_ms - 1_000  # aged with the rest: polls renew nothing
    assert (await line.fields("tokens"))[user("ann")].split("|")[2] == "1"


async def test_entering_before_ones_turn_tells_ones_place(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    for _ in range(2):
        assert await line.enter("cat", 3) == Token("WAITING", 3, 2, 0)
    assert await line.scores("alive") == {}  # far from the front nothing is written
    await line.check()


async def test_another_persons_number_is_not_found(line: Line) -> None:
    await line.joined("ann")
    assert await line.enter("bob", 1) == NotFound()
    assert await line.enter("ann", 2) == NotFound()
    assert await line.leave("bob", 1) == NotFound()
    await line.leave("ann", 1)
    assert await line.enter("bob", 1) == NotFound()
    assert await line.leave("bob", 1) == NotFound()


async def test_entering_an_instant_too_late_leads_back_into_the_line_without_a_tick(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    await line.age(POLL_MAX_MS + 120_000)
    assert _status(await line.enter("ann", 1)) == ("WAITING", 1)
    assert (await line.scores("returned")).keys() == {user("ann")}
    await line.check()


async def test_a_lapsed_recall_is_over_without_a_tick(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    await line.age(POLL_MAX_MS + 120_000 + 300_000)
    assert _status(await line.enter("ann", 1)) == ("EXPIRED", 1)
    assert await line.join("ann") == Joined(2, 1, "WAITING")
    await line.check()


async def test_only_the_first_hold_enters_and_each_hold_renews(line: Line) -> None:
    await _price(line, "A-1-1", "A-1-2")
    await line.joined("ann")
    await line.admit()
    assert isinstance(await _hold(line, "ann", 1, "A-1-1"), seats.Held)
    session = (await line.scores("active"))[user("ann")]
    assert abs(session - await line.now_ms() - 600_000) < 2_000
    await line.age(300_000)
    assert isinstance(await _hold(line, "ann", 1, "A-1-2"), seats.Held)
    assert (await line.scores("active"))[user("ann")] > session - 300_000
    await line.check()


@pytest.mark.parametrize("who", ["waiting", "foreign", "wrong number", "lapsed", "skipped", "ended", "none"])
async def test_nobody_holds_without_an_active_token_of_their_own(line: Line, who: str) -> None:
    await _price(line, "A-1-1")
    await line.joined("ann", "bob")
    queue_no, name = 1, "ann"
    if who != "waiting":
        await line.admit(1)
    match who:
        case "foreign":
            name = "bob"
        case "wrong number":
            queue_no = 2
        case "lapsed":
            await line.enter("ann", 1)
            await line.age(600_000)
        case "skipped":
            await line.age(POLL_MAX_MS + 120_000)
            await line.admit()
        case "ended":
            await line.leave("ann", 1)
        case "none":
            queue_no = 0
    assert await _hold(line, name, queue_no, "A-1-1") == seats.NotAdmitted()


async def test_a_session_lasts_as_long_as_the_payment(line: Line) -> None:
    await line.set(session_ms=10_000)
    await _price(line, "A-1-1")
    await line.joined("ann")
    await line.admit()
    held = await _hold(line, "ann", 1, "A-1-1")
    assert isinstance(held, seats.Held)
    await seats.pay(
        line.gate, line.sale, hold_id=ids.derive("ann", "A-1-1"), buyer_id=user("ann"), payment_id=ids.derive("pay")
    )
    assert (await line.scores("active"))[user("ann")] >= await line.now_ms() + 590_000
    await line.age(60_000)
    assert (await line.admit()).expired == 0


async def test_buying_ends_the_number_it_was_bought_with_and_no_other(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    await line.enter("ann", 1)
    await _buy(line, "ann", 1)
    assert _status(await line.enter("ann", 1)) == ("PROCESSED", 1)
    assert await line.joined("ann") == [2]
    await line.admit()
    assert _status(await line.enter("ann", 2)) == ("ACTIVE", 2)
    assert _status(await line.enter("ann", 1)) == ("PROCESSED", 1)
    await line.check()


# --- after a sale that could not stand --------------------------------------------------------------------------------


async def test_after_a_sale_that_could_not_stand_its_number_goes_next(line: Line) -> None:
    await line.set(active_max=1)
    await line.joined("ann", "bob", "cat")
    await line.admit()
    await line.enter("ann", 1)
    await _buy(line, "ann", 1)
    for _ in range(2):
        await _restore(line, "ann")
    assert _status(await line.enter("ann", 1)) == ("WAITING", 1)
    assert [entry for entry in await line.told() if entry[0] == "returned"] == [("returned", "1")]
    await line.admit()
    assert (await line.scores("active")).keys() == {user("ann")}
    await line.check()


async def test_who_has_joined_anew_does_not_go_next(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    await line.enter("ann", 1)
    await _buy(line, "ann", 1)
    await line.joined("ann")
    await _restore(line, "ann")
    assert _status(await line.enter("ann", 1)) == ("PROCESSED", 1)
    assert await line.join("ann") == Joined(2, 0, "WAITING")
    await line.check()


async def test_who_left_does_not_go_next(line: Line) -> None:
    await _price(line, "A-1-1")
    await line.joined("ann")
    await line.admit()
    await _hold(line, "ann", 1, "A-1-1")
    await line.leave("ann", 1)
    await _pay_and_confirm(line, "ann", "A-1-1")
    await _restore(line, "ann")
    assert _status(await line.enter("ann", 1)) == ("LEFT", 1)


# --- leave ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["WAITING", "ACTIVE", "SKIPPED", "RETURNED"])
async def test_whoever_leaves_is_gone_wherever_they_stood(line: Line, status: str) -> None:
    await line.joined("ann", "bob")
    if status != "WAITING":
        await line.admit(1)
    if status in {"SKIPPED", "RETURNED"}:
        await line.age(POLL_MAX_MS + 120_000)
        await line.set(room="paused")
        await line.admit()
    if status == "RETURNED":
        await line.enter("ann", 1)
    for _ in range(2):
        assert await line.leave("ann", 1) == Left(1, "LEFT")
    assert [entry for entry in await line.told() if entry[0] == "ended"] == [("ended", "1", user("ann"), "LEFT")]
    assert (await line.scores("gone")).keys() == ({"1"} if status == "WAITING" else set())
    await line.check()


async def test_leaving_after_the_end_answers_how_it_ended(line: Line) -> None:
    await line.joined("ann")
    await line.admit()
    await line.enter("ann", 1)
    await line.age(600_000)
    assert await line.leave("ann", 1) == Left(1, "EXPIRED")


# --- ties -------------------------------------------------------------------------------------------------------------


async def test_the_first_signed_in_use_makes_a_visitors_place_the_users(line: Line) -> None:
    await line.joined("vic", "bob")
    for _ in range(2):
        assert await line.tie("vic", "ann", 1) == Tied(1, "WAITING")
    assert await line.scores("waiting") == {user("ann"): 1, user("bob"): 2}
    assert (await line.told())[-1] == ("tied", "1", user("ann"))
    assert await line.join("vic") == Joined(1, 0, "WAITING")  # the browser still finds it
    assert _status(await line.enter("vic", 1)) == ("WAITING", 1)
    await line.check()


@pytest.mark.parametrize("status", ["ACTIVE", "SKIPPED", "RETURNED"])
async def test_a_called_token_keeps_status_and_deadline_when_it_is_tied(line: Line, status: str) -> None:
    await line.joined("vic")
    await line.admit()
    if status != "ACTIVE":
        await line.age(POLL_MAX_MS + 120_000)
        await line.set(room="paused")
        await line.admit()
    if status == "RETURNED":
        await line.enter("vic", 1)
    name = status.lower()
    before = (await line.scores(name))[visitor("vic")]
    record = (await line.fields("tokens"))[visitor("vic")]
    await line.tie("vic", "ann", 1)
    assert await line.scores(name) == {user("ann"): before}
    assert await line.fields("tokens") == {user("ann"): record}
    await line.check()


@pytest.mark.parametrize(
    ("order", "called", "kept"),
    [
        (("vic", "ann"), 0, 1),  # the lower number, here the visitor's
        (("ann", "vic"), 0, 1),  # and here the user's own
        (("vic", "ann"), 1, 1),  # the ACTIVE one
        (("ann", "vic"), 1, 1),
        (("vic", "ann"), 2, 1),  # both are ACTIVE: the lower number
    ],
)
async def test_a_user_with_two_tokens_keeps_the_active_one_else_the_lower_number(
    line: Line, order: tuple[str, str], called: int, kept: int
) -> None:
    numbers = dict(zip(order, await line.joined(*order), strict=True))
    if called:
        await line.admit(called)
    for _ in range(2):
        tied = await line.tie("vic", "ann", numbers["vic"])
        assert tied == Tied(kept, "ACTIVE" if called else "WAITING")
    # Either number leads to the one that was kept, also from the browser that knows the other.
    for name, queue_no in numbers.items():
        assert _status(await line.enter(name, queue_no))[1] == kept
    assert await line.join("vic") == await line.join("ann")
    gave_way = ({1, 2} - {kept}).pop()
    assert ("ended", str(gave_way), owner_of(order[gave_way - 1]), "LEFT") in await line.told()
    await line.check()


async def test_the_active_token_is_kept_although_its_number_is_higher(line: Line) -> None:
    await line.joined("ann", "vic")
    await line.signs(("ann", 1, 1_000))
    await line.age(2_000)
    await line.admit()  # ann is passed over, vic is called
    assert await line.tie("vic", "ann", 2) == Tied(2, "ACTIVE")
    assert _status(await line.enter("ann", 1)) == ("ACTIVE", 2)
    await line.check()


async def test_two_browsers_of_one_user_follow_the_number_that_was_kept(line: Line) -> None:
    await line.joined("v1", "v2", "v3")
    await line.tie("v3", "ann", 3)
    await line.tie("v2", "ann", 2)
    await line.tie("v1", "ann", 1)
    for name, queue_no in (("v1", 1), ("v2", 2), ("v3", 3), ("ann", 3), ("ann", 1)):
        assert _status(await line.enter(name, queue_no)) == ("WAITING", 1)
    assert await line.leave("v3", 3) == Left(1, "LEFT")
    await line.age(HOUR_MS)
    await line.admit()
    assert await line.fields("ties") == {}
    await line.check()


async def test_a_visitors_token_is_tied_to_one_user_only(line: Line) -> None:
    await line.joined("vic")
    await line.tie("vic", "ann", 1)
    assert await line.tie("vic", "bob", 1) == NotFound()
    await line.leave("ann", 1)
    assert await line.tie("vic", "bob", 1) == NotFound()
    assert await line.tie("vic", "ann", 1) == Tied(1, "LEFT")


async def test_after_the_token_has_ended_the_visitor_is_a_visitor_again(line: Line) -> None:
    await line.joined("vic")
    await line.tie("vic", "ann", 1)
    await line.leave("ann", 1)
    await line.joined("ann")
    assert await line.join("vic") == Joined(3, 1, "WAITING")
    assert _status(await line.enter("vic", 1)) == ("LEFT", 1)
    await line.check()


async def test_a_visitor_who_never_joined_cannot_be_tied(line: Line) -> None:
    await line.joined("ann")
    assert await line.tie("vic", "bob", 1) == NotFound()


async def test_a_user_keeps_the_ties_of_the_newest_browsers_only(line: Line) -> None:
    for number in range(1, 12):
        await line.joined(f"v{number}")
        await line.tie(f"v{number}", "ann", number)
    ties = await line.fields("ties")
    assert len(ties) == 9  # eight browsers, and the list of them
    assert ties[user("ann")].split(",")[-1] == visitor("v11")
    await line.check()


# --- after the store was lost -----------------------------------------------------------------------------------------


async def test_a_signed_number_is_put_back_at_its_own_place(line: Line) -> None:
    await line.joined("ann", "bob")
    await line.lose()
    assert await line.joined("cat") == [1_000_001]
    for _ in range(2):
        assert await line.put_back("bob", 2) == PutBack(2, "WAITING")
    assert await line.put_back("ann", 1) == PutBack(1, "WAITING")
    await line.admit(2)
    assert (await line.scores("active")).keys() == {user("ann"), user("bob")}
    assert await line.put_back("ann", 1) == PutBack(1, "ACTIVE")
    await line.check()


async def test_a_number_behind_serving_is_put_back_at_the_head(line: Line) -> None:
    await line.joined("ann", "bob")
    await line.lose()
    await line.set(serving=2)
    await line.joined("cat")
    await line.put_back("bob", 2)
    assert await line.enter("bob", 2) == Token("WAITING", 2, 0, 0)
    assert (await line.scores("alive")).keys() == {"2"}
    await line.admit(1)
    assert (await line.scores("active")).keys() == {user("bob")}
    assert await line.term("serving") == 2


async def test_of_an_owner_who_has_joined_anew_the_lower_number_stands(line: Line) -> None:
    await line.joined("ann")
    await line.lose()
    await line.joined("ann")
    for _ in range(2):
        assert await line.put_back("ann", 1) == PutBack(1, "WAITING")
    assert await line.scores("waiting") == {user("ann"): 1}
    assert _status(await line.enter("ann", 1_000_001)) == ("WAITING", 1)
    assert [entry[:2] for entry in await line.told()] == [("joined", "1000001"), ("ended", "1000001"), ("joined", "1")]
    await line.check()


async def test_of_two_old_numbers_the_lower_stands(line: Line) -> None:
    await line.lose()
    await line.put_back("ann", 3)
    assert await line.put_back("ann", 5) == PutBack(3, "WAITING")
    assert await line.put_back("ann", 5) == PutBack(3, "WAITING")
    assert await line.scores("waiting") == {user("ann"): 3}


async def test_a_called_token_stands_against_an_old_number(line: Line) -> None:
    await line.joined("ann")
    await line.lose()
    await line.joined("ann")
    await line.admit()
    assert await line.put_back("ann", 1) == PutBack(1_000_001, "ACTIVE")
    assert _status(await line.enter("ann", 1)) == ("ACTIVE", 1_000_001)
    await line.check()


async def test_a_number_known_as_ended_is_not_put_back(line: Line) -> None:
    await line.joined("ann")
    await line.lose()
    await line.redis.hset(line.sale.keys.ended_tokens, "1", f"PROCESSED|{user('ann')}")
    await line.redis.zadd(line.sale.keys.ended_tokens_at, {"1": await line.now_ms()})
    assert await line.put_back("ann", 1) == PutBack(1, "PROCESSED")
    assert await line.scores("waiting") == {}


async def test_a_number_that_was_never_given_is_not_put_back(line: Line) -> None:
    await line.joined("ann")
    assert await line.put_back("bob", 2) == NotFound()


async def test_a_tie_is_put_back_with_its_number(line: Line) -> None:
    await line.joined("vic")
    await line.tie("vic", "ann", 1)
    await line.lose()
    await line.put_back("ann", 1, "vic")
    assert await line.join("vic") == Joined(1, 0, "WAITING")
    assert _status(await line.enter("vic", 1)) == ("WAITING", 1)


async def test_a_number_that_its_visitor_put_back_is_handed_to_the_user_and_stands_once(line: Line) -> None:
    await line.joined("vic", "bob")
    await line.lose()
    # One tab asks before anybody signs in; the other does so with the same old token, and a later copy of it again.
    assert await line.put_back("vic", 1) == PutBack(1, "WAITING")
    for _ in range(2):
        assert await line.put_back("ann", 1, "vic") == PutBack(1, "WAITING")
    assert await line.scores("waiting") == {user("ann"): 1}
    assert await line.join("vic") == Joined(1, 0, "WAITING")
    assert (await line.told())[1:] == [("tied", "1", user("ann"))]
    # Somebody else who signs in there has no part in it.
    assert await line.put_back("bob", 1, "vic") == NotFound()
    await line.check()


async def test_of_a_users_own_number_and_their_visitors_the_lower_stands_when_both_are_put_back(line: Line) -> None:
    await line.joined("ann", "vic")
    await line.lose()
    await line.put_back("vic", 2)
    await line.put_back("ann", 1)
    for _ in range(2):
        assert await line.put_back("ann", 2, "vic") == PutBack(1, "WAITING")
    assert await line.scores("waiting") == {user("ann"): 1}
    await line.check()


async def test_nobody_is_put_back_while_postgres_is_too_far_behind(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.lose()
    await line.set(backlog_max=1)
    await line.put_back("ann", 1)
    await line.put_back("bob", 2)
    assert await line.put_back("cat", 3) == Busy(1000)
    assert await line.put_back("ann", 1) == PutBack(1, "WAITING")


# --- signs and snapshots ----------------------------------------------------------------------------------------------


async def test_signs_are_noted_of_those_who_still_wait(line: Line) -> None:
    await line.joined("ann", "bob", "cat")
    await line.admit(1)
    await line.leave("cat", 3)
    signs = [("ann", 1, 1000), ("bob", 2, 5000), ("cat", 3, 1000), ("dan", 4, 1000), ("bob", 7, 1000)]
    for _ in range(2):
        assert await line.signs(*signs) == waiting_room.Signs(1)
    assert (await line.scores("alive")).keys() == {"2"}
    await line.check()


async def test_a_snapshot_tells_the_room_and_what_changed_since(line: Line) -> None:
    await line.joined("ann", "bob", "cat", "dan", "eve")
    await line.admit(1)
    await line.leave("dan", 4)
    await line.leave("bob", 2)
    await line.leave("ann", 1)
    for _ in range(2):
        seen = await line.snapshot()
        assert (seen.room, seen.serving, seen.queue_no, seen.waiting, seen.behind) == ("open", 1, 5, 2, 2)
        assert (seen.active, seen.returned, seen.admitted, seen.gone_seq, seen.more) == (0, 0, 1, 2, 0)
        assert seen.queue_nos[: seen.gone_count] == ("4", "2")
        assert set(seen.queue_nos[seen.gone_count :]) == {"1", "2", "4"}
    later = await line.snapshot(gone_seq=1, ended_since_ms=await line.now_ms() + 60_000)
    assert (later.queue_nos, later.gone_count) == (("2",), 1)


async def test_a_snapshot_names_departures_in_portions(line: Line) -> None:
    await line.joined("ann", "bob", "cat", "dan")
    for name, queue_no in (("cat", 3), ("ann", 1), ("bob", 2)):
        await line.leave(name, queue_no)
    far = await line.now_ms() + 60_000
    first = await line.snapshot(most=2, ended_since_ms=far)
    assert (first.queue_nos, first.gone_seq, first.more) == (("3", "1"), 2, 1)
    second = await line.snapshot(gone_seq=first.gone_seq, most=2, ended_since_ms=far)
    assert (second.queue_nos, second.gone_seq, second.more) == (("2",), 3, 0)


# --- builders ---------------------------------------------------------------------------------------------------------


async def _price(line: Line, *seat_nos: str) -> None:
    await line.redis.hset(line.sale.keys.prices, mapping=dict.fromkeys(seat_nos, 100))


async def _hold(line: Line, name: str, queue_no: int, seat_no: str) -> Any:
    return await seats.hold(
        line.gate,
        line.sale,
        hold_id=ids.derive(name, seat_no),
        buyer_id=user(name),
        queue_no=queue_no,
        seat_nos=(seat_no,),
        fingerprint="f" * 16,
    )


async def _pay_and_confirm(line: Line, name: str, seat_no: str) -> None:
    hold_id, payment_id = ids.derive(name, seat_no), ids.derive("payment", name)
    paying = await seats.pay(line.gate, line.sale, hold_id=hold_id, buyer_id=user(name), payment_id=payment_id)
    assert isinstance(paying, seats.Paying), paying
    confirmed = await seats.confirm(line.gate, line.sale, hold_id=hold_id, fence=paying.fence, payment_id=payment_id)
    assert isinstance(confirmed, seats.Confirmed), confirmed


async def _buy(line: Line, name: str, queue_no: int) -> None:
    """Hold, pay and confirm one seat with this number."""
    await _price(line, "A-1-1")
    held = await _hold(line, name, queue_no, "A-1-1")
    assert isinstance(held, seats.Held), held
    await _pay_and_confirm(line, name, "A-1-1")


async def _restore(line: Line, name: str) -> None:
    """Give back the seat of a sale that Postgres refused; its number goes next."""
    found = await seats.find(line.gate, line.sale, hold_id=ids.derive(name, "A-1-1"))
    assert isinstance(found, seats.Hold)
    await seats.restore(
        line.gate,
        line.sale,
        hold_id=found.hold_id,
        fence=found.fence,
        buyer_id=user(name),
        reason="LATE_UNFULFILLABLE",
        goes_next=True,
        claims=(seats.Claim(seat_no="A-1-1"),),
    )
