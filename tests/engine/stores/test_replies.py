"""One word travels from the class to Lua, JSON and the problem's address."""

from engine.stores.replies import Refusal, Reply, title_of, word_of


class SeatTaken(Refusal, frozen=True):
    """Somebody has one of these seats. The answer lists each.

    More is said here.
    """

    seat_nos: tuple[str, ...]


class Held(Reply, frozen=True):
    """The seats are yours."""


def test_a_class_is_a_word() -> None:
    assert word_of(SeatTaken) == "seat_taken"
    assert word_of(Held) == "held"


def test_the_first_sentence_is_the_title() -> None:
    assert title_of(SeatTaken) == "Somebody has one of these seats"
    assert title_of(Held) == "The seats are yours"


def test_a_refusal_is_for_good_unless_it_says_otherwise() -> None:
    assert not SeatTaken.temporary
