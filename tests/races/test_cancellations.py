"""Races of cancellations, each beside the simpler rule that loses it."""

import asyncio
from typing import Any

import asyncpg
import pytest

from engine import authorisations, cancellations, ids, reconciliation, seat_cancellations
from engine.authorisations import Authorisation
from engine.cancellations import Cancellation, CancellationClosed
from engine.payments import Payment
from engine.seats import PaymentRunning, SeatUnknown
from engine.stores.connections import Stores
from engine.tickets import Redemption, TicketCancelled
from tests.doors import redeem
from tests.shop import PRICE, Shop, open_shop


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def bought(shop: Shop, *seat_nos: str, by: str = "ann") -> Authorisation:
    request = await shop.buy(*seat_nos, by=by)
    await shop.drain()
    return request


async def rows(shop: Shop, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await shop.stores.postgres.fetch(sql, *arguments)]


async def cancel(shop: Shop, hold_id: str, *seat_nos: str, key: str, by: str | None = "ann") -> Any:
    return await seat_cancellations.cancel(
        shop.stores.gate,
        shop.stores.postgres,
        shop.book,
        cancellation_id=ids.derive("cancellation", hold_id, key),
        reservation_id=hold_id,
        user_id=None if by is None else await shop.person(by),
        seat_nos=seat_nos,
    )


# One seat, given back twice -------------------------------------------------------------------------------------------


async def test_control_without_the_payments_lock_a_seat_is_refunded_twice(shop: Shop) -> None:
    """The simpler rule: look whether the seat is still claimed, then give the money back."""
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id, user_id, postgres = request.holding.hold_id, request.holding.user_id, shop.stores.postgres
    both_have_looked = asyncio.Barrier(2)

    async def cancel_naively() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            claimed = await connection.fetchval(
                "SELECT true FROM reservation_seats WHERE reservation_id = $1 AND seat_no = 'A-1-1' "
                "AND status = 'CLAIMED'",
                hold_id,
            )
            await both_have_looked.wait()
            if claimed:
                await connection.execute("UPDATE balances SET amount = amount + $2 WHERE user_id = $1", user_id, PRICE)
                await connection.execute("UPDATE payments SET refunded_amount = refunded_amount + $1", PRICE)
                await connection.execute("UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-1'")

    await asyncio.gather(cancel_naively(), cancel_naively())
    assert await rows(shop, "SELECT refunded_amount FROM payments") == [(2 * PRICE,)]
    assert await rows(shop, "SELECT amount FROM balances") == [(10_000_000,)]
    assert await rows(shop, "SELECT count(*) FROM reservation_seats WHERE status = 'CLAIMED'") == [(1,)]


async def test_a_seat_is_refunded_once_however_many_wish_it(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    answers = await asyncio.gather(*[cancel(shop, hold_id, "A-1-1", key=str(at)) for at in range(6)])
    assert sum(isinstance(answer, Cancellation) for answer in answers) == 1
    assert answers.count(SeatUnknown(seat_nos=("A-1-1",))) == 5
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("PARTIALLY_REFUNDED", PRICE)]
    assert await rows(shop, "SELECT amount FROM balances") == [(10_000_000 - PRICE,)]
    await shop.drain()
    await shop.check()


