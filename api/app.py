"""The application: every operation under its path, one OpenAPI document, one house to serve from."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import Any

from litestar import Litestar, Request, Response, asgi
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from api import (
    accounts,
    audit,
    balances,
    cancellations,
    carts,
    catalogue,
    coupons,
    docs,
    events,
    health,
    late_payments,
    messages,
    openapi,
    order_cancellations,
    orders,
    payments,
    problems,
    products,
    reservations,
    sales,
    seat_blocks,
    seats,
    statistics,
    tickets,
    waiting_lists,
    waiting_room,
    webhooks,
)
from api.answers import refuse
from api.face import Face
from api.house import House, open_house
from api.operations import Operation, Routes
from engine.settings import Settings

EXPOSED_HEADERS = ["ETag", "Location", "Retry-After", "Idempotent-Replayed", "RateLimit"]

STOPS = (signal.SIGTERM, signal.SIGINT)

DOMAINS: tuple[Routes, ...] = (
    accounts.routes,
    balances.routes,
    sales.routes,
    messages.routes,
    catalogue.routes,
    seats.routes,
    seat_blocks.routes,
    events.routes,
    waiting_room.routes,
    reservations.routes,
    payments.routes,
    late_payments.routes,
    tickets.routes,
    cancellations.routes,
    waiting_lists.routes,
    products.routes,
    carts.routes,
    orders.routes,
    waiting_lists.goods,
    coupons.routes,
    statistics.routes,
    order_cancellations.routes,
    webhooks.routes,
    audit.routes,
    health.routes,
)
"""The domains in the order in which the document tells them."""


def operations() -> list[Operation]:
    """Every operation."""
    return [operation for domain in DOMAINS for operation in domain.operations]


def create_app(settings: Settings, more: Sequence[Routes] = (), handlers: Sequence[HTTPRouteHandler] = ()) -> Face:
    """Make the application; it opens its stores when it starts, and closes them after its last answer.

    `more` are routes beside ours, and `handlers` such as the framework itself carries out: the benchmarks measure
    against both.
    """
    every = [*operations(), *[operation for domain in more for operation in domain.operations]]
    described = openapi.document_of(every, version=version("lastseat"))
    face = Face([*every, *docs.operations(described)], shared=bool(settings.cors_origins))

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        async with open_house(settings) as face.house:
            # The loop stops once more between this start and serving; signals that a server has put off wait that long.
            asyncio.get_running_loop().call_later(0.2, _hear_stops, face.house)
            yield

    face.framework = Litestar(
        route_handlers=[asgi("/", is_mount=True, copy_scope=False)(face.serve), *handlers],
        lifespan=[lifespan],
        state=State({"face": face}),
        exception_handlers={HTTPException: _unserved},
        cors_config=_cors(settings.cors_origins),
        openapi_config=None,
        logging_config=None,
    )
    return face


def _hear_stops(house: House) -> None:
    """Let the signals through that ask for a stop, and end the streams of events when one comes.

    A server finishes the answers under way before it says that it stops, and a stream is never finished by itself.
    """
    loop = asyncio.get_running_loop()

    def stop(known: Any, number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(house.events.end)
        if callable(known):
            known(number, frame)

    for number in STOPS:
        signal.signal(number, partial(stop, signal.getsignal(number)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _unserved(_request: Request[Any, Any, Any], fault: HTTPException) -> Response[bytes]:
    """Answer what the framework itself refuses, such as a Host that can be none."""
    given = refuse(problems.invalid("", fault.detail).refusal, 0)
    return Response(given.content, status_code=given.status, media_type=given.media_type.decode())


def _cors(origins: Sequence[str]) -> CORSConfig | None:
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Last-Event-ID",
            "Queue-Token",
            "Visitor-Secret",
        ],
        expose_headers=EXPOSED_HEADERS,
    )
