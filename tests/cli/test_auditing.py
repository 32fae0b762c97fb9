"""`lastseat audit --repair`: what it mends, and that its exit status is that of the second look."""

import json

from engine.stores.connections import Stores
from tests.cli.program import lastseat
from tests.shop import open_shop


async def test_a_repair_mends_counters_and_copies_and_looks_again(outside: dict[str, str], stores: Stores) -> None:
    shop = await open_shop(stores)
    await stores.postgres.execute("UPDATE schedules SET seats_available = 1")
    await stores.redis.execute_command("HSET", (await shop.sale()).keys.seats, "A-1-1", f"SOLD {'a' * 32} 1")
    assert lastseat("audit", "--settle", "0.2", settings=outside).returncode == 1

    mended = lastseat("audit", "--settle", "0.2", "--repair", "--json", settings=outside)
    assert mended.returncode == 0, mended.stderr
    assert json.loads(mended.stdout)["verdict"] == "true"
    # What was done stands beside the report, which stays one document.
    assert "0 seats marked and 1 schedules counted anew, 1 sales written to Redis anew" in mended.stderr
    assert await shop.states() == {}


async def test_what_no_repair_can_mend_stays_wrong(outside: dict[str, str], stores: Stores) -> None:
    await open_shop(stores)
    user_id = "0a" * 16
    await stores.postgres.execute("INSERT INTO users (user_id, subject, fingerprint) VALUES ($1, 'x', '')", user_id)
    await stores.postgres.execute("INSERT INTO balances (user_id, amount) VALUES ($1, 5)", user_id)
    said = lastseat("audit", "--settle", "0.2", "--repair", settings=outside)
    assert said.returncode == 1
    assert "Repaired: 0 seats marked and 0 schedules counted anew, 0 sales" in said.stdout
    assert await stores.postgres.fetchval("SELECT amount FROM balances") == 5
