"""Follows the energy of this process from one instant on: what a recorder, a logger and a test session have in common.

Invariants:
    * whoever asks gets an answer in bounded time, and never an exception for want of a measurement (S3-08);
    * a thread asks the source once a minute, because it keeps ticks for ten; it does not keep the meter alive;
    * a forked child is not measured by its parent's meter: its windows say so.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram.tick_source import open_ticks
from joulegram.window import TickLog
from joulegram_pipeline.errors import AgentError
from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from joulegram.tick_source import JobTicks
    from joulegram.window import TickEnergy, WindowEnergy

POLL_S = 60.0
"""How often a long window asks for its ticks."""

WAIT_S = 2.0
"""How long the end of a window waits for its closing tick, which comes within a second."""

_LOOK_S = 0.05

MONITOR_ONLY = "monitor_only"
"""The `attribution_mode` without an agent, and where no energy is known."""

FORKED = "forked: this process was forked after the measurement began"


class Meter:
    """The ticks from now on.

    Args:
        socket: of an agent; by default JOULEGRAM_AGENT_SOCKET, else the agent's own.
        sysfs_root: ``/sys``, where there is no agent.
        proc_root: ``/proc``, where there is no agent.
        model: model the energy where nothing is measured.
        poll_s: see `POLL_S`.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        sysfs_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        model: bool = False,
        poll_s: float = POLL_S,
    ) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._source: JobTicks | None
        self._source, self.reason = open_ticks(socket, sysfs_root=sysfs_root, proc_root=proc_root, model=model)
        self.begin_ns = time.time_ns()
        self._missing = self.reason if self._source is None else None
        self._log = TickLog(self._pid, self.begin_ns)
        if self._source is not None:
            args = (weakref.ref(self), self._closed, poll_s)
            threading.Thread(target=_poll, args=args, name="joulegram meter", daemon=True).start()

    @property
    def origin(self) -> str | None:
        """``agent``, ``local``, or None where nothing can be had."""
        return None if self._source is None else self._source.origin

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that made it."""
        return os.getpid() != self._pid

    def poll(self) -> None:
        """Take in the ticks there are."""
        if self.is_forked:
            return
        with self._lock:
            source = self._source
            if source is None or self._closed.is_set():
                return
            try:
                if not self._log.add(source.ticks(self._log.after)):
                    self._log.add(source.ticks(0))
                self._missing = None
            except AgentError as error:
                self._missing = f"agent_lost: {error}"

    def wait(self, until_ns: int, wait_s: float = WAIT_S) -> bool:
        """Block until a tick ends at or after an instant, or `wait_s` is over; whether it came."""
        deadline = time.monotonic() + wait_s
        while True:
            self.poll()
            if self._log.end_ns >= until_ns:
                return True
            left_s = deadline - time.monotonic()
            # A source that was lost may come back, but nobody who waits for an end is kept for that.
            if left_s <= 0 or self._missing is not None or self.is_forked:
                return False
            time.sleep(min(left_s, _LOOK_S))

    @property
    def last_ns(self) -> int:
        """The end of the last tick taken in; 0 before the first."""
        return self._log.end_ns

    def ticks(self, start_ns: int, end_ns: int) -> list[TickEnergy]:
        """The ticks taken in that touch a window."""
        return self._log.between(start_ns, end_ns)

    def energy(self, start_ns: int, end_ns: int) -> WindowEnergy:
        """The energy of a window, of the ticks taken in so far."""
        if self.is_forked:
            return TickLog(0, start_ns).energy(start_ns, end_ns, FORKED)
        return self._log.energy(start_ns, end_ns, self._missing)

    def forget(self, before_ns: int) -> None:
        """Windows that begin before an instant will not be asked for."""
        with self._lock:
            self._log.forget(before_ns)

    def close(self) -> None:
        """Let the source go; what was taken in can still be asked for."""
        self._closed.set()
        if not self.is_forked and self._source is not None:
            with self._lock:
                self._source.close()

    def __del__(self) -> None:
        # One that was forgotten lets its source go too; the thread ends by itself.
        if hasattr(self, "_source"):
            self._closed.set()
            if self._source is not None and not self.is_forked:
                self._source.close()


def _poll(meter: weakref.ref[Meter], closed: threading.Event, poll_s: float) -> None:
    while not closed.wait(poll_s):
        alive = meter()
        if alive is None:
            return
        alive.poll()
        del alive


def attribution_mode(origin: str | None, window: WindowEnergy) -> str:
    """Who said what a window's energy is and whose it is, in carbon-ops' words (S3-08).

    Returns:
        ``governor_cpu_time``: an agent, with our part of it by CPU time; ``governor_energy``: an agent, the host's
        energy alone; ``monitor_only``: no agent, or one that knows no energy of the window.
    """
    if origin != "agent" or window.host_uj is None:
        return MONITOR_ONLY
    return "governor_energy" if window.allocation_ratio is None else "governor_cpu_time"


def wall_steps(start_ns: int, end_ns: int, start_mono_ns: int, end_mono_ns: int) -> bool:
    """Whether the wall clock was set in between, by more than a second: its window is then not the time that passed."""
    return abs((end_ns - start_ns) - (end_mono_ns - start_mono_ns)) > NS_PER_S
