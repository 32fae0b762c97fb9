"""Times are written with milliseconds, in UTC, and told by the stores."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from api.clock import Clock, in_ms, rfc3339


def test_a_moment_is_written_with_three_digits_in_utc() -> None:
    there = timezone(timedelta(hours=9))
    assert rfc3339(datetime(2027, 5, 1, 19, 0, 0, 1999, tzinfo=there)) == "2027-05-01T10:00:00.001Z"
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(None) is None


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_what_is_written_is_the_same_moment(moment: datetime) -> None:
    assert in_ms(datetime.fromisoformat(rfc3339(moment))) == in_ms(moment)


def test_the_clock_goes_on_from_what_a_store_has_said() -> None:
    clock = Clock(datetime(2027, 5, 1, tzinfo=UTC))
    first = clock.now_ms
    assert 0 <= first - in_ms(datetime(2027, 5, 1, tzinfo=UTC)) < 10_000
    assert clock.now_ms >= first
    clock.set(datetime(2027, 4, 1, tzinfo=UTC))
    assert clock.now_ms < first
