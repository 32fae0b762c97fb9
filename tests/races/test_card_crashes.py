"""A process is killed between every two steps of a payment by card: nothing is lost, and nobody pays for nothing.

The control pays as a home-made shop does: the card first, then the row. Killed between the two it leaves money that
nobody knows of, and this harness sees it.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import msgspec
import pytest

from engine import cards, errands, ids, payments, reconciliation
from engine.cards import Cards
from engine.payments import Tender
from engine.settings import Settings
from engine.stores.connections import Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from tests.gateways import Operator, operating, running_gateway, with_gateway
from tests.races.dying_buyer import Errand
from tests.shop import PRICE, Selling, Shop, open_shop

CARD = Tender(method="CARD", payment_method_id="pm_card_visa")
SPLIT = Tender(method="SPLIT", balance_amount=10_000, payment_method_id="pm_card_visa")
DECLINED = Tender(method="SPLIT", balance_amount=10_000, payment_method_id="pm_card_chargeDeclined")

WHEN = Literal["before", "after"]
PAID: list[tuple[str, WHEN]] = [
    (step, when) for step in ("pay", "authorise", "ask", "keep", "confirm") for when in ("before", "after")
]
REFUSED: list[tuple[str, WHEN]] = [
    (step, when) for step in ("ask", "decline", "abandon", "end") for when in ("before", "after")
]


@pytest.fixture(scope="module")
def settings_of_gateway() -> Iterator[Settings]:
    """A simulated gateway that tells nobody."""
    with running_gateway() as settings:
        yield settings


@pytest.fixture
async def gateway(settings_of_gateway: Settings) -> AsyncIterator[Operator]:
    """Whoever operates it."""
    async with operating(settings_of_gateway) as operator:
        yield operator


@pytest.fixture
async def adapter(settings_of_gateway: Settings) -> AsyncIterator[StripeGateway]:
    """The worker's way to it."""
    async with open_gateway(settings_of_gateway) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def die(
    shop: Selling,
    gateway: Operator,
    hold_id: str,
    tender: Tender,
    step: str,
    when: str,
    *,
    user_coupon_id: str | None = None,
) -> str:
    """Pay in a process that dies at this step; returns the payment's id."""
    settings = with_gateway(shop.stores.settings, gateway.settings)
    payment_id = ids.derive("payment", hold_id)
    errand = Errand(
        environment=settings.to_environment(),
        sale_id=shop.sale_id,
        payment_id=payment_id,
        hold_id=hold_id,
        user_id=await shop.person("ann"),
        tender=tender,
        user_coupon_id=user_coupon_id,
        step=step,
        after=when == "after",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.races.dying_buyer", stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(msgspec.json.encode(errand))
    assert process.returncode == -signal.SIGKILL
    return payment_id


async def work(shop: Selling, adapter: StripeGateway, *, late: bool) -> None:
    """What the workers do until everything is decided; everything has stood still for long."""
    postgres, sale = shop.stores.postgres, await shop.sale()
    desk = Cards(shop.stores.gate, postgres, adapter, currency="KRW")
    for _ in range(4):
        await shop.drain()
        await postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
        if late:
            await postgres.execute("UPDATE payments SET pay_deadline = now() - interval '1 minute'")
            await _let_deadlines_pass(shop)
        await cards.reconcile(desk, postgres, sale)
        await postgres.execute("UPDATE payments SET updated_at = now() - interval '1 hour'")
        await reconciliation.reconcile(shop.stores.gate, postgres, sale)
        await shop.drain()
        await postgres.execute("UPDATE gateway_operations SET due_at = now() WHERE status = 'PENDING'")
        await errands.drive(postgres, adapter)


async def _let_deadlines_pass(shop: Selling) -> None:
    keys = (await shop.sale()).keys
    for hold_id in await shop.stores.redis.zrange(keys.paying, 0, -1):
        await shop.stores.redis.zadd(keys.paying, {hold_id: 1})


async def check(shop: Shop, gateway: Operator, payment_id: str, hold_id: str, tender: Tender) -> str:
    """Assert that row, hold, balance and gateway tell one story; returns how it ended."""
    await shop.check()
    rows = await payments.read(shop.stores.postgres, [payment_id])
    at_gateway = next(iter(await gateway.ledger(payment_id)), None)
    taken = at_gateway["captured"] - at_gateway["refunded"] if at_gateway else 0
    assert not at_gateway or at_gateway["authorised"] == 0, "money is set aside for nothing"
    balance = await shop.stores.postgres.fetchrow(
        "SELECT amount, set_aside FROM balances WHERE user_id = $1", shop.people["ann"]
    )
    assert balance is not None
    assert balance["set_aside"] == 0
    spent = 10_000_000 - balance["amount"]
    if payment_id in rows and rows[payment_id].status == "SUCCESS":
        assert (await shop.reservation(hold_id))[0] == "CONFIRMED"
        assert await shop.states() == {"A-1-1": "SOLD"}
        assert (taken, spent) == (tender.card_amount(PRICE), PRICE - tender.card_amount(PRICE))
        return "SUCCESS"
    assert payment_id not in rows or rows[payment_id].public_status == "FAILED"
    assert "SOLD" not in (await shop.states()).values()
    assert "PAYING" not in (await shop.states()).values()
    assert (taken, spent) == (0, 0)
    return "FAILED"


@pytest.mark.parametrize("tender", [CARD, SPLIT], ids=["card", "split"])
@pytest.mark.parametrize(("step", "when"), PAID)
async def test_a_payment_goes_on_without_the_process_that_began_it(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str, tender: Tender
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment_id = await die(shop, gateway, hold_id, tender, step, when)
    if step == "pay" or (step, when) == ("authorise", "before"):
        # There is no row: what nobody knows of lapses.
        await work(shop, adapter, late=True)
        assert await check(shop, gateway, payment_id, hold_id, tender) == "FAILED"
    else:
        await work(shop, adapter, late=False)
        assert await check(shop, gateway, payment_id, hold_id, tender) == "SUCCESS"


@pytest.mark.parametrize(("step", "when"), PAID)
async def test_a_payment_whose_time_is_over_ends_and_takes_nothing_or_stands_and_takes_it_once(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment_id = await die(shop, gateway, hold_id, SPLIT, step, when)
    await work(shop, adapter, late=True)
    decided = (step, when) in {("keep", "after"), ("confirm", "before"), ("confirm", "after")}
    assert await check(shop, gateway, payment_id, hold_id, SPLIT) == ("SUCCESS" if decided else "FAILED")


@pytest.mark.parametrize(("step", "when"), REFUSED)
async def test_a_decline_is_finished_by_others(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment_id = await die(shop, gateway, hold_id, DECLINED, step, when)
    await work(shop, adapter, late=False)
    assert await check(shop, gateway, payment_id, hold_id, DECLINED) == "FAILED"
    (payment,) = (await payments.read(shop.stores.postgres, [payment_id])).values()
    assert (payment.reason, payment.decline_code) == ("card_declined", "generic_decline")


async def test_control_a_shop_that_charges_first_leaves_money_that_nobody_knows_of(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment_id = ids.derive("payment", hold_id)
    await adapter.authorise(
        payment_id=payment_id,
        amount=PRICE,
        currency="KRW",
        payment_method_id="pm_card_visa",
        return_url=None,
        metadata={},
    )
    # … and here it is killed, before it has written anything down.
    await work(shop, adapter, late=True)
    await shop.person("ann")
    with pytest.raises(AssertionError, match="set aside for nothing"):
        await check(shop, gateway, payment_id, hold_id, CARD)
