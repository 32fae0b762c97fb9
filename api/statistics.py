"""Statistics of goods: everybody sees what sells best, operators what was sold of each product and when."""

from datetime import date, timedelta
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer, encode
from api.bodies import whole
from api.callers import operator
from api.clock import EPOCH, Time, rfc3339
from api.operations import Request, Routes
from api.pages import Listed, Page, page_of, place_of
from api.problems import invalid
from engine import accounts, statistics
from engine.statistics import BEST_SELLERS_MAX, DAYS_MAX, FRESH_S, BestSellers, Day, Interval

routes = Routes("Statistics")

ProductId = Annotated[str, Meta(pattern=whole("[0-9a-f]{32}"))]
DayTold = Annotated[
    str, Meta(description="A day in the time zone of the installation.", extra_json_schema={"format": "date"})
]
# Where a page begins: below a day and a product, or below the microsecond of an interval, its product and day.
DayPlace = tuple[date, ProductId]
IntervalPlace = tuple[Annotated[int, Meta(ge=0, lt=2**52)], ProductId, date]


class PopularQuery(msgspec.Struct, frozen=True):
    """Of how many days, and how many products."""

    days: Annotated[int, Meta(ge=1, le=DAYS_MAX, description="Today and the days before, so many in all.")] = 3
    limit: Annotated[int, Meta(ge=1, le=BEST_SELLERS_MAX, description="How many products at most.")] = 5


class DaysPage(Page, frozen=True):
    """Which days, of which product, and which part of the list; all of them unless something else is said."""

    first: Annotated[date, Meta(description="The first day.")] = msgspec.field(default=date.min, name="from")
    last: Annotated[date, Meta(description="The last day.")] = msgspec.field(default=date.max, name="to")
    product_id: ProductId | UnsetType = UNSET


class PopularProduct(Document, frozen=True):
    """A product in its place; both numbers are less what was given back on these days."""

    rank: int
    product_id: str
    name: str
    sold_quantity: int
    amount: int


class PopularDocument(Document, frozen=True):
    """What sold best on these days, as it stood at `aggregated_at`."""

    items: list[PopularProduct]
    first: DayTold = msgspec.field(name="from")
    last: DayTold = msgspec.field(name="to")
    aggregated_at: Time


class DayDocument(Document, frozen=True):
    """What was paid for on a day, after discounts, and what was given back on it, whenever it was paid for."""

    product_id: str
    day: DayTold
    sold_quantity: int
    orders: int
    amount: int
    refunded_quantity: int
    refunded_amount: int
    aggregated_at: Time


class IntervalDocument(Document, frozen=True):
    """Units that came to be counted between two runs, before refunds, of those that were paid for on a day."""

    product_id: str
    day: DayTold
    aggregated_from: Time
    aggregated_to: Time
    sold_quantity: int


@routes.add("GET", "/v1/products/popular", {200: PopularDocument}, sends=("Cache-Control",))
async def list_popular(request: Request, query: PopularQuery) -> Answer:
    """The products that sold best today and on the days before: the same for everybody, and at most a minute old."""
    found = await request.house.charts.find(days=query.days, limit=query.limit)
    return Answer(encode(_popular(found)), headers=[(b"cache-control", b"public, max-age=%d" % FRESH_S)])


@routes.add(
    "GET",
    "/v1/admin/statistics/products/daily",
    {200: Listed[DayDocument]},
    caller=operator(accounts.CATALOGUE),
)
async def list_days(request: Request, query: DaysPage) -> Answer:
    """What was sold and given back of products by days, the newest first; a day on which nothing was has no item."""
    _check(query)
    found = await statistics.list_days(
        request.house.postgres,
        first=query.first,
        last=query.last,
        product_id=query.product_id or None,
        before=query.after(DayPlace),
        most=query.limit + 1,
    )
    places = [(each.day, each.product_id) for each in found]
    return answer(page_of([_day(each) for each in found], places, query))


@routes.add(
    "GET",
    "/v1/admin/statistics/products/interval",
    {200: Listed[IntervalDocument]},
    caller=operator(accounts.CATALOGUE),
)
async def list_intervals(request: Request, query: DaysPage) -> Answer:
    """What was sold of products about minute by minute, the newest first: of each day it adds up to what the day says.

    A unit is in the interval in which it was written down for good, which may be a later one than when it was paid for;
    `from` and `to` ask for the day of its payment.
    """
    _check(query)
    place = query.after(IntervalPlace)
    found = await statistics.list_intervals(
        request.house.postgres,
        first=query.first,
        last=query.last,
        product_id=query.product_id or None,
        before=place and (EPOCH + timedelta(microseconds=place[0]), *place[1:]),
        most=query.limit + 1,
    )
    places = [(*place_of(each.aggregated_from, each.product_id), each.day) for each in found]
    return answer(page_of([_interval(each) for each in found], places, query))


def _check(query: DaysPage) -> None:
    if query.first > query.last:
        raise invalid("to", f"Expected a day that is not before {query.first}")


def _popular(found: BestSellers) -> PopularDocument:
    return PopularDocument(
        items=[
            PopularProduct(rank=rank, **msgspec.structs.asdict(product)) for rank, product in enumerate(found.items, 1)
        ],
        first=found.first_day.isoformat(),
        last=found.last_day.isoformat(),
        aggregated_at=rfc3339(found.aggregated_at),
    )


def _day(day: Day) -> DayDocument:
    return DayDocument(
        product_id=day.product_id,
        day=day.day.isoformat(),
        sold_quantity=day.sold_quantity,
        orders=day.orders,
        amount=day.amount,
        refunded_quantity=day.refunded_quantity,
        refunded_amount=day.refunded_amount,
        aggregated_at=rfc3339(day.aggregated_at),
    )


def _interval(interval: Interval) -> IntervalDocument:
    return IntervalDocument(
        product_id=interval.product_id,
        day=interval.day.isoformat(),
        aggregated_from=rfc3339(interval.aggregated_from),
        aggregated_to=rfc3339(interval.aggregated_to),
        sold_quantity=interval.sold_quantity,
    )
