"""How a process uses its machine is said at its start."""

import os
import subprocess
import sys

import pytest

from engine.processes import take_turns

linux_only = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has classes of turns")


def test_the_collector_leaves_alone_what_was_there_before() -> None:
    code = (
        "import gc; from engine.processes import tame_collector; "
        "tame_collector(); print(gc.get_freeze_count(), gc.get_threshold()[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    frozen, threshold = map(int, ran.stdout.split())
    assert frozen > 1_000
    assert threshold > 10_000  # 700 unless told otherwise


@linux_only
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("SCHED_OTHER", "SCHED_BATCH", id="the normal class is left"),
        pytest.param("SCHED_IDLE", "SCHED_IDLE", id="one that somebody chose is kept"),
    ],
)
def test_a_process_and_those_it_starts_wait_for_the_turns_of_others(given: str, kept: str) -> None:
    code = (
        "import os, subprocess, sys; from engine.processes import take_turns; "
        f"os.sched_setscheduler(0, os.{given}, os.sched_param(0)); take_turns(); "
        "subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0))'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(ran.stdout) == getattr(os, kept)


@linux_only
def test_where_a_container_forbids_it_a_process_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    before = os.sched_getscheduler(0)
    for name in ("sched_getscheduler", "sched_setscheduler"):
        monkeypatch.setattr(os, name, forbidden)
        take_turns()
    monkeypatch.undo()
    assert os.sched_getscheduler(0) == before
