"""Twins: endpoints beside the API that do the same with less, so that a ratio says what the difference costs.

They share the API's process, sign-in, key header, body and validation. A no-op answers a constant; `rows` holds a seat
by one ``UPDATE … RETURNING`` in Postgres, committed before it is answered; `order_rows` sells units of one row by one
transaction that counts it down and adds the order with its line. Each of them is there twice: as the framework carries
out any handler, which the benchmarks name, and by our own face. `naive` and `naive_orders` read, then write: they
oversell, and the audit must see it.
"""

import asyncio
import os
import sys
from typing import Annotated, Any

import asyncpg
import msgspec
from litestar import get, post
from litestar.connection import ASGIConnection
from litestar.connection import Request as FrameworkRequest
from litestar.exceptions import ClientException, NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter
from msgspec import UNSET

from api.answers import Answer, Document, answer
from api.app import create_app
from api.callers import USER
from api.face import Face
from api.operations import Body, Request, Routes
from api.orders import NewOrder
from api.problems import Refused, UnitsSoldOut
from api.reservations import NewReservation
from api.server import serve
from engine import ids
from engine.processes import tame_collector
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

UNITS_TABLES = (
    "CREATE TABLE IF NOT EXISTS twin_variants (variant_id text PRIMARY KEY, quantity bigint NOT NULL)",
    """
    CREATE TABLE IF NOT EXISTS twin_orders (
      order_id text PRIMARY KEY, user_id text NOT NULL, amount bigint NOT NULL, expires_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS twin_lines (
      order_id text REFERENCES twin_orders, variant_id text REFERENCES twin_variants, quantity bigint NOT NULL,
      PRIMARY KEY (order_id, variant_id)
    )
    """,
    "TRUNCATE twin_variants, twin_orders, twin_lines",
)
TAKE_UNITS = """
UPDATE twin_variants SET quantity = quantity - $2 WHERE variant_id = $1 AND quantity >= $2 RETURNING quantity
"""
# What counts the hot row down comes last: whoever is next waits only for the commit.
ADD_ORDER = """
WITH added AS (
  INSERT INTO twin_orders (order_id, user_id, amount, expires_at)
  VALUES ($1, $2, $5, now() + interval '5 minutes')
  RETURNING order_id
)
INSERT INTO twin_lines (order_id, variant_id, quantity) SELECT order_id, $3, $4 FROM added
"""
READ_UNITS = "SELECT quantity FROM twin_variants WHERE variant_id = $1"
SET_UNITS = "UPDATE twin_variants SET quantity = $2 WHERE variant_id = $1"
PRICE = 5000


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


class Ordered(Document, frozen=True):
    """What the twins of orders answer: the shape and size of an order."""

    order_id: str = "0" * 32
    sale_id: str = "0" * 32
    status: str = "PENDING"
    items: tuple[dict[str, str | int | None], ...] = (
        {
            "variant_id": "0" * 32,
            "product_id": "0" * 32,
            "name": "Hot",
            "size": None,
            "quantity": 1,
            "unit_price": PRICE,
            "discount_amount": 0,
            "total_price": PRICE,
        },
    )
    original_amount: int = PRICE
    discount_amount: int = 0
    total_amount: int = PRICE
    currency: str = "KRW"
    created_at: str = "2026-01-01T00:00:00.000Z"
    expires_at: str = "2026-01-01T00:05:00.000Z"
    version: int = 1
    server_time: str = "2026-01-01T00:00:00.000Z"


class TwinStock(Body, frozen=True):
    """So many units of a variant."""

    variant_id: str
    quantity: int


class Units(Document, frozen=True):
    """How many units the twin's row has now."""

    quantity: int


CONSTANT = Constant()
ORDERED = Ordered()


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


@post("/twins/framework/orders", guards=[signed_in])
async def framework_order(data: NewOrder, key: Key) -> Ordered:
    """Validate what an order validates, derive its id, and answer a constant."""
    _ = (ids.derive(key), data.lines)
    return ORDERED


