"""The doorbell: one subscription rings for each stream that has something new, and for all when it was broken off."""

import asyncio

from engine.stores.connections import Stores
from engine.stores.outbox import WRITTEN
from workers.loops import Bell
from workers.outbox import Doorbell


async def test_a_stream_is_rung_for_and_all_are_when_something_may_not_have_been_heard(stores: Stores) -> None:
    doorbell = Doorbell(stores.listener)
    new, quiet = doorbell.bells["new"], doorbell.bells["quiet"] = Bell(), Bell()
    listening = asyncio.create_task(doorbell.listen())
    try:
        async with asyncio.timeout(10):
            # It has just begun to listen.
            assert [await new.rest(), await quiet.rest()] == [True, True]
            for key in (b"\xff of nobody", "another worker's", "new"):
                await stores.redis.execute_command("PUBLISH", WRITTEN, key)
            assert await new.rest()
            quiet.rest_max_s = 0.05
            assert not await quiet.rest()
            await stores.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            quiet.rest_max_s = 10.0
            assert [await new.rest(), await quiet.rest()] == [True, True]
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
