"""The application: every operation under its path, one OpenAPI document, one house to serve from."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from litestar import Litestar, Request, Response, asgi
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler

from api import (
    accounts,
    balances,
    catalogue,
    docs,
    health,
    metrics,
    openapi,
    payments,
    problems,
    reservations,
    sales,
    seats,
)
from api.answers import refuse
from api.house import open_house
from api.operations import Operation, Path, Routes
from engine.refusals import NotFound
from engine.settings import Settings

EXPOSED_HEADERS = ["ETag", "Location", "Retry-After", "Idempotent-Replayed", "RateLimit"]

DOMAINS: tuple[Routes, ...] = (
    accounts.routes,
    balances.routes,
    sales.routes,
    catalogue.routes,
    seats.routes,
    reservations.routes,
    payments.routes,
    health.routes,
)
"""The domains in the order in which the document tells them."""


def operations() -> list[Operation]:
    """Every operation."""
    return [operation for domain in DOMAINS for operation in domain.operations]


def create_app(settings: Settings) -> Litestar:
    """Make the application; it opens its stores when it starts, and closes them after its last answer."""
    every = operations()
    described = openapi.document_of(every, version=version("lastseat"))
    docs_routes = docs.routes_of(described)
    paths: dict[str, list[Operation]] = defaultdict(list)
    for operation in (*every, *docs_routes.operations):
        paths[operation.path].append(operation)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with open_house(settings) as house:
            app.state.house = house
            yield

    return Litestar(
        route_handlers=[_handler(path, of_path) for path, of_path in paths.items()],
        lifespan=[lifespan],
        exception_handlers={HTTPException: _unrouted},
        cors_config=_cors(settings.cors_origins),
        openapi_config=None,
        logging_config=None,
    )


def _handler(path: str, of_path: Sequence[Operation]) -> ASGIRouteHandler:
    return asgi(path.replace("}", ":str}"), copy_scope=False)(Path(path, of_path))


def _unrouted(_request: Request[Any, Any, Any], fault: HTTPException) -> Response[bytes]:
    """Answer what no path of ours answered."""
    refusal = NotFound() if fault.status_code == 404 else problems.invalid("", fault.detail).refusal
    given = refuse(refusal, 0)
    metrics.observe("other", "unknown", given.status, 0.0)
    return Response(given.content, status_code=given.status, media_type=given.media_type.decode())


def _cors(origins: Sequence[str]) -> CORSConfig | None:
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Queue-Token",
            "Visitor-Secret",
        ],
        expose_headers=EXPOSED_HEADERS,
    )
