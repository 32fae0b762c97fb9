"""Settlement: facts of the outbox become sales that stand, or are undone whole."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from engine import authorisations, ids, reconciliation, seats, settlement
from engine.stores.connections import Stores
from engine.stores.outbox import Divergence, Entry
from tests.shop import PRICE, Shop, fact, fact_of, open_shop


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


# A sale that stands ---------------------------------------------------------------------------------------------------


async def test_a_sale_that_stands_is_written_whole(shop: Shop) -> None:
    request = await shop.buy("A-1-1", "A-1-2")
    hold_id, user_id = request.holding.hold_id, request.holding.user_id
    before = await shop.rows("SELECT seats_available, version FROM schedules")
    await shop.drain()

    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.rows("SELECT seat_no, status FROM reservation_seats ORDER BY 1") == [
        ("A-1-1", "CLAIMED"),
        ("A-1-2", "CLAIMED"),
    ]
    assert await shop.rows("SELECT seat_no FROM seats WHERE sold ORDER BY 1") == [("A-1-1",), ("A-1-2",)]
    assert await shop.rows("SELECT seat_no, user_id, status FROM tickets ORDER BY 1") == [
        ("A-1-1", user_id, "VALID"),
        ("A-1-2", user_id, "VALID"),
    ]
    assert await shop.rows("SELECT amount, set_aside, version FROM balances") == [(10_000_000 - 2 * PRICE, 0, 1)]
    assert await shop.rows(
        "SELECT type, amount, balance_after, version, ref_type, ref_id, payment_id FROM balance_history"
    ) == [("USE", 2 * PRICE, 10_000_000 - 2 * PRICE, 1, "payment", request.payment_id, request.payment_id)]
    # What is left is counted; the schedule's version is its operator's.
    ((available, version),) = before
    assert await shop.rows("SELECT seats_available, version FROM schedules") == [(available - 2, version)]
    await shop.check()


async def test_several_payments_of_one_user_in_a_batch_each_see_what_is_left(shop: Shop) -> None:
    for number in range(1, 5):
        await shop.buy(f"A-1-{number}")
    await shop.drain()
    assert await shop.rows("SELECT amount, balance_after, version FROM balance_history ORDER BY version") == [
        (PRICE, 10_000_000 - PRICE * number, number) for number in range(1, 5)
    ]
    assert await shop.rows("SELECT amount, set_aside, version FROM balances") == [(10_000_000 - 4 * PRICE, 0, 4)]
    await shop.check()


async def test_what_costs_nothing_writes_no_history(shop: Shop) -> None:
    await shop.set_price("A-1-1", 0)
    request = await shop.buy("A-1-1")
    await shop.drain()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.rows("SELECT * FROM balance_history") == []
    assert await shop.rows("SELECT amount, version FROM balances") == [(10_000_000, 0)]


async def test_the_same_sale_told_again_changes_nothing(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await shop.drain()
    before = await shop.rows("SELECT * FROM payments, balances, reservations, schedules")
    await shop.settle(fact_of(request, "confirmed", n=2))
    assert await shop.rows("SELECT * FROM payments, balances, reservations, schedules") == before
    assert await shop.rows("SELECT * FROM restores") == []


async def test_the_place_in_line_of_a_sale_that_stands_is_processed(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.settle(fact_of(request, "confirmed", n=1, queue_no="7"))
    assert await shop.rows("SELECT queue_no, status, owner FROM queue_tokens") == [
        (7, "PROCESSED", request.holding.user_id)
    ]


# One that does not ----------------------------------------------------------------------------------------------------


async def test_of_two_holds_for_one_seat_the_first_stands_and_the_other_is_undone_whole(shop: Shop) -> None:
    first = await shop.buy("A-1-1")
    second = await shop.rival("A-1-1", "A-1-2", by="bob")
    await shop.set_funds_aside(second)
    assert await shop.set_aside("bob") == 2 * PRICE
    await shop.drain()
    await shop.settle(fact_of(second, "confirmed", n=9))

    assert await shop.payment(first.payment_id) == "SUCCESS"
    assert await shop.payment(second.payment_id) == "VOIDED"
    assert await shop.reservation(second.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    assert await shop.set_aside("bob") == 0
    assert await shop.rows("SELECT hold_id, fence, token_goes_next, done_at FROM restores") == [
        (second.holding.hold_id, second.holding.fence, True, None)
    ]
    assert await shop.rows("SELECT seat_no, status FROM reservation_seats ORDER BY status, 1") == [
        ("A-1-1", "CLAIMED"),
        ("A-1-1", "ENDED"),
        ("A-1-2", "ENDED"),
    ]
    assert await shop.rows("SELECT seat_no FROM seats WHERE sold") == [("A-1-1",)]
    assert await shop.rows("SELECT user_id FROM balance_history") == [(first.holding.user_id,)]


async def test_a_late_confirm_after_a_void_is_undone(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.settle(fact_of(request, "confirmed", n=1))
    assert await shop.payment(request.payment_id) == "VOIDED"
    assert await shop.reservation(request.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    assert await shop.rows("SELECT hold_id FROM restores") == [(request.holding.hold_id,)]
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(10_000_000, 0)]


async def test_a_sale_by_another_fence_does_not_stand(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id = request.holding.hold_id
    await shop.settle(fact("confirmed", n=1, hold_id=hold_id, payment_id=request.payment_id, fence=5))
    assert await shop.payment(request.payment_id) == "AUTHORISED"  # it is of the hold with the right fence
    assert await shop.rows("SELECT fence FROM restores") == [(5,)]
    assert await shop.rows("SELECT * FROM tickets") == []


async def test_a_fact_that_names_somebody_elses_payment_does_not_end_it(shop: Shop) -> None:
    ann = await shop.authorise(await shop.hold("A-1-1"))
    bob = await shop.authorise(await shop.hold("A-1-2", by="bob"))
    await shop.settle(fact("confirmed", n=1, hold_id=ann.holding.hold_id, payment_id=bob.payment_id))
    assert await shop.payment(bob.payment_id) == "AUTHORISED"
    assert await shop.set_aside("bob") == PRICE


@pytest.mark.parametrize("missing", ["payment", "reservation"])
async def test_a_sale_that_postgres_never_heard_of_is_divergence(shop: Shop, missing: str) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id = request.holding.hold_id if missing == "payment" else "ee" * 16
    payment_id = request.payment_id if missing == "reservation" else "ee" * 16
    with pytest.raises(Divergence):
        await shop.settle(fact("confirmed", n=1, hold_id=hold_id, payment_id=payment_id))


# A payment that was given up ------------------------------------------------------------------------------------------


async def test_an_abandoned_payment_ends_and_its_hold_goes_on(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id = request.holding.hold_id
    await shop.settle(fact("abandoned", n=1, hold_id=hold_id, payment_id=request.payment_id, to="held"))
    assert await shop.payment(request.payment_id) == "VOIDED"
    assert await shop.set_aside("ann") == 0
    assert await shop.reservation(hold_id) == ("PENDING", None)


async def test_an_abandoned_hold_that_is_free_ends_its_row(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id = request.holding.hold_id
    await shop.settle(fact("abandoned", n=1, hold_id=hold_id, payment_id=request.payment_id, to="free"))
    assert await shop.reservation(hold_id) == ("CANCELLED", "EXPIRED")
    assert await shop.rows("SELECT status FROM reservation_seats") == [("ENDED",)]


async def test_a_payment_that_died_before_it_had_a_row_is_abandoned_without_alarm(shop: Shop) -> None:
    """The API died after the first step: neither payment nor reservation has a row, and no history is wrong."""
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)
    sale = await shop.sale()
    given_up = await seats.abandon(
        shop.stores.gate, sale, hold_id=hold_id, fence=request.holding.fence, payment_id=request.payment_id
    )
    assert given_up == seats.Abandoned("held")
    await shop.drain()
    assert (await shop.row())["store_state"] == "open"
    assert await shop.inspect() is None
    assert await shop.reservation(hold_id) == ("PENDING", None)


async def test_a_payment_that_has_paid_is_not_ended_by_a_late_abandoned(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await shop.drain()
    hold_id = request.holding.hold_id
    await shop.settle(fact("abandoned", n=2, hold_id=hold_id, payment_id=request.payment_id, to="free"))
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)


async def test_a_payment_that_fails_and_one_that_succeeds_for_the_same_hold_in_one_batch(shop: Shop) -> None:
    first = await shop.authorise(await shop.hold("A-1-1"))
    hold_id, sale = first.holding.hold_id, await shop.sale()
    await seats.abandon(shop.stores.gate, sale, hold_id=hold_id, fence=first.holding.fence, payment_id=first.payment_id)
    await authorisations.end(shop.stores.postgres, {first.payment_id: "VOIDED"})
    second = authorisations.Authorisation(
        payment_id=ids.random_id(), fingerprint="", pay_deadline_ms=first.pay_deadline_ms, holding=first.holding
    )
    paying = await seats.pay(
        shop.stores.gate, sale, hold_id=hold_id, buyer_id=first.holding.user_id, payment_id=second.payment_id
    )
    assert isinstance(paying, seats.Paying)
    await authorisations.authorise(shop.stores.postgres, [second])
    assert isinstance(await shop.confirm(second), seats.Confirmed)
    await shop.drain()
    assert [await shop.payment(request.payment_id) for request in (first, second)] == ["VOIDED", "SUCCESS"]
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    await shop.check()


# Cuts -----------------------------------------------------------------------------------------------------------------


def kinds(parts: Sequence[Sequence[Entry]]) -> list[list[str]]:
    return [[entry.kind for entry in part] for part in parts]


def test_a_batch_is_cut_only_before_what_follows_a_confirmed_of_the_same_hold() -> None:
    def told(kind: str, hold: str) -> Entry:
        return fact(kind, n=1, hold_id=hold * 16, payment_id="0a" * 16, to="held")

    assert kinds(settlement.cut([])) == []
    assert kinds(settlement.cut([told("abandoned", "aa"), told("confirmed", "aa"), told("confirmed", "bb")])) == [
        ["abandoned", "confirmed", "confirmed"]
    ]
    assert kinds(settlement.cut([told("confirmed", "aa"), told("confirmed", "bb"), told("restored", "aa")])) == [
        ["confirmed", "confirmed"],
        ["restored"],
    ]


# Poison ---------------------------------------------------------------------------------------------------------------


async def poison(shop: Shop, **fields: str) -> None:
    """Append a fact that nobody can apply, chained as a script would."""
    keys = (await shop.sale()).keys
    redis: Any = shop.stores.redis
    last = await redis.xrevrange(keys.outbox, count=1)
    n = await redis.hincrby(keys.sale, "outbox_n", 1)
    before = last[0][0].decode() if last else "0-0"
    entry = {"epoch": "1", "n": str(n), "before": before, "kind": "confirmed", "holds": "0-0"}
    await redis.xadd(keys.outbox, entry | fields)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"hold_id": "x", "payment_id": "y", "fence": "1"}, id="no ids"),
    ],
)
async def test_a_poison_entry_is_buried_and_the_rest_flows(shop: Shop, fields: dict[str, str]) -> None:
    before = await shop.buy("A-1-1")
    await poison(shop, **fields)
    after = await shop.buy("A-1-2", by="bob")
    await shop.drain()
    assert [await shop.payment(request.payment_id) for request in (before, after)] == ["SUCCESS", "SUCCESS"]
    assert await shop.rows("SELECT n, payment_id FROM dead_letters") == [(2, None)]
    await shop.check()


async def _doubtful(shop: Shop) -> Any:
    """A sale whose fact could not be applied: its payment is in doubt."""
    request = await shop.buy("A-1-1")
    await shop.stores.postgres.execute(
        "ALTER TABLE tickets ADD CONSTRAINT no_first_seat CHECK (seat_no <> 'A-1-1') NOT VALID"
    )
    await shop.drain()
    assert await shop.payment(request.payment_id) == "IN_DOUBT"
    assert await shop.set_aside("ann") == PRICE
    await shop.stores.postgres.execute("ALTER TABLE tickets DROP CONSTRAINT no_first_seat")
    return request


async def test_a_sale_that_postgres_refuses_leaves_its_payment_in_doubt(shop: Shop) -> None:
    request = await _doubtful(shop)
    assert await shop.rows("SELECT payment_id, kind FROM dead_letters") == [(request.payment_id, "confirmed")]
    assert (await shop.row())["store_state"] == "open"


async def test_a_doubt_resolved_as_good_is_applied_as_a_batch_of_its_own(shop: Shop) -> None:
    request, postgres, sale = await _doubtful(shop), shop.stores.postgres, await shop.sale()
    assert await settlement.resolve(postgres, sale, payment_id=request.payment_id, resolution="AUTHORISED")
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.reservation(request.holding.hold_id) == ("CONFIRMED", None)
    assert await shop.rows("SELECT resolution FROM dead_letters") == [("AUTHORISED",)]
    assert not await settlement.resolve(postgres, sale, payment_id=request.payment_id, resolution="FAILED")
    await shop.check()


async def test_a_doubt_resolved_as_bad_is_voided_and_its_seats_are_given_back(shop: Shop) -> None:
    request, postgres, sale = await _doubtful(shop), shop.stores.postgres, await shop.sale()
    assert await settlement.resolve(postgres, sale, payment_id=request.payment_id, resolution="FAILED")
    assert await shop.payment(request.payment_id) == "VOIDED"
    assert await shop.reservation(request.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    done = await reconciliation.reconcile(shop.stores.gate, postgres, sale)
    assert done.restored == 1
    assert await shop.states() == {}
    await shop.drain()
    await shop.check()


async def test_a_doubt_that_is_still_refused_stays_in_doubt(shop: Shop) -> None:
    request, postgres, sale = await _doubtful(shop), shop.stores.postgres, await shop.sale()
    await postgres.execute("ALTER TABLE tickets ADD CONSTRAINT no_first_seat CHECK (seat_no <> 'A-1-1') NOT VALID")
    with pytest.raises(asyncpg.CheckViolationError):
        await settlement.resolve(postgres, sale, payment_id=request.payment_id, resolution="AUTHORISED")
    assert await shop.payment(request.payment_id) == "IN_DOUBT"
    assert await shop.rows("SELECT resolution FROM dead_letters") == [(None,)]


async def test_a_doubt_outlives_a_rebuild(shop: Shop) -> None:
    """What is to become of a payment is for a person to say, whatever becomes of the copy that told of it."""
    request, postgres = await _doubtful(shop), shop.stores.postgres
    await poison(shop, payment_id="none")
    await shop.drain()
    await shop.rebuild()
    assert await shop.rows("SELECT resolution FROM dead_letters ORDER BY n") == [(None,), ("REBUILT",)]
    sale = await shop.sale()
    assert await settlement.resolve(postgres, sale, payment_id=request.payment_id, resolution="AUTHORISED")
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.rows("SELECT resolution FROM dead_letters ORDER BY n") == [("AUTHORISED",), ("REBUILT",)]
