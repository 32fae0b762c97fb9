"""What is freed for a waiting list, on Valkey, on fakeredis and in plain Python: any difference is a bug."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from engine import ids, sales, seat_waiting_lists, seats, waiting_lists
from engine.refusals import LimitReached
from engine.stores import embedded
from engine.stores.replies import Reply
from tests.engine.offered_halls import Area, OfferedHall, Row, open_offered
from tests.engine.seat_sales import buyer
from tests.engine.two_stores import TwoStores, try_out

ROWS = (Row("A", "1", "FFFAFF"), Row("V", "1", "FF", block=1))
LAWN = Area("Lawn", 2)
SEATS = ("A-1-1", "A-1-2", "A-1-3", "A-1-4", "A-1-5", "A-1-6", "Lawn-GA-1", "Lawn-GA-2")
NAMED = SEATS[:6]
LIMIT = 3

WHO = st.sampled_from(("ann", "bob", "cat"))
SOME = st.lists(st.sampled_from(SEATS), min_size=1, max_size=3, unique=True)
SOME_NAMED = st.lists(st.sampled_from(NAMED), min_size=1, max_size=2, unique=True)

TIMES = {"expires_at_ms", "created_at_ms", "now_ms"}


class Lists(TwoStores[OfferedHall]):
    """A hall in which a waiting list comes and goes, and what people do in it."""

    def __init__(self) -> None:
        super().__init__()
        self.has_list = False
        self.holds: dict[str, tuple[str, list[str]]] = {}
        self.ended: set[str] = set()
        self.shelf: list[str] = []
        self.made = 0

    async def open(self, redis: Any, *, shebang: bool) -> OfferedHall:
        return await open_offered(
            redis, *ROWS, areas=(LAWN,), blocks={1: "|fans|0|0"}, shebang=shebang, per_buyer_max=LIMIT, offer_ms=60_000
        )

    def timeless(self, answer: Any) -> Any:
        if isinstance(answer, seat_waiting_lists.Freed):
            return sorted(answer.since)
        if isinstance(answer, Reply):
            return type(answer), {k: v for k, v in msgspec.structs.asdict(answer).items() if k not in TIMES}
        return answer

    # What the model knows.

    def taken(self) -> dict[str, str]:
        held = {seat_no: "held" for _, seat_nos in self.holds.values() for seat_no in seat_nos}
        return held | dict.fromkeys(self.shelf, "blocked")

    def have(self, by: str) -> int:
        return sum(len(seat_nos) for who, seat_nos in self.holds.values() if who == by)

    def free(self, seat_nos: Sequence[str]) -> None:
        if self.has_list:
            self.shelf += seat_nos

    # What people do.

    @rule(by=WHO, seat_nos=SOME_NAMED)
    def hold(self, by: str, seat_nos: list[str]) -> None:
        self.made += 1
        hold_id = ids.derive("hold", str(self.made))
        reply = self.on_both(lambda hall: hall.hold(*seat_nos, by=by, id_=hold_id))
        taken = self.taken()
        mine = {seat_no for who, held in self.holds.values() if who == by for seat_no in held}
        conflicts = tuple(
            [f"{seat_no} {'yours' if seat_no in mine else taken[seat_no]}" for seat_no in seat_nos if seat_no in taken]
        )
        if conflicts:
            assert reply == seats.SeatTaken(conflicts)
        elif self.have(by) + len(seat_nos) > LIMIT:
            assert reply == LimitReached(LIMIT, self.have(by))
        else:
            assert isinstance(reply, seats.Held)
            self.holds[hold_id] = (by, list(seat_nos))

    @rule(data=st.data(), what=st.sampled_from(("all", "one")))
    def release(self, data: st.DataObject, what: str) -> None:
        if not self.holds:
            return
        hold_id = data.draw(st.sampled_from(sorted(self.holds)))
        by, held = self.holds[hold_id]
        named = [] if what == "all" else held[:1]
        self.made += 1

        async def give_back(hall: OfferedHall) -> Any:
            return await seats.release(
                hall.gate,
                hall.sale,
                hold_id=hold_id,
                buyer_id=buyer(by),
                release_id=ids.derive("release", str(self.made)),
                fingerprint="",
                seat_nos=named,
            )

        assert isinstance(self.on_both(give_back), seats.Released)
        gone = named or held
        self.holds[hold_id] = (by, [seat_no for seat_no in held if seat_no not in gone])
        self.free(gone)
        if not self.holds[hold_id][1]:
            del self.holds[hold_id]
            self.ended.add(hold_id)

    @rule(data=st.data())
    def lapse_and_sweep(self, data: st.DataObject) -> None:
        if not self.holds:
            return
        hold_id = data.draw(st.sampled_from(sorted(self.holds)))
        self.on_both(lambda hall: hall.lapse(hold_id))
        reply = self.on_both(lambda hall: seats.expire(hall.gate, hall.sale, most=5))
        assert reply == seats.Expired(1, 0, 0)
        self.free(self.holds.pop(hold_id)[1])
        self.ended.add(hold_id)

    # What the list does.

    @rule(somebody_waits=st.sampled_from((0, 1)))
    def begin_or_end(self, somebody_waits: int) -> None:
        self.on_both(lambda hall: hall.set(waiting_list=somebody_waits))
        self.has_list = somebody_waits == 1

    @rule(by=WHO, seat_nos=SOME, new=st.sampled_from((0, 1)))
    def offer(self, by: str, seat_nos: list[str], new: int) -> None:
        self.made += new
        hold_id = ids.derive("offer", str(self.made))

        async def ask(hall: OfferedHall) -> Any:
            return await sales.ask(
                hall.gate,
                hall.sale,
                seat_waiting_lists.OFFER,
                hold_id=hold_id,
                buyer_id=buyer(by),
                fingerprint="o" * 16,
                seat_nos=seat_nos,
            )

        reply = self.on_both(ask)
        taken = self.taken()
        conflicts = tuple(
            [f"{seat_no} {taken.get(seat_no, 'free')}" for seat_no in seat_nos if seat_no not in self.shelf]
        )
        if hold_id in self.holds or hold_id in self.ended:
            assert reply == seats.HoldKnown("HELD" if hold_id in self.holds else "ENDED")
        elif conflicts:
            assert reply == seats.SeatTaken(conflicts)
        elif self.have(by) + len(seat_nos) > LIMIT:
            assert reply == LimitReached(LIMIT, self.have(by))
        else:
            assert isinstance(reply, waiting_lists.Offered)
            assert reply.amount == 50_000 * len(seat_nos)
            self.shelf = [seat_no for seat_no in self.shelf if seat_no not in seat_nos]
            self.holds[hold_id] = (by, list(seat_nos))

    @rule(seat_nos=SOME)
    def publish(self, seat_nos: list[str]) -> None:
        reply = self.on_both(
            lambda hall: sales.ask(hall.gate, hall.sale, seat_waiting_lists.PUBLISH, seat_nos=seat_nos)
        )
        assert reply == seat_waiting_lists.Published(len(set(seat_nos) & set(self.shelf)))
        self.shelf = [seat_no for seat_no in self.shelf if seat_no not in seat_nos]

    # Always.

    @invariant()
    def the_shelf_is_what_was_freed(self) -> None:
        freed = self.on_both(lambda hall: sales.ask(hall.gate, hall.sale, seat_waiting_lists.FREED, most=100))
        assert sorted(freed.since) == sorted(self.shelf)
        assert freed.left == 0

    @invariant()
    def every_seat_stands_as_the_model_has_it(self) -> None:
        standing = self.on_both(lambda hall: hall.statuses())
        assert {seat_no: state.lower() for seat_no, state in standing.items()} == self.taken()
        self.on_both(lambda hall: hall.check())


@pytest.mark.timeout(600)
def test_what_is_freed_goes_the_same_way_in_both_stores_and_in_the_model(valkey_server: embedded.Server) -> None:
    try_out(Lists, valkey_server, examples=40, steps=40)
