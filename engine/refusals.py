"""Refusals that several domains answer with: one class each, so that one word means one thing everywhere."""

from typing import ClassVar

from engine.stores.replies import Refusal


class NotFound(Refusal, frozen=True):
    """There is no such thing here, or it is not yours."""


class IdempotencyKeyReused(Refusal, frozen=True):
    """This key was used for another request."""


class SlowDown(Refusal, frozen=True):
    """Too many requests of this kind."""

    temporary: ClassVar[bool] = True
    retry_after_ms: int


class Busy(Refusal, frozen=True):
    """The shop has more to do than it can finish just now."""

    temporary: ClassVar[bool] = True
    retry_after_ms: int


class LimitReached(Refusal, frozen=True):
    """One may have no more of this."""

    limit: int
    have: int


class SaleClosed(Refusal, frozen=True):
    """The sale is over."""
