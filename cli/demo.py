"""`lastseat demo`: a concert, a crowd, and the proof that nothing was sold twice, lost, or charged for nothing."""

import asyncio
import os
import random
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from rich.console import Console

from cli import auditing, gatewaying, processes, showing
from cli.auditing import HISTORY, OUTSIDE_HISTORY
from cli.processes import Part
from cli.staging import Beside, Concert, Operator
from cli.up import GATEWAY, VERBS, address_of
from engine.audit import Report
from engine.installation import prepare_database
from engine.settings import Settings
from engine.stores import embedded, queries
from engine.stores.connections import open_postgres, open_redis
from loadtests import audit, crowd, latecomers, rushes
from loadtests.client import Client
from loadtests.crowd import Crowd, Habit, Person, Tally
from loadtests.history import History
from loadtests.rushes import Coupons, Drop

SQL = queries.load("audit")

KEY = "demo.key"
"""The file in the data folder with the operator's key of every demo on it."""

RICH, POOR = 2_000_000, 1_000
UNITS, COUPONS = 500, 1_000
SHOPPERS_SHARE, HUNTERS_SHARE = 5 / 16, 5 / 8
"""How many come for goods and for coupons, for each who comes for seats; a third more than there are, or many more."""
CONNECTIONS_MAX = 256


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
        showing.tell(console, "stores", "Valkey and Postgres are up", since=began)
        asyncio.run(prepare_database(known))
        with processes.running(verbs, known, logs=known.data_path / "logs") as children:
            parts: list[Part] = [*children, *embedded.provided(settings)]
            processes.wait_until_ready(parts, known)
            beside = ", a card gateway that moves no money beside them" if GATEWAY in verbs else ""
            showing.tell(console, "faces", f"{known.workers} API processes and a worker are up{beside}", since=began)
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
        showing.tell(console, "concert", f"{concert.seats_total:,} seats are on sale, the waiting room is open")
        dice = random.Random(seed)
        people = crowd.gather(await operator.make_accounts(buyers, RICH), dice)
        poor = [number for number, person in enumerate(people) if person.habit is Habit.POOR]
        for number, (user_id, token) in zip(poor, await operator.make_accounts(len(poor), POOR), strict=True):
            people[number] = replace(people[number], user_id=user_id, access_token=token)
        showing.tell(console, "crowd", f"{len(people):,} people with an account and a balance are at the door")
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
                if visitors.late:
                    showing.tell(console, "returns", "some who came too late wait for what others give back now")
                await latecomers.come(visitors, seed=seed)
                await rushing
            finally:
                rushing.cancel()
            showing.tell_returns(tally, console)
        took_s = time.monotonic() - began
        lag = await _measure_lag(settings, concert.sale_id)
        showing.summarise(concert.seats_total, tally, lag, took_s, console)
        showing.summarise_rushes(beside, console)
        report = await _audit(settings, history_path)
        auditing.show(report, console)
        return report.verdict == "true"


async def _make_rushes(
    operator: Operator, client: Client, people: list[Person], console: Console, *, seed: int
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
    showing.tell(
        console,
        "beside",
        f"{units:,} units are dropped to {len(shoppers):,} people, and {len(hunters):,} want one of "
        f"{coupons_total:,} coupons",
    )
    return Beside(drop, coupons, coupons_total)


def _demo_key(path: Path) -> str:
    if not path.exists() or not path.read_text():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a start that is killed, or finds no room, leaves half a key to nobody.
        new = path.with_suffix(f".{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(f"demo_{secrets.token_urlsafe(32)}")
        new.replace(path)
    return path.read_text()


async def _watch(visitors: Crowd, concert: Concert, beside: Beside, console: Console, parts: Collection[Part]) -> Tally:
    """Show how the crowd gets on, as bars on a terminal and as a line now and then elsewhere."""
    going = asyncio.create_task(visitors.run())
    try:
        show = showing.bars if console.is_terminal else showing.lines
        with show(console, len(visitors.people), concert.seats_total, beside) as update:
            while not going.done():
                await asyncio.wait([going], timeout=0.1)
                processes.raise_if_ended(parts)
                update(visitors.tally)
        return await going
    finally:
        going.cancel()


async def _measure_lag(settings: Settings, sale_id: str) -> Mapping[str, Any]:
    postgres = await open_postgres(str(settings.postgres_url), connections_max=1)
    try:
        lag: Any = await SQL.measure_persist_lag.fetchrow(postgres, sale_id)
        return dict(lag)
    finally:
        await postgres.close()


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
