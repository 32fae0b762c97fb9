"""Who waits for units is offered what comes back or anew, whole, in order of joining, and the public has the rest."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine import ids, offers, order_cancellations, products, sales, seats, stock, variant_waiting_lists, waiting_lists
from engine.audit import audit, describe
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound, SaleClosed
from engine.seats import PaymentRunning, SaleNotOpen
from engine.shelf import UnitWish
from engine.stock import SoldOut
from engine.stores.connections import Stores
from engine.waiting_lists import Served
from tests.goods import EACH, PRICES, Goods, open_goods

PROVED = {"I1", "I4", "I7", "I9", "I13"}


@pytest.fixture
async def goods(stores_any: Stores) -> AsyncIterator[Goods]:
    """Mugs and caps; somebody holds every mug, as `last`."""
    goods = await open_goods(stores_any)
    yield goods
    await goods.drain()
    await waiting_lists.follow(stores_any.postgres)
    report = await audit(stores_any.redis, stores_any.postgres, settle_s=0.5)
    assert {check.verdict for check in report.checks if check.invariant in PROVED} == {"true"}, describe(report)


@pytest.fixture
async def last(goods: Goods) -> str:
    """The hold of all mugs."""
    order_id = await goods.hold(by="holder", mug=EACH)
    await goods.drain()
    return order_id


async def free(goods: Goods, last: str, mugs: int) -> None:
    released = await stock.release(
        goods.stores.gate,
        await goods.sale(),
        hold_id=last,
        buyer_id=await goods.person("holder"),
        release_id=ids.random_id(),
        fingerprint="",
        units=[stock.Units(goods.variants["mug"], mugs)],
    )
    assert isinstance(released, stock.Released), released


async def follow(goods: Goods) -> None:
    """The journal reaches Postgres, and what became of offers is noted."""
    await goods.drain()
    await waiting_lists.follow(goods.stores.postgres)


async def age_shelf(goods: Goods) -> None:
    """Let what is on the shelf have been there for long enough."""
    redis: Any = goods.stores.redis
    key = (await goods.sale()).keys.freed
    for variant_id, score in await redis.zrange(key, 0, -1, withscores=True):
        await redis.zadd(key, {variant_id: score - waiting_lists.GATHER_MS})


async def stop(goods: Goods, name: str, status: str = "STOPPED") -> None:
    """Let a variant's product not be on sale, or be so again."""
    [(product_id, version)] = await goods.rows(
        "SELECT product_id, version FROM products JOIN product_variants USING (product_id) WHERE variant_id = $1",
        goods.variants[name],
    )
    edited = await products.edit(
        goods.stores.postgres, product_id=product_id, changes={"status": status}, version=version
    )
    assert isinstance(edited, products.Product), edited
    await products.tell(goods.stores.gate, goods.stores.postgres, await goods.sale())


# Joining --------------------------------------------------------------------------------------------------------------


async def test_who_joins_is_behind_those_who_wait(goods: Goods) -> None:
    ann, ben = await goods.join("ann", mug=1), await goods.join("ben", mug=2)
    assert (ann.status, ann.ahead, ann.repeated, ann.schedule_id) == ("WAITING", 0, False, None)
    again = await goods.join("ben", mug=2)
    assert (again.entry_id, again.ahead, again.repeated) == (ben.entry_id, 1, True)
    assert await goods.try_join("ben", mug=3) == IdempotencyKeyReused()
    assert [each.wish for each in await waiting_lists.list_mine(goods.stores.postgres, ben.user_id)] == [ben.wish]
    assert (await goods.join("cid", cap_l=1)).ahead == 0  # who waits for something else is not in the way
    assert await goods.term("waiting_list") == "1"


async def test_nobody_waits_for_what_the_public_does_not_see(goods: Goods) -> None:
    nothing = UnitWish(variant_id=ids.random_id(), quantity=1)
    entry_id, user_id = ids.random_id(), await goods.person("ann")
    joined = await variant_waiting_lists.join(
        goods.stores, goods.book, entry_id=entry_id, user_id=user_id, wish=nothing
    )
    assert joined == NotFound()
    for status in ("HIDDEN", "DRAFT"):
        await goods.stores.postgres.execute("UPDATE products SET status = $1 WHERE category = 'home'", status)
        assert await goods.try_join("ann", mug=1) == NotFound()
    assert await goods.rows("SELECT entry_id FROM waiting_list_entries") == []
    await goods.stores.postgres.execute("UPDATE products SET status = 'ON_SALE'")


