"""`lastseat demo`: a concert, a crowd, and the proof that nothing was sold twice, lost, or charged for nothing."""

import asyncio
import itertools
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import uvloop
from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli import auditing, gatewaying, processes
from cli.auditing import HISTORY, OUTSIDE_HISTORY
from cli.processes import Part, ProcessFault
from cli.up import GATEWAY, VERBS, address_of
from engine.audit import Report
from engine.installation import prepare_database
from engine.settings import Settings
from engine.stores import embedded, queries
from engine.stores.connections import open_postgres, open_redis
from loadtests import audit, crowd, latecomers, rushes
from loadtests.client import Answer, Client
from loadtests.crowd import Crowd, Habit, Person, Tally
from loadtests.history import History
from loadtests.rushes import Coupons, Drop

SQL = queries.load("audit")

HALL = Path(crowd.__file__).parent / "halls" / "grand_hall.csv"
KEY = "demo.key"
"""The file in the data folder with the operator's key of every demo on it."""

HOLD_S = 10
RICH, POOR = 2_000_000, 1_000
SHIRT = 35_000
UNITS, COUPONS = 500, 1_000
SHOPPERS_SHARE, HUNTERS_SHARE = 5 / 16, 5 / 8
"""How many come for goods and for coupons, for each who comes for seats; a third more than there are, or many more."""
CONNECTIONS_MAX = 256
PLAIN_EVERY_S = 2.0


def demo(settings: Settings, console: Console, *, stays: bool, buyers: int, seed: int | None) -> bool:
    """Sell out a concert; answer whether every invariant is true. With `stays` the API stays up until Ctrl-C."""
    with processes.keeping(settings.host, settings.port) as kept:
        if not kept:
            settings = msgspec.structs.replace(settings, port=processes.free_port(settings.host))
        return _demonstrate(settings, console, stays=stays, buyers=buyers, seed=seed)


def _demonstrate(settings: Settings, console: Console, *, stays: bool, buyers: int, seed: int | None) -> bool:
    began = time.monotonic()
    settings = msgspec.structs.replace(settings, admin_key=settings.admin_key or _demo_key(settings.data_path / KEY))
    history_path = settings.data_path / (HISTORY if settings.postgres_url is None else OUTSIDE_HISTORY)
    verbs = VERBS if settings.stripe_api_key else [GATEWAY, *VERBS]
    with embedded.provide(gatewaying.simulated(settings)) as known:
        _tell(console, "stores", "Valkey and Postgres are up", since=began)
        asyncio.run(prepare_database(known))
        with processes.running(verbs, known, logs=known.data_path / "logs") as children:
            parts: list[Part] = [*children, *embedded.provided(settings)]
            processes.wait_until_ready(parts, known)
            beside = ", a card gateway that moves no money beside them" if GATEWAY in verbs else ""
            _tell(console, "faces", f"{known.workers} API processes and a worker are up{beside}", since=began)
            seed = secrets.randbelow(10**6) if seed is None else seed
            if settings.postgres_url is not None:
                history_path.unlink(missing_ok=True)  # of which stores it was, nobody knows
            held = uvloop.run(_show(known, console, parts, history_path, buyers=buyers, seed=seed))
            if stays:
                _stay(known, console, parts)
    return held


async def _show(
    settings: Settings, console: Console, parts: Collection[Part], history_path: Path, *, buyers: int, seed: int
) -> bool:
    host = processes.reachable(settings.host)
    async with Client(host, settings.port, connections_max=CONNECTIONS_MAX) as client:
        operator = Operator(client, str(settings.admin_key))
        concert = await operator.make_concert(title=f"The Last Seat, in the grand hall (crowd {seed})", buyers=buyers)
        _tell(console, "concert", f"{concert.seats_total:,} seats are on sale, the waiting room is open")
        dice = random.Random(seed)
        people = crowd.gather(await operator.make_accounts(buyers, RICH), dice)
        poor = [number for number, person in enumerate(people) if person.habit is Habit.POOR]
        for number, (user_id, token) in zip(poor, await operator.make_accounts(len(poor), POOR), strict=True):
            people[number] = replace(people[number], user_id=user_id, access_token=token)
        _tell(console, "crowd", f"{len(people):,} people with an account and a balance are at the door")
        beside = await _make_rushes(operator, client, people, console, seed=seed)
        began = time.monotonic()
        with History(history_path) as history:
            visitors = Crowd(
                client,
                sale_id=concert.sale_id,
                schedule_id=concert.schedule_id,
                people=people,
                history=history,
                seed=seed,
                cards=not settings.has_real_gateway and settings.stripe_api_key is not None,
            )
            beside.keep(history)
            rushing = asyncio.create_task(beside.run())
            try:
                tally = await _watch(visitors, concert, beside, console, parts)
                await latecomers.come(visitors, seed=seed)
                await rushing
            finally:
                rushing.cancel()
            _tell_returns(tally, console)
        took_s = time.monotonic() - began
        await _summarise(settings, concert, tally, took_s, console)
        _summarise_rushes(beside, console)
        report = await _audit(settings, history_path)
        auditing.show(report, console)
        return report.verdict == "true"


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


