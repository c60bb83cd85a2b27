"""How an instant is written and read (S0-18, D-14, D-29)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.clock import SystemClock, parse_utc_ns, utc_iso, utc_iso_ns, utc_now_iso
from joulegram_pipeline.errors import WireError
from simulators.procfs import ManualClock

NANOS = st.integers(min_value=-62_135_596_800 * 10**9, max_value=253_402_300_799 * 10**9)
"""Years 1 to 9999."""


@given(NANOS)
def test_instants_are_written_as_datetime_writes_them(wall_ns: int) -> None:
    """UTC, whole seconds, Z; the fraction is cut, before 1970 too (S0-18)."""
    expected = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=wall_ns // 10**9)
    assert utc_iso(wall_ns) == expected.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


@given(NANOS)
def test_nanoseconds_are_read_back_as_they_were_written(wall_ns: int) -> None:
    """All nine digits, exactly."""
    assert parse_utc_ns(utc_iso_ns(wall_ns)) == wall_ns


@given(
    st.datetimes(
        min_value=datetime(2, 1, 1),  # noqa: DTZ001 - hypothesis wants naive bounds
        max_value=datetime(9998, 1, 1),  # noqa: DTZ001
        timezones=st.builds(timezone, st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes))),
    )
)
def test_any_offset_is_read_as_datetime_reads_it(moment: datetime) -> None:
    """Offsets to the minute; the instant is the same, to the microsecond that datetime holds."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    expected = (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000
    assert parse_utc_ns(moment.isoformat()) == expected


READ = [
    ("1970-01-01T00:00:00Z", 0),
    ("1970-01-01t00:00:00z", 0),
    ("1970-01-01T01:00:00+01:00", 0),
    ("1969-12-31T23:59:59.999999999Z", -1),
    ("2026-01-02T03:04:05.5Z", 1_767_323_045_500_000_000),
    ("2026-01-02T03:04:05.000000001-00:00", 1_767_323_045_000_000_001),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_instants_that_are_rfc_3339(text: str, expected: int) -> None:
    """Z or an offset, up to nine digits of a second."""
    assert parse_utc_ns(text) == expected


REFUSED = {
    "no offset": "2026-01-02T03:04:05",
    "a day alone": "2026-01-02",
    "a month that is none": "2026-13-02T03:04:05Z",
    "an hour that is none": "2026-01-02T24:00:00Z",
    "ten digits": "2026-01-02T03:04:05.1234567890Z",
    "a space": "2026-01-02 03:04:05Z",
    "a line feed behind": "2026-01-02T03:04:05Z\n",
    "other digits": "٢٠٢٦-01-02T03:04:05Z",
    "a week": "2026-W01-5T03:04:05Z",
    "an offset of a day": "2026-01-02T03:04:05+24:00",
    "nothing": "",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_instant_is_refused_and_quoted(text: str) -> None:
    """Naive times above all (D-14): the text is quoted, the error is of the tree."""
    with pytest.raises(WireError) as caught:
        parse_utc_ns(text)
    assert repr(text) in str(caught.value)


def test_now_is_the_clocks_now() -> None:
    """The clock that was handed in, else the machine's (S0-18)."""
    assert utc_now_iso(ManualClock(1_767_323_045_999_999_999)) == "2026-01-02T03:04:05Z"
    before = datetime.now(UTC).replace(microsecond=0)
    assert before <= datetime.fromisoformat(utc_now_iso()) <= datetime.now(UTC)


def test_the_machines_clocks_are_nanoseconds() -> None:
    """The wall clock is since 1970, and the other never steps back (D-29)."""
    clock = SystemClock()
    assert abs(clock.wall_ns() / 1e9 - datetime.now(UTC).timestamp()) < 5
    readings = [clock.mono_ns() for _ in range(1000)]
    assert readings == sorted(readings)
