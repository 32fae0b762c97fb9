"""Lists in pages: newest first, and a cursor that says where the next page begins."""

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from api.answers import Document
from api.bodies import whole
from api.clock import EPOCH
from api.problems import invalid

# Where a page begins: a version or a number, or the microsecond and the id of the last record shown.
Number = Annotated[int, Meta(ge=0, lt=2**62)]
Place = tuple[Annotated[int, Meta(ge=0, lt=2**52)], Annotated[str, Meta(pattern=whole("[0-9a-f]{32}"))]]

T = TypeVar("T")


class Page(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    limit: Annotated[int, Meta(ge=1, le=100, description="How many items at most.")] = 20
    cursor: Annotated[str, Meta(max_length=200, description="`next` of the page before.")] = ""

    def after(self, kind: Any) -> Any:
        """The place after which this page begins, or None for the first page."""
        if not self.cursor:
            return None
        try:
            return msgspec.json.decode(base64.b64decode(self.cursor, b"-_", validate=True), type=kind)
        except (ValueError, binascii.Error) as fault:
            raise invalid("cursor", "Expected the `next` of an earlier page") from fault


class Listed(Document, Generic[T], frozen=True):
    """One page of a list; `next` is null on the last one."""

    items: list[T]
    next: str | None


def page_of(items: Sequence[Any], places: Sequence[Any], page: Page) -> "Listed[Any]":
    """Make the page of `page.limit` items, of which one more was read to see whether anything follows."""
    shown = list(items[: page.limit])
    following = len(items) > page.limit
    return Listed(items=shown, next=_cursor(places[page.limit - 1]) if following else None)


def place_of(created_at: datetime, record_id: str) -> Place:
    """The place of a record in a list that is ordered by age."""
    return (created_at - EPOCH) // timedelta(microseconds=1), record_id


def moment_of(place: Place | None) -> tuple[datetime, str] | None:
    """The age and the id that a place stands for."""
    return place and (EPOCH + timedelta(microseconds=place[0]), place[1])


def _cursor(place: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()
