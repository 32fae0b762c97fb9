"""CPU time by part: what a journey costs each of the processes it passes through.

A rate tells how busy the machine was, too; CPU time hardly does, so this is what two versions are compared by.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
DRIVER = "driver"


class Meter:
    """CPU time since it was made, of the trees of processes that are named by their roots, and of this process."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        self._roots = roots
        self._before = self._read()

    def spent_s(self) -> dict[str, float]:
        """Seconds of CPU by part; empty where the machine does not tell them (only Linux has /proc)."""
        now = self._read()
        return {part: now[part] - before for part, before in self._before.items()}

    def _read(self) -> dict[str, float]:
        if not (_PROC / "self/stat").exists():
            return {}
        return {**{part: _tree_s(root) for part, root in self._roots.items()}, DRIVER: time.process_time()}


def parent_of(pid: int) -> int:
    """The process that started this one."""
    return int(_fields(pid)[1])


def _tree_s(root: int) -> float:
    """What a process, those below it and those that ended below it have used."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                children.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
    ticks, left = 0, [root]
    while left:
        pid = left.pop()
        left += children.get(pid, ())
        try:
            # utime, stime, and both once more for children that have ended and been waited for.
            ticks += sum(map(int, _fields(pid)[11:15]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third, the state, on: a name before them may hold anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
