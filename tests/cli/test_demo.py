"""The demo from beginning to end, as real processes on embedded stores."""

import json
import re

from cli import processes
from tests.cli.program import lastseat


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
