"""What was bought is given back: seats, tickets, counts and money, exactly once and to the last unit."""

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import (
    authorisations,
    cancellations,
    catalogue,
    ids,
    offers,
    reconciliation,
    reservations,
    sales,
    seat_cancellations,
    seats,
)
from engine.authorisations import Authorisation
from engine.cancellations import Cancellation, CancellationClosed, Rule
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound, SaleClosed
from engine.seat_cancellations import Quote
from engine.seats import PaymentRunning, SeatUnknown
from engine.stores.connections import Stores
from engine.stores.replies import SaleRebuilding
from engine.tickets import Redemption
from tests.doors import redeem
from tests.shop import PRICE, Shop, open_shop, together

HALF_A_DAY_BEFORE = ({"hours_before": 48, "percent": 100}, {"hours_before": 12, "percent": 33})


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def bought(shop: Shop, *seat_nos: str, by: str = "ann") -> Authorisation:
    """Seats that somebody has bought, and Postgres has it."""
    request = await shop.buy(*seat_nos, by=by)
    await shop.drain()
    return request


async def cancel(
    shop: Shop,
    hold_id: str,
    *seat_nos: str,
    by: str | None = "ann",
    key: str = "k",
    refund_to: Literal["SOURCE", "BALANCE"] = "SOURCE",
) -> Any:
    return await seat_cancellations.cancel(
        shop.stores.gate,
        shop.stores.postgres,
        shop.book,
        cancellation_id=ids.derive("cancellation", hold_id, key),
        reservation_id=hold_id,
        user_id=None if by is None else await shop.person(by),
        seat_nos=seat_nos,
        refund_to=refund_to,
    )


async def quote(shop: Shop, hold_id: str, *seat_nos: str, by: str = "ann") -> Any:
    return await seat_cancellations.quote(
        shop.stores.gate,
        shop.stores.postgres,
        shop.book,
        reservation_id=hold_id,
        user_id=await shop.person(by),
        seat_nos=seat_nos,
    )


async def rows(shop: Shop, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await shop.stores.postgres.fetch(sql, *arguments)]


async def starts_in(shop: Shop, **hours: float) -> None:
    """Let the event begin so much later, by the database's clock."""
    await shop.stores.postgres.execute("UPDATE schedules SET start_at = now() + $1", timedelta(**hours))


async def set_policy(shop: Shop, *policy: Mapping[str, int]) -> None:
    await shop.stores.postgres.execute("UPDATE sales SET refund_policy = $1", list(policy))


async def pay_by_card(
    shop: Shop, payment_id: str, *, card: int, attempts: int | None = 0, status: str = "PENDING"
) -> None:
    """Let a card have paid so much of a payment, which still has to be captured, or was."""
    postgres = shop.stores.postgres
    await postgres.execute(
        "UPDATE payments SET method = CASE WHEN final_amount = $2 THEN 'CARD' ELSE 'SPLIT' END, "
        "balance_amount = final_amount - $2, card_amount = $2, "
        "captured_amount = CASE $3 WHEN 'DONE' THEN $2 ELSE 0 END WHERE payment_id = $1",
        payment_id,
        card,
        status,
    )
    await postgres.execute(
        "INSERT INTO gateway_operations (operation_id, payment_id, kind, amount, status, attempts) "
        "VALUES ($1, $2, 'CAPTURE', $3, $4, $5)",
        ids.derive("gateway", "CAPTURE", payment_id),
        payment_id,
        card,
        status,
        attempts,
    )


# The policy -----------------------------------------------------------------------------------------------------------

START = datetime(2031, 5, 1, 19, tzinfo=UTC)
POLICY = (Rule(48, 100), Rule(24, 50), Rule(24, 99), Rule(6, 10))


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (timedelta(days=90), Rule(48, 100)),
        (timedelta(hours=48), Rule(48, 100)),
        (timedelta(hours=48, microseconds=-1), Rule(24, 50)),
        (timedelta(hours=24), Rule(24, 50)),
        (timedelta(hours=24, microseconds=-1), Rule(6, 10)),
        (timedelta(hours=6), Rule(6, 10)),
        (timedelta(hours=6, microseconds=-1), CancellationClosed(reason="TOO_LATE")),
        (timedelta(microseconds=1), CancellationClosed(reason="TOO_LATE")),
        (timedelta(0), CancellationClosed(reason="STARTED")),
        (timedelta(hours=-1), CancellationClosed(reason="STARTED")),
    ],
)
def test_the_first_rule_that_is_still_in_time_counts(before: timedelta, expected: object) -> None:
    assert seat_cancellations.rule_of(POLICY, start_at=START, now=START - before) == expected


def test_rules_count_in_the_order_given() -> None:
    policy = (Rule(0, 10), Rule(48, 100))
    assert seat_cancellations.rule_of(policy, start_at=START, now=START - timedelta(days=9)) == Rule(0, 10)


@pytest.mark.parametrize("policy", [(), (Rule(0, 100),)])
def test_no_policy_is_everything_until_the_start(policy: tuple[Rule, ...]) -> None:
    last = START - timedelta(microseconds=1)
    assert seat_cancellations.rule_of(policy, start_at=START, now=last) == Rule(0, 100)
    assert seat_cancellations.rule_of(policy, start_at=START, now=START) == CancellationClosed(reason="STARTED")


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
    st.integers(0, 100),
    st.randoms(use_true_random=False),
)
def test_parts_in_any_order_come_to_what_the_whole_would_have_given(prices: list[int], percent: int, rng: Any) -> None:
    whole = sum(cancellations.share_of(price, percent) for price in prices)
    rest, parts = list(prices), 0
    rng.shuffle(rest)
    while rest:
        at = rng.randint(1, len(rest))
        part, rest = rest[:at], rest[at:]
        parts += sum(cancellations.share_of(price, percent) for price in part)
    assert parts == whole <= sum(prices)
    if percent == 100:
        assert whole == sum(prices)


