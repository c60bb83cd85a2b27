"""Who is let in: bytes held by requests under way, what waits behind them, and when those refused may come again.

Invariants:
    * what is held never exceeds the cap, but that one request alone always has room: its size has its own limit;
    * a refusal costs nothing but its words: nothing is parsed and nothing kept;
    * the delay grows with what was refused and not yet served, and with the backlog; it is 1 s where there is none.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Self

from joulegram_receiver.intake_refusals import OverloadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_IN_FLIGHT_BYTES = 256 * 1024 * 1024
MIN_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 30

_FULL_AT_CAPS = 4
"""Held and owed bytes, in units of the cap, at which the delay is the longest."""


class Admission:
    """The gate of all transports; used from one event loop.

    Args:
        max_in_flight_bytes: of requests that are being handled, together.
        backlog: how full what comes after is, 0 (empty) to 1 (takes no more).
    """

    def __init__(
        self, max_in_flight_bytes: int = MAX_IN_FLIGHT_BYTES, backlog: Callable[[], float] | None = None
    ) -> None:
        self.held_bytes = 0
        self._max_bytes = max_in_flight_bytes
        self._backlog = backlog
        self._owed_bytes = 0
        self._holds: dict[Hold, None] = {}
        """Those that are not left, the oldest first."""

    def enter(self, size: int) -> Hold:
        """Let a request of `size` bytes in; the hold is left when it is answered.

        Raises:
            OverloadError: there is no room; nothing is held.
        """
        self.check(size)
        self.held_bytes += size
        hold = Hold(self, size)
        self._holds[hold] = None
        return hold

    def oldest_s(self) -> float | None:
        """How long the oldest request under way has been here; None where there is none."""
        oldest = next(iter(self._holds), None)
        return None if oldest is None else monotonic() - oldest.begun_s

    def check(self, size: int) -> None:
        """Whether `size` bytes would be let in now.

        Raises:
            OverloadError: they would not.
        """
        if self._backlog is not None and self._backlog() >= 1:
            self._owed_bytes += size
            raise OverloadError(
                f"what is queued behind the receiver has no room for {size} more bytes; try again", self.retry_after_s()
            )
        self._check_room(size, 0)

    def retry_after_s(self) -> int:
        """How long those who are refused now should wait."""
        fullness = (self.held_bytes + self._owed_bytes) / (_FULL_AT_CAPS * self._max_bytes)
        if self._backlog is not None:
            fullness = max(fullness, self._backlog())
        span_s = MAX_RETRY_AFTER_S - MIN_RETRY_AFTER_S
        return MIN_RETRY_AFTER_S + int(span_s * min(1.0, max(0.0, fullness)) ** 2)

    def _check_room(self, size: int, held_before: int) -> None:
        if self.held_bytes > held_before and self.held_bytes + size > self._max_bytes:
            self._owed_bytes += size
            raise OverloadError(
                f"{self.held_bytes} bytes of requests are in flight, got {size} more, "
                f"expected at most {self._max_bytes} together; try again",
                self.retry_after_s(),
            )

    def _grow(self, size: int, held_before: int) -> None:
        self._check_room(size, held_before)
        self.held_bytes += size

    def _leave(self, hold: Hold, *, served: bool) -> None:
        size = hold.size
        self.held_bytes -= size
        del self._holds[hold]
        if not served:
            self._owed_bytes += size
        elif self.held_bytes:
            self._owed_bytes = max(0, self._owed_bytes - size)
        else:
            self._owed_bytes = 0  # nobody is in, so there is room for all who were sent away


class Hold:
    """The bytes that one request holds; a context manager that gives them back."""

    __slots__ = ("_admission", "_served", "begun_s", "size")

    def __init__(self, admission: Admission, size: int) -> None:
        self.size = size
        self.begun_s = monotonic()
        self._admission = admission
        self._served = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._leave(self, served=self._served)  # noqa: SLF001 - two halves of one thing

    def grow(self, more: int) -> None:
        """Hold `more` bytes.

        Raises:
            OverloadError: there is no room; what was held before still is.
        """
        self._admission._grow(more, self.size)  # noqa: SLF001 - as above
        self.size += more

    def will_return(self) -> None:
        """The request is not served for no fault of its own: its sender will bring it again."""
        self._served = False
