"""What tests of several domains of the engine begin with."""

from collections.abc import AsyncIterator

import pytest

from engine.stores.connections import RedisClient
from tests.engine.seat_sales import Hall, open_hall


@pytest.fixture
async def hall(redis_any: RedisClient) -> AsyncIterator[Hall]:
    """A sale of A-1-1 … A-1-6 without a room, on one Valkey and on a cluster; in order at the end of every test."""
    hall = await open_hall(redis_any)
    yield hall
    await hall.check()
