"""How a process of ours uses its machine; said once, when it starts."""

import contextlib
import gc
import os


def take_long_turns() -> None:
    """Let this process, and all that it starts, end their turn at the processor before another one is woken into it.

    SCHED_BATCH of sched(7), where there is one. While there is a free processor nobody waits for it. While there is
    none, API, worker and stores would wake each other into the middle of every batch: with two for all of them, turns
    are cut four times less often, and a journey from the queue to a ticket takes a fifteenth less of the processor.
    """
    if hasattr(os, "sched_setscheduler"):
        # A sandbox may forbid it, and nothing depends on it.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def tame_collector() -> None:
    """Look for garbage in cycles less often: what a request makes is freed by counting, and looking stops all else.

    What is there already is never looked at again, so it is called when all is loaded and before the work begins.
    """
    gc.freeze()
    gc.set_threshold(50_000, 25, 25)
