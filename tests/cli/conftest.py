"""A shop on one machine, for the verbs that start everything."""

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
    }
    embedded.erase(data_dir)
