"""CPU time by part: a process counts with what it started, also what has ended since."""

import os
import subprocess
import sys

import pytest

from loadtests.cpu import DRIVER, Meter, parent_of

BUSY = f"{sys.executable} -c 'sum(range(5_000_000))'"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_part_is_a_process_and_all_that_it_started() -> None:
    with subprocess.Popen(
        ["sh", "-c", f"read _; {BUSY}; echo done; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert parent_of(process.pid) == os.getpid()
        meter = Meter({"part": process.pid, "gone": 2**22 + 1})
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        spent = meter.spent_s()
        process.stdin.write(b"\n")
    assert spent["part"] > 0.02
    assert spent["gone"] == 0
    assert set(spent) == {"part", "gone", DRIVER}
