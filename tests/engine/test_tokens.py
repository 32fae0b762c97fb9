"""Queue tokens say only what we signed; passes are verified by strangers, with the published keys alone."""

import asyncio
import base64
import time
from typing import Any

import asyncpg
import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import tokens
from engine.ids import random_id
from engine.tokens import (
    PUBLISHED_AFTER_MS,
    PUBLISHED_BEFORE_MS,
    Passes,
    QueueToken,
    QueueTokens,
    find_pass_keys,
    make_key,
    rotate_pass_keys,
    visitor_owner,
)

SIGNER = QueueTokens("a secret of this installation")
TOKEN = QueueToken(sale_id="ab" * 16, epoch=3, owner="cd" * 16, queue_no=41)

HEX = st.binary(min_size=16, max_size=16).map(bytes.hex)
NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)


# --- queue tokens -----------------------------------------------------------------------------------------------------


@given(sale_id=HEX, epoch=NUMBERS, owner=HEX, is_visitor=st.booleans(), queue_no=NUMBERS)
def test_a_token_says_what_was_signed(sale_id: str, epoch: int, owner: str, is_visitor: bool, queue_no: int) -> None:  # noqa: FBT001
    token = QueueToken(sale_id, epoch, "v" * is_visitor + owner, queue_no)
    text = SIGNER.sign(token)
    assert SIGNER.verify(text) == SIGNER.verify(text) == token
    assert len(text) == 88
    assert text == text.strip().rstrip("=")


