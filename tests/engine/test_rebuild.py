"""Rebuild: whatever happened to Redis, a sale stands again as Postgres knows it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import RedisCluster

from engine import (
    authorisations,
    cancellations,
    ids,
    offers,
    payments,
    rebuild,
    reconciliation,
    sales,
    seat_cancellations,
    seat_copies,
    seats,
)
from engine.copies import Cleared, RebuildFailed, SaleOpen
from engine.payments import Tender
from engine.rebuild import CLEAR, CLOSE, OPEN, Closed, Opened
from engine.refusals import IdempotencyKeyReused, LimitReached
from engine.seat_copies import LOAD_SEATS
from engine.stores import outbox
from engine.stores.connections import RedisClient, Stores
from engine.stores.keys import SaleKeys
from engine.stores.outbox import OwnershipLost
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate
from tests.shop import PRICE, Shop, new_shop, open_shop


async def lose(stores: Stores) -> None:
    """Redis forgets everything."""
    if isinstance(stores.redis, RedisCluster):
        await stores.redis.flushall(target_nodes=RedisCluster.PRIMARIES)
    else:
        await stores.redis.flushall()


def comparable(stored: dict[str, Any]) -> dict[str, Any]:
    """What a rebuild must bring back.

    Without the numbers of the old streams, when exactly something ended, and which requests extended or released: those
    are kept in Redis alone.
    """
    copy = {name: dict(content) for name, content in stored.items()}
    for name in list(copy["sale"]):
        if name.endswith((b"_n", b"message_no")):
            del copy["sale"][name]
    copy["ended"] = dict.fromkeys(copy.get("ended", {}))
    for hold_id, record in copy.get("holds", {}).items():
        values = record.split(b"|")
        copy["holds"][hold_id] = [*values[:10], *values[11:14], values[16]]
    return copy


# What stands ----------------------------------------------------------------------------------------------------------


async def test_a_new_sale_is_written_with_its_seats_and_terms(stores_any: Stores) -> None:
    shop = await new_shop(stores_any, seats_count=6, blocked=2, per_buyer_max=4, pay_s=90)
    assert ((await shop.row())["store_state"], (await shop.row())["epoch"]) == ("new", 0)
    sale = await shop.rebuild()
    assert (sale.epoch, (await shop.row())["store_state"]) == (1, "open")
    assert await shop.statuses() == {"A-1-5": "BLOCKED - 0", "A-1-6": "BLOCKED - 0"}
    prices = await stores_any.redis.hgetall(sale.keys.prices)  # type: ignore[misc]
    assert prices == {f"A-1-{at + 1}".encode(): f"{PRICE}|1|0|{at}|0|F".encode() for at in range(6)}
    assert await stores_any.redis.get(sale.keys.floor) == b"FFFFTT"
    terms = [await shop.term(name) for name in ("state", "epoch", "per_buyer_max", "pay_ms", "fence", "serving")]
    assert terms == ["open", "1", "4", "90000", "1000000000", "0"]
    assert await shop.inspect() is None


async def test_after_everything_is_lost_the_same_stands_again(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, seats_count=9, blocked=1)
    await shop.buy("A-1-1", "A-1-2", by="ann")
    await shop.hold("A-1-3", by="ann")
    await shop.hold("A-1-4", "A-1-5", by="bob")
    await shop.authorise(await shop.hold("A-1-6", by="cid"))
    await shop.release(await shop.hold("A-1-7", by="cid"))
    await shop.drain()
    before = comparable(await shop.stored())
    await lose(stores_any)
    assert await shop.inspect() == "the store does not know the sale"
    await shop.rebuild()
    assert comparable(await shop.stored()) == before
    assert await shop.inspect() is None
    await shop.check()


async def test_fences_and_versions_go_on_above_all_that_were_given_out(stores: Stores) -> None:
    shop = await open_shop(stores)
    first = await shop.find(await shop.hold("A-1-1"))
    await shop.drain()
    await shop.rebuild()
    second = await shop.find(await shop.hold("A-1-2"))
    assert (first.fence, second.fence) == (1_000_000_001, 2_000_000_001)
    assert (await shop.find(first.hold_id)).fence == first.fence
    assert int(await shop.term("map_version")) == 2_000_000_001


async def test_a_hold_goes_on_from_where_it_was(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    hold_id = await shop.hold("A-1-1", "A-1-2")
    await shop.drain()
    before = await shop.find(hold_id)
    await lose(stores_any)
    await shop.rebuild()
    after = await shop.find(hold_id)
    assert replaced(after) == replaced(before)
    request = await shop.authorise(hold_id)
    assert await shop.confirm(request) == seats.Confirmed(1)
    await shop.drain()
    assert await shop.reservation(hold_id) == ("CONFIRMED", None)
    await shop.check()


def replaced(hold: seats.Hold) -> dict[str, Any]:
    """A hold without the moment at which it was looked at."""
    return {name: getattr(hold, name) for name in hold.__struct_fields__ if name != "now_ms"}


async def test_a_payment_that_ran_is_confirmed_after_the_rebuild(stores: Stores) -> None:
    shop = await open_shop(stores)
    request = await shop.authorise(await shop.hold("A-1-1"))
    await lose(stores)  # the journal with the hold in it too: transaction A has written the row
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "PAYING"}
    assert await shop.confirm(request) == seats.Confirmed(1)
    await shop.drain()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    await shop.check()


async def test_a_sale_that_redis_forgot_before_anybody_read_it_is_sold_again(stores: Stores) -> None:
    shop = await open_shop(stores)
    request = await shop.buy("A-1-1")
    await lose(stores)
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "PAYING"}
    await shop.age(request.payment_id)
    await reconciliation.reconcile(stores.gate, stores.postgres, await shop.sale())
    await shop.drain()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    await shop.check()


async def test_a_hold_that_never_reached_postgres_is_gone(stores: Stores) -> None:
    shop = await open_shop(stores)
    hold_id = await shop.hold("A-1-1")
    await lose(stores)
    await shop.rebuild()
    assert await shop.states() == {}
    assert not isinstance(await seats.find(stores.gate, await shop.sale(), hold_id=hold_id), seats.Hold)


async def test_an_id_that_ended_does_not_hold_again(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    hold_id = await shop.hold("A-1-1")
    await shop.release(hold_id)
    await shop.drain()
    await lose(stores_any)
    sale = await shop.rebuild()
    buyer_id = await shop.person("ann")

    async def hold_again(fingerprint: str) -> object:
        return await seats.hold(
            stores_any.gate,
            sale,
            hold_id=hold_id,
            buyer_id=buyer_id,
            fingerprint=fingerprint,
            seat_nos=("A-1-1",),
        )

    assert await hold_again(ids.fingerprint("A-1-1")) == seats.HoldKnown("ENDED")
    assert await hold_again("another") == IdempotencyKeyReused()
    assert (await shop.find(hold_id)).reason == "USER"


async def test_an_ended_payment_does_not_run_again(stores: Stores) -> None:
    shop = await open_shop(stores)
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)
    await stores.postgres.execute("UPDATE balances SET amount = 0")
    (failed,) = await authorisations.authorise(stores.postgres, [request])
    assert isinstance(failed, payments.Payment)
    assert isinstance(failed, payments.Payment)
    assert failed.status == "FAILED"
    await lose(stores)
    sale = await shop.rebuild()
    late = await seats.pay(
        stores.gate, sale, hold_id=hold_id, buyer_id=await shop.person("ann"), payment_id=request.payment_id
    )
    assert late == seats.PaymentEnded()


async def test_what_was_sold_long_ago_is_sold_without_a_record_and_counts_for_its_buyer(stores: Stores) -> None:
    shop = await open_shop(stores, per_buyer_max=2)
    request = await shop.buy("A-1-1")
    await shop.drain()
    await stores.postgres.execute("UPDATE reservations SET confirmed_at = now() - interval '2 hours'")
    await lose(stores)
    sale = await shop.rebuild()
    assert await shop.states() == {"A-1-1": "SOLD"}
    assert not isinstance(await seats.find(stores.gate, sale, hold_id=request.holding.hold_id), seats.Hold)
    more = await seats.hold(
        stores.gate,
        sale,
        hold_id=ids.random_id(),
        buyer_id=await shop.person("ann"),
        fingerprint="",
        seat_nos=("A-1-2", "A-1-3"),
    )
    assert more == LimitReached(2, 1)
    await shop.check()


async def test_a_blocked_seat_that_somebody_bought_before_is_sold(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    await stores.postgres.execute("UPDATE seats SET blocked = true WHERE seat_no IN ('A-1-1', 'A-1-2')")
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "BLOCKED"}


async def test_many_seats_and_holds_are_written_in_chunks(stores: Stores) -> None:
    shop = await open_shop(stores, seats_count=2500)
    for number in range(0, 600, 20):
        seat_nos = [f"A-1-{number + place}" for place in range(1, 21)]
        await shop.buy(*seat_nos, by=f"buyer {number}")
    await shop.drain()
    await lose(stores)
    await shop.rebuild()
    assert len(await shop.states()) == 600
    await shop.check()


# What ends ------------------------------------------------------------------------------------------------------------


async def test_a_hold_whose_time_is_over_ends(stores: Stores) -> None:
    shop = await open_shop(stores)
    hold_id = await shop.hold("A-1-1")
    await shop.drain()
    await stores.postgres.execute("UPDATE reservations SET expires_at = now() - interval '1 second'")
    await lose(stores)
    await shop.rebuild()
    assert await shop.reservation(hold_id) == ("CANCELLED", "EXPIRED")
    assert (await shop.states(), (await shop.find(hold_id)).state) == ({}, "ENDED")


async def fork(shop: Shop, *seat_nos: str, by: str) -> str:
    """A hold of the same seats by somebody else, as after a failover that lost the first."""
    redis: Any = shop.stores.redis
    keys = (await shop.sale()).keys
    for key in (keys.seats, keys.holds, keys.deadlines, keys.paying, keys.ended, keys.buyers):
        await redis.execute_command("UNLINK", key)
    return await shop.hold(*seat_nos, by=by)


async def test_of_two_payments_for_one_seat_the_first_authorised_stays(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    first = await shop.authorise(await shop.hold("A-1-1", "A-1-2", by="ann"))
    second = await shop.authorise(await fork(shop, "A-1-2", "A-1-3", by="bob"))
    assert (await shop.set_aside("ann"), await shop.set_aside("bob")) == (2 * PRICE, 2 * PRICE)
    await lose(stores_any)
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "PAYING", "A-1-2": "PAYING"}
    assert [await shop.payment(each.payment_id) for each in (first, second)] == ["AUTHORISED", "VOIDED"]
    assert await shop.reservation(second.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    assert (await shop.set_aside("ann"), await shop.set_aside("bob")) == (2 * PRICE, 0)
    assert await shop.confirm(second) == seats.HoldUnknown()
    assert await shop.confirm(first) == seats.Confirmed(1)
    await shop.drain()
    await shop.check()


async def test_a_payment_for_a_seat_that_is_sold_is_voided(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1", by="ann")
    await shop.drain()
    late = await shop.authorise(await fork(shop, "A-1-1", by="bob"))
    await lose(stores)
    await shop.rebuild()
    assert await shop.payment(late.payment_id) == "VOIDED"
    assert await shop.set_aside("bob") == 0
    await shop.check()


async def test_an_unpaid_hold_gives_way_to_a_payment_and_to_an_older_hold(stores: Stores) -> None:
    shop = await open_shop(stores)
    paying = await shop.authorise(await shop.hold("A-1-1", by="ann"))
    unpaid = await fork(shop, "A-1-1", "A-1-2", by="bob")
    older = await fork(shop, "A-1-3", by="cid")
    newer = await fork(shop, "A-1-3", "A-1-4", by="dan")
    await shop.drain()
    await lose(stores)
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "PAYING", "A-1-3": "HELD"}
    assert await shop.reservation(paying.holding.hold_id) == ("PENDING", None)
    assert [await shop.reservation(each) for each in (unpaid, older, newer)] == [
        ("CANCELLED", "EXPIRED"),
        ("PENDING", None),
        ("CANCELLED", "EXPIRED"),
    ]


async def test_a_payment_that_is_authorised_while_the_sale_is_rebuilt_is_voided_by_its_confirm(stores: Stores) -> None:
    shop = await open_shop(stores)
    hold_id = await shop.hold("A-1-1")
    request = await shop.begin_payment(hold_id)

    async def authorise() -> None:
        await authorisations.authorise(stores.postgres, [request])

    gated = StoppedRedis(stores.redis, before=CLEAR.sha, first=authorise)
    await rebuild.rebuild(with_redis(stores, gated), shop.sale_id, await shop.own())
    assert await shop.confirm(request) in {seats.HoldUnknown(), seats.PaymentMismatch()}


# The streams ----------------------------------------------------------------------------------------------------------


async def test_what_follows_the_watermark_is_applied_first(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    request = await shop.buy("A-1-1")
    await shop.hold("A-1-2", by="bob")
    await shop.rebuild()
    assert await shop.payment(request.payment_id) == "SUCCESS"
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "HELD"}
    await shop.check()


async def test_what_comes_after_a_break_is_not_applied(stores: Stores) -> None:
    shop = await open_shop(stores)
    applied, lost, late = [await shop.hold(f"A-1-{number}") for number in (1, 2, 3)]
    journal = (await shop.sale()).keys.journal
    entries = await stores.redis.xrange(journal)
    await stores.redis.xdel(journal, entries[1][0])
    await shop.rebuild()
    assert await shop.states() == {"A-1-1": "HELD"}
    assert await shop.reservation(applied) == ("PENDING", None)
    for hold_id in (lost, late):
        with pytest.raises(AssertionError):
            await shop.find(hold_id)


async def test_the_streams_begin_again_at_one(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    await shop.rebuild()
    rows = await stores.postgres.fetch("SELECT stream, epoch, n, entry_id FROM stream_watermarks ORDER BY stream")
    assert [tuple(row) for row in rows] == [("journal", 2, 0, "0-0"), ("outbox", 2, 0, "0-0")]
    await shop.buy("A-1-2")
    await shop.drain()
    assert await shop.inspect() is None
    await shop.check()


# The line -------------------------------------------------------------------------------------------------------------


async def test_the_line_goes_on_above_every_number_and_admits_nobody_for_a_minute(stores_any: Stores) -> None:
    shop = await open_shop(stores_any, room="open", admitted_per_minute_max=50)
    sale = await shop.sale()
    redis: Any = stores_any.redis
    await redis.hset(sale.keys.sale, mapping={"queue_no": 40, "serving": 30})
    found = await sales.look(stores_any.gate, sale)
    assert isinstance(found, sales.Checkpoint)
    await sales.keep_checkpoint(stores_any, sale, found)
    ceiling = (await shop.row())["queue_no_ceiling"]
    await lose(stores_any)
    await shop.rebuild()
    assert [await shop.term(name) for name in ("queue_no", "serving", "queue_no_ceiling")] == [
        str(ceiling),
        "30",
        str(ceiling + sales.QUEUE_NO_STEP),
    ]
    assert (await shop.row())["queue_no_ceiling"] == ceiling + sales.QUEUE_NO_STEP
    assert [int(count) for count in (await redis.hgetall(sale.keys.admissions)).values()] == [50]


async def test_a_new_line_admits_at_once(stores: Stores) -> None:
    shop = await open_shop(stores, room="open")
    assert await stores.redis.exists((await shop.sale()).keys.admissions) == 0


async def test_tokens_that_ended_within_the_hour_or_have_bought_are_known_as_ended(stores: Stores) -> None:
    shop = await open_shop(stores, room="open")
    await stores.postgres.executemany(
        "INSERT INTO queue_tokens (sale_id, queue_no, epoch, owner, status, created_at, ended_at) "
        "VALUES ($1, $2, 1, $3, $4, now(), now() - make_interval(mins => $5))",
        [
            (shop.sale_id, 1, "ann", "PROCESSED", 1),
            (shop.sale_id, 2, "bob", "LEFT", 59),
            (shop.sale_id, 3, "cid", "EXPIRED", 61),
            (shop.sale_id, 4, "dan", "WAITING", 0),
            (shop.sale_id, 5, "eve", "PROCESSED", 600),
        ],
    )
    await lose(stores)
    sale = await shop.rebuild()
    ended = await stores.redis.hgetall(sale.keys.ended_tokens)  # type: ignore[misc]
    assert ended == {b"1": b"PROCESSED|ann", b"2": b"LEFT|bob", b"5": b"PROCESSED|eve"}
    assert await stores.redis.zcard(sale.keys.ended_tokens_at) == 3


# Crashes, and two at once ---------------------------------------------------------------------------------------------


class Crash(Exception):
    """The process dies here."""


class StoppedRedis:
    """A client that does something of the test's before or after a call of a script, or crashes at its nth call."""

    def __init__(
        self,
        redis: RedisClient,
        *,
        crash_at: int | None = None,
        after: bool = False,
        before: str | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._redis = redis
        self._crash_at = crash_at
        self._after = after
        self._before = before
        self._first = first
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._redis, name)

    async def execute_command(self, *args: Any, **more: Any) -> Any:
        if args[0] != "EVALSHA":
            return await self._redis.execute_command(*args, **more)
        self.calls += 1
        if args[1] == self._before and self._first:
            await self._first()
        if self.calls == self._crash_at and not self._after:
            raise Crash
        reply = await self._redis.execute_command(*args, **more)
        if self.calls == self._crash_at:
            raise Crash
        return reply


