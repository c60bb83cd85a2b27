"""What `nvidia-smi` says each board draws, ten times a second, and the trapezoids over it."""

from __future__ import annotations

import bisect
import shutil
import subprocess
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

PROGRAM = "nvidia-smi"
EVERY_MS = 100
FIELDS = "timestamp,uuid,power.draw"
MAX_STEP_NS = 1_000_000_000
"""Two samples further apart say nothing of the time between them."""

NS_PER_S = 1_000_000_000
_TIME = "%Y/%m/%d %H:%M:%S.%f"


class SmiError(Exception):
    """`nvidia-smi` is not there, or what it said is no measurement."""


class Smi:
    """Runs `nvidia-smi` while it is open, and keeps what it says of each board by its UUID.

    Its own timestamps are taken, so it does not matter when its lines arrive.

    Raises:
        SmiError: it is not installed; from `joules`, why there is no figure.
    """

    def __init__(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise SmiError(f"there is no {PROGRAM} on the path")
        self._samples: dict[str, list[tuple[int, float]]] = {}
        self._said = ""
        self._ended = False
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        command = [PROGRAM, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()

    def wait(self, uuid: str, until_ns: int, timeout_s: float = 30.0) -> None:
        """Until a sample of a board at or after an instant is there; it writes in blocks into a pipe."""

        def there() -> bool:
            return self._last_ns(uuid) >= until_ns or self._ended

        with self._news:
            if not self._news.wait_for(there, timeout_s) or self._last_ns(uuid) < until_ns:
                raise SmiError(
                    f"{PROGRAM} gave no power of {uuid} within {timeout_s:g} s: {self._said or 'nothing said'}"
                )

    def joules(self, uuid: str, start_ns: int, end_ns: int) -> float:
        """The energy of a window, power taken as straight between two samples."""
        with self._news:
            return joules(self._samples.get(uuid, []), start_ns, end_ns)

    def _last_ns(self, uuid: str) -> int:
        return self._samples[uuid][-1][0] if uuid in self._samples else 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                try:
                    at, uuid, watts = (cell.strip() for cell in line.split(","))
                    sample = (
                        round(datetime.strptime(at, _TIME).astimezone().timestamp() * 1e3) * 1_000_000,
                        float(watts),
                    )
                except ValueError:
                    self._said = line.strip()  # "[N/A]" and every error message: said where a figure is missed
                else:
                    self._samples.setdefault(uuid, []).append(sample)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def joules(samples: list[tuple[int, float]], start_ns: int, end_ns: int) -> float:
    """Trapezoids over samples of (instant, watts), cut at the ends of the window.

    Raises:
        SmiError: the samples do not hold the window, or leave too large a hole in it.
    """
    at = [instant for instant, _ in samples]
    first, last = bisect.bisect_right(at, start_ns) - 1, bisect.bisect_left(at, end_ns)
    if first < 0 or last >= len(at):
        raise SmiError(f"got {len(at)} samples of {PROGRAM}, expected some before, in and after the window")
    total = 0.0
    for (from_ns, from_w), (to_ns, to_w) in zip(samples[first:last], samples[first + 1 : last + 1], strict=True):
        if to_ns - from_ns > MAX_STEP_NS:
            raise SmiError(f"got {(to_ns - from_ns) / NS_PER_S:.1f} s between two samples, expected at most 1")
        low_ns, high_ns = max(from_ns, start_ns), min(to_ns, end_ns)
        if high_ns > low_ns:
            slope = (to_w - from_w) / (to_ns - from_ns)
            middle_w = from_w + slope * ((low_ns + high_ns) / 2 - from_ns)
            total += middle_w * (high_ns - low_ns) / NS_PER_S
    return total
