"""Rows of a benchmark: a table for people, ``bench.json`` for machines."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is filled where the row is one; `at_least` and `at_most` are what it should keep to."""

    name: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def judged(self) -> float:
        """What is compared with the bounds."""
        return self.value if self.ratio is None else self.ratio

    @property
    def falls_short(self) -> bool:
        """Whether it misses what it should keep to."""
        return (self.at_least is not None and self.judged < self.at_least) or (
            self.at_most is not None and self.judged > self.at_most
        )


def ratio_row(name: str, ours: float, theirs: float, *, unit: str, against: str, wanted: float | None = None) -> Row:
    """A rate of ours against another one measured in the same run."""
    return Row(
        name,
        value=ours,
        unit=unit,
        against=f"{theirs:,.0f} {unit}: {against}",
        ratio=ours / theirs,
        at_least=wanted,
    )


def machine() -> str:
    """What these figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else ""
    return (
        f"{os.cpu_count()} cores {model}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def print_table(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Print the rows as a person reads them; what falls short says so."""
    table = Table(
        title="Lastseat, measured in one run", caption=machine(), title_justify="left", caption_justify="left"
    )
    for name in ("row", "value", "ratio", "wanted", "against"):
        table.add_column(name, justify="left" if name in {"row", "against"} else "right")
    for row in rows:
        bound = f"≥ {row.at_least:g}" if row.at_least is not None else f"≤ {row.at_most:g}" if row.at_most else ""
        style = "bold red" if row.falls_short else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        mark = " (short)" if row.falls_short else ""
        table.add_row(row.name, f"{row.value:,.1f} {row.unit}", ratio, bound + mark, row.against, style=style)
    console = Console(width=None if os.environ.get("COLUMNS") else 150)
    console.print(table)
    for note in notes:
        console.print(note)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write ``[{name, value, unit, against, ratio}]``."""
    content = [
        {
            "name": row.name,
            "value": round(row.value, 3),
            "unit": row.unit,
            "against": row.against,
            "ratio": None if row.ratio is None else round(row.ratio, 3),
        }
        for row in rows
    ]
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
