"""What a schedule offers, as an operator describes it: areas, tiers and blocks beside the seats, checked against them.

Each thing that is wrong is named by its path, and a seat of a table by its line; nothing is made unless all is right.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.bodies import misfit_of, whole
from api.operations import Body
from api.problems import Misfit, invalid
from api.seat_tables import Category, Listed, Part, Price
from api.tables import MISFITS_MAX, refuse
from engine.catalogue import PLACES_ROW, SEATS_MAX, VALUE_MAX, Area, Block, Offering, Seat, Tier

AREAS_MAX = 100
TIERS_MAX = 200
BLOCKS_MAX = 100

SEAT_NO_MAX = 20

Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339, with its distance from UTC.")]
# What separates records and lists elsewhere may stand in no name.
Name = Annotated[
    str,
    Meta(
        pattern=whole(r"[^|,=\x00-\x20\x7f]([^|,=\x00-\x1f\x7f]*[^|,=\x00-\x20\x7f])?"),
        max_length=50,
        description="Without | , = and without a space at either end.",
    ),
]
AccessCode = Annotated[
    str,
    Meta(
        pattern=whole(r"[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?"),
        max_length=100,
        description="Without a space at either end; upper and lower case are two.",
    ),
]
Cap = Annotated[int, Meta(ge=0, le=SEATS_MAX)]

T = TypeVar("T")


class NewArea(Body, frozen=True):
    """So many places without a number; of the numbered seats, no section may have its name."""

    area: Part
    category: Category
    price: Price
    quantity: Annotated[int, Meta(ge=1, le=SEATS_MAX)]


class NewTier(Body, frozen=True):
    """Another price for seats of a category; at most `max` of it may be held and sold at once."""

    tier: Name
    category: Category
    price: Price
    max: Cap | None = None


class NewBlock(Body, frozen=True):
    """Seats kept from the public: these, or all of a section or an area; for a code or for a channel, within times."""

    block: Name
    seats: Annotated[list[str], Meta(min_length=1, max_length=SEATS_MAX)] | UnsetType = UNSET
    section: Part | UnsetType = UNSET
    access_code: AccessCode | UnsetType = UNSET
    channel: Name | UnsetType = UNSET
    opens_at: Moment | UnsetType | None = UNSET
    closes_at: Moment | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        """Refuse a block that says too little or too much."""
        if (self.seats is UNSET) == (self.section is UNSET):
            raise ValueError("Expected either seats or section")
        if (self.access_code is UNSET) == (self.channel is UNSET):
            raise ValueError("Expected either access_code or channel")
        check_moments(self)


class EditedTier(Body, frozen=True):
    """The cap of a tier from now on; null is none."""

    tier: Name
    category: Category
    max: Cap | None


class EditedBlock(Body, frozen=True):
    """For whom and when a block is kept from now on; what is left out stays."""

    block: Name
    access_code: AccessCode | UnsetType = UNSET
    channel: Name | UnsetType = UNSET
    opens_at: Moment | UnsetType | None = UNSET
    closes_at: Moment | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        """Refuse a block for a code and for a channel."""
        if self.access_code is not UNSET and self.channel is not UNSET:
            raise ValueError("Expected either access_code or channel")
        check_moments(self)


Areas = Annotated[tuple[NewArea, ...], Meta(max_length=AREAS_MAX)]
Tiers = Annotated[tuple[NewTier, ...], Meta(max_length=TIERS_MAX)]
Blocks = Annotated[tuple[NewBlock, ...], Meta(max_length=BLOCKS_MAX)]
EditedTiers = Annotated[tuple[EditedTier, ...], Meta(max_length=TIERS_MAX)]
EditedBlocks = Annotated[tuple[EditedBlock, ...], Meta(max_length=BLOCKS_MAX)]


def check_moments(body: Body) -> None:
    """Raise ValueError for a moment that no calendar of the stores has, and for an end before its beginning."""
    for name in ("start_at", "opens_at", "closes_at"):
        moment = getattr(body, name, None)
        if isinstance(moment, datetime) and not 2000 <= moment.year < 9000:
            raise ValueError(f"Expected {name} in the years 2000 to 8999")
    opens_at, closes_at = getattr(body, "opens_at", None), getattr(body, "closes_at", None)
    if isinstance(opens_at, datetime) and isinstance(closes_at, datetime) and closes_at <= opens_at:
        raise ValueError("Expected closes_at after opens_at")


def read_text(name: str, text: str | UnsetType, kind: type[T]) -> T:
    """A list that stands as JSON in a field of the query; raises Refused."""
    try:
        return msgspec.json.decode("[]" if text is UNSET else text, type=kind)
    except msgspec.ValidationError as fault:
        path, message = misfit_of(str(fault))
        raise invalid(f"{name}{path}", message) from fault
    except (msgspec.DecodeError, RecursionError) as fault:
        raise invalid(name, f"No JSON: {fault}") from fault


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """All that a new schedule puts on sale, the best seats first."""

    seats: Sequence[Seat]
    areas: Sequence[Area]
    tiers: Sequence[Tier]
    blocks: Sequence[Block]


# A new offer ----------------------------------------------------------------------------------------------------------


def offer_of(
    listed: Listed, *, areas: Sequence[NewArea], tiers: Sequence[NewTier], blocks: Sequence[NewBlock]
) -> Offer:
    """All that a new schedule offers; raises Refused with each thing that does not fit to the rest."""
    if not listed.seats and not areas:
        refuse([Misfit("seats", "Expected at least one seat or area")] if listed.lines is None else _nothing_listed())
    wrong = [*_wrong_areas(areas, listed), *_wrong_tiers(tiers, areas, listed), *_oversized(listed, areas, tiers)]
    seat_blocks, area_blocks, in_conflict = _place(blocks, areas, listed)
    refuse([*wrong, *in_conflict])
    return Offer(
        seats=[
            msgspec.structs.replace(seat, block=seat_blocks[index]) if index in seat_blocks else seat
            for index, seat in enumerate(listed.seats)
        ],
        areas=[Area(**msgspec.structs.asdict(area), block=area_blocks.get(index)) for index, area in enumerate(areas)],
        tiers=[Tier(**msgspec.structs.asdict(tier)) for tier in tiers],
        blocks=[
            Block(
                block=block.block,
                access_code=block.access_code or None,
                channel=block.channel or None,
                opens_at=block.opens_at or None,
                closes_at=block.closes_at or None,
            )
            for block in blocks
        ],
    )


def _nothing_listed() -> list[Misfit]:
    return [Misfit("line 1", "Expected at least one seat or area", line=1, column="")]


def _wrong_areas(areas: Sequence[NewArea], listed: Listed) -> list[Misfit]:
    wrong = []
    named: dict[str, int] = {}
    sections = _first(seat.section for seat in listed.seats)
    for index, area in enumerate(areas):
        path = f"areas[{index}].area"
        before = named.setdefault(area.area, index)
        last = f"{area.area}-{PLACES_ROW}-{area.quantity}"
        if before != index:
            wrong.append(Misfit(path, f"{area.area} is listed twice, first as areas[{before}]"))
        elif area.area in sections:
            where = listed.where(sections[area.area])
            wrong.append(Misfit(path, f"{area.area} is the section of {where}: an area needs a name of its own"))
        elif len(last) > SEAT_NO_MAX:
            wrong.append(Misfit(path, f"Expected a shorter name: {last} is longer than {SEAT_NO_MAX} characters"))
    return wrong


def _wrong_tiers(tiers: Sequence[NewTier], areas: Sequence[NewArea], listed: Listed) -> list[Misfit]:
    wrong = []
    named: dict[tuple[str, str], int] = {}
    categories = {seat.category for seat in listed.seats} | {area.category for area in areas}
    for index, tier in enumerate(tiers):
        before = named.setdefault((tier.tier, tier.category), index)
        if before != index:
            wrong.append(Misfit(f"tiers[{index}]", f"It is listed twice, first as tiers[{before}]"))
        elif tier.category not in categories:
            wrong.append(Misfit(f"tiers[{index}].category", f"No seat and no area is of category {tier.category}"))
    return wrong


def _oversized(listed: Listed, areas: Sequence[NewArea], tiers: Sequence[NewTier]) -> list[Misfit]:
    """What is too much in sum, though each part of it is not."""
    total = len(listed.seats) + sum(area.quantity for area in areas)
    if total > SEATS_MAX:
        message = f"Expected at most {SEATS_MAX} seats and places together"
        return [Misfit("areas" if areas else "seats", message)]
    highest: dict[str, int] = {}
    for tier in tiers:
        highest[tier.category] = max(tier.price, highest.get(tier.category, 0))
    value = sum(max(seat.price, highest.get(seat.category, 0)) for seat in listed.seats)
    value += sum(area.quantity * max(area.price, highest.get(area.category, 0)) for area in areas)
    if value > VALUE_MAX:
        return [Misfit("", f"Expected prices that add up to at most {VALUE_MAX}, got {value}")]
    return []


def _place(
    blocks: Sequence[NewBlock], areas: Sequence[NewArea], listed: Listed
) -> tuple[dict[int, str], dict[int, str], list[Misfit]]:
    """The block of each seat and of each area that is in one, and what is wrong with the blocks."""
    wrong: list[Misfit] = []
    named: dict[str, int] = {}
    seat_blocks: dict[int, str] = {}
    area_blocks: dict[int, str] = {}
    in_section: dict[str, list[int]] = {}
    for index, seat in enumerate(listed.seats):
        in_section.setdefault(seat.section, []).append(index)
    index_of = {seat.seat_no: index for index, seat in enumerate(listed.seats)} if blocks else {}
    area_of = {area.area: index for index, area in enumerate(areas)}

    def put(taken: dict[int, str], index: int, block: str, path: str, what: str) -> None:
        other = taken.setdefault(index, block)
        if other != block:
            wrong.append(Misfit(path, f"{what} is in block {other} already"))

    for at, block in enumerate(blocks):
        path = f"blocks[{at}]"
        before = named.setdefault(block.block, at)
        if before != at:
            wrong.append(Misfit(f"{path}.block", f"{block.block} is listed twice, first as blocks[{before}]"))
            continue
        if block.section is not UNSET:
            if block.section not in in_section and block.section not in area_of:
                wrong.append(Misfit(f"{path}.section", f"There is no section or area {block.section}"))
            for index in in_section.get(block.section, ()):
                put(seat_blocks, index, block.block, f"{path}.section", listed.seats[index].seat_no)
            if block.section in area_of:
                put(area_blocks, area_of[block.section], block.block, f"{path}.section", block.section)
        elif block.seats is not UNSET:
            seen = _first(block.seats)
            for place, seat_no in enumerate(block.seats):
                if seat_no not in index_of:
                    wrong.append(Misfit(f"{path}.seats[{place}]", f"There is no seat {seat_no}"))
                elif seen[seat_no] != place:
                    wrong.append(Misfit(f"{path}.seats[{place}]", f"{seat_no} is listed twice"))
                else:
                    put(seat_blocks, index_of[seat_no], block.block, f"{path}.seats[{place}]", seat_no)
        if len(wrong) >= MISFITS_MAX:
            break
    return seat_blocks, area_blocks, wrong


def _first(names: Any) -> dict[str, int]:
    """Each name with the place where it stands first."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)
    return first


