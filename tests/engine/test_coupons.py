"""Coupons: what they take off, who gets one, how an issue becomes true, and that both stores say the same of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import copies, coupon_copies, coupons, ids, offers, rebuild, sales
from engine.coupons import CouponsGone, Issued, NotIssuing, Plan, QuantityTaken
from engine.refusals import Busy, IdempotencyKeyReused, NotFound
from engine.sales import StaleVersion
from engine.stores import outbox
from engine.stores.connections import RedisClient, Stores
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from tests.engine.coupon_sources import FIVE_OFF, CouponShop, new_coupons, open_coupons, open_source
from tests.engine.seat_sales import buyer
from tests.engine.test_rebuild import lose

AMOUNTS = st.integers(0, 10**15)

# --- what a coupon takes off ------------------------------------------------------------------------------------------


def fixed(amount: int) -> coupons.Terms:
    return msgspec.structs.replace(FIVE_OFF, discount_amount=amount)


def rate(percent: int, most: int | None = None) -> coupons.Terms:
    return msgspec.structs.replace(
        FIVE_OFF, type="RATE", discount_amount=None, discount_rate=percent, max_discount_amount=most
    )


@pytest.mark.parametrize(
    ("terms", "base", "discount"),
    [
        (fixed(5_000), 4_999, 4_999),
        (fixed(5_000), 5_001, 5_000),
        (rate(33), 101, 33),
        (rate(100), 7, 7),
        (rate(50, most=20), 100, 20),
        (rate(1), 99, 0),
        (fixed(1), 0, 0),
    ],
)
def test_a_discount_is_what_the_terms_say(terms: coupons.Terms, base: int, discount: int) -> None:
    assert coupons.discount_of(terms, base) == discount


@given(
    base=AMOUNTS, percent=st.integers(1, 100), most=st.none() | st.integers(1, 10**12), amount=st.integers(1, 10**12)
)
def test_no_discount_is_more_than_its_terms_or_the_price(
    base: int, percent: int, most: int | None, amount: int
) -> None:
    assert coupons.discount_of(fixed(amount), base) == min(amount, base)
    discount = coupons.discount_of(rate(percent, most), base)
    assert 0 <= discount <= Fraction(base * percent, 100)
    assert discount == most or discount > Fraction(base * percent, 100) - 1
    assert most is None or discount <= most


@given(prices=st.lists(AMOUNTS, max_size=100), part=st.fractions(0, 1))
def test_a_discount_is_shared_out_to_the_last_unit(prices: list[int], part: Fraction) -> None:
    discount = int(sum(prices) * part)
    shares = coupons.spread(discount, prices)
    assert sum(shares) == discount
    assert all(0 <= share <= price for share, price in zip(shares, prices, strict=True))
    for share, price in zip(shares, prices, strict=True):
        assert abs(share - Fraction(discount * price, sum(prices) or 1)) < 1


def test_lines_of_one_price_get_the_rest_from_the_first_on() -> None:
    assert coupons.spread(5, [10, 10, 10]) == [2, 2, 1]
    assert coupons.spread(1, [1, 99]) == [0, 1]
    assert coupons.spread(0, []) == []


@pytest.mark.parametrize(("discount", "prices"), [(1, []), (-1, [3]), (4, [1, 2])])
def test_more_than_everything_costs_cannot_be_taken_off(discount: int, prices: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be taken off"):
        coupons.spread(discount, prices)


def test_a_coupon_is_usable_from_its_first_moment_to_before_its_last() -> None:
    terms = msgspec.structs.replace(FIVE_OFF, minimum_spend=100)
    moment = timedelta(microseconds=1)
    assert coupons.usable(terms, 100, terms.usable_from - moment) == "NOT_STARTED"
    assert coupons.usable(terms, 100, terms.usable_from) is None
    assert coupons.usable(terms, 99, terms.usable_from) == "MINIMUM_SPEND"
    assert coupons.usable(terms, 100, terms.usable_to - moment) is None
    assert coupons.usable(terms, 100, terms.usable_to) == "ENDED"
    assert coupons.usable(FIVE_OFF, 0, terms.usable_from) is None


# --- issuing ----------------------------------------------------------------------------------------------------------


async def test_as_many_get_one_as_there_are_and_each_learns_the_same_again(redis_any: RedisClient) -> None:
    source = await open_source(redis_any, 2)
    assert await source.issue("ann") == Issued(1, 0)
    assert await source.issue("bob") == Issued(2, 0)
    assert await source.issue("cat") == CouponsGone()
    assert await source.issue("ann") == Issued(1, 1)
    [first, _] = await source.entries("outbox")
    assert (first["kind"], first["user_id"]) == ("issued", buyer("ann"))
    assert msgspec.json.decode(first["terms"], type=coupons.Terms) == FIVE_OFF
    await source.check()


async def test_who_asks_many_times_at_once_gets_one(redis_any: RedisClient) -> None:
    source = await open_source(redis_any, 10)
    replies = await asyncio.gather(*(source.issue("ann") for _ in range(300)))
    assert sorted(replies, key=lambda reply: reply.repeated) == [Issued(1, 0), *[Issued(1, 1)] * 299]
    await source.check()


@pytest.mark.parametrize(
    ("terms", "refusal"),
    [
        ({"status": "DRAFT"}, NotFound()),
        ({"status": "DELETED"}, NotFound()),
        ({"status": "PAUSED"}, NotIssuing("PAUSED")),
        ({"status": "CLOSED"}, NotIssuing("CLOSED")),
        ({"opens_at_ms": 4_000_000_000_000}, NotIssuing("NOT_STARTED", 4_000_000_000_000)),
        ({"closes_at_ms": 1_000_000_000_000}, NotIssuing("ENDED")),
        ({"quantity": 1}, CouponsGone()),
        ({"backlog_max": 5, "outbox_n": 6}, Busy(1000)),
        ({"state": "rebuilding"}, SaleRebuilding()),
        ({"epoch": 2}, StaleEpoch(2)),
    ],
)
async def test_what_is_refused_leaves_nothing(redis_any: RedisClient, terms: dict[str, Any], refusal: Any) -> None:
    source = await open_source(redis_any, 10)
    assert isinstance(await source.issue("early"), Issued)
    await source.set(**terms)
    before = await source.fields("sale"), await source.issued(), await source.entries("outbox")
    assert await source.issue("ann") == refusal
    assert (await source.fields("sale"), await source.issued(), await source.entries("outbox")) == before
    if not isinstance(refusal, SaleRebuilding | StaleEpoch):
        # Who has one has it, whatever became of the source.
        assert await source.issue("early") == Issued(1, 1)


async def test_a_window_has_its_first_moment_and_not_its_last(redis_any: RedisClient) -> None:
    source = await open_source(redis_any, 10)
    # The store's clock stands still where time would have to go back.
    await source.set(now_ms=4_000_000_000_000, opens_at_ms=4_000_000_000_000, closes_at_ms=4_000_000_000_001)
    assert isinstance(await source.issue("ann"), Issued)
    await source.set(now_ms=4_000_000_000_001)
    assert await source.issue("bob") == NotIssuing("ENDED")
    await source.set(opens_at_ms=4_000_000_000_002, closes_at_ms=0)
    assert await source.issue("bob") == NotIssuing("NOT_STARTED", 4_000_000_000_002)


async def test_an_unknown_source_issues_nothing(stores_any: Stores) -> None:
    shop = await new_coupons(stores_any)
    assert await shop.issue() == SaleUnknown()


# --- how an issue becomes true ----------------------------------------------------------------------------------------


async def test_issues_become_rows_with_their_terms_and_count_down(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 3, minimum_spend=10_000)
    await shop.issued("ann", "bob")
    assert (await shop.coupon()).quantity == 3
    await shop.drain()
    coupon = await shop.coupon()
    assert (coupon.quantity, coupon.issued, coupon.status, coupon.version) == (1, 2, "ISSUING", 1)
    [mine] = await coupons.list_mine(shop.stores.postgres, await shop.person("ann"), before=None, most=9)
    assert mine.user_coupon_id == coupons.user_coupon_id_of(shop.coupon_id, await shop.person("ann"))
    assert (mine.name, mine.discount_amount, mine.minimum_spend) == ("Five off", 5_000, 10_000)
    assert (mine.usable_from, mine.usable_to, mine.status) == (FIVE_OFF.usable_from, FIVE_OFF.usable_to, "AVAILABLE")
    await shop.check()


async def test_the_last_one_sells_the_source_out(stores: Stores) -> None:
    shop = await open_coupons(stores, 2)
    await shop.issued("ann", "bob")
    await shop.drain()
    assert (await shop.coupon()).status == "SOLD_OUT"
    assert await shop.issue("cat") == CouponsGone()
    await shop.rebuild()
    assert await shop.issue("cat") == CouponsGone()
    await shop.check()


async def test_one_that_is_paused_stays_paused_when_its_last_is_issued(stores: Stores) -> None:
    shop = await open_coupons(stores, 1)
    await shop.issued("ann")
    await shop.edit(status="PAUSED")
    await shop.drain()
    assert (await shop.coupon()).status == "PAUSED"
    assert (await shop.edit(status="ISSUING")).status == "SOLD_OUT"


async def test_terms_are_those_of_the_moment_of_the_issue(stores: Stores) -> None:
    shop = await open_coupons(stores)
    await shop.issued("ann")
    later = datetime(2040, 1, 1, tzinfo=UTC)
    assert isinstance(await shop.edit(discount_amount=1, usable_to=later, name="One off"), coupons.Coupon)
    await shop.issued("bob")
    await shop.drain()
    found = [
        (mine.name, mine.discount_amount, mine.usable_to)
        for name in ("ann", "bob")
        for mine in await coupons.list_mine(shop.stores.postgres, await shop.person(name), before=None, most=9)
    ]
    assert found == [("Five off", 5_000, FIVE_OFF.usable_to), ("One off", 1, later)]


async def test_an_entry_that_is_told_again_adds_nothing(stores: Stores) -> None:
    shop = await open_coupons(stores)
    await shop.issued("ann")
    await shop.drain()
    sale = await shop.sale()
    entries = list(outbox.parse_entries(await stores.redis.xrange(sale.keys.outbox)))
    async with stores.postgres.acquire() as connection, connection.transaction():
        await coupons.settle(connection, sale, [*entries, *entries])
    await shop.check()
    assert (await shop.row())["store_state"] == "open"


async def test_an_issue_that_does_not_stand_gets_no_row_and_redis_is_written_anew(stores: Stores) -> None:
    shop = await open_coupons(stores, 2)
    # Two more than there are, as a copy that was told too high a number gives them out.
    await stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "quantity", "4")
    await shop.issued("ann", "bob", "cat", "dan")
    await shop.drain()
    assert len(await shop.owners()) == 2
    row = await shop.row()
    assert (row["store_state"], row["frozen_reason"]) == ("frozen", "issue n 3 does not stand: nothing is left")
    await shop.rebuild()
    await shop.check()
    assert len(await shop.remembered()) == 2


async def test_an_issue_that_cannot_be_read_is_buried_and_redis_is_written_anew(stores: Stores) -> None:
    shop = await open_coupons(stores, 5)
    await shop.issued("ann")
    await stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "terms", "{}")
    await shop.issued("bob")
    # Nobody of that name has an account.
    stranger = await coupons.issue(stores.gate, await shop.sale(), user_id="5" * 32)
    assert isinstance(stranger, Issued)
    await shop.edit(name="Well again")
    await shop.issued("cat")
    await shop.drain()
    assert await shop.owners() == {await shop.person("ann"), await shop.person("cat")}
    assert await stores.postgres.fetchval("SELECT count(*) FROM dead_letters") == 2
    assert (await shop.row())["store_state"] == "frozen"
    await shop.rebuild()
    await shop.check()
    letters = await stores.postgres.fetch("SELECT resolution FROM dead_letters")
    assert [letter["resolution"] for letter in letters] == ["REBUILT", "REBUILT"]
    await shop.issued("bob")
    await shop.drain()
    await shop.check()


# --- rebuilding -------------------------------------------------------------------------------------------------------


async def test_a_lost_copy_is_written_from_the_rows(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 3)
    await shop.issued("ann", "bob")
    await shop.drain()
    await lose(stores_any)
    assert await shop.inspect() is not None
    sale = await shop.rebuild()
    assert (sale.epoch, (await shop.row())["store_state"]) == (2, "open")
    await shop.check()
    assert await shop.issue("ann") == Issued(0, 1)
    assert isinstance(await shop.issue("cat"), Issued)
    assert await shop.issue("dan") == CouponsGone()
    await shop.drain()
    await shop.check()


async def test_what_no_row_says_is_applied_before_the_copy_is_cleared(stores: Stores) -> None:
    shop = await open_coupons(stores, 3)
    await shop.issued("ann", "bob")
    await shop.rebuild()
    assert len(await shop.owners()) == 2
    await shop.check()


async def test_a_large_source_is_written_in_chunks(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coupon_copies, "COUPONS_AT_ONCE", 7)
    shop = await open_coupons(stores, 50)
    sale, crowd = await shop.sale(), await shop.crowd(50)
    await asyncio.gather(*(coupons.issue(stores.gate, sale, user_id=user_id) for user_id in crowd))
    await shop.drain()
    await shop.rebuild()
    await shop.check()
    assert len(await shop.remembered()) == 50


async def test_an_open_copy_is_neither_cleared_nor_written_into(stores: Stores) -> None:
    shop = await open_coupons(stores)
    sale = await shop.sale()
    assert await coupon_copies.CLEAR(stores.gate, sale.keys, epoch=1, terms=()) == copies.Cleared()
    assert await coupon_copies.LOAD(stores.gate, sale.keys, epoch=1, user_ids=["5" * 32]) == copies.SaleOpen()
    assert await coupon_copies.CLEAR(stores.gate, sale.keys, epoch=0, terms=()) == StaleEpoch(1)
    assert await coupon_copies.LOAD(stores.gate, sale.keys, epoch=2, user_ids=["5" * 32]) == StaleEpoch(1)
    assert await coupons.COUNT(stores.gate, sale.keys, epoch=2) == StaleEpoch(1)
    await shop.check()


async def test_loading_the_same_twice_loads_it_once(stores: Stores) -> None:
    shop = await open_coupons(stores)
    sale = await shop.sale()
    await rebuild.CLOSE(stores.gate, sale.keys, epoch=1)
    for _ in range(2):
        loaded = await coupon_copies.LOAD(stores.gate, sale.keys, epoch=1, user_ids=["5" * 32, "6" * 32])
        assert loaded == copies.Loaded(2)
    counted = await coupons.COUNT(stores.gate, sale.keys, epoch=1)
    assert isinstance(counted, coupons.CountedCoupons)
    assert counted.issued == 2


# --- what an operator does --------------------------------------------------------------------------------------------


async def test_a_source_is_made_once(stores: Stores) -> None:
    coupon_id = ids.random_id()
    plan = Plan(**msgspec.structs.asdict(FIVE_OFF), initial_quantity=3)
    for repeated in (False, True):
        made = await coupons.create(stores.postgres, coupon_id=coupon_id, plan=plan, fingerprint="a")
        assert isinstance(made, tuple)
        assert (made[0].quantity, made[1]) == (3, repeated)
    made = await coupons.create(stores.postgres, coupon_id=coupon_id, plan=plan, fingerprint="b")
    assert made == IdempotencyKeyReused()


async def test_more_may_be_added_and_as_many_taken_away_as_nobody_has(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 2)
    await shop.issued("ann", "bob")
    assert await shop.issue("cat") == CouponsGone()
    # Postgres does not have them yet, and Redis does.
    assert await shop.edit(initial_quantity=1) == QuantityTaken(2)
    await shop.drain()
    more = await shop.edit(initial_quantity=4)
    assert (more.quantity, more.initial_quantity, more.status) == (2, 4, "ISSUING")
    await shop.issued("cat")
    await shop.drain()
    assert await shop.edit(initial_quantity=2) == QuantityTaken(3)
    less = await shop.edit(initial_quantity=3)
    assert (less.quantity, less.status) == (0, "SOLD_OUT")
    assert await shop.issue("dan") == CouponsGone()
    await shop.check()


async def test_an_edit_is_of_the_version_that_it_names(stores: Stores) -> None:
    shop = await open_coupons(stores)
    edit = {"coupon_id": shop.coupon_id, "changes": {"name": "New"}}
    assert await coupons.edit(stores, shop.book, version=2, **edit) == StaleVersion(1)  # type: ignore[arg-type]
    assert await coupons.edit(stores, shop.book, version=1, **(edit | {"coupon_id": "0" * 32})) == NotFound()  # type: ignore[arg-type]
    assert (await shop.coupon()).name == FIVE_OFF.name


async def test_a_source_is_paused_and_goes_on_and_is_closed_for_good(stores: Stores) -> None:
    shop = await open_coupons(stores)
    await shop.edit(status="PAUSED")
    assert await shop.issue() == NotIssuing("PAUSED")
    await shop.edit(status="ISSUING")
    await shop.issued("ann")
    await shop.edit(status="CLOSED")
    assert await shop.issue("bob") == NotIssuing("CLOSED")
    assert await shop.edit(status="ISSUING") == NotIssuing("CLOSED")
    assert (await shop.edit(name="Over")).status == "CLOSED"


async def test_a_deleted_source_is_hidden_and_what_it_issued_stays(stores: Stores) -> None:
    shop = await open_coupons(stores)
    await shop.issued("ann")
    for _ in range(2):
        assert await coupons.remove(stores, shop.book, coupon_id=shop.coupon_id)
    assert await shop.issue("bob") == NotFound()
    assert await coupons.find(stores.postgres, shop.coupon_id) is None
    assert await coupons.list_coupons(stores.postgres, statuses=coupons.STATUSES, before=None, most=9) == []
    assert await shop.edit(name="Back") == NotFound()
    await shop.drain()
    assert await shop.owners() == {await shop.person("ann")}
    await shop.rebuild()
    assert await shop.issue("bob") == NotFound()
    await shop.check()
    assert not await coupons.remove(stores, shop.book, coupon_id="0" * 32)


async def test_terms_that_arrive_late_change_nothing(stores: Stores) -> None:
    shop = await open_coupons(stores)
    old = await shop.coupon()
    await shop.edit(status="PAUSED")
    sale = await shop.sale()
    await sales.ask(stores.gate, sale, sales.CONFIGURE, version=old.version, terms=coupons.stored_terms(old))
    assert await shop.issue() == NotIssuing("PAUSED")


async def test_sources_are_no_sales_for_operators(stores: Stores) -> None:
    shop: CouponShop = await open_coupons(stores)
    assert await sales.list_newest(stores.postgres) == []
    assert await offers.configure(stores, shop.book, sale_id=shop.coupon_id, changes={"room": "open"}) is None
