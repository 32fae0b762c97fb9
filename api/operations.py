"""What a route asks for and what it answers, said once: the declaration that runs a request also documents it.

A handler takes the request, the ids of its path by name and, where it names them, a decoded `body` and `query`. It
returns an Answer or raises Refused. All else happens here, in one order: who calls, the ids, the key, the query, the
body, the handler.
"""

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from litestar.types import HTTPScope, Receive

from api import bodies, problems
from api.answers import Answer
from api.callers import ANYONE, Caller
from api.problems import Refused
from engine import ids
from engine.refusals import NotFound
from engine.sales import Sale
from engine.stores.replies import Reply

if TYPE_CHECKING:
    from api.house import House

logger = logging.getLogger(__name__)

BODY_MAX = 64 * 1024
IMPORT_MAX = 16 * 1024 * 1024
WEBHOOK_MAX = 1024 * 1024
# A request that takes longer is answered `busy`; its repeat finds what it may have done by the same ids.
DEADLINE_S = 10.0
IMPORT_DEADLINE_S = 60.0

JSON = "application/json"
CSV = "text/csv"

_KEY = re.compile(rb"[\x21-\x7e]{1,128}")
_ID = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_IN_PATH = re.compile(r"{(\w+)}")
_VERSION = re.compile(rb'(?:W/)?"(\d{1,18})"')

