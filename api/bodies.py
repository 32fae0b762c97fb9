"""Read what a client sent: bounded bytes first, then a decoded and checked body or query."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar.types import Receive

from api.problems import BodyTooLarge, Refused, invalid

T = TypeVar("T")

# How msgspec words its errors: `Expected …, got … - at `$.seats[1]``, without the path where it is the whole document.
_AT = re.compile(r"(?P<message>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(?P<field>.*)`", re.DOTALL)


class ClientGone(Exception):
    """The client hung up before its request was whole."""


async def read_content(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Read a body of at most so many bytes; raises Refused for a longer one, and ClientGone."""
    if int(headers.get(b"content-length") or 0) > most:
        raise Refused(BodyTooLarge(most=most))
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        length += len(part)
        if length > most:
            raise Refused(BodyTooLarge(most=most))
        if not message.get("more_body"):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


def decode(content: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a JSON body; raises Refused with the path of the first thing wrong with it."""
    try:
        return decoder.decode(content)
    except msgspec.ValidationError as fault:
        raise invalid(*misfit_of(str(fault))) from fault
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise invalid("", f"No JSON: {fault}") from fault


def read_query(query: bytes, shape: type[T]) -> T:
    """Read the query; a name that nobody knows is left alone, as links gain such names on their way."""
    presented = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    try:
        return msgspec.convert(presented, shape, strict=False)
    except msgspec.ValidationError as fault:
        raise invalid(*misfit_of(str(fault))) from fault


def misfit_of(words: str) -> tuple[str, str]:
    """Read an error of msgspec as a path and a message: an unknown or missing field is named by its own path."""
    matched = _AT.fullmatch(words)
    message, path = (matched["message"], matched["path"] or "") if matched else (words, "")
    field = _FIELD.fullmatch(message)
    if field is not None:
        path = f"{path}.{field['field']}" if path else field["field"]
    return path, message


def whole(pattern: str) -> str:
    """A pattern that only a whole text matches: Python's `$` alone also matches before a line break at the end."""
    return rf"^{pattern}$(?!\n)"


def text_of(document: Any) -> str:
    """Write a document as canonical JSON, to be fingerprinted."""
    return msgspec.json.encode(document, order="deterministic").decode()
