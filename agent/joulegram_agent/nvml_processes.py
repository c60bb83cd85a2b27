"""Which process trees kept a board busy, from the driver's samples of each process.

1. The driver is asked for the samples after the newest one that was seen.
2. Those that cannot be are left out: no pid, above 100 %, or not newer than that (drivers hand out such).
3. A sample says for what share of the time since the sample before it something of the process ran. That time is at
   most the time since the driver was last asked, by our own clock: a process of which there was no sample for long did
   not run then.
4. What that makes in nanoseconds goes to the named process in whose tree the process is, else to `OTHERS`.

Kernels of several processes can run at once (MPS), so the times of a board may add up to more than the time there
was. They are shares to split by, and say nothing of how hard a process worked the board.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from joulegram_agent.nvml_library import FUNCTION_NOT_FOUND, NOT_SUPPORTED, Handle, NvmlError, NvmlLibrary
from joulegram_pipeline.energy import OTHERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.nvml_library import ProcessSample

log = logging.getLogger(__name__)

_NS_PER_US = 1_000
_WHOLE_PERCENT = 100
_NO_ACCOUNT = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND})


class BoardProcesses:
    """The account of one board; `take` from the first call on, which only says where it begins.

    Args:
        library: which knows the board.
        name: of the board's domain, for the log.
    """

    def __init__(self, library: NvmlLibrary, name: str) -> None:
        self._library = library
        self._name = name
        self._newest_us = 0
        self._asked_ns: int | None = None
        self._kept = True

    def take(self, handle: Handle, now_ns: int, root_of: Callable[[int], int | None]) -> dict[int, int] | None:
        """Nanoseconds by named process since the last call; None where there is no account of that time.

        Args:
            handle: of the board.
            now_ns: on a clock that never steps back.
            root_of: see `SharesBoards`.
        """
        if not self._kept:
            return None
        asked_ns, self._asked_ns = self._asked_ns, None
        try:
            samples = self._library.process_samples(handle, self._newest_us)
        except NvmlError as error:
            self._kept = error.code not in _NO_ACCOUNT
            log.log(
                logging.DEBUG if self._kept else logging.INFO,
                "domain %s: no GPU time of processes: %s",
                self._name,
                error,
            )
            return None
        self._asked_ns = now_ns
        before_us = self._newest_us
        good = [one for one in samples if one.pid and one.at_us > before_us and one.sm_percent <= _WHOLE_PERCENT]
        self._newest_us = max([before_us, *(one.at_us for one in good)])
        if asked_ns is None:
            return None
        return _by_root(good, before_us, now_ns - asked_ns, root_of)


def _by_root(
    samples: list[ProcessSample], before_us: int, elapsed_ns: int, root_of: Callable[[int], int | None]
) -> dict[int, int]:
    times: dict[int, int] = {}
    last_us: dict[int, int] = {}
    left_ns: dict[int, int] = {}
    for sample in sorted(samples, key=lambda one: one.at_us):
        # Where nothing was seen yet, the sample's time is what passed by our clock.
        since_us = last_us.get(sample.pid, before_us)
        left = left_ns.get(sample.pid, elapsed_ns)
        covered_ns = min(left, (sample.at_us - since_us) * _NS_PER_US) if since_us else left
        last_us[sample.pid] = sample.at_us
        left_ns[sample.pid] = left - covered_ns
        root = root_of(sample.pid)
        key = OTHERS if root is None else root
        times[key] = times.get(key, 0) + covered_ns * sample.sm_percent // _WHOLE_PERCENT
    return times
