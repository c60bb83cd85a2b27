"""Wakes the sampler: one step at a time, beside what an event loop does.

Invariants:
    * a step is called in the loop's thread, and once for each time it was asked for;
    * after a step that says so, asyncio has its turn at once.

Waking up ten times a second costs more than the samples do: after a tenth of a second nothing is in the caches, and
each function on the way is fetched anew. A timer of asyncio takes two to three times what the kernel takes to wake a
process, so the agent's own process runs on a `PacedLoop`, which takes its steps where it waits anyway. On any other
loop a timer does the same.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import time
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.units import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from selectors import SelectorKey


_NS_PER_MS = 1_000_000


class Pace(Protocol):
    """Calls steps."""

    def after(self, wait_ns: int, step: Callable[[], bool]) -> None:
        """Have `step` called once, so many nanoseconds from now, in place of what was to be called before.

        It returns whether it left something for the loop to do: a callback, a future that is done.
        """

    def stop(self) -> None:
        """Call nothing more."""


def pace_of(loop: asyncio.AbstractEventLoop) -> Pace:
    """The best pace that a loop has."""
    return loop.pace if isinstance(loop, PacedLoop) else TimerPace(loop)


class TimerPace:
    """By timers of any loop.

    Args:
        loop: it runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def after(self, wait_ns: int, step: Callable[[], bool]) -> None:
        self.stop()
        self._timer = self._loop.call_later(wait_ns / NS_PER_S, step)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PacedSelector(selectors.EpollSelector):
    """Waits as it is told to, and takes steps meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        # What is ready makes the selector's own descriptor readable: asked of the kernel without a list to build.
        self._ready = select.poll()
        self._ready.register(self.fileno(), select.POLLIN)
        self._step: Callable[[], bool] | None = None
        self._due_ns = 0

    def after(self, wait_ns: int, step: Callable[[], bool]) -> None:
        """See `Pace`."""
        self._due_ns = time.monotonic_ns() + wait_ns
        self._step = step

    def stop(self) -> None:
        """See `Pace`."""
        self._step = None

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """See `selectors.BaseSelector.select`: what is ready, or nothing when the time is over or a step says so."""
        until_ns = None if timeout is None else time.monotonic_ns() + round(timeout * NS_PER_S)
        while (step := self._step) is not None:
            wait_ns = self._due_ns - time.monotonic_ns()
            if wait_ns <= 0:
                self._step = None
                if step():
                    return super().select(0)
            elif until_ns is not None and until_ns < self._due_ns:
                break
            elif self._ready.poll(wait_ns / _NS_PER_MS):
                return super().select(0)
        return super().select(None if until_ns is None else max(0, until_ns - time.monotonic_ns()) / NS_PER_S)


class PacedLoop(asyncio.SelectorEventLoop):
    """An event loop with a pace of its own."""

    def __init__(self) -> None:
        self.pace = PacedSelector()
        super().__init__(self.pace)
