"""Concerts and their schedules: buyers look, operators make and edit them."""

import asyncio
from collections import defaultdict
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api import bodies, seat_tables
from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, rfc3339
from api.operations import IMPORT_DEADLINE_S, IMPORT_MAX, Body, Request, Routes, Table, changes_of
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import BUSY, Refused, invalid
from api.seat_tables import SEATS_MAX, NewSeat
from engine import accounts, catalogue, ids, rebuild
from engine.catalogue import Concert, Poster, Schedule
from engine.refusals import IdempotencyKeyReused, NotFound
from engine.sales import Terms

routes = Routes("Tickets")

Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Prose = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$")]
Address = Annotated[str, Meta(max_length=2000, pattern=r"^https?://[^\x00-\x20\x7f]+$")]
Seconds = Annotated[int, Meta(ge=10, le=86_400)]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339, with its distance from UTC.")]
Seats = Annotated[list[NewSeat], Meta(min_length=1, max_length=SEATS_MAX)]


class NewConcert(Body, frozen=True):
    """A concert as an operator describes it."""

    title: Line
    description: Prose | None = None
    artist: Line | None = None
    venue: Line | None = None
    poster_image_url: Address | None = None


class EditedConcert(Body, frozen=True):
    """What changes of a concert; what is left out stays."""

    title: Line | UnsetType = UNSET
    description: Prose | UnsetType | None = UNSET
    artist: Line | UnsetType | None = UNSET
    venue: Line | UnsetType | None = UNSET
    poster_image_url: Address | UnsetType | None = UNSET


class RefundRule(Body, frozen=True):
    """Until so many hours before the start, so much of the price is paid back."""

    hours_before: Annotated[int, Meta(ge=0, le=100_000)]
    percent: Annotated[int, Meta(ge=0, le=100)]


