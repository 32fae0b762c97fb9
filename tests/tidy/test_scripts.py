"""Every Lua file: what its header says is what its body unpacks, what it answers, and what keys.py knows."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import engine
from engine.stores import scripts
from engine.stores.keys import CouponKeys, SaleKeys
from engine.stores.scripts import Header, Script, parse, shared_source

ROOT = Path(__file__).parents[2]
LUA = ROOT / "lua"

VERBS = sorted(path for path in LUA.rglob("*.lua") if path.parent.name != "shared")
SHARED = sorted((LUA / "shared").glob("*.lua"))

SCREEN_LINES = 75
"""How many lines of code a verb may have below its header and its unpacking: about what one screen shows."""

LONGER = {
    "waiting_room/admit": "expiry, skips, recalls and both caps must be one step, or a slot is counted twice",
}

FREEING = {
    "seats/pay", "seats/confirm", "seats/abandon", "seats/release", "seats/expire", "seats/restore", "seats/unblock",
    "stock/confirm", "stock/abandon", "stock/release", "stock/expire", "stock/restore",
    "waiting_room/leave", "streams/persist", "sales/close",
}  # fmt: skip
"""What frees or finishes something, and must work when the store is full."""


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read(path: Path) -> tuple[str, Header]:
    source = path.read_text()
    return source, parse(source)


def below_header(source: str) -> str:
    lines = source.splitlines()
    start = next((at for at, line in enumerate(lines) if not line.startswith(("#!", "--"))), len(lines))
    return "\n".join(lines[start:])


def without_comments(lua: str) -> str:
    return re.sub(r"--.*", "", lua)


def whole(header: Header, source: str) -> str:
    """What runs for one request: the shared files, then the body."""
    return "\n".join([*map(shared_source, header.uses), below_header(source)])


def all_scripts() -> dict[str, Script[object]]:
    """Every Script that the engine makes, by its path."""
    found = {}
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Script):
                found[value.path] = value
    return found


@pytest.mark.parametrize("path", VERBS, ids=name_of)
def test_what_a_header_names_is_what_the_body_unpacks(path: Path) -> None:
    source, header = read(path)
    everything = without_comments(whole(header, source))
    assert header.keys[0] == "sale"
    # Only who merely looks may ask a copy of whichever epoch.
    assert header.arguments[:1] == ("epoch",) or header.flags == ("no-writes",)
    assert header.uses[0] == "sale"
    unpacked = parse(source.partition("\n")[0] + "\n" + everything)
    for names, declared in ((unpacked.key_names, header.keys), (unpacked.argument_names, header.arguments)):
        for position, name in names.items():
            assert position <= len(declared), f"{name} is number {position} of {len(declared)}"
            assert name == declared[position - 1], f"number {position} is {declared[position - 1]}, unpacked as {name}"
    for table, declared in (("KEYS", header.keys), ("ARGV", header.arguments)):
        used = {int(at) for at in re.findall(rf"{table}\[(\d+)\]", everything)}
        used |= {
            position
            for first in re.findall(rf"unpack\({table}, (\d+)\)", everything)
            for position in range(int(first), len(declared) + 1)
        }
        if re.search(rf"\b{table}\b(?!\[\d)", re.sub(rf"unpack\({table}, \d+\)", "", everything)):
            continue  # a loop reads the rest
        assert used == set(range(1, len(declared) + 1)), (
            f"{table} that the header names and the body leaves, or reverse"
        )


@pytest.mark.parametrize("path", VERBS, ids=name_of)
def test_every_key_is_in_the_data_dictionary(path: Path) -> None:
    kind = CouponKeys if path.parent.name == "coupons" else SaleKeys
    for key in read(path)[1].keys:
        assert isinstance(getattr(kind("5a1e" * 8), key), str)


@pytest.mark.parametrize("path", VERBS, ids=name_of)
def test_every_answer_is_declared_and_every_declared_word_is_said(path: Path) -> None:
    source, header = read(path)
    body = without_comments(below_header(source))
    said = set(re.findall(r'return \{ "(\w+)"', body))
    assert said <= set(header.returns)
    everything = without_comments(whole(header, source))
    assert set(header.returns) <= set(re.findall(r'"(\w+)"', everything))


@pytest.mark.parametrize("path", VERBS, ids=name_of)
def test_a_verb_is_one_screen_of_code_and_says_what_it_does(path: Path) -> None:
    source, header = read(path)
    assert header.says.endswith(".")
    code = re.sub(r"^local \w+ = (tonumber\()?(KEYS|ARGV)\[\d+\]\)?$", "", below_header(source), flags=re.MULTILINE)
    lines = [line for line in without_comments(code).splitlines() if line.strip()]
    assert (len(lines) > SCREEN_LINES) == (name_of(path) in LONGER)


@pytest.mark.parametrize("path", VERBS, ids=name_of)
def test_what_frees_or_finishes_works_in_a_full_store(path: Path) -> None:
    if name_of(path) in FREEING:
        assert "allow-oom" in read(path)[1].flags


def test_the_verbs_that_free_are_verbs() -> None:
    assert set(map(name_of, VERBS)) >= FREEING


@pytest.mark.parametrize("path", [*VERBS, *SHARED], ids=name_of)
def test_nothing_is_global(path: Path) -> None:
    """One leaked global would live on in the server and poison whatever runs next."""
    body = without_comments(path.read_text().partition("\n")[2] if path in VERBS else path.read_text())
    local = set(re.findall(r"\bfunction \w+|\blocal ([\w, ]+)", body))
    named = {name.strip() for names in local for name in names.split(",") if name.strip()}
    named |= {name.strip() for names in re.findall(r"\bfunction[ \w]*\(([^)]*)\)", body) for name in names.split(",")}
    named |= {name.strip() for names in re.findall(r"\bfor ([\w, ]+?) (?:=|in)", body) for name in names.split(",")}
    header = parse(path.read_text()) if path in VERBS else None
    for other in header.uses if header else [shared.stem for shared in SHARED]:
        named |= set(re.findall(r"\blocal (?:function )?(\w+)", shared_source(other)))
    assigned = {
        name.strip() for names in re.findall(r"^\s*((?:\w+, )*\w+) = ", body, re.MULTILINE) for name in names.split(",")
    }
    # A line of a table constructor looks like an assignment and ends in a comma.
    fields = set(re.findall(r"^\s*(\w+) = [^\n]*,$", body, re.MULTILINE))
    assert assigned - fields - {name.removeprefix("function ") for name in named} == set()


def test_every_file_is_a_script_of_the_engine_and_the_reverse() -> None:
    assert set(all_scripts()) == set(map(name_of, VERBS))


def test_only_one_place_sends_scripts() -> None:
    """Batching, deadlines, repeats and the fall back from EVALSHA live in scripts.py; nobody goes round them."""
    commands = re.compile(r"\b(eval|evalsha|eval_ro|evalsha_ro|fcall|script_load|register_script)\b", re.IGNORECASE)
    guilty = set()
    for path in [
        *ROOT.glob("engine/**/*.py"),
        *ROOT.glob("api/**/*.py"),
        *ROOT.glob("workers/**/*.py"),
        *ROOT.glob("cli/**/*.py"),
    ]:
        if path == Path(scripts.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.attr if isinstance(node, ast.Attribute) else None
            sent = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if (called and commands.fullmatch(called)) or commands.fullmatch(sent.partition(" ")[0]):
                guilty.add(path.relative_to(ROOT))
    assert guilty == set()
