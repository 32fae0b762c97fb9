"""`lastseat statistics recompute`, as an operator runs it."""

import json

import asyncpg

from tests.cli.program import lastseat
from tests.engine.sold_goods import open_stand, utc

RECOMPUTE = ("statistics", "recompute")


async def test_days_are_counted_anew(outside: dict[str, str], postgres: asyncpg.Pool) -> None:
    stand = await open_stand(postgres)
    tee = await stand.product()
    await stand.sell({tee.variants[0].variant_id: 2}, utc("2026-03-01T23:59:59.999"))
    march = (*RECOMPUTE, "2026-03-01", "2026-03-31")
    right = lastseat(*march, settings=outside)
    assert (right.returncode, right.stdout) == (0, "Nothing differs: nothing was changed.\n"), right.stderr
    await postgres.execute("UPDATE product_daily_sales SET amount = 7")
    elsewhere = lastseat(*RECOMPUTE, "2026-04-01", "2026-04-01", "--json", settings=outside)
    assert (elsewhere.returncode, json.loads(elsewhere.stdout)) == (0, [])
    wrong = lastseat(*march, settings=outside)
    assert wrong.returncode == 3, wrong.stderr
    assert wrong.stdout.splitlines() == [
        f"product {tee.product_id}, 2026-03-01: amount 7, and the rows come to 1000",
        "Put right.",
    ]
    assert list((await stand.days()).values()) == [(2, 1, 1000, 0, 0)]
    assert lastseat(*march, settings=outside).returncode == 0


async def test_days_that_are_none_are_refused(outside: dict[str, str]) -> None:
    for days in (("2026-03-02", "2026-03-01"), ("2026-02-30", "2026-03-01"), ("march", "april"), ("2026-03-01",)):
        said = lastseat(*RECOMPUTE, *days, settings=outside)
        assert said.returncode == 2, said.stdout
