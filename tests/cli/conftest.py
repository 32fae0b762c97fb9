"""A shop for the verbs that start everything, and the settings of one on outside stores for those that look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import processes
from engine.stores import embedded


@pytest.fixture
def shop(servers_dir: Path) -> Iterator[dict[str, str]]:
    """The settings of a shop with a data folder of its own."""
    data_dir = servers_dir / "shop"
    data_dir.mkdir()
    yield {
        "LASTSEAT_DATA_DIR": str(data_dir),
        "LASTSEAT_PORT": str(processes.free_port("127.0.0.1")),
        "LASTSEAT_WORKERS": "1",
        "TMPDIR": str(data_dir),  # what a killed process leaves there goes with the rest
    }
    embedded.erase(data_dir)


@pytest.fixture
def outside(redis_url: str, postgres_url: str, tmp_path: Path) -> dict[str, str]:
    """The settings of a shop on outside stores, empty and migrated, and in a folder where no demo left its history."""
    return {
        "LASTSEAT_REDIS_URL": redis_url,
        "LASTSEAT_POSTGRES_URL": postgres_url,
        "LASTSEAT_DATA_DIR": str(tmp_path / "data"),
    }
