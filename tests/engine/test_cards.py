"""Payments by card, against a gateway over HTTP: what it says is written down before anything follows from it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from engine import cancellations, cards, errands, ids, payments, reconciliation, seat_cancellations, seats
from engine.cards import Cards
from engine.payments import CardDeclined, InsufficientBalance, Payment, Tender
from engine.settings import Settings
from engine.stores.connections import Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from engine.till import Till
from engine.waiters import Waiters
from tests.engine.test_till import drained_until
from tests.gateways import Operator, operating, running_gateway
from tests.shop import PRICE, Selling, Shop, open_shop

VISA = "pm_card_visa"


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(settings_of_gateway: Settings) -> AsyncIterator[Operator]:
    """Whoever operates it, and acts for buyers."""
    async with operating(settings_of_gateway) as operator:
        yield operator


@pytest.fixture
async def adapter(settings_of_gateway: Settings) -> AsyncIterator[StripeGateway]:
    """What the engine asks it with; it waits half a second for an answer."""
    async with open_gateway(settings_of_gateway, answer_within_s=0.5) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


@asynccontextmanager
async def counter(shop: Selling, adapter: StripeGateway, *, answer_within_s: float = 5.0) -> AsyncIterator[Till]:
    """A till that takes cards."""
    postgres = shop.stores.postgres
    desk = Cards(shop.stores.gate, postgres, adapter, currency="KRW")
    async with Waiters(postgres, shop.stores.listener).listening() as waiters:
        yield Till(shop.stores.gate, postgres, waiters, cards=desk, answer_within_s=answer_within_s)


async def pay(shop: Selling, till: Till, hold_id: str, *, method: str = VISA, key: str = "k", **more: Any) -> Any:
    """What the route of payments asks."""
    tender = more.pop("tender", None) or Tender(method="CARD", payment_method_id=method, return_url="http://shop.test/")
    return await till.pay(
        await shop.sale(),
        payment_id=ids.derive("payment", hold_id, key),
        hold_id=hold_id,
        user_id=await shop.person(more.pop("by", "ann")),
        fingerprint="f" * 16,
        tender=tender,
        **more,
    )


def split(balance_amount: int, method: str = VISA) -> Tender:
    """Part from the balance, the rest by card."""
    return Tender(
        method="SPLIT", balance_amount=balance_amount, payment_method_id=method, return_url="http://shop.test/"
    )


async def tell(shop: Selling, adapter: StripeGateway) -> errands.Driven:
    """Send everything that is to be told, however lately it was tried."""
    await shop.stores.postgres.execute("UPDATE gateway_operations SET due_at = now() WHERE status = 'PENDING'")
    return await errands.drive(shop.stores.postgres, adapter)


async def reconcile(shop: Selling, adapter: StripeGateway, *, late: bool = False) -> None:
    """What a worker does with payments that stand still; `late` ones are past their deadline."""
    postgres = shop.stores.postgres
    await postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
    if late:
        await postgres.execute("UPDATE payments SET pay_deadline = now() - interval '1 minute'")
    desk = Cards(shop.stores.gate, postgres, adapter, currency="KRW")
    await cards.reconcile(desk, postgres, await shop.sale())
    await postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
    await reconciliation.reconcile(shop.stores.gate, postgres, await shop.sale())
    await shop.drain()


async def row(shop: Selling, payment: Payment) -> Payment:
    """The payment's row as it stands."""
    return (await payments.read(shop.stores.postgres, [payment.payment_id]))[payment.payment_id]


async def ledger_of(gateway: Operator, payment: Payment) -> tuple[str, int, int, int]:
    """What the gateway has of it: status, and what is set aside, taken and given back."""
    (standing,) = await gateway.ledger(payment.payment_id)
    return standing["status"], standing["authorised"], standing["captured"], standing["refunded"]


