"""The shelf of a waiting list: which of the seats that came back fill whose wish. Pure: no store, no clock."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import msgspec

from engine import ids


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """So many seats, side by side or not, each of a category, of a section, and no dearer than a price.

    `accessible` of them, at least, are to be accessible ones; who needs none gets none.
    """

    quantity: int
    adjacent: bool = True
    category: str | None = None
    section: str | None = None
    price_max: int | None = None
    accessible: int = 0

    @property
    def fingerprint(self) -> str:
        """What tells this wish from another under the same id."""
        return ids.fingerprint("waiting list", *map(str, msgspec.structs.astuple(self)))


class UnitWish(msgspec.Struct, frozen=True, kw_only=True):
    """So many units of a variant; one unit is as good as another."""

    variant_id: str
    quantity: int

    @property
    def fingerprint(self) -> str:
        """What tells this wish from another under the same id."""
        return ids.fingerprint("waiting list", self.variant_id, str(self.quantity))


def wish_of(row: Mapping[str, Any]) -> Wish | UnitWish:
    """Read what a row of the list waits for."""
    kind = Wish if row["variant_id"] is None else UnitWish
    return kind(**{name: row[name] for name in kind.__struct_fields__})


class FreedSeat(msgspec.Struct, frozen=True, kw_only=True):
    """A seat, or a place in an area, that the waiting list has."""

    seat_no: str
    section: str
    row_name: str
    number: int
    category: str
    price: int
    accessible: bool = False
    area: str | None = None


def accepts(wish: Wish, seat: FreedSeat) -> bool:
    """Whether this seat may be one of those wished for."""
    return (
        (wish.category is None or wish.category == seat.category)
        and (wish.section is None or wish.section == seat.section)
        and (wish.price_max is None or seat.price <= wish.price_max)
        and (wish.accessible > 0 or not seat.accessible)
    )


def fill(wish: Wish, shelf: Iterable[FreedSeat]) -> list[str] | None:
    """Seats of the shelf that fill a wish whole, None when there are not enough.

    Side by side they are of the shortest run that is long enough, at its beginning, so that longer ones are left for
    larger groups; otherwise of the longest runs, so that they are in few rows.
    """
    runs = _runs([seat for seat in shelf if accepts(wish, seat)])
    if wish.adjacent:
        for run in sorted(runs, key=len):
            for at in range(len(run) - wish.quantity + 1):
                picked = run[at : at + wish.quantity]
                if sum(seat.accessible for seat in picked) >= wish.accessible:
                    return [seat.seat_no for seat in picked]
        return None
    in_runs = [seat for run in sorted(runs, key=len, reverse=True) for seat in run]
    special = [seat for seat in in_runs if seat.accessible][: wish.accessible]
    others = [seat for seat in in_runs if seat not in special]
    picked = special + others[: wish.quantity - len(special)]
    is_whole = len(special) == wish.accessible and len(picked) == wish.quantity
    return [seat.seat_no for seat in picked] if is_whole else None


def _runs(shelf: Iterable[FreedSeat]) -> list[list[FreedSeat]]:
    """Seats whose numbers follow each other in a row, and all places of an area, by section, row and number."""
    runs: list[list[FreedSeat]] = []
    ordered = sorted(shelf, key=lambda seat: (seat.section, seat.row_name, seat.number))
    for _row, in_row in groupby(ordered, key=lambda seat: (seat.section, seat.row_name)):
        last: FreedSeat | None = None
        for seat in in_row:
            if last is not None and (seat.area is not None or seat.number == last.number + 1):
                runs[-1].append(seat)
            else:
                runs.append([seat])
            last = seat
    return runs
