"""Whose CPU time it was: on every thread, the span that is innermost there, from one change of context to the next.

Invariants:
    * a thread's CPU time between two changes goes to at most one span, the one that was innermost in between;
    * a change that was not seen makes the figures of both spans it touches unknown, not smaller: an unknown figure
      is no figure;
    * each thread adds to a sum of its own, so nothing is locked where spans begin and end.

A span carries its own account, in three attributes that its processor makes: an object beside it would be one more to
make, to find and to free for every span.

    _joulegram_owner     state of the thread that began it; None once a moment of it was not seen
    _joulegram_own_ns    CPU time on that thread; None until it is innermost there
    _joulegram_others    by state of thread, CPU time on the others; None while there are none

The clock is CLOCK_THREAD_CPUTIME_ID: CPU time of the calling thread, in user and kernel mode (clock_gettime(2)). It
costs a system call, several times what the rest of a change costs. So for `SHORT_NS` after it was read the wall clock
stands for it, which is read without one: a thread cannot spend more than passes. What a span gets is thereby at most
`SHORT_NS` off at each end, and that does not add up: the next reading is again the thread's own.
"""

# ruff: noqa: SLF001 - the account hangs on the span, see above

from __future__ import annotations

import threading
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER = "_joulegram_owner"
"""The attribute by which a span is known to have an account."""

SHORT_NS = 50_000
"""For how long after a reading of the thread's clock the wall clock stands for it."""


class ThreadState:
    """What one thread does.

    Args:
        context: the context of OpenTelemetry that the last change led to; None before the first change.
        span: the innermost in it, if it has an account.
        since_ns: the thread's CPU time at that change.
        until_ns: by the wall clock, how long that stands for the thread's own.
        ahead_ns: what is added to the wall clock until then.
        in_step: an event loop that is followed runs one of its steps.
        joined_step: that step had begun before anybody followed, so its end will not be seen.
    """

    __slots__ = ("ahead_ns", "context", "in_step", "joined_step", "since_ns", "span", "until_ns")

    def __init__(self) -> None:
        self.context: Mapping[str, object] | None = None
        self.span: Any = None
        self.since_ns = 0
        self.until_ns = 0
        self.ahead_ns = 0
        self.in_step = False
        self.joined_step = False


class _Threads(threading.local):
    """The calling thread's state; made when a thread first asks, because a fork leaves only one of them."""

    def __init__(self) -> None:
        self.state = ThreadState()


THREADS = _Threads()
"""`THREADS.state` is what the calling thread does."""

_making_others = threading.Lock()


def total_ns(span: Any) -> int | None:
    """Nanoseconds in all; None if it was never innermost, is so still, or was so unseen."""
    owner, others = span._joulegram_owner, span._joulegram_others
    own_ns: int | None = span._joulegram_own_ns
    if owner is None or owner.span is span:
        return None
    if others is None:
        return own_ns
    spent: list[tuple[ThreadState, int]] = list(others.items())
    if any(state.span is span for state, _ in spent):
        return None
    return (own_ns or 0) + sum(spent_ns for _, spent_ns in spent)


def change(state: ThreadState, here: Mapping[str, object] | None, there: Mapping[str, object] | None, key: str) -> None:
    """The calling thread goes from one context to another.

    Args:
        state: of the calling thread.
        here: the context it is really in up to now; None where none was ever set.
        there: the context it is in from now on.
        key: under which a context holds its innermost span.
    """
    before = state.span
    if state.context is not here and here is not None:
        before = unseen(state, here.get(key))
    state.context = there
    after: Any = None if there is None else there.get(key)
    owner = getattr(after, OWNER, None)
    if owner is None and before is None:
        return
    now_ns = perf_counter_ns()
    now_ns = now_ns + state.ahead_ns if now_ns < state.until_ns else read(state, now_ns)
    if before is not None:
        leave(state, before, now_ns)
    if owner is None:
        state.span = None
    else:
        enter(state, after, owner)
        state.span = after
    state.since_ns = now_ns


def read(state: ThreadState, wall_ns: int) -> int:
    """The thread's own clock; for `SHORT_NS` from now on the wall clock stands for it."""
    cpu_ns = thread_time_ns()
    state.until_ns = wall_ns + SHORT_NS
    state.ahead_ns = cpu_ns - wall_ns
    return cpu_ns


def leave(state: ThreadState, span: Any, now_ns: int) -> None:
    """Until now the thread was in the span."""
    # The wall clock may have run ahead of what the thread spent.
    spent_ns = now_ns - state.since_ns if now_ns > state.since_ns else 0
    owner = span._joulegram_owner
    if owner is state:
        span._joulegram_own_ns += spent_ns
    elif owner is not None:
        span._joulegram_others[state] += spent_ns


def enter(state: ThreadState, span: Any, owner: ThreadState) -> None:
    """From now on the thread is in the span, which `owner` began."""
    if owner is state:
        if span._joulegram_own_ns is None:
            span._joulegram_own_ns = 0
        return
    with _making_others:
        if span._joulegram_others is None:
            span._joulegram_others = {}
    span._joulegram_others.setdefault(state, 0)


def doubt(state: ThreadState) -> None:
    """The thread may have been elsewhere since the last change: what it is in now gets no figure."""
    if state.span is not None:
        state.span._joulegram_owner = None


def unseen(state: ThreadState, found: Any) -> Any:
    """The thread is not in the context that the last change led to; whose the time since then is."""
    expected = state.span
    if getattr(found, OWNER, None) is None:
        found = None
    if expected is found:
        return expected
    for span in (expected, found):
        if span is not None:
            span._joulegram_owner = None
    state.span = None
    return None


def forget() -> None:
    """In a child process after a fork: this thread has another CPU clock, and all other threads are gone."""
    global _making_others  # noqa: PLW0603 - another thread may have held it at the fork
    _making_others = threading.Lock()
    THREADS.state = ThreadState()
