"""Signed queue tokens for our own door, and passes for the doors of others.

A queue token says which number somebody holds. It is checked on every request, so it is a compact HMAC; it carries all
that is needed to put a person back in line after the store was lost. It admits nobody by itself: the state of the
number in the store decides. A pass is an EdDSA JWT that lives for at most a minute, for sites that cannot ask us.
"""

import base64
import binascii
import hashlib
import hmac
import itertools
import secrets
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import asyncpg
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.stores import queries

VISITOR: Final = "v"
TOKENS_REMEMBERED_MAX: Final = 65_536

PASS_LIFETIME_MS: Final = 60_000
# Sites keep the key set for a while: a key is published this long before it signs, and stays as long after.
PUBLISHED_BEFORE_MS: Final = 600_000
PUBLISHED_AFTER_MS: Final = 3_600_000

SQL = queries.load("tokens")


def visitor_owner(secret: str) -> str:
    """The owner that a visitor's secret stands for: only the browser that made the secret can name it."""
    return VISITOR + hashlib.sha256(secret.encode()).hexdigest()[:32]


# --- queue tokens -----------------------------------------------------------------------------------------------------


class QueueToken(msgspec.Struct, frozen=True):
    """What a queue token says; `queue_no` is 0 for one that was given out while the room asked for none."""

    sale_id: str
    epoch: int
    owner: str
    queue_no: int


class _Forged(Exception):
    """The text is no token of ours."""


# version, sale, epoch, whether the owner is a visitor, owner, number. With its mac a token is 66 bytes, a multiple of
# three: its base64 has no padding and one spelling only.
_LAYOUT: Final = struct.Struct(">B16sQ?16sQ")
_VERSION: Final = 1
_MAC_BYTES: Final = 16
_CHARACTERS: Final = (_LAYOUT.size + _MAC_BYTES) // 3 * 4


class QueueTokens:
    """Signs and verifies queue tokens with a key derived from the installation's secret."""

    def __init__(self, secret: str) -> None:
        # A key of its own, so that no signature made for another purpose is ever a queue token.
        self._key = hmac.digest(secret.encode(), b"queue token", hashlib.sha256)
        # What verified once is remembered: a person polls with the same token for minutes. A forged one raises, and
        # what raises is not remembered, so nobody can push others out with rubbish.
        self._verified = lru_cache(maxsize=TOKENS_REMEMBERED_MAX)(self._read)

    def sign(self, token: QueueToken) -> str:
        """The text of a token."""
        is_visitor = token.owner.startswith(VISITOR)
        body = _LAYOUT.pack(
            _VERSION,
            bytes.fromhex(token.sale_id),
            token.epoch,
            is_visitor,
            bytes.fromhex(token.owner.removeprefix(VISITOR)),
            token.queue_no,
        )
        return base64.urlsafe_b64encode(body + self._mac(body)).decode()

    def verify(self, text: str) -> QueueToken | None:
        """What a token says, or None when we did not sign this text."""
        try:
            return self._verified(text)
        except _Forged:
            return None

    def _read(self, text: str) -> QueueToken:
        try:
            signed = base64.b64decode(text, altchars=b"-_", validate=True) if len(text) == _CHARACTERS else b""
        except (binascii.Error, ValueError) as fault:
            raise _Forged from fault
        body, mac = signed[: _LAYOUT.size], signed[_LAYOUT.size :]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise _Forged
        version, sale, epoch, is_visitor, owner, queue_no = _LAYOUT.unpack(body)
        if version != _VERSION:
            raise _Forged
        return QueueToken(sale.hex(), epoch, VISITOR * is_visitor + owner.hex(), queue_no)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_MAC_BYTES]


# --- keys -------------------------------------------------------------------------------------------------------------


class SigningKey(msgspec.Struct, frozen=True):
    """A key whose public half others know: its id, the 32 bytes of the private one in base64, when it was published."""

    kid: str
    private: str
    published_at_ms: int

    @property
    def private_key(self) -> Ed25519PrivateKey:
        """The key itself."""
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(self.private))

    @property
    def jwk(self) -> dict[str, str]:
        """The public half, as the key set shows it."""
        public = base64.urlsafe_b64encode(self.private_key.public_key().public_bytes_raw()).decode().rstrip("=")
        return {"kty": "OKP", "crv": "Ed25519", "x": public, "kid": self.kid, "alg": "EdDSA", "use": "sig"}


