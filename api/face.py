"""Every operation under its method and path, as one bare ASGI application.

It stands under the framework's own application and takes every request whole: on two cores that answers three times as
many polls as handlers whose parameters, bodies and responses the framework makes. (Single paths cannot be bound to bare
handlers: with an id in the path, Litestar 2.25 fails with a KeyError.)
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import asyncpg
from litestar.types import HTTPScope, Receive, Send

from api import bodies, metrics, problems
from api.answers import Answer, refuse
from api.operations import Operation, Request
from api.problems import FAULTS, Refused
from engine.refusals import NotFound
from engine.stores.replies import Reply

if TYPE_CHECKING:
    from api.house import House

logger = logging.getLogger(__name__)

# Requests of one process under way at once; one more would only wait behind them.
IN_FLIGHT_MAX = 2048

BUSY = refuse(problems.BUSY, 0)


class Face:
    """Answers every request from its `house`."""

    house: "House"

    def __init__(self, operations: Sequence[Operation]) -> None:
        # A node knows its children by segment, the place of an id by None, and the methods that end there by "".
        self._root: dict[str | None, Any] = {}
        for operation in operations:
            node = self._root
            for segment in operation.path.split("/")[1:]:
                node = node.setdefault(None if segment.startswith("{") else segment, {})
            node.setdefault("", {})[operation.method] = operation

    def _find(self, path: str) -> tuple[dict[str, Operation], list[str]]:
        """The operations of a path by method, and the ids in it."""
        node, presented = self._root, []
        for segment in path.split("/")[1:]:
            if segment in node:
                node = node[segment]
            elif None in node:
                node = node[None]
                presented.append(segment)
            else:
                return {}, []
        return node.get("", {}), presented

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        began = perf_counter()
        # A mounted application is told the rest of the path, without its first slash and with a last one.
        scope["path"] = "/" + scope["path"].strip("/")
        methods, presented = self._find(scope["path"])
        operation = methods.get(scope["method"])
        if operation is None:
            refused = self._refuse_unrouted(methods)
            await _send(refused, send)
            metrics.observe("other", "unknown", refused.status, perf_counter() - began)
            return
        deadline = _Deadline(operation.deadline_s, send)
        given = BUSY
        try:
            given = await self._run(operation, presented, scope, receive)
        except asyncio.CancelledError:
            if deadline.answering is None:
                raise
        finally:
            deadline.stop()
        if deadline.answering is None:
            await _send(given, send)
        else:
            given = BUSY
            await deadline.answering
        metrics.observe(operation.method, operation.path, given.status, perf_counter() - began)

    def _refuse_unrouted(self, methods: Mapping[str, Operation]) -> Answer:
        now_ms = self.house.clock.now_ms
        if not methods:
            return refuse(NotFound(), now_ms)
        return refuse(problems.MethodNotAllowed(), now_ms, (b"allow", ", ".join(sorted(methods)).encode()))

    async def _run(self, operation: Operation, presented: Sequence[str], scope: HTTPScope, receive: Receive) -> Answer:
        house = self.house
        if house.in_flight >= IN_FLIGHT_MAX:
            return BUSY
        house.in_flight += 1
        refusal: Reply
        try:
            return await operation.run(Request(house, scope), presented, receive)
        except Refused as refused:
            refusal = refused.refusal
        except bodies.ClientGone:
            refusal = problems.invalid("", "The body ended early").refusal
        except asyncpg.DataError:
            # An InterfaceError by descent, but our own mistake: something unchecked came as far as a statement.
            logger.exception("%s %s", operation.method, operation.path)
            refusal = problems.InternalError()
        except FAULTS as fault:
            logger.warning("%s %s: %s: %s", operation.method, operation.path, type(fault).__name__, fault)
            return BUSY
        except Exception:
            logger.exception("%s %s", operation.method, operation.path)
            refusal = problems.InternalError()
        finally:
            house.in_flight -= 1
        return refuse(refusal, house.clock.now_ms)


class _Deadline:
    """Answers `busy` in place of a request that takes too long, and gives the request up.

    The answer does not wait for the request to hear of it: a driver whose server hangs may take long to give up.
    """

    def __init__(self, seconds: float, send: Send) -> None:
        self._send = send
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)
        self.answering: asyncio.Task[None] | None = None

    def _pass(self) -> None:
        self.answering = asyncio.create_task(_send(BUSY, self._send))
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """The request has ended by itself, or has heard that it was given up."""
        self._timer.cancel()
        if self.answering is not None and self._task is not None:
            self._task.uncancel()


async def _send(given: Answer, send: Send) -> None:
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", given.media_type),
        (b"content-length", b"%d" % len(given.content)),
        *given.headers,
    ]
    await send({"type": "http.response.start", "status": given.status, "headers": headers})
    await send({"type": "http.response.body", "body": given.content, "more_body": False})
