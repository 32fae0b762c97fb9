"""Accounts: one a person, a password that is hashed off the loop, tokens that end."""

import asyncio
import time
from collections.abc import Iterator

import asyncpg
import pytest

from engine import accounts, ids
from engine.accounts import Account, EmailTaken, Passwords, UserTokens
from engine.refusals import Busy, IdempotencyKeyReused

ADA = {"user_id": "a" * 32, "email": "ada@example.org", "password": "correct horse", "name": "Ada"}


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    """Hashing that costs next to nothing."""
    passwords = Passwords(memory_kib=8, passes=1, threads=1)
    yield passwords
    passwords.close()


async def test_an_account_begins_with_an_empty_balance(postgres: asyncpg.Pool, passwords: Passwords) -> None:
    assert await accounts.sign_up(postgres, passwords, **ADA) == Account("a" * 32, repeated=False)
    assert await postgres.fetchval("SELECT amount FROM balances WHERE user_id = $1", "a" * 32) == 0
    row = await postgres.fetchrow("SELECT issuer, subject, password_hash FROM users")
    assert row is not None
    assert (row["issuer"], row["subject"].replace("-", "")) == ("lastseat", "a" * 32)
    assert row["password_hash"].startswith("$argon2id$v=19$m=8,t=1,p=1$")


async def test_a_repeat_of_a_sign_up_is_told_from_another(postgres: asyncpg.Pool, passwords: Passwords) -> None:
    await accounts.sign_up(postgres, passwords, **ADA)
    assert await accounts.sign_up(postgres, passwords, **ADA) == Account("a" * 32, repeated=True)
    assert await accounts.sign_up(postgres, passwords, **ADA | {"name": "Eve"}) == IdempotencyKeyReused()
    assert await accounts.sign_up(postgres, passwords, **ADA | {"password": "another one"}) == IdempotencyKeyReused()
    assert await accounts.sign_up(postgres, passwords, **ADA | {"user_id": "b" * 32}) == EmailTaken()


async def test_who_was_wiped_leaves_no_name_behind(postgres: asyncpg.Pool, passwords: Passwords) -> None:
    await accounts.sign_up(postgres, passwords, **ADA)
    for _ in range(2):
        wiped = await accounts.wipe(postgres, "a" * 32)
        assert wiped is not None
        assert (wiped.email, wiped.name) == (None, None)
    row = await postgres.fetchrow("SELECT * FROM users")
    assert row is not None
    kept = {name: value for name, value in row.items() if value not in {None, ""}}
    assert kept.keys() == {"user_id", "issuer", "subject", "created_at", "updated_at", "wiped_at"}
    assert await accounts.find_wiped(postgres, within_s=60) == ["a" * 32]
    assert await accounts.wipe(postgres, "b" * 32) is None


async def test_the_password_decides_and_nothing_else(postgres: asyncpg.Pool, passwords: Passwords) -> None:
    await accounts.sign_up(postgres, passwords, **ADA)
    signed_in = [
        await accounts.sign_in(postgres, passwords, email=email, password=password)
        for email, password in (
            ("Ada@Example.org", "correct horse"),
            ("ada@example.org", "Correct horse"),
            ("eve@example.org", "correct horse"),
        )
    ]
    assert signed_in == ["a" * 32, None, None]


async def test_an_unknown_email_is_hashed_like_a_known_one() -> None:
    passwords = Passwords(memory_kib=19_456, passes=2, threads=1)
    known = await passwords.hash("correct horse")
    assert isinstance(known, str)

    async def cost(password_hash: str | None) -> float:
        began = time.thread_time()
        began_process = time.process_time()
        assert await passwords.matches("wrong horse", password_hash) is False
        return time.process_time() - began_process - (time.thread_time() - began)

    # The threads' own time, which waits for nobody: the least of several tells one hash from none.
    with_hash = min([await cost(known) for _ in range(5)])
    without_hash = min([await cost(None) for _ in range(5)])
    passwords.close()
    assert without_hash > with_hash / 2


