"""What a rush proves, and when it proves nothing."""

import pytest

from engine.findings import Check
from loadtests import rush
from loadtests.audit import Report


def heard(**looked_at: int) -> Report:
    """A clean audit of a history with so much of each."""
    named = {name.replace("_", " "): count for name, count in looked_at.items()}
    check = Check(invariant="I2", title="", verdict="true", looked_at=named, findings=[], found=0, unknown=[])
    return Report(verdict="true", sales=3, checks=[check], to_rebuild=[])


@pytest.mark.parametrize(
    ("report", "unsold"),
    [
        (heard(confirmations_heard=30, of_goods=10, issues_heard=5), []),
        (heard(confirmations_heard=0), ["seats", "goods", "coupons"]),
        (heard(confirmations_heard=10, of_goods=10, issues_heard=5), ["seats"]),
        (heard(confirmations_heard=10, issues_heard=5), ["goods"]),
    ],
)
def test_a_crowd_that_gets_nothing_proves_nothing(report: Report, unsold: list[str]) -> None:
    assert rush._unsold(report) == unsold
