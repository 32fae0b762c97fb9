"""``make load``: Locust rushes against the embedded stores, the audit of them, and a control that must fail it.

More buyers than seats come at once, then the same crowd for fewer coupons. Afterwards every invariant is checked, with
what each buyer heard. Then the crowd goes to a twin that reads before it writes; if the audit did not see that one
oversell, it would prove nothing.
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
BUYERS = 1_200
NAIVE_SEATS = 40
NAIVE_BUYERS = 300
RUN_S = 90
SOLD_TO_BOTH = "was confirmed to both"


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
            {**plan, "coupon_id": await _make_coupons(running), "seed": seed, "history": str(heard)},
            "CouponUser",
            reports / "coupons.html",
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
    oversold = [finding for check in caught.checks for finding in check.findings if SOLD_TO_BOTH in finding]
    print(f"The control sold {len(oversold)} seats twice, for example: {oversold[0] if oversold else '-'}")
    print(f"Reports: {reports}/rush.html, {reports}/coupons.html, {reports}/control.html")
    if clean.verdict != "true":
        print("The rush broke an invariant.", file=sys.stderr)
        return 1
    if not oversold:
        print("The audit did not see the control oversell: it proves nothing.", file=sys.stderr)
        return 1
    return 0


async def _make_coupons(running: Shop) -> str:
    terms = {"name": "First come", "type": "FIXED", "discount_amount": 1000, "quantity": COUPONS}
    usable = {"usable_from": "2026-01-01T00:00:00Z", "usable_to": "2036-01-01T00:00:00Z"}
    coupon_id: str = (await running.order("POST", "/v1/admin/coupons", terms | usable))["coupon_id"]
    return coupon_id


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