# An edited offer ------------------------------------------------------------------------------------------------------


def edited_tiers(edits: Sequence[EditedTier], offering: Offering) -> list[Tier]:
    """These tiers with their new caps; raises Refused where one does not exist or is named twice."""
    known = {(tier.tier, tier.category): tier for tier in offering.tiers}
    refuse(_unknown("tiers", [(edit.tier, edit.category) for edit in edits], known))
    return [msgspec.structs.replace(known[edit.tier, edit.category], max=edit.max) for edit in edits]


def edited_blocks(edits: Sequence[EditedBlock], offering: Offering) -> list[Block]:
    """These blocks as they will be; raises Refused where one does not exist, is named twice or ends before it opens."""
    known = {block.block: block for block in offering.blocks}
    refuse(_unknown("blocks", [edit.block for edit in edits], known))
    edited = []
    wrong = []
    for index, edit in enumerate(edits):
        changes = {name: value for name, value in msgspec.structs.asdict(edit).items() if value is not UNSET}
        # A block is for a code or for a channel: the one that is given ends the other.
        if "access_code" in changes:
            changes["channel"] = None
        elif "channel" in changes:
            changes["access_code"] = None
        block = msgspec.structs.replace(known[edit.block], **changes)
        if block.opens_at and block.closes_at and block.closes_at <= block.opens_at:
            wrong.append(Misfit(f"blocks[{index}].closes_at", "Expected it after opens_at"))
        edited.append(block)
    refuse(wrong)
    return edited


def _unknown(field: str, names: Sequence[Any], known: Mapping[Any, object]) -> list[Misfit]:
    first = _first(names)
    return [
        Misfit(f"{field}[{index}]", "There is none of this name" if name not in known else "It is named twice")
        for index, name in enumerate(names)
        if name not in known or first[name] != index
    ]
