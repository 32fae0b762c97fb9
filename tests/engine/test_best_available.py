"""The best seats against a search in plain Python that looks at every possibility."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine import seats, wishes
from engine.stores import embedded
from engine.stores.connections import RedisClient, open_redis
from tests.engine.offered_halls import OfferedHall, Row, Unit, open_offered, units_of
from tests.engine.seat_sales import open_hall, together

# --- what is best -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Adjacent seats of one unit."""

    unit_no: int
    seat_nos: tuple[str, ...]
    orphans: int


def floor_of(unit: Unit, taken: frozenset[str]) -> str:
    """The unit as it stands: T for what is not free."""
    return "".join("T" if seat_no in taken else kind for seat_no, kind in zip(unit.seat_nos, unit.kinds, strict=True))


def lonely(floor: str) -> set[int]:
    """Free seats without a free neighbour."""
    free = {at for at, kind in enumerate(floor) if kind in "FA"}
    return {at for at in free if at - 1 not in free and at + 1 not in free}


def fits_of(units: list[tuple[int, Unit]], taken: frozenset[str], quantity: int, accessible: int) -> list[Fit]:
    """Everywhere that so many adjacent seats may be taken."""
    fits = []
    for unit_no, unit in units:
        floor = floor_of(unit, taken)
        for first in range(len(floor) - quantity + 1):
            window = floor[first : first + quantity]
            if set(window) <= (set("FA") if accessible else {"F"}) and window.count("A") >= accessible:
                after = floor[:first] + "T" * quantity + floor[first + quantity :]
                orphans = len(lonely(after) - lonely(floor))
                fits.append(Fit(unit_no, unit.seat_nos[first : first + quantity], orphans))
    return fits


def fewest_rows(units: list[tuple[int, Unit]], taken: frozenset[str], quantity: int) -> int:
    """In how few rows so many ordinary seats are free."""
    free: dict[str, int] = {}
    for _, unit in units:
        name = f"{unit.row.section}-{unit.row.row}"
        free[name] = free.get(name, 0) + floor_of(unit, taken).count("F")
    return next(
        count
        for count in range(1, len(free) + 1)
        if any(sum(chosen) >= quantity for chosen in combinations(free.values(), count))
    )


def judge(units: tuple[Unit, ...], taken: frozenset[str], best: wishes.Best, answer: object) -> None:
    """Assert that this is the answer of somebody who looked everywhere."""
    eligible = [
        (number, unit)
        for number, unit in enumerate(units)
        if best.section in {None, unit.row.section} and best.category in {None, unit.row.category}
    ]
    kinds = {
        seat_no: kind
        for _, unit in eligible
        for seat_no, kind in zip(unit.seat_nos, floor_of(unit, taken), strict=True)
        if kind == "F" or (kind == "A" and best.accessible)
    }
    if len(kinds) < best.quantity or list(kinds.values()).count("A") < best.accessible:
        assert answer == seats.SoldOut((f"{best.quantity} {len(kinds)} seats ",))
        return
    assert isinstance(answer, wishes.HeldBest), answer
    picked = [line.seat_no for line in answer.lines]
    assert len(picked) == len(set(picked)) == best.quantity
    assert set(picked) <= kinds.keys()
    assert [kinds[seat_no] for seat_no in picked].count("A") >= best.accessible
    after = taken | set(picked)
    assert answer.orphans == sum(
        len(lonely(floor_of(unit, after)) - lonely(floor_of(unit, taken))) for _, unit in eligible
    )
    assert answer.groups == sum(
        len(re.findall("X+", "".join("X" if seat_no in picked else "." for seat_no in unit.seat_nos)))
        for _, unit in eligible
    )

    fits = fits_of(eligible, taken, best.quantity, best.accessible)
    if not fits:
        assert answer.level == 3
        rows = {seat_no.rpartition("-")[0] for seat_no in picked}
        if not best.accessible:
            assert len(rows) == fewest_rows(eligible, taken, best.quantity)
        return
    whole = [fit for fit in fits if fit.orphans == 0]
    assert answer.level == (1 if whole else 2)
    first = min(fit.unit_no for fit in whole or fits)
    fewest = min(fit.orphans for fit in fits if fit.unit_no == first)
    assert tuple(picked) in {fit.seat_nos for fit in fits if fit.unit_no == first and fit.orphans == fewest}


# --- every small hall -------------------------------------------------------------------------------------------------

