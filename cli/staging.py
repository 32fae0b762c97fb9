"""What a demo puts on sale, as an operator does it: over HTTP, with a key."""

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from cli.processes import ProcessFault
from loadtests import crowd
from loadtests.client import Answer, Client
from loadtests.history import History
from loadtests.rushes import Coupons, Drop

HALL = Path(crowd.__file__).parent / "halls" / "grand_hall.csv"
HOLD_S = 10
SHIRT = 35_000


class Concert(msgspec.Struct, frozen=True):
    """What the operator made."""

    schedule_id: str
    sale_id: str
    seats_total: int


class Operator:
    """Whoever has an admin key."""

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self._who = {"authorization": f"Bearer {key}"}

    async def make_concert(self, *, title: str, buyers: int) -> Concert:
        """Make a concert with one schedule and its seats, and open its waiting room."""
        made = await self._ask("POST", "/v1/admin/concerts", {"title": title, "venue": "Grand Hall"})
        terms = {
            "start_at": (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hold_s": HOLD_S,
            "per_buyer_max": max(crowd.WISHES),
        }
        path = f"/v1/admin/concerts/{made.json()['concert_id']}/schedules?{urlencode(terms)}"
        made = await self._ask("POST", path, HALL.read_bytes(), {"content-type": "text/csv"})
        concert = msgspec.json.decode(made.body, type=Concert)
        room = {
            "state": "open",
            # An eighth of the crowd shops at once; the rate is what the shop could bear and the room does not reach.
            "active_max": max(50, buyers // 8),
            "admitted_per_minute_max": 60_000,
            "entry_s": 10,
            "session_s": 60,
            "recall_s": 20,
        }
        await self._ask("PATCH", f"/v1/admin/sales/{concert.sale_id}/queue", room)
        return concert

    async def make_drop(self, units: int, *, shoppers: int) -> tuple[str, str]:
        """Drop so many units of one variant, with a line of its own; returns its sale's id and the variant's."""
        drop = {"name": "The tour shirt", "hold_s": HOLD_S, "per_buyer_max": 2}
        sale_id: str = (await self._ask("POST", "/v1/admin/sales", drop)).json()["sale_id"]
        shirt = {"name": "Tour shirt", "category": "Shirts", "price": SHIRT, "sale_id": sale_id}
        made = await self._ask("POST", "/v1/admin/products", {**shirt, "variants": [{"size": "M", "stock": units}]})
        room = {"state": "open", "active_max": max(50, shoppers // 4), "admitted_per_minute_max": 60_000}
        await self._ask("PATCH", f"/v1/admin/sales/{sale_id}/queue", {**room, "entry_s": 10, "session_s": 60})
        return sale_id, made.json()["variants"][0]["variant_id"]

    async def make_coupons(self, count: int) -> str:
        """Make a source of so many coupons; returns its id."""
        now = datetime.now(UTC)
        coupon = {
            "name": "A tenth off",
            "type": "RATE",
            "discount_rate": 10,
            "quantity": count,
            "usable_from": f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
            "usable_to": f"{now + timedelta(days=30):%Y-%m-%dT%H:%M:%SZ}",
        }
        coupon_id: str = (await self._ask("POST", "/v1/admin/coupons", coupon)).json()["coupon_id"]
        return coupon_id

    async def make_accounts(self, count: int, balance: int) -> list[tuple[str, str]]:
        """Make users by the bulk route; answers the id and the token of each."""
        accounts: list[tuple[str, str]] = []
        while len(accounts) < count:
            wish = {"count": min(1000, count - len(accounts)), "balance": balance}
            made = await self._ask("POST", "/v1/admin/accounts", wish)
            accounts += [(item["user_id"], item["access_token"]) for item in made.json()["items"]]
        return accounts

    async def _ask(self, method: str, path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
        who = {**self._who, "idempotency-key": secrets.token_hex(8), **(headers or {})}
        answer = await self._client.request(method, path, headers=who, body=body)
        if answer.status >= 300:
            raise ProcessFault(f"{method} {path} answered {answer.status}: {answer.body.decode(errors='replace')}")
        return answer


@dataclass
class Beside:
    """What goes on beside the concert."""

    drop: Drop
    coupons: Coupons
    coupons_total: int

    def keep(self, history: History) -> None:
        """Have what is heard written down."""
        self.drop.history = self.coupons.history = history

    async def run(self) -> None:
        """Send both crowds in and wait until the last one has gone."""
        await asyncio.gather(self.coupons.run(), self.drop.run())

    @property
    def so_far(self) -> str:
        """How far they are."""
        sold, issued = self.drop.tally.stages["sold"], self.coupons.tally.stages["issued"]
        return f"{sold:,} of {self.drop.units:,} units sold, {issued:,} of {self.coupons_total:,} coupons issued"