# Whole ----------------------------------------------------------------------------------------------------------------


async def test_what_is_cancelled_whole_is_undone_whole(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, per_buyer_max=2)
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id, user_id, payment_id = request.holding.hold_id, request.holding.user_id, request.payment_id

    given_back = await cancel(shop, hold_id)

    assert isinstance(given_back, Cancellation)
    assert given_back.seat_nos == ("A-1-1", "A-1-2")
    assert (given_back.reason, given_back.refund_amount, given_back.kept_amount) == ("USER", 2 * PRICE, 0)
    (refund,) = given_back.refunds
    assert (refund.payment_id, refund.amount, refund.refund_to, refund.status) == (
        payment_id,
        2 * PRICE,
        "BALANCE",
        "DONE",
    )
    assert refund.done_at is not None
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("REFUNDED", 2 * PRICE)]
    assert await rows(shop, "SELECT DISTINCT status FROM reservation_seats") == [("ENDED",)]
    assert await rows(shop, "SELECT DISTINCT status FROM tickets") == [("CANCELLED",)]
    assert await rows(shop, "SELECT seats_available FROM schedules") == [(6,)]
    assert await rows(shop, "SELECT amount, set_aside, version FROM balances") == [(10_000_000, 0, 2)]
    assert await rows(
        shop,
        "SELECT user_id, amount, balance_after, version, reason, ref_type, ref_id, payment_id FROM balance_history "
        "WHERE type = 'REFUND'",
    ) == [(user_id, 2 * PRICE, 10_000_000, 2, "USER", "refund", refund.refund_id, payment_id)]

    # Redis was told before the answer: others may have the seats, and their old owner may buy as many again.
    assert await shop.states() == {}
    assert (await shop.find(hold_id)).state == "ENDED"
    await shop.hold("A-1-1", by="bob")
    await shop.hold("A-1-3", "A-1-4")
    await shop.drain()
    await shop.check()