async def test_nobody_waits_before_a_drop_or_after_it(goods: Goods) -> None:
    postgres = goods.stores.postgres
    await postgres.execute("UPDATE sales SET opens_at = now() + interval '1 hour'")
    assert isinstance(await goods.try_join("ann", mug=1), SaleNotOpen)
    await postgres.execute("UPDATE sales SET opens_at = NULL, closes_at = now()")
    assert await goods.try_join("ann", mug=1) == SaleClosed()
    assert await goods.rows("SELECT entry_id FROM waiting_list_entries") == []


async def test_one_waits_a_few_times_and_for_no_more_than_one_may_have(goods: Goods) -> None:
    for key in range(waiting_lists.ENTRIES_MAX):
        await goods.join("ann", key=str(key), cap_s=1)
    assert await goods.try_join("ann", key="more", mug=1) == LimitReached(limit=5, have=5)
    await goods.buy(by="ben", mug=2)
    await goods.drain()
    await goods.stores.postgres.execute("UPDATE sales SET per_buyer_max = 4")
    assert await goods.try_join("ben", mug=3) == LimitReached(limit=4, have=2)
    await goods.join("ben", mug=2)


# Serving --------------------------------------------------------------------------------------------------------------


async def test_freed_units_serve_the_first_they_fill_whole_and_never_the_public(goods: Goods, last: str) -> None:
    await goods.join("ann", mug=3)
    ben, cid = await goods.join("ben", mug=2), await goods.join("cid", mug=1)
    await free(goods, last, 2)
    assert await goods.freed() == {"mug": 2}
    assert isinstance(await goods.try_hold(ids.random_id(), by="public", mug=1), SoldOut)
    assert await goods.serve() == Served(offered=1)
    offer = await goods.offer_of(ben)
    assert (offer.state, offer.buyer_id, offer.lines) == (
        *("HELD", ben.user_id),
        (stock.Line(goods.variants["mug"], 2, PRICES["mug"]),),
    )
    assert (offer.amount, offer.queue_no, offer.expires_at_ms - offer.created_at_ms) == (2_400, 0, 900_000)
    await follow(goods)
    assert await goods.order(ben.hold_id) == ("PENDING", None)
    assert await goods.waiting() == {"ann": "WAITING", "ben": "OFFERED", "cid": "WAITING"}
    [bens] = await waiting_lists.list_mine(goods.stores.postgres, ben.user_id)
    assert (bens.hold_id, bens.expires_at is not None) == (ben.hold_id, True)
    await free(goods, last, 4)
    assert await goods.serve() == Served(offered=2)
    assert (await goods.offer_of(cid)).amount == 1_200
    assert await goods.freed() == {}


async def test_restocked_units_are_offered_and_the_rest_is_the_publics(goods: Goods) -> None:
    await goods.hold(by="holder", mug=EACH)
    ann = await goods.join("ann", mug=2)
    await goods.restock("mug", 5)
    await goods.restock("cap_s", 3)
    assert (await goods.left(), await goods.freed()) == (
        {"mug": 0, "cap_s": EACH, "cap_l": EACH},
        {"mug": 5, "cap_s": 3},
    )
    assert await goods.serve() == Served(offered=1, published=6)  # nobody waits for the others
    assert (await goods.offer_of(ann)).state == "HELD"
    assert await goods.left() == {"mug": 3, "cap_s": EACH + 3, "cap_l": EACH}


async def test_what_is_too_little_waits_a_while_for_more(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=3)
    await free(goods, last, 1)
    assert await goods.serve() == Served()
    await free(goods, last, 2)
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ann)).amount == 3_600
    await goods.join("ben", mug=3)
    await free(goods, last, 2)
    assert await goods.serve() == Served()
    await age_shelf(goods)
    assert await goods.serve() == Served(published=2)
    assert (await goods.left())["mug"] == 2
    await free(goods, last, 2)  # these came later, and wait anew
    assert await goods.serve() == Served()


async def test_units_of_a_lapsed_hold_are_the_lists_too(goods: Goods, last: str) -> None:
    await goods.join("ann", mug=EACH)
    keys, redis = (await goods.sale()).keys, goods.stores.redis
    hold: bytes = await redis.execute_command("HGET", keys.holds, last)
    record = hold.decode().split("|")
    record[6] = str(int(record[5]) + 1)
    await redis.execute_command("HSET", keys.holds, last, "|".join(record))
    await redis.execute_command("ZADD", keys.deadlines, record[6], last)
    assert isinstance(await goods.try_hold(ids.random_id(), by="public", mug=1), SoldOut)  # nobody takes over
    assert isinstance(await stock.expire(goods.stores.gate, await goods.sale(), most=10), seats.Expired)
    assert await goods.serve() == Served(offered=1)


