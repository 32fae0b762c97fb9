"""Who may call a route: anyone, a user, whoever stands in a line, an operator whose key has the scope."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.problems import NotSignedIn, Refused, ScopeMissing, invalid
from engine import accounts
from engine.tokens import visitor_owner

if TYPE_CHECKING:
    from api.operations import Request

SECRET_MIN = 22  # 128 bits as base64url
SECRET_MAX = 128


@dataclass(frozen=True)
class Caller:
    """A kind of caller: how one is known, and the schemes of the OpenAPI document that say so."""

    find: Callable[["Request"], Awaitable[str]]
    schemes: tuple[str, ...] = ()
    scope: str | None = None


def _bearer(request: "Request") -> str:
    scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise Refused(NotSignedIn())
    return token.strip().decode("latin-1")


async def _anyone(_request: "Request") -> str:
    return ""


async def _user(request: "Request") -> str:
    house = request.house
    user_id = house.user_tokens.verify(_bearer(request), house.clock.now_ms)
    if user_id is None:
        raise Refused(NotSignedIn())
    return user_id


async def _person(request: "Request") -> str:
    """A user, or a visitor known by a secret that only the browser holds."""
    if b"authorization" in request.headers:
        return await _user(request)
    owner = visitor_of(request)
    if owner is None:
        raise Refused(NotSignedIn())
    return owner


def visitor_of(request: "Request") -> str | None:
    """The visitor whose secret came along, if one did."""
    secret = request.headers.get(b"visitor-secret")
    if secret is None:
        return None
    if not SECRET_MIN <= len(secret) <= SECRET_MAX or not secret.isascii():
        raise invalid("Visitor-Secret", f"Expected {SECRET_MIN} to {SECRET_MAX} ASCII characters")
    return visitor_owner(secret.decode())


ANYONE = Caller(_anyone)
USER = Caller(_user, ("user",))
PERSON = Caller(_person, ("user", "visitor"))


def operator(scope: str) -> Caller:
    """An operator whose key has this scope."""

    async def find(request: "Request") -> str:
        key = await accounts.find_api_key(request.house.postgres, _bearer(request))
        if key is None:
            raise Refused(NotSignedIn())
        if scope not in key.scopes:
            raise Refused(ScopeMissing(scope=scope))
        request.caller_name = key.name
        return key.api_key_id

    return Caller(find, ("operator",), scope)
