"""The demo from beginning to end, as real processes on embedded stores."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

from cli import auditing, demo, processes
from tests.cli.program import PROGRAM, environment, lastseat
from tests.cli.test_up import descendants


def test_a_crowd_is_served_twice_on_the_same_data_and_every_invariant_holds(shop: dict[str, str]) -> None:
    bought = ordered = 0
    for concerts in (1, 2):
        shown = lastseat("demo", "--once", "--buyers", "80", "--seed", "5", settings=shop)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        told = re.search(r"^(\d+) journeys, (\d+) of 2,000 seats sold to (\d+) people", shown.stdout, re.MULTILINE)
        assert told is not None, shown.stdout
        assert int(told[1]) == 80
        assert int(told[2]) >= int(told[3]) > 40
        dropped = re.search(
            r"^16 of 16 units sold to (\d+) of 25 people, (\d+) of them with a coupon", shown.stdout, re.MULTILINE
        )
        assert dropped is not None, shown.stdout
        assert int(dropped[1]) >= int(dropped[2]) > 0
        assert re.search(
            r"^33 of 33 coupons issued to 50 who asked; refused: coupons_gone 17;", shown.stdout, re.MULTILINE
        )
        verdicts = re.findall(r"^(I\d+) +(\w+) ", shown.stdout, re.MULTILINE)
        assert verdicts == [(name, "true") for name in ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I9", "I13")]
        # Nothing that was started is left.
        assert processes.is_free("127.0.0.1", int(shop["LASTSEAT_PORT"]))
        report = json.loads(lastseat("audit", "--json", settings=shop).stdout)
        assert (report["verdict"], report["sales"]) == ("true", 2 * concerts)
        # What the first crowd heard counts for good.
        bought += int(told[3])
        ordered += int(dropped[1])
        heard = {check["invariant"]: check["looked_at"] for check in report["checks"]}["I2"]
        assert heard == {
            "confirmations heard": bought + ordered,
            "of goods": ordered,
            "issues heard": 33 * concerts,
        }


def test_a_process_that_dies_under_the_crowd_is_a_line(shop: dict[str, str]) -> None:
    with subprocess.Popen(
        [PROGRAM, "demo", "--once", "--buyers", "200"],
        env=environment(shop), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        while not running.stdout.readline().startswith("beside"):
            assert running.poll() is None
        [worker] = [pid for pid in descendants(running.pid) if b"worker" in command_of(pid)]
        os.kill(worker, signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.startswith("Error: lastseat worker ended with -9. Its log, ")
    assert "Traceback" not in said


def command_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_what_was_heard_of_other_stores_is_nothing_to_these(outside: dict[str, str]) -> None:
    data_dir = Path(outside["LASTSEAT_DATA_DIR"])
    elsewhere = {
        "event": "confirmed", "sale_id": "5a" * 16, "user_id": "a0" * 16, "key": "k", "reservation_id": "10" * 16,
        "seats": ["A-1-1"], "amount": 1, "payment_id": "9a" * 16,
    }  # fmt: skip
    data_dir.mkdir()
    (data_dir / auditing.HISTORY).write_text(json.dumps(elsewhere) + "\n")
    settings = outside | {"LASTSEAT_PORT": str(processes.free_port("127.0.0.1")), "LASTSEAT_WORKERS": "1"}
    shown = lastseat("demo", "--once", "--buyers", "10", "--seed", "5", settings=settings)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert re.search(r"^I2 +true", shown.stdout, re.MULTILINE)


def test_half_a_key_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "data" / demo.KEY
    key = demo._demo_key(path)
    assert (demo._demo_key(path), path.stat().st_mode & 0o777) == (key, 0o600)
    path.write_text("")  # as a kill or a full disk left it
    assert len(demo._demo_key(path)) == len(key)