@post("/twins/framework/order_rows", guards=[signed_in])
async def framework_order_rows(request: FrameworkRequest[Any, Any, Any], data: NewOrder, key: Key) -> Ordered:
    """Validate what an order validates, derive its id, and sell units of a row in one transaction."""
    user_id = request.state.user_id
    order_id = ids.derive(user_id, key)
    if not await sell_rows(request.app.state.face.house.postgres, order_id, user_id, data):
        raise ClientException(status_code=409)
    return msgspec.structs.replace(ORDERED, order_id=order_id)


async def sell_rows(postgres: asyncpg.Pool, order_id: str, user_id: str, wanted: NewOrder) -> bool:
    """Add an order of one line and count its variant down, in one transaction; False when too little is left."""
    assert wanted.lines is not UNSET  # noqa: S101 - no twin has carts
    line = wanted.lines[0]
    async with postgres.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        amount = PRICE * line.quantity
        await connection.execute(ADD_ORDER, order_id, user_id, line.variant_id, line.quantity, amount)
        if await connection.fetchval(TAKE_UNITS, line.variant_id, line.quantity) is None:
            await transaction.rollback()
            return False
        await transaction.commit()
    return True


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


@routes.add("POST", "/twins/orders", {201: Ordered}, caller=USER, keyed=True)
async def noop_order(request: Request, body: NewOrder) -> Answer:
    """Validate what an order validates, derive its id, and answer a constant."""
    _ = (request.new_id(), body.lines)
    return answer(ORDERED, 201, version=1)


@routes.add("POST", "/twins/order_rows", {201: Ordered}, caller=USER, keyed=True, refusals=(UnitsSoldOut,))
async def order_rows(request: Request, body: NewOrder) -> Answer:
    """Sell units of a row in one transaction."""
    order_id = request.new_id()
    if not await sell_rows(request.house.postgres, order_id, request.caller_id, body):
        raise Refused(UnitsSoldOut(()))
    return answer(msgspec.structs.replace(ORDERED, order_id=order_id), 201, version=1)


@routes.add("POST", "/twins/naive_orders", {201: Ordered}, caller=USER, keyed=True, refusals=(UnitsSoldOut, NotFound))
async def naive_order(request: Request, body: NewOrder) -> Answer:
    """Look how many units are left, then write down one less."""
    assert body.lines is not UNSET  # noqa: S101 - no twin has carts
    order_id, line, postgres = request.new_id(), body.lines[0], request.house.postgres
    left = await postgres.fetchval(READ_UNITS, line.variant_id)
    if left is None:
        raise Refused(NotFound())
    if left < line.quantity:
        raise Refused(UnitsSoldOut(()))
    await asyncio.sleep(0)  # where a real shop asks its pricing, its rules, its log
    await postgres.execute(ADD_ORDER, order_id, request.caller_id, line.variant_id, line.quantity, PRICE)
    await postgres.execute(SET_UNITS, line.variant_id, left - line.quantity)
    return answer(msgspec.structs.replace(ORDERED, order_id=order_id), 201, version=1)


@routes.add("POST", "/twins/units", {200: Units}, caller=USER, keyed=True)
async def stock_up(request: Request, body: TwinStock) -> Answer:
    """Make the twin's tables anew, with so many units of one variant."""
    for statement in UNITS_TABLES:
        await request.house.postgres.execute(statement)
    await request.house.postgres.execute("INSERT INTO twin_variants VALUES ($1, $2)", body.variant_id, body.quantity)
    return answer(Units(body.quantity))


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
        Settings.from_environment(os.environ),
        more=(routes,),
        handlers=(
            framework_get,
            framework_post,
            framework_rows,
            framework_order,
            framework_order_rows,
        ),
    )


if __name__ == "__main__":
    serve(Settings.from_environment(os.environ), "loadtests.twins:application")
    sys.exit(0)
