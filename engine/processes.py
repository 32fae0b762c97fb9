"""How a process of ours uses its machine; said once, when it starts."""

import gc
import os
from contextlib import suppress


def tame_collector() -> None:
    """Look for garbage in cycles less often: what a request makes is freed by counting, and looking stops all else.

    What is there already is never looked at again, so it is called when all is loaded and before the work begins.
    """
    gc.freeze()
    gc.set_threshold(50_000, 25, 25)


def take_turns() -> None:
    """Be woken only when another process has ended its turn, and not into the middle of it; children inherit this.

    API, worker and stores wake each other all the time. On processors that are full, each turn that is cut short for
    the next costs both what they had in the caches: a whole journey is 8 percent dearer (decision 0025). A process that
    somebody gave another class keeps it, and where there is none of this (only Linux has it, some containers forbid
    it) all stays as it was.
    """
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
