"""Races for coupons. Each begins with its control: the naive version, which does issue too many in the same harness."""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from engine import coupons, rebuild
from engine.coupons import Coupon, CouponsGone, Issued, QuantityTaken
from engine.sales import Sale
from engine.stores import outbox
from engine.stores.connections import Stores, open_redis
from engine.stores.outbox import Entry, Handler, Reader
from engine.stores.queries import Connection
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from engine.stores.scripts import Gate
from engine.waiters import Waiters
from tests.engine.coupon_sources import CouponShop, open_coupons
from tests.workers.working import lapse_leases, process, shift, until

COUPONS = 1_000
REQUESTS = 10_000
USERS = 4_000
CLIENTS = 4

UNAVAILABLE = (SaleUnknown, StaleEpoch, SaleRebuilding)


class Naive:
    """A source that keeps its rules outside the store: it reads, decides, and then writes.

    Everybody who races has read before anybody writes, which is what a slow moment does to such a source.
    """

    def __init__(self, redis: Any, racers: int) -> None:
        self._redis = redis
        self._moment = asyncio.Barrier(racers)

    async def issue(self, user_id: str) -> bool:
        left = int(await self._redis.hget("naive", "left") or 0)
        has_one = await self._redis.hexists("naive", user_id)
        await self._moment.wait()
        if left < 1 or has_one:
            return False
        await self._redis.hincrby("naive", "left", -1)
        await self._redis.hincrby("naive", user_id, 1)
        return True


async def ask_all(gates: Sequence[Gate], sale: Sale, asked: Sequence[str], *, at_once: int = 400) -> list[Any]:
    """Ask for each of these users, so many at a time over several processes' gates; the replies, in order."""
    replies: list[Any] = [None] * len(asked)
    waiting = iter(enumerate(asked))

    async def client(gate: Gate) -> None:
        for at, user_id in waiting:
            replies[at] = await coupons.issue(gate, sale, user_id=user_id)

    await asyncio.gather(*(client(gates[number % len(gates)]) for number in range(at_once)))
    return replies


# --- more who want one than there are ---------------------------------------------------------------------------------


async def test_control_a_naive_source_issues_more_than_it_has_and_two_to_one_user(stores: Stores) -> None:
    redis: Any = stores.redis
    naive = Naive(redis, racers=20)
    await redis.hset("naive", "left", 3)
    assert sum(await asyncio.gather(*(naive.issue(str(number)) for number in range(20)))) > 3
    await redis.hset("naive", "left", 30)
    assert sum(await asyncio.gather(*(naive.issue("one user") for _ in range(20)))) > 1


@pytest.mark.timeout(240)
async def test_ten_thousand_requests_for_a_thousand_coupons_issue_exactly_a_thousand(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, COUPONS)
    users = await shop.crowd(USERS)
    asked = [users[number % USERS] for number in range(REQUESTS)]
    random.Random(11).shuffle(asked)
    clients = [open_redis(str(stores_any.settings.redis_url)) for _ in range(CLIENTS)]
    async with shift(stores_any):
        replies = await ask_all([Gate(client, deadline_s=30) for client in clients], await shop.sale(), asked)
        issued = {user_id for user_id, reply in zip(asked, replies, strict=True) if isinstance(reply, Issued)}
        assert [reply for reply in replies if not isinstance(reply, Issued | CouponsGone)] == []
        first = [reply.n for reply in replies if isinstance(reply, Issued) and not reply.repeated]
        assert sorted(first) == list(range(1, COUPONS + 1))
        assert len(issued) == COUPONS
        await until(lambda: _has(shop, COUPONS))
    for client in clients:
        await client.aclose()
    assert await shop.owners() == issued
    coupon = await shop.coupon()
    assert (coupon.quantity, coupon.status) == (0, "SOLD_OUT")
    await shop.check()


async def _has(shop: CouponShop, count: int) -> bool:
    return len(await shop.owners()) == count


# --- a replica that was behind ----------------------------------------------------------------------------------------


class Replica:
    """Redis's keys of a source as they were at one moment: what is left when this one is promoted."""

    NAMES = ("sale", "issued", "outbox", "journal")

    def __init__(self, shop: CouponShop, keys: list[str], dumps: list[bytes | None]) -> None:
        self._shop = shop
        self._keys = keys
        self._dumps = dumps

    @classmethod
    async def of(cls, shop: CouponShop) -> "Replica":
        """Take a copy."""
        sale = await shop.sale()
        keys = [getattr(sale.keys, name) for name in cls.NAMES]
        script = "local dumps = {} for at, key in ipairs(KEYS) do dumps[at] = redis.call('DUMP', key) end return dumps"
        dumps = await shop.stores.redis.execute_command("EVAL", script, len(keys), *keys)
        return cls(shop, keys, [*dumps, *[None] * len(keys)][: len(keys)])

    async def promote(self) -> None:
        """Everything since is forgotten, at once."""
        script = (
            "for at, key in ipairs(KEYS) do redis.call('UNLINK', key) "
            "if ARGV[at] ~= '' then redis.call('RESTORE', key, 0, ARGV[at]) end end"
        )
        dumps = [dump or b"" for dump in self._dumps]
        await self._shop.stores.redis.execute_command("EVAL", script, len(self._keys), *self._keys, *dumps)


async def test_control_who_believes_redis_tells_more_than_there_are(stores: Stores) -> None:
    shop = await open_coupons(stores, 5)
    users = await shop.crowd(10)
    behind = await Replica.of(shop)
    sale = await shop.sale()
    told = [await coupons.issue(stores.gate, sale, user_id=user_id) for user_id in users[:5]]
    await behind.promote()
    told += [await coupons.issue(stores.gate, sale, user_id=user_id) for user_id in users[5:]]
    assert len([reply for reply in told if isinstance(reply, Issued)]) == 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(3))
