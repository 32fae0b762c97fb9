"""Serve the simulated gateway over HTTP: what `lastseat gateway` runs.

A bare ASGI application, because it stands beside the shop in its benchmarks and should cost little. One process,
because its state is in memory; it is lost when the process ends, and nothing brings it back.

    /v1/payment_intents …     what a shop asks, with its key
    /v1/refunds …
    /simulator/actions/{id}   the page of a buyer
    /simulator/switches       GET, POST, DELETE: faults for the next requests
    /simulator/clock          POST {"advance_s": …}: age what is remembered
    /simulator/ledger         GET: every intent with its amounts, oldest first, `?after=&limit=`
    /simulator/webhooks       GET: what was told and taken
    /health/live
"""

import asyncio
import contextlib
import functools
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from granian import Granian
from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from msgspec import Meta

from simulator import pages
from simulator.errors import Refused, too_many, went_wrong
from simulator.gateway import Gateway, Intent, Params
from simulator.idempotency import Keys
from simulator.methods import METHODS
from simulator.switches import Operation, Switch, Switches
from simulator.webhooks import Letter, Webhooks

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
Work = tuple[Operation, str | None, Callable[[], dict[str, Any]]]
Asked = TypeVar("Asked")

BODY_MAX = 64 * 1024
BACKLOG = 1024
LEDGER_MAX = 10_000
JSON = (b"content-type", b"application/json")

CARD_DETAILS = re.compile(r"(?:^|\[)card\]?\[(?:number|cvc|exp_month|exp_year)\]")
SEARCH = re.compile(r"""metadata\[(["'])(\w{1,40})\1\]\s*:\s*(["'])([^"']{0,500})\3""")

VERBS: dict[str, Operation] = {"confirm": "confirm", "capture": "capture", "cancel": "cancel"}


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """How this gateway is reached, and whom it tells."""

    host: str
    port: int
    api_key: str
    webhook_secret: str
    # Where webhooks go; None tells nobody.
    webhook_url: str | None = None
    # How long what comes late takes, and the first wait before a webhook is repeated.
    later_s: float = 1.0

    def __repr__(self) -> str:
        """Tell where it listens, and nothing secret."""
        return f"Config(host={self.host!r}, port={self.port!r}, webhook_url={self.webhook_url!r})"


