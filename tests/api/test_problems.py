"""Each problem has one status, one title and one entry in the docs."""

import re
from collections import defaultdict
from pathlib import Path

from api import openapi, problems
from api.app import operations
from api.problems import PROBLEMS
from engine.stores.replies import title_of

PAGE = Path(__file__).parents[2] / "docs" / "problems.md"


def documented() -> dict[str, int]:
    """The problems of the page, each with the status it stands under."""
    found: dict[str, int] = {}
    status = 0
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## (\d{3})", line):
            status = int(heading[1])
        elif entry := re.fullmatch(r"### (\w+)", line):
            found[entry[1]] = status
    return found


def test_every_problem_is_in_the_docs_under_its_status() -> None:
    answered = {openapi.word_of_problem(kind): problem.status for kind, problem in PROBLEMS.items()}
    assert documented() == answered


def test_a_word_means_one_thing() -> None:
    meanings: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for kind, problem in PROBLEMS.items():
        meanings[openapi.word_of_problem(kind)].add((problem.status, title_of(problem.known_as or kind)))
    assert {word for word, said in meanings.items() if len(said) > 1} == set()


def test_whatever_an_operation_may_refuse_has_a_status() -> None:
    for operation in operations():
        for refusal in openapi.refusals_of(operation):
            assert refusal in PROBLEMS, f"{operation.method} {operation.path}: {refusal.__name__}"


def test_a_problem_carries_what_its_shape_says() -> None:
    document = openapi.document_of(operations(), version="0")["components"]["schemas"]
    for kind in PROBLEMS:
        shape = document.get(f"problem_{openapi.word_of_problem(kind)}")
        if shape is not None:
            assert shape["properties"]["type"] == {"const": problems.type_of(kind)}
