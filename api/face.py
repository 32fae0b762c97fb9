"""Every operation under its method and path, as one bare ASGI application before the framework's own.

What it knows it answers whole; the framework starts and stops it, lets other origins in, and answers everything else. A
request through a handler whose parameters, body and response the framework makes costs about four times as much, and
most requests of a sale are polls. (Nor can Litestar 2.25 bind a bare handler to a path with an id in it: that is a
KeyError.)
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from time import perf_counter
from typing import TYPE_CHECKING, Any

import asyncpg
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from api import bodies, metrics, problems
from api.answers import Answer, Stream, refuse
from api.operations import Operation, Request
from api.problems import FAULTS, Refused
from engine.refusals import NotFound
from engine.stores.replies import Reply

if TYPE_CHECKING:
    from api.house import House

logger = logging.getLogger(__name__)

# Requests of one process under way at once; one more would only wait behind them.
IN_FLIGHT_MAX = 2048

# How exactly a deadline is kept.
TICK_S = 0.1

BUSY = refuse(problems.BUSY, 0)


class Face:
    """Answers what it knows from its `house`, and hands the rest to the `framework`."""

    house: "House"
    framework: ASGIApp

    def __init__(self, operations: Sequence[Operation], *, shared: bool = False) -> None:
        # Browsers of other origins are let in by the framework.
        self._shared = shared
        self._deadlines = _Deadlines()
        # A node knows its children by segment, the place of an id by None, and the methods that end there by "".
        self._root: dict[str | None, Any] = {}
        for operation in operations:
            node = self._root
            for segment in operation.path.split("/")[1:]:
                node = node.setdefault(None if segment.startswith("{") else segment, {})
            node.setdefault("", {})[operation.method] = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the framework do it."""
        if self._shared:
            send = _varying(send)
        if scope["type"] == ScopeType.HTTP and not (
            self._shared and any(name == b"origin" for name, _ in scope["headers"])
        ):
            methods, presented = self._find(scope["path"])
            if methods:
                await self._serve(methods, presented, scope, receive, send)
                return
        await self.framework(scope, receive, send)

    async def serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer a request that the framework hands back, also for a path that nobody knows."""
        # A mounted application is told the rest of the path, without its first slash and with a last one.
        scope["path"] = "/" + scope["path"].strip("/")
        methods, presented = self._find(scope["path"])
        if methods:
            await self._serve(methods, presented, scope, receive, send)
        else:
            await _send(refuse(NotFound(), 0), send)
            metrics.observe("other", "unknown", 404, 0.0)

    def _find(self, path: str) -> tuple[dict[str, Operation], list[str]]:
        """The operations of a path by method, and the ids in it."""
        node, presented = self._root, []
        for segment in path.split("/")[1:]:
            if not segment:
                return {}, []  # under "" stand methods
            if segment in node:
                node = node[segment]
            elif None in node:
                node = node[None]
                presented.append(segment)
            else:
                return {}, []
        return node.get("", {}), presented

    async def _serve(
        self,
        methods: Mapping[str, Operation],
        presented: Sequence[str],
        scope: HTTPScope,
        receive: Receive,
        send: Send,
    ) -> None:
        began = perf_counter()
        operation = methods.get(scope["method"])
        if operation is None and scope["method"] == "HEAD" and "GET" in methods:
            operation, send = methods["GET"], _without_content(send)
        if operation is None:
            allow = (b"allow", ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods)).encode())
            await _send(refuse(problems.MethodNotAllowed(), 0, allow), send)
            metrics.observe("other", "unknown", 405, 0.0)
            return
        if operation.deadline_s is None:
            given = await self._run(operation, presented, scope, receive)
            if isinstance(given, Stream):
                # Counted when it begins: how long it lives is up to whoever listens.
                metrics.observe(operation.method, operation.path, given.status, perf_counter() - began)
                await _stream(given, receive, send, nothing_follows=scope["method"] == "HEAD")
                return
            await _send(given, send)
        else:
            given = await self._run_in_time(operation, operation.deadline_s, presented, scope, receive, send)
        metrics.observe(operation.method, operation.path, given.status, perf_counter() - began)

    async def _run_in_time(
        self,
        operation: Operation,
        seconds: float,
        presented: Sequence[str],
        scope: HTTPScope,
        receive: Receive,
        send: Send,
    ) -> Answer:
        deadline = self._deadlines.begin(seconds, send)
        given = BUSY
        try:
            given = await self._run(operation, presented, scope, receive)
        except asyncio.CancelledError:
            if deadline.answering is None:
                raise
        finally:
            self._deadlines.end(deadline)
        if deadline.answering is None:
            await _send(given, send)
            return given
        await deadline.answering
        return BUSY

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

    __slots__ = ("_send", "_task", "answering", "passes_at", "seconds")

    def __init__(self, seconds: float, now: float, send: Send) -> None:
        self.seconds = seconds
        self.passes_at = now + seconds
        self._send = send
        self._task = asyncio.current_task()
        self.answering: asyncio.Task[None] | None = None

    def pass_(self) -> None:
        """Answer, and give the request up."""
        self.answering = asyncio.create_task(_send(BUSY, self._send))
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """The request has ended by itself, or has heard that it was given up."""
        if self.answering is not None and self._task is not None:
            self._task.uncancel()


class _Deadlines:
    """The deadlines of the requests under way: one timer for all costs less than one a request."""

    def __init__(self) -> None:
        # By how long they are, each in the order they pass: what is not yet due need not be looked at.
        self._running: dict[float, dict[_Deadline, None]] = {}
        self._ticking = False

    def begin(self, seconds: float, send: Send) -> _Deadline:
        """Begin the deadline of the request that runs."""
        loop = asyncio.get_running_loop()
        deadline = _Deadline(seconds, loop.time(), send)
        self._running.setdefault(seconds, {})[deadline] = None
        if not self._ticking:
            self._ticking = True
            loop.call_later(TICK_S, self._tick)
        return deadline

    def end(self, deadline: _Deadline) -> None:
        """End the deadline of a request that has ended."""
        self._running[deadline.seconds].pop(deadline, None)
        deadline.end()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for running in self._running.values():
            for deadline in [*takewhile(lambda each: each.passes_at <= now, running)]:
                del running[deadline]
                deadline.pass_()
        self._ticking = any(self._running.values())
        if self._ticking:
            loop.call_later(TICK_S, self._tick)


def _varying(send: Send) -> Send:
    """Tell caches what answers depend on: the framework names the origin to other origins alone, and only that."""

    async def vary(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [header for header in message["headers"] if header[0] != b"vary"]
            message["headers"] = [*headers, (b"vary", b"accept-encoding, origin")]
        await send(message)

    return vary


def _without_content(send: Send) -> Send:
    """Send what a GET would be answered, but its content (RFC 9110, 9.3.2)."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await send(message)

    return send_head


async def _stream(given: Stream, receive: Receive, send: Send, *, nothing_follows: bool) -> None:
    headers = [(b"content-type", given.media_type), *given.headers]
    await send({"type": "http.response.start", "status": given.status, "headers": headers})
    if nothing_follows:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await given.flow(receive, send)


async def _send(given: Answer, send: Send) -> None:
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", given.media_type),
        (b"content-length", b"%d" % len(given.content)),
        *given.headers,
    ]
    await send({"type": "http.response.start", "status": given.status, "headers": headers})
    await send({"type": "http.response.body", "body": given.content, "more_body": False})
