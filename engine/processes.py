"""How a process of ours uses its machine; said once, when it starts."""

import gc


def tame_collector() -> None:
    """Look for garbage in cycles less often: what a request makes is freed by counting, and looking stops all else.

    What is there already is never looked at again, so it is called when all is loaded and before the work begins.
    """
    gc.freeze()
    gc.set_threshold(50_000, 25, 25)