@given(at=st.integers(min_value=0, max_value=87), change=st.integers(min_value=1, max_value=63))
def test_a_token_with_any_character_changed_is_refused(at: int, change: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = SIGNER.sign(TOKEN)
    forged = text[:at] + alphabet[(alphabet.index(text[at]) + change) % 64] + text[at + 1 :]
    assert SIGNER.verify(forged) is None


@pytest.mark.parametrize("text", ["", "x", "A" * 88, "=" * 88, "é" * 88, " " * 88, "A" * 87, "A" * 89, "A" * 10_000])
def test_what_is_no_token_is_refused(text: str) -> None:
    assert SIGNER.verify(text) is None


@given(text=st.text(max_size=100))
def test_no_text_whatever_raises(text: str) -> None:
    assert SIGNER.verify(text) is None


def test_a_token_of_another_installation_is_refused() -> None:
    assert QueueTokens("another secret").verify(SIGNER.sign(TOKEN)) is None


def test_a_token_has_one_spelling() -> None:
    text = SIGNER.sign(TOKEN)
    for other in (text + "=", text + "\n", " " + text, text.replace("-", "+").replace("_", "/") + "=="):
        assert SIGNER.verify(other) is None


def test_a_token_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_VERSION", 2)
    newer = SIGNER.sign(TOKEN)
    monkeypatch.undo()
    assert SIGNER.verify(newer) is None


def test_forged_tokens_push_nobody_out_of_memory() -> None:
    signer = QueueTokens("a secret")
    text = signer.sign(TOKEN)
    assert signer.verify(text) == TOKEN
    for number in range(100):
        assert signer.verify(f"{number:088d}") is None
    assert signer._verified.cache_info().currsize == 1
    assert signer.verify(text) == TOKEN
    assert signer._verified.cache_info().hits == 1


def test_a_visitor_is_known_by_a_hash_of_the_secret() -> None:
    owner = visitor_owner("s3cret")
    assert owner == visitor_owner("s3cret")
    assert owner != visitor_owner("s3creT")
    assert owner[0] == "v"
    assert len(bytes.fromhex(owner[1:])) == 16
    assert "s3cret" not in owner


# --- passes -----------------------------------------------------------------------------------------------------------


def _verified(text: str, jwks: dict[str, Any], sale_id: str) -> dict[str, Any]:
    """Check a pass as any site would: with the key set and nothing else."""
    kid = jwt.get_unverified_header(text)["kid"]
    key = jwt.PyJWKSet.from_dict(jwks)[kid]
    claims: dict[str, Any] = jwt.decode(
        text,
        key,
        algorithms=["EdDSA"],
        audience=sale_id,
        issuer="lastseat",
        options={"require": ["iss", "aud", "sub", "queue_no", "exp", "jti"]},
    )
    return claims


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_pass_is_verified_with_the_published_keys_alone() -> None:
    passes, sale_id, owner, now_ms = Passes([make_key(0)]), random_id(), random_id(), _now_ms()
    text = passes.issue(sale_id=sale_id, owner=owner, queue_no=7, now_ms=now_ms, until_ms=now_ms + 600_000)
    claims = _verified(text, passes.jwks, sale_id)
    assert (claims["sub"], claims["queue_no"]) == (owner, 7)
    assert claims["exp"] * 1000 <= now_ms + 60_000
    assert "private" not in str(passes.jwks)
    assert all("d" not in key for key in passes.jwks["keys"])


def test_every_pass_is_another_one() -> None:
    passes, sale_id, now_ms = Passes([make_key(0)]), random_id(), _now_ms()
    issued = [
        passes.issue(sale_id=sale_id, owner=random_id(), queue_no=1, now_ms=now_ms, until_ms=now_ms + 60_000)
        for _ in range(20)
    ]
    assert len({_verified(text, passes.jwks, sale_id)["jti"] for text in issued}) == 20


def test_a_pass_ends_with_the_session_it_is_for() -> None:
    passes, sale_id, now_ms = Passes([make_key(0)]), random_id(), _now_ms()
    text = passes.issue(sale_id=sale_id, owner=random_id(), queue_no=1, now_ms=now_ms, until_ms=now_ms + 5_000)
    assert _verified(text, passes.jwks, sale_id)["exp"] * 1000 <= now_ms + 5_000


@pytest.mark.parametrize("fault", ["expired", "other sale", "other key", "changed"])
def test_a_pass_that_is_not_right_is_refused(fault: str) -> None:
    passes, sale_id, now_ms = Passes([make_key(0)]), random_id(), _now_ms()
    if fault == "expired":
        now_ms -= 120_000
    text = passes.issue(sale_id=sale_id, owner=random_id(), queue_no=1, now_ms=now_ms, until_ms=now_ms + 600_000)
    jwks = passes.jwks
    match fault:
        case "other sale":
            sale_id = random_id()
        case "other key":
            stranger = make_key(0)
            jwks = {"keys": [stranger.jwk | {"kid": jwks["keys"][0]["kid"]}]}
        case "changed":
            head, body, signature = text.split(".")
            content = base64.urlsafe_b64decode(body + "==").replace(b'"queue_no":1', b'"queue_no":2')
            assert content != base64.urlsafe_b64decode(body + "==")
            text = ".".join([head, base64.urlsafe_b64encode(content).decode().rstrip("="), signature])
    with pytest.raises(jwt.InvalidTokenError):
        _verified(text, jwks, sale_id)


def test_a_new_key_is_published_before_it_signs() -> None:
    now_ms = _now_ms()
    old, new = make_key(0), make_key(now_ms)
    passes = Passes([new, old])

    def signs(at_ms: int) -> str:
        text = passes.issue(sale_id=random_id(), owner=random_id(), queue_no=1, now_ms=at_ms, until_ms=at_ms + 60_000)
        kid: str = jwt.get_unverified_header(text)["kid"]
        return kid

    assert {key["kid"] for key in passes.jwks["keys"]} == {old.kid, new.kid}
    assert signs(now_ms + PUBLISHED_BEFORE_MS - 1) == old.kid
    assert signs(now_ms + PUBLISHED_BEFORE_MS) == new.kid


# --- keys in Postgres -------------------------------------------------------------------------------------------------


async def test_processes_that_start_at_once_share_one_key(postgres: asyncpg.Pool) -> None:
    found = await asyncio.gather(*[find_pass_keys(postgres) for _ in range(6)])
    assert len(found[0]) == 1
    assert all(keys == found[0] for keys in found)


async def test_a_rotation_adds_a_key_and_keeps_the_one_that_signs(postgres: asyncpg.Pool) -> None:
    (first,) = await find_pass_keys(postgres)
    second = await rotate_pass_keys(postgres)
    third = await rotate_pass_keys(postgres)
    assert await find_pass_keys(postgres) == third
    assert first in second
    assert set(second) < set(third)
    passes = Passes(third)
    text = passes.issue(
        sale_id=random_id(), owner=random_id(), queue_no=1, now_ms=_now_ms(), until_ms=_now_ms() + 60_000
    )
    assert jwt.get_unverified_header(text)["kid"] == first.kid


async def test_a_key_is_dropped_once_its_last_pass_is_long_over(postgres: asyncpg.Pool) -> None:
    (first,) = await find_pass_keys(postgres)
    _, second = await rotate_pass_keys(postgres)
    # Age the rotation: what was published just now was published long ago.
    aged = second.published_at_ms - PUBLISHED_BEFORE_MS - PUBLISHED_AFTER_MS - 1_000
    await postgres.execute(
        "UPDATE installation SET value = replace(value, $1, $2) WHERE name = 'pass_keys'",
        str(second.published_at_ms),
        str(aged),
    )
    kids = [key.kid for key in await rotate_pass_keys(postgres)]
    assert first.kid not in kids
    assert kids[0] == second.kid
    assert len(kids) == 2