async def test_a_card_is_authorised_sold_and_then_captured(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    assert (payment.status, payment.card_amount, payment.balance_amount) == ("SUCCESS", PRICE, 0)
    assert await ledger_of(gateway, payment) == ("requires_capture", PRICE, 0, 0)
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    assert (await tell(shop, adapter)).done == 1
    assert await ledger_of(gateway, payment) == ("succeeded", 0, PRICE, 0)
    assert await shop.stores.postgres.fetchval("SELECT captured_amount FROM payments") == PRICE
    assert (await tell(shop, adapter)).done == 0
    await shop.check()


async def test_a_declined_card_is_a_failed_row_and_the_hold_goes_on(shop: Shop, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method="pm_card_insufficientFunds")
        assert payments.refusal_of(payment) == CardDeclined(payment.payment_id, "insufficient_funds")
        assert await shop.states() == {"A-1-1": "HELD"}
        # The worker, told that the payment was given up, says the same.
        await shop.drain()
        again = await pay(shop, till, hold_id, method="pm_card_insufficientFunds")
        assert again == msgspec.structs.replace(payment, repeated=True)
        assert (await drained_until(shop, pay(shop, till, hold_id, key="another"))).status == "SUCCESS"
    kinds = await shop.stores.postgres.fetch("SELECT kind FROM gateway_operations")
    assert [row["kind"] for row in kinds] == ["CAPTURE"]
    await shop.check()


async def test_a_worker_that_hears_of_a_decline_first_says_why(shop: Shop, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method="pm_action_required")
        await cards.SQL.keep_declined.execute(shop.stores.postgres, payment.payment_id, "lost_card", None)
        sale = await shop.sale()
        await seats.abandon(shop.stores.gate, sale, hold_id=hold_id, fence=payment.fence, payment_id=payment.payment_id)
        await shop.drain()
    assert payments.refusal_of(await row(shop, payment)) == CardDeclined(payment.payment_id, "lost_card")


async def test_a_buyer_who_must_act_pays_once_they_have(shop: Shop, gateway: Operator, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method="pm_action_required")
        assert payment.public_status == "PENDING"
        assert payment.action_url is not None
        assert (await till.go_on(await shop.sale(), await row(shop, payment))).status == "PENDING"
        await gateway.act(payment.action_url, "approve")
        paid = await drained_until(shop, till.go_on(await shop.sale(), await row(shop, payment)))
    assert paid.status == "SUCCESS"
    assert paid.action_url is None
    await shop.check()


async def test_a_buyer_who_never_acts_loses_the_hold_after_the_gateway_has_cancelled(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method="pm_action_abandoned")
    await reconcile(shop, adapter)
    assert (await row(shop, payment)).status == "PENDING"
    # Not before the gateway has said that no money can come any more.
    await gateway.switch("error_before", operation="cancel")
    await reconcile(shop, adapter, late=True)
    assert (await row(shop, payment)).status == "PENDING"
    assert await shop.states() == {"A-1-1": "PAYING"}
    await reconcile(shop, adapter, late=True)
    assert (await row(shop, payment)).status == "FAILED"
    assert (await ledger_of(gateway, payment))[0] == "canceled"


async def test_what_was_authorised_in_the_last_moment_is_voided(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method="pm_action_required")
    assert payment.action_url is not None
    await gateway.act(payment.action_url, "approve")
    await reconcile(shop, adapter, late=True)
    assert (await row(shop, payment)).status == "FAILED"
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("canceled", 0, 0, 0)


@pytest.mark.parametrize("method", ["pm_timeout_after_success", "pm_500_then_replay", "pm_500_kept"])
async def test_an_answer_that_was_lost_leaves_the_payment_in_doubt_until_the_gateway_tells(
    shop: Shop, gateway: Operator, adapter: StripeGateway, method: str
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, method=method)
    assert (payment.status, payment.public_status) == ("IN_DOUBT", "PENDING")
    assert await shop.states() == {"A-1-1": "PAYING"}
    await reconcile(shop, adapter)
    assert (await row(shop, payment)).status == "SUCCESS"
    assert (await ledger_of(gateway, payment))[:2] == ("requires_capture", PRICE)
    await shop.check()


async def test_a_gateway_that_is_away_leaves_the_payment_pending_until_it_is_back(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    await gateway.switch("busy", operation="authorise")
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id)
    assert payment.status == "PENDING"
    await reconcile(shop, adapter)
    assert (await row(shop, payment)).status == "SUCCESS"


async def test_a_capture_that_is_refused_for_good_is_uncollected_and_nobody_loses_the_seat(
    shop: Shop, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id, method="pm_capture_refused"))
    assert (await tell(shop, adapter)).refused == 1
    standing = await row(shop, payment)
    assert (standing.status, standing.public_status) == ("UNCOLLECTED", "SUCCESS")
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)