def make_key(published_at_ms: int) -> SigningKey:
    """A new random key."""
    private = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
    return SigningKey(kid=secrets.token_hex(8), private=private, published_at_ms=published_at_ms)


class Signer:
    """Makes JWTs of one type with one key; the same claims make the same text.

    They are put together by hand, as RFC 7515 says: the library takes as long again as the signature.
    """

    def __init__(self, key: SigningKey, type_: str) -> None:
        self._private = key.private_key
        self._header = _base64(msgspec.json.encode({"alg": "EdDSA", "kid": key.kid, "typ": type_}))

    def sign(self, claims: dict[str, Any]) -> str:
        """The text of a token that says this."""
        signed = self._header + b"." + _base64(msgspec.json.encode(claims))
        return (signed + b"." + _base64(self._private.sign(signed))).decode()


# --- passes -----------------------------------------------------------------------------------------------------------


class Passes:
    """Signs passes with the newest key that every site can have seen, and publishes all keys that are in use.

    Args:
        keys: at least one.
        issuer: the `iss` of every pass.
    """

    def __init__(self, keys: Sequence[SigningKey], *, issuer: str = "lastseat") -> None:
        self._issuer = issuer
        self.use(keys)

    def use(self, keys: Sequence[SigningKey]) -> None:
        """Take these keys from now on, after a rotation."""
        self._keys = sorted(keys, key=lambda key: key.published_at_ms)
        self._signers = {key.kid: Signer(key, "JWT") for key in self._keys}
        self.jwks: dict[str, Any] = {"keys": [key.jwk for key in self._keys]}

    def issue(self, *, sale_id: str, owner: str, queue_no: int, now_ms: int, until_ms: int) -> str:
        """A pass for an admitted owner, valid for a minute and never past `until_ms`."""
        published = [key for key in self._keys if key.published_at_ms <= now_ms - PUBLISHED_BEFORE_MS]
        key = published[-1] if published else self._keys[0]
        claims = {
            "iss": self._issuer,
            "aud": sale_id,
            "sub": owner,
            "queue_no": queue_no,
            "exp": min(now_ms + PASS_LIFETIME_MS, until_ms) // 1000,
            "jti": secrets.token_hex(16),
        }
        return self._signers[key.kid].sign(claims)


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


_STORED: Final = msgspec.json.Decoder(tuple[SigningKey, ...])


async def find_pass_keys(postgres: asyncpg.Pool) -> tuple[SigningKey, ...]:
    """The keys of this installation; the first process to ask makes the first one."""
    kept = await SQL.find_pass_keys.fetchval(postgres)
    if kept is None:
        # Published before everything: there is no older one that sites could have seen instead.
        await SQL.add_pass_keys.execute(postgres, msgspec.json.encode([make_key(0)]).decode())
        kept = await SQL.find_pass_keys.fetchval(postgres)
    return _STORED.decode(kept)


async def rotate_pass_keys(postgres: asyncpg.Pool) -> tuple[SigningKey, ...]:
    """Publish a new key, which signs from ten minutes later on, and drop those that signed nothing that still lives."""
    await find_pass_keys(postgres)
    async with postgres.acquire() as connection, connection.transaction():
        row = await SQL.lock_pass_keys.fetchrow(connection)
        assert row is not None  # noqa: S101 - find_pass_keys made it, and nothing removes it
        now_ms: int = row["now_ms"]
        known = _STORED.decode(row["value"])
        # A key signs until its successor has been published for a while; its last pass ends long before the hour is.
        superseded_before_ms = now_ms - PUBLISHED_BEFORE_MS - PUBLISHED_AFTER_MS
        kept = [key for key, successor in itertools.pairwise(known) if successor.published_at_ms > superseded_before_ms]
        keys = (*kept, known[-1], make_key(now_ms))
        await SQL.edit_pass_keys.execute(connection, msgspec.json.encode(keys).decode())
    return keys
