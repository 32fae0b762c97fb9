"""Seats, places, tiers, blocks and the best seats on Valkey, on fakeredis and in plain Python: any difference is a bug.

All that `test_seats_model` does to eight seats goes on here, in a hall with a floor, between wishes of every kind.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from engine import ids, map_changes, seats, wishes
from engine.refusals import LimitReached
from engine.stores import embedded
from engine.stores.replies import Reply
from engine.wishes import AreaLine, SeatLine
from tests.engine.offered_halls import Area, OfferedHall, Row, Unit, open_offered
from tests.engine.seat_sales import Hall, buyer
from tests.engine.test_best_available import floor_of, judge
from tests.engine.test_seats_model import BLOCKED, LIMIT, NAMES, SEATS, UNKNOWN, Seats, Wish
from tests.engine.two_stores import try_out

ROWS = (
    Row("A", "1", "FFFFFFFF", "STD"),
    Row("B", "1", "F", "STD"),
    Row("C", "1", "FFAF", "GOLD"),
    Row("V", "1", "FFF", "STD", 1),
)
GOLD = tuple(f"C-1-{number}" for number in range(1, 5))
FANS = tuple(f"V-1-{number}" for number in range(1, 4))
LAWN, BAR = Area("Lawn", 3), Area("Bar", 2, block=1)
PLACES = {area.area: [f"{area.area}-GA-{number}" for number in range(1, area.quantity + 1)] for area in (LAWN, BAR)}
TIERS: dict[tuple[str, str], tuple[int, int | None]] = {
    ("child", "STD"): (10_000, 2),
    ("child", "GA"): (5_000, None),
    ("friend", "GOLD"): (1_000, 1),
}
CATEGORIES = {"STD": "1", "GOLD": "2", "GA": "3"}
CHANNEL = "fans"
NOT_NAMED = ("V-", "Lawn-", "Bar-")

LINES = st.lists(
    st.one_of(
        st.builds(
            SeatLine,
            st.sampled_from((*SEATS, *SEATS, *GOLD, *FANS, BLOCKED, UNKNOWN, "Lawn-GA-1")),
            st.sampled_from((None, None, "child", "friend")),
        ),
        st.builds(
            AreaLine,
            st.sampled_from(("Lawn", "Lawn", "Bar", "Moon")),
            st.integers(1, 2),
            st.sampled_from((None, "child")),
        ),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda line: line.seat_no if isinstance(line, SeatLine) else id(line),
)
BESTS = st.builds(
    wishes.Best,
    quantity=st.integers(1, 3),
    section=st.sampled_from((None, None, None, "A", "C")),
    category=st.sampled_from((None, None, "STD", "GOLD")),
    accessible=st.sampled_from((0, 0, 0, 1)),
)
SHOWN = st.sampled_from((None, None, CHANNEL, "others"))


def category_of(seat_no: str) -> str:
    return "GOLD" if seat_no in GOLD else "GA" if "-GA-" in seat_no else "STD"


class Wishes(Seats):
    """What buyers may wish for, beside what they may do by the numbers of seats."""

    valkey: OfferedHall
    fake: OfferedHall

    def __init__(self) -> None:
        super().__init__()
        self.line_tiers: dict[str, dict[str, str]] = {}

    async def open(self, redis: Any, *, shebang: bool) -> Hall:
        return await open_offered(
            redis,
            *ROWS,
            areas=(LAWN, BAR),
            tiers=TIERS,
            blocks={1: f"|{CHANNEL}|0|0"},
            kept=(BLOCKED,),
            shebang=shebang,
            per_buyer_max=LIMIT,
        )

    # What the model knows.

    def stands(self) -> dict[str, Wish | None]:
        """Whatever is not free, and the hold that it stands under."""
        standing: dict[str, Wish | None] = dict.fromkeys((*self.model.blocked, *self.model.bought), None)
        for wish in self.model.wishes.values():
            standing |= {} if wish.state == "ENDED" else dict.fromkeys(wish.seat_nos, wish)
        return standing

    def have(self, by: str) -> int:
        live = [wish for wish in self.model.wishes.values() if wish.by == by and wish.shown in {"HELD", "PAYING"}]
        return self.model.sold[by] + sum(len(wish.seat_nos) for wish in live)

    def counts(self) -> Counter[str]:
        """What counts against the caps."""
        counts: Counter[str] = Counter()
        for hold_id, tiers in self.line_tiers.items():
            wish = self.model.wishes.get(hold_id)
            if wish is None:
                held = [seat_no for seat_no in tiers if self.model.bought.get(seat_no, ("", 0))[0] == hold_id]
            else:
                held = [seat_no for seat_no in tiers if seat_no in wish.seat_nos and wish.state != "ENDED"]
            counts.update(f"{tiers[seat_no]}|{CATEGORIES[category_of(seat_no)]}" for seat_no in held)
        return counts

    def lapsed(self) -> list[Wish]:
        return [wish for wish in self.model.wishes.values() if wish.state == "HELD" and wish.lapsed]

    def end_lapsed(self, most: int = 1000) -> None:
        """As a sweep does: the longest lapsed first."""

        async def order(hall: Hall) -> list[str]:
            found = await hall.redis.zrangebyscore(hall.sale.keys.deadlines, 0, self.aged_ms, 0, most)
            return [hold_id.decode() for hold_id in found]

        for hold_id in self.on_both(order):
            self.model.end(self.model.wishes[hold_id], "EXPIRED")

    def begin(self, by: str) -> Reply | None:
        """What refuses anything that this buyer wishes."""

        async def look(hall: Hall) -> bool:
            room = await hall.redis.hget(hall.sale.keys.sale, "room")
            token = await hall.redis.hget(hall.sale.keys.tokens, buyer(by)) or b""
            return room == b"off" or token.startswith(b"ACTIVE|")

        return None if self.on_both(look) else seats.NotAdmitted()

    def keep(self, by: str, fingerprint: str, reply: Any) -> None:
        """What was held."""
        self.model.fence += 1
        assert reply.fence == self.model.fence
        hold_id = ids.derive("hold", str(self.made))
        self.model.wishes[hold_id] = Wish(
            hold_id, by, fingerprint, self.model.fence, [line.seat_no for line in reply.lines]
        )
        tiers = {line.seat_no: line.tier for line in reply.lines if line.tier}
        if tiers:
            self.line_tiers[hold_id] = tiers

    def _hold(self, hold_id: str, by: str, fingerprint: str, seat_nos: Sequence[str]) -> None:
        """By name, as the other model has it: neither places nor seats of a block, which it does not know."""
        super()._hold(
            hold_id, by, fingerprint, [each for each in seat_nos if not each.startswith(NOT_NAMED)] or SEATS[:1]
        )

    # What buyers wish.

    @rule(by=NAMES, lines=LINES, shown=SHOWN)
    def hold_lines(self, by: str, lines: list[SeatLine | AreaLine], shown: str | None) -> None:
        self.made += 1
        named = [line for line in lines if isinstance(line, SeatLine)]
        areas = [line for line in lines if isinstance(line, AreaLine)]
        wanted: Counter[str] = Counter()
        for area in areas:
            wanted[area.area] += area.quantity
        expected = self.begin(by) or self.judge_lines(by, named, areas, shown)
        before = self.stands()
        reply = self.ask(
            wishes.hold_lines,
            hold_id=ids.derive("hold", str(self.made)),
            buyer_id=buyer(by),
            fingerprint="w" * 16,
            lines=lines,
            channel=shown,
            queue_no=self.queue_nos.get(by, 0),
        )
        if expected is None and (short := self.shortages(wanted)):
            self.end_lapsed()  # they give way before anybody is told that there is too little
            before = self.stands()
            expected = seats.SoldOut(tuple(short)) if (short := self.shortages(wanted)) else None
        if expected is None:
            expected = self.judge_tiers(named, areas)
            if isinstance(expected, seats.SoldOut) and self.lapsed():
                self.end_lapsed()
                before = self.stands()
                expected = self.judge_tiers(named, areas)
        if expected is not None:
            assert reply == expected
            return
        if isinstance(reply, seats.Held):
            assert not areas
            reply = seats.HeldLines(
                reply.expires_at_ms,
                reply.fence,
                reply.amount,
                reply.created_at_ms,
                ",".join(line.seat_no for line in named),
                ",".join(reply.prices),
                "",
            )
        assert isinstance(reply, seats.HeldLines), reply
        for line in named:
            other = before.get(line.seat_no)
            if other is not None and other.state == "HELD":
                self.model.end(other, "EXPIRED")
        told = [(line.seat_no, line.tier) for line in reply.lines]
        places = iter(told[len(named) :])
        assert told[: len(named)] == [(line.seat_no, line.tier) for line in named]
        for area in areas:
            for _ in range(area.quantity):
                place, tier = next(places)
                assert (place in PLACES[area.area], place in before, tier) == (True, False, area.tier)
        self.keep(by, "w" * 16, reply)

    def judge_lines(self, by: str, named: list[SeatLine], areas: list[AreaLine], shown: str | None) -> Reply | None:
        """What refuses a wish before anybody looks for free places."""
        if unknown := [line.seat_no for line in named if line.seat_no == UNKNOWN or "-GA-" in line.seat_no]:
            return seats.SeatUnknown(tuple(unknown))
        if missing := tuple([f"area {line.area}" for line in areas if line.area == "Moon"]):
            return seats.OfferUnknown(missing)
        conflicts = [f"{line.area} blocked" for line in areas if line.area == "Bar" and shown != CHANNEL]
        standing = self.stands()
        for line in named:
            other = standing.get(line.seat_no)
            if line.seat_no in self.model.blocked or (line.seat_no in FANS and shown != CHANNEL):
                conflicts.append(f"{line.seat_no} blocked")
            elif line.seat_no in self.model.bought:
                conflicts.append(f"{line.seat_no} sold")
            elif other is not None and other.shown != "ENDED":
                conflicts.append(f"{line.seat_no} {'yours' if other.by == by else other.state.lower()}")
        if conflicts:
            return seats.SeatTaken(tuple(conflicts))
        have, more = self.have(by), len(named) + sum(line.quantity for line in areas)
        return LimitReached(limit=LIMIT, have=have) if have + more > LIMIT else None

    def shortages(self, wanted: Counter[str]) -> list[str]:
        standing = self.stands()
        left = {
            area: len([place for place in PLACES[area] if place not in standing]) for area in wanted if area != "Moon"
        }
        return [f"{wanted[area]} {left[area]} area {area}" for area in left if left[area] < wanted[area]]

    def judge_tiers(self, named: list[SeatLine], areas: list[AreaLine]) -> Reply | None:
        asked: Counter[tuple[str, str]] = Counter()
        for line in named:
            if line.tier:
                asked[line.tier, category_of(line.seat_no)] += 1
        for area in areas:
            if area.tier:
                asked[area.tier, "GA"] += area.quantity
        if unknown := tuple(f"tier {tier}" for tier, category in asked if (tier, category) not in TIERS):
            return seats.OfferUnknown(unknown)
        counts = self.counts()
        short = []
        for (tier, category), count in asked.items():
            cap = TIERS[tier, category][1]
            left = count if cap is None else cap - counts[f"{tier}|{CATEGORIES[category]}"]
            if left < count:
                short.append(f"{count} {left} tier {tier}")
        return seats.SoldOut(tuple(short)) if short else None

    @rule(by=NAMES, best=BESTS, shown=SHOWN)
    def hold_best(self, by: str, best: wishes.Best, shown: str | None) -> None:
        self.made += 1
        self.end_lapsed(4)  # whoever asks: their seats may be the best
        expected = self.begin(by)
        if expected is None and self.have(by) + best.quantity > LIMIT:
            expected = LimitReached(limit=LIMIT, have=self.have(by))
        eligible = tuple([unit for unit in self.valkey.units if not unit.row.block or shown == CHANNEL])
        if expected is None and not self.is_enough(eligible, best):
            self.end_lapsed()  # nobody hears that there are too few before these have given way
        reply = self.ask(
            wishes.hold_best,
            hold_id=ids.derive("hold", str(self.made)),
            buyer_id=buyer(by),
            fingerprint="b" * 16,
            best=best,
            channel=shown,
            queue_no=self.queue_nos.get(by, 0),
        )
        if expected is not None:
            assert reply == expected
            return
        judge(eligible, frozenset(self.stands()), best, reply)
        if isinstance(reply, wishes.HeldBest):
            self.keep(by, "b" * 16, reply)

    def is_enough(self, eligible: tuple[Unit, ...], best: wishes.Best) -> bool:
        """Whether so many seats are free as things stand."""
        taken = frozenset(self.stands())
        kinds = "".join(
            floor_of(unit, taken)
            for unit in eligible
            if best.section in {None, unit.row.section} and best.category in {None, unit.row.category}
        )
        free = kinds.count("F") + (kinds.count("A") if best.accessible else 0)
        return free >= best.quantity and kinds.count("A") >= best.accessible

    # Always.

    @invariant()
    def tiers_count_what_the_model_counts(self) -> None:
        assert self.on_both(_counts) == {key: count for key, count in self.counts().items() if count}

    @invariant()
    def the_hall_is_the_same_in_both_stores(self) -> None:
        self.on_both(_hall_of)

    @invariant()
    def the_map_tells_every_change(self) -> None:
        changes = self.ask(map_changes.read_changes, since=0, most=3)
        assert isinstance(changes, map_changes.MapChanges)
        public = {
            seat_no: "SOLD" if wish is None or wish.state == "SOLD" else "HELD"
            for seat_no, wish in self.stands().items()
            if seat_no not in (*self.model.blocked, *FANS, BLOCKED) and "-GA-" not in seat_no
        }
        # One was blocked from the beginning, which is no change.
        public |= dict.fromkeys(self.model.blocked - {BLOCKED}, "BLOCKED")
        told = {seat_no: status for seat_no, status in changes.statuses.items() if status != "FREE"}
        assert {seat_no: status for seat_no, status in told.items() if seat_no != BLOCKED} == public


async def _counts(hall: Any) -> dict[str, int]:
    counts: dict[str, int] = await hall.counts()
    return counts


async def _hall_of(hall: Any) -> list[Any]:
    """The floor, the places and what changed, byte for byte."""
    keys, redis = hall.sale.keys, hall.redis
    return [
        await redis.get(keys.floor),
        await redis.get(keys.bounds),
        await redis.zrange(keys.places, 0, -1, withscores=True),
        await redis.zrange(keys.map_changes, 0, -1, withscores=True),
    ]


@pytest.mark.timeout(600)
def test_wishes_are_fulfilled_alike_on_valkey_on_fakeredis_and_in_the_model(valkey_server: embedded.Server) -> None:
    try_out(Wishes, valkey_server, examples=40, steps=40)