@pytest.mark.parametrize("fault", ["silent_after", "error_after", "error_kept", "error_before", "busy"])
async def test_a_capture_is_told_until_the_answer_is_known(
    shop: Shop, gateway: Operator, adapter: StripeGateway, fault: str
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    await gateway.switch(fault, operation="capture")
    assert (await tell(shop, adapter)).unknown == 1
    assert (await tell(shop, adapter)).done == 1
    assert await ledger_of(gateway, payment) == ("succeeded", 0, PRICE, 0)


async def test_a_sale_that_does_not_stand_voids_the_card(shop: Shop, gateway: Operator, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter, answer_within_s=0.0) as till:
        payment = await pay(shop, till, hold_id)
    assert payment.status == "AUTHORISED"
    # Its row has ended meanwhile, as after a failover that forgot the hold.
    await shop.stores.postgres.execute(
        "UPDATE reservations SET status = 'CANCELLED', reason = 'EXPIRED' WHERE reservation_id = $1", hold_id
    )
    await shop.drain()
    assert (await row(shop, payment)).status == "VOIDED"
    assert (await tell(shop, adapter)).done == 1
    assert await ledger_of(gateway, payment) == ("canceled", 0, 0, 0)


async def test_a_split_payment_takes_both_legs(shop: Shop, gateway: Operator, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.set_balance("ann", 12_000)
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id, tender=split(10_000)))
    assert (payment.status, payment.balance_amount, payment.card_amount) == ("SUCCESS", 10_000, PRICE - 10_000)
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("succeeded", 0, PRICE - 10_000, 0)
    assert (
        await shop.stores.postgres.fetchval("SELECT amount FROM balances WHERE user_id = $1", shop.people["ann"])
        == 2_000
    )
    await shop.check()


async def test_a_split_payment_whose_card_is_declined_touches_no_balance(shop: Shop, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.set_balance("ann", 12_000)
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, tender=split(10_000, "pm_card_chargeDeclined"))
    assert payment.reason == "card_declined"
    assert await shop.set_aside("ann") == 0
    await shop.drain()
    await shop.check()