async def test_what_was_given_back_is_bought_by_somebody_else(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    first = await bought(shop, "A-1-1")
    assert isinstance(await cancel(shop, first.holding.hold_id), Cancellation)
    second = await bought(shop, "A-1-1", by="bob")
    assert await shop.payment(second.payment_id) == "SUCCESS"
    assert await rows(shop, "SELECT seats_available FROM schedules") == [(5,)]
    await shop.check()


async def test_a_cancelled_sale_that_is_told_again_stays_cancelled(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id = request.holding.hold_id
    await cancel(shop, hold_id, "A-1-1")
    assert isinstance(await shop.confirm(request), seats.Confirmed)
    await cancel(shop, hold_id, key="rest")
    assert isinstance(await shop.confirm(request), seats.HoldUnknown)
    await shop.drain()
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")
    assert await shop.states() == {}


# Part -----------------------------------------------------------------------------------------------------------------


async def test_what_is_cancelled_in_part_stays_confirmed(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, per_buyer_max=3)
    request = await bought(shop, "A-1-1", "A-1-2", "A-1-3")
    hold_id = request.holding.hold_id

    given_back = await cancel(shop, hold_id, "A-1-2")

    assert (given_back.seat_nos, given_back.refund_amount) == (("A-1-2",), PRICE)
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", PRICE)]
    assert await rows(shop, "SELECT seat_no, status FROM tickets ORDER BY 1") == [
        ("A-1-1", "VALID"),
        ("A-1-2", "CANCELLED"),
        ("A-1-3", "VALID"),
    ]
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-3": "SOLD"}
    # Two are left to their buyer, who may have one more and no two.
    sale, buyer_id = await shop.sale(), await shop.person("ann")
    refused = await seats.hold(
        shop.stores.gate,
        sale,
        hold_id=ids.random_id(),
        buyer_id=buyer_id,
        fingerprint="",
        seat_nos=("A-1-4", "A-1-5"),
    )
    assert refused == LimitReached(limit=3, have=2)
    await shop.hold("A-1-4")
    await shop.hold("A-1-2", by="bob")
    found = await reservations.find(
        shop.stores.gate, shop.stores.postgres, shop.book, reservation_id=hold_id, user_id=buyer_id
    )
    assert isinstance(found, reservations.Reservation)
    assert [(line.seat_no, line.status) for line in found.lines] == [
        ("A-1-1", "CLAIMED"),
        ("A-1-2", "ENDED"),
        ("A-1-3", "CLAIMED"),
    ]
    assert (found.amount, found.payment_id) == (3 * PRICE, request.payment_id)
    await shop.drain()
    await shop.check()


async def test_a_part_and_then_the_rest(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, per_buyer_max=3)
    hold_id = (await bought(shop, "A-1-1", "A-1-2", "A-1-3")).holding.hold_id
    await cancel(shop, hold_id, "A-1-2", key="one")
    await shop.drain()
    rest = await cancel(shop, hold_id, key="rest")
    assert (rest.seat_nos, rest.refund_amount) == (("A-1-1", "A-1-3"), 2 * PRICE)
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("REFUNDED", 3 * PRICE)]
    assert await rows(shop, "SELECT amount, version FROM balances") == [(10_000_000, 3)]
    assert await rows(shop, "SELECT seats_available FROM schedules") == [(6,)]
    assert await shop.states() == {}
    await shop.hold("A-1-1", "A-1-2", "A-1-3")
    await shop.drain()
    await shop.check()


async def test_a_seat_is_given_back_once(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await cancel(shop, hold_id, "A-1-1", key="one")
    assert await cancel(shop, hold_id, "A-1-1", "A-1-2", key="two") == SeatUnknown(seat_nos=("A-1-1",))
    assert await cancel(shop, hold_id, "A-1-6", key="three") == SeatUnknown(seat_nos=("A-1-6",))
    assert await rows(shop, "SELECT refunded_amount FROM payments") == [(PRICE,)]
    # A seat that is named twice is given back once.
    twice = await cancel(shop, hold_id, "A-1-2", "A-1-2", key="four")
    assert (twice.seat_nos, twice.refund_amount) == (("A-1-2",), PRICE)
    assert await cancel(shop, hold_id, key="five") == CancellationClosed(reason="ENDED")


async def test_a_blocked_seat_that_comes_back_is_not_available(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await shop.stores.postgres.execute("UPDATE seats SET blocked = true WHERE seat_no = 'A-1-1'")
    await cancel(shop, hold_id)
    assert await rows(shop, "SELECT seats_available FROM schedules") == [(5,)]


# Money ----------------------------------------------------------------------------------------------------------------


async def test_each_line_is_rounded_down_by_itself(shop: Shop) -> None:
    await set_policy(shop, *HALF_A_DAY_BEFORE)
    hold_id = (await bought(shop, "A-1-1", "A-1-2", "A-1-3")).holding.hold_id
    await shop.stores.postgres.execute("UPDATE reservation_seats SET price = 10000 + substr(seat_no, 5)::bigint")
    await shop.stores.postgres.execute(
        "UPDATE payments SET original_amount = 30006, final_amount = 30006, balance_amount = 30006"
    )
    await starts_in(shop, hours=13)
    whole = await quote(shop, hold_id)
    assert whole == Quote(
        seat_nos=("A-1-1", "A-1-2", "A-1-3"), amount=3300 * 3, kept=20106, percent=33, policy_hours=12
    )
    parts = [await cancel(shop, hold_id, f"A-1-{at}", key=str(at)) for at in (2, 3, 1)]
    assert sum(part.refund_amount for part in parts) == whole.amount
    assert sum(part.kept_amount for part in parts) == whole.kept
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", 9900)]
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")


@pytest.mark.parametrize("seed", range(6))
async def test_random_parts_pay_back_what_the_whole_was_quoted(shop: Shop, seed: int) -> None:
    rng = random.Random(seed)
    seat_nos = [f"A-1-{at}" for at in range(1, 7)]
    for seat_no in seat_nos:
        await shop.set_price(seat_no, rng.randint(0, 999_999))
    await set_policy(shop, {"hours_before": 1, "percent": rng.randint(1, 99)})
    hold_id = (await bought(shop, *seat_nos)).holding.hold_id
    paid: int = await shop.stores.postgres.fetchval("SELECT final_amount FROM payments")
    whole = await quote(shop, hold_id)
    assert whole.amount + whole.kept == paid
    rng.shuffle(seat_nos)
    given_back: list[Cancellation] = []
    while seat_nos:
        at = rng.randint(1, len(seat_nos))
        given_back.append(await cancel(shop, hold_id, *seat_nos[:at], key=str(len(given_back))))
        seat_nos = seat_nos[at:]
    assert sum(part.refund_amount for part in given_back) == whole.amount
    assert sum(part.kept_amount for part in given_back) == whole.kept
    assert await rows(shop, "SELECT amount FROM balances") == [(10_000_000 - paid + whole.amount,)]
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")
    assert await shop.states() == {}


async def test_a_quote_says_what_a_cancellation_does_and_changes_nothing(shop: Shop) -> None:
    await set_policy(shop, *HALF_A_DAY_BEFORE)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await starts_in(shop, hours=49)
    assert (await quote(shop, hold_id, "A-1-1")).amount == PRICE
    await starts_in(shop, hours=20)
    quoted = await quote(shop, hold_id, "A-1-1")
    assert quoted == Quote(seat_nos=("A-1-1",), amount=PRICE * 33 // 100, kept=20_100, percent=33, policy_hours=12)
    assert await quote(shop, hold_id, "A-1-9") == SeatUnknown(seat_nos=("A-1-9",))
    assert await quote(shop, hold_id, by="bob") == NotFound()
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert await rows(shop, "SELECT count(*) FROM cancellations") == [(0,)]
    given_back = await cancel(shop, hold_id, "A-1-1")
    assert (given_back.refund_amount, given_back.kept_amount) == (quoted.amount, quoted.kept)


@pytest.mark.parametrize(("hours", "reason"), [(11, "TOO_LATE"), (0, "STARTED"), (-5, "STARTED")])
async def test_past_the_last_rule_nothing_is_cancelled(shop: Shop, hours: int, reason: str) -> None:
    await set_policy(shop, *HALF_A_DAY_BEFORE)
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    await starts_in(shop, hours=hours)
    assert await cancel(shop, hold_id) == CancellationClosed(reason=reason)
    assert await quote(shop, hold_id) == CancellationClosed(reason=reason)
    assert await shop.states() == {"A-1-1": "SOLD"}
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)


async def test_a_rule_of_nothing_gives_the_seat_back_and_no_money(shop: Shop) -> None:
    await set_policy(shop, {"hours_before": 0, "percent": 0})
    request = await bought(shop, "A-1-1")
    given_back = await cancel(shop, request.holding.hold_id)
    assert (given_back.refund_amount, given_back.kept_amount, given_back.refunds) == (0, PRICE, ())
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.reservation(request.holding.hold_id) == ("CANCELLED", "USER")
    assert await shop.states() == {}


async def test_what_cost_nothing_is_cancelled_without_a_refund(shop: Shop) -> None:
    await shop.set_price("A-1-1", 0)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    free = await cancel(shop, hold_id, "A-1-1", key="free")
    assert (free.refund_amount, free.kept_amount, free.refunds) == (0, 0, ())
    assert await rows(shop, "SELECT status FROM payments") == [("SUCCESS",)]
    await cancel(shop, hold_id, key="rest")
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("REFUNDED", PRICE)]


async def test_a_seat_that_cost_nothing_is_given_back_after_all_the_money_was(shop: Shop) -> None:
    await shop.set_price("A-1-1", 0)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await cancel(shop, hold_id, "A-1-2", key="paid")
    assert await rows(shop, "SELECT status FROM payments") == [("REFUNDED",)]
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert isinstance(await cancel(shop, hold_id, key="free"), Cancellation)
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")


async def test_several_refunds_each_follow_the_one_before(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2", "A-1-3")).holding.hold_id
    for at in (1, 2, 3):
        await cancel(shop, hold_id, f"A-1-{at}", key=str(at))
    assert await rows(shop, "SELECT type, balance_after, version FROM balance_history ORDER BY version") == [
        ("USE", 10_000_000 - 3 * PRICE, 1),
        ("REFUND", 10_000_000 - 2 * PRICE, 2),
        ("REFUND", 10_000_000 - PRICE, 3),
        ("REFUND", 10_000_000, 4),
    ]


# Cards ----------------------------------------------------------------------------------------------------------------


async def operations(shop: Shop) -> list[tuple[Any, ...]]:
    return await rows(shop, "SELECT kind, amount, status, attempts FROM gateway_operations ORDER BY kind, amount")


async def test_a_card_gets_its_money_back_by_an_operation_of_its_own(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2")
    await pay_by_card(shop, request.payment_id, card=2 * PRICE, status="DONE", attempts=1)
    given_back = await cancel(shop, request.holding.hold_id, "A-1-1")
    (refund,) = given_back.refunds
    assert (refund.amount, refund.refund_to, refund.status, refund.done_at) == (PRICE, "CARD", "PENDING", None)
    assert await operations(shop) == [("CAPTURE", 2 * PRICE, "DONE", 1), ("REFUND", PRICE, "PENDING", 0)]
    assert await rows(shop, "SELECT operation_id, refund_id FROM gateway_operations WHERE kind = 'REFUND'") == [
        (ids.derive("gateway", "REFUND", request.payment_id, refund.refund_id), refund.refund_id)
    ]
    assert await rows(shop, "SELECT count(*) FROM balance_history WHERE type = 'REFUND'") == [(0,)]
    assert await shop.payment(request.payment_id) == "PARTIALLY_REFUNDED"


async def test_the_card_leg_goes_back_first_and_the_rest_to_the_balance(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2", "A-1-3")
    hold_id = request.holding.hold_id
    await pay_by_card(shop, request.payment_id, card=PRICE + 10, status="DONE", attempts=1)
    first = await cancel(shop, hold_id, "A-1-1", key="first")
    assert [(refund.refund_to, refund.amount) for refund in first.refunds] == [("CARD", PRICE)]
    second = await cancel(shop, hold_id, "A-1-2", key="second")
    assert [(refund.refund_to, refund.amount) for refund in second.refunds] == [("CARD", 10), ("BALANCE", PRICE - 10)]
    third = await cancel(shop, hold_id, key="third")
    assert [(refund.refund_to, refund.amount) for refund in third.refunds] == [("BALANCE", PRICE)]
    assert await shop.payment(request.payment_id) == "REFUNDED"


async def test_all_of_it_goes_to_the_balance_at_once_if_the_buyer_wants_that(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id = request.holding.hold_id
    await pay_by_card(shop, request.payment_id, card=2 * PRICE, status="DONE", attempts=1)
    first = await cancel(shop, hold_id, "A-1-1", key="first", refund_to="BALANCE")
    assert [(refund.refund_to, refund.status) for refund in first.refunds] == [("BALANCE", "DONE")]
    # What is left of the payment, and not what the card paid, is the bound.
    second = await cancel(shop, hold_id, key="second")
    assert [(refund.refund_to, refund.amount) for refund in second.refunds] == [("CARD", PRICE)]
    assert await operations(shop) == [("CAPTURE", 2 * PRICE, "DONE", 1), ("REFUND", PRICE, "PENDING", 0)]


async def test_what_the_card_has_not_paid_yet_goes_to_no_balance(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2", "A-1-3")
    hold_id = request.holding.hold_id
    await pay_by_card(shop, request.payment_id, card=2 * PRICE - 10)
    # What the balance paid is there; the rest waits for the capture, which may never come.
    first = await cancel(shop, hold_id, "A-1-1", key="first", refund_to="BALANCE")
    assert [(refund.refund_to, refund.amount) for refund in first.refunds] == [("BALANCE", PRICE)]
    second = await cancel(shop, hold_id, "A-1-2", key="second", refund_to="BALANCE")
    assert [(refund.refund_to, refund.amount) for refund in second.refunds] == [("CARD", PRICE - 10), ("BALANCE", 10)]
    third = await cancel(shop, hold_id, key="third", refund_to="BALANCE")
    assert [(refund.refund_to, refund.amount) for refund in third.refunds] == [("CARD", PRICE)]
    assert await shop.payment(request.payment_id) == "REFUNDED"


async def test_a_capture_that_was_never_sent_becomes_a_void_when_all_of_it_goes_back(shop: Shop) -> None:
    request = await bought(shop, "A-1-1")
    await pay_by_card(shop, request.payment_id, card=PRICE)
    given_back = await cancel(shop, request.holding.hold_id)
    assert [(refund.refund_to, refund.status) for refund in given_back.refunds] == [("CARD", "PENDING")]
    assert await rows(shop, "SELECT operation_id, kind, refund_id, amount, status FROM gateway_operations") == [
        (ids.derive("gateway", "VOID", request.payment_id), "VOID", None, PRICE, "PENDING")
    ]


async def test_a_capture_that_may_have_been_sent_is_waited_for(shop: Shop) -> None:
    request = await bought(shop, "A-1-1")
    await pay_by_card(shop, request.payment_id, card=PRICE, attempts=1)
    await cancel(shop, request.holding.hold_id)
    assert await operations(shop) == [("CAPTURE", PRICE, "PENDING", 1), ("REFUND", PRICE, "PENDING", 0)]


async def test_a_refund_that_failed_does_not_count_as_gone_to_the_card(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2")
    await pay_by_card(shop, request.payment_id, card=PRICE, status="DONE", attempts=1)
    await cancel(shop, request.holding.hold_id, "A-1-1", key="first")
    await shop.stores.postgres.execute("UPDATE refunds SET status = 'FAILED'")
    second = await cancel(shop, request.holding.hold_id, key="second")
    assert [(refund.refund_to, refund.amount) for refund in second.refunds] == [("CARD", PRICE)]


async def test_what_a_card_never_paid_only_an_operator_cancels(shop: Shop) -> None:
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id = request.holding.hold_id
    await pay_by_card(shop, request.payment_id, card=PRICE + 10, status="REFUSED", attempts=3)
    await shop.stores.postgres.execute("UPDATE payments SET status = 'UNCOLLECTED'")
    assert await cancel(shop, hold_id) == CancellationClosed(reason="UNCOLLECTED")
    given_back = await cancel(shop, hold_id, by=None)
    # What the balance paid goes back; of the rest there is nothing.
    assert [(refund.refund_to, refund.amount) for refund in given_back.refunds] == [("BALANCE", PRICE - 10)]
    assert (given_back.refund_amount, given_back.kept_amount) == (PRICE - 10, 0)
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("UNCOLLECTED", PRICE - 10)]
    assert await shop.reservation(hold_id) == ("CANCELLED", "ADMIN")


# Who may, and when ----------------------------------------------------------------------------------------------------


async def test_the_same_wish_acts_once(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    first = await cancel(shop, hold_id, "A-1-1")
    again = await cancel(shop, hold_id, "A-1-1")
    assert (first.repeated, again.repeated) == (False, True)
    assert again.refunds == first.refunds
    assert await cancel(shop, hold_id, "A-1-2") == IdempotencyKeyReused()
    assert await cancel(shop, hold_id, "A-1-1", refund_to="BALANCE") == IdempotencyKeyReused()
    assert await rows(shop, "SELECT refunded_amount FROM payments") == [(PRICE,)]


async def test_a_refusal_leaves_nothing_and_the_same_wish_is_judged_again(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    await starts_in(shop, hours=-1)
    assert isinstance(await cancel(shop, hold_id), CancellationClosed)
    await starts_in(shop, hours=1)
    assert isinstance(await cancel(shop, hold_id), Cancellation)


async def test_what_is_somebody_elses_is_not_there(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    held_id = await shop.hold("A-1-2")
    for reservation_id in (hold_id, held_id, ids.random_id(), ids.derive_in(shop.sale_id, "nobody's")):
        assert await cancel(shop, reservation_id, by="bob") == NotFound()
        assert await quote(shop, reservation_id, by="bob") == NotFound()
    assert await cancel(shop, ids.random_id(), by=None) == NotFound()


async def test_a_hold_that_nobody_paid_is_nothing_to_cancel(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    for _ in ("only in Redis", "in Postgres too"):
        assert await cancel(shop, hold_id) == CancellationClosed(reason="UNPAID")
        assert await quote(shop, hold_id) == CancellationClosed(reason="UNPAID")
        await shop.drain()
    await shop.release(hold_id)
    for _ in ("only in Redis", "in Postgres too"):
        assert await cancel(shop, hold_id) == CancellationClosed(reason="ENDED")
        await shop.drain()


async def test_a_payment_that_runs_comes_first(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    payment_id = ids.derive("payment of", hold_id)
    request = await shop.begin_payment(hold_id)
    assert await cancel(shop, hold_id) == PaymentRunning(payment_id=payment_id)  # PAYING, and no row yet
    await shop.drain()
    assert await cancel(shop, hold_id) == PaymentRunning(payment_id=payment_id)  # a PENDING row
    await authorisations.authorise(shop.stores.postgres, [request])
    for status in ("AUTHORISED", "IN_DOUBT", "PENDING"):
        await shop.stores.postgres.execute("UPDATE payments SET status = $1", status)
        assert await cancel(shop, hold_id) == PaymentRunning(payment_id=payment_id)
        assert await quote(shop, hold_id) == PaymentRunning(payment_id=payment_id)
    await shop.stores.postgres.execute("UPDATE payments SET status = 'AUTHORISED'")
    await shop.confirm(request)
    assert await cancel(shop, hold_id) == PaymentRunning(payment_id=payment_id)  # SOLD, and not yet CONFIRMED
    await shop.drain()
    assert isinstance(await cancel(shop, hold_id), Cancellation)


async def test_nothing_is_said_of_a_hold_while_its_sale_is_rebuilt(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "state", "rebuilding")
    assert await cancel(shop, hold_id) == SaleRebuilding()


async def test_a_ticket_that_opened_a_door_is_not_given_back(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    assert isinstance(await redeem(shop.stores.postgres, "A-1-1"), Redemption)
    refused = CancellationClosed(reason="REDEEMED", seat_nos=("A-1-1",))
    assert await cancel(shop, hold_id) == refused
    assert await quote(shop, hold_id, "A-1-1") == refused
    assert isinstance(await cancel(shop, hold_id, "A-1-2"), Cancellation)
    assert await rows(shop, "SELECT seat_no, status FROM tickets ORDER BY 1") == [
        ("A-1-1", "REDEEMED"),
        ("A-1-2", "CANCELLED"),
    ]


async def test_an_operator_refunds_in_full_whatever_the_policy_says(shop: Shop) -> None:
    await set_policy(shop, {"hours_before": 24, "percent": 10})
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await starts_in(shop, hours=-1)
    assert isinstance(await redeem(shop.stores.postgres, "A-1-1"), Redemption)
    given_back = await cancel(shop, hold_id, by=None)
    assert (given_back.reason, given_back.refund_amount) == ("ADMIN", 2 * PRICE)
    assert await shop.reservation(hold_id) == ("CANCELLED", "ADMIN")


# Redis, whoever dies --------------------------------------------------------------------------------------------------


async def reconcile(shop: Shop) -> int:
    done = await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())
    return done.restored


async def deaf(shop: Shop, hold_id: str, *seat_nos: str, key: str = "k") -> None:
    """Cancel, and die between the commit and Redis."""
    keys = (await shop.sale()).keys
    await shop.stores.redis.execute_command("HSET", keys.sale, "state", "rebuilding")
    assert isinstance(await cancel(shop, hold_id, *seat_nos, key=key), Cancellation)
    await shop.stores.redis.execute_command("HSET", keys.sale, "state", "open")


@pytest.mark.parametrize("seat_nos", [(), ("A-1-2",)])
async def test_seats_come_back_also_when_the_process_died_before_it_told_redis(
    stores_any: Stores, seat_nos: tuple[str, ...]
) -> None:
    shop = await open_shop(stores_any, per_buyer_max=2)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await deaf(shop, hold_id, *seat_nos)
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert [await reconcile(shop) for _ in range(2)] == [1, 0]
    kept = {"A-1-1"} if seat_nos else set()
    assert (await shop.states()).keys() == kept
    await shop.hold("A-1-2", by="bob")
    await shop.hold("A-1-3")
    await shop.drain()
    await shop.check()


async def test_two_cancellations_before_redis_heard_of_either(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    hold_id = (await bought(shop, "A-1-1", "A-1-2", "A-1-3")).holding.hold_id
    await deaf(shop, hold_id, "A-1-2", key="one")
    await deaf(shop, hold_id, key="rest")
    assert await reconcile(shop) == 1
    assert await shop.states() == {}
    await shop.hold("A-1-1", "A-1-2", "A-1-3", by="bob")
    await shop.drain()
    await shop.check()


@pytest.mark.parametrize("seat_nos", [(), ("A-1-2",)])
async def test_a_rebuild_in_between_writes_what_postgres_says(stores_any: Stores, seat_nos: tuple[str, ...]) -> None:
    shop = await open_shop(stores_any, per_buyer_max=2)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await deaf(shop, hold_id, *seat_nos)
    await shop.rebuild()
    assert (await shop.states()).keys() == ({"A-1-1"} if seat_nos else set())
    # Whoever was to tell Redis finds nothing left to do, also when somebody else has the seat by then.
    other = await shop.hold("A-1-2", by="bob")
    assert await reconcile(shop) == 1
    assert (await shop.find(other)).state == "HELD"
    await shop.hold("A-1-3")
    await shop.drain()
    await shop.check()


async def test_a_rebuild_after_it_writes_the_same(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    await bought(shop, "A-1-3", by="bob")
    await cancel(shop, hold_id, "A-1-2")
    await shop.drain()
    before = await shop.stored()
    await shop.rebuild()
    after = await shop.stored()
    for name in ("seats", "buyers", "deadlines", "paying"):
        assert after.get(name) == before.get(name)
    assert isinstance(await cancel(shop, hold_id, key="rest"), Cancellation)
    assert await shop.states() == {"A-1-3": "SOLD"}
    await shop.drain()
    await shop.check()


async def test_a_seat_comes_back_after_its_record_was_forgotten(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    keys = (await shop.sale()).keys
    await shop.stores.redis.execute_command("HDEL", keys.holds, hold_id)
    await shop.stores.redis.execute_command("ZREM", keys.ended, hold_id)
    await cancel(shop, hold_id, "A-1-1", key="one")
    await cancel(shop, hold_id, key="rest")
    assert await shop.states() == {}
    assert await shop.stores.redis.hgetall(keys.buyers) == {}  # type: ignore[misc]


async def test_what_was_sold_to_the_next_buyer_is_left_alone_when_redis_is_told_late(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    await cancel(shop, hold_id)
    await bought(shop, "A-1-1", by="bob")
    await shop.stores.postgres.execute("UPDATE restores SET done_at = NULL")
    assert await reconcile(shop) == 1
    assert await shop.states() == {"A-1-1": "SOLD"}
    await shop.check()


# Refunds --------------------------------------------------------------------------------------------------------------


async def test_refunds_are_found_and_listed_by_whose_they_are(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    made = [(await cancel(shop, hold_id, f"A-1-{at}", key=str(at))).refunds[0] for at in (1, 2)]
    postgres, ann, bob = shop.stores.postgres, await shop.person("ann"), await shop.person("bob")
    assert await cancellations.find_refund(postgres, made[0].refund_id, ann) == made[0]
    assert await cancellations.find_refund(postgres, made[0].refund_id, bob) is None
    assert await cancellations.list_refunds(postgres, ann) == made[::-1]
    newest = (made[1].created_at, made[1].refund_id)
    assert await cancellations.list_refunds(postgres, ann, before=newest) == made[:1]
    assert await cancellations.list_refunds(postgres, bob) == []


# An event that is off -------------------------------------------------------------------------------------------------


async def call_off(shop: Shop) -> Any:
    return await seat_cancellations.call_off(shop.stores, shop.book, schedule_id=str((await shop.sale()).schedule_id))


async def finish(shop: Shop, *, most: int = 400) -> int:
    """Go on until there is nothing to do at once; returns the batches."""
    batches = 0
    while await seat_cancellations.go_on(shop.stores, shop.book, most=most):
        batches += 1
    return batches


async def progress(shop: Shop) -> tuple[int, int, bool]:
    found = await seat_cancellations.find_call_off(shop.stores.postgres, str((await shop.sale()).schedule_id))
    assert found is not None
    return found.total, found.done, found.finished_at is not None


async def test_what_is_off_never_sells_again(shop: Shop) -> None:
    await call_off(shop)
    sale = await shop.sale()
    schedule = await catalogue.find_schedule(shop.stores.postgres, str(sale.schedule_id))
    assert schedule is not None
    later = datetime(2031, 4, 1, tzinfo=UTC)
    wishes: list[dict[str, object]] = [{"closes_at": later}, {"closes_at": None}, {"opens_at": later}]
    for changes in wishes:
        edited = await catalogue.edit_schedule(
            shop.stores.postgres,
            schedule_id=schedule.schedule_id,
            version=schedule.version,
            start_at=None,
            changes=changes,
        )
        assert edited == SaleClosed()
    assert (
        await offers.configure(shop.stores, shop.book, sale_id=sale.sale_id, changes={"room": "open"}) == SaleClosed()
    )
    # What else stands in the row may be corrected, and nothing of this has left a trace.
    assert isinstance(
        await offers.configure(shop.stores, shop.book, sale_id=sale.sale_id, changes={"active_max": 7}), sales.Sale
    )
    after = await catalogue.find_schedule(shop.stores.postgres, schedule.schedule_id)
    assert after is not None
    assert (after.version, after.closes_at) == (schedule.version, schedule.closes_at)
    assert (await shop.sale()).room == "closed"


async def test_an_edit_that_crosses_the_calling_off_sells_nothing(shop: Shop) -> None:
    sale = await shop.sale()
    schedule = await catalogue.find_schedule(shop.stores.postgres, str(sale.schedule_id))
    assert schedule is not None
    await together(
        call_off(shop),
        offers.configure(shop.stores, shop.book, sale_id=sale.sale_id, changes={"room": "open"}),
        catalogue.edit_schedule(
            shop.stores.postgres,
            schedule_id=schedule.schedule_id,
            version=schedule.version,
            start_at=None,
            changes={"closes_at": datetime(2031, 4, 1, tzinfo=UTC)},
        ),
    )
    row = await shop.row()
    assert row["room"] == "closed"
    assert row["closes_at"] < datetime(2031, 1, 1, tzinfo=UTC)


async def test_everybody_is_refunded_in_full_when_an_event_is_off(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    await set_policy(shop, {"hours_before": 48, "percent": 50})
    ann = await bought(shop, "A-1-1", "A-1-2")
    bob = await bought(shop, "A-1-3", by="bob")
    await cancel(shop, ann.holding.hold_id, "A-1-1")  # half of it is kept, and stays so
    held = await shop.hold("A-1-4", by="cat")
    await shop.drain()
    await starts_in(shop, hours=-2)

    called_off = await call_off(shop)
    assert (called_off.total, called_off.done, called_off.repeated) == (3, 0, False)
    assert (await call_off(shop)).repeated
    assert await finish(shop) == 1

    for request in (ann, bob):
        assert await shop.reservation(request.holding.hold_id) == ("CANCELLED", "EVENT_CANCELLED")
    assert await shop.payment(ann.payment_id) == "PARTIALLY_REFUNDED"
    assert await shop.payment(bob.payment_id) == "REFUNDED"
    assert await rows(shop, "SELECT amount FROM balances ORDER BY amount") == [
        (10_000_000 - PRICE // 2,),
        (10_000_000,),
        (10_000_000,),
    ]
    assert await shop.reservation(held) == ("CANCELLED", "EVENT_CANCELLED")
    assert (await shop.find(held)).reason == "EVENT_CANCELLED"
    assert await shop.states() == {}
    assert await progress(shop) == (3, 3, False)  # Postgres has not heard yet that Redis gave the seats back
    await shop.drain()
    assert await finish(shop) == 0
    assert await progress(shop) == (3, 3, True)
    await shop.check()


async def test_nothing_is_held_any_more_once_an_event_is_off(shop: Shop) -> None:
    await call_off(shop)
    refused = await seats.hold(
        shop.stores.gate,
        await shop.sale(),
        hold_id=ids.random_id(),
        buyer_id=await shop.person("ann"),
        fingerprint="",
        seat_nos=("A-1-1",),
    )
    assert refused == SaleClosed()
    assert (await shop.sale()).room == "closed"


async def test_batches_are_bounded_and_nothing_is_done_twice(shop: Shop) -> None:
    for at in range(1, 7):
        await bought(shop, f"A-1-{at}", by=f"buyer {at}")
    await call_off(shop)
    assert await seat_cancellations.go_on(shop.stores, shop.book, most=2)
    assert await progress(shop) == (6, 2, False)
    assert await finish(shop, most=2) == 2
    await shop.drain()
    await finish(shop)
    assert await progress(shop) == (6, 6, True)
    assert await rows(shop, "SELECT count(*), count(DISTINCT reservation_id) FROM cancellations") == [(6, 6)]
    assert await rows(shop, "SELECT DISTINCT amount FROM balances") == [(10_000_000,)]
    await shop.check()


async def test_a_payment_that_runs_is_led_to_its_end_and_then_refunded(shop: Shop) -> None:
    paying = await shop.authorise(await shop.hold("A-1-1"))
    await shop.drain()
    await call_off(shop)
    assert await finish(shop) == 0
    assert await progress(shop) == (1, 0, False)
    assert isinstance(await shop.confirm(paying), seats.Confirmed)
    assert await finish(shop) == 0
    assert await progress(shop) == (1, 0, False)  # sold in Redis, and Postgres has not heard
    await shop.drain()
    assert await finish(shop) == 1
    await shop.drain()
    await finish(shop)
    assert await progress(shop) == (1, 1, True)
    assert await shop.payment(paying.payment_id) == "REFUNDED"
    await shop.check()


async def test_a_hold_that_only_redis_knows_is_waited_for(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await call_off(shop)
    assert await finish(shop) == 0
    assert await progress(shop) == (0, 0, False)
    await shop.drain()
    assert await finish(shop) == 1
    await shop.drain()
    await finish(shop)
    assert await progress(shop) == (1, 1, True)
    assert await shop.reservation(hold_id) == ("CANCELLED", "EVENT_CANCELLED")


async def test_a_payment_that_begins_as_its_hold_is_ended_sets_nothing_aside(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)
    await shop.drain()
    await call_off(shop)
    assert await finish(shop) == 1
    (refused,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert (refused.status, refused.reason) == ("FAILED", "hold_ended")  # type: ignore[union-attr]
    assert await shop.set_aside("ann") == 0
    assert await shop.states() == {}


async def test_it_is_not_over_before_redis_knows_that_the_sale_is_closed(shop: Shop) -> None:
    sale = await shop.sale()
    await call_off(shop)
    await shop.stores.redis.execute_command("HSET", sale.keys.sale, "version", str(sale.version))
    await finish(shop)
    assert not (await progress(shop))[2]
    await shop.stores.redis.execute_command("HSET", sale.keys.sale, "state", "rebuilding")
    await finish(shop)
    assert not (await progress(shop))[2]


async def test_a_buyer_who_cancels_an_event_that_is_off_has_everything_back(shop: Shop) -> None:
    await set_policy(shop, {"hours_before": 48, "percent": 50})
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    await starts_in(shop, hours=-1)
    await call_off(shop)
    quoted = await quote(shop, hold_id)
    assert (quoted.amount, quoted.kept) == (PRICE, 0)
    given_back = await cancel(shop, hold_id, refund_to="BALANCE")
    assert (given_back.reason, given_back.refund_amount) == ("EVENT_CANCELLED", PRICE)
    await shop.drain()
    await finish(shop)
    assert (await progress(shop))[1:] == (0, True)


async def test_an_event_that_nobody_knows_is_not_called_off(shop: Shop) -> None:
    missing = await seat_cancellations.call_off(shop.stores, shop.book, schedule_id=ids.random_id())
    assert missing == NotFound()
    assert await seat_cancellations.find_call_off(shop.stores.postgres, ids.random_id()) is None


async def test_two_workers_never_do_the_same_batch(shop: Shop) -> None:
    for at in range(1, 7):
        await bought(shop, f"A-1-{at}", by=f"buyer {at}")
    await call_off(shop)
    for _ in range(3):
        await asyncio.gather(*[seat_cancellations.go_on(shop.stores, shop.book, most=1) for _ in range(4)])
    await finish(shop)
    assert await rows(shop, "SELECT count(*), count(DISTINCT reservation_id) FROM cancellations") == [(6, 6)]
    assert await rows(shop, "SELECT DISTINCT amount, version FROM balances") == [(10_000_000, 2)]
