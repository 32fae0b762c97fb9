"""`lastseat worker`: what it does before it works."""

import subprocess
import sys

from tests.cli.program import environment

# Works as the verb does, but looks at its collector where the work would begin.
WORK = """
import gc, os, uvloop
from rich.console import Console
from cli import working
from engine.settings import Settings
def look(work):
    work.close()
    print(gc.get_threshold()[0])
uvloop.run = look
working.work(Settings.from_environment(os.environ), Console(stderr=True))
"""


def test_it_looks_for_garbage_as_rarely_as_the_api(outside: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WORK], env=environment(outside), capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) > 10_000  # 700 unless told otherwise