async def test_copies_of_one_wish_act_once(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1", "A-1-2")).holding.hold_id
    answers = await asyncio.gather(*[cancel(shop, hold_id, "A-1-1", key="k") for _ in range(6)])
    assert sorted(answer.repeated for answer in answers) == [False] + [True] * 5
    assert len({answer.refunds for answer in answers}) == 1
    assert await rows(shop, "SELECT refunded_amount FROM payments") == [(PRICE,)]


async def test_parts_that_cross_add_up_to_what_was_paid(shop: Shop) -> None:
    hold_id = (await bought(shop, *[f"A-1-{at}" for at in range(1, 7)])).holding.hold_id
    pairs = [(at, at % 6 + 1) for at in range(1, 7)]
    answers = await asyncio.gather(
        *[cancel(shop, hold_id, f"A-1-{one}", f"A-1-{two}", key=f"{one}") for one, two in pairs],
        *[cancel(shop, hold_id, f"A-1-{at}", key=f"alone {at}", by=None) for at in range(1, 7)],
        cancel(shop, hold_id, key="whole"),
    )
    given_back = [answer for answer in answers if isinstance(answer, Cancellation)]
    seat_nos = [seat_no for answer in given_back for seat_no in answer.seat_nos]
    assert len(seat_nos) == len(set(seat_nos)) == 6
    assert sum(answer.refund_amount for answer in given_back) == 6 * PRICE
    assert all(
        isinstance(answer, Cancellation | SeatUnknown) or answer == CancellationClosed(reason="ENDED")
        for answer in answers
    )
    assert await rows(shop, "SELECT status, refunded_amount FROM payments") == [("REFUNDED", 6 * PRICE)]
    assert await rows(shop, "SELECT amount FROM balances") == [(10_000_000,)]
    assert await rows(shop, "SELECT seats_available FROM schedules") == [(6,)]
    await shop.drain()
    await shop.check()


# The door -------------------------------------------------------------------------------------------------------------


async def test_control_looking_at_the_ticket_without_its_lock_lets_in_who_was_refunded(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        status = await connection.fetchval("SELECT status FROM tickets WHERE reservation_id = $1", hold_id)
        assert isinstance(await redeem(shop.stores.postgres, "A-1-1"), Redemption)
        if status == "VALID":
            await connection.execute("UPDATE payments SET refunded_amount = final_amount, status = 'REFUNDED'")
    assert await rows(shop, "SELECT tickets.status, payments.status FROM tickets, payments") == [
        ("REDEEMED", "REFUNDED")
    ]


async def test_a_ticket_opens_the_door_or_is_refunded_and_never_both(shop: Shop) -> None:
    for at in range(1, 7):
        seat_no = f"A-1-{at}"
        hold_id = (await bought(shop, seat_no)).holding.hold_id
        wishes: list[Any] = [cancel(shop, hold_id, key="k"), redeem(shop.stores.postgres, seat_no)]
        answers = await asyncio.gather(*(wishes if at % 2 else wishes[::-1]))
        cancelled, redeemed = answers if at % 2 else answers[::-1]
        assert isinstance(cancelled, Cancellation) is (redeemed == TicketCancelled())
        if isinstance(redeemed, Redemption):
            assert cancelled == CancellationClosed(reason="REDEEMED", seat_nos=(seat_no,))


async def test_a_cancellation_waits_for_whoever_has_the_ticket(shop: Shop) -> None:
    hold_id = (await bought(shop, "A-1-1")).holding.hold_id
    async with shop.stores.postgres.acquire() as door, door.transaction():
        await door.execute("UPDATE tickets SET updated_at = now()")
        cancelling = asyncio.create_task(cancel(shop, hold_id, key="k"))
        done, _ = await asyncio.wait([cancelling], timeout=0.1)
        assert not done
    assert isinstance(await cancelling, Cancellation)
    assert await redeem(shop.stores.postgres, "A-1-1") == TicketCancelled()


# Payments and Redis ---------------------------------------------------------------------------------------------------


async def test_cancelling_while_others_pay_keeps_every_balance_exact(shop: Shop) -> None:
    first = await bought(shop, "A-1-1", "A-1-2")
    requests = [await shop.begin_payment(await shop.hold(f"A-1-{at}")) for at in (3, 4, 5)]
    outcomes = await asyncio.gather(
        cancel(shop, first.holding.hold_id, "A-1-1", key="one"),
        *[authorisations.authorise(shop.stores.postgres, [request]) for request in requests],
        cancel(shop, first.holding.hold_id, "A-1-2", key="two"),
        cancel(shop, requests[0].holding.hold_id, key="too early"),
    )
    assert outcomes[-1] == PaymentRunning(payment_id=requests[0].payment_id)
    for (payment,) in outcomes[1:4]:
        assert isinstance(payment, Payment)
        assert payment.status == "AUTHORISED"
    await asyncio.gather(*map(shop.confirm, requests))
    await asyncio.gather(shop.drain(), cancel(shop, requests[1].holding.hold_id, key="as it settles"))
    await shop.drain()
    for request in requests:
        await cancel(shop, request.holding.hold_id, key="last")
    await shop.drain()
    assert await rows(shop, "SELECT amount, set_aside FROM balances") == [(10_000_000, 0)]
    assert await rows(
        shop, "SELECT count(*), sum(CASE type WHEN 'USE' THEN -amount ELSE amount END)::bigint FROM balance_history"
    ) == [(9, 0)]
    assert await shop.states() == {}
    await shop.check()


async def test_control_ending_claims_before_the_restore_deadlocks_with_whoever_tells_redis(shop: Shop) -> None:
    """Whoever tells Redis has the restore and asks for the claim; this has the claim and asks for the restore."""
    request = await bought(shop, "A-1-1", "A-1-2")
    hold_id, postgres = request.holding.hold_id, shop.stores.postgres
    await cancel(shop, hold_id, "A-1-2", key="part")
    await postgres.execute("UPDATE restores SET done_at = NULL")
    both_have_one = asyncio.Barrier(2)

    async def give_back() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            await connection.execute("SELECT FROM restores FOR UPDATE")
            await both_have_one.wait()
            await connection.execute("SELECT FROM reservation_seats WHERE seat_no = 'A-1-1' FOR SHARE")

    async def cancel_claims_first() -> None:
        async with postgres.acquire() as connection, connection.transaction():
            await connection.execute("UPDATE reservation_seats SET status = 'ENDED' WHERE seat_no = 'A-1-1'")
            await both_have_one.wait()
            await connection.execute("UPDATE restores SET done_at = NULL")

    outcomes = await asyncio.gather(give_back(), cancel_claims_first(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome] == [asyncpg.DeadlockDetectedError]


async def test_cancelling_and_telling_redis_never_deadlock(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "ATTEMPTS_MAX", 1)  # who is crossed says so
    for round_no in range(4):
        hold_id = (await bought(shop, "A-1-1", "A-1-2", "A-1-3")).holding.hold_id
        sale = await shop.sale()
        outcomes = await asyncio.gather(
            *[cancel(shop, hold_id, f"A-1-{at}", key=f"{round_no} {at}") for at in (1, 2, 3)],
            *[reconciliation.give_back(shop.stores.gate, shop.stores.postgres, sale, most=10) for _ in range(3)],
        )
        assert all(isinstance(outcome, Cancellation) for outcome in outcomes[:3])
        await reconciliation.give_back(shop.stores.gate, shop.stores.postgres, sale, most=10)
        assert await shop.states() == {}
    await shop.drain()
    await shop.check()


async def test_an_event_called_off_while_its_buyers_cancel_refunds_each_once(shop: Shop) -> None:
    requests = [await bought(shop, f"A-1-{at}", by=f"buyer {at}") for at in range(1, 7)]
    schedule_id = str((await shop.sale()).schedule_id)
    await asyncio.gather(
        seat_cancellations.call_off(shop.stores, shop.book, schedule_id=schedule_id),
        *[cancel(shop, request.holding.hold_id, key="k", by=f"buyer {at}") for at, request in enumerate(requests, 1)],
        *[seat_cancellations.go_on(shop.stores, shop.book, most=2) for _ in range(4)],
    )
    while await seat_cancellations.go_on(shop.stores, shop.book):
        pass
    assert await rows(shop, "SELECT DISTINCT amount, version FROM balances") == [(10_000_000, 2)]
    assert await rows(shop, "SELECT count(*), sum(amount)::bigint FROM refunds") == [(6, 6 * PRICE)]
    await shop.drain()
    await shop.check()
