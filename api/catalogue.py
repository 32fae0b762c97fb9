"""Concerts and their schedules: buyers look, operators make and edit them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api import bodies, offers, seat_tables
from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, rfc3339
from api.offers import Areas, Blocks, EditedBlocks, EditedTiers, Moment, Offer, Tiers
from api.operations import IMPORT_DEADLINE_S, IMPORT_MAX, Body, Request, Routes, Table, changes_of
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import BUSY, Refused, invalid
from api.sales import RefundPolicy, RefundRule, SaleTerms, terms_of
from api.seat_tables import NewSeat
from engine import accounts, catalogue, ids, rebuild
from engine.catalogue import SEATS_MAX, Area, Concert, Offering, Poster, Schedule, SeatRow
from engine.offers import send
from engine.refusals import IdempotencyKeyReused, NotFound, SaleClosed
from engine.sales import StaleVersion, Terms

routes = Routes("Tickets")

Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=bodies.whole(r"[^\x00-\x1f\x7f]*"))]
Prose = Annotated[str, Meta(max_length=10_000, pattern=bodies.whole(r"[^\x00]*"))]
Address = Annotated[str, Meta(max_length=2000, pattern=bodies.whole(r"https?://[^\x00-\x20\x7f]+"))]
Seats = Annotated[tuple[NewSeat, ...], Meta(max_length=SEATS_MAX)]

# The number of a seat: where a page of seats begins.
SeatNo = Annotated[str, Meta(max_length=20, pattern=bodies.whole(r"[^\x00]*"))]


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


class ScheduleTerms(SaleTerms, frozen=True):
    """The date and the terms of its sale; what is left out stays, or has its default."""

    start_at: Moment | UnsetType = UNSET


class NewSchedule(ScheduleTerms, frozen=True, kw_only=True):
    """One date, the terms of its sale, and what is on sale: the best seats first."""

    start_at: Moment
    refund_policy: RefundPolicy | UnsetType = UNSET
    seats: Seats = ()
    areas: Areas = ()
    tiers: Tiers = ()
    blocks: Blocks = ()


class ScheduleQuery(ScheduleTerms, frozen=True, kw_only=True):
    """What a table of seats does not say; lists stand as JSON, each as a field of the same name in a JSON body."""

    refund_policy: Annotated[str, Meta(description="JSON: [{hours_before, percent}]")] | UnsetType = UNSET
    areas: Annotated[str, Meta(description="JSON: [{area, category, price, quantity}]")] | UnsetType = UNSET
    tiers: Annotated[str, Meta(description="JSON: [{tier, category, price, max?}]")] | UnsetType = UNSET
    blocks: (
        Annotated[
            str,
            Meta(description="JSON: [{block, seats | section, access_code | channel, opens_at?, closes_at?}]"),
        ]
        | UnsetType
    ) = UNSET


class EditedSchedule(ScheduleTerms, frozen=True, kw_only=True):
    """What changes of a schedule; what is left out stays. Tiers and blocks are named, and no seat changes its price."""

    refund_policy: RefundPolicy | UnsetType = UNSET
    tiers: EditedTiers = ()
    blocks: EditedBlocks = ()


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


class AreaDocument(Document, frozen=True):
    """Places without a number; `available` is what is neither sold nor kept back, at most a second ago."""

    area: str
    category: str
    price: int
    quantity: int
    available: int


class TierDocument(Document, frozen=True):
    """Another price for seats of a category."""

    tier: str
    category: str
    price: int


class DateDocument(Document, frozen=True):
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
    areas: list[AreaDocument]
    version: int


class ScheduleDocument(DateDocument, frozen=True):
    """One date of a concert; `seats_available` is what is neither sold nor blocked, in blocks too."""

    tiers: list[TierDocument]


class CappedTierDocument(TierDocument, frozen=True):
    """Another price for seats of a category; at most `max` of it at once, where there is a cap."""

    max: int | None


class BlockDocument(Document, frozen=True):
    """So many seats and places kept from the public."""

    block: str
    access_code: str | None
    channel: str | None
    opens_at: Time | None
    closes_at: Time | None
    seats: int


class OperatorsScheduleDocument(DateDocument, frozen=True):
    """A schedule with all that only operators see of it; here an area in a block tells what is left of it too."""

    hold_s: int
    pay_s: int
    release_jitter_s: int
    offer_s: int
    refund_policy: list[RefundRule]
    tiers: list[CappedTierDocument]
    blocks: list[BlockDocument]


class OperatorsSeatDocument(Document, frozen=True):
    """A seat or, with `area`, a place of that area, as Postgres has it."""

    seat_no: str
    section: str
    row: str
    number: int
    category: str
    price: int
    accessible: bool
    blocked: bool
    block: str | None
    area: str | None
    sold: bool


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
    documents = await _documents_of(request, concerts)
    return answer(
        page_of(
            [_concert(concert, documents[concert.concert_id]) for concert in concerts],
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
    documents = await _documents_of(request, [concert])
    return answer(_concert(concert, documents[concert_id]), version=concert.version)


@routes.add("GET", "/v1/schedules/{schedule_id}", {200: ScheduleDocument})
async def find_schedule(request: Request, schedule_id: str) -> Answer:
    """One date of a concert: its terms, its areas and what is left of them, its tiers."""
    schedule = await catalogue.find_schedule(request.house.postgres, schedule_id)
    if schedule is None:
        raise Refused(NotFound())
    offering = await request.house.offerings.find(schedule.sale_id)
    return answer(_schedule(schedule, offering), version=schedule.version)


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
    documents = await _documents_of(request, [edited])
    return answer(_concert(edited, documents[concert_id]), version=edited.version)


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
async def create_schedule(request: Request, concert_id: str, query: ScheduleQuery, body: NewSchedule | Table) -> Answer:
    """Make a schedule with its sale and all that is on sale, or nothing of it.

    The best seats come first: in this order they are given to who asks for the best available. At most 100,000 seats
    and places together. As a table, the body lists the seats in the columns section, row, number, category, price,
    accessible and blocked, and the query says the rest; each error names its line and column. Addresses are written to
    logs: with access codes in them, rather send JSON.
    """
    house = request.house
    given: ScheduleTerms = query if isinstance(body, Table) else body
    if given.start_at is UNSET:
        raise invalid("start_at", "Expected it in the query")
    concert = await catalogue.find_concert(house.postgres, concert_id)
    if concert is None:
        raise Refused(NotFound())
    # Large lists are read beside the loop, so that nobody else waits for them.
    terms, offer, fingerprint = await asyncio.to_thread(_read_new, query, body)
    made = await catalogue.create_schedule(
        house.postgres,
        schedule_id=request.new_id(),
        concert_id=concert_id,
        start_at=given.start_at,
        terms=Terms(name=concert.title, **terms),
        seats=offer.seats,
        areas=offer.areas,
        tiers=offer.tiers,
        blocks=offer.blocks,
        fingerprint=fingerprint,
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


def _read_new(query: ScheduleQuery, body: NewSchedule | Table) -> tuple[dict[str, Any], Offer, str]:
    """The terms of a new schedule, what it offers, and what tells the request from another one."""
    if isinstance(body, Table):
        given: ScheduleTerms = query
        policy = offers.read_text("refund_policy", query.refund_policy, RefundPolicy)
        offer = offers.offer_of(
            seat_tables.read_csv(body),
            areas=offers.read_text("areas", query.areas, Areas),
            tiers=offers.read_text("tiers", query.tiers, Tiers),
            blocks=offers.read_text("blocks", query.blocks, Blocks),
        )
    else:
        given = body
        policy = body.refund_policy or ()
        listed = seat_tables.read_json(body.seats)
        offer = offers.offer_of(listed, areas=body.areas, tiers=body.tiers, blocks=body.blocks)
    terms = terms_of(given, policy)
    return terms, offer, ids.fingerprint(*map(bodies.text_of, (given.start_at, terms, offer)))


@routes.add(
    "GET",
    "/v1/admin/schedules/{schedule_id}",
    {200: OperatorsScheduleDocument},
    caller=operator(accounts.CATALOGUE),
)
async def find_operators_schedule(request: Request, schedule_id: str) -> Answer:
    """A schedule with all that only operators see: its terms, its blocks and their codes."""
    schedule = await catalogue.find_schedule(request.house.postgres, schedule_id)
    if schedule is None:
        raise Refused(NotFound())
    return answer(await _operators_schedule(request, schedule), version=schedule.version)


@routes.add(
    "GET",
    "/v1/admin/schedules/{schedule_id}/seats",
    {200: Listed[OperatorsSeatDocument]},
    caller=operator(accounts.CATALOGUE),
)
async def list_operators_seats(request: Request, schedule_id: str, query: Page) -> Answer:
    """The seats and places of a schedule, by number."""
    postgres = request.house.postgres
    schedule = await catalogue.find_schedule(postgres, schedule_id)
    if schedule is None:
        raise Refused(NotFound())
    after = query.after(SeatNo) or ""
    seats = await catalogue.list_every_seat(postgres, schedule.sale_id, after=after, most=query.limit + 1)
    return answer(page_of([_seat(seat) for seat in seats], [seat.seat_no for seat in seats], query))


@routes.add(
    "PATCH",
    "/v1/admin/schedules/{schedule_id}",
    {200: OperatorsScheduleDocument},
    caller=operator(accounts.CATALOGUE),
    edits=True,
    refusals=(SaleClosed,),
)
async def edit_schedule(request: Request, schedule_id: str, body: EditedSchedule) -> Answer:
    """Change when it takes place, the terms of its sale, caps of tiers, for whom and when blocks are kept.

    All of it may be changed while the sale runs. What was held or bought before stays as it was; seats, prices,
    quantities and which seats a block keeps never change.
    """
    house, version = request.house, request.if_match()
    schedule = await catalogue.find_schedule(house.postgres, schedule_id)
    if schedule is None:
        raise Refused(NotFound())
    if schedule.version != version:
        raise Refused(StaleVersion(schedule.version))
    # What is checked against the schedule here still stands when it is edited: every edit makes another version.
    opens_at = schedule.opens_at if body.opens_at is UNSET else body.opens_at
    closes_at = schedule.closes_at if body.closes_at is UNSET else body.closes_at
    if opens_at and closes_at and closes_at <= opens_at:
        raise invalid("closes_at", "Expected it after opens_at")
    offering = await _offering(request, schedule)
    edited = await catalogue.edit_schedule(
        house.postgres,
        schedule_id=schedule_id,
        version=version,
        start_at=body.start_at or None,
        changes=terms_of(body, body.refund_policy),
        tiers=offers.edited_tiers(body.tiers, offering),
        blocks=offers.edited_blocks(body.blocks, offering),
    )
    if not isinstance(edited, Schedule):
        raise Refused(edited)
    house.offerings.forget(edited.sale_id)
    sale = await house.book.read(edited.sale_id)
    if sale is not None:
        await send(house.gate, house.postgres, sale)
    return answer(await _operators_schedule(request, edited), version=edited.version)


# Documents ------------------------------------------------------------------------------------------------------------


async def _documents_of(request: Request, concerts: Sequence[Concert]) -> dict[str, list[ScheduleDocument]]:
    """The schedules of these concerts, by concert."""
    house = request.house
    schedules = await catalogue.list_schedules(house.postgres, [concert.concert_id for concert in concerts])
    offerings = await asyncio.gather(*[house.offerings.find(schedule.sale_id) for schedule in schedules])
    documents: dict[str, list[ScheduleDocument]] = defaultdict(list)
    for schedule, offering in zip(schedules, offerings, strict=True):
        documents[schedule.concert_id].append(_schedule(schedule, offering))
    return documents


async def _offering(request: Request, schedule: Schedule) -> Offering:
    """What a schedule offers beside its seats, as it stands now."""
    return (await catalogue.find_offerings(request.house.postgres, [schedule.sale_id]))[schedule.sale_id]


def _concert(concert: Concert, schedules: list[ScheduleDocument]) -> ConcertDocument:
    return ConcertDocument(
        concert_id=concert.concert_id,
        title=concert.title,
        description=concert.description,
        artist=concert.artist,
        venue=concert.venue,
        poster_image_url=concert.poster_image_url,
        schedules=schedules,
        version=concert.version,
    )


def _schedule(schedule: Schedule, offering: Offering) -> ScheduleDocument:
    """A schedule as everybody sees it: nothing of its blocks, not even what is left in them."""
    return ScheduleDocument(
        **_told(schedule),
        areas=[_area(area, available=0 if area.block else area.available) for area in offering.areas],
        tiers=[TierDocument(tier=tier.tier, category=tier.category, price=tier.price) for tier in offering.tiers],
    )


async def _operators_schedule(request: Request, schedule: Schedule) -> OperatorsScheduleDocument:
    offering = await _offering(request, schedule)
    kept = await catalogue.count_blocks(request.house.postgres, schedule.sale_id) if offering.blocks else {}
    return OperatorsScheduleDocument(
        **_told(schedule),
        hold_s=schedule.hold_s,
        pay_s=schedule.pay_s,
        release_jitter_s=schedule.release_jitter_s,
        offer_s=schedule.offer_s,
        refund_policy=[RefundRule(**rule) for rule in schedule.refund_policy],
        areas=[_area(area, available=area.available) for area in offering.areas],
        tiers=[CappedTierDocument(**msgspec.structs.asdict(tier)) for tier in offering.tiers],
        blocks=[
            BlockDocument(
                block=block.block,
                access_code=block.access_code,
                channel=block.channel,
                opens_at=rfc3339(block.opens_at),
                closes_at=rfc3339(block.closes_at),
                seats=kept.get(block.block, 0),
            )
            for block in offering.blocks
        ],
    )


def _told(schedule: Schedule) -> dict[str, Any]:
    """What everybody is told of the row of a schedule."""
    return {
        "schedule_id": schedule.schedule_id,
        "concert_id": schedule.concert_id,
        "sale_id": schedule.sale_id,
        "start_at": rfc3339(schedule.start_at),
        "opens_at": rfc3339(schedule.opens_at),
        "closes_at": rfc3339(schedule.closes_at),
        "seats_total": schedule.seats_total,
        "seats_available": schedule.seats_available,
        "per_buyer_max": schedule.per_buyer_max,
        "version": schedule.version,
    }


def _area(area: Area, *, available: int) -> AreaDocument:
    return AreaDocument(
        area=area.area, category=area.category, price=area.price, quantity=area.quantity, available=available
    )


def _seat(seat: SeatRow) -> OperatorsSeatDocument:
    return OperatorsSeatDocument(seat_no=seat.seat_no, **msgspec.structs.asdict(seat))