async def test_bulk_accounts_are_made_once(postgres: asyncpg.Pool) -> None:
    user_ids = [ids.derive("k", str(number)) for number in range(5)]
    repeated = await asyncio.gather(
        *(accounts.create_many(postgres, user_ids=user_ids, fingerprint="5") for _ in range(3))
    )
    assert sorted(map(bool, repeated)) == [False, True, True]
    assert await postgres.fetchval("SELECT count(*) FROM balances") == 5
    more = [*user_ids, ids.random_id()]
    assert await accounts.create_many(postgres, user_ids=more, fingerprint="6") == IdempotencyKeyReused()
    assert await postgres.fetchval("SELECT count(*) FROM users") == 5


async def test_bulk_accounts_are_the_same_when_somebody_was_wiped(postgres: asyncpg.Pool) -> None:
    user_ids = [ids.derive("k", str(number)) for number in range(2)]
    assert await accounts.create_many(postgres, user_ids=user_ids, fingerprint="2") is False
    await accounts.wipe(postgres, user_ids[0])
    assert await accounts.create_many(postgres, user_ids=user_ids, fingerprint="2") is True
    assert await accounts.create_many(postgres, user_ids=user_ids[:1], fingerprint="1") == IdempotencyKeyReused()


def test_a_token_says_who_calls_until_it_expires() -> None:
    tokens = UserTokens("a secret of an installation, kept in Postgres")
    token = tokens.sign("a" * 32, now_ms=1_000_000)
    assert tokens.verify(token, now_ms=1_000_000) == "a" * 32
    assert tokens.verify(token, now_ms=1_000_000 + 43_199_999) == "a" * 32
    assert tokens.verify(token, now_ms=1_000_000 + 43_200_000) is None
    tokens.wiped.add("a" * 32)
    assert tokens.verify(token, now_ms=1_000_000) is None


def test_a_token_of_another_installation_says_nothing() -> None:
    token = UserTokens("a secret of an installation, kept in Postgres").sign("a" * 32, now_ms=0)
    other = UserTokens("another secret of another installation")
    assert other.verify(token, now_ms=0) is None
    assert other.verify(token[:-1], now_ms=0) is None
    assert other.verify("", now_ms=0) is None


async def test_a_key_is_known_by_its_hash_until_it_is_revoked(postgres: asyncpg.Pool) -> None:
    key = await accounts.add_api_key(postgres, name="console", scopes=[accounts.SALES])
    found = await accounts.find_api_key(postgres, key)
    assert found is not None
    assert (found.name, found.scopes) == ("console", frozenset({"sales"}))
    assert await postgres.fetchval("SELECT position($1::bytea IN key_hash) FROM api_keys", key.encode()) == 0
    assert await accounts.find_api_key(postgres, key + "x") is None
    (kept,) = await accounts.list_api_keys(postgres)
    assert (kept.api_key_id, kept.name, kept.scopes, kept.revoked_at) == (found.api_key_id, "console", ["sales"], None)
    revoked = await accounts.revoke_api_key(postgres, kept.api_key_id)
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await accounts.find_api_key(postgres, key) is None
    assert await accounts.revoke_api_key(postgres, kept.api_key_id) == revoked
    assert await accounts.revoke_api_key(postgres, "0" * 32) is None


async def test_the_command_line_has_a_name_in_records_and_no_key(postgres: asyncpg.Pool) -> None:
    assert await accounts.own_key(postgres) == await accounts.own_key(postgres) == accounts.COMMAND_LINE
    (kept,) = await accounts.list_api_keys(postgres)
    assert (kept.name, kept.scopes) == ("command line", [])


async def test_the_line_of_sign_ins_is_short(passwords: Passwords) -> None:
    answers = await asyncio.gather(*(passwords.hash("x") for _ in range(passwords.under_way_max + 3)))
    assert sum(isinstance(answer, Busy) for answer in answers) == 3
    assert isinstance(await passwords.hash("x"), str)
