"""What each key was answered, for a day (docs.stripe.com/api/idempotent_requests)."""

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from simulator.errors import Refused

REMEMBERED_S = 24 * 3600
KEY_MAX = 255


class Remembered(msgspec.Struct, frozen=True):
    """The first request of a key, and its answer; None while it still runs."""

    asked: bytes
    at: float
    answer: tuple[int, bytes] | None


class Keys:
    """The memory of keys. Whatever began to be carried out is remembered, a refusal as well as an error."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: OrderedDict[str, Remembered] = OrderedDict()

    def begin(self, key: str, asked: bytes) -> tuple[int, bytes] | None:
        """Answer what this key was answered, or None and let the request run; `asked` is a digest of all it asks.

        Raises Refused for a key that came with another request, and for one whose first request still runs.
        """
        if not 0 < len(key) <= KEY_MAX:
            raise Refused(400, f"An Idempotency-Key has 1 to {KEY_MAX} characters.")
        self._forget()
        known = self._known.get(key)
        if known is None:
            self._known[key] = Remembered(asked, self._now(), None)
            return None
        if known.asked != asked:
            raise Refused(
                400,
                "Keys for idempotent requests can only be used with the same parameters they were first used with.",
                kind="idempotency_error",
            )
        if known.answer is None:
            raise Refused(409, "A request with this key is running.", code="idempotency_key_in_use")
        return known.answer

    def end(self, key: str, answer: tuple[int, bytes] | None) -> None:
        """Remember the answer; None forgets the key, as if it had never come."""
        if answer is None:
            del self._known[key]
        else:
            self._known[key] = msgspec.structs.replace(self._known[key], answer=answer)

    def _forget(self) -> None:
        oldest = self._now() - REMEMBERED_S
        while self._known:
            key, first = next(iter(self._known.items()))
            if first.at > oldest or first.answer is None:
                return
            del self._known[key]
