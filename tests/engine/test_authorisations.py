"""Authorisations: decided together, each with an outcome of its own, and given free again."""

from typing import Any, cast

import asyncpg
import msgspec
import pytest

from engine import authorisations, ids, payments, seats
from engine.authorisations import Authorisation, OutcomeUnknown
from engine.payments import InsufficientBalance, Payment
from engine.reservations import Holding
from engine.seats import HoldEnded, PaymentRunning
from engine.stores.connections import Stores, StoreUnavailable, open_postgres
from tests.shop import PRICE, Shop, open_shop
from tests.wires import losing_answers


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def authorise(shop: Shop, *requests: Authorisation) -> list[Any]:
    return [
        answer.status if isinstance(answer, Payment) else answer
        for answer in await authorisations.authorise(shop.stores.postgres, requests)
    ]


def again(request: Authorisation, **changes: Any) -> Authorisation:
    return msgspec.structs.replace(request, **changes)


async def test_funds_are_set_aside_beside_the_pending_reservation(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1", "A-1-2"))
    (payment,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert (payment.status, payment.public_status, payment.final_amount) == ("AUTHORISED", "PENDING", 2 * PRICE)
    assert await shop.set_aside("ann") == 2 * PRICE
    assert await shop.reservation(request.holding.hold_id) == ("PENDING", None)
    lines = await shop.stores.postgres.fetch("SELECT seat_no, price, status FROM reservation_seats ORDER BY 1")
    assert [tuple(line) for line in lines] == [("A-1-1", PRICE, "HELD"), ("A-1-2", PRICE, "HELD")]


async def test_a_row_that_the_journal_brought_first_is_the_same_row(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    assert await authorise(shop, request) == ["AUTHORISED"]
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM reservations") == 1
    await shop.drain()


async def test_a_payment_that_is_too_much_fails_and_says_what_there_was(shop: Shop) -> None:
    await shop.set_balance("ann", PRICE - 1)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    (payment,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert payment.status == "FAILED"
    assert payments.refusal_of(payment) == InsufficientBalance(needed=PRICE, available=PRICE - 1)
    assert await shop.set_aside("ann") == 0


async def test_requests_of_one_user_are_decided_in_order_with_what_is_left(shop: Shop) -> None:
    await shop.set_balance("ann", 2 * PRICE)
    wanted = [("A-1-1",), ("A-1-2", "A-1-3"), ("A-1-4",), ("A-1-5",)]
    requests = [await shop.begin_payment(await shop.hold(*seat_nos)) for seat_nos in wanted]
    assert await authorise(shop, *requests) == ["AUTHORISED", "FAILED", "AUTHORISED", "FAILED"]
    assert await shop.set_aside("ann") == 2 * PRICE


async def test_the_same_payment_again_is_answered_by_its_row(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(shop, request, request) == ["AUTHORISED", "AUTHORISED"]
    assert await authorise(shop, request) == ["AUTHORISED"]
    assert await shop.set_aside("ann") == PRICE
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    assert await authorise(shop, request) == ["VOIDED"]
    assert await shop.set_aside("ann") == 0


async def test_a_reservation_has_one_live_payment(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    other, third = again(request, payment_id="0e" * 16), again(request, payment_id="0d" * 16)
    running = PaymentRunning(payment_id=request.payment_id)
    assert await authorise(shop, request, other) == ["AUTHORISED", running]
    assert await authorise(shop, third) == [running]
    assert await shop.set_aside("ann") == PRICE
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 1


async def test_a_payment_after_one_that_failed_is_authorised(shop: Shop) -> None:
    await shop.set_balance("ann", 0)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(shop, request) == ["FAILED"]
    await shop.set_balance("ann", PRICE)
    assert await authorise(shop, again(request, payment_id="0e" * 16)) == ["AUTHORISED"]


async def test_a_hold_whose_row_has_ended_is_not_paid(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    await shop.stores.postgres.execute("UPDATE reservations SET status = 'CANCELLED', reason = 'EXPIRED'")
    (payment,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert isinstance(payments.refusal_of(payment), HoldEnded)
    assert await shop.set_aside("ann") == 0


@pytest.mark.parametrize("lie", [{"fence": 9}, {"seat_nos": ("A-1-1", "A-1-2"), "prices": (PRICE, PRICE)}])
async def test_a_row_of_another_fence_or_without_these_seats_is_not_paid(shop: Shop, lie: dict[str, Any]) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    lying = again(request, holding=msgspec.structs.replace(cast("Holding", request.holding), **lie))
    assert await authorise(shop, lying) == ["FAILED"]


async def test_seats_given_back_whose_entry_is_on_its_way_are_not_paid_for(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    await shop.drain()
    released = await seats.release(
        shop.stores.gate,
        await shop.sale(),
        hold_id=hold_id,
        buyer_id=await shop.person("ann"),
        release_id=ids.random_id(),
        fingerprint="",
        seat_nos=["A-1-2"],
    )
    assert isinstance(released, seats.Released)
    request = await shop.authorise(hold_id)  # the row still has both seats
    assert await shop.set_aside("ann") == PRICE
    await shop.confirm(request)
    await shop.drain()
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert await shop.states() == {"A-1-1": "SOLD"}
    await shop.check()


async def test_what_costs_nothing_needs_no_balance_at_all(shop: Shop) -> None:
    await shop.set_price("A-1-1", 0)
    free = await shop.begin_payment(await shop.hold("A-1-1"))
    dear = await shop.begin_payment(await shop.hold("A-1-2"))
    await shop.stores.postgres.execute("DELETE FROM balances")
    assert await authorise(shop, free, dear) == ["AUTHORISED", "FAILED"]


async def test_one_that_postgres_refuses_harms_nobody_else_in_the_batch(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    other = await shop.begin_payment(await shop.hold("A-1-2", by="bob"))
    nobody = msgspec.structs.replace(cast("Holding", request.holding), reservation_id="0e" * 16, user_id="0f" * 16)
    stranger = again(request, payment_id="0d" * 16, holding=nobody)
    first, refused, last = await authorise(shop, request, stranger, other)
    assert (first, last) == ("AUTHORISED", "AUTHORISED")
    assert isinstance(refused, asyncpg.ForeignKeyViolationError)
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 2


async def test_a_lost_answer_is_asked_for_with_the_same_ids(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"COMMIT;", times=1) as url:
        lossy = await open_postgres(url)
        (payment,) = await authorisations.authorise(lossy, [request])
        await lossy.close()
    assert isinstance(payment, Payment)
    assert payment.status == "AUTHORISED"
    assert await shop.set_aside("ann") == PRICE


async def test_an_outcome_that_stays_unknown_is_said_to_be_unknown(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"COMMIT;", times=2) as url:
        lossy = await open_postgres(url)
        with pytest.raises(OutcomeUnknown):
            await authorisations.authorise(lossy, [request])
        await lossy.close()
    assert await shop.payment(request.payment_id) == "AUTHORISED"
    assert await shop.set_aside("ann") == PRICE


async def test_a_postgres_that_never_heard_of_it_is_away_and_no_mystery(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"balances", times=2) as url:
        lossy = await open_postgres(url)
        with pytest.raises(StoreUnavailable) as raised:
            await authorisations.authorise(lossy, [request])
        await lossy.close()
    assert not isinstance(raised.value, OutcomeUnknown)
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 0


async def test_what_a_stale_copy_does_not_know_is_not_voided(shop: Shop) -> None:
    """The sale went on in another epoch: only that copy's word counts."""
    request = await shop.authorise(await shop.hold("A-1-1"))
    stale = await shop.sale()
    await shop.stores.postgres.execute("UPDATE sales SET epoch = epoch + 1")
    assert not await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"}, copy_of=stale)
    await shop.stores.postgres.execute("UPDATE sales SET epoch = epoch - 1, store_state = 'rebuilding'")
    assert not await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"}, copy_of=stale)
    assert await shop.payment(request.payment_id) == "AUTHORISED"
