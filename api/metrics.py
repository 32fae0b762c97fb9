"""How many requests of which route were answered how, and how fast.

Labels are bounded: a route's template stands for its paths. The processes of one installation write into one folder,
named by `PROMETHEUS_MULTIPROC_DIR` before they start, and whichever is asked answers for all of them.
"""

import os
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = Histogram(
    "lastseat_http_request_seconds",
    "Time from a request's headers to the last byte of its answer.",
    ("method", "route", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


@cache
def _of(method: str, route: str, status: int) -> Histogram:
    # Looking a child up by its labels costs more than counting.
    return _SECONDS.labels(method, route, str(status))


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request."""
    _of(method, route, status).observe(seconds)


def exposition() -> bytes:
    """Everything that was counted, as Prometheus reads it."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest(REGISTRY)
    _forget_the_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
    return generate_latest(registry)


def _forget_the_dead(folder: Path) -> None:
    """Drop what ended processes last said of their present, such as what they own; what they counted still counts."""
    for file in folder.glob("gauge_live*_*.db"):
        if not _is_alive(int(file.stem.rpartition("_")[2])):
            file.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it is somebody else's
    return True
