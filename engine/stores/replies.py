"""What a script answers, as types: one word travels from the class to Lua, JSON and the problem's address.

The engine *returns* what may happen and *raises* what must not. ``SeatTaken`` is ``"seat_taken"`` in Lua, the
``outcome`` in JSON and ``/problems/seat_taken``; the first sentence of its docstring is the problem's title.
"""

import re
from typing import ClassVar

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """One answer of a script: a word, and fields in the order of the script's RETURNS."""


class Refusal(Reply, frozen=True):
    """An answer that says no: it carries what the buyer needs to act, never a sentence."""

    # Whether the same request may succeed later without anybody changing it.
    temporary: ClassVar[bool] = False


class SaleUnknown(Refusal, frozen=True):
    """The store does not know this sale."""

    temporary: ClassVar[bool] = True


class StaleEpoch(Refusal, frozen=True):
    """The store knows this sale by another epoch."""

    temporary: ClassVar[bool] = True
    epoch: int


class SaleRebuilding(Refusal, frozen=True):
    """The sale is being written anew."""

    temporary: ClassVar[bool] = True


# What every verb of an open sale may answer instead of its own words.
Unavailable = SaleUnknown | StaleEpoch | SaleRebuilding


def word_of(kind: type[Reply]) -> str:
    """Return the word of a reply class: its name in snake_case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()


def title_of(kind: type[Reply]) -> str:
    """Return the first sentence of the class's docstring, without its full stop."""
    doc = (kind.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(doc.split()).split(". ")[0].rstrip(".")
