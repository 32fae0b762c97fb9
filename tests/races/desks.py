"""One sale at several desks, as several processes have it, and scripts made simpler, for the controls."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from typing_extensions import TypeForm

from engine.stores.connections import open_redis
from engine.stores.keys import SaleKeys
from engine.stores.scripts import FOLDER, Gate, Script
from tests.engine.stored_sales import StoredSale

R = TypeVar("R")
S = TypeVar("S", bound=StoredSale)

CLIENTS = 4


@asynccontextmanager
async def open_desks(sale: S, url: str) -> AsyncIterator[list[S]]:
    """The same sale through several gates, each with a connection of its own."""
    async with AsyncExitStack() as stack:
        clients = [open_redis(url) for _ in range(CLIENTS)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        yield [replace(sale, gate=Gate(client)) for client in clients]


def without(folder: Path, path: str, answers: TypeForm[R], rule: str, *, instead: str = "") -> Script[R]:
    """The real script of a verb without one of its rules, or with another one: what it would be if it were simpler."""
    source = (FOLDER / f"{path}.lua").read_text(encoding="utf-8")
    assert source.count(rule) == 1, rule
    naive = folder / f"{path}.lua"
    naive.parent.mkdir(exist_ok=True)
    naive.write_text(source.replace(rule, instead), encoding="utf-8")
    return Script(path, SaleKeys, answers, folder=folder)
