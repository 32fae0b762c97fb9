"""An error of the decoder becomes the path of what is wrong."""

import re
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from api.bodies import decode, misfit_of, read_query, whole
from api.problems import InvalidRequest, Refused


class Line(msgspec.Struct, forbid_unknown_fields=True):
    seat_no: str


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    lines: list[Line]
    amount: Annotated[int, Meta(ge=1)] = 1


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b'{"lines":[{"seat_no":"A"},{"seat_no":1}]}', "lines[1].seat_no"),
        (b'{"lines":[{}]}', "lines[0].seat_no"),
        (b'{"lines":[{"seat_no":"A","tier":1}]}', "lines[0].tier"),
        (b'{"lines":[],"amount":0}', "amount"),
        (b'{"lines":[],"a`b.c":0}', "a`b.c"),
        (b"{}", "lines"),
        (b"[]", ""),
    ],
)
def test_what_is_wrong_has_a_path(content: bytes, path: str) -> None:
    with pytest.raises(Refused) as refused:
        decode(content, msgspec.json.Decoder(Wish))
    refusal = refused.value.refusal
    assert isinstance(refusal, InvalidRequest)
    assert [error.path for error in refusal.errors] == [path]


def test_other_words_are_passed_on() -> None:
    assert misfit_of("Something new") == ("", "Something new")


def test_a_pattern_takes_no_line_break_at_the_end() -> None:
    assert re.search(whole("a+"), "aa")
    assert not re.search(whole("a+"), "aa\n")
    assert re.search(whole(r"[^\x00]*"), "a\nb\n")


class Query(msgspec.Struct):
    limit: Annotated[int, Meta(le=5)] = 2
    cursor: str = ""


def test_a_query_is_read_as_types_and_strangers_are_left_alone() -> None:
    assert read_query(b"limit=3&cursor=a%20b&utm_source=x&limit=4", Query) == Query(4, "a b")
    assert read_query(b"", Query) == Query()
    with pytest.raises(Refused):
        read_query(b"limit=6", Query)
