"""The audit of this installation, and how a terminal shows it."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.audit import Report
from engine.repair import Repaired, repair
from engine.settings import Settings
from engine.stores import embedded
from engine.stores.connections import StoreUnavailable, open_postgres, open_redis, open_stores
from loadtests.audit import audit

HISTORY = "history.jsonl"
"""The file in the data folder in which the demo keeps what its buyers heard, of the stores of this folder."""

OUTSIDE_HISTORY = "history-outside.jsonl"
"""The same of the last demo on outside stores: what was heard of others is nothing to them."""

MARKS = {"true": "[green]true[/]", "false": "[bold red]FALSE[/]", "unknown": "[yellow]unknown[/]"}


async def audit_installation(
    settings: Settings, *, history: Path | None, settle_s: float, repairs: Callable[[Repaired], None] | None = None
) -> Report:
    """Audit the stores that the settings name; with `repairs`, mend what is wrong, tell what was, and audit again."""
    # The demo's buyers bought from the stores of this folder, and from no others.
    own = settings.data_path / HISTORY if settings.postgres_url is None else None
    kept = history or (own if own is not None and own.exists() else None)
    async with AsyncExitStack() as stack:
        provided = embedded.provide(settings)
        known = await asyncio.to_thread(provided.__enter__)
        stack.push_async_callback(asyncio.to_thread, provided.__exit__, None, None, None)
        redis = open_redis(str(known.redis_url))
        stack.push_async_callback(redis.aclose)
        postgres = await open_postgres(str(known.postgres_url), connections_max=4)
        stack.push_async_callback(postgres.close)
        try:
            report = await audit(redis, postgres, history_path=kept, settle_s=settle_s)
            if repairs is None or report.verdict == "true":
                return report
            async with open_stores(known) as stores:
                repairs(await repair(stores, report))
            return await audit(redis, postgres, history_path=kept, settle_s=settle_s)
        except asyncpg.UndefinedTableError as fault:
            raise StoreUnavailable("This database has no schema yet: start `lastseat up` once.") from fault


def show_repaired(repaired: Repaired, console: Console) -> None:
    """Say what a repair did."""
    console.print(
        f"Repaired: {repaired.seats:,} seats marked and {repaired.schedules:,} schedules counted anew, "
        f"{len(repaired.rebuilt):,} sales written to Redis anew.",
        highlight=False,
        soft_wrap=True,
    )
    for sale_id in repaired.not_rebuilt:
        console.print(f"Sale {sale_id} was not rebuilt in time; it stays closed until it is.", style="red")


def show(report: Report, console: Console) -> None:
    """Show a report as a table, what breaks an invariant below it."""
    of = "one sale" if report.sales == 1 else f"{report.sales:,} sales"
    table = Table(title=f"Audit of {of}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column("holds", no_wrap=True)
    # On a narrow terminal it gives way, and not the verdict.
    table.add_column("invariant", no_wrap=console.width >= 100)
    table.add_column("looked at", style="dim")
    for check in report.checks:
        looked_at = ", ".join(f"{count:,} {what}" for what, count in check.looked_at.items())
        table.add_row(check.invariant, Text.from_markup(MARKS[check.verdict]), check.title, looked_at)
    console.print(table)
    for check in report.checks:
        for finding in check.findings:
            console.print(Text(f"{check.invariant}: {finding}", style="red"))
        if check.found > len(check.findings):
            console.print(f"{check.invariant}: … and {check.found - len(check.findings):,} more", style="red")
        for reason in check.unknown:
            console.print(Text(f"{check.invariant}: {reason}", style="yellow"))
