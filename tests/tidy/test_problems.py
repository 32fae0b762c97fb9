"""Every refusal has a status, a line in docs/problems.md, and a test that has met it."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import engine
from api.problems import PROBLEMS
from engine.stores.replies import Refusal, Reply, title_of, word_of

ROOT = Path(__file__).parents[2]


def refusals() -> list[type[Refusal]]:
    """Every refusal of the engine and of the HTTP face."""
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        importlib.import_module(module.name)
    found: list[type[Refusal]] = []
    kinds = list(Refusal.__subclasses__())
    while kinds:
        kind = kinds.pop()
        kinds.extend(kind.__subclasses__())
        if kind.__module__.startswith(("engine.", "api.")):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


KNOWN: dict[str, tuple[type[Reply], int]] = {
    word_of(problem.known_as or kind): (problem.known_as or kind, problem.status) for kind, problem in PROBLEMS.items()
}
"""Every problem that a client can meet, by its word."""


@pytest.mark.parametrize("kind", refusals(), ids=word_of)
def test_a_refusal_has_a_status(kind: type[Refusal]) -> None:
    assert kind in PROBLEMS


@pytest.mark.parametrize("word", sorted(KNOWN))
def test_a_problem_has_its_place_in_the_docs(word: str) -> None:
    page = (ROOT / "docs" / "problems.md").read_text()
    kind, status = KNOWN[word]
    assert f"`{word}`" in page
    assert str(status) in page
    assert title_of(kind) in page


def test_the_docs_name_no_problem_that_is_none() -> None:
    page = (ROOT / "docs" / "problems.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) <= KNOWN.keys()


@pytest.mark.parametrize("word", sorted(KNOWN))
def test_a_test_has_met_the_problem(word: str) -> None:
    kind, _ = KNOWN[word]
    met = re.compile(rf'"(?:/problems/)?{word}"|\b{kind.__name__}\(|\b{kind.__name__}\b')
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "tidy"]
    assert any(met.search(path.read_text()) for path in tests)