async def test_an_offer_is_made_once_however_often_it_is_tried(
    goods: Goods, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await goods.join("ann", mug=1), await goods.join("ben", mug=2)
    await free(goods, last, 1)

    async def die(*_: object) -> None:
        raise RuntimeError("died between the offer and the note of it")

    with monkeypatch.context() as patched:
        patched.setattr(waiting_lists, "_note", die)
        with pytest.raises(RuntimeError, match="died"):
            await goods.serve()
    await free(goods, last, 2)
    assert await goods.serve() == Served(offered=2)
    assert [(await goods.offer_of(each)).amount for each in (ann, ben)] == [1_200, 2_400]
    assert await goods.freed() == {}

    # Also when the store has forgotten: the order says that there was an offer.
    await follow(goods)
    await goods.stores.postgres.execute("UPDATE waiting_list_entries SET status = 'WAITING'")
    assert await waiting_lists.note_forgotten(goods.stores.postgres) == 2
    assert await goods.waiting() == {"ann": "OFFERED", "ben": "OFFERED"}


async def test_an_offer_that_was_lost_with_the_store_is_made_again(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=1)
    postgres = goods.stores.postgres
    await postgres.execute("UPDATE waiting_list_entries SET status = 'OFFERED', updated_at = now() - interval '1 hour'")
    await postgres.execute("UPDATE sales SET waiting_list = false")
    await waiting_lists.follow(postgres)
    assert await goods.waiting() == {"ann": "WAITING"}
    assert (await goods.sale()).waiting_list
    await free(goods, last, 1)
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ann)).state == "HELD"


async def test_one_who_may_have_no_more_stays_in_line_and_holds_up_nobody(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=2)
    ben = await goods.join("ben", mug=1)
    await goods.hold(by="ann", cap_s=1)
    await offers.configure(goods.stores, goods.book, sale_id=goods.sale_id, changes={"per_buyer_max": 2}, version=None)
    await free(goods, last, 2)
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ben)).state == "HELD"
    assert await stock.find(goods.stores.gate, await goods.sale(), hold_id=ann.hold_id) == NotFound()


async def test_what_is_not_on_sale_is_kept_for_who_waits(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=2)
    await stop(goods, "mug")
    await free(goods, last, 2)
    assert await goods.serve() == Served()
    await age_shelf(goods)
    assert await goods.serve() == Served()
    await stop(goods, "mug", "ON_SALE")
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ann)).state == "HELD"


async def test_an_offer_needs_no_place_in_line(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=1)
    await goods.stores.redis.execute_command("HSET", (await goods.sale()).keys.sale, "room", "open")
    await free(goods, last, 1)
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ann)).queue_no == 0


# What becomes of an offer ---------------------------------------------------------------------------------------------


async def test_an_offer_that_is_paid_is_taken_and_what_is_refunded_goes_to_the_next(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=2)
    await free(goods, last, 2)
    await goods.serve()
    await goods.confirm(await goods.authorise(ann.hold_id, by="ann"))
    await follow(goods)
    assert await goods.waiting() == {"ann": "TAKEN"}
    assert await goods.order(ann.hold_id) == ("PAID", None)

    ben = await goods.join("ben", mug=1)
    await order_cancellations.cancel(
        goods.stores.gate,
        goods.stores.postgres,
        goods.book,
        cancellation_id=ids.random_id(),
        order_id=ann.hold_id,
        user_id=ann.user_id,
        units=[stock.Units(goods.variants["mug"], 1)],
    )
    assert await goods.serve() == Served(offered=1)
    assert (await goods.offer_of(ben)).amount == 1_200
    await follow(goods)
    assert await goods.waiting() == {"ann": "TAKEN", "ben": "OFFERED"}


async def test_an_offer_that_is_given_back_goes_to_the_next_and_then_to_the_public(goods: Goods, last: str) -> None:
    ann, ben = await goods.join("ann", mug=3), await goods.join("ben", mug=1)
    await free(goods, last, 3)
    await goods.serve()
    await goods.release(ann.hold_id, by="ann", mug=1)  # of an offer one may keep a part
    assert await goods.serve() == Served(offered=1)
    await goods.release(ann.hold_id, by="ann")
    await follow(goods)
    assert await goods.waiting() == {"ann": "LAPSED", "ben": "OFFERED"}
    assert await goods.serve() == Served(published=2)
    assert await goods.serve() == Served()  # nobody waits: the list is over
    assert (await goods.term("waiting_list"), (await goods.sale()).waiting_list) == ("0", False)
    await goods.release(ben.hold_id, by="ben")
    assert ((await goods.left())["mug"], await goods.freed()) == (3, {})
    await follow(goods)
    assert await goods.waiting() == {"ann": "LAPSED", "ben": "LAPSED"}


