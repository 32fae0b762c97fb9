"""`lastseat statistics recompute`: days are counted anew, and a terminal is shown what was wrong with them."""

from collections.abc import Sequence
from datetime import date

import asyncpg
from rich.console import Console

from engine import statistics
from engine.settings import Settings
from engine.statistics import Difference
from engine.stores.connections import StoreUnavailable, open_stores


async def recompute(settings: Settings, first: date, last: date) -> list[Difference]:
    """Count these days anew on the stores that the settings name; answers what was wrong and is right now."""
    async with open_stores(settings) as stores:
        try:
            return await statistics.recompute(stores.postgres, first, last)
        except asyncpg.UndefinedTableError as fault:
            raise StoreUnavailable("This database has no schema yet: start `lastseat up` once.") from fault


def show(found: Sequence[Difference], console: Console) -> None:
    """Tell each difference in a line, or that there is none."""
    for difference in found:
        console.print(str(difference), highlight=False, soft_wrap=True)
    console.print("Put right." if found else "Nothing differs: nothing was changed.")