async def test_a_failover_in_the_middle_tells_nobody_of_a_coupon_that_is_not_there(
    stores_any: Stores, seed: int
) -> None:
    shop = await open_coupons(stores_any, 60)
    users = await shop.crowd(150)
    dice = random.Random(seed)
    dice.shuffle(users)
    told: set[str] = set()

    async def want(waiters: Waiters, user_id: str) -> None:
        """What the route does: ask, and tell the user once the row is there; ask again where that is not known."""
        for _ in range(8):
            sale = await shop.book.read(shop.sale_id)
            assert sale is not None
            issued = await coupons.issue(stores_any.gate, sale, user_id=user_id)
            if isinstance(issued, Issued):
                user_coupon_id = coupons.user_coupon_id_of(shop.coupon_id, user_id)
                if await waiters.issued(sale, user_coupon_id, issued.n, within_s=1.0):
                    told.add(user_id)
                    return
            elif isinstance(issued, UNAVAILABLE):
                await until(lambda: _is_open(shop))
            else:
                return

    async with shift(stores_any), Waiters(stores_any.postgres, stores_any.listener).listening() as waiters:
        early = [asyncio.create_task(want(waiters, user_id)) for user_id in users[:20]]
        await until(lambda: _has_some(shop, 1 + dice.randrange(10)))
        behind = await Replica.of(shop)
        early += [asyncio.create_task(want(waiters, user_id)) for user_id in users[20:50]]
        await until(lambda: _has_some(shop, 25 + dice.randrange(10)))
        await behind.promote()
        await asyncio.gather(*early, *(want(waiters, user_id) for user_id in users[50:]))
        await until(lambda: _is_at_rest(shop))
    assert (await shop.row())["epoch"] >= 2
    assert told <= await shop.owners()
    assert 25 <= len(told) <= 60
    await shop.check()
    assert (await shop.coupon()).quantity == 0


async def _has_some(shop: CouponShop, count: int) -> bool:
    return len(await shop.owners()) >= count


async def _is_open(shop: CouponShop) -> bool:
    return bool((await shop.row())["store_state"] == "open")


async def _is_at_rest(shop: CouponShop) -> bool:
    """Whether the source is open and Postgres has every entry of it."""
    drained = await shop.term("outbox_n") == (await shop.term("outbox_persisted_n") or "0")
    return bool((await shop.row())["store_state"] == "open" and drained and await shop.inspect() is None)


# --- workers that die -------------------------------------------------------------------------------------------------


class DiedError(Exception):
    """The worker is gone."""


@pytest.mark.parametrize("step", ["before", "after", "unannounced"])
async def test_a_worker_that_dies_between_the_steps_issues_nothing_twice(
    stores_any: Stores, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await open_coupons(stores_any, 4)
    await shop.issued("ann", "bob")
    sale = await shop.sale()
    handler = rebuild.handlers(sale)["outbox"]

    async def dies(connection: Connection, entries: Sequence[Entry]) -> None:
        if step == "after":
            await handler.apply(connection, entries)
        raise DiedError

    async def is_silent(*_: object) -> None:
        raise DiedError

    applied = handler if step == "unannounced" else Handler(apply=dies, bury=handler.bury)
    with monkeypatch.context() as patched:
        if step == "unannounced":
            patched.setattr(outbox, "announce", is_silent)
        reader = Reader(stores_any.gate, stores_any.postgres, sale.keys, "outbox", await shop.own(), applied)
        with pytest.raises(DiedError):
            await reader.drain()
    assert len(await shop.owners()) == (2 if step == "unannounced" else 0)
    await shop.issued("cat")
    await shop.drain()
    assert (await shop.coupon()).quantity == 1
    await shop.check()


@pytest.mark.timeout(180)
async def test_workers_that_are_killed_at_random_lose_and_double_nothing(stores_any: Stores) -> None:
    shop = await open_coupons(stores_any, 300)
    users = await shop.crowd(600)
    sale, dice = await shop.sale(), random.Random(5)
    for round_no in range(3):
        part = users[200 * round_no : 200 * (round_no + 1)]
        async with process(stores_any) as worker:
            asking = asyncio.create_task(ask_all([stores_any.gate], sale, part))
            some = 100 * round_no + dice.randrange(60)
            await until(partial(_has_some, shop, some))
            worker.kill()
            await worker.wait()
            await asking
        await lapse_leases(stores_any)
    async with shift(stores_any):
        await until(lambda: _has(shop, 300))
    await shop.check()


# --- operators in the middle ------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
async def test_what_operators_change_in_the_middle_leaves_both_stores_alike(stores: Stores) -> None:
    shop = await open_coupons(stores, 200)
    users = await shop.crowd(400)
    sale = await shop.sale()

    async def meddle() -> None:
        """Leave hardly any that nobody has, and add some again, over and over."""
        for more in (1, 40, 1, 60, 1, 20):
            changed = await shop.edit(initial_quantity=len(await shop.remembered()) + more)
            assert isinstance(changed, Coupon | QuantityTaken)

    async with shift(stores):
        replies, _ = await asyncio.gather(ask_all([stores.gate], sale, users, at_once=3), meddle())
        await until(lambda: _is_at_rest(shop))
        await until(lambda: _agrees(shop))
    await shop.check()
    issued = {user_id for user_id, reply in zip(users, replies, strict=True) if isinstance(reply, Issued)}
    assert await shop.owners() <= issued


async def _agrees(shop: CouponShop) -> bool:
    return await shop.remembered() == await shop.owners()