class EditedSchedule(Body, frozen=True):
    """The date and the terms of its sale; what is left out stays, or has its default."""

    start_at: Moment | UnsetType = UNSET
    opens_at: Moment | UnsetType | None = UNSET
    closes_at: Moment | UnsetType | None = UNSET
    per_buyer_max: Annotated[int, Meta(ge=1, le=100_000)] | UnsetType | None = UNSET
    hold_s: Seconds | UnsetType = UNSET
    pay_s: Seconds | UnsetType = UNSET
    refund_policy: Annotated[list[RefundRule], Meta(max_length=20)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse a moment that no calendar of the stores has."""
        for name in ("start_at", "opens_at", "closes_at"):
            moment = getattr(self, name)
            if isinstance(moment, datetime) and not 2000 <= moment.year < 9000:
                raise ValueError(f"Expected {name} in the years 2000 to 8999")


class NewSchedule(EditedSchedule, frozen=True, kw_only=True):
    """One date, the terms of its sale, and the seats on sale."""

    start_at: Moment
    seats: Seats


class ConcertDocument(Document, frozen=True):
    """A concert and its dates."""

    concert_id: str
    title: str
    description: str | None
    artist: str | None
    venue: str | None
    poster_image_url: str | None
    schedules: list["ScheduleDocument"]
    version: int


class ScheduleDocument(Document, frozen=True):
    """One date of a concert; `seats_available` is what is neither sold nor blocked."""

    schedule_id: str
    concert_id: str
    sale_id: str
    start_at: Time
    opens_at: Time | None
    closes_at: Time | None
    seats_total: int
    seats_available: int
    per_buyer_max: int | None
    version: int


class ConcertMade(Document, frozen=True):
    """The concert."""

    concert_id: str


class ScheduleMade(Document, frozen=True):
    """The schedule and its sale."""

    schedule_id: str
    sale_id: str
    seats_total: int


# Buyers ---------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/v1/concerts", {200: Listed[ConcertDocument]})
async def list_concerts(request: Request, query: Page) -> Answer:
    """The concerts, those made last first."""
    postgres = request.house.postgres
    concerts = await catalogue.list_concerts(postgres, before=moment_of(query.after(Place)), most=query.limit + 1)
    schedules = await _schedules_of(request, concerts)
    return answer(
        page_of(
            [_concert(concert, schedules[concert.concert_id]) for concert in concerts],
            [place_of(concert.created_at, concert.concert_id) for concert in concerts],
            query,
        )
    )


@routes.add("GET", "/v1/concerts/{concert_id}", {200: ConcertDocument})
async def find_concert(request: Request, concert_id: str) -> Answer:
    """A concert and its dates."""
    concert = await catalogue.find_concert(request.house.postgres, concert_id)
    if concert is None:
        raise Refused(NotFound())
    schedules = await _schedules_of(request, [concert])
    return answer(_concert(concert, schedules[concert_id]), version=concert.version)


@routes.add("GET", "/v1/schedules/{schedule_id}", {200: ScheduleDocument})
async def find_schedule(request: Request, schedule_id: str) -> Answer:
    """One date of a concert."""
    schedule = await catalogue.find_schedule(request.house.postgres, schedule_id)
    if schedule is None:
        raise Refused(NotFound())
    return answer(_schedule(schedule), version=schedule.version)


# Operators ------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/admin/concerts",
    {201: ConcertMade},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused,),
)
async def create_concert(request: Request, body: NewConcert) -> Answer:
    """Make a concert."""
    made = await catalogue.create_concert(
        request.house.postgres, concert_id=request.new_id(), poster=Poster(**msgspec.structs.asdict(body))
    )
    if isinstance(made, IdempotencyKeyReused):
        raise Refused(made)
    concert, repeated = made
    return answer(ConcertMade(concert_id=concert.concert_id), 201, version=concert.version, repeated=repeated)


@routes.add(
    "PATCH",
    "/v1/admin/concerts/{concert_id}",
    {200: ConcertDocument},
    caller=operator(accounts.CATALOGUE),
    edits=True,
)
async def edit_concert(request: Request, concert_id: str, body: EditedConcert) -> Answer:
    """Change what is said of a concert."""
    edited = await catalogue.edit_concert(
        request.house.postgres, concert_id=concert_id, version=request.if_match(), changes=changes_of(body)
    )
    if not isinstance(edited, Concert):
        raise Refused(edited)
    schedules = await _schedules_of(request, [edited])
    return answer(_concert(edited, schedules[concert_id]), version=edited.version)


@routes.add(
    "POST",
    "/v1/admin/concerts/{concert_id}/schedules",
    {201: ScheduleMade},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused,),
    body_max=IMPORT_MAX,
    deadline_s=IMPORT_DEADLINE_S,
)
async def create_schedule(
    request: Request, concert_id: str, query: EditedSchedule, body: NewSchedule | Table
) -> Answer:
    """Make a schedule with its sale and its seats, all of them or none.

    As a table, the body lists the seats in the columns section, row, number, category, price, accessible and blocked,
    and the query says the rest; each error names its line and column.
    """
    house = request.house
    terms: EditedSchedule = query if isinstance(body, Table) else body
    if terms.start_at is UNSET:
        raise invalid("start_at", "Expected it in the query")
    concert = await catalogue.find_concert(house.postgres, concert_id)
    if concert is None:
        raise Refused(NotFound())
    # Large lists are read beside the loop, so that nobody else waits for them.
    if isinstance(body, Table):
        seats = await asyncio.to_thread(seat_tables.read_csv, body)
    else:
        seats = await asyncio.to_thread(seat_tables.seats_of, body.seats)
    made = await catalogue.create_schedule(
        house.postgres,
        schedule_id=request.new_id(),
        concert_id=concert_id,
        start_at=terms.start_at,
        terms=Terms(name=concert.title, **_terms(terms)),
        seats=seats,
        fingerprint=ids.fingerprint(bodies.text_of(_terms(terms)), bodies.text_of(seats)),
    )
    if not isinstance(made, tuple):
        raise Refused(made)
    schedule, repeated = made
    if not await rebuild.ensure_open(house.stores, schedule.sale_id):
        raise Refused(BUSY)
    await house.book.read(schedule.sale_id)
    document = ScheduleMade(
        schedule_id=schedule.schedule_id, sale_id=schedule.sale_id, seats_total=schedule.seats_total
    )
    return answer(document, 201, version=schedule.version, repeated=repeated)


@routes.add(
    "PATCH",
    "/v1/admin/schedules/{schedule_id}",
    {200: ScheduleDocument},
    caller=operator(accounts.CATALOGUE),
    edits=True,
)
async def edit_schedule(request: Request, schedule_id: str, body: EditedSchedule) -> Answer:
    """Change when it takes place and the terms of its sale."""
    edited = await catalogue.edit_schedule(
        request.house.stores,
        request.house.book,
        schedule_id=schedule_id,
        version=request.if_match(),
        start_at=body.start_at or None,
        changes=_terms(body),
    )
    if not isinstance(edited, Schedule):
        raise Refused(edited)
    return answer(_schedule(edited), version=edited.version)


# Documents ------------------------------------------------------------------------------------------------------------


async def _schedules_of(request: Request, concerts: list[Concert]) -> dict[str, list[Schedule]]:
    schedules: dict[str, list[Schedule]] = defaultdict(list)
    concert_ids = [concert.concert_id for concert in concerts]
    for schedule in await catalogue.list_schedules(request.house.postgres, concert_ids):
        schedules[schedule.concert_id].append(schedule)
    return schedules


def _concert(concert: Concert, schedules: list[Schedule]) -> ConcertDocument:
    return ConcertDocument(
        concert_id=concert.concert_id,
        title=concert.title,
        description=concert.description,
        artist=concert.artist,
        venue=concert.venue,
        poster_image_url=concert.poster_image_url,
        schedules=[_schedule(schedule) for schedule in schedules],
        version=concert.version,
    )


def _schedule(schedule: Schedule) -> ScheduleDocument:
    return ScheduleDocument(
        schedule_id=schedule.schedule_id,
        concert_id=schedule.concert_id,
        sale_id=schedule.sale_id,
        start_at=rfc3339(schedule.start_at),
        opens_at=rfc3339(schedule.opens_at),
        closes_at=rfc3339(schedule.closes_at),
        seats_total=schedule.seats_total,
        seats_available=schedule.seats_available,
        per_buyer_max=schedule.per_buyer_max,
        version=schedule.version,
    )


def _terms(body: EditedSchedule) -> dict[str, Any]:
    terms = changes_of(body)
    terms.pop("start_at", None)
    terms.pop("seats", None)
    if "refund_policy" in terms:
        terms["refund_policy"] = tuple(msgspec.to_builtins(terms["refund_policy"]))
    return terms
