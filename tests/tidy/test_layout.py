"""The tables of ARCHITECTURE.md against the files on disk."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SUFFIXES = {"lua": ".lua", "sql": ".sql"}
FOLDERS = ("engine", "sql", "api", "workers")


def rows(first: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    found = re.search(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


DOMAINS = {cells[0]: cells[2:] for cells in rows("domain")}
BESIDE = {cells[0].rstrip("/"): set(cells[1].split()) for cells in rows("folder")}


def stems(folder: str) -> set[str]:
    suffix = SUFFIXES.get(folder.partition("/")[0], ".py")
    return {path.stem for path in (ROOT / folder).glob(f"*{suffix}")} - {"__init__"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_has_the_files_that_its_row_names(domain: str) -> None:
    verbs, *marks = DOMAINS[domain]
    assert stems(f"lua/{domain}") == (set() if verbs == "-" else set(verbs.split()))
    assert {folder for folder in FOLDERS if domain in stems(folder)} == {
        folder for folder, mark in zip(FOLDERS, marks, strict=True) if mark == "●"
    }


@pytest.mark.parametrize("folder", [*FOLDERS, "engine/stores", "lua/shared", "lua/streams", "simulator"])
def test_every_other_file_is_named_beside_the_domains(folder: str) -> None:
    assert stems(folder) - DOMAINS.keys() == BESIDE[folder]


def test_every_folder_of_scripts_is_a_domain_or_named() -> None:
    folders = {path.name for path in (ROOT / "lua").iterdir()}
    assert folders <= DOMAINS.keys() | {name.removeprefix("lua/") for name in BESIDE if name.startswith("lua/")}


def test_every_file_that_the_page_names_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`((?:api|workers|cli|engine|lua|sql|loadtests|docs|tests)/[\w./]*)`", page)
    assert [name for name in named if not (ROOT / name).exists()] == []
