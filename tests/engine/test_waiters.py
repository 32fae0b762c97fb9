"""Waiters: a number wakes them, the row is the answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from engine import authorisations
from engine import waiters as waiters_module
from engine.authorisations import Authorisation
from engine.stores.connections import Stores, open_postgres
from engine.stores.outbox import CHANNEL
from engine.waiters import Waiters
from tests.shop import Shop, open_shop
from tests.wires import losing_answers


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert of six seats whose sale is open."""
    return await open_shop(stores)


async def say(shop: Shop, n: int, *, epoch: int = 1, sale_id: str | None = None) -> None:
    await shop.stores.redis.execute_command("PUBLISH", CHANNEL, f"{sale_id or shop.sale_id} {epoch} {n}")


async def listened(shop: Shop) -> None:
    """Wait until the subscription stands."""
    redis: Any = shop.stores.redis
    async with asyncio.timeout(5):
        while dict(await redis.pubsub_numsub(CHANNEL)).get(CHANNEL.encode()) != 1:  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.005)


async def settled_payment(shop: Shop, seat_no: str = "A-1-1") -> Authorisation:
    request = await shop.buy(seat_no)
    await shop.drain()
    return request


@pytest.fixture
async def waiters(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Waiters]:
    """Waiters that never look before they are told to."""
    monkeypatch.setattr(waiters_module, "SILENCE_S", 60.0)
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        await listened(shop)
        yield waiters


async def is_waiting(asked: "asyncio.Task[Any]") -> bool:
    done, _ = await asyncio.wait([asked], timeout=0.1)
    return not done


async def test_a_number_at_or_above_ones_own_wakes_and_a_lower_one_does_not(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 5, within_s=30))
    await asyncio.sleep(0)
    await say(shop, 4)
    assert await is_waiting(asked)
    await say(shop, 6)
    answer = await asked
    assert answer is not None
    assert answer.status == "SUCCESS"


async def test_a_number_only_wakes_and_the_row_is_the_answer(shop: Shop, waiters: Waiters) -> None:
    first, second = await settled_payment(shop), await shop.authorise(await shop.hold("A-1-2"))
    await authorisations.end(shop.stores.postgres, {second.payment_id: "VOIDED"})
    sale = await shop.sale()
    asked = [
        asyncio.create_task(waiters.settled(sale, request.payment_id, n, within_s=30))
        for n, request in enumerate((first, second), 1)
    ]
    await asyncio.sleep(0)
    await say(shop, 2)
    assert [answer and answer.status for answer in await asyncio.gather(*asked)] == ["SUCCESS", "VOIDED"]


async def test_a_number_that_was_heard_before_is_not_waited_for(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    waiters._hear(shop.sale_id, 1, 8)
    async with asyncio.timeout(10):
        assert await waiters.settled(await shop.sale(), request.payment_id, 8, within_s=30) is not None


async def test_another_epoch_of_the_sale_wakes_everybody_who_waits_for_it(shop: Shop, waiters: Waiters) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=30))
    await asyncio.sleep(0)
    await say(shop, 1, epoch=2)
    async with asyncio.timeout(10):
        assert await asked is not None


async def test_a_reconnect_wakes_everybody(
    shop: Shop, waiters: Waiters, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await settled_payment(shop)
    asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=60))
    assert await is_waiting(asked)
    # The pause before it connects again; whoever waits already waits for longer.
    monkeypatch.setattr(waiters_module, "SILENCE_S", 0.01)
    await redis.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(10):
        assert await asked is not None


async def test_a_lost_number_costs_a_quarter_of_a_second_however_much_others_talk(shop: Shop) -> None:
    request = await settled_payment(shop)
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    async with waiters.listening():
        await listened(shop)
        asked = asyncio.create_task(waiters.settled(await shop.sale(), request.payment_id, 1000, within_s=30))
        async with asyncio.timeout(5):
            while not asked.done():
                await say(shop, 1, sale_id="0e" * 16)
                await asyncio.sleep(0.01)
    assert (await asked) is not None
    assert waiters._waiting == {}


async def test_what_is_not_settled_in_time_is_nobodys_answer(shop: Shop) -> None:
    request = await shop.authorise(await shop.hold("A-1-1"))
    waiters = Waiters(shop.stores.postgres, shop.stores.listener)
    assert await waiters.settled(await shop.sale(), request.payment_id, 1, within_s=0.05) is None
    assert waiters._waiting == {}


async def test_a_postgres_that_goes_away_while_one_waits_is_not_known(shop: Shop, postgres_url: str) -> None:
    request = await settled_payment(shop)
    async with losing_answers(postgres_url, to=b"FROM payments", times=1) as url:
        lossy = await open_postgres(url)
        waiters = Waiters(lossy, shop.stores.listener)
        answer = await waiters.settled(await shop.sale(), request.payment_id, 1, within_s=5)
        await lossy.close()
    assert answer is not None
    assert answer.status == "SUCCESS"
