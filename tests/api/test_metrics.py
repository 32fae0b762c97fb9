"""One answer for all processes that count into one folder, also for those that have ended."""

import os
import subprocess
import sys
from pathlib import Path

WORKER = """
from workers import metrics
metrics.ENTRIES.labels("outbox").inc(3)
metrics.OWNED.set(2)
print("counted", flush=True)
input()
"""
API = """
from api import metrics
print(metrics.exposition().decode())
"""


def test_what_a_worker_counted_outlives_it_and_what_it_was_doing_does_not(tmp_path: Path) -> None:
    environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def read() -> str:
        return subprocess.run(
            [sys.executable, "-c", API], env=environ, capture_output=True, text=True, check=True
        ).stdout

    with subprocess.Popen(
        [sys.executable, "-c", WORKER], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "counted\n"
        told = read()
        assert 'lastseat_entries_applied_total{stream="outbox"} 3.0' in told
        assert "lastseat_sales_owned 2.0" in told
        worker.kill()
    told = read()
    assert 'lastseat_entries_applied_total{stream="outbox"} 3.0' in told
    assert "lastseat_sales_owned" not in told
