"""`lastseat`, as an operator runs it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from engine.settings import PREFIX

PROGRAM = Path(sys.executable).with_name("lastseat")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This environment with these settings of Lastseat and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | dict(settings)


def lastseat(*arguments: str, settings: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a verb to its end."""
    return subprocess.run(
        [PROGRAM, *arguments],
        env=environment(settings or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
