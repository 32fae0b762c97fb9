"""Races of payments, each beside the simpler rule that loses it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from engine import authorisations, ids, rebuild, reconciliation, reservations, seats
from engine.authorisations import Authorisation
from engine.payments import Payment
from engine.stores.connections import Stores
from engine.stores.outbox import CHANNEL, Divergence, Reader
from engine.till import Till
from engine.waiters import Waiters
from tests.shop import PRICE, Shop, fact_of, open_shop


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


# A bare number wakes a waiter -----------------------------------------------------------------------------------------


async def listened(shop: Shop) -> None:
    redis: Any = shop.stores.redis
    async with asyncio.timeout(5):
        while dict(await redis.pubsub_numsub(CHANNEL)).get(CHANNEL.encode()) != 1:  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.005)


async def test_control_a_bare_number_calls_a_voided_payment_paid(shop: Shop) -> None:
    """The simpler rule: Postgres has n, so what was confirmed as n is confirmed."""
    channel = shop.stores.listener.pubsub()
    await channel.subscribe(CHANNEL)
    request = await shop.buy("A-1-1")
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.drain()
    async with asyncio.timeout(5):
        async for message in channel.listen():
            if message["type"] == "message":
                break
    await channel.aclose()  # type: ignore[no-untyped-call]
    answer = "SUCCESS" if int(message["data"].split()[2]) >= 1 else "PENDING"
    assert answer == "SUCCESS"
    assert await shop.payment(request.payment_id) == "VOIDED"


async def test_a_number_wakes_and_the_row_answers(shop: Shop) -> None:
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        await listened(shop)
        request = await shop.buy("A-1-1")
        await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
        asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1, within_s=30))
        await asyncio.sleep(0)
        await shop.drain()
        answer = await asked
    assert answer is not None
    assert answer.status == "VOIDED"


# A poor buyer in the batch --------------------------------------------------------------------------------------------


async def crowd(shop: Shop) -> list[Authorisation]:
    """Five buyers, of whom the third is poor."""
    requests = [await shop.begin_payment(await shop.hold(f"A-1-{at}", by=f"buyer {at}")) for at in range(1, 6)]
    await shop.stores.postgres.execute("UPDATE balances SET amount = 1 WHERE user_id = $1", requests[2].holding.user_id)
    return requests


async def test_control_one_statement_lets_a_poor_buyer_fail_everybody(shop: Shop) -> None:
    requests = await crowd(shop)
    with pytest.raises(asyncpg.CheckViolationError):
        await shop.stores.postgres.execute(
            "UPDATE balances SET set_aside = set_aside + $2 WHERE user_id = ANY ($1::uuid[])",
            [request.holding.user_id for request in requests],
            PRICE,
        )
    assert await shop.rows("SELECT sum(set_aside)::bigint FROM balances") == [(0,)]


async def test_a_poor_buyer_fails_alone(shop: Shop) -> None:
    requests = await crowd(shop)
    answers = await authorisations.authorise(shop.stores.postgres, requests)
    assert [answer.status for answer in answers if isinstance(answer, Payment)] == [
        "AUTHORISED",
        "AUTHORISED",
        "FAILED",
        "AUTHORISED",
        "AUTHORISED",
    ]


# Funds spent twice ----------------------------------------------------------------------------------------------------


async def test_control_reading_before_writing_spends_funds_twice(shop: Shop) -> None:
    user_id, postgres = await shop.person("ann"), shop.stores.postgres
    await postgres.execute("ALTER TABLE balances DROP CONSTRAINT balances_set_aside")
    await postgres.execute("UPDATE balances SET amount = $1", PRICE)
    both_have_read = asyncio.Barrier(2)

    async def authorise() -> bool:
        amount, aside = (await shop.rows("SELECT amount, set_aside FROM balances WHERE user_id = $1", user_id))[0]
        await both_have_read.wait()
        if amount - aside < PRICE:
            return False
        await postgres.execute("UPDATE balances SET set_aside = set_aside + $1", PRICE)
        return True

    assert all(await asyncio.gather(authorise(), authorise()))
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(PRICE, 2 * PRICE)]


async def test_funds_are_set_aside_once_however_many_processes_ask(shop: Shop) -> None:
    requests = [await shop.begin_payment(await shop.hold(f"A-1-{at}")) for at in range(1, 6)]
    await shop.stores.postgres.execute("UPDATE balances SET amount = $1", 3 * PRICE)
    answers = await asyncio.gather(*[authorisations.authorise(shop.stores.postgres, [request]) for request in requests])
    statuses = [answer.status for (answer,) in answers if isinstance(answer, Payment)]
    assert sorted(statuses) == ["AUTHORISED"] * 3 + ["FAILED"] * 2
    assert await shop.set_aside("ann") == 3 * PRICE


# Opposing orders ------------------------------------------------------------------------------------------------------


async def test_control_locks_in_the_order_of_the_requests_deadlock(shop: Shop) -> None:
    postgres, people = shop.stores.postgres, [await shop.person("ann"), await shop.person("bob")]
    both_have_one = asyncio.Barrier(2)

    async def authorise(user_ids: list[str]) -> None:
        async with postgres.acquire() as connection, connection.transaction():
            for at, user_id in enumerate(user_ids):
                await connection.execute("UPDATE balances SET set_aside = set_aside + 1 WHERE user_id = $1", user_id)
                if at == 0:
                    await both_have_one.wait()

    outcomes = await asyncio.gather(authorise(people), authorise(people[::-1]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome] == [asyncpg.DeadlockDetectedError]


async def test_batches_in_opposing_orders_never_deadlock(shop: Shop) -> None:
    requests = [await shop.rival(f"A-1-{at}", by=f"buyer {at}") for at in range(1, 7)]

    def copies(at: int) -> list[Authorisation]:
        # New payments each time, of the same people and holds: only the first of a hold is authorised.
        return [
            Authorisation(
                payment_id=ids.derive(str(at), request.payment_id),
                fingerprint="",
                holding=request.holding,
                pay_deadline_ms=request.pay_deadline_ms,
            )
            for request in (requests if at % 2 else requests[::-1])
        ]

    await asyncio.gather(*[authorisations.authorise(shop.stores.postgres, copies(at)) for at in range(24)])
    assert await shop.rows("SELECT count(*) FROM payments WHERE status = 'AUTHORISED'") == [(6,)]
    assert await shop.rows("SELECT sum(set_aside)::bigint FROM balances") == [(6 * PRICE,)]
    # The server tells its statistics when a connection has nothing else to do, or is asked to.
    await shop.stores.postgres.execute("SELECT pg_stat_force_next_flush()")
    assert await shop.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


# One seat twice in a batch --------------------------------------------------------------------------------------------


async def test_control_on_conflict_do_nothing_confirms_both_buyers_of_one_seat(shop: Shop) -> None:
    """The simpler rule, one chained statement: a claim that conflicts is passed over, and every payment succeeds."""
    first, second = await shop.rival("A-1-1", by="ann"), await shop.rival("A-1-1", by="bob")
    await shop.set_funds_aside(first, second)
    await shop.stores.postgres.execute("CREATE TABLE claims (seat_no text PRIMARY KEY, reservation_id uuid)")
    await shop.stores.postgres.execute(
        """
        WITH facts AS (
          SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS fact (reservation_id, payment_id)
        ), claimed AS (
          INSERT INTO claims
          SELECT seat_no, reservation_id FROM facts JOIN reservation_seats USING (reservation_id)
          ON CONFLICT DO NOTHING
        ), paid AS (
          UPDATE payments SET status = 'SUCCESS', paid_at = now()
          FROM facts WHERE payments.payment_id = facts.payment_id
        )
        UPDATE reservations SET status = 'CONFIRMED', confirmed_at = now()
        FROM facts WHERE reservations.reservation_id = facts.reservation_id
        """,
        [first.holding.hold_id, second.holding.hold_id],
        [first.payment_id, second.payment_id],
    )
    assert await shop.rows("SELECT count(*) FROM claims") == [(1,)]
    assert await shop.rows("SELECT count(*) FROM reservations WHERE status = 'CONFIRMED'") == [(2,)]


async def test_of_two_buyers_of_one_seat_in_a_batch_one_stands(shop: Shop) -> None:
    first, second = await shop.rival("A-1-1", "A-1-2", by="ann"), await shop.rival("A-1-2", "A-1-3", by="bob")
    await shop.set_funds_aside(first, second)
    await shop.settle(fact_of(first, "confirmed", n=1), fact_of(second, "confirmed", n=2))
    assert await shop.rows("SELECT payment_id, status FROM payments ORDER BY status") == [
        (first.payment_id, "SUCCESS"),
        (second.payment_id, "VOIDED"),
    ]
    assert await shop.rows(
        "SELECT seat_no, reservation_id FROM reservation_seats WHERE status = 'CLAIMED' ORDER BY 1"
    ) == [
        ("A-1-1", first.holding.hold_id),
        ("A-1-2", first.holding.hold_id),
    ]
    assert await shop.rows("SELECT hold_id FROM restores") == [(second.holding.hold_id,)]
    assert await shop.rows("SELECT user_id FROM balance_history") == [(first.holding.user_id,)]
    assert await shop.set_aside("bob") == 0


# Held, confirmed and restored in one batch ----------------------------------------------------------------------------


async def test_control_one_chained_statement_loses_what_follows_an_insert(shop: Shop) -> None:
    """No part of a statement sees what another part of it wrote: the row that was inserted stays PENDING."""
    sale, user_id = await shop.sale(), await shop.person("ann")
    await shop.stores.postgres.execute(
        """
        WITH held AS (
          INSERT INTO reservations (
            reservation_id, sale_id, schedule_id, user_id, epoch, fence, fingerprint, status, amount, expires_at,
            created_at
          )
          VALUES ($1, $2, $3, $4, 1, 1, '', 'PENDING', 1, now(), now())
        ), confirmed AS (
          UPDATE reservations SET status = 'CONFIRMED', confirmed_at = now() WHERE reservation_id = $1
        )
        UPDATE reservations SET status = 'CANCELLED', reason = 'LATE_UNFULFILLABLE' WHERE reservation_id = $1
        """,
        "5a" * 16,
        sale.sale_id,
        sale.schedule_id,
        user_id,
    )
    assert await shop.reservation("5a" * 16) == ("PENDING", None)


@pytest.mark.parametrize("voided", [False, True], ids=["that stands", "that was voided"])
async def test_held_confirmed_and_restored_in_one_batch_come_out_in_order(shop: Shop, *, voided: bool) -> None:
    request = await shop.rival("A-1-1", by="ann")
    await shop.set_funds_aside(request)
    if voided:
        await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        held = fact_of(request, "held", n=1)
        fields = {
            "fingerprint": "",
            "seats": "A-1-1",
            "prices": str(PRICE),
            "amount": str(PRICE),
            "created_at_ms": "1900000000000",
            "expires_at_ms": "4000000000000",
        }
        held.fields.update(fields)
        await reservations.record(connection, await shop.sale(), [held])
    await shop.settle(fact_of(request, "confirmed", n=1), fact_of(request, "restored", n=2))
    status = ("CANCELLED", "LATE_UNFULFILLABLE") if voided else ("CONFIRMED", None)
    assert await shop.reservation(request.holding.hold_id) == status
    assert await shop.payment(request.payment_id) == ("VOIDED" if voided else "SUCCESS")
    assert await shop.rows("SELECT count(*) FROM reservation_seats") == [(1,)]
    assert await shop.set_aside("ann") == 0


# A delayed copy after a release ---------------------------------------------------------------------------------------


async def forgotten_release(shop: Shop) -> str:
    """A hold that was released so long ago that Redis has forgotten it, and Postgres has not."""
    hold_id = await shop.hold("A-1-1")
    await shop.release(hold_id)
    await shop.drain()
    keys = (await shop.sale()).keys
    await shop.stores.redis.delete(keys.holds, keys.ended)
    return hold_id


async def hold_again(shop: Shop, hold_id: str) -> Authorisation:
    """The copy holds, because nothing in Redis knows better, and its payment begins."""
    held = await seats.hold(
        shop.stores.gate,
        await shop.sale(),
        hold_id=hold_id,
        buyer_id=await shop.person("ann"),
        fingerprint=ids.fingerprint("A-1-1"),
        seat_nos=["A-1-1"],
    )
    assert isinstance(held, seats.Held)
    return await shop.begin_payment(hold_id)


async def test_control_an_upsert_revives_what_was_released(shop: Shop) -> None:
    request = await hold_again(shop, await forgotten_release(shop))
    await shop.stores.postgres.execute(
        """
        INSERT INTO reservations (
          reservation_id, sale_id, schedule_id, user_id, epoch, fence, fingerprint, status, amount, expires_at,
          created_at
        )
        VALUES ($1, $2, $3, $4, 1, $5, '', 'PENDING', 1, now(), now())
        ON CONFLICT (reservation_id) DO UPDATE SET status = 'PENDING', reason = NULL, fence = excluded.fence
        """,
        request.holding.hold_id,
        request.holding.sale_id,
        (await shop.sale()).schedule_id,
        request.holding.user_id,
        request.holding.fence,
    )
    assert await shop.reservation(request.holding.hold_id) == ("PENDING", None)


async def test_a_delayed_copy_after_a_release_is_never_sold(shop: Shop) -> None:
    hold_id = await forgotten_release(shop)
    request = await hold_again(shop, hold_id)
    (refused,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert isinstance(refused, Payment)
    assert (refused.status, refused.reason) == ("FAILED", "hold_ended")
    await shop.drain()
    assert await shop.reservation(hold_id) == ("CANCELLED", "USER")
    assert await shop.set_aside("ann") == 0


# A late confirm after a void ------------------------------------------------------------------------------------------


async def test_control_a_sale_that_asks_no_payment_is_given_away(shop: Shop) -> None:
    """The simpler rule: Redis says SOLD, so it is sold."""
    request = await shop.buy("A-1-1")
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.stores.postgres.execute("UPDATE reservation_seats SET status = 'CLAIMED'")
    await shop.stores.postgres.execute("UPDATE reservations SET status = 'CONFIRMED', confirmed_at = now()")
    assert await shop.rows("SELECT count(*) FROM payments WHERE status = 'SUCCESS'") == [(0,)]


async def test_a_late_confirm_after_a_void_sells_nothing_and_frees_the_seat(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    assert isinstance(await shop.confirm(request), seats.Confirmed)
    await shop.drain()
    assert await shop.reservation(request.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())
    await shop.drain()
    assert await shop.states() == {}
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(10_000_000, 0)]
    await shop.check()


@pytest.mark.parametrize("order", ["void first", "sale first"])
async def test_a_void_and_the_sale_it_races_end_in_one_of_two_ways(shop: Shop, order: str) -> None:
    """Both lock the payment's row: whoever comes second finds what the first has made of it."""
    request = await shop.buy("A-1-1")
    if order == "sale first":
        await shop.drain()
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"}, copy_of=await shop.sale())
    await shop.drain()
    assert await shop.payment(request.payment_id) == ("SUCCESS" if order == "sale first" else "VOIDED")
    await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())
    await shop.drain()
    await shop.check()


