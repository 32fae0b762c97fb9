"""How a process uses its machine is said at its start."""

import subprocess
import sys


def test_the_collector_leaves_alone_what_was_there_before() -> None:
    code = (
        "import gc; from engine.processes import tame_collector; "
        "tame_collector(); print(gc.get_freeze_count(), gc.get_threshold()[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    frozen, threshold = map(int, ran.stdout.split())
    assert frozen > 1_000
    assert threshold > 10_000  # 700 unless told otherwise