async def _make_rushes(
    operator: "Operator", client: Client, people: list[Person], console: Console, *, seed: int
) -> Beside:
    """Make a drop and coupons, and gather who wants them: some of the concert's crowd want a coupon, too."""
    accounts = await operator.make_accounts(max(2, int(len(people) * SHOPPERS_SHARE)), RICH)
    shoppers = crowd.gather(accounts, random.Random(seed), rushes.SHOPPERS)
    hunters = shoppers + people[: int(len(people) * HUNTERS_SHARE) - len(shoppers)]
    units, coupons_total = min(UNITS, len(shoppers) * 2 // 3), min(COUPONS, len(hunters) * 2 // 3)
    sale_id, variant_id = await operator.make_drop(units, shoppers=len(shoppers))
    coupons = Coupons(client, coupon_id=await operator.make_coupons(coupons_total), people=hunters, seed=seed)
    drop = Drop(
        client,
        sale_id=sale_id,
        variant_id=variant_id,
        units=units,
        people=shoppers,
        coupons=coupons.issued,
        seed=seed,
    )
    _tell(
        console,
        "beside",
        f"{units:,} units are dropped to {len(shoppers):,} people, and {len(hunters):,} want one of "
        f"{coupons_total:,} coupons",
    )
    return Beside(drop, coupons, coupons_total)


# The operator ---------------------------------------------------------------------------------------------------------


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


def _demo_key(path: Path) -> str:
    if not path.exists() or not path.read_text():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a start that is killed, or finds no room, leaves half a key to nobody.
        new = path.with_suffix(f".{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(f"demo_{secrets.token_urlsafe(32)}")
        new.replace(path)
    return path.read_text()


# What is seen of it ---------------------------------------------------------------------------------------------------


def _tell(console: Console, subject: str, what: str, *, since: float | None = None) -> None:
    took = f" [dim]after {time.monotonic() - since:.1f} s[/]" if since is not None else ""
    console.print(f"[bold]{subject:<8}[/] {what}{took}")


def _tell_returns(tally: Tally, console: Console) -> None:
    if tally.stages["waited"]:
        _tell(
            console,
            "returns",
            f"{tally.stages['waited']} came too late and waited; what others gave back was offered "
            f"{tally.stages['offered']} times, and bought by {tally.endings[latecomers.BOUGHT]}",
        )


async def _watch(visitors: Crowd, concert: Concert, beside: Beside, console: Console, parts: Collection[Part]) -> Tally:
    """Show how the crowd gets on, as bars on a terminal and as a line now and then elsewhere."""
    going = asyncio.create_task(visitors.run())
    try:
        show = _bars if console.is_terminal else _lines
        with show(console, len(visitors.people), concert.seats_total, beside) as update:
            while not going.done():
                await asyncio.wait([going], timeout=0.1)
                processes.raise_if_ended(parts)
                update(visitors.tally)
        return await going
    finally:
        going.cancel()


Update = Callable[[Tally], None]


@contextmanager
def _bars(console: Console, people: int, seats: int, beside: Beside) -> Iterator[Update]:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=10) as progress:
        bars: dict[str, TaskID] = {
            "joined": progress.add_task("joined the line", total=people),
            "admitted": progress.add_task("admitted", total=people),
            "gone": progress.add_task("gone home", total=people),
            "sold": progress.add_task("[bold]seats sold[/]", total=seats),
        }
        units = progress.add_task("[bold]units sold[/]", total=beside.drop.units)
        coupons = progress.add_task("[bold]coupons[/]", total=beside.coupons_total)

        def update(tally: Tally) -> None:
            for name, bar in bars.items():
                done = sum(tally.endings.values()) if name == "gone" else tally.stages[name]
                progress.update(bar, completed=done)
            progress.update(units, completed=beside.drop.tally.stages["sold"])
            progress.update(coupons, completed=beside.coupons.tally.stages["issued"])

        yield update


@contextmanager
def _lines(console: Console, people: int, seats: int, beside: Beside) -> Iterator[Update]:
    began = time.monotonic()
    moments = itertools.count(1)
    due = next(moments) * PLAIN_EVERY_S

    def update(tally: Tally) -> None:
        nonlocal due
        passed = time.monotonic() - began
        if passed >= due:
            due = next(moments) * PLAIN_EVERY_S
            say(passed, tally)

    def say(passed: float, tally: Tally) -> None:
        stages = tally.stages
        console.print(
            f"{passed:4.0f} s  {stages['joined']:,} of {people:,} joined, {stages['admitted']:,} admitted, "
            f"{sum(tally.endings.values()):,} gone home, {stages['sold']:,} of {seats:,} seats sold; {beside.so_far}",
            highlight=False,
            soft_wrap=True,
        )

    yield update


async def _summarise(settings: Settings, concert: Concert, tally: Tally, took_s: float, console: Console) -> None:
    postgres = await open_postgres(str(settings.postgres_url), connections_max=1)
    try:
        lag: Any = await SQL.measure_persist_lag.fetchrow(postgres, concert.sale_id)
    finally:
        await postgres.close()
    journeys = sum(tally.endings.values())
    people = tally.endings["bought"] + tally.endings[latecomers.BOUGHT]
    console.print(
        f"\n[bold]{journeys:,} journeys, {tally.stages['sold']:,} of {concert.seats_total:,} seats sold[/] "
        f"to {people:,} people in {took_s:.1f} s; {tally.repeats:,} requests were repeated.\n",
        highlight=False,
    )
    endings = _table("how it ended", "people")
    for ending, count in tally.endings.most_common():
        endings.add_row(ending, f"{count:,}")
    refusals = _table("refused", "why", "times")
    for (step, word), count in tally.refusals.most_common():
        refusals.add_row(step, word, f"{count:,}")
    times = _table("step", "requests", "p50 ms", "p99 ms")
    for step, taken in tally.times_ms.items():
        times.add_row(
            step, f"{len(taken):,}", f"{tally.percentile(step, 0.5):.1f}", f"{tally.percentile(step, 0.99):.1f}"
        )
    times.add_row("persist lag", f"{lag['payments']:,}", f"{lag['p50_ms']:.1f}", f"{lag['p99_ms']:.1f}")
    console.print(Columns([endings, refusals, times], padding=(0, 4)))
    console.print("\n[dim]persist lag: from the funds being set aside to the sale standing in Postgres[/]")
    for fault in tally.faults[:3]:
        console.print(f"no answer: {fault}", style="yellow", highlight=False)
    console.print()


def _summarise_rushes(beside: Beside, console: Console) -> None:
    drop, coupons = beside.drop, beside.coupons
    bought, issued = drop.tally.endings[rushes.BOUGHT], coupons.tally.stages["issued"]
    told = {
        f"{drop.tally.stages['sold']:,} of {drop.units:,} units sold": (
            f"to {bought:,} of {len(drop.people):,} people, {drop.tally.stages['with a coupon']:,} of them with a "
            f"coupon; {rushes.refused(drop)}; {rushes.told(drop, 'order')}, {rushes.told(drop, 'pay')}"
        ),
        f"{issued:,} of {beside.coupons_total:,} coupons issued": (
            f"to {len(coupons.people):,} who asked; {rushes.refused(coupons)}; {rushes.told(coupons, 'issue')}"
        ),
    }
    for what, how in told.items():
        console.print(f"[bold]{what}[/] {how}", highlight=False, soft_wrap=True)
    console.print()


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        # Counts and times stand under each other.
        table.add_column(name, justify="right" if name in ("people", "times", "requests") or "ms" in name else "left")
    return table


async def _audit(settings: Settings, history_path: Path) -> Report:
    redis = open_redis(str(settings.redis_url))
    postgres = await open_postgres(str(settings.postgres_url), connections_max=4)
    try:
        return await audit.audit(redis, postgres, history_path=history_path, settle_s=30.0)
    finally:
        await postgres.close()
        await redis.aclose()


def _stay(settings: Settings, console: Console, parts: Collection[Part]) -> None:
    address = address_of(settings)
    console.print("\nEverything stays up for you to try. Ctrl-C stops it.", highlight=False)
    console.print(f"  docs  {address}/docs", highlight=False)
    console.print(f"  key   {settings.admin_key}   [dim](an operator's)[/]", highlight=False, soft_wrap=True)
    try:
        while True:
            time.sleep(0.5)
            processes.raise_if_ended(parts)
    except KeyboardInterrupt:
        console.print("Stopping …")
