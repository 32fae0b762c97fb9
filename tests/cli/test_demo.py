"""The demo from beginning to end, as real processes on embedded stores."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import processes
from engine.settings import PREFIX
from engine.stores import embedded


@pytest.fixture
def shop(servers_dir: Path) -> Iterator[dict[str, str]]:
    """The environment of a shop with a data folder of its own."""
    data_dir = servers_dir / "demo"
    data_dir.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    yield {
        **kept,
        "LASTSEAT_DATA_DIR": str(data_dir),
        "LASTSEAT_PORT": str(processes.free_port("127.0.0.1")),
        "LASTSEAT_WORKERS": "1",
    }
    embedded.erase(data_dir)


def lastseat(shop: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("lastseat")
    return subprocess.run([program, *arguments], env=shop, capture_output=True, text=True, check=False, timeout=150)


def test_a_crowd_is_served_twice_on_the_same_data_and_every_invariant_holds(shop: dict[str, str]) -> None:
    bought = 0
    for concerts in (1, 2):
        shown = lastseat(shop, "demo", "--once", "--buyers", "80", "--seed", "5")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        told = re.search(r"^(\d+) journeys, (\d+) of 2,000 seats sold to (\d+) people", shown.stdout, re.MULTILINE)
        assert told is not None, shown.stdout
        assert int(told[1]) == 80
        assert int(told[2]) >= int(told[3]) > 40
        verdicts = re.findall(r"^(I\d+) +(\w+) ", shown.stdout, re.MULTILINE)
        assert verdicts == [(name, "true") for name in ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I13")]
        # Nothing that was started is left.
        assert processes.is_free("127.0.0.1", int(shop["LASTSEAT_PORT"]))
        report = json.loads(lastseat(shop, "audit", "--json").stdout)
        assert (report["verdict"], report["sales"]) == ("true", concerts)
        # What the first crowd heard counts for good.
        bought += int(told[3])
        heard = {check["invariant"]: check["looked_at"] for check in report["checks"]}["I2"]
        assert heard == {"confirmations heard": bought}
