"""How a process uses its machine is said at its start, and holds for all that it starts."""

import gc
import os
import subprocess
import sys

import pytest

from engine import processes

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such turns")

# A test before this one may have run a verb in its own process, which takes long turns since.
AS_USUAL = "import os, subprocess, sys; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)); "
SAY = "print(os.sched_getscheduler(0), flush=True); "
SAY_IN_A_CHILD = f"subprocess.run([sys.executable, '-c', {'import os; ' + SAY!r}]); "


def in_a_process(code: str) -> list[int]:
    """What a Python process of its own prints, as numbers."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return [int(line) for line in ran.stdout.split()]


def test_long_turns_are_taken_by_a_process_and_by_all_that_it_starts() -> None:
    take = "from engine.processes import take_long_turns; take_long_turns(); "
    assert in_a_process(AS_USUAL + SAY + SAY_IN_A_CHILD) == [os.SCHED_OTHER] * 2
    assert in_a_process(AS_USUAL + take + SAY + SAY_IN_A_CHILD) == [os.SCHED_BATCH] * 2


def test_every_verb_takes_long_turns() -> None:
    run = (
        "from click.testing import CliRunner; from cli.main import main; "
        "CliRunner().invoke(main, ['openapi', '--help']); "
    )
    assert in_a_process(AS_USUAL + run + SAY) == [os.SCHED_BATCH]


def test_a_sandbox_that_forbids_long_turns_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    processes.take_long_turns()


def test_the_collector_leaves_alone_what_was_there_before() -> None:
    code = "import gc; from engine.processes import tame_collector; tame_collector(); print(gc.get_freeze_count())"
    assert in_a_process(code)[0] > gc.get_threshold()[0]