async def test_a_split_payment_that_the_balance_does_not_cover_asks_no_gateway(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    await shop.set_balance("ann", 9_999)
    async with counter(shop, adapter) as till:
        payment = await pay(shop, till, hold_id, tender=split(10_000))
    assert payments.refusal_of(payment) == InsufficientBalance(needed=10_000, available=9_999)
    assert await gateway.ledger(payment.payment_id) == []
    assert await shop.states() == {"A-1-1": "HELD"}


async def test_a_till_without_a_gateway_takes_no_cards(shop: Shop) -> None:
    hold_id = await shop.hold("A-1-1")
    async with Waiters(shop.stores.postgres, shop.stores.listener).listening() as waiters:
        till = Till(shop.stores.gate, shop.stores.postgres, waiters)
        with pytest.raises(ValueError, match="no cards"):
            await pay(shop, till, hold_id)
    assert await shop.states() == {"A-1-1": "HELD"}


# What is given back ---------------------------------------------------------------------------------------------------


async def give_back(shop: Shop, hold_id: str, *seat_nos: str, key: str = "k") -> cancellations.Cancellation:
    """The buyer cancels, and is refunded to where the money came from."""
    given_back = await seat_cancellations.cancel(
        shop.stores.gate,
        shop.stores.postgres,
        shop.book,
        cancellation_id=ids.derive("cancellation", hold_id, key),
        reservation_id=hold_id,
        user_id=await shop.person("ann"),
        seat_nos=seat_nos,
        refund_to="SOURCE",
    )
    assert isinstance(given_back, cancellations.Cancellation), given_back
    return given_back


async def refunds(shop: Shop) -> list[tuple[str, int, str]]:
    """Every refund: to where, how much, how it stands."""
    rows = await shop.stores.postgres.fetch("SELECT refund_to, amount, status FROM refunds ORDER BY created_at, amount")
    return [(row["refund_to"], row["amount"], row["status"]) for row in rows]


async def test_a_refund_goes_back_to_the_card_in_parts(shop: Shop, gateway: Operator, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    await tell(shop, adapter)
    await give_back(shop, hold_id, "A-1-1", key="one")
    assert (await tell(shop, adapter)).done == 1
    assert await ledger_of(gateway, payment) == ("succeeded", 0, 2 * PRICE, PRICE)
    await give_back(shop, hold_id, key="rest")
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("succeeded", 0, 2 * PRICE, 2 * PRICE)
    assert await refunds(shop) == [("CARD", PRICE, "DONE"), ("CARD", PRICE, "DONE")]
    assert (await row(shop, payment)).status == "REFUNDED"


async def test_what_is_cancelled_before_it_was_captured_is_let_go(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    await give_back(shop, hold_id)
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("canceled", 0, 0, 0)
    assert await refunds(shop) == [("CARD", PRICE, "DONE")]


async def test_a_refund_waits_for_the_capture_before_it(shop: Shop, gateway: Operator, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id))
    await gateway.switch("silent_after", operation="capture")
    await tell(shop, adapter)
    await give_back(shop, hold_id)
    assert (await tell(shop, adapter)).done == 1
    assert await refunds(shop) == [("CARD", PRICE, "PENDING")]
    assert (await tell(shop, adapter)).done == 1
    assert await ledger_of(gateway, payment) == ("succeeded", 0, PRICE, PRICE)
    assert await refunds(shop) == [("CARD", PRICE, "DONE")]


async def test_a_refund_that_the_bank_refuses_is_failed_and_not_counted(shop: Shop, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id, method="pm_refund_refused"))
    await tell(shop, adapter)
    await give_back(shop, hold_id, "A-1-1")
    assert (await tell(shop, adapter)).refused == 1
    assert await refunds(shop) == [("CARD", PRICE, "FAILED")]
    standing = await row(shop, payment)
    assert (standing.status, standing.refunded_amount) == ("SUCCESS", 0)


async def test_what_was_given_back_in_part_before_its_capture_was_refused_is_uncollected(
    shop: Shop, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id, method="pm_capture_refused"))
    await give_back(shop, hold_id, "A-1-1")
    for _ in ("the capture", "the refund"):
        assert (await tell(shop, adapter)).refused == 1
    assert await refunds(shop) == [("CARD", PRICE, "FAILED")]
    standing = await row(shop, payment)
    assert (standing.status, standing.refunded_amount) == ("UNCOLLECTED", 0)


async def test_a_refund_that_the_bank_thinks_about_is_done_when_it_says_so(shop: Shop, adapter: StripeGateway) -> None:
    hold_id = await shop.hold("A-1-1")
    async with counter(shop, adapter) as till:
        await drained_until(shop, pay(shop, till, hold_id, method="pm_card_pendingRefund"))
    await tell(shop, adapter)
    await give_back(shop, hold_id)
    await tell(shop, adapter)
    assert await refunds(shop) == [("CARD", PRICE, "PENDING")]
    for _ in range(200):
        if (await tell(shop, adapter)).done:
            break
    assert await refunds(shop) == [("CARD", PRICE, "DONE")]


async def test_a_split_payment_is_given_back_to_the_card_first(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2")
    async with counter(shop, adapter) as till:
        payment = await drained_until(shop, pay(shop, till, hold_id, tender=split(2 * PRICE - 10_000)))
    await tell(shop, adapter)
    await give_back(shop, hold_id, "A-1-1")
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("succeeded", 0, 10_000, 10_000)
    assert sorted(await refunds(shop)) == [("BALANCE", PRICE - 10_000, "DONE"), ("CARD", 10_000, "DONE")]