class Advance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the clock goes ahead."""

    advance_s: Annotated[int, Meta(ge=0, le=366 * 24 * 3600)]


class Request(msgspec.Struct, frozen=True):
    """One request, read whole."""

    method: str
    path: str
    query: Params
    headers: dict[bytes, bytes]
    body: bytes
    gone: Receive


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    Granian(
        "simulator.server",
        address=config.host,
        port=config.port,
        interface=Interfaces.ASGI,
        workers=1,
        loop=Loops.uvloop,
        backlog=BACKLOG,
        websockets=False,
        workers_kill_timeout=5,
        log_level=LogLevels.warning,
    ).serve(target_loader=functools.partial(Simulator, config), wrap_loader=False)


class Simulator:
    """The application: one gateway, its memory of keys, its switches and its webhooks."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._advanced_s = 0
        self._keys = Keys(self._now)
        self._switches = Switches()
        self._webhooks = Webhooks(config.webhook_url, config.webhook_secret, self._now, later_s=config.later_s)
        self._gateway = Gateway(self._now, self._tell, self._later)
        self._first: list[Letter] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        number = f"req_{secrets.token_hex(8)}".encode()
        try:
            request = await _read(scope, receive)
            status, headers, body = await self._route(request)
        except Refused as refused:
            status, headers, body = refused.status, [JSON], msgspec.json.encode(refused.body)
        headers += [(b"request-id", number), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            await self._webhooks.start()
            await send({"type": "lifespan.startup.complete"})
        await self._webhooks.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _route(self, request: Request) -> Answer:
        place = request.path.strip("/").split("/")
        match request.method, place:
            case "GET", ["health", "live"]:
                return 200, [JSON], b'{"status":"live"}'
            case "GET", ["simulator", "actions", intent_id]:
                return 200, list(pages.HEADERS), pages.page(self._gateway.find(intent_id))
            case "POST", ["simulator", "actions", intent_id]:
                return await self._act(self._gateway.find(intent_id), _form(request))
        self._admit(request)
        match request.method, place:
            case "GET", ["v1", *_]:
                return await self._look(request, place[1:])
            case "POST", ["v1", *_]:
                return await self._change(request, place[1:])
            case _, ["simulator", what]:
                return 200, [JSON], msgspec.json.encode(self._operate(request, what))
        raise _unrecognized(request)

    # What a shop asks.

    async def _look(self, request: Request, place: list[str]) -> Answer:
        """Answer a read; reads change nothing, and need no key of their own."""
        operation: Operation = "query"
        payment_id = None
        look: Callable[[], dict[str, Any]]
        match place:
            case ["payment_intents", "search"]:
                operation, look = "search", functools.partial(self._search, request)
            case ["payment_intents", intent_id]:
                intent = self._gateway.find(intent_id)
                payment_id = intent.payment_id
                look = functools.partial(self._gateway.shape, intent, expanded=_is_expanded(request.query))
            case ["refunds", refund_id]:
                refund = self._gateway.find_refund(refund_id)
                payment_id = refund.intent.payment_id
                look = functools.partial(self._gateway.shape_refund, refund)
            case _:
                raise _unrecognized(request)
        switch = self._switches.take(operation, payment_id)
        await self._fail_before(switch, request)
        found = look()
        if switch and switch.fault == "stale":
            found["data"] = []
        await self._fail_after(switch, request)
        return 200, [JSON], msgspec.json.encode(found)

    def _search(self, request: Request) -> dict[str, Any]:
        wanted = SEARCH.fullmatch(request.query.get("query", ""))
        if wanted is None:
            raise Refused(400, "This gateway searches one metadata field alone.", param="query")
        limit = request.query.get("limit", "10")
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= 100:
            raise Refused(400, "A limit is 1 to 100.", param="limit")
        found = [self._gateway.shape(intent) for intent in self._gateway.search(wanted[2], wanted[4], int(limit))]
        return {"object": "search_result", "url": request.path, "has_more": False, "data": found}

    async def _change(self, request: Request, place: list[str]) -> Answer:
        """Carry a write out once for its key; a repeat hears what the first one heard, or would have heard."""
        params = _form(request)
        operation, payment_id, run = self._work(request, place, params)
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1") or f"none-{secrets.token_hex(16)}"
        known = self._keys.begin(key, _digest(request.path, params))
        if known is not None:
            return known[0], [JSON, (b"idempotent-replayed", b"true")], known[1]
        switch = self._switches.take(operation, payment_id) or _habit(operation, params)
        answer = None
        try:
            await self._fail_before(switch, request)
            answer = _run(run, switch)
        finally:
            # Nothing began: the key is as good as new.
            self._keys.end(key, answer)
        await self._tell_first()
        await self._fail_after(switch, request)
        return answer[0], [JSON], answer[1]

    def _work(self, request: Request, place: list[str], params: Params) -> Work:
        """Find out what is asked: which operation, about which payment, and how to do it."""
        shape = functools.partial(self._gateway.shape, expanded=_is_expanded(params))
        match place:
            case ["payment_intents"]:
                host = request.headers.get(b"host", b"").decode("latin-1")
                address = f"http://{host}/simulator/actions"
                return (
                    "authorise",
                    params.get("metadata[payment_id]"),
                    lambda: shape(self._gateway.create(params, address)),
                )
            case ["payment_intents", intent_id, ("confirm" | "capture" | "cancel") as verb]:
                intent = self._gateway.find(intent_id)
                act = getattr(self._gateway, verb)
                return VERBS[verb], intent.payment_id, lambda: shape(act(intent_id, params))
            case ["refunds"]:
                intent = self._gateway.find(params.get("payment_intent", ""), param="payment_intent")
                return "refund", intent.payment_id, lambda: self._gateway.shape_refund(self._gateway.refund(params))
        raise _unrecognized(request)

    async def _fail_before(self, switch: Switch | None, request: Request) -> None:
        match switch.fault if switch else None:
            case "slow" if switch:
                await asyncio.sleep(switch.delay_ms / 1000)
            case "silent_before" if switch:
                await _be_silent(switch, request)
            case "error_before":
                raise went_wrong()
            case "busy":
                raise too_many()

    async def _fail_after(self, switch: Switch | None, request: Request) -> None:
        match switch.fault if switch else None:
            case "silent_after" if switch:
                await _be_silent(switch, request)
            case "error_after":
                raise went_wrong()

    # What a buyer does.

    async def _act(self, intent: Intent, form: Params) -> Answer:
        outcome = form.get("outcome")
        if outcome not in {"approve", "fail"}:
            raise Refused(400, "An outcome is approve or fail.", param="outcome")
        self._gateway.act(intent, approved=outcome == "approve")
        await self._tell_first()
        if intent.return_url is None:
            return 200, list(pages.HEADERS), pages.page(intent)
        return 303, [(b"location", pages.way_back(intent).encode())], b""

    # What an operator does.

    def _operate(self, request: Request, what: str) -> Any:
        match request.method, what:
            case "GET", "ledger":
                return self._ledger(request.query)
            case "GET", "webhooks":
                return self._webhooks.report()
            case "GET", "switches":
                return {"switches": self._switches.all()}
            case "POST", "switches":
                self._switches.add(_json(request, Switch))
                return {"switches": self._switches.all()}
            case "DELETE", "switches":
                self._switches.clear()
                return {"switches": []}
            case "POST", "clock":
                self._advanced_s += _json(request, Advance).advance_s
                return {"now": int(self._now())}
        raise _unrecognized(request)

    def _ledger(self, query: Params) -> dict[str, Any]:
        limit = query.get("limit", "1000")
        if not re.fullmatch("[0-9]{1,5}", limit) or not 1 <= int(limit) <= LEDGER_MAX:
            raise Refused(400, f"A limit is 1 to {LEDGER_MAX}.", param="limit")
        page = self._gateway.after(query.get("after"), int(limit) + 1)
        rows = [
            {
                "payment_intent": intent.id,
                **{name: intent.metadata.get(name) for name in ("payment_id", "sale_id", "reservation_id")},
                "status": intent.status,
                "currency": intent.currency,
                "amount": intent.amount,
                "authorised": intent.capturable,
                "captured": intent.received,
                "refunded": intent.refunded,
                "created": intent.created,
            }
            for intent in page[: int(limit)]
        ]
        return {"intents": rows, "next": rows[-1]["payment_intent"] if len(page) > int(limit) else None}

    # How time and news reach the gateway.

    def _now(self) -> float:
        return time.time() + self._advanced_s  # noqa: TID251 - somebody else's house, with a clock of its own

    def _tell(self, type_: str, intent: Intent, subject: dict[str, Any]) -> None:
        letter = self._webhooks.tell(type_, intent.id, subject, intent.method.telling)
        if letter is not None:
            self._first.append(letter)

    async def _tell_first(self) -> None:
        """Tell what must arrive before the request that caused it is answered."""
        letters, self._first = self._first, []
        for letter in letters:
            await self._webhooks.deliver(letter)

    def _later(self, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self._config.later_s, act)

    def _admit(self, request: Request) -> None:
        """Refuse whoever has no key or another one; a key for real money is never the right one here."""
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, self._config.api_key.encode()):
            raise Refused(401, "Invalid API key provided.")


