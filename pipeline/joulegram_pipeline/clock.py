"""The clock as a seam, and the one way an instant is written.

`datetime` is imported where instants are read: the agent reads none, and it would be a fortieth of its memory.
"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Protocol

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.units import NS_PER_S

_RFC3339 = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)

_BOOTTIME: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Where time comes from; tests hand in their own."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 UTC; may step."""

    def mono_ns(self) -> int:
        """Nanoseconds that never step back; for durations."""


class BootClock(Clock, Protocol):
    """A clock that also knows how long the machine was suspended."""

    def boot_ns(self) -> int:
        """As `mono_ns`, but it goes on while the machine is suspended (Linux CLOCK_BOOTTIME)."""


class SystemClock:
    """The machine's clocks; no function of ours stands between, as the agent reads them ten times a second."""

    wall_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)
    boot_ns = staticmethod(partial(time.clock_gettime_ns, _BOOTTIME))


def utc_iso(wall_ns: int) -> str:
    """An instant as RFC 3339 in UTC, second precision, ``Z`` (S0-18); fractions of a second are cut, not rounded."""
    return f"{_seconds(wall_ns // NS_PER_S)}Z"


def utc_iso_ns(wall_ns: int) -> str:
    """An instant as RFC 3339 in UTC with all nine digits, for records that must be exact."""
    seconds, nanos = divmod(wall_ns, NS_PER_S)
    return f"{_seconds(seconds)}.{nanos:09d}Z"


def utc_now_iso(clock: Clock | None = None) -> str:
    """Now as RFC 3339 in UTC, second precision, ``Z`` (S0-18)."""
    return utc_iso((clock or SystemClock()).wall_ns())


def parse_utc_ns(text: str) -> int:
    """An RFC 3339 instant as nanoseconds since 1970; naive times are refused.

    Raises:
        WireError: not RFC 3339, or without an offset.
    """
    from datetime import UTC, datetime  # noqa: PLC0415 - where an instant is read alone

    match = _RFC3339.fullmatch(text)
    if match is None:
        raise WireError(f"got instant {text!r}, expected RFC 3339 with an offset, as 2026-01-02T03:04:05Z")
    date, hms, fraction, offset = match.groups()
    zone = "+00:00" if offset in "Zz" else offset
    try:
        whole = datetime.fromisoformat(f"{date}T{hms}{zone}")
    except ValueError as error:
        raise WireError(f"got instant {text!r}: {error}") from error
    delta = whole - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = delta.days * 86_400 + delta.seconds
    return seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))


def _seconds(since_epoch: int) -> str:
    # Not strftime: it writes the year 999 with three digits.
    year, month, day, hour, minute, second = time.gmtime(since_epoch)[:6]
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}"