# T is a seat that is taken.
ROWS = st.lists(
    st.tuples(
        st.sampled_from(("A", "B")),
        st.text("FFFFTTA ", min_size=1, max_size=9).filter(str.strip),
        st.sampled_from(("GOLD", "STD")),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.timeout(300)
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=ROWS,
    quantity=st.integers(1, 6),
    accessible=st.sampled_from((0, 0, 0, 1, 2)),
    section=st.sampled_from((None, None, "A")),
    category=st.sampled_from((None, None, "STD")),
)
@example(drawn=[("A", "FFF", "STD"), ("A", "FFFF", "STD")], quantity=2, accessible=0, section=None, category=None)
@example(drawn=[("A", "FTFTF", "STD"), ("B", "FTFTFTF", "GOLD")], quantity=4, accessible=0, section=None, category=None)
@example(drawn=[("A", "FFA", "STD"), ("B", "AF", "GOLD")], quantity=2, accessible=1, section=None, category=None)
def test_the_best_seats_are_the_best(
    runner: asyncio.Runner,
    valkey_server: embedded.Server,
    drawn: list[tuple[str, str, str]],
    quantity: int,
    accessible: int,
    section: str | None,
    category: str | None,
) -> None:
    rows = sorted(
        [Row(name, str(number), text.replace("T", "F"), kind) for number, (name, text, kind) in enumerate(drawn)],
        key=lambda row: row.section,
    )
    taken = frozenset(
        f"{name}-{number}-{at}"
        for number, (name, text, _) in enumerate(drawn)
        for at, seat in enumerate(text, start=1)
        if seat == "T"
    )
    units = units_of(rows)
    best = wishes.Best(
        quantity=quantity,
        accessible=min(accessible, quantity),
        section=section if section in {unit.row.section for unit in units} else None,
        category=category if category in {unit.row.category for unit in units} else None,
    )

    async def pick() -> None:
        redis = open_redis(valkey_server.url)
        try:
            hall = await open_offered(redis, *rows, kept=sorted(taken))
            answer = await hall.hold_best(
                best.quantity, accessible=best.accessible, section=best.section, category=best.category
            )
            await hall.check()
            judge(units, taken, best, answer)
        finally:
            await redis.flushall()
            await redis.aclose()

    runner.run(pick())


# --- large halls ------------------------------------------------------------------------------------------------------


async def large(redis: RedisClient, *rows: str) -> OfferedHall:
    return await open_offered(redis, *[Row("A", str(number), text) for number, text in enumerate(rows)])


async def test_a_long_search_is_done_in_bounded_parts(redis_any: RedisClient) -> None:
    # Two hundred rows in which a pair leaves somebody alone, and one in which it does not.
    hall = await large(redis_any, *["FFF"] * 200, "FFFF")

    held = await hall.hold_best(2)

    assert [line.seat_no for line in held.lines] == ["A-200-1", "A-200-2"]
    assert (held.level, held.groups, held.orphans) == (1, 1, 0)
    assert hall.gate.statistics.operations == 4
    await hall.check()


async def test_when_somebody_must_be_left_alone_the_first_row_serves(redis_any: RedisClient) -> None:
    hall = await large(redis_any, *["FFF"] * 200)

    held = await hall.hold_best(2)

    assert [line.seat_no for line in held.lines] == ["A-0-1", "A-0-2"]
    assert (held.level, held.orphans) == (2, 1)
    await hall.check()


async def test_the_fewest_rows_of_a_long_hall_are_found(redis_any: RedisClient) -> None:
    hall = await large(redis_any, *["F F"] * 150, "F F F", *["F F"] * 20, "F F F F")

    held = await hall.hold_best(6)

    assert held.level == 3
    assert {line.seat_no.rpartition("-")[0] for line in held.lines} == {"A-150", "A-171"}
    assert isinstance(await hall.hold_best(3, by="bob"), wishes.HeldBest)
    await hall.check()


async def test_the_last_seats_of_a_long_hall_are_sold_and_then_no_more(redis_any: RedisClient) -> None:
    hall = await large(redis_any, *["F"] * 150)
    for number in range(7):
        held = await hall.hold_best(20, by=str(number))
        assert (held.level, held.groups) == (3, 20)

    assert await hall.hold_best(11) == seats.SoldOut(("11 10 seats ",))
    assert isinstance(await hall.hold_best(10), wishes.HeldBest)
    assert await hall.hold_best(1, by="bob") == seats.SoldOut(("1 0 seats ",))
    await hall.check()


async def test_many_who_search_at_once_are_all_served(redis_any: RedisClient) -> None:
    hall = await large(redis_any, *["FFF"] * 300)

    answers = await together(*(hall.hold_best(2, by=str(number)) for number in range(300)))

    assert all(isinstance(answer, wishes.HeldBest) for answer in answers)
    picked = [line.seat_no for answer in answers for line in answer.lines]
    assert len(set(picked)) == 600
    assert (await hall.hold_best(2, by="late")).level == 3
    await hall.check()


async def test_accessible_seats_are_kept_back_from_everybody_else(redis_any: RedisClient) -> None:
    hall = await open_offered(redis_any, Row("A", "1", "AAFF"), Row("A", "2", "AAAA"))

    assert [line.seat_no for line in (await hall.hold_best(2)).lines] == ["A-1-3", "A-1-4"]
    assert await hall.hold_best(1) == seats.SoldOut(("1 0 seats ",))
    assert [line.seat_no for line in (await hall.hold_best(2, accessible=1)).lines] == ["A-1-1", "A-1-2"]
    # Kept back from picking, not from naming.
    assert isinstance(await hall.hold("A-2-1"), seats.Held)
    await hall.check()


async def test_a_filter_that_names_nothing_is_named(redis_any: RedisClient) -> None:
    hall = await open_offered(redis_any, Row("A", "1", "FFFF"))

    assert await hall.hold_best(1, section="B") == seats.OfferUnknown(("section B",))
    assert await hall.hold_best(1, category="VIP") == seats.OfferUnknown(("category VIP",))
    assert await hall.hold_best(1, tier="child") == seats.OfferUnknown(("tier child",))


async def test_the_best_seats_in_a_tier_are_in_its_categories_and_under_its_cap(redis_any: RedisClient) -> None:
    hall = await open_offered(
        redis_any,
        Row("A", "1", "FFFFFF", "GOLD"),
        Row("A", "2", "FFFFFF", "STD"),
        tiers={("child", "STD"): (10_000, 3)},
    )

    held = await hall.hold_best(2, tier="child")
    assert held.lines == (seats.Line("A-2-1", 10_000, "child"), seats.Line("A-2-2", 10_000, "child"))
    assert await hall.hold_best(2, tier="child") == seats.SoldOut(("2 1 tier child",))
    assert isinstance(await hall.hold_best(1, tier="child"), wishes.HeldBest)
    await hall.check()


async def test_seats_of_lapsed_holds_are_picked(redis_any: RedisClient) -> None:
    hall = await open_offered(redis_any, Row("A", "1", "FFFF"), Row("A", "2", "FFFF"))
    best = await hall.standing(await hall.hold_best(4))
    rest = [await hall.held(f"A-2-{number}", by=str(number)) for number in range(1, 5)]
    assert isinstance(await hall.hold_best(1, by="bob"), seats.SoldOut)
    for standing in (best, *rest):
        await standing.lapse()

    # The longest lapsed ends before a pick, all of them before anybody is told that there are too few.
    assert [line.seat_no for line in (await hall.hold_best(4, by="bob")).lines] == [f"A-1-{n}" for n in range(1, 5)]
    assert [line.seat_no for line in (await hall.hold_best(4, by="bob")).lines] == [f"A-2-{n}" for n in range(1, 5)]
    await hall.check()


async def test_a_pick_frees_what_it_cannot_hold(redis_any: RedisClient) -> None:
    hall = await open_offered(redis_any, *[Row("A", str(number), "FF") for number in range(300)])
    for number in range(300):
        standing = await hall.held(f"A-{number}-1", f"A-{number}-2", by=str(number))
        await standing.lapse(ago_ms=1000 - number)

    held = await hall.hold_best(20, by="bob")

    assert isinstance(held, wishes.HeldBest)
    assert held.groups == 10
    await hall.check()


async def test_a_sale_that_was_written_without_a_floor_says_so(redis_any: RedisClient) -> None:
    hall = await open_hall(redis_any)

    best = await wishes.hold_best(
        hall.gate, hall.sale, hold_id="h" * 32, buyer_id="b" * 32, fingerprint="f", best=wishes.Best(quantity=1)
    )
    assert best == seats.OfferUnknown(("floor best_available",))
