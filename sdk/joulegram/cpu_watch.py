"""Whose CPU time it was: on every thread, the span that is innermost there, from one change of context to the next.

Invariants:
    * a thread's CPU time between two changes goes to at most one span, the one that was innermost in between;
    * a change that was not seen makes the figures of both spans it touches unknown, not smaller: an unknown figure
      is no figure;
    * what is compiled (`_native.Watch`, where it is there) charges as `Watch` does, and has the same names.

The clock is CLOCK_THREAD_CPUTIME_ID: CPU time of the calling thread, in user and kernel mode (clock_gettime(2)). It
costs a system call, several times what the rest of a change costs. So for `SHORT_NS` after it was read the wall clock
stands for it, which is read without one: a thread cannot spend more than passes. What a span gets is thereby at most
`SHORT_NS` off at each end, and that does not add up: the next reading is again the thread's own.
"""

# ruff: noqa: SLF001 - the account hangs on the span, see cpu_account

from __future__ import annotations

import threading
from sys import modules
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, Protocol

from joulegram.cpu_account import OWNER, ThreadState, begin_anew, doubt, enter, leave, total_ns, unseen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import ContextVar, Token

SHORT_NS = 50_000
"""For how long after a reading of the thread's clock the wall clock stands for it."""


class _Threads(threading.local):
    """The calling thread's state; made when a thread first asks."""

    forks = 0
    """How many lie behind this process; the same for all threads."""

    def __init__(self) -> None:
        self.state = ThreadState(_Threads.forks)


_THREADS = _Threads()


def closed(watch: AnyWatch, here: Mapping[str, object], span: Any) -> int | None:
    """The figure of a span that other threads were in, or that ends where it is active."""
    state = watch.state()
    if state.span is span or here.get(watch.key) is span:
        # From here on the time is nobody's, although its context is not left yet.
        watch.change(state, here, here)
        state.span = None
    return total_ns(span, state.forks)


class AnyWatch(Protocol):
    """What sees one thread's changes of context and charges for them: `Watch`, or what is compiled in its place."""

    @property
    def key(self) -> str:
        """Under which a context holds its innermost span."""
        ...

    def state(self) -> ThreadState:
        """The calling thread's."""
        ...

    def forget(self) -> None:
        """In a child process after a fork: the calling thread has another CPU clock, and is alone."""
        ...

    def attach(self, context: Any, /) -> Token[Any]:
        """As of a runtime context of OpenTelemetry."""
        ...

    def detach(self, token: Token[Any], /) -> None:
        """As of a runtime context of OpenTelemetry."""
        ...

    def change(
        self, state: ThreadState, here: Mapping[str, object] | None, there: Mapping[str, object] | None, /
    ) -> None:
        """The calling thread goes from one context to another.

        Args:
            state: of the calling thread.
            here: the context it is really in up to now; None where none was ever set.
            there: the context it is in from now on.
        """
        ...

    def begin(self, span: Any, /) -> None:
        """Give a span its account."""
        ...

    def end(self, span: Any, /) -> int | None:
        """The CPU time of a span that ends now; None where it is not known."""
        ...


class Watch:
    """The reference, in Python.

    Args:
        variable: holds the context of OpenTelemetry.
        key: under which a context holds its innermost span.
        running_loop: the event loop that runs on the calling thread, if any.
        wall_ns: the wall clock, for tests.
        cpu_ns: the calling thread's clock, for tests.
    """

    def __init__(
        self,
        variable: ContextVar[Any],
        key: str,
        running_loop: Callable[[], object],
        wall_ns: Callable[[], int] = perf_counter_ns,
        cpu_ns: Callable[[], int] = thread_time_ns,
    ) -> None:
        self.key = key
        self._get, self._set, self._reset = variable.get, variable.set, variable.reset
        self._running_loop = running_loop
        self._wall_ns = wall_ns
        self._cpu_ns = cpu_ns

    def state(self) -> ThreadState:
        return _THREADS.state

    def forget(self) -> None:
        begin_anew()
        _Threads.forks += 1
        _THREADS.state = ThreadState(_Threads.forks)

    def attach(self, context: Any, /) -> Token[Any]:
        state = _THREADS.state
        doubtful = not state.in_step and self._running_loop() is not None
        if doubtful:
            # In a loop that is not followed: what was active and what becomes active have no figure.
            doubt(state)
        self.change(state, self._get(), context)
        if doubtful:
            doubt(state)
        return self._set(context)

    def detach(self, token: Token[Any], /) -> None:
        state = _THREADS.state
        if not state.in_step and self._running_loop() is not None:
            doubt(state)
        here = self._get()
        try:
            self._reset(token)
        finally:
            self.change(state, here, self._get())

    def change(
        self, state: ThreadState, here: Mapping[str, object] | None, there: Mapping[str, object] | None, /
    ) -> None:
        before = state.span
        if state.context is not here and here is not None:
            before = unseen(state, here.get(self.key))
        state.context = there
        after: Any = None if there is None else there.get(self.key)
        owner = None if after is None else getattr(after, OWNER, None)
        if owner is None and before is None:
            return
        now_ns = self._wall_ns()
        if now_ns < state.until_ns:
            now_ns += state.ahead_ns
        else:
            # The thread's own clock; for `SHORT_NS` from now on the wall clock stands for it.
            cpu_ns = self._cpu_ns()
            state.until_ns, state.ahead_ns = now_ns + SHORT_NS, cpu_ns - now_ns
            now_ns = cpu_ns
        if before is not None:
            # What `leave` does for nearly every span, without the call.
            try:
                if before._joulegram_owner is state and now_ns > state.since_ns:
                    before._joulegram_own_ns += now_ns - state.since_ns
                else:
                    leave(state, before, now_ns)
            except (AttributeError, TypeError):
                leave(state, before, now_ns)
        if owner is None:
            after = None
        else:
            enter(state, after, owner)
        state.span, state.since_ns = after, now_ns

    def begin(self, span: Any, /) -> None:
        if "gevent" in modules or "trio" in modules or "curio" in modules:
            return
        span._joulegram_owner = _THREADS.state
        span._joulegram_own_ns = span._joulegram_others = None

    def end(self, span: Any, /) -> int | None:
        try:
            owner = span._joulegram_owner
            if owner is None:
                return None
            here = self._get()
            if (
                span._joulegram_others is None
                and owner.span is not span
                and here.get(self.key) is not span
                and owner.forks == _Threads.forks
            ):
                own_ns: int | None = span._joulegram_own_ns
                return own_ns
        except AttributeError:
            return None  # it began before this watch, or somebody took its account away
        return closed(self, here, span)