def with_redis(stores: Stores, redis: StoppedRedis) -> Stores:
    return replace(stores, redis=redis, gate=Gate(redis))  # type: ignore[arg-type]  # as much of a client as is used


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_rebuild_that_stopped_anywhere_is_begun_again(stores_any: Stores, *, after: bool) -> None:
    stores = stores_any
    shop = await open_shop(stores)
    await shop.buy("A-1-1", by="ann")
    await shop.authorise(await shop.hold("A-1-2", by="bob"))
    await shop.hold("A-1-3", by="cid")
    await shop.drain()
    before = comparable(await shop.stored())
    stopped_at = 0
    while True:
        stopped_at += 1
        # Something for step 2 to apply, each time anew.
        await shop.release(await shop.hold("A-1-4", by="dan"))
        redis = StoppedRedis(stores.redis, crash_at=stopped_at, after=after)
        try:
            await rebuild.rebuild(with_redis(stores, redis), shop.sale_id, await shop.own())
        except Crash:
            row = await shop.row()
            assert row["store_state"] == "rebuilding"
            await shop.rebuild()
        else:
            break
        assert {name: value for name, value in (await shop.states()).items() if name != "A-1-4"} == {
            "A-1-1": "SOLD",
            "A-1-2": "PAYING",
            "A-1-3": "HELD",
        }
        await shop.check()
    assert stopped_at > 6
    after_all = comparable(await shop.stored())
    assert after_all["seats"] == before["seats"]
    assert (await shop.row())["store_state"] == "open"