# Confirm against abandon ----------------------------------------------------------------------------------------------


async def test_of_confirm_and_abandon_in_one_moment_exactly_one_wins(shop: Shop) -> None:
    requests = [await shop.authorise(await shop.hold(f"A-1-{at}", by=f"buyer {at}")) for at in range(1, 7)]
    sale = await shop.sale()

    def abandon(request: Authorisation) -> Any:
        return seats.abandon(
            shop.stores.gate,
            sale,
            hold_id=request.holding.hold_id,
            fence=request.holding.fence,
            payment_id=request.payment_id,
        )

    doors = [door for request in requests for door in (shop.confirm(request), abandon(request))]
    answers = await asyncio.gather(*doors)
    for confirmed, abandoned in zip(answers[::2], answers[1::2], strict=True):
        assert isinstance(confirmed, seats.Confirmed) != isinstance(abandoned, seats.Abandoned)
    await shop.drain()
    await shop.check()
    assert set(await shop.states()) == {f"A-1-{at}" for at in range(1, 7)}  # SOLD, or HELD again


# Two holds for one seat after a failover ------------------------------------------------------------------------------


@asynccontextmanager
async def failing_over(shop: Shop) -> AsyncIterator[None]:
    """Whatever is written in Redis within is lost at the end: the replica that takes over never heard of it."""
    redis: Any = shop.stores.redis
    kept = {key: await redis.dump(key) for key in await redis.keys("*")}
    yield
    await redis.flushall()
    for key, content in kept.items():
        await redis.restore(key, 0, content)


