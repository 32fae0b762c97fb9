"""The table of settings in docs/operations.md against the settings themselves."""

import os
import re
from pathlib import Path

import msgspec

from engine.settings import Settings, variable

ROOT = Path(__file__).parents[2]


def table() -> dict[str, str]:
    """Each variable of the table, and its default as it stands there."""
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(LASTSEAT_\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows), "a setting stands there twice"
    return {name: default.strip() for name, _, default in rows}


def test_every_setting_has_one_row_and_every_row_is_a_setting() -> None:
    assert list(table()) == [variable(field.name) for field in msgspec.structs.fields(Settings)]


def test_every_default_is_the_one_that_counts() -> None:
    usual = Settings()
    for field in msgspec.structs.fields(Settings):
        value = getattr(usual, field.name)
        told = re.fullmatch(r"`(.+)`", table()[variable(field.name)])
        if field.name == "workers":
            assert value == os.cpu_count()
            assert told is None
        elif value in (None, ()):
            assert told is None, f"{field.name} has no default value, and the page says {told}"
        else:
            assert told is not None, f"{field.name} is {value!r}, and the page names no value"
            assert told[1] == usual.to_environment()[variable(field.name)]
