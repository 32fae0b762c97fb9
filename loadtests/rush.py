"""``make load``: Locust rushes against the embedded stores, the audit of them, and a control that must fail it.

More buyers than seats come at once, then the same crowd for fewer coupons, then for fewer units of a drop. Afterwards
every invariant is checked, with what each buyer heard. Then the crowd goes to twins that read before they write; if the
audit did not see those oversell, it would prove nothing.
"""

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests import audit
from loadtests.shop import Shop, shop

SEATS = 1_000
COUPONS = 400
UNITS = 500
BUYERS = 1_200
NAIVE_SEATS = 40
NAIVE_UNITS = 40
NAIVE_BUYERS = 300
RUN_S = 90
REPORTS = ("rush", "coupons", "drop", "control", "drop_control")
SOLD_TO_BOTH = "was confirmed to both"
MORE_THAN_THERE_WERE = "were confirmed, and there were no more than"


def main() -> int:
    """Run the rush and its control; 0 when the rush was clean and the control was caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locust", type=Path, required=True, help="the locust program, in an environment of its own")
    parser.add_argument("--buyers", type=int, default=BUYERS)
    parser.add_argument("--seats", type=int, default=SEATS)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    chosen.reports.mkdir(exist_ok=True)
    return asyncio.run(rush(chosen.locust, chosen.reports, chosen.buyers, chosen.seats, chosen.seed))


async def rush(locust: Path, reports: Path, buyers: int, seats: int, seed: int) -> int:
    """Sell out one concert to more buyers than seats, audit it, and let the control oversell."""
    async with shop(processes=1) as running:
        accounts = await _accounts(running, buyers)
        schedule_id, sale_id = await running.make_sale(seats, per_row=50)
        await running.open_room(sale_id, active_max=200, admitted_per_minute_max=6_000)
        plan = {"sale_id": sale_id, "schedule_id": schedule_id, "buyers": accounts, "naive_seats": NAIVE_SEATS}
        heard = running.folder / "rush.jsonl"
        await _locust(
            locust, running, {**plan, "seed": seed, "history": str(heard)}, "RushBuyer", reports / "rush.html"
        )
        await _locust(
            locust,
            running,
            {**plan, "coupon_id": await running.make_coupons(COUPONS), "seed": seed, "history": str(heard)},
            "CouponUser",
            reports / "coupons.html",
        )
        dropped = await _make_drop(running, UNITS, active_max=200, admitted_per_minute_max=6_000)
        await _locust(
            locust,
            running,
            {**plan, **dropped, "seed": seed, "history": str(heard)},
            "DropBuyer",
            reports / "drop.html",
        )
        clean = await _audit(running, heard)
        print(audit.describe(clean), flush=True)

        await running.client.request(
            "POST",
            "/twins/seats",
            headers={"authorization": f"Bearer {accounts[0][1]}", "idempotency-key": "control"},
            body={"seats": [f"A-1-{NAIVE_SEATS}"]},
        )
        naive = running.folder / "naive.jsonl"
        control = {**plan, "buyers": accounts[:NAIVE_BUYERS], "seed": seed, "history": str(naive)}
        await _locust(locust, running, control, "NaiveBuyer", reports / "control.html")
        caught = await _audit(running, naive)

        units = await _make_drop(running, NAIVE_UNITS)
        await running.client.request(
            "POST",
            "/twins/units",
            headers={"authorization": f"Bearer {accounts[0][1]}", "idempotency-key": "units"},
            body={"variant_id": units["variant_id"], "quantity": NAIVE_UNITS},
        )
        naive = running.folder / "naive_drop.jsonl"
        control = {**plan, **units, "buyers": accounts[:NAIVE_BUYERS], "seed": seed, "history": str(naive)}
        await _locust(locust, running, control, "NaiveDropBuyer", reports / "drop_control.html")
        caught_units = await _audit(running, naive)
    oversold = _findings(caught, SOLD_TO_BOTH)
    print(f"The control: {oversold[0] if oversold else 'sold no seat twice'}")
    oversold_units = _findings(caught_units, MORE_THAN_THERE_WERE)
    print(f"The control of the drop: {oversold_units[0] if oversold_units else 'sold no more than there were'}")
    print(f"Reports: {', '.join(f'{reports}/{name}.html' for name in REPORTS)}")
    if clean.verdict != "true":
        print("The rush broke an invariant.", file=sys.stderr)
        return 1
    if unsold := _unsold(clean):
        print(f"Nobody got any {' or '.join(unsold)}: the rush proves nothing.", file=sys.stderr)
        return 1
    if not oversold or not oversold_units:
        print("The audit did not see the control oversell: it proves nothing.", file=sys.stderr)
        return 1
    return 0


async def _make_drop(running: Shop, units: int, **room: int) -> dict[str, str]:
    """Make a drop; with terms of a room it has a line."""
    sale_id, variant_id = await running.make_drop(units)
    if room:
        await running.open_room(sale_id, **room)
    return {"sale_id": sale_id, "variant_id": variant_id}


def _unsold(report: audit.Report) -> list[str]:
    """What no buyer heard to have: a crowd that gets nothing breaks no invariant."""
    [heard] = [check.looked_at for check in report.checks if check.invariant == "I2"]
    goods = heard.get("of goods", 0)
    counts = {"seats": heard["confirmations heard"] - goods, "goods": goods, "coupons": heard.get("issues heard", 0)}
    return [what for what, count in counts.items() if not count]


def _findings(report: audit.Report, what: str) -> list[str]:
    return [finding for check in report.checks for finding in check.findings if what in finding]


async def _accounts(running: Shop, count: int) -> list[tuple[str, str]]:
    return [(user["user_id"], user["access_token"]) for user in await running.make_users(count)]


async def _locust(locust: Path, running: Shop, plan: dict[str, Any], crowd: str, report: Path) -> None:
    written = running.folder / f"{crowd}.json"
    written.write_text(json.dumps(plan))
    command: Sequence[str] = [
        *(str(locust), "-f", "loadtests/locustfile.py", crowd, "--headless", "--only-summary"),
        *("--host", f"http://127.0.0.1:{running.settings.port}", "--html", str(report)),
        *(
            "--users",
            str(len(plan["buyers"])),
            "--spawn-rate",
            "200",
            "--run-time",
            f"{RUN_S}s",
            "--stop-timeout",
            "10",
        ),
    ]
    environ = {**os.environ, "LASTSEAT_LOAD_PLAN": str(written)}
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        await asyncio.wait_for(process.wait(), RUN_S + 60)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise


async def _audit(running: Shop, heard: Path) -> audit.Report:
    async with running.stores() as (redis, postgres):
        return await audit.audit(redis, postgres, history_path=heard)


if __name__ == "__main__":
    sys.exit(main())
