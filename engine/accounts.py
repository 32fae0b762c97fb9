"""Accounts: people who sign in with an e-mail and a password, their tokens, and the operators' keys.

A password is hashed with argon2id, off the event loop and in few threads: each hash holds a core and 19 MiB for a
while, so a rush of sign-ins waits in a short line and is then refused, rather than starving the sales.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache
from typing import Final, TypeVar

import asyncpg
import jwt
import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHash

from engine import ids
from engine.refusals import Busy, IdempotencyKeyReused
from engine.stores import queries
from engine.stores.queries import Connection
from engine.stores.replies import Refusal

TOKEN_LIFETIME_S: Final = 12 * 3600  # longer than any line
TOKENS_REMEMBERED_MAX: Final = 65_536
HASHES_WAITING_MAX: Final = 16  # a thread; at 26 ms each, nobody waits for half a second
ISSUER: Final = "lastseat"
KEY_PREFIX: Final = "lsk_"
COMMAND_LINE: Final = ids.derive("command line")
NO_HASH: Final = bytes(32)

ACCOUNTS, AUDIT, BALANCES, CATALOGUE, PAYMENTS, SALES, TICKETS = (
    "accounts",
    "audit",
    "balances",
    "catalogue",
    "payments",
    "sales",
    "tickets",
)
SCOPES: Final = (ACCOUNTS, AUDIT, BALANCES, CATALOGUE, PAYMENTS, SALES, TICKETS)
"""What an operator's key may do."""

T = TypeVar("T")

SQL = queries.load("accounts")


class EmailTaken(Refusal, frozen=True):
    """Somebody already has an account with this e-mail."""


class Account(msgspec.Struct, frozen=True):
    """An account that stands; `repeated` if an earlier request made it."""

    user_id: str
    repeated: bool


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person; without name and e-mail once they are wiped, and where an operator made the account."""

    user_id: str
    email: str | None
    name: str | None
    created_at: datetime


class KeptKey(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's key as it is kept: its hash alone, which is not told."""

    api_key_id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's key and what it may do."""

    api_key_id: str
    name: str
    scopes: frozenset[str]


# Passwords ------------------------------------------------------------------------------------------------------------


