"""The time of the stores as a process knows it, and how times are written in answers.

The clock of this machine decides nothing: a process asks Postgres what time it is, about once a second, and counts on
from there with a clock that nobody can set.
"""

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, overload

from msgspec import Meta

Time = Annotated[
    str,
    Meta(
        description="RFC 3339 in UTC with milliseconds.",
        examples=["2026-11-21T19:00:00.000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """What time the stores have; a process that lost them counts on."""

    def __init__(self, now: datetime) -> None:
        self.set(now)

    def set(self, now: datetime) -> None:
        """Take over what a store has just said."""
        self._ahead_ms = in_ms(now) - time.monotonic_ns() // 1_000_000

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.monotonic_ns() // 1_000_000 + self._ahead_ms


def in_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of a moment, without the rounding of floating point."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


@overload
def rfc3339(moment: datetime | int) -> str: ...
@overload
def rfc3339(moment: None) -> None: ...
def rfc3339(moment: datetime | int | None) -> str | None:
    """Write a moment, or milliseconds since 1970, as `2026-11-21T19:00:00.000Z`; None stays None."""
    if moment is None:
        return None
    at_ms = moment if isinstance(moment, int) else in_ms(moment)
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


# Answers of one moment share their seconds, and formatting a date costs more than all the rest of it.
@lru_cache(maxsize=1024)
def _second(at_s: int) -> str:
    return (EPOCH + timedelta(seconds=at_s)).isoformat()[:19]