async def test_who_leaves_gives_back_what_was_offered(goods: Goods, last: str) -> None:
    ann, ben = await goods.join("ann", mug=1), await goods.join("ben", mug=1)
    gate, postgres, book = goods.stores.gate, goods.stores.postgres, goods.book
    await free(goods, last, 1)
    await goods.serve()
    await follow(goods)
    assert await waiting_lists.leave(gate, postgres, book, entry_id=ann.entry_id, user_id=ben.user_id) == NotFound()
    for _ in range(2):
        left = await waiting_lists.leave(gate, postgres, book, entry_id=ann.entry_id, user_id=ann.user_id)
        assert isinstance(left, waiting_lists.Entry)
        assert (left.status, left.reason) == ("LEFT", "USER")
    assert await goods.serve() == Served(offered=1)
    await follow(goods)
    assert await goods.waiting() == {"ann": "LEFT", "ben": "OFFERED"}

    await goods.begin_payment(ben.hold_id, by="ben")
    refused = await waiting_lists.leave(gate, postgres, book, entry_id=ben.entry_id, user_id=ben.user_id)
    assert isinstance(refused, PaymentRunning)
    payment_id = ids.derive("payment of", ben.hold_id)
    fence = (await goods.offer_of(ben)).fence
    await stock.abandon(gate, await goods.sale(), hold_id=ben.hold_id, fence=fence, payment_id=payment_id)


async def test_what_is_offered_to_one_who_leaves_in_that_moment_is_taken_back(
    goods: Goods, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await goods.join("ann", mug=1)
    await free(goods, last, 1)
    note = waiting_lists._note

    async def leave_first(*arguments: Any) -> None:
        await waiting_lists.SQL.leave.execute(goods.stores.postgres, ann.entry_id)
        await note(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(waiting_lists, "_note", leave_first)
        await goods.serve()
    assert (await goods.offer_of(ann)).state == "ENDED"
    assert await goods.freed() == {"mug": 1}


async def test_nobody_waits_for_a_drop_that_is_closed(goods: Goods, last: str) -> None:
    await goods.join("ann", mug=EACH)
    await offers.configure(
        goods.stores,
        goods.book,
        sale_id=goods.sale_id,
        changes={"closes_at": await goods.stores.postgres.fetchval("SELECT now()")},
        version=None,
    )
    await free(goods, last, 1)
    await goods.serve()
    await waiting_lists.follow(goods.stores.postgres)
    assert await goods.rows("SELECT status, reason FROM waiting_list_entries") == [("LEFT", "SALE_OVER")]
    assert await goods.serve() == Served(published=1)


# The list as a whole --------------------------------------------------------------------------------------------------


async def test_the_list_ends_when_nobody_waits_and_begins_anew(goods: Goods, last: str) -> None:
    ann = await goods.join("ann", mug=2)
    await free(goods, last, 1)
    await waiting_lists.leave_all(goods.stores.postgres, ann.user_id)
    assert await goods.serve() == Served(published=1)
    assert await goods.serve() == Served()
    assert await goods.term("waiting_list") == "0"
    await free(goods, last, 1)
    assert (await goods.left())["mug"] == 2
    await goods.join("ben", mug=1)
    assert await goods.term("waiting_list") == "1"


async def test_what_a_list_that_is_over_left_behind_is_seen_and_given_back(goods: Goods, last: str) -> None:
    await goods.join("ann", mug=2)
    await free(goods, last, 1)
    await goods.stores.postgres.execute("UPDATE waiting_list_entries SET status = 'LEFT', reason = 'USER'")
    await goods.stores.postgres.execute("UPDATE sales SET waiting_list = false, version = version + 1")
    sale = await goods.sale()
    await offers.send(goods.stores.gate, goods.stores.postgres, sale)
    reply = await sales.look(goods.stores.gate, sale)
    assert isinstance(reply, sales.Checkpoint)
    assert reply.stranded == 1
    assert await variant_waiting_lists.give_back(goods.stores, sale) == 1
    assert ((await goods.left())["mug"], await goods.freed()) == (1, {})


async def test_a_rebuild_keeps_places_offers_and_what_it_frees_for_the_list(goods: Goods, last: str) -> None:
    ann, ben = await goods.join("ann", mug=1), await goods.join("ben", mug=2)
    await free(goods, last, 1)
    await goods.serve()
    await goods.drain()
    await goods.stores.postgres.execute(
        "UPDATE orders SET expires_at = now() - interval '1 second' WHERE order_id = $1", last
    )
    await goods.rebuild()
    assert (await goods.offer_of(ann)).state == "HELD"
    assert await goods.freed() == {"mug": EACH - 1}
    assert await goods.serve() == Served(offered=1, published=EACH - 3)
    assert (await goods.offer_of(ben)).amount == 2_400