Handler = Callable[..., Awaitable[Answer]]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client sends: a field that nobody knows is an error and not a wish quietly dropped."""


def changes_of(body: Body) -> dict[str, Any]:
    """What an edit says: its fields without those that it leaves out."""
    return {name: value for name, value in msgspec.structs.asdict(body).items() if value is not msgspec.UNSET}


class Empty(Body, frozen=True):
    """An empty object, or no body at all."""


class Table(bytes):
    """A body in text/csv, as it came."""


class Raw(bytes):
    """A body as it came, of whatever type: its signature is over these very bytes."""


class Request:
    """One request as its handler sees it."""

    __slots__ = ("_key", "caller_id", "caller_name", "headers", "house", "method", "path", "query_string")

    def __init__(self, house: "House", scope: HTTPScope) -> None:
        self.house = house
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query_string: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        # A user's id, the owner of a place in line, or the id of an operator's key.
        self.caller_id = ""
        # The name of an operator's key, for the log.
        self.caller_name = ""
        self._key: str | None = None

    @property
    def key(self) -> str:
        """The `Idempotency-Key`; raises Refused where it is missing."""
        if self._key is None:
            key = self.headers.get(b"idempotency-key")
            if key is None:
                raise Refused(problems.KeyRequired())
            if not _KEY.fullmatch(key):
                raise problems.invalid("Idempotency-Key", "Expected 1 to 128 visible ASCII characters")
            self._key = key.decode()
        return self._key

    def new_id(self, caller_id: str | None = None) -> str:
        """The id that the caller, method, path and key make, so that a repeat makes the same one."""
        return ids.derive(caller_id or self.caller_id, self.method, self.path, self.key)

    def if_match(self) -> int:
        """The version that an edit was made of; raises Refused where none was said."""
        presented = self.headers.get(b"if-match")
        if presented is None:
            raise problems.invalid("If-Match", "Expected the ETag of the record that is edited")
        version = _VERSION.fullmatch(presented)
        if version is None:
            raise problems.invalid("If-Match", 'Expected an ETag like "3"')
        return int(version[1])

    async def sale(self, sale_id: str) -> Sale:
        """The sale of this id; raises Refused where there is none. A source of coupons is none."""
        sale = await self.house.book.find(sale_id)
        if sale is None or sale.kind == "coupon":
            raise Refused(NotFound())
        return sale

    async def source(self, coupon_id: str) -> Sale:
        """The source of coupons of this id, as the shard that it is; raises Refused where there is none."""
        sale = await self.house.book.find(coupon_id)
        if sale is None or sale.kind != "coupon":
            raise Refused(NotFound())
        return sale


@dataclass(frozen=True)
class Header:
    """A request header that an operation reads."""

    name: str
    says: str
    required: bool = False


KNOWN = Header("If-None-Match", "The ETag of the answer one has.")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    answers: Mapping[int, Any]
    """What it answers, by status: the type of a document, a media type as text, None for no content; a tuple of types
    where the document depends on what was sent."""
    caller: Caller
    refusals: tuple[type[Reply], ...]
    """What it may refuse, beyond what follows from the rest of this declaration."""
    keyed: bool
    edits: bool
    """Needs `If-Match`."""
    reads: tuple[Header, ...]
    sends: tuple[str, ...]
    """Response headers of its own, by name."""
    body_max: int
    deadline_s: float | None
    """None where everything that is waited for has a bound of its own."""
    tag: str

    @cached_property
    def takes(self) -> dict[str, Any]:
        """What the handler takes besides the request: types by name."""
        parameters = inspect.signature(self.handler, eval_str=True).parameters
        return {name: parameter.annotation for name, parameter in list(parameters.items())[1:]}

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The names of the ids in the path."""
        return tuple(_IN_PATH.findall(self.path))

    @cached_property
    def _shapes(self) -> list[re.Pattern[str]]:
        """What each id in the path must look like; whatever else stands there is the id of nothing."""
        return [_NUMBER if name.endswith("_no") else _ID for name in self.ids]

    @cached_property
    def body(self) -> Any:
        """The type of the body, without Table; None where no JSON is read."""
        return self._bodies[0]

    @cached_property
    def media_types(self) -> list[str]:
        """The content types that it reads."""
        body, table = self._bodies
        return [*([JSON] if body else []), *([CSV] if table else [])]

    @property
    def body_required(self) -> bool:
        """Whether there must be a body at all."""
        return self.body is not Empty

    @cached_property
    def _bodies(self) -> tuple[Any, bool]:
        body = self.takes.get("body")
        kinds = getattr(body, "__args__", (body,)) if body else ()
        read = [kind for kind in kinds if kind not in (Table, Raw)]
        return (read[0] if read else None), Table in kinds

    @property
    def takes_raw(self) -> bool:
        """Whether the handler reads the body itself."""
        return self.takes.get("body") is Raw

    @cached_property
    def decoder(self) -> "msgspec.json.Decoder[Any]":
        """Decodes the body."""
        return msgspec.json.Decoder(self.body)

    async def run(self, request: Request, presented: Sequence[str], receive: Receive) -> Answer:
        """Answer one request; raises Refused, and whatever the stores raise."""
        request.caller_id = await self.caller.find(request)
        for shape, text in zip(self._shapes, presented, strict=True):
            if not shape.fullmatch(text):
                raise Refused(NotFound())
        arguments: dict[str, Any] = dict(zip(self.ids, presented, strict=True))
        if self.keyed:
            _ = request.key
        if "query" in self.takes:
            arguments["query"] = bodies.read_query(request.query_string, self.takes["query"])
        if "body" in self.takes:
            arguments["body"] = await self._read_body(request, receive)
        return await self.handler(request, **arguments)

    async def _read_body(self, request: Request, receive: Receive) -> Any:
        content = await bodies.read_content(request.headers, receive, self.body_max)
        if self.takes_raw:
            return Raw(content)
        if not content and not self.body_required:
            return Empty()
        sent_as = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if sent_as not in self.media_types:
            raise Refused(problems.MediaType(expected=self.media_types))
        return Table(content) if sent_as == CSV else bodies.decode(content, self.decoder)


class Routes:
    """The operations of one domain, in the order they are read."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.operations: list[Operation] = []

    def add(
        self,
        method: str,
        path: str,
        answers: Mapping[int, Any],
        *,
        caller: Caller = ANYONE,
        refusals: Sequence[type[Reply]] = (),
        keyed: bool = False,
        edits: bool = False,
        reads: Sequence[Header] = (),
        sends: Sequence[str] = (),
        body_max: int = BODY_MAX,
        deadline_s: float | None = DEADLINE_S,
    ) -> Callable[[Handler], Handler]:
        """Declare the operation that a handler carries out; its docstring is the operation's summary."""

        def declare(handler: Handler) -> Handler:
            self.operations.append(
                Operation(
                    method=method,
                    path=path,
                    handler=handler,
                    answers=answers,
                    caller=caller,
                    refusals=tuple(refusals),
                    keyed=keyed,
                    edits=edits,
                    reads=tuple(reads),
                    sends=tuple(sends),
                    body_max=body_max,
                    deadline_s=deadline_s,
                    tag=self.tag,
                )
            )
            return handler

        return declare
