"""The Makefile takes the Python that does the most."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chosen(folder: Path, pythons: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """What `make python` says where these commands are found before those of this machine."""
    for name, script in pythons.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", "--no-print-directory", "python", *arguments],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pythons", "name"),
    [
        pytest.param({"python3": "echo 50", "python3.12": "echo 40"}, "python3.12", id="the quickest"),
        pytest.param({"python3": "echo 50", "python3.12": "echo 46"}, "python3", id="the first by less than a tenth"),
        pytest.param({"python3": "exit 1", "python3.12": "echo 46"}, "python3.12", id="none that is too old"),
    ],
)
def test_the_quickest_python_is_taken(tmp_path: Path, pythons: dict[str, str], name: str) -> None:
    assert chosen(tmp_path, pythons).stdout.strip() == name


def test_a_python_that_is_named_is_taken(tmp_path: Path) -> None:
    ran = chosen(tmp_path, {"python3": "echo 40", "slow": "echo 90"}, f"PYTHON={tmp_path / 'slow'}")
    assert ran.stdout.strip() == str(tmp_path / "slow")


def test_where_there_is_none_it_says_what_to_install(tmp_path: Path) -> None:
    ran = chosen(tmp_path, {"old": "exit 1"}, "PYTHON=old")
    assert ran.returncode != 0
    assert "Lastseat needs Python 3.11 or newer" in ran.stderr


def test_the_measure_is_one_that_a_python_of_today_can_take(tmp_path: Path) -> None:
    ran = chosen(tmp_path, {"mine": f'exec {sys.executable} "$@"'}, "PYTHON=mine")
    assert ran.stdout.strip() == "mine", ran.stderr
