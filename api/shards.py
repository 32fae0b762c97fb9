"""Shards: which sale an id of a hold belongs to, by how the id begins."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from api.operations import Request
from engine.refusals import NotFound
from engine.sales import Sale

R = TypeVar("R")


async def in_shard(request: Request, kind: str, hold_id: str, ask: Callable[[Sale], Awaitable[R]]) -> R | NotFound:
    """Ask the sale of this kind that the id belongs to: nearly always that is one."""
    for sale in await request.house.book.find_by_prefix(hold_id):
        if sale.kind == kind:
            answered = await ask(sale)
            if not isinstance(answered, NotFound):
                return answered
    return NotFound()
