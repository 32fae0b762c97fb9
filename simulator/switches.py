"""Faults on demand: what a test or an operator switches on for the next requests."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Operation = Literal["authorise", "confirm", "capture", "cancel", "refund", "query", "search"]

Fault = Literal[
    "slow",  # done and answered, after a delay
    "silent_after",  # done, and never answered
    "silent_before",  # neither
    "error_after",  # done and answered with a 500, which the key does not remember: a repeat hears what was done
    "error_kept",  # done and answered with a 500, which the key remembers
    "error_before",  # not done, answered with a 500 that the key does not remember
    "busy",  # not done, 429
    "refused",  # not done, refused for good
    "stale",  # a search finds nothing yet
]


class Switch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault, for the next `times` requests of an operation, or of any."""

    fault: Fault
    operation: Operation | None = None
    # Our id of the payment, as it stands in the metadata; requests about any other one are spared.
    payment_id: Annotated[str, Meta(max_length=64)] | None = None
    times: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    delay_ms: Annotated[int, Meta(ge=0, le=600_000)] = 30_000

    def fits(self, operation: Operation, payment_id: str | None) -> bool:
        """Whether this is one of the requests it is for."""
        if self.fault == "stale" and operation != "search":
            return False
        return self.operation in (None, operation) and self.payment_id in (None, payment_id)


class Switches:
    """The faults that wait for their requests, oldest first."""

    def __init__(self) -> None:
        self._waiting: list[Switch] = []

    def add(self, switch: Switch) -> None:
        """Switch a fault on."""
        self._waiting.append(switch)

    def clear(self) -> None:
        """Switch all of them off."""
        self._waiting.clear()

    def all(self) -> list[Switch]:
        """What waits, with how often it still will."""
        return list(self._waiting)

    def take(self, operation: Operation, payment_id: str | None) -> Switch | None:
        """The fault for this request, used up by one."""
        for at, switch in enumerate(self._waiting):
            if switch.fits(operation, payment_id):
                if switch.times > 1:
                    self._waiting[at] = msgspec.structs.replace(switch, times=switch.times - 1)
                else:
                    del self._waiting[at]
                return switch
        return None
