"""Every refusal has a status, a line in docs/problems.md, and a test that has met it."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import engine
from api import problems
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


REFUSALS = refusals()
