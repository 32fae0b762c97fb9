"""What is sent back: a status, headers and ready bytes, encoded once."""

from collections.abc import Awaitable, Callable

import msgspec
from litestar.types import Receive, Send

from api import problems
from engine.stores.replies import Reply

Header = tuple[bytes, bytes]

JSON = b"application/json"
PROBLEM_JSON = b"application/problem+json"

encode = msgspec.json.Encoder().encode


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says; a field that is UNSET is left out."""


class Answer(msgspec.Struct, frozen=True):
    """What a handler answers."""

    content: bytes = b""
    status: int = 200
    headers: tuple[Header, ...] | list[Header] = ()
    media_type: bytes = JSON


class Stream(Answer, frozen=True, kw_only=True):
    """What a handler answers that goes on: `flow` sends all that follows the headers, until either side ends it.

    Only where the operation has no deadline.
    """

    flow: Callable[[Receive, Send], Awaitable[None]]


def answer(
    document: object,
    status: int = 200,
    *,
    version: int | None = None,
    repeated: bool = False,
    location: str | None = None,
    retry_after_s: int | None = None,
) -> Answer:
    """Answer with a document: `version` is its ETag, `repeated` says that an earlier request took effect."""
    headers: list[Header] = []
    if version is not None:
        headers.append((b"etag", b'"%d"' % version))
    if repeated:
        headers.append((b"idempotent-replayed", b"true"))
    if location is not None:
        headers.append((b"location", location.encode()))
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    return Answer(encode(document), status, headers)


def refuse(refusal: Reply, now_ms: int, *headers: Header) -> Answer:
    """Answer with a problem."""
    document = problems.document_of(refusal)
    return Answer(encode(document), document["status"], [*problems.headers_of(refusal, now_ms), *headers], PROBLEM_JSON)
