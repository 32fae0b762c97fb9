"""The direction of dependencies, as `pyproject.toml` states it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_import_rule_is_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    judged = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", judged.stdout)


def test_only_the_faces_read_the_environment() -> None:
    guilty = {
        path.relative_to(ROOT)
        for path in (ROOT / "engine").rglob("*.py")
        if re.search(r"os\.(environ|getenv)\b", path.read_text())
    }
    assert guilty == set()


def test_the_api_and_the_workers_run_no_sql_and_no_lua_of_their_own() -> None:
    guilty = {
        f"{path.relative_to(ROOT)}: {found[0]}"
        for face in ("api", "workers")
        for path in (ROOT / face).rglob("*.py")
        for found in re.findall(r"(queries\.load\(|\bScript\(|\"(?:INSERT|UPDATE|DELETE) )", path.read_text())
    }
    assert guilty == set()
