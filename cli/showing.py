"""What is seen of a demo: lines and bars while it runs, tables when it is over."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.staging import Beside
from loadtests import latecomers, rushes
from loadtests.crowd import Tally

PLAIN_EVERY_S = 2.0


def tell(console: Console, subject: str, what: str, *, since: float | None = None) -> None:
    """Say in a line what is now true, and how long after the moment `since`, of `time.monotonic`."""
    took = f" [dim]after {time.monotonic() - since:.1f} s[/]" if since is not None else ""
    console.print(f"[bold]{subject:<8}[/] {what}{took}")


def tell_returns(tally: Tally, console: Console) -> None:
    """Say what became of those who came too late, if there were any."""
    if tally.stages["waited"]:
        tell(
            console,
            "",
            f"{tally.stages['waited']} came too late and waited; what others gave back was offered "
            f"{tally.stages['offered']} times, and bought by {tally.endings[latecomers.BOUGHT]}",
        )


Update = Callable[[Tally], None]
"""Shows how far a crowd is by now."""


@contextmanager
def bars(console: Console, people: int, seats: int, beside: Beside) -> Iterator[Update]:
    """Show on a terminal how far the crowds are."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=10) as progress:
        tasks: dict[str, TaskID] = {
            "joined": progress.add_task("joined the line", total=people),
            "admitted": progress.add_task("admitted", total=people),
            "gone": progress.add_task("gone home", total=people),
            "sold": progress.add_task("[bold]seats sold[/]", total=seats),
        }
        units = progress.add_task("[bold]units sold[/]", total=beside.drop.units)
        coupons = progress.add_task("[bold]coupons[/]", total=beside.coupons_total)

        def update(tally: Tally) -> None:
            for name, bar in tasks.items():
                done = sum(tally.endings.values()) if name == "gone" else tally.stages[name]
                progress.update(bar, completed=done)
            progress.update(units, completed=beside.drop.tally.stages["sold"])
            progress.update(coupons, completed=beside.coupons.tally.stages["issued"])

        yield update


@contextmanager
def lines(console: Console, people: int, seats: int, beside: Beside) -> Iterator[Update]:
    """Say how far the crowds are now and then, where nobody sees bars move."""
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


def summarise(seats_total: int, tally: Tally, lag: Mapping[str, Any], took_s: float, console: Console) -> None:
    """Show how the journeys to the concert ended, what was refused, and how long each step took.

    `lag` counts `payments`, and tells how long they took to stand in Postgres: `p50_ms` and `p99_ms`.
    """
    journeys = sum(tally.endings.values())
    people = tally.endings["bought"] + tally.endings[latecomers.BOUGHT]
    console.print(
        f"\n[bold]{journeys:,} journeys, {tally.stages['sold']:,} of {seats_total:,} seats sold[/] "
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


def summarise_rushes(beside: Beside, console: Console) -> None:
    """Show what was sold and issued beside the concert."""
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
