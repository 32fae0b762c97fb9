"""What Redis or a counter says wrongly is made what the rows of Postgres say, and no money moves."""

import pytest

from engine import seats
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


async def test_a_sale_that_is_right_or_merely_sells_is_not_closed_for_another(shop: Shop, stores: Stores) -> None:
    lying, selling = shop, await open_shop(stores)
    await selling.hold("A-1-3")  # nobody has applied it yet
    await stores.redis.execute_command("HDEL", (await lying.sale()).keys.seats, "A-1-1")
    report = await audit(stores.redis, stores.postgres, settle_s=0.2)
    assert report.to_rebuild == [lying.sale_id]
    before = (await selling.sale()).epoch
    assert (await repair(stores, report)).rebuilt == [lying.sale_id]
    assert (await selling.sale()).epoch == before
    assert await selling.states() == {"A-1-3": "HELD"}


async def test_a_sale_that_is_closed_or_lost_is_opened(shop: Shop, stores: Stores) -> None:
    await stores.redis.flushall()
    report = await audit(stores.redis, stores.postgres, settle_s=0.2)
    assert report.to_rebuild == [shop.sale_id]
    await repair(stores, report)
    assert await wrong(stores) == set()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}


async def test_what_postgres_refuses_ends_with_the_copy_that_told_of_it(shop: Shop, stores: Stores) -> None:
    """A buyer who is nobody: the entry stays set aside and named, until the sale is written anew without it."""
    sale = await shop.sale()
    held = await seats.hold(stores.gate, sale, hold_id=STRANGER, buyer_id=STRANGER, fingerprint="", seat_nos=["A-1-5"])
    assert isinstance(held, seats.Held)
    await shop.drain()
    report = await audit(stores.redis, stores.postgres, settle_s=0.5)
    findings = next(check.findings for check in report.checks if check.invariant == "I7")
    assert "entry 2 of the journal (held) was not applied and waits for a rebuild" in findings[0]
    assert (await repair(stores, report)).rebuilt == [shop.sale_id]
    assert await wrong(stores) == set()
    assert await shop.states() == {"A-1-1": "SOLD", "A-1-2": "SOLD"}
    assert await stores.postgres.fetchval("SELECT resolution FROM dead_letters") == "REBUILT"


async def test_money_is_never_made_to_fit(shop: Shop, stores: Stores) -> None:
    """A charge too much is a person's to judge: the repair leaves it as it is, and the audit goes on naming it."""
    await stores.postgres.execute("UPDATE balances SET amount = amount + 1")
    rows = [
        await stores.postgres.fetch(f"SELECT * FROM {table} ORDER BY 1")
        for table in ("balances", "balance_history", "payments", "reservation_seats", "tickets")
    ]
    await stores.postgres.execute("UPDATE schedules SET seats_available = 1")
    await mend(stores)
    assert rows == [
        await stores.postgres.fetch(f"SELECT * FROM {table} ORDER BY 1")
        for table in ("balances", "balance_history", "payments", "reservation_seats", "tickets")
    ]
    report = await audit(stores.redis, stores.postgres, settle_s=0.5)
    assert "I6" in {check.invariant for check in report.checks if check.verdict == "false"}
    assert shop.sale_id not in report.to_rebuild
