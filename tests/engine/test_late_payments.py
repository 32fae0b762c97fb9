"""Money that a gateway reports for a payment that has ended: the buyer gets what it was for, or the money goes back."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from engine import (
    audit,
    authorisations,
    cards,
    catalogue,
    ids,
    late_payments,
    payments,
    rebuild,
    sales,
    seat_cancellations,
    seats,
    wishes,
)
from engine.cards import Cards
from engine.gateway import Event
from engine.late_payments import LatePayment
from engine.payments import Payment, Tender
from engine.refusals import Busy, IdempotencyKeyReused, LimitReached, SaleClosed
from engine.sales import SaleBook, Terms
from engine.settings import Settings
from engine.stores.connections import RedisClient, Stores
from engine.stripe_gateway import StripeGateway, open_gateway
from engine.till import Till
from engine.wishes import AreaLine, SeatLine
from tests.engine import offered_halls
from tests.engine.offered_halls import PRICE as FULL
from tests.engine.offered_halls import OfferedHall, Row, open_offered
from tests.engine.seat_sales import buyer
from tests.engine.test_cards import counter, ledger_of, pay, reconcile, row, split, tell
from tests.gateways import Operator, operating, running_gateway
from tests.goods import Goods
from tests.shop import PRICE, START_AT, Selling, Shop, open_shop

LATE = "pm_action_late"


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
    """What the engine asks it with."""
    async with open_gateway(settings_of_gateway, answer_within_s=0.5) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open; nobody may have more than four."""
    return await open_shop(stores, per_buyer_max=4)


@pytest.fixture
async def till(shop: Shop, adapter: StripeGateway) -> AsyncIterator[Till]:
    """Where cards are taken; it waits for no worker."""
    async with counter(shop, adapter, answer_within_s=0.0) as till:
        yield till


async def end_a_payment(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till, *seat_nos: str, tender: Tender | None = None
) -> Payment:
    """Hold and pay, but let the buyer act only after the payment ended and its hold was given back."""
    return await end_payment_of(shop, gateway, adapter, till, await shop.hold(*seat_nos), tender=tender)


async def end_payment_of(
    shop: Shop | Goods, gateway: Operator, adapter: StripeGateway, till: Till, hold_id: str, **more: Any
) -> Payment:
    """The same with what is held already."""
    payment = await pay(shop, till, hold_id, **{"method": LATE} | more)
    await reconcile(shop, adapter, late=True)
    assert (await row(shop, payment)).status == "FAILED"
    await shop.release(hold_id)
    await shop.drain()
    await tell(shop, adapter)
    await gateway.act(payment.action_url, "approve")
    return await row(shop, payment)


async def report(shop: Selling, adapter: StripeGateway, payment: Payment, *, event_id: str = "evt_1") -> Payment | None:
    """The gateway tells of it."""
    ref = payment.gateway_ref
    return await cards.take_in(shop.stores.postgres, adapter, Event(event_id, "payment_intent.told", ref, None))


async def go_on(shop: Selling, adapter: StripeGateway) -> None:
    """What the workers do until all is decided."""
    for _ in range(3):
        await reconcile(shop, adapter)
        await tell(shop, adapter)


async def outcome(shop: Selling, payment: Payment) -> LatePayment:
    """What became of the money."""
    (found,) = (await late_payments.find_of(shop.stores.postgres, [payment.payment_id])).values()
    return found


async def prove(shop: Shop | Goods) -> None:
    """Everything that the audit knows holds."""
    await shop.check()
    # The simulated people got their money from nowhere.
    await shop.stores.postgres.execute(
        "INSERT INTO balance_history (user_id, type, amount, balance_after, version, ref_type, ref_id)"
        " SELECT user_id, 'CHARGE', 10000000, 10000000, 0, 'charge', user_id FROM balances ON CONFLICT DO NOTHING"
    )
    report = await audit.audit(shop.stores.redis, shop.stores.postgres, settle_s=0.0)
    assert [check for check in report.checks if check.verdict != "true"] == []