def _run(run: Callable[[], dict[str, Any]], switch: Switch | None) -> tuple[int, bytes]:
    """Do it, and answer what its key will be answered from now on; raises Refused if nothing began."""
    try:
        if switch and switch.fault == "refused":
            raise Refused(402, "The bank refuses.", kind="card_error", code="card_declined", began=True)
        status, said = 200, run()
    except Refused as refused:
        if not refused.began:
            raise
        status, said = refused.status, refused.body
    if switch and switch.fault == "error_kept":
        wrong = went_wrong()
        status, said = wrong.status, wrong.body
    return status, msgspec.json.encode(said)


def _habit(operation: Operation, params: Params) -> Switch | None:
    """The fault that a payment method brings with it."""
    method = METHODS.get(params.get("payment_method", "")) if operation == "authorise" else None
    return Switch(fault=method.fault) if method and method.fault else None


async def _be_silent(switch: Switch, request: Request) -> None:
    """Answer nothing until the client goes away, or long after it should have."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(switch.delay_ms / 1000):
            while (await request.gone())["type"] != "http.disconnect":
                pass
    raise went_wrong()


async def _read(scope: Message, receive: Receive) -> Request:
    parts = []
    size = 0
    more = True
    while more:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_MAX:
            raise Refused(413, "The body is too large.")
        parts.append(part)
        more = message.get("more_body", False)
    return Request(
        scope["method"], scope["path"], _pairs(scope["query_string"]), dict(scope["headers"]), b"".join(parts), receive
    )


def _form(request: Request) -> Params:
    if not request.headers.get(b"content-type", b"").startswith(b"application/x-www-form-urlencoded") and request.body:
        raise Refused(400, "A body is form-encoded.")
    return _pairs(request.body)


def _pairs(encoded: bytes) -> Params:
    try:
        text = encoded.decode("ascii")
        pairs = dict(
            parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=200, errors="strict")
        )
    except ValueError as fault:
        raise Refused(400, "This cannot be read as a form.") from fault
    for name in pairs:
        if CARD_DETAILS.search(name):
            raise Refused(400, "Card details are never sent here: send the id of a payment method.", param="card")
    return pairs


def _json(request: Request, kind: type[Asked]) -> Asked:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.DecodeError as fault:
        raise Refused(400, str(fault)) from fault


def _digest(path: str, params: Params) -> bytes:
    return hashlib.blake2b(repr((path, sorted(params.items()))).encode(), digest_size=16).digest()


def _is_expanded(params: Params) -> bool:
    return any(name.startswith("expand[") and text == "latest_charge" for name, text in params.items())


def _unrecognized(request: Request) -> Refused:
    return Refused(404, f"Unrecognized request URL ({request.method}: {request.path[:200]}).")
