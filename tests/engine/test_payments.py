"""Payments: authorised together, answered by their rows, and finished whatever died in between."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from engine import ids, payments, rebuild, seats
from engine.payments import Authorisation, InsufficientBalance, OutcomeUnknown, Payment, Till, Waiters
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.seats import HoldEnded, PaymentRunning
from engine.stores.connections import Stores, StoreUnavailable, open_postgres
from engine.stores.outbox import CHANNEL, Reader
from tests.shop import PRICE, Shop, open_shop
from tests.wires import losing_answers

T = TypeVar("T")


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


@asynccontextmanager
async def opened_till(shop: Shop, *, answer_within_s: float = 5.0) -> AsyncIterator[Till]:
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        yield Till(shop.stores.gate, shop.stores.postgres, waiters, answer_within_s=answer_within_s)


async def drained_until(shop: Shop, asked: Awaitable[T]) -> T:
    """Do a worker's work until this is answered."""
    sale, answer = await shop.sale(), asyncio.ensure_future(asked)
    generation = await shop.own()
    readers = [
        Reader(shop.stores.gate, shop.stores.postgres, sale.keys, stream, generation, handler)
        for stream, handler in rebuild.handlers(sale).items()
    ]
    while not answer.done():
        for reader in readers:
            await reader.drain()
        await asyncio.sleep(0)
    return await answer


async def pay(shop: Shop, till: Till, hold_id: str, *, by: str = "ann", key: str = "a key", **more: Any) -> Any:
    """What the route of payments asks."""
    return await till.pay(
        await shop.sale(),
        payment_id=ids.derive("payment", hold_id, key),
        reservation_id=hold_id,
        user_id=await shop.person(by),
        **{"fingerprint": "f" * 16} | more,
    )


async def set_balance(shop: Shop, name: str, amount: int) -> None:
    await shop.stores.postgres.execute(
        "UPDATE balances SET amount = $2 WHERE user_id = $1", await shop.person(name), amount
    )


async def authorise(shop: Shop, *requests: Authorisation) -> list[Any]:
    return [
        answer.status if isinstance(answer, Payment) else answer
        for answer in await payments.authorise(shop.stores.postgres, requests)
    ]


def again(request: Authorisation, **changes: Any) -> Authorisation:
    return msgspec.structs.replace(request, **changes)


# Transaction A --------------------------------------------------------------------------------------------------------


