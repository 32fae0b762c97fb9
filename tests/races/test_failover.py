"""Redis is lost, lies, or goes back in time; workers die and sleep: no seat is sold twice, no money kept for none."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from engine import authorisations, payments, rebuild, seats, settlement
from engine.authorisations import Authorisation
from engine.stores import outbox
from engine.stores.connections import Stores, StoreUnavailable
from engine.stores.keys import SaleKeys
from engine.stores.outbox import Entry
from engine.stores.replies import SaleRebuilding, SaleUnknown, StaleEpoch
from tests.engine.test_rebuild import lose
from tests.shop import PRICE, Selling, Shop, open_shop
from tests.workers.working import lapse_leases, owners, process, shift, until

UNAVAILABLE = (SaleUnknown, StaleEpoch, SaleRebuilding)


class Copy:
    """Redis's keys of one sale as they were at one moment: what a replica that was behind would have."""

    def __init__(self, shop: Selling, dumps: list[bytes | None]) -> None:
        self._shop = shop
        self._dumps = dumps

    @staticmethod
    def _keys(shop: Selling) -> list[str]:
        names = [name for name in vars(SaleKeys) if not name.startswith("_") and name != "sale_id"]
        return [getattr(SaleKeys(shop.sale_id), name) for name in names]

    @classmethod
    async def of(cls, shop: Selling) -> "Copy":
        """Take a copy."""
        keys = cls._keys(shop)
        script = "local dumps = {} for at, key in ipairs(KEYS) do dumps[at] = redis.call('DUMP', key) end return dumps"
        return cls(shop, await shop.stores.redis.execute_command("EVAL", script, len(keys), *keys))

    async def promote(self) -> None:
        """Everything since is forgotten, at once."""
        keys = self._keys(self._shop)
        script = (
            "for at, key in ipairs(KEYS) do redis.call('UNLINK', key) "
            "if ARGV[at] ~= '' then redis.call('RESTORE', key, 0, ARGV[at]) end end"
        )
        dumps = [dump or b"" for dump in self._dumps]
        await self._shop.stores.redis.execute_command("EVAL", script, len(keys), *keys, *dumps)


async def settled(shop: Selling) -> bool:
    """Whether no payment is live and both streams are drained; what stands still is made old, to be picked up."""
    # What a worker has locked is not standing still, and waiting for it out of order could cut its batch short.
    await shop.stores.postgres.execute(
        "UPDATE payments SET updated_at = now() - interval '1 hour' WHERE payment_id IN ("
        "SELECT payment_id FROM payments WHERE status IN ('PENDING', 'AUTHORISED') "
        "ORDER BY payment_id FOR UPDATE SKIP LOCKED)"
    )
    live = await shop.stores.postgres.fetchval(
        "SELECT count(*) FROM payments WHERE status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')"
    )
    restores = await shop.stores.postgres.fetchval("SELECT count(*) FROM restores WHERE done_at IS NULL")
    is_open = (await shop.row())["store_state"] == "open"
    return bool(live == 0 and restores == 0 and is_open and await shop.inspect() is None and await drained(shop))


async def drained(shop: Selling) -> bool:
    """Whether Postgres has every entry."""
    return [await shop.term(f"{stream}_n") or "0" for stream in outbox.STREAMS] == [
        await shop.term(f"{stream}_persisted_n") or "0" for stream in outbox.STREAMS
    ]


async def is_rebuilt(shop: Selling, epoch: int) -> bool:
    """Whether a copy of this epoch or a later one is open."""
    row = await shop.row()
    return bool(row["store_state"] == "open" and row["epoch"] >= epoch)


async def statuses(shop: Selling, *requests: Authorisation) -> list[str]:
    return [await shop.payment(request.payment_id) for request in requests]


# Numbers given twice --------------------------------------------------------------------------------------------------


