"""One sale at several desks, as several processes have it, and scripts made simpler, for the controls."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from redis.exceptions import TimeoutError as RedisTimeoutError
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
    """The same sale through several gates, each with a connection of its own.

    They wait long for an answer. Past its deadline a gate asks again under the same id, and whoever holds then hears
    that the hold is known: on a busy machine that would be counted as one hold too few.
    """
    async with AsyncExitStack() as stack:
        clients = [open_redis(url) for _ in range(CLIENTS)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        yield [replace(sale, gate=Gate(client, deadline_s=30)) for client in clients]


class Deaf:
    """A client that misses the first answer to each call of a script and hears every later one."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._missed: set[tuple[Any, ...]] = set()

    async def execute_command(self, *command: Any) -> Any:
        """Send it, whatever is heard of it."""
        answer = await self._client.execute_command(*command)
        asked = command[2:]  # neither whether nor how the node had to be told the script
        if asked not in self._missed:
            self._missed.add(asked)
            raise RedisTimeoutError("it took too long")
        return answer


def without(folder: Path, path: str, answers: TypeForm[R], rule: str, *, instead: str = "") -> Script[R]:
    """The real script of a verb without one of its rules, or with another one: what it would be if it were simpler."""
    source = (FOLDER / f"{path}.lua").read_text(encoding="utf-8")
    assert source.count(rule) == 1, rule
    naive = folder / f"{path}.lua"
    naive.parent.mkdir(exist_ok=True)
    naive.write_text(source.replace(rule, instead), encoding="utf-8")
    return Script(path, SaleKeys, answers, folder=folder)
