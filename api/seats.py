"""The seat map of a schedule: whole, or what changed since a version."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.answers import Answer, Document, answer, encode
from api.operations import Request, Routes
from api.problems import Refused
from engine import catalogue
from engine.refusals import NotFound
from engine.sales import Sale
from engine.seats import Changes, Maps, SeatMap
from engine.stores.connections import Stores
from engine.stores.replies import SaleRebuilding

routes = Routes("Tickets")

PLANS_KEPT_MAX = 64

Status = Annotated[str, Meta(extra_json_schema={"enum": ["FREE", "HELD", "SOLD", "BLOCKED"]})]


class Since(msgspec.Struct, frozen=True):
    """Which part of the map is asked for."""

    since: Annotated[int, Meta(ge=0, lt=2**62, description="`map_version` of the map one has.")] | None = None


class SeatDocument(Document, frozen=True):
    """A seat and its status; where only changes are told, nothing else."""

    seat_no: str
    section: str | UnsetType = UNSET
    row: str | UnsetType = UNSET
    number: int | UnsetType = UNSET
    category: str | UnsetType = UNSET
    price: int | UnsetType = UNSET
    accessible: bool | UnsetType = UNSET
    status: Status | UnsetType = UNSET


class SeatMapDocument(Document, frozen=True):
    """The map, `full` or what changed since the version that was named; HELD seats may be being paid."""

    map_version: int
    full: bool
    seats: list[SeatDocument]


class Plan:
    """What never changes of the seats of a sale, as bytes ready to be followed by a status."""

    def __init__(self, seats: list[SeatDocument]) -> None:
        # An unset status is left out, so each ends in its brace: 50,000 seats are written in a few milliseconds.
        self._seats = [(seat.seat_no, encode(seat)[:-1] + b',"status":"') for seat in seats]
        self._written: tuple[SeatMap, bytes] | None = None

    def write(self, current: SeatMap) -> bytes:
        """The whole map as a document; the same map is written once."""
        if self._written is None or self._written[0] is not current:
            status_of = current.statuses.get
            seats = b",".join([start + status_of(seat_no, "FREE").encode() + b'"}' for seat_no, start in self._seats])
            content = b'{"map_version":%d,"full":true,"seats":[%b]}' % (current.version, seats)
            self._written = current, content
        return self._written[1]


class SeatMaps:
    """The maps of one process, and the plans that they are drawn on."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._maps = Maps(stores.gate)
        self._plans: dict[str, Plan] = {}

    async def whole(self, sale: Sale) -> bytes:
        """The whole map, as bytes. Raises Refused while the sale is rebuilt."""
        plan = await self._plan(sale)
        current = await self._maps.read(sale)
        if not isinstance(current, SeatMap):
            raise Refused(current)
        return plan.write(current)

    async def since(self, sale: Sale, version: int) -> Changes | None:
        """What changed after this version, or None where only the whole map can tell."""
        changes = await self._maps.read_since(sale, version)
        return changes if isinstance(changes, Changes) else None

    async def _plan(self, sale: Sale) -> Plan:
        plan = self._plans.pop(sale.sale_id, None)
        if plan is None:
            plan = await self._draw(sale)
        self._plans[sale.sale_id] = plan
        if len(self._plans) > PLANS_KEPT_MAX:
            del self._plans[next(iter(self._plans))]
        return plan

    async def _draw(self, sale: Sale) -> Plan:
        return Plan([SeatDocument(**seat) for seat in await catalogue.list_seats(self._stores.postgres, sale.sale_id)])


@routes.add("GET", "/v1/schedules/{schedule_id}/seats", {200: SeatMapDocument}, refusals=(SaleRebuilding,))
async def find_map(request: Request, schedule_id: str, query: Since) -> Answer:
    """The seat map: every seat, or what changed since the version that is named."""
    house = request.house
    sale = await house.book.find_schedule(schedule_id)
    if sale is None:
        raise Refused(NotFound())
    changes = None if query.since is None else await house.seat_maps.since(sale, query.since)
    if changes is None:
        return Answer(await house.seat_maps.whole(sale))
    seats = [SeatDocument(seat_no=seat_no, status=status) for seat_no, status in changes.statuses.items()]
    return answer(SeatMapDocument(map_version=changes.version, full=False, seats=seats))
