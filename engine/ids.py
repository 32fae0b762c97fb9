"""Ids: 32 lowercase hex characters in Python, Redis and JSON, a uuid in Postgres.

An id that a client's key makes is derived from everything that makes the request what it is, so that a repeat
finds the record of the first and nothing has to be remembered beside it.
"""

import hashlib
import secrets

ID_BYTES = 16
FINGERPRINT_BYTES = 8
# Hex characters of a sale's id at the head of the ids inside it; 96 bits of hash follow.
SALE_PREFIX = 8


def derive(*parts: str) -> str:
    """Return the id that these parts make: the first 128 bits of a SHA-256 over all of them, in order."""
    return _digest(parts)[:ID_BYTES].hex()


def derive_in(sale_id: str, *parts: str) -> str:
    """Return the id that these parts make inside a sale: it begins like the sale's, so that its shard can be found.

    A hold is asked for by its id alone, and before Postgres has its row only Redis knows it.
    """
    return (sale_id[:SALE_PREFIX] + derive(sale_id, *parts))[: 2 * ID_BYTES]


def fingerprint(*parts: str) -> str:
    """Return 16 hex characters that tell one request's content from another's under the same id."""
    return _digest(parts)[:FINGERPRINT_BYTES].hex()


def random_id() -> str:
    """Return an id of 128 random bits, for what no client's key stands behind."""
    return secrets.token_hex(ID_BYTES)


def _digest(parts: tuple[str, ...]) -> bytes:
    # Each part is preceded by its length: ("ab", "c") and ("a", "bc") are different requests. surrogatepass,
    # because a JSON string may carry a lone surrogate and any text must have an id.
    framed = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.sha256(framed.encode("utf-8", "surrogatepass")).digest()
