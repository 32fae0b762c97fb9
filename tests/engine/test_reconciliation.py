"""Reconciliation: whatever died in between, what was begun is finished."""

import asyncio

import pytest

from engine import authorisations, reconciliation, seats
from engine.payments import Payment
from engine.stores.connections import Stores
from tests.shop import Shop, open_shop


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def reconcile(shop: Shop) -> reconciliation.Reconciled:
    return await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, await shop.sale())


async def let_time_pass(shop: Shop, ms: int = 3_600_000) -> None:
    """Let the sale's clock be an hour later: its time never goes back."""
    now_ms = (await shop.find(await shop.hold("A-1-6", by="clock"))).now_ms
    await shop.stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "now_ms", str(now_ms + ms))


async def test_an_authorised_payment_that_stands_still_is_confirmed_again(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    assert await reconcile(shop) == reconciliation.Reconciled()  # a moment ago somebody was still at it
    await shop.age(request.payment_id)
    assert (await reconcile(shop)).confirmed == 1
    await shop.drain()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    await shop.check()


async def test_one_whose_hold_redis_forgot_is_voided_and_its_row_ends(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    hold_id, keys = request.holding.hold_id, (await shop.sale()).keys
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
    await shop.set_balance("ann", 0)
    request = await shop.begin_payment(await shop.hold("A-1-1"))
    (refused,) = await authorisations.authorise(shop.stores.postgres, [request])
    assert isinstance(refused, Payment)
    assert refused.status == "FAILED"  # and there the process died
    await let_time_pass(shop)
    assert (await reconcile(shop)).abandoned == 1
    assert (await shop.find(request.holding.hold_id)).state == "ENDED"


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
    assert (await shop.find(request.holding.hold_id)).state == "PAYING"


async def test_a_pending_payment_past_its_deadline_is_abandoned_first_and_then_failed(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.stores.postgres.execute("UPDATE payments SET status = 'PENDING'")
    await shop.age(request.payment_id)
    assert await reconcile(shop) == reconciliation.Reconciled()  # its buyer may still act
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
    await reconciliation.reconcile(shop.stores.gate, shop.stores.postgres, stale)
    assert await shop.payment(request.payment_id) == "AUTHORISED"


@pytest.mark.parametrize("step", ["pay", "authorise", "confirm", "drain"])
async def test_whatever_step_the_process_died_after_the_hold_is_sold_or_free(shop: Shop, step: str) -> None:
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)
    if step != "pay":
        await authorisations.authorise(shop.stores.postgres, [request])
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
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
    await shop.drain()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert (await reconcile(shop)).restored == 1
    assert await shop.states() == {}
    assert (await reconcile(shop)).restored == 0
    await shop.drain()
    await shop.check()


async def test_what_could_not_be_given_back_is_tried_again(shop: Shop) -> None:
    request = await shop.buy("A-1-1")
    await authorisations.end(shop.stores.postgres, {request.payment_id: "VOIDED"})
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
        "INSERT INTO restores (hold_id, sale_id, fence, token_goes_next) VALUES ($1, $2, $3, false)",
        first.holding.hold_id,
        shop.sale_id,
        first.holding.fence,
    )
    async with postgres.acquire() as other, other.transaction():
        await other.execute("UPDATE reservation_seats SET status = 'ENDED' WHERE status = 'CLAIMED'")
        restoring = asyncio.create_task(reconcile(shop))
        done, _ = await asyncio.wait([restoring], timeout=0.1)
        assert not done
    assert (await restoring).restored == 1
    assert await shop.states() == {}


# What there is to do --------------------------------------------------------------------------------------------------


async def is_unfinished(shop: Shop) -> bool:
    other = await open_shop(shop.stores)  # in which nobody did anything
    found = await reconciliation.find_unfinished(shop.stores.postgres, [shop.sale_id, other.sale_id])
    assert set(found) <= {shop.sale_id}
    assert await reconciliation.find_unfinished(shop.stores.postgres, [other.sale_id]) == []
    return bool(found)


async def test_a_sale_of_which_nothing_stands_still_is_not_named(shop: Shop) -> None:
    await shop.buy("A-1-1")
    await shop.hold("A-1-2")
    await shop.authorise(await shop.hold("A-1-3"))  # somebody is still at it
    await shop.drain()
    assert not await is_unfinished(shop)


async def test_a_payment_that_stands_still_is_something_to_do(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    await shop.age(request.payment_id)
    assert await is_unfinished(shop)
    await reconcile(shop)
    await shop.drain()
    assert not await is_unfinished(shop)


@pytest.mark.parametrize(
    "left",
    [
        "UPDATE reservations SET expires_at = now() - interval '1 hour'",
        """
        INSERT INTO restores (hold_id, sale_id, fence, token_goes_next)
        SELECT reservation_id, sale_id, 1, false FROM reservations
        """,
        """
        INSERT INTO seat_blocks (seat_block_id, sale_id, seat_nos, blocked, fingerprint)
        SELECT reservation_id, sale_id, '{A-1-3}', true, '' FROM reservations
        """,
    ],
    ids=["a forgotten row", "something to give back", "seats to block"],
)
async def test_what_was_left_behind_is_something_to_do(shop: Shop, left: str) -> None:
    await shop.hold("A-1-1")
    await shop.drain()
    await shop.stores.postgres.execute(left)
    assert await is_unfinished(shop)


async def test_holds_to_be_given_back_are_asked_for_in_one_moment_and_one_that_fails_stops_no_other(
    stores: Stores,
) -> None:
    shop, postgres = await open_shop(stores, seats_count=30), stores.postgres
    requests = [await shop.buy(f"A-1-{number}", by=f"buyer {number}") for number in range(1, 31)]
    await shop.drain()
    await postgres.execute("UPDATE reservation_seats SET status = 'ENDED' WHERE status = 'CLAIMED'")
    await postgres.execute(
        "INSERT INTO restores (hold_id, sale_id, fence, token_goes_next) "
        "SELECT reservation_id, sale_id, fence, false FROM reservations"
    )
    sale, before = await shop.sale(), stores.gate.statistics.batches
    await stores.redis.execute_command("HSET", sale.keys.buyers, await shop.person("buyer 7"), "no row")

    assert await reconciliation.give_back(stores.gate, postgres, sale, most=200) == 29
    assert stores.gate.statistics.batches - before <= 2
    assert (await shop.states()).keys() <= {"A-1-7"}
    left = await shop.rows("SELECT hold_id FROM restores WHERE done_at IS NULL")
    assert left == [(requests[6].holding.hold_id,)]
