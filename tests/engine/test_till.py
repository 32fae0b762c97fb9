"""The till: a buyer pays, and is answered by the payment's row."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import pytest

from engine import authorisations, ids, payments, rebuild, reconciliation, seats
from engine.payments import InsufficientBalance, Payment
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.seats import HoldEnded, PaymentRunning
from engine.stores.connections import Stores, open_postgres
from engine.stores.outbox import Reader
from engine.till import Till
from engine.waiters import Waiters
from tests.shop import PRICE, Selling, Shop, open_shop
from tests.wires import losing_answers

T = TypeVar("T")


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


@asynccontextmanager
async def opened_till(shop: Selling, *, answer_within_s: float = 5.0) -> AsyncIterator[Till]:
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        yield Till(shop.stores.gate, shop.stores.postgres, waiters, answer_within_s=answer_within_s)


async def drained_until(shop: Selling, asked: Awaitable[T]) -> T:
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
        hold_id=hold_id,
        user_id=await shop.person(by),
        **{"fingerprint": "f" * 16} | more,
    )


async def test_success_is_said_after_the_commit(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    assert (payment.status, payment.hold_id, payment.final_amount) == ("SUCCESS", hold_id, PRICE)
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
        assert await pay(shop, till, hold_id) == msgspec.structs.replace(first, repeated=True)
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
    await shop.set_balance("ann", 0)
    hold_id = await shop.hold("A-1-1")
    async with opened_till(shop) as till:
        refused = await pay(shop, till, hold_id)
        assert payments.refusal_of(refused) == InsufficientBalance(needed=PRICE, available=0)
        assert await shop.states() == {"A-1-1": "HELD"}
        await shop.set_balance("ann", PRICE)
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
        (payment,) = await authorisations.authorise(shop.stores.postgres, [request])
        assert isinstance(payment, Payment)
        await shop.stores.redis.execute_command("HDEL", (await shop.sale()).keys.holds, hold_id)
        answer = await till._confirm(await shop.sale(), payment)
    assert isinstance(answer, Payment)
    assert isinstance(payments.refusal_of(answer), HoldEnded)
    assert await shop.set_aside("ann") == 0


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
    await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())
    await shop.drain()
    assert await shop.payment(payment.payment_id) == "SUCCESS"
    await shop.check()
