"""What Redis or a counter says wrongly is made what the rows of Postgres say, and no money moves."""

import pytest

from engine.audit import audit
from engine.repair import repair
from engine.stores.connections import Stores
from tests.shop import Shop, open_shop

STRANGER = "a" * 32


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    """A concert with two seats sold, by an audit that finds nothing wrong."""
    shop = await open_shop(stores)
    await shop.buy("A-1-1", "A-1-2")
    await shop.drain()
    await stores.postgres.execute("UPDATE balances SET version = 0, amount = 0")
    await stores.postgres.execute("DELETE FROM balance_history")
    return shop


async def wrong(stores: Stores) -> set[str]:
    """The invariants that do not hold; those of money are another test's."""
    report = await audit(stores.redis, stores.postgres, settle_s=0.5)
    return {check.invariant for check in report.checks if check.verdict != "true"} - {"I3", "I6"}


async def mend(stores: Stores) -> None:
    """Repair what an audit finds."""
    await repair(stores, await audit(stores.redis, stores.postgres, settle_s=0.5))


@pytest.mark.usefixtures("shop")
async def test_counters_are_counted_anew(stores: Stores) -> None:
    await stores.postgres.execute("UPDATE seats SET sold = false WHERE seat_no = 'A-1-1'")
    await stores.postgres.execute("UPDATE seats SET sold = true WHERE seat_no = 'A-1-5'")
    await stores.postgres.execute("UPDATE schedules SET seats_available = 1")
    assert "I1" in await wrong(stores)
    await mend(stores)
    assert await wrong(stores) == set()
    sold = await stores.postgres.fetch("SELECT seat_no FROM seats WHERE sold ORDER BY seat_no")
    assert [row["seat_no"] for row in sold] == ["A-1-1", "A-1-2"]
    assert await stores.postgres.fetchval("SELECT seats_available FROM schedules") == 4


async def test_a_copy_in_redis_that_lies_is_written_anew(shop: Shop, stores: Stores) -> None:
    keys = (await shop.sale()).keys
    await stores.redis.execute_command("HDEL", keys.seats, "A-1-1")
    await stores.redis.execute_command("HSET", keys.seats, "A-1-4", f"SOLD {STRANGER} 1")
    assert {"I1", "I9"} <= await wrong(stores)
    await mend(stores)
    assert await wrong(stores) == set()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}


async def test_what_holds_is_left_alone(shop: Shop, stores: Stores) -> None:
    before = (await shop.sale()).epoch
    repaired = await repair(stores, await audit(stores.redis, stores.postgres, settle_s=0.5))
    assert (repaired.seats, repaired.schedules, repaired.rebuilt) == (0, 0, [])
    assert (await shop.sale()).epoch == before
