"""Twins: endpoints beside the API that do the same with less, so that a ratio says what the difference costs.

They share the API's process, sign-in, key header, body and validation. A no-op answers a constant; `rows` holds a seat
by one ``UPDATE … RETURNING`` in Postgres, committed before it is answered. Each of the two is there twice: as the
framework carries out any handler, which the benchmarks name, and by our own face. `naive` reads, then writes: it
oversells, and the audit must see it.
"""

import asyncio
import os
import sys
from typing import Annotated, Any

import msgspec
from litestar import get, post
from litestar.connection import ASGIConnection
from litestar.connection import Request as FrameworkRequest
from litestar.exceptions import ClientException, NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter

from api.answers import Answer, Document, answer
from api.app import create_app
from api.callers import USER
from api.face import Face
from api.operations import Request, Routes
from api.problems import Refused
from api.reservations import NewReservation
from api.server import serve, tame_collector
from engine import ids
from engine.refusals import NotFound
from engine.seats import SeatTaken
from engine.settings import Settings

routes = Routes("Twins")

TABLE = """
CREATE TABLE IF NOT EXISTS twin_seats (
  seat_no text PRIMARY KEY, status text NOT NULL DEFAULT 'FREE', hold_id text, buyer_id text, expires_at timestamptz
)
"""
HOLD_ROW = """
UPDATE twin_seats
SET status = 'HELD', hold_id = $2, buyer_id = $3, expires_at = now() + interval '5 minutes'
WHERE seat_no = $1 AND (status = 'FREE' OR expires_at < now())
RETURNING expires_at
"""
READ_ROW = "SELECT status FROM twin_seats WHERE seat_no = $1"
SELL_ROW = "UPDATE twin_seats SET status = 'SOLD', hold_id = $2, buyer_id = $3 WHERE seat_no = $1"


class Constant(Document, frozen=True):
    """What the no-op answers: the shape and size of a reservation."""

    reservation_id: str = "0" * 32
    schedule_id: str = "0" * 32
    sale_id: str = "0" * 32
    status: str = "PENDING"
    seats: tuple[dict[str, str | int], ...] = ({"seat_no": "A-1-1", "price": 5000, "status": "HELD"},)
    amount: int = 5000
    currency: str = "KRW"
    created_at: str = "2026-01-01T00:00:00.000Z"
    expires_at: str = "2026-01-01T00:05:00.000Z"
    version: int = 1
    server_time: str = "2026-01-01T00:00:00.000Z"


class Taken(Document, frozen=True):
    """A seat that a twin gave out."""

    seat_no: str
    hold_id: str


class Seats(Document, frozen=True):
    """How many seats the twin's table has now."""

    count: int


CONSTANT = Constant()


def reserved(hold_id: str, seat_no: str) -> Constant:
    """What the twin on rows answers: a reservation, too."""
    return msgspec.structs.replace(
        CONSTANT, reservation_id=hold_id, seats=({"seat_no": seat_no, "price": 5000, "status": "HELD"},)
    )


# As the framework does it ---------------------------------------------------------------------------------------------


def signed_in(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """The sign-in of the API, as a guard."""
    house = connection.app.state.face.house
    token = connection.headers.get("authorization", "").removeprefix("Bearer ")
    connection.state.user_id = house.user_tokens.verify(token, house.clock.now_ms)
    if connection.state.user_id is None:
        raise NotAuthorizedException


Key = Annotated[str, Parameter(header="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]


@get("/twins/framework", guards=[signed_in])
async def framework_get() -> Constant:
    """Answer a constant to whoever is signed in."""
    return CONSTANT


@post("/twins/framework", guards=[signed_in])
async def framework_post(data: NewReservation, key: Key) -> Constant:
    """Validate what a reservation validates, derive its id, and answer a constant."""
    _ = (ids.derive(key), data.seat_nos)
    return CONSTANT


@post("/twins/framework/rows", guards=[signed_in])
async def framework_rows(request: FrameworkRequest[Any, Any, Any], data: NewReservation, key: Key) -> Constant:
    """Validate what a reservation validates, derive its id, and hold the seat by one statement on its row."""
    user_id, seat_no = request.state.user_id, data.seat_nos[0]
    hold_id = ids.derive(user_id, key)
    if await request.app.state.face.house.postgres.fetchval(HOLD_ROW, seat_no, hold_id, user_id) is None:
        raise ClientException(status_code=409)
    return reserved(hold_id, seat_no)


# As our face does it --------------------------------------------------------------------------------------------------


@routes.add("GET", "/twins/noop", {200: Constant}, caller=USER)
async def noop_get(_request: Request) -> Answer:
    """Answer a constant to whoever is signed in."""
    return answer(CONSTANT)


@routes.add("POST", "/twins/noop", {201: Constant}, caller=USER, keyed=True)
async def noop_post(request: Request, body: NewReservation) -> Answer:
    """Validate what a reservation validates, derive its id, and answer a constant."""
    _ = (request.new_id(), body.seat_nos)
    return answer(CONSTANT, 201, version=1)


@routes.add("POST", "/twins/rows", {201: Constant}, caller=USER, keyed=True, refusals=(SeatTaken,))
async def hold_row(request: Request, body: NewReservation) -> Answer:
    """Hold a seat by one statement on its row."""
    hold_id, seat_no = request.new_id(), body.seat_nos[0]
    held = await request.house.postgres.fetchval(HOLD_ROW, seat_no, hold_id, request.caller_id)
    if held is None:
        raise Refused(SeatTaken(conflicts=(f"{seat_no} held",)))
    return answer(reserved(hold_id, seat_no), 201, version=1)


@routes.add("POST", "/twins/naive", {201: Taken}, caller=USER, keyed=True, refusals=(SeatTaken, NotFound))
async def naive(request: Request, body: NewReservation) -> Answer:
    """Look whether a seat is free, then sell it: what everybody does who has not yet been sued."""
    hold_id, seat_no = request.new_id(), body.seat_nos[0]
    status = await request.house.postgres.fetchval(READ_ROW, seat_no)
    if status is None:
        raise Refused(NotFound())
    if status != "FREE":
        raise Refused(SeatTaken(conflicts=(f"{seat_no} sold",)))
    await asyncio.sleep(0)  # where a real shop asks its pricing, its rules, its log
    await request.house.postgres.execute(SELL_ROW, seat_no, hold_id, request.caller_id)
    return answer(Taken(seat_no, hold_id), 201)


@routes.add("POST", "/twins/seats", {200: Seats}, caller=USER, keyed=True)
async def reset(request: Request, body: NewReservation) -> Answer:
    """Make the twin's table anew, with as many seats as the number of the seat that is named."""
    count = int(body.seat_nos[0].rsplit("-", 1)[1])
    await request.house.postgres.execute(TABLE)
    await request.house.postgres.execute("TRUNCATE twin_seats")
    await request.house.postgres.execute(
        "INSERT INTO twin_seats (seat_no) SELECT 'A-1-' || n FROM generate_series(1, $1::int) AS n", count
    )
    return answer(Seats(count))


def application() -> Face:
    """Make the API with its twins; its settings are in the environment."""
    tame_collector()
    return create_app(
        Settings.from_environment(os.environ), more=(routes,), handlers=(framework_get, framework_post, framework_rows)
    )


if __name__ == "__main__":
    serve(Settings.from_environment(os.environ), "loadtests.twins:application")
    sys.exit(0)
