"""What we start ends with us: servers when we are told to stop, processes also when we are killed and cannot tell."""

import os
import signal
import threading
import time
from types import FrameType

LOOK_EVERY_S = 0.25
END_WITHIN_S = 20.0


def stop_as_by_ctrl_c() -> None:
    """Let SIGTERM end us as Ctrl-C does: everything that we started is stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def follow(parent: int) -> None:
    """End this process, and whatever it forks from now on, when its parent is gone.

    A killed parent leaves its children to another one, which is how they notice; no signal and no pipe has to reach
    them for that. They are asked to end as by an operator, and end after a while if they do not.
    """
    _watch(parent)
    # The server forks its processes, and they too outlive a parent that is killed.
    here = os.getpid()
    os.register_at_fork(after_in_child=lambda: _watch(here))


def _watch(parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), name="lifeline", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_WITHIN_S)
    os.kill(os.getpid(), signal.SIGKILL)
