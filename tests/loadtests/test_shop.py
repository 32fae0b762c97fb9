"""The shop of a load run."""

import pytest

from loadtests.shop import shop


async def test_no_setting_around_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LASTSEAT_PROT", "8000")  # which no process would start with
    async with shop() as running:
        assert (await running.client.request("GET", "/health/ready")).status == 200