async def test_funds_are_set_aside_beside_the_pending_reservation(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1", "A-1-2"))
    (payment,) = await payments.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert (payment.status, payment.public_status, payment.final_amount) == ("AUTHORISED", "PENDING", 2 * PRICE)
    assert await shop.set_aside("ann") == 2 * PRICE
    assert await shop.reservation(request.holding.reservation_id) == ("PENDING", None)
    lines = await shop.stores.postgres.fetch("SELECT seat_no, price, status FROM reservation_seats ORDER BY 1")
    assert [tuple(line) for line in lines] == [("A-1-1", PRICE, "HELD"), ("A-1-2", PRICE, "HELD")]


async def test_a_row_that_the_journal_brought_first_is_the_same_row(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    assert await authorise(shop, request) == ["AUTHORISED"]
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM reservations") == 1
    await shop.drain()


async def test_a_payment_that_is_too_much_fails_and_says_what_there_was(shop: Shop) -> None:
    await set_balance(shop, "ann", PRICE - 1)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    (payment,) = await payments.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert payment.status == "FAILED"
    assert payments.refusal_of(payment) == InsufficientBalance(needed=PRICE, available=PRICE - 1)
    assert await shop.set_aside("ann") == 0


async def test_requests_of_one_user_are_decided_in_order_with_what_is_left(shop: Shop) -> None:
    await set_balance(shop, "ann", 2 * PRICE)
    wanted = [("A-1-1",), ("A-1-2", "A-1-3"), ("A-1-4",), ("A-1-5",)]
    requests = [await shop.begin_payment(await shop.hold(*seat_nos)) for seat_nos in wanted]
    assert await authorise(shop, *requests) == ["AUTHORISED", "FAILED", "AUTHORISED", "FAILED"]
    assert await shop.set_aside("ann") == 2 * PRICE


async def test_the_same_payment_again_is_answered_by_its_row(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(shop, request, request) == ["AUTHORISED", "AUTHORISED"]
    assert await authorise(shop, request) == ["AUTHORISED"]
    assert await shop.set_aside("ann") == PRICE
    await payments.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
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
    await set_balance(shop, "ann", 0)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(shop, request) == ["FAILED"]
    await set_balance(shop, "ann", PRICE)
    assert await authorise(shop, again(request, payment_id="0e" * 16)) == ["AUTHORISED"]


async def test_a_hold_whose_row_has_ended_is_not_paid(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    await shop.stores.postgres.execute("UPDATE reservations SET status = 'CANCELLED', reason = 'EXPIRED'")
    (payment,) = await payments.authorise(shop.stores.postgres, [request])
    assert isinstance(payment, Payment)
    assert isinstance(payments.refusal_of(payment), HoldEnded)
    assert await shop.set_aside("ann") == 0


@pytest.mark.parametrize("lie", [{"fence": 9}, {"seat_nos": ("A-1-1", "A-1-2"), "prices": (PRICE, PRICE)}])
async def test_a_row_of_another_fence_or_without_these_seats_is_not_paid(shop: Shop, lie: dict[str, Any]) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    await shop.drain()
    lying = again(request, holding=msgspec.structs.replace(request.holding, **lie))
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
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.prices, "A-1-1", "0")
    free = await shop.begin_payment(await shop.hold("A-1-1"))
    dear = await shop.begin_payment(await shop.hold("A-1-2"))
    await shop.stores.postgres.execute("DELETE FROM balances")
    assert await authorise(shop, free, dear) == ["AUTHORISED", "FAILED"]


async def test_one_that_postgres_refuses_harms_nobody_else_in_the_batch(shop: Shop) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    other = await shop.begin_payment(await shop.hold("A-1-2", by="bob"))
    nobody = msgspec.structs.replace(request.holding, reservation_id="0e" * 16, user_id="0f" * 16)
    stranger = again(request, payment_id="0d" * 16, holding=nobody)
    first, refused, last = await authorise(shop, request, stranger, other)
    assert (first, last) == ("AUTHORISED", "AUTHORISED")
    assert isinstance(refused, asyncpg.ForeignKeyViolationError)
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 2


async def test_a_lost_answer_is_asked_for_with_the_same_ids(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"COMMIT;", times=1) as url:
        lossy = await open_postgres(url)
        (payment,) = await payments.authorise(lossy, [request])
        await lossy.close()
    assert isinstance(payment, Payment)
    assert payment.status == "AUTHORISED"
    assert await shop.set_aside("ann") == PRICE


async def test_an_outcome_that_stays_unknown_is_said_to_be_unknown(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"COMMIT;", times=2) as url:
        lossy = await open_postgres(url)
        with pytest.raises(OutcomeUnknown):
            await payments.authorise(lossy, [request])
        await lossy.close()
    assert await shop.payment(request.payment_id) == "AUTHORISED"
    assert await shop.set_aside("ann") == PRICE


async def test_a_postgres_that_never_heard_of_it_is_away_and_no_mystery(shop: Shop, postgres_url: str) -> None:
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    async with losing_answers(postgres_url, to=b"balances", times=2) as url:
        lossy = await open_postgres(url)
        with pytest.raises(StoreUnavailable) as raised:
            await payments.authorise(lossy, [request])
        await lossy.close()
    assert not isinstance(raised.value, OutcomeUnknown)
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 0


# A buyer pays ---------------------------------------------------------------------------------------------------------


async def test_success_is_said_after_the_commit(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    assert (payment.status, payment.reservation_id, payment.final_amount) == ("SUCCESS", hold_id, PRICE)
    assert payment.paid_at is not None
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    await shop.check()


async def test_past_the_bound_the_answer_is_pending_and_goes_on_without_the_buyer(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop, answer_within_s=0.0) as till:
        payment = await pay(shop, till, hold_id)
        assert payment.public_status == "PENDING"
        await shop.drain()
        assert (await pay(shop, till, hold_id)).status == "SUCCESS"
    await shop.check()


async def test_a_key_always_answers_its_row_and_acts_once(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        first = await drained_until(shop, pay(shop, till, hold_id))
        assert await pay(shop, till, hold_id) == first
        assert await pay(shop, till, hold_id, fingerprint="0" * 16) == IdempotencyKeyReused()
        assert await pay(shop, till, hold_id, key="another") == HoldEnded(reason="SOLD")
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM balance_history") == 1


async def test_the_same_request_many_times_at_once_has_one_effect(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        answers = await drained_until(shop, asyncio.gather(*[pay(shop, till, hold_id) for _ in range(50)]))
    assert {answer.status for answer in answers} == {"SUCCESS"}
    assert await shop.stores.postgres.fetchval("SELECT count(*) FROM payments") == 1
    await shop.check()


async def test_a_refused_payment_leaves_the_hold_to_a_new_key(shop: Shop) -> None:
    await set_balance(shop, "ann", 0)
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        refused = await pay(shop, till, hold_id)
        assert payments.refusal_of(refused) == InsufficientBalance(needed=PRICE, available=0)
        assert await shop.states() == {"A-1-1": "HELD"}
        await set_balance(shop, "ann", PRICE)
        assert payments.refusal_of(await pay(shop, till, hold_id)) == InsufficientBalance(needed=PRICE, available=0)
        paid = await drained_until(shop, pay(shop, till, hold_id, key="a new one"))
    assert paid.status == "SUCCESS"
    await shop.check()


async def test_a_running_payment_is_named_to_another_key(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    request = await shop.authorise(hold_id)
    async with opened_till(shop) as till:
        assert await pay(shop, till, hold_id) == PaymentRunning(payment_id=request.payment_id)


async def test_what_postgres_still_runs_is_named_and_the_hold_is_not_kept_paying(shop: Shop) -> None:
    """Redis has given the first payment up; its row has not been ended yet."""
    hold_id = await shop.hold("A-1-1")
    request = await shop.authorise(hold_id)
    await seats.abandon(
        shop.stores.gate,
        await shop.sale(),
        hold_id=hold_id,
        fence=request.holding.fence,
        payment_id=request.payment_id,
    )
    async with opened_till(shop) as till:
        assert await pay(shop, till, hold_id) == PaymentRunning(payment_id=request.payment_id)
    assert await shop.states() == {"A-1-1": "HELD"}


async def test_nobody_pays_somebody_elses_hold(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        assert await pay(shop, till, hold_id, by="bob") == NotFound()
        assert await pay(shop, till, "0e" * 16) == NotFound()
    assert await shop.states() == {"A-1-1": "HELD"}


async def test_a_hold_that_has_ended_is_not_paid(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.release(hold_id)
    async with opened_till(shop) as till:
        assert await pay(shop, till, hold_id) == HoldEnded(reason="USER")
        await shop.drain()
        await shop.stores.redis.delete((await shop.sale()).keys.holds)  # past the repeat window
        assert await pay(shop, till, hold_id) == HoldEnded(reason="USER")


async def test_a_hold_that_redis_forgot_after_the_funds_were_set_aside_is_voided(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        request = await shop.begin_payment(hold_id)
        (payment,) = await payments.authorise(shop.stores.postgres, [request])
        assert isinstance(payment, Payment)
        await shop.stores.redis.execute_command("HDEL", (await shop.sale()).keys.holds, hold_id)
        answer = await till._confirm(await shop.sale(), payment)
    assert isinstance(answer, Payment)
    assert isinstance(payments.refusal_of(answer), HoldEnded)
    assert await shop.set_aside("ann") == 0


async def test_what_a_stale_copy_does_not_know_is_not_voided(shop: Shop) -> None:
    """The sale went on in another epoch: only that copy's word counts."""
    request = await shop.authorise(await shop.hold("A-1-1"))
    stale = await shop.sale()
    await shop.stores.postgres.execute("UPDATE sales SET epoch = epoch + 1")
    assert not await payments.end(shop.stores.postgres, {request.payment_id: "VOIDED"}, copy_of=stale)
    await shop.stores.postgres.execute("UPDATE sales SET epoch = epoch - 1, store_state = 'rebuilding'")
    assert not await payments.end(shop.stores.postgres, {request.payment_id: "VOIDED"}, copy_of=stale)
    assert await shop.payment(request.payment_id) == "AUTHORISED"


async def test_an_unknown_outcome_is_answered_as_pending(shop: Shop, postgres_url: str) -> None:
    hold_id = await shop.hold("A-1-1")
    async with losing_answers(postgres_url, to=b"COMMIT;", times=2) as url:
        lossy = await open_postgres(url)
        till = Till(shop.stores.gate, lossy, Waiters(lossy, shop.stores.listener))
        payment = await pay(shop, till, hold_id)
        await lossy.close()
    assert payment.public_status == "PENDING"
    assert abs((payment.created_at.timestamp() * 1000) - (await shop.find(hold_id)).now_ms) < 10_000
    await shop.age(payment.payment_id)
    await payments.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())
    await shop.drain()
    assert await shop.payment(payment.payment_id) == "SUCCESS"
    await shop.check()


# Waiting for the commit -----------------------------------------------------------------------------------------------


async def say(shop: Shop, n: int, *, epoch: int = 1, sale_id: str | None = None) -> None:
    await shop.stores.redis.execute_command("PUBLISH", CHANNEL, f"{sale_id or shop.sale_id} {epoch} {n}")


async def listened(shop: Shop) -> None:
    """Wait until the subscription stands."""
    redis: Any = shop.stores.redis
    async with asyncio.timeout(5):
        while dict(await redis.pubsub_numsub(CHANNEL)).get(CHANNEL.encode()) != 1:  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.005)


async def settled_payment(shop: Shop, seat_no: str = "A-1-1") -> Authorisation:
    request = await shop.buy(seat_no)
    await shop.drain()
    return request


@pytest.fixture
async def waiters(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Waiters]:
    """Waiters that never look before they are told to."""
    monkeypatch.setattr(payments, "SILENCE_S", 60.0)
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        await listened(shop)
        yield waiters


async def is_waiting(asked: "asyncio.Task[Any]") -> bool:
    done, _ = await asyncio.wait([asked], timeout=0.1)
    return not done


async def test_a_number_at_or_above_ones_own_wakes_and_a_lower_one_does_not(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 5, within_s=30))
    await asyncio.sleep(0)
    await say(shop, 4)
    assert await is_waiting(asked)
    await say(shop, 6)
    answer = await asked
    assert answer is not None
    assert answer.status == "SUCCESS"


async def test_a_number_only_wakes_and_the_row_is_the_answer(shop: Shop, waiters: Waiters) -> None:
    first, second = await settled_payment(shop), await shop.authorise(await shop.hold("A-1-2"))
    await payments.end(shop.stores.postgres, {second.payment_id: "VOIDED"})
    sale = await shop.sale()
    asked = [
        asyncio.create_task(waiters.settled(sale, request.payment_id, n, within_s=30))
        for n, request in enumerate((first, second), 1)
    ]
    await asyncio.sleep(0)
    await say(shop, 2)
    assert [answer and answer.status for answer in await asyncio.gather(*asked)] == ["SUCCESS", "VOIDED"]


async def test_a_number_that_was_heard_before_is_not_waited_for(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    waiters._hear(shop.sale_id, 1, 8)
    async with asyncio.timeout(10):
        assert await waiters.settled(await shop.sale(), request.payment_id, 8, within_s=30) is not None


async def test_another_epoch_of_the_sale_wakes_everybody_who_waits_for_it(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=30))
    await asyncio.sleep(0)
    await say(shop, 1, epoch=2)
    async with asyncio.timeout(10):
        assert await asked is not None


async def test_a_reconnect_wakes_everybody(
    shop: Shop, waiters: Waiters, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=60))
    assert await is_waiting(asked)
    # The pause before it connects again; whoever waits already waits for longer.
    monkeypatch.setattr(payments, "SILENCE_S", 0.01)
    await redis.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(10):
        assert await asked is not None


async def test_a_lost_number_costs_a_quarter_of_a_second_however_much_others_talk(shop: Shop) -> None:
    request = await settled_payment(shop)
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        await listened(shop)
        asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=30))
        async with asyncio.timeout(5):
            while not asked.done():
                await say(shop, 1, sale_id="0e" * 16)
                await asyncio.sleep(0.01)
    assert (await asked) is not None
    assert waiters._waiting == {}


async def test_what_is_not_settled_in_time_is_nobodys_answer(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    assert await waiters.settled(await shop.sale(), request.payment_id, 1, within_s=0.05) is None
    assert waiters._waiting == {}


async def test_a_postgres_that_goes_away_while_one_waits_is_not_known(shop: Shop, postgres_url: str) -> None:
    request = await settled_payment(shop)
    async with losing_answers(postgres_url, to=b"FROM payments", times=1) as url:
        lossy = await open_postgres(url)
        waiters = Waiters(lossy, shop.stores.listener)
        answer = await waiters.settled(await shop.sale(), request.payment_id, 1, within_s=5)
        await lossy.close()
    assert answer is not None
    assert answer.status == "SUCCESS"


# The reconciler -------------------------------------------------------------------------------------------------------


async def reconcile(shop: Shop) -> payments.Reconciled:
    return await payments.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())


async def let_time_pass(shop: Shop, ms: int = 3_600_000) -> None:
    """Let the sale's clock be an hour later: its time never goes back."""
    now_ms = (await shop.find(await shop.hold("A-1-6", by="clock"))).now_ms
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "now_ms", str(now_ms + ms))


async def test_an_authorised_payment_that_stands_still_is_confirmed_again(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    assert await reconcile(shop) == payments.Reconciled()  # a moment ago somebody was still at it
    await shop.age(request.payment_id)
    assert (await reconcile(shop)).confirmed == 1
    await shop.drain()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    await shop.check()


async def test_one_whose_hold_redis_forgot_is_voided_and_its_row_ends(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id, keys = request.holding.reservation_id, (await shop.sale()).keys
    await shop.stores.redis.execute_command("HDEL", keys.holds, hold_id)
    await shop.age(request.payment_id)
    assert (await reconcile(shop)).ended == 1
    assert await shop.payment(request.payment_id) == "VOIDED"
    assert await shop.set_aside("ann") == 0
    await shop.stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    await reconcile(shop)
    assert await shop.reservation(hold_id) == ("CANCELLED", "EXPIRED")


async def test_a_payment_that_never_came_to_a_row_is_abandoned_past_its_deadline(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.begin_payment(hold_id)
    assert (await reconcile(shop)).abandoned == 0
    await let_time_pass(shop)
    assert (await reconcile(shop)).abandoned == 1
    assert (await shop.find(hold_id)).state == "ENDED"
    await shop.drain()
    assert (await shop.row())["store_state"] == "open"
    # Its row came by the journal, after the outbox had said that it ended: the reconciler finds it out.
    await shop.stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 hour'")
    await reconcile(shop)
    assert await shop.reservation(hold_id) == ("CANCELLED", "EXPIRED")


async def test_a_refused_payment_whose_hold_was_not_given_up_is_abandoned_past_its_deadline(shop: Shop) -> None:
    await set_balance(shop, "ann", 0)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    assert await authorise(shop, request) == ["FAILED"]  # and there the process died
    await let_time_pass(shop)
    assert (await reconcile(shop)).abandoned == 1
    assert (await shop.find(request.holding.reservation_id)).state == "ENDED"


async def test_a_live_payment_past_its_deadline_is_confirmed_and_never_abandoned(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await let_time_pass(shop)
    assert (await reconcile(shop)).abandoned == 0
    await shop.age(request.payment_id)
    assert (await reconcile(shop)).confirmed == 1
    await shop.drain()
    await shop.check()


async def test_a_payment_in_doubt_is_left_to_an_operator(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.stores.postgres.execute("UPDATE payments SET status = 'IN_DOUBT'")
    await shop.age(request.payment_id)
    await let_time_pass(shop)
    await reconcile(shop)
    assert await shop.payment(request.payment_id) == "IN_DOUBT"
    assert (await shop.find(request.holding.reservation_id)).state == "PAYING"


async def test_a_pending_payment_past_its_deadline_is_abandoned_first_and_then_failed(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.stores.postgres.execute("UPDATE payments SET status = 'PENDING'")
    await shop.age(request.payment_id)
    assert await reconcile(shop) == payments.Reconciled()  # its buyer may still act
    await shop.stores.postgres.execute("UPDATE payments SET pay_deadline = now()")
    assert (await reconcile(shop)).ended == 1
    assert await shop.payment(request.payment_id) == "FAILED"
    assert await shop.states() == {"A-1-1": "HELD"}
    assert await shop.set_aside("ann") == 0


async def test_a_pending_payment_that_was_sold_is_left_to_the_outbox(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await shop.stores.postgres.execute("UPDATE payments SET status = 'PENDING', pay_deadline = now()")
    await shop.age(request.payment_id)
    assert (await reconcile(shop)).ended == 0
    assert await shop.payment(request.payment_id) == "PENDING"


async def test_what_another_copy_answers_ends_nothing(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    stale = await shop.sale()
    await shop.stores.postgres.execute("UPDATE sales SET epoch = 2")
    await shop.stores.redis.delete(stale.keys.holds)
    await shop.age(request.payment_id)
    await payments.reconcile(shop.stores.gate, shop.stores.postgres, stale)
    assert await shop.payment(request.payment_id) == "AUTHORISED"


@pytest.mark.parametrize("step", ["pay", "authorise", "confirm", "drain"])
async def test_whatever_step_the_process_died_after_the_hold_is_sold_or_free(shop: Shop, step: str) -> None:
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)
    if step != "pay":
        assert await authorise(shop, request) == ["AUTHORISED"]
    if step in {"confirm", "drain"}:
        assert isinstance(await shop.confirm(request), seats.Confirmed)
    if step == "drain":
        await shop.drain()
    await let_time_pass(shop)
    await shop.stores.postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
    for _ in range(2):  # a second pass, and a second drain, find nothing left to do
        await reconcile(shop)
        await shop.drain()
    assert (await shop.find(hold_id)).state == ("ENDED" if step == "pay" else "SOLD")
    assert await shop.set_aside("ann") == 0
    assert (await shop.row())["store_state"] == "open"
    await shop.check()


# Seats to be given back -----------------------------------------------------------------------------------------------


async def test_a_sale_that_was_undone_gives_its_seats_back(shop: Shop) -> None:
    request = await shop.buy("A-1-1", "A-1-2")
    await payments.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.drain()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert (await reconcile(shop)).restored == 1
    assert await shop.states() == {}
    assert (await reconcile(shop)).restored == 0
    await shop.drain()
    await shop.check()


async def test_what_could_not_be_given_back_is_tried_again(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await payments.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.drain()
    keys = (await shop.sale()).keys
    await shop.stores.redis.execute_command("HSET", keys.sale, "state", "rebuilding")
    assert (await reconcile(shop)).restored == 0
    await shop.stores.redis.execute_command("HSET", keys.sale, "state", "open")
    assert (await reconcile(shop)).restored == 1
    assert await shop.states() == {}


async def test_a_claim_cannot_be_given_up_while_redis_is_told_of_it(shop: Shop) -> None:
    """Told and given up at once, it would come back as SOLD for ever."""
    first = await shop.buy("A-1-1")
    await shop.drain()
    postgres = shop.stores.postgres
    await postgres.execute(
        "INSERT INTO restores (reservation_id, sale_id, fence, token_goes_next) VALUES ($1, $2, $3, false)",
        first.holding.reservation_id,
        shop.sale_id,
        first.holding.fence,
    )
    async with postgres.acquire() as other, other.transaction():
        await other.execute("UPDATE reservation_seats SET status = 'ENDED' WHERE status = 'CLAIMED'")
        restoring = asyncio.create_task(reconcile(shop))
        assert await is_waiting(restoring)
    assert (await restoring).restored == 1
    assert await shop.states() == {}
