"""The audit of this installation, and how a terminal shows it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.audit import Report
from engine.settings import Settings
from engine.stores import embedded
from engine.stores.connections import StoreUnavailable, open_postgres, open_redis
from loadtests.audit import audit

HISTORY = "history.jsonl"
"""The file in the data folder in which the demo keeps what its buyers heard."""

MARKS = {"true": "[green]true[/]", "false": "[bold red]FALSE[/]", "unknown": "[yellow]unknown[/]"}


async def audit_installation(settings: Settings, *, history: Path | None, settle_s: float) -> Report:
    """Audit the stores that the settings name."""
    kept = settings.data_path / HISTORY
    async with AsyncExitStack() as stack:
        provided = embedded.provide(settings)
        known = await asyncio.to_thread(provided.__enter__)
        stack.push_async_callback(asyncio.to_thread, provided.__exit__, None, None, None)
        redis = open_redis(str(known.redis_url))
        stack.push_async_callback(redis.aclose)
        postgres = await open_postgres(str(known.postgres_url), connections_max=4)
        stack.push_async_callback(postgres.close)
        try:
            return await audit(
                redis, postgres, history_path=history or (kept if kept.exists() else None), settle_s=settle_s
            )
        except asyncpg.UndefinedTableError as fault:
            raise StoreUnavailable("This database has no schema yet: start `lastseat up` once.") from fault


def show(report: Report, console: Console) -> None:
    """Show a report as a table, what breaks an invariant below it."""
    of = "one sale" if report.sales == 1 else f"{report.sales:,} sales"
    table = Table(title=f"Audit of {of}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column()
    table.add_column("holds")
    table.add_column("invariant", no_wrap=True)
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
