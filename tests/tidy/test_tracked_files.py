"""What is in the repository: nothing of one machine, no secret, no address that only some can reach."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:root|home|Users|work|mnt)/\w",
    # Spelled so that this file passes its own test.
    "an address of a package registry": r"py[p]i\.org|python[h]osted|npm[j]s\.org|index[-]url|proxy\.[g]olang",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a key of a cloud": r"\bAKIA[0-9A-Z]{16}\b",
    "a live key of a payment gateway": r"\b[sr]k_live_\w+",
    "a token of a code host": r"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "an unresolved merge": r"^(?:<{7}|>{7}) ",
}
"""What no file may have but this one, which names it."""

KNOWN_HOSTS = {"127.0.0.1", "localhost", "redis", "semver.org", "docs.astral.sh"}

LARGEST = 256 * 1024


def tracked() -> list[Path]:
    """Every file that is in the repository or would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no clone")
    paths = (ROOT / name.decode() for name in listed.stdout.split(b"\0") if name)
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_has(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path != Path(__file__) or what == "an address of a package registry"
        for match in [re.search(FORBIDDEN[what], path.read_text(errors="replace"), re.MULTILINE)]
        if match
    ]
    assert found == []


def test_every_file_is_text_of_a_moderate_size() -> None:
    assert [path.name for path in tracked() if path.stat().st_size > LARGEST] == []
    assert [path.name for path in tracked() if b"\0" in path.read_bytes()] == []


def test_every_text_ends_in_one_line_break_and_has_no_trailing_space() -> None:
    wrong = set()
    for path in tracked():
        text = path.read_text()
        if text and (not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t]$", text, re.MULTILINE)):
            wrong.add(str(path.relative_to(ROOT)))
    assert wrong == set()


def test_there_is_no_todo_without_a_number() -> None:
    marks = re.compile(r"\b(?:TO[D]O|FIX[M]E|X{3})\b(?! \(?#\d)")  # spelled so that this file passes, too
    assert [path.name for path in tracked() if marks.search(path.read_text(errors="replace"))] == []


def test_every_address_is_of_this_machine_an_example_or_known() -> None:
    """A lock, a recipe or a page that names another host makes whoever uses it depend on that host."""
    wrong = {
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in re.findall(r"https?://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)", path.read_text(errors="replace"))
        if host not in KNOWN_HOSTS and not host.endswith((".example", ".test"))
    }
    assert wrong == set()