class Passwords:
    """Hashes and checks passwords, in a few threads of its own."""

    def __init__(self, *, memory_kib: int, passes: int, threads: int) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="passwords")
        self._under_way = 0
        self.under_way_max = threads * (1 + HASHES_WAITING_MAX)
        # What a sign-in with an unknown e-mail is checked against, so that it takes as long as any other.
        self._nobody = self._hasher.hash(secrets.token_hex())

    def close(self) -> None:
        """Forget what still waits, and stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str | Busy:
        """Hash a new password."""
        return await self._run(lambda: self._hasher.hash(password))

    async def matches(self, password: str, password_hash: str | None) -> bool | Busy:
        """Whether this password was hashed so; no hash takes as long and matches none."""
        return await self._run(lambda: self._verify(password, password_hash))

    def _verify(self, password: str, password_hash: str | None) -> bool:
        try:
            self._hasher.verify(password_hash or self._nobody, password)
        except (Argon2Error, InvalidHash):
            return False
        return password_hash is not None

    async def _run(self, work: Callable[[], T]) -> T | Busy:
        if self._under_way >= self.under_way_max:
            return Busy(retry_after_ms=1000)
        self._under_way += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # Counted until the thread is free, also where the request has given up waiting.
        done.add_done_callback(self._finished)
        return await done

    def _finished(self, _done: "asyncio.Future[T]") -> None:
        self._under_way -= 1


# Tokens ---------------------------------------------------------------------------------------------------------------


class UserTokens:
    """Signs the tokens of users and reads them back."""

    def __init__(self, secret: str) -> None:
        # A key of its own, so that what is signed with the same secret for another purpose is no user token.
        self._key = hmac.digest(secret.encode(), b"user tokens", "sha256")
        self._header = jwt.encode({}, self._key, "HS256").partition(".")[0]
        self._read = lru_cache(TOKENS_REMEMBERED_MAX)(self._decode)
        self.wiped: set[str] = set()
        """Whose tokens count no longer."""

    def sign(self, user_id: str, now_ms: int) -> str:
        """Make a token that says who this is for the next `TOKEN_LIFETIME_S` seconds."""
        now_s = now_ms // 1000
        claims = {"iss": ISSUER, "sub": user_id, "iat": now_s, "exp": now_s + TOKEN_LIFETIME_S}
        return jwt.encode(claims, self._key, "HS256")

    def verify(self, token: str, now_ms: int) -> str | None:
        """Whose token this is, or None if it is not ours, has expired, or its user was wiped."""
        try:
            user_id, expires_at_s = self._read(token)
        except jwt.InvalidTokenError:
            return None
        if now_ms >= expires_at_s * 1000 or user_id in self.wiped:
            return None
        return user_id

    def _decode(self, token: str) -> tuple[str, int]:
        # By hand, for the one algorithm and header that `sign` writes: a crowd that arrives presents every token for
        # the first time, and the library takes ten times as long to look at all that a token might be.
        signed, _, mac = token.rpartition(".")
        header, _, payload = signed.partition(".")
        expected = base64.urlsafe_b64encode(hmac.digest(self._key, signed.encode(), "sha256")).rstrip(b"=")
        if header != self._header or not hmac.compare_digest(mac.encode(), expected):
            raise jwt.InvalidSignatureError
        claims = _CLAIMS.decode(base64.urlsafe_b64decode(payload + "=="))
        if claims.iss != ISSUER:
            raise jwt.InvalidIssuerError
        return claims.sub, claims.exp


class _Claims(msgspec.Struct):
    iss: str
    sub: str
    exp: int


_CLAIMS: Final = msgspec.json.Decoder(_Claims)


# People ---------------------------------------------------------------------------------------------------------------


async def sign_up(
    postgres: asyncpg.Pool, passwords: Passwords, *, user_id: str, email: str, password: str, name: str
) -> Account | EmailTaken | IdempotencyKeyReused | Busy:
    """Make an account with its balance; the same id with the same request answers the same account."""
    # The password stays out of the fingerprint: a quick hash of it in the row would undo the slow one.
    fingerprint = ids.fingerprint(email, name)
    namesakes = await SQL.find_namesakes.fetch(postgres, user_id, email)
    if namesakes:
        return await _repeated(passwords, namesakes, user_id, fingerprint, password)
    password_hash = await passwords.hash(password)
    if isinstance(password_hash, Busy):
        return password_hash
    async with postgres.acquire() as connection, connection.transaction():
        if await SQL.add_user.fetchval(connection, user_id, email, password_hash, name, fingerprint):
            await SQL.add_balances.execute(connection, [user_id])
            return Account(user_id, repeated=False)
    # A copy of this request, or somebody with the same e-mail, was quicker.
    namesakes = await SQL.find_namesakes.fetch(postgres, user_id, email)
    return await _repeated(passwords, namesakes, user_id, fingerprint, password)


async def _repeated(
    passwords: Passwords, namesakes: Sequence[asyncpg.Record], user_id: str, fingerprint: str, password: str
) -> Account | EmailTaken | IdempotencyKeyReused | Busy:
    for user in namesakes:
        if user["user_id"] == user_id:
            matches = await passwords.matches(password, user["password_hash"])
            if isinstance(matches, Busy):
                return matches
            same = matches and user["fingerprint"] == fingerprint
            return Account(user_id, repeated=True) if same else IdempotencyKeyReused()
    return EmailTaken()


async def sign_in(postgres: asyncpg.Pool, passwords: Passwords, *, email: str, password: str) -> str | Busy | None:
    """Whose e-mail and password these are; None for a wrong one, in the same time whichever is wrong."""
    user = await SQL.find_password.fetchrow(postgres, email)
    matches = await passwords.matches(password, user["password_hash"] if user else None)
    if isinstance(matches, Busy):
        return matches
    return user["user_id"] if user and matches else None


async def create_many(
    postgres: asyncpg.Pool, *, user_ids: Sequence[str], fingerprint: str
) -> bool | IdempotencyKeyReused:
    """Make accounts that sign in by tokens only, each with its balance; answers whether they were there already."""
    first, others = user_ids[:1], user_ids[1:]
    async with postgres.acquire() as connection, connection.transaction():
        # Whoever adds the first adds them all, so its row alone tells a repeat from another request.
        added = await SQL.add_users.execute(connection, first, fingerprint)
        if await SQL.count_strangers.fetchval(connection, first, fingerprint):
            return IdempotencyKeyReused()
        await SQL.add_users.execute(connection, others, fingerprint)
        await SQL.add_balances.execute(connection, user_ids)
    return added == 0


async def find(postgres: asyncpg.Pool, user_id: str) -> User | None:
    """A person by id."""
    row = await SQL.find_user.fetchrow(postgres, user_id)
    return User(**row) if row else None


async def wipe(postgres: asyncpg.Pool | Connection, user_id: str) -> User | None:
    """Forget name, e-mail and password; what was bought stays. Harmless to repeat."""
    row = await SQL.wipe_user.fetchrow(postgres, user_id)
    return User(**row) if row else None


async def find_wiped(postgres: asyncpg.Pool, *, within_s: int) -> list[str]:
    """Who was wiped in the last so many seconds."""
    return [row["user_id"] for row in await SQL.find_wiped.fetch(postgres, within_s)]


# Operators ------------------------------------------------------------------------------------------------------------


async def add_api_key(
    connection: "asyncpg.Pool | Connection",
    *,
    name: str,
    scopes: Sequence[str] = SCOPES,
    key: str | None = None,
) -> str:
    """Keep the hash of a key, a new one unless it is given, and answer the key: nobody can read it again."""
    key = key or KEY_PREFIX + secrets.token_urlsafe(32)
    await SQL.add_api_key.execute(connection, ids.random_id(), _key_hash(key), name, list(scopes))
    return key


async def find_api_key(postgres: asyncpg.Pool, key: str) -> ApiKey | None:
    """The operator's key that was presented, unless it is unknown or revoked."""
    row = await SQL.find_api_key.fetchrow(postgres, _key_hash(key))
    if row is None:
        return None
    return ApiKey(api_key_id=row["api_key_id"], name=row["name"], scopes=frozenset(row["scopes"]))


async def list_api_keys(postgres: asyncpg.Pool) -> list[KeptKey]:
    """Every operator's key, the newest first."""
    return [KeptKey(**row) for row in await SQL.list_api_keys.fetch(postgres)]


async def revoke_api_key(postgres: asyncpg.Pool, api_key_id: str) -> KeptKey | None:
    """End a key, for good and at once; None if there is no such key."""
    row = await SQL.revoke_api_key.fetchrow(postgres, api_key_id)
    return KeptKey(**row) if row else None


async def own_key(postgres: asyncpg.Pool) -> str:
    """The id by which records name the command line of this installation: no key opens it, and it has no scope."""
    await SQL.add_api_key.execute(postgres, COMMAND_LINE, NO_HASH, "command line", [])
    return COMMAND_LINE


def _key_hash(key: str) -> bytes:
    # A random key needs no slow hash; a chosen one has at least 16 characters.
    return hashlib.sha256(key.encode()).digest()
