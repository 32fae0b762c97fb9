"""Every refusal has a status, a line in docs/problems.md, and a test that has met it."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import engine
from api.problems import PROBLEMS
from engine.stores.replies import Refusal, Reply, word_of

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


@pytest.mark.parametrize("word", sorted(map(word_of, refusals())))
def test_a_refusal_has_a_status(word: str) -> None:
    assert word in KNOWN.keys() | set(map(word_of, PROBLEMS))


def test_the_docs_tell_every_problem_under_its_status() -> None:
    told: dict[str, int] = {}
    for part in re.split(r"^## (?=\d{3}$)", (ROOT / "docs" / "problems.md").read_text(), flags=re.MULTILINE)[1:]:
        for word, text in re.findall(r"^### (\w+)\n(.+)", part, re.MULTILINE):
            assert word not in told, f"{word} is told twice"
            assert text.strip(), f"nothing is said of {word}"
            told[word] = int(part[:3])
    assert told == {word: status for word, (_, status) in KNOWN.items()}


@pytest.mark.parametrize("word", sorted(KNOWN))
def test_a_test_has_met_the_problem(word: str) -> None:
    kind, _ = KNOWN[word]
    met = re.compile(rf'"(?:/problems/)?{word}"|\b{kind.__name__}\b')
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent.name != "tidy"]
    assert any(met.search(path.read_text()) for path in tests)
