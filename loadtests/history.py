"""What clients heard, kept in a file line by line, so that the audit can hold the house to its word.

A line is on its way to the disk before its buyer does anything else, and survives the death of the process that
wrote it: "confirmed" was heard, so it must be true for ever.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta


class HistoryFault(ValueError):
    """A line of the file is nothing that was heard."""


class Heard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer that a client took for true: seats or goods are held, or bought, a ticket was let in, a coupon issued.

    A door says who scanned (`user_id`) and which seat; its `reservation_id` may be empty and its amount 0. Of goods
    `order_id` and `lines` say what was bought, of a coupon `sale_id` is the source.
    """

    event: Literal["held", "confirmed", "redeemed", "issued"]
    sale_id: str
    user_id: str
    key: str
    """The `Idempotency-Key` of the request that was answered: one key, one effect."""
    reservation_id: str
    seats: tuple[str, ...]
    amount: int
    payment_id: str | None = None
    ticket_no: int | None = None
    user_coupon_id: str | None = None
    order_id: str | None = None
    lines: tuple[Annotated[str, Meta(pattern="^[0-9a-f]{32}:[0-9]{1,9}$")], ...] = ()
    """Of each variant `variant_id:quantity`."""


class History:
    """A file of what was heard; one process at a time adds to it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._encode = msgspec.json.Encoder().encode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def record(self, heard: Heard) -> None:
        """Append one line, in one write."""
        os.write(self._file, self._encode(heard) + b"\n")


def read(path: Path) -> Iterator[Heard]:
    """Every whole line, in the order written; a line that was being written when its process died was not heard.

    Raises HistoryFault for a line that is no answer.
    """
    decoder = msgspec.json.Decoder(Heard)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as fault:
                raise HistoryFault(f"{path}, line {number}: {fault}") from fault


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left unfinished at the end, or the next line would be glued to it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
