import re

from hypothesis import assume, given
from hypothesis import strategies as st

from engine import ids

PARTS = st.lists(st.text(max_size=8), max_size=4)


@given(PARTS)
def test_a_derived_id_is_32_lowercase_hex_characters_and_always_the_same(parts: list[str]) -> None:
    derived = ids.derive(*parts)

    assert re.fullmatch(r"[0-9a-f]{32}", derived)
    assert ids.derive(*parts) == derived


@given(PARTS, PARTS)
def test_other_parts_make_another_id_wherever_they_are_cut(some: list[str], others: list[str]) -> None:
    assume(some != others)

    assert ids.derive(*some) != ids.derive(*others)
    assert ids.fingerprint(*some) != ids.fingerprint(*others)


def test_parts_that_join_to_the_same_text_make_different_ids() -> None:
    # Both are "abc" when they are only joined, and one hash over that would be one id for two requests.
    assert ids.derive("ab", "c") != ids.derive("a", "bc")
    assert ids.derive("1:a") != ids.derive("a")
    assert ids.derive("a", "") != ids.derive("a")


def test_a_derived_id_never_changes_between_versions() -> None:
    # Ids stand in Postgres for good: a change here would let a late copy of a payment pay again.
    assert ids.derive("user", "POST", "/v1/payments", "key") == "c1ac114181388f8b4f413387373e5031"


def test_a_lone_surrogate_has_an_id() -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", ids.derive("\ud800"))


@given(PARTS)
def test_a_fingerprint_is_16_hex_characters(parts: list[str]) -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", ids.fingerprint(*parts))


def test_random_ids_differ() -> None:
    made = {ids.random_id() for _ in range(1000)}

    assert len(made) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in made)