async def test_late_money_buys_the_same_seats_by_a_payment_of_its_own(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1", "A-1-2")
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.reason, late.amount) == ("SOLD", None, 2 * PRICE)
    bought = (await payments.read(shop.stores.postgres, [late.new_payment_id]))[late.new_payment_id]
    assert (bought.status, bought.reservation_id, bought.gateway_ref) == (
        "SUCCESS",
        late.new_hold_id,
        ended.gateway_ref,
    )
    assert await shop.reservation(late.new_hold_id) == ("CONFIRMED", None)
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert await ledger_of(gateway, ended) == ("succeeded", 0, 2 * PRICE, 0)
    # What ended stays as it ended.
    assert (await row(shop, ended)).status == "FAILED"
    assert await shop.reservation(ended.hold_id) == ("CANCELLED", "USER")
    await prove(shop)


async def test_late_money_that_was_taken_already_is_not_taken_twice(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    assert ended.gateway_ref is not None
    await adapter.capture(ended.gateway_ref, amount=PRICE, key=ids.random_id())
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    assert (await outcome(shop, ended)).status == "SOLD"
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE, 0)
    await prove(shop)


async def test_what_was_told_twice_and_worked_on_by_many_is_sold_once(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    for event_id in ("evt_1", "evt_1", "evt_2"):
        await report(shop, adapter, ended, event_id=event_id)
    await go_on(shop, adapter)
    await report(shop, adapter, ended, event_id="evt_3")
    await go_on(shop, adapter)
    assert await shop.rows("SELECT status FROM late_payments") == [("SOLD",)]
    assert await shop.rows("SELECT count(*) FROM payments") == [(2,)]
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE, 0)
    await prove(shop)


async def taken_by_bob(shop: Shop) -> None:
    await shop.hold("A-1-1", by="bob")


async def dearer(shop: Shop) -> None:
    await shop.set_price("A-1-1", PRICE + 1)


async def cheaper(shop: Shop) -> None:
    await shop.set_price("A-1-1", PRICE - 1)


async def bought_enough(shop: Shop) -> None:
    await shop.hold("A-1-2", "A-1-3", "A-1-4", "A-1-5")


async def held_again_by_the_buyer(shop: Shop) -> None:
    await shop.hold("A-1-1")


async def sale_over(shop: Shop) -> None:
    await shop.stores.redis.hset((await shop.sale()).keys.sale, "closes_at_ms", "1")  # type: ignore[misc]


async def room_closed(shop: Shop) -> None:
    await shop.stores.redis.hset((await shop.sale()).keys.sale, "room", "closed")  # type: ignore[misc]


async def called_off(shop: Shop) -> None:
    schedule_id = (await shop.sale()).schedule_id
    assert schedule_id is not None
    await seat_cancellations.call_off(shop.stores, shop.book, schedule_id=schedule_id)


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (taken_by_bob, "seat_taken"),
        (held_again_by_the_buyer, "seat_taken"),
        (dearer, "price_changed"),
        (cheaper, "price_changed"),
        (bought_enough, "limit_reached"),
        (sale_over, "sale_closed"),
        (room_closed, "sale_closed"),
        (called_off, "event_cancelled"),
    ],
)
async def test_whatever_changed_meanwhile_sends_the_money_back(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till, meanwhile: Any, reason: str
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await meanwhile(shop)
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.reason) == ("RETURNED", reason)
    assert await ledger_of(gateway, ended) == ("canceled", 0, 0, 0)
    assert late.new_payment_id not in await payments.read(shop.stores.postgres, [late.new_payment_id])


async def test_money_that_was_taken_and_buys_nothing_is_refunded(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    assert ended.gateway_ref is not None
    await adapter.capture(ended.gateway_ref, amount=PRICE, key=ids.random_id())
    await shop.hold("A-1-1", by="bob")
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE, PRICE)
    # A report of what was given back is none of money.
    await report(shop, adapter, ended, event_id="evt_2")
    await go_on(shop, adapter)
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE, PRICE)
    assert await shop.rows("SELECT status, error FROM gateway_operations") == [("DONE", None)]