async def failed_over(stores: Stores) -> tuple[Shop, Authorisation, Authorisation]:
    """Ann's sale is in Postgres; a replica that never heard of it was promoted, and sold her seat to Bob."""
    shop = await open_shop(stores)
    await shop.hold("A-1-6", by="early")
    await shop.drain()
    behind = await Copy.of(shop)
    first = await shop.buy("A-1-1", by="ann")
    await shop.drain()
    await behind.promote()
    second = await shop.buy("A-1-1", by="bob")
    return shop, first, second


async def test_control_a_reader_that_trusts_numbers_keeps_money_for_a_seat_it_never_sold(stores: Stores) -> None:
    shop, first, second = await failed_over(stores)
    sale = await shop.sale()
    watermark = await outbox.find_watermark(stores.postgres, shop.sale_id, "outbox")
    assert watermark is not None
    read = outbox.parse_entries(await stores.redis.xrange(sale.keys.outbox))
    # It has seen number 1, and number 1 is all there is.
    news: list[Entry] = [entry for entry in read if entry.n > watermark.n]
    async with stores.postgres.acquire() as connection, connection.transaction():
        await settlement.settle(connection, sale, news)
    assert await statuses(shop, first, second) == ["SUCCESS", "AUTHORISED"]
    assert await shop.set_aside("bob") == PRICE


async def test_numbers_given_twice_are_noticed_and_nobody_pays_for_what_is_not_theirs(stores_any: Stores) -> None:
    shop, first, second = await failed_over(stores_any)
    assert "n 1 of the outbox" in str(await shop.inspect())
    async with shift(stores_any):
        await until(lambda: is_rebuilt(shop, 2))
        await until(lambda: settled(shop))
    assert await statuses(shop, first, second) == ["SUCCESS", "VOIDED"]
    assert (await shop.set_aside("ann"), await shop.set_aside("bob")) == (0, 0)
    assert (await shop.states())["A-1-1"] == "SOLD"
    assert await shop.reservation(second.holding.hold_id) == ("CANCELLED", "LATE_UNFULFILLABLE")
    await shop.check()


async def test_numbers_that_went_on_past_the_watermark_are_noticed_by_their_chain(stores_any: Stores) -> None:
    shop, first, second = await failed_over(stores_any)
    third = await shop.buy("A-1-2", by="cid")
    generation, sale = await shop.own(), await shop.sale()
    reader = outbox.Reader(
        stores_any.gate, stores_any.postgres, sale.keys, "outbox", generation, rebuild.handlers(sale)["outbox"]
    )
    with pytest.raises(outbox.Divergence):
        await reader.drain()
    async with shift(stores_any):
        await shop.own("nobody")
        await lapse_leases(stores_any)
        await until(lambda: settled(shop))
    assert await statuses(shop, first, second, third) == ["SUCCESS", "VOIDED", "SUCCESS"]
    await shop.check()