async def test_after_a_failover_a_seat_sold_twice_belongs_to_the_first_and_nobody_pays_for_nothing(shop: Shop) -> None:
    async with failing_over(shop):
        first = await shop.buy("A-1-1", by="ann")
        await shop.drain()  # her buyer was told that it is confirmed
    second = await shop.buy("A-1-1", by="bob")  # with the same numbers, for the same seat
    assert await shop.inspect() is not None
    with pytest.raises(Divergence):
        await shop.drain()
    await shop.rebuild()
    await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale(), idle_s=0)
    await shop.drain()
    assert await shop.payment(first.payment_id) == "SUCCESS"
    assert await shop.payment(second.payment_id) == "VOIDED"
    assert await shop.set_aside("bob") == 0
    assert await shop.states() == {"A-1-1": "SOLD"}
    assert await shop.rows("SELECT user_id FROM balance_history") == [(first.holding.user_id,)]
    await shop.check()


# Everybody at once ----------------------------------------------------------------------------------------------------


async def test_a_crowd_that_pays_for_the_same_few_seats_leaves_every_sum_right(stores: Stores) -> None:
    shop = await open_shop(stores, seats_count=12)
    people = [f"buyer {at}" for at in range(6)]
    for name in people:
        await shop.person(name)
    await stores.postgres.execute("UPDATE balances SET amount = $1", 2 * PRICE)  # each can pay two of three
    waiters = Waiters(stores.postgres, stores.listener)
    sale, generation = await shop.sale(), await shop.own()
    readers = [
        Reader(stores.gate, stores.postgres, sale.keys, stream, generation, handler)
        for stream, handler in rebuild.handlers(sale).items()
    ]

    async def buy(till: Till, name: str, number: int) -> Any:
        hold_id = ids.derive_in(shop.sale_id, name, str(number))
        user_id = await shop.person(name)
        held = await seats.hold(
            stores.gate, sale, hold_id=hold_id, buyer_id=user_id, fingerprint="", seat_nos=[f"A-1-{number}"]
        )
        if not isinstance(held, seats.Held):
            return held
        return await till.pay(sale, payment_id=ids.derive(hold_id), hold_id=hold_id, user_id=user_id, fingerprint="")

    async with waiters.listening():
        tills = [Till(stores.gate, stores.postgres, waiters, answer_within_s=30) for _ in range(2)]  # two processes
        asked = asyncio.gather(
            *[buy(tills[at % 2], name, number) for at, name in enumerate(people) for number in range(1, 13)]
        )
        while not asked.done():
            for reader in readers:
                await reader.drain()
            await asyncio.sleep(0)
    paid = [answer for answer in await asked if isinstance(answer, Payment) and answer.status == "SUCCESS"]
    # Every seat was wanted by six, and everybody could pay two: twelve seats, if nobody's refusal wasted one for good.
    assert len(paid) <= 12
    assert len(paid) == len(await shop.rows("SELECT FROM tickets"))
    assert {status for (status,) in await shop.rows("SELECT DISTINCT status FROM payments")} <= {"SUCCESS", "FAILED"}
    assert await shop.rows("SELECT max(set_aside)::bigint, min(amount) >= 0 FROM balances") == [(0, True)]
    while sum([await reader.drain() for reader in readers]):
        pass
    await shop.check()
