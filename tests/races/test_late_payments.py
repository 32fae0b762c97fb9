"""A process is killed between every two steps of a late payment, and many work on one: one sale, or one way back.

The control takes the money first, as a shop does that is glad of it. Killed before it has looked for seats it leaves
money for nothing, and this harness sees it.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Literal

import msgspec
import pytest

from engine import cards, ids, late_payments, payments
from engine.cards import Cards
from engine.gateway import Event
from engine.payments import Payment, Tender
from engine.settings import Settings
from engine.stores.connections import Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from tests.engine.test_cards import counter, split
from tests.engine.test_late_payments import LATE, end_a_payment, lapse, prove
from tests.gateways import Operator, operating, running_gateway, with_gateway
from tests.races.dying_desk import Hearing
from tests.races.test_card_crashes import work
from tests.shop import PRICE, Selling, Shop, open_shop, together

WHEN = Literal["before", "after"]
BOTH: tuple[WHEN, ...] = ("before", "after")
SOLD = [(step, when) for step in ("begin", "take_in", "hold", "pay", "authorise", "keep", "confirm") for when in BOTH]
RETURNED = [("hold", "before"), *[(step, when) for step in ("give_back", "void", "let_go") for when in BOTH]]
TENDERS = [Tender(method="CARD", payment_method_id=LATE, return_url="http://shop.test/"), split(10_000, LATE)]


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


async def end_late(
    shop: Shop, gateway: Operator, adapter: StripeGateway, *seat_nos: str, tender: Tender | None = None
) -> Payment:
    """A payment that has ended, and whose money came afterwards."""
    async with counter(shop, adapter, answer_within_s=0.0) as till:
        ended = await end_a_payment(shop, gateway, adapter, till, *seat_nos, tender=tender)
    assert ended.gateway_ref is not None
    return ended


async def die(shop: Selling, gateway: Operator, ended: Payment, step: str, when: str) -> None:
    """Hear of the money in a process that dies at this step."""
    assert ended.gateway_ref is not None
    hearing = Hearing(
        environment=with_gateway(shop.stores.settings, gateway.settings).to_environment(),
        sale_id=shop.sale_id,
        ref=ended.gateway_ref,
        event_id="evt_1",
        step=step,
        after=when == "after",
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.races.dying_desk", stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(msgspec.json.encode(hearing))
    assert process.returncode == -signal.SIGKILL


async def tell_again(shop: Selling, adapter: StripeGateway, ended: Payment) -> None:
    """The gateway was not heard, as it thinks, and tells the same event again."""
    await cards.take_in(shop.stores.postgres, adapter, Event("evt_1", "payment_intent.told", ended.gateway_ref, None))


async def check(shop: Shop, gateway: Operator, ended: Payment) -> str:
    """Assert that rows, seats, balance and gateway tell one story; returns how it ended."""
    (standing,) = await gateway.ledger(ended.payment_id)
    taken = standing["captured"] - standing["refunded"]
    mine = [
        seat_no for seat_no, by in (await shop.statuses()).items() if by.startswith("SOLD") and await is_anns(by, shop)
    ]
    assert not (taken and not mine), "money is taken for nothing"
    assert standing["authorised"] == 0, "money is set aside for nothing"
    (late,) = (await late_payments.find_of(shop.stores.postgres, [ended.payment_id])).values()
    balance = await shop.rows("SELECT amount, set_aside FROM balances WHERE user_id = $1", shop.people["ann"])
    bought = await payments.read(shop.stores.postgres, [late.new_payment_id])
    if late.status == "SOLD":
        assert bought[late.new_payment_id].status == "SUCCESS"
        assert taken == ended.card_amount
        assert balance == [(10_000_000 - ended.balance_amount, 0)]
    else:
        assert late.status == "RETURNED"
        assert (taken, mine) == (0, [])
        assert balance == [(10_000_000, 0)]
        assert await shop.rows("SELECT count(*) FROM gateway_operations WHERE status <> 'DONE'") == [(0,)]
    assert "PAYING" not in (await shop.states()).values()
    await prove(shop)
    return late.status


async def is_anns(standing: str, shop: Shop) -> bool:
    """Whether the hold that stands on a seat is hers."""
    hold = await shop.find(standing.split(" ")[1])
    return hold.buyer_id == shop.people["ann"]


@pytest.mark.parametrize("tender", TENDERS, ids=["card", "split"])
@pytest.mark.parametrize(("step", "when"), SOLD)
async def test_late_money_buys_once_whoever_dies(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str, tender: Tender
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1", "A-1-2", tender=tender)
    await die(shop, gateway, ended, step, when)
    await tell_again(shop, adapter, ended)
    await work(shop, adapter, late=False)
    assert await check(shop, gateway, ended) == "SOLD"


@pytest.mark.parametrize(("step", "when"), RETURNED)
async def test_late_money_goes_back_once_whoever_dies(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1", "A-1-2", tender=TENDERS[1])
    theirs = await shop.buy("A-1-2", by="bob")
    await shop.drain()
    await die(shop, gateway, ended, step, when)
    await tell_again(shop, adapter, ended)
    await work(shop, adapter, late=False)
    assert await check(shop, gateway, ended) == "RETURNED"
    assert await shop.reservation(theirs.holding.hold_id) == ("CONFIRMED", None)


@pytest.mark.parametrize(("step", "when"), SOLD[4:])
async def test_late_money_whose_seats_went_while_nobody_worked_goes_back_once(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1", tender=TENDERS[1])
    await die(shop, gateway, ended, step, when)
    held = await shop.stores.redis.zrange((await shop.sale()).keys.deadlines, 0, -1)
    for hold_id in held:
        await lapse(shop, hold_id.decode())
    if "PAYING" not in (await shop.states()).values() and "SOLD" not in (await shop.states()).values():
        await shop.buy("A-1-1", by="bob")
        await shop.drain()
    await tell_again(shop, adapter, ended)
    await work(shop, adapter, late=False)
    decided = (step, when) not in {("hold", "before"), ("hold", "after"), ("pay", "before")}
    assert await check(shop, gateway, ended) == ("SOLD" if decided else "RETURNED")


@pytest.mark.parametrize(("step", "when"), [("pay", "after"), ("authorise", "before"), ("authorise", "after")])
async def test_a_sale_that_is_written_anew_in_between_loses_no_late_money(
    shop: Shop, gateway: Operator, adapter: StripeGateway, step: str, when: str
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1", tender=TENDERS[1])
    await die(shop, gateway, ended, step, when)
    await shop.stores.redis.flushall()
    await shop.rebuild()
    await tell_again(shop, adapter, ended)
    await work(shop, adapter, late=False)
    await check(shop, gateway, ended)


@pytest.mark.parametrize("attempt", range(6))
async def test_many_who_work_on_one_late_payment_decide_it_once(
    shop: Shop, gateway: Operator, adapter: StripeGateway, attempt: int
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1", tender=TENDERS[attempt % 2])
    desk = Cards(shop.stores.gate, shop.stores.postgres, adapter, currency="KRW")
    sale = await shop.sale()

    async def hear(event_id: str) -> None:
        event = Event(event_id, "payment_intent.told", ended.gateway_ref, None)
        await cards.take_in(shop.stores.postgres, adapter, event)
        await desk.climb(sale, ended)

    async def rival() -> Any:
        with suppress(AssertionError):  # it is taken
            await shop.hold("A-1-1", by="bob")

    rivals = [rival()] if attempt >= 3 else []
    await together(hear("evt_1"), hear("evt_1"), hear("evt_2"), desk.climb_all(sale), *rivals, desk.climb_all(sale))
    await work(shop, adapter, late=False)
    assert await check(shop, gateway, ended) == ("RETURNED" if "bob" in await holders(shop) else "SOLD")


async def holders(shop: Shop) -> set[str]:
    """Who stands on seats."""
    names = {user_id: name for name, user_id in shop.people.items()}
    return {names[(await shop.find(by.split(" ")[1])).buyer_id] for by in (await shop.statuses()).values()}


async def test_control_a_shop_that_takes_late_money_first_takes_it_for_nothing(
    shop: Shop, gateway: Operator, adapter: StripeGateway
) -> None:
    ended = await end_late(shop, gateway, adapter, "A-1-1")
    await shop.buy("A-1-1", by="bob")
    await shop.drain()
    assert ended.gateway_ref is not None
    await adapter.capture(ended.gateway_ref, amount=PRICE, key=ids.random_id())
    # … and here it is killed, before it has looked whether the seat is free.
    await work(shop, adapter, late=False)
    with pytest.raises(AssertionError, match="taken for nothing"):
        await check(shop, gateway, ended)
