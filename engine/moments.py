"""Moments: what a script told in milliseconds as a time, and where lists of the newest begin."""

from datetime import UTC, datetime
from typing import Final

LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)
LAST_ID: Final = "f" * 32


def moment(ms: int) -> datetime:
    """A moment that a script told in milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC)