async def test_a_sale_that_was_given_back_in_part_is_written_as_what_is_left(stores: Stores) -> None:
    shop = await open_shop(stores)
    bought = await shop.buy("A-1-1", "A-1-2")
    await shop.drain()
    cancelled = await seat_cancellations.cancel(
        stores.gate,
        stores.postgres,
        shop.book,
        cancellation_id=ids.random_id(),
        reservation_id=bought.holding.hold_id,
        seat_nos=["A-1-1"],
    )
    assert isinstance(cancelled, cancellations.Cancellation)
    await shop.drain()
    before = comparable(await shop.stored())
    assert (await shop.find(bought.holding.hold_id)).amount == PRICE
    await shop.rebuild()
    assert comparable(await shop.stored()) == before
    assert (await shop.find(bought.holding.hold_id)).amount == PRICE


async def test_a_card_payment_for_what_somebody_else_has_is_voided_at_its_gateway_too(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    rival = await shop.rival("A-1-1", by="bob")
    await authorisations.authorise(stores.postgres, [msgspec.structs.replace(rival, tender=Tender(method="CARD"))])
    await shop.rebuild()
    assert await shop.payment(rival.payment_id) == "VOIDED"
    assert await shop.rows("SELECT kind, payment_id, amount FROM gateway_operations") == [
        ("VOID", rival.payment_id, PRICE)
    ]


async def test_an_older_owner_changes_nothing(stores: Stores) -> None:
    shop = await open_shop(stores)
    old = await shop.own("one")
    await shop.own("two")
    await shop.hold("A-1-1")
    before = await shop.stored(), await shop.row()
    with pytest.raises(OwnershipLost):
        await rebuild.rebuild(stores, shop.sale_id, old)
    assert (await shop.stored(), await shop.row()) == before


@pytest.mark.parametrize("script", [CLOSE, CLEAR, LOAD_SEATS, OPEN], ids=lambda script: script.path)
async def test_a_rebuild_that_sleeps_is_overtaken_and_spoils_nothing(stores_any: Stores, script: Any) -> None:
    stores = stores_any
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    old = await shop.own("sleeper")

    async def overtake() -> None:
        await rebuild.rebuild(stores, shop.sale_id, await shop.own("successor"))

    sleeping = with_redis(stores, StoppedRedis(stores.redis, before=script.sha, first=overtake))
    with pytest.raises((OwnershipLost, RebuildFailed)):
        await rebuild.rebuild(sleeping, shop.sale_id, old)
    assert await shop.inspect() is None
    assert (await shop.row())["store_state"] == "open"
    assert await shop.states() == {"A-1-1": "SOLD"}
    assert await shop.term("state") == "open"


async def test_an_epoch_clears_once(stores: Stores) -> None:
    shop = await open_shop(stores)
    sale = await shop.sale()
    await shop.hold("A-1-1")
    before = await shop.stored()
    terms = ("room", "closed")
    assert await CLEAR(stores.gate, sale.keys, epoch=sale.epoch, admitted=0, terms=terms) == Cleared()
    older = await CLEAR(stores.gate, sale.keys, epoch=sale.epoch - 1, admitted=0, terms=terms)
    assert older == StaleEpoch(sale.epoch)
    assert await LOAD_SEATS(stores.gate, sale.keys, epoch=sale.epoch, rows=("A-1-9", 1, 1)) == SaleOpen()
    assert await shop.stored() == before


def test_clearing_forgets_every_key_of_a_sale() -> None:
    declared = {name for name, value in vars(SaleKeys).items() if isinstance(value, cached_property)}
    assert set(CLEAR.header.keys) == declared


async def test_closing_and_opening_are_safe_to_repeat(stores: Stores) -> None:
    shop = await open_shop(stores)
    sale = await shop.sale()
    for _ in range(2):
        assert await CLOSE(stores.gate, sale.keys, epoch=sale.epoch) == Closed()
    assert await offers.send(stores.gate, stores.postgres, sale) == SaleRebuilding()
    for _ in range(2):
        assert await OPEN(stores.gate, sale.keys, epoch=sale.epoch) == Opened()
    assert await CLOSE(stores.gate, sale.keys, epoch=sale.epoch - 1) == StaleEpoch(sale.epoch)
    await lose(stores)
    for script in (CLOSE, OPEN):
        assert await script(stores.gate, sale.keys, epoch=sale.epoch) == SaleUnknown()


async def test_a_copy_that_is_ahead_of_postgres_is_overtaken(stores: Stores) -> None:
    """Postgres was restored from a backup: the epoch that Redis has was given out before."""
    shop = await open_shop(stores)
    await stores.redis.execute_command("HSET", (await shop.sale()).keys.sale, "epoch", 9)
    sale = await shop.rebuild()
    assert (sale.epoch, await shop.term("epoch")) == (10, "10")


async def test_what_was_written_is_counted_before_the_sale_opens(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    keys = (await shop.sale()).keys

    async def disturb() -> None:
        await stores.redis.hdel(keys.prices, "A-1-6")  # type: ignore[misc]

    disturbed = with_redis(stores, StoppedRedis(stores.redis, before=seat_copies.COUNT.sha, first=disturb))
    with pytest.raises(RebuildFailed):
        await rebuild.rebuild(disturbed, shop.sale_id, await shop.own())
    assert await shop.term("state") == "rebuilding"
    await shop.rebuild()
    assert await shop.inspect() is None


# Who asks for it ------------------------------------------------------------------------------------------------------


async def test_whoever_made_a_sale_can_have_it_open_at_once(stores_any: Stores) -> None:
    shop = await new_shop(stores_any)
    answers = await asyncio.gather(*[rebuild.ensure_open(stores_any, shop.sale_id) for _ in range(4)])
    assert answers == [True] * 4
    assert (await shop.sale()).epoch == 1
    # The ownership was given back: a worker need not wait for it.
    assert await outbox.take_ownership(stores_any.postgres, "worker", sale_ids=[shop.sale_id])


async def test_a_sale_that_somebody_owns_is_waited_for(stores: Stores) -> None:
    shop = await new_shop(stores)
    generation = await shop.own("worker")
    assert not await rebuild.ensure_open(stores, shop.sale_id, within_s=0.2)
    waiting = asyncio.create_task(rebuild.ensure_open(stores, shop.sale_id))
    await rebuild.rebuild(stores, shop.sale_id, generation)
    assert await waiting


async def test_an_operator_can_demand_a_rebuild(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.hold("A-1-1")
    assert await rebuild.demand(stores, shop.sale_id, reason="because")
    assert (await shop.sale()).epoch == 2
    assert await shop.states() == {"A-1-1": "HELD"}


async def test_there_is_no_sale_of_a_made_up_id(stores: Stores) -> None:
    with pytest.raises(LookupError):
        await rebuild.ensure_open(stores, ids.random_id())


# Deciding -------------------------------------------------------------------------------------------------------------

SEAT_LISTS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)


@given(
    claimed=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["c1", "c2"])),
    paid=st.lists(SEAT_LISTS, max_size=6),
    unpaid=st.lists(st.tuples(SEAT_LISTS, st.booleans()), max_size=6),
)
def test_every_seat_has_one_keeper_and_everybody_else_has_ended(
    claimed: dict[str, str], paid: list[list[str]], unpaid: list[tuple[list[str], bool]]
) -> None:
    live: list[dict[str, Any]] = [
        {"payment_id": f"p{place}", "hold_id": f"r{place}", "seat_nos": seat_nos} for place, seat_nos in enumerate(paid)
    ]
    holds: list[dict[str, Any]] = [
        {"hold_id": f"u{place}", "seat_nos": seat_nos, "lapsed": lapsed}
        for place, (seat_nos, lapsed) in enumerate(unpaid)
    ]
    verdict = seat_copies.decide(claimed, live, holds)
    seat_nos_of: dict[str, list[str]] = {each["hold_id"]: each["seat_nos"] for each in [*live, *holds]}
    assert verdict.standing | verdict.endings.keys() == seat_nos_of.keys()
    assert not verdict.standing & verdict.endings.keys()
    kept = [seat_no for standing in verdict.standing for seat_no in seat_nos_of[standing]]
    assert len(kept) == len(set(kept))
    assert not set(kept) & claimed.keys()
    assert {f"r{payment_id[1:]}" for payment_id in verdict.voided_payment_ids} == {
        each for each, reason in verdict.endings.items() if reason == "LATE_UNFULFILLABLE"
    }
    # Nobody gives way for nothing: whoever ended collides with a claim or with one that came before, or has lapsed.
    order = [each["hold_id"] for each in [*live, *holds]]
    lapsed_ids = {each["hold_id"] for each in holds if each["lapsed"]}
    for ended in verdict.endings.keys() - lapsed_ids:
        before = [each for each in order[: order.index(ended)] if each in verdict.standing]
        others = set(claimed).union(*[seat_nos_of[each] for each in before])
        assert others & set(seat_nos_of[ended])