async def test_a_seat_of_a_lapsed_hold_is_free(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    theirs = await shop.hold("A-1-1", "A-1-2", by="bob")
    await lapse(shop, theirs)
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    assert (await outcome(shop, ended)).status == "SOLD"
    assert await shop.reservation(theirs) == ("CANCELLED", "EXPIRED")
    await prove(shop)


async def lapse(shop: Shop, hold_id: str) -> None:
    """Let a hold's time be over."""
    redis: Any = shop.stores.redis
    keys = (await shop.sale()).keys
    fields = (await redis.hget(keys.holds, hold_id)).decode().split("|")
    fields[6] = "1000"
    await redis.hset(keys.holds, hold_id, "|".join(fields))
    await redis.zadd(keys.deadlines, {hold_id: 1000})


async def test_only_what_the_payment_was_for_is_bought(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    hold_id = await shop.hold("A-1-1", "A-1-2", "A-1-3")
    await seats.release(
        shop.stores.gate,
        await shop.sale(),
        hold_id=hold_id,
        buyer_id=await shop.person("ann"),
        release_id=ids.random_id(),
        fingerprint="",
        seat_nos=("A-1-2",),
    )
    payment = await pay(shop, till, hold_id, method=LATE)
    await reconcile(shop, adapter, late=True)
    await shop.release(hold_id)
    await shop.drain()
    await tell(shop, adapter)
    await gateway.act(payment.action_url, "approve")
    await report(shop, adapter, payment)
    await go_on(shop, adapter)
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-3": "SOLD"}
    await prove(shop)


async def test_a_split_payment_sets_its_balance_leg_aside_again(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1", tender=split(10_000, LATE))
    assert await shop.set_aside("ann") == 0
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    assert (await outcome(shop, ended)).status == "SOLD"
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE - 10_000, 0)
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(10_000_000 - 10_000, 0)]
    await prove(shop)


async def test_a_split_payment_whose_balance_went_elsewhere_goes_back(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1", tender=split(10_000, LATE))
    await shop.set_balance("ann", 9_999)
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.reason) == ("RETURNED", "insufficient_balance")
    assert await ledger_of(gateway, ended) == ("canceled", 0, 0, 0)
    assert await shop.states() == {}
    assert await shop.rows("SELECT amount, set_aside FROM balances") == [(9_999, 0)]


async def test_money_that_went_before_anybody_looked_buys_nothing(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await report(shop, adapter, ended)
    assert ended.gateway_ref is not None
    await adapter.void(ended.gateway_ref, key=ids.random_id())
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.reason) == ("RETURNED", "money_gone")
    assert await shop.states() == {}


async def test_money_that_went_after_the_hold_was_made_buys_nothing(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await report(shop, adapter, ended)
    desk = Cards(shop.stores.gate, shop.stores.postgres, adapter, currency="KRW")
    new = await desk.climb(await shop.sale(), ended)
    assert (new.status, new.gateway_ref) == ("PENDING", ended.gateway_ref)
    assert ended.gateway_ref is not None
    await adapter.void(ended.gateway_ref, key=ids.random_id())
    await go_on(shop, adapter)
    late = await outcome(shop, ended)
    assert (late.status, late.reason) == ("RETURNED", "card_declined")
    assert (await row(shop, new)).status == "FAILED"


async def test_another_amount_buys_nothing(shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    assert ended.gateway_ref is not None
    await adapter.capture(ended.gateway_ref, amount=PRICE - 1, key=ids.random_id())
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    assert (await outcome(shop, ended)).reason == "amount_differs"
    assert await ledger_of(gateway, ended) == ("succeeded", 0, PRICE - 1, PRICE - 1)


async def test_a_void_that_is_on_its_way_is_not_called_back(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment = await pay(shop, till, hold_id, method=LATE)
    await reconcile(shop, adapter, late=True)
    await shop.release(hold_id)
    await gateway.act(payment.action_url, "approve")
    await report(shop, adapter, payment)
    assert (await outcome(shop, payment)).reason == "being_voided"
    await go_on(shop, adapter)
    assert await ledger_of(gateway, payment) == ("canceled", 0, 0, 0)


async def test_money_that_was_known_before_its_payment_ended_is_no_late_money(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment = await pay(shop, till, hold_id)
    assert payment.status == "AUTHORISED"
    await authorisations.end(shop.stores.postgres, {payment.payment_id: "VOIDED"})
    await report(shop, adapter, payment)
    assert await late_payments.find_of(shop.stores.postgres, [payment.payment_id]) == {}
    await tell(shop, adapter)
    assert await ledger_of(gateway, payment) == ("canceled", 0, 0, 0)


async def test_money_that_is_there_again_goes_back_again_under_another_key(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await shop.hold("A-1-1", by="bob")
    await report(shop, adapter, ended)
    await go_on(shop, adapter)
    before = await shop.rows("SELECT operation_id, status FROM gateway_operations")
    async with shop.stores.postgres.acquire() as connection, connection.transaction():
        await late_payments.begin(connection, ended, ref=ended.gateway_ref or "", money=PRICE)
    (again,) = await shop.rows("SELECT operation_id, status FROM gateway_operations")
    assert again[1] == "PENDING"
    assert again[0] != before[0][0]
    await go_on(shop, adapter)
    assert await shop.rows("SELECT status FROM gateway_operations") == [("DONE",)]


async def authorise_at_the_gateway(gateway: Operator, payment: Payment) -> None:
    """The buyer pays a declined intent with another card, at the gateway itself."""
    (standing,) = await gateway.ledger(payment.payment_id)
    url = f"{gateway.base}/v1/payment_intents/{standing['payment_intent']}/confirm"
    async with gateway.session.post(url, data={"payment_method": "pm_card_visa"}) as answer:
        assert answer.status == 200, await answer.text()


async def test_a_declined_card_that_pays_later_buys_what_it_was_for(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    hold_id = await shop.hold("A-1-1")
    payment = await pay(shop, till, hold_id, method="pm_card_chargeDeclined")
    await shop.release(hold_id)
    await shop.drain()
    await authorise_at_the_gateway(gateway, payment)
    await report(shop, adapter, await row(shop, payment))
    await go_on(shop, adapter)
    assert (await outcome(shop, payment)).status == "SOLD"
    assert await ledger_of(gateway, payment) == ("succeeded", 0, PRICE, 0)
    await prove(shop)


async def test_a_gateway_that_is_away_is_asked_again(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    ended = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await report(shop, adapter, ended)
    await gateway.switch("busy", operation="query")
    await reconcile(shop, adapter)
    assert (await outcome(shop, ended)).status == "PENDING"
    assert await shop.states() == {}
    await go_on(shop, adapter)
    assert (await outcome(shop, ended)).status == "SOLD"


async def test_late_payments_are_listed_newest_first(
    shop: Shop, gateway: Operator, adapter: StripeGateway, till: Till
) -> None:
    first = await end_a_payment(shop, gateway, adapter, till, "A-1-1")
    await report(shop, adapter, first, event_id="evt_1")
    second = await end_a_payment(shop, gateway, adapter, till, "A-1-2")
    await report(shop, adapter, second, event_id="evt_2")
    postgres = shop.stores.postgres
    newest = await late_payments.list_newest(postgres, limit=1)
    assert [late.payment_id for late in newest] == [second.payment_id]
    before = (newest[0].created_at, newest[0].new_payment_id)
    assert [late.payment_id for late in await late_payments.list_newest(postgres, before=before)] == [first.payment_id]
    assert msgspec.structs.asdict(newest[0])["status"] == "PENDING"


# Tiers and areas ------------------------------------------------------------------------------------------------------


async def test_late_money_buys_the_same_tiers_and_any_places_of_the_same_area(
    stores: Stores, gateway: Operator, adapter: StripeGateway
) -> None:
    shop = await open_shop_with_a_lawn(stores)
    async with counter(shop, adapter, answer_within_s=0.0) as till:
        hold_id = ids.derive_in(shop.sale_id, "family")
        held = await wishes.hold_lines(
            stores.gate,
            await shop.sale(),
            hold_id=hold_id,
            buyer_id=await shop.person("ann"),
            fingerprint="f",
            lines=[SeatLine("A-1-1", "child"), SeatLine("A-1-2"), AreaLine("Lawn", 2), AreaLine("Lawn", 1, "child")],
        )
        assert isinstance(held, seats.HeldLines)
        assert {line.seat_no for line in held.lines if "GA" in line.seat_no} == {f"Lawn-GA-{no}" for no in (1, 2, 3)}
        payment = await pay(shop, till, hold_id, method=LATE)
        await reconcile(shop, adapter, late=True)
        await shop.release(hold_id)
        await shop.drain()
        await tell(shop, adapter)
        await gateway.act(payment.action_url, "approve")
    # Somebody else stands where they would have stood; the lawn is large enough.
    mine: dict[str, Any] = {"hold_id": ids.random_id(), "buyer_id": await shop.person("bob"), "fingerprint": "f"}
    await wishes.hold_lines(stores.gate, await shop.sale(), lines=[AreaLine("Lawn", 2)], **mine)
    await report(shop, adapter, payment)
    await go_on(shop, adapter)
    late = await outcome(shop, payment)
    assert (late.status, late.amount) == ("SOLD", 2 * LAWN + PRICE + 2 * CHILD)
    lines = await shop.rows(
        "SELECT price, tier, count(*) FROM reservation_seats WHERE reservation_id = $1 GROUP BY price, tier "
        "ORDER BY price, tier",
        late.new_hold_id,
    )
    assert lines == [(CHILD, "child", 2), (LAWN, None, 2), (PRICE, None, 1)]
    await prove(shop)


LAWN, CHILD = 7_000, 5_000


async def open_shop_with_a_lawn(stores: Stores) -> Shop:
    """Two seats and a lawn of six, with a price for children on both."""
    await stores.postgres.execute("INSERT INTO installation (name, value) VALUES ('currency', 'KRW')")
    concert_id = ids.random_id()
    await catalogue.create_concert(stores.postgres, concert_id=concert_id, poster=catalogue.Poster(title="Outdoors"))
    made = await catalogue.create_schedule(
        stores.postgres,
        schedule_id=ids.random_id(),
        concert_id=concert_id,
        start_at=START_AT,
        terms=Terms(name="Outdoors"),
        seats=[
            catalogue.Seat(section="A", row="1", number=number, category="R", price=PRICE, blocked=False)
            for number in (1, 2)
        ],
        areas=[catalogue.Area(area="Lawn", category="GA", price=LAWN, quantity=6)],
        tiers=[catalogue.Tier(tier="child", category=category, price=CHILD) for category in ("R", "GA")],
        fingerprint="",
    )
    assert isinstance(made, tuple), made
    shop = Shop(stores, made[0].sale_id, SaleBook(stores.postgres))
    assert await rebuild.ensure_open(stores, shop.sale_id)
    return shop


# The script alone -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[OfferedHall]:
    """A row of four, of which two are kept by a code, a lawn of two; a child pays less, and one of them may come."""
    hall = await open_offered(
        redis_any,
        Row("A", "1", "FF", "STD"),
        Row("B", "1", "FF", "STD", block=1),
        areas=(offered_halls.Area("Lawn", 2), offered_halls.Area("Bar", 2, block=1)),
        tiers={("child", "STD"): (10_000, 1)},
        blocks={1: f"{wishes.code_hash('', 'hush')}||0|0"},
    )
    yield hall
    await hall.check()


async def hold_again(hall: OfferedHall, *lines: str, prices: str, key: str = "late", **more: Any) -> Any:
    """Ask the script."""
    asked: dict[str, Any] = {"hold_id": ids.derive(key), "buyer_id": buyer("ann"), "fingerprint": "f" * 16} | more
    return await sales.ask(hall.gate, hall.sale, seats.HOLD_AGAIN, wanted_prices=prices, lines=lines, **asked)


async def test_an_id_holds_again_once(hall: OfferedHall) -> None:
    held = await hold_again(hall, "A-1-1", "=Lawn|1|", prices=f"{FULL},{FULL}")
    assert isinstance(held, seats.HeldLines)
    assert [line.seat_no for line in held.lines] == ["A-1-1", "Lawn-GA-1"]
    again = await hold_again(hall, "A-1-1", "=Lawn|1|", prices=f"{FULL},{FULL}")
    assert again == seats.HoldKnown("HELD")
    other = await hold_again(hall, "A-1-1", prices=str(FULL), fingerprint="0" * 16)
    assert other == IdempotencyKeyReused()
    (entry,) = await hall.entries("journal")
    assert (entry["kind"], entry["queue_no"]) == ("held", "0")


async def test_a_room_that_is_on_asks_for_no_token_and_a_closed_one_sells_nothing(hall: OfferedHall) -> None:
    await hall.set(room="paused")
    assert isinstance(await hold_again(hall, "A-1-1", prices=str(FULL)), seats.HeldLines)
    await hall.set(room="closed")
    assert await hold_again(hall, "A-1-2", prices=str(FULL), key="2") == SaleClosed()


async def test_what_stands_in_the_way_of_holding_again_is_named(hall: OfferedHall) -> None:
    await hall.hold_lines("A-1-1", ("A-1-2", "child"), AreaLine("Lawn", 2), by="bob")
    refused = await hold_again(hall, "A-1-1", "A-1-2", prices=f"{FULL},{FULL}")
    assert refused == seats.SeatTaken(("A-1-1 held", "A-1-2 held"))
    assert await hold_again(hall, "B-1-1", prices=str(FULL)) == seats.SeatTaken(("B-1-1 blocked",))
    assert await hold_again(hall, "=Bar|1|", prices=str(FULL)) == seats.SeatTaken(("Bar blocked",))
    assert await hold_again(hall, "=Lawn|1|", prices=str(FULL)) == seats.SoldOut(("1 0 area Lawn",))
    assert await hold_again(hall, "=Moon|1|", prices=str(FULL)) == seats.OfferUnknown(("area Moon",))
    for strange in ("A-9-9", "Lawn-GA-1"):
        assert await hold_again(hall, strange, prices=str(FULL)) == seats.SeatUnknown((strange,))
    assert len(await hall.entries("journal")) == 1


async def test_a_tier_whose_cap_is_reached_is_sold_out_and_one_that_costs_more_has_changed(hall: OfferedHall) -> None:
    assert isinstance(await hold_again(hall, "A-1-1|child", prices="9999"), seats.PriceChanged)
    assert isinstance(await hold_again(hall, "A-1-1|child", prices="10000"), seats.HeldLines)
    assert await hold_again(hall, "A-1-2|child", prices="10000", key="2") == seats.SoldOut(("1 0 tier child",))


async def test_nothing_is_held_again_before_a_sale_opens_after_it_closes_or_while_postgres_is_behind(
    hall: OfferedHall,
) -> None:
    now_ms = await hall.now_ms()
    await hall.set(opens_at_ms=now_ms + 60_000)
    assert await hold_again(hall, "A-1-1", prices=str(FULL)) == seats.SaleNotOpen(now_ms + 60_000)
    await hall.set(opens_at_ms=0, closes_at_ms=now_ms)
    assert await hold_again(hall, "A-1-1", prices=str(FULL)) == SaleClosed()
    await hall.set(closes_at_ms=0, backlog_max=1, journal_n=5)
    assert await hold_again(hall, "A-1-1", prices=str(FULL)) == Busy(1000)
    await hall.set(journal_n=0, per_buyer_max=1, waiting_list=1)
    assert await hold_again(hall, "A-1-1", "A-1-2", prices=f"{FULL},{FULL}") == LimitReached(1, 0)


async def test_while_others_wait_for_seats_a_lapsed_hold_gives_none_away(hall: OfferedHall) -> None:
    await hall.hold_lines("A-1-1", by="bob", id_="b0" * 16)
    await hall.lapse("b0" * 16)
    await hall.set(waiting_list=1)
    assert await hold_again(hall, "A-1-1", prices=str(FULL)) == seats.SeatTaken(("A-1-1 held",))
    await hall.set(waiting_list=0)
    assert isinstance(await hold_again(hall, "A-1-1", prices=str(FULL)), seats.HeldLines)
