"""What the handlers of one process share is kept fresh, whatever happens to one pass of it."""

import asyncio

import pytest

from api import house
from engine.stores.connections import StoreUnavailable


async def test_no_fault_ends_what_keeps_a_process_fresh(caplog: pytest.LogCaptureFixture) -> None:
    faults = iter([StoreUnavailable("away"), RuntimeError("a broken sale")])
    refreshed = asyncio.Event()

    async def refresh() -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        refreshed.set()

    refreshing = asyncio.create_task(house._every(0.0, refresh))
    async with asyncio.timeout(5):
        await refreshed.wait()
    refreshing.cancel()
    assert "not refreshed: StoreUnavailable: away" in caplog.text
    assert "RuntimeError: a broken sale" in caplog.text
