"""Whoever we start ends with us, also when we are killed."""

import os
import select
import signal
import subprocess
import sys

# A parent that starts a child which follows it; the child forks once. Each writes its process id and then waits.
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", CHILD, str(os.getpid())], start_new_session=True)
child.wait()
"""
CHILD = """
import os, signal, sys
from cli import lifeline
lifeline.follow(int(sys.argv[1]))
os.fork()
print(os.getpid(), flush=True)
signal.pause()
"""


def test_a_follower_and_what_it_forked_end_when_the_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("CHILD", repr(CHILD))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    followers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(is_alive(follower) for follower in followers)
    parent.kill()
    parent.wait()
    # Their end closes the last copies of the pipe that they inherited.
    ready, _, _ = select.select([parent.stdout], [], [], 10)
    assert ready
    assert parent.stdout.read() == ""
    parent.stdout.close()


def test_a_follower_of_a_parent_that_is_gone_ends_at_once() -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    ended = subprocess.run(
        [sys.executable, "-c", CHILD.replace("os.fork()", ""), gone.stdout.decode().strip()],
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGTERM


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