async def test_an_older_copy_that_sold_nothing_since_is_noticed(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    behind = await Copy.of(shop)
    request = await shop.buy("A-1-1")
    async with shift(stores_any):
        await until(lambda: settled(shop))
        await behind.promote()
        await until(lambda: is_rebuilt(shop, 2))
        assert (await shop.states())["A-1-1"] == "SOLD"
        await until(lambda: settled(shop))
    assert await statuses(shop, request) == ["SUCCESS"]
    await shop.check()


async def test_a_copy_of_an_older_epoch_is_noticed(stores: Stores) -> None:
    shop = await open_shop(stores)
    old = await Copy.of(shop)
    await shop.rebuild()
    request = await shop.buy("A-1-1")
    await shop.drain()
    await old.promote()
    assert await shop.inspect() == "the store has epoch 1, Postgres 2"
    async with shift(stores):
        await until(lambda: is_rebuilt(shop, 3))
    assert (await shop.states())["A-1-1"] == "SOLD"
    assert await statuses(shop, request) == ["SUCCESS"]
    await shop.check()


# Entries lost ---------------------------------------------------------------------------------------------------------


async def test_entries_that_nobody_read_and_that_are_gone_are_noticed(stores_any: Stores) -> None:
    shop = await open_shop(stores_any)
    requests = [await shop.buy(f"A-1-{number}", by=f"buyer {number}") for number in (1, 2, 3)]
    redis: Any = stores_any.redis
    keys = (await shop.sale()).keys
    (_, (middle, _), _) = await redis.xrange(keys.outbox)
    await redis.execute_command("XDEL", keys.outbox, middle)
    async with shift(stores_any):
        await until(lambda: is_rebuilt(shop, 2))
        await until(lambda: settled(shop))
    # The first was read; the others were SOLD in Redis alone, stood as PAYING, and were confirmed again.
    assert await statuses(shop, *requests) == ["SUCCESS"] * 3
    await shop.check()


async def test_a_stream_that_was_emptied_is_noticed(stores: Stores) -> None:
    shop = await open_shop(stores)
    request = await shop.buy("A-1-1")
    await stores.redis.execute_command("UNLINK", (await shop.sale()).keys.outbox)
    async with shift(stores):
        await until(lambda: is_rebuilt(shop, 2))
        await until(lambda: settled(shop))
    assert await statuses(shop, request) == ["SUCCESS"]
    await shop.check()


async def test_entries_trimmed_below_the_watermark_are_nobodys_loss(stores: Stores) -> None:
    shop = await open_shop(stores)
    await shop.buy("A-1-1")
    await shop.drain()
    await shop.buy("A-1-2")
    await shop.drain()
    assert await stores.redis.xlen((await shop.sale()).keys.outbox) == 1
    assert await shop.inspect() is None


# Under load -----------------------------------------------------------------------------------------------------------


class Crowd:
    """People who buy until every seat is asked for, and remember what they were told."""

    def __init__(self, shop: Shop, seed: int, seats_count: int) -> None:
        self.shop = shop
        self._random = random.Random(seed)
        self._seat_nos = [f"A-1-{number}" for number in range(1, seats_count + 1)]
        self.requests: list[Authorisation] = []
        self.done = 0

    async def buy_all(self, people: int) -> None:
        """Everybody asks for one or two seats at random, again and again, until each seat was asked for twice."""
        wishes = [self._random.sample(self._seat_nos, k=self._random.choice((1, 2))) for _ in self._seat_nos * 2]
        await asyncio.gather(*[self._buy(person, wishes) for person in range(people)])

    async def _buy(self, person: int, wishes: list[list[str]]) -> None:
        while wishes:
            wish = wishes.pop()
            try:
                await self._try(wish, f"person {person}")
            except (AssertionError, StoreUnavailable):
                # Taken, closed, or lost on the way: this person asks for something else.
                await asyncio.sleep(0.005)
            self.done += 1

    async def _try(self, wish: list[str], by: str) -> None:
        hold_id = await self.shop.hold(*wish, by=by)
        request = await self.shop.begin_payment(hold_id)
        (payment,) = await authorisations.authorise(self.shop.stores.postgres, [request])
        assert isinstance(payment, payments.Payment)
        assert payment.status == "AUTHORISED"
        self.requests.append(request)
        reply = await self.shop.confirm(request)
        assert isinstance(reply, (seats.Confirmed, seats.HoldUnknown, *UNAVAILABLE)), reply

    async def after(self, share: float, of: int) -> None:
        """Wait until this share of all wishes was tried."""

        async def reached() -> bool:
            return self.done >= share * of

        await until(reached)


async def hold_the_line(stores: Stores, seed: int, disturb: Callable[[Shop, Crowd, int], Awaitable[None]]) -> Shop:
    """Let a crowd buy while `disturb` does its worst; then everything must have come to rest, and be right."""
    seats_count = 60
    shop = await open_shop(stores, seats_count=seats_count)
    crowd = Crowd(shop, seed, seats_count)
    buying = asyncio.create_task(crowd.buy_all(people=8))
    await disturb(shop, crowd, seats_count * 2)
    await buying
    await until(lambda: settled(shop))
    ended = await statuses(shop, *crowd.requests)
    assert set(ended) <= {"SUCCESS", "VOIDED"}
    sold = {
        seat_no
        for request, status in zip(crowd.requests, ended, strict=True)
        if status == "SUCCESS"
        for seat_no in request.holding.lines
    }
    wanted = sum(
        len(request.holding.lines) for request, status in zip(crowd.requests, ended, strict=True) if status == "SUCCESS"
    )
    assert len(sold) == wanted, "a seat was sold twice"
    assert {seat_no for seat_no, state in (await shop.states()).items() if state == "SOLD"} == sold
    await shop.check()
    return shop


@pytest.fixture
def seed() -> int:
    """What made the choices of this run; printed where the run fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with the failure
    return seed


async def test_everything_is_lost_in_the_rush(stores_any: Stores, seed: int) -> None:
    async def disturb(shop: Shop, crowd: Crowd, wishes: int) -> None:
        for share in (0.3, 0.6):
            await crowd.after(share, wishes)
            epoch = (await shop.row())["epoch"]
            await lose(stores_any)
            await until(lambda epoch=epoch: is_rebuilt(shop, epoch + 1))  # type: ignore[misc]

    async with shift(stores_any):
        shop = await hold_the_line(stores_any, seed, disturb)
    assert (await shop.row())["epoch"] >= 3


async def test_a_replica_that_was_behind_is_promoted_in_the_rush(stores: Stores, seed: int) -> None:
    async def disturb(shop: Shop, crowd: Crowd, wishes: int) -> None:
        await crowd.after(0.2, wishes)
        behind, copied_n = await Copy.of(shop), int(await shop.term("outbox_n"))

        async def is_behind() -> bool:
            """Only what Postgres has, and the copy has not, can be noticed; what nobody read is simply lost."""
            watermark = await outbox.find_watermark(stores.postgres, shop.sale_id, "outbox")
            return watermark is not None and watermark.n > copied_n

        await until(is_behind)
        await behind.promote()
        await until(lambda: is_rebuilt(shop, 2))

    async with shift(stores):
        await hold_the_line(stores, seed, disturb)


async def test_workers_are_killed_in_the_rush(stores: Stores, seed: int) -> None:
    async with AsyncExitStack() as survivors:

        async def disturb(shop: Shop, crowd: Crowd, wishes: int) -> None:
            for share in (0.2, 0.5):
                async with process(stores) as worker:
                    await until(lambda: _is_owned(stores, shop))
                    await crowd.after(share, wishes)
                    worker.kill()
                    await worker.wait()
                await lapse_leases(stores)
            await survivors.enter_async_context(shift(stores, "survivor"))

        shop = await hold_the_line(stores, seed, disturb)
    # Nobody had to rebuild anything: the next owner read on from the watermark.
    assert (await shop.row())["epoch"] == 1


async def _is_owned(stores: Stores, shop: Shop) -> bool:
    return shop.sale_id in await owners(stores)


# A worker that sleeps -------------------------------------------------------------------------------------------------


async def test_a_worker_that_slept_past_its_lease_changes_nothing_when_it_wakes(stores: Stores) -> None:
    shop = await open_shop(stores)
    async with process(stores) as sleeper:
        await until(lambda: _is_owned(stores, shop))
        (slept,) = (await owners(stores)).values()
        sleeper.send_signal(signal.SIGSTOP)
        requests = [await shop.buy("A-1-1", by="ann")]
        await lapse_leases(stores)
        async with shift(stores, "successor"):
            await until(lambda: settled(shop))
            sleeper.send_signal(signal.SIGCONT)
            requests.append(await shop.buy("A-1-2", by="bob"))
            await until(lambda: settled(shop))

            async def has_noticed() -> bool:
                """The sleeper says again that it lives, and knows that it owns nothing."""
                row = await stores.postgres.fetchrow(
                    "SELECT sales FROM workers WHERE worker = $1 AND updated_at > now() - interval '3 seconds'", slept
                )
                return row is not None and row["sales"] == 0

            await until(has_noticed)
            assert (await owners(stores))[shop.sale_id] == "successor"
            requests.append(await shop.buy("A-1-3", by="cid"))
            await until(lambda: settled(shop))
    assert await statuses(shop, *requests) == ["SUCCESS"] * 3
    assert (await shop.row())["epoch"] == 1
    await shop.check()
