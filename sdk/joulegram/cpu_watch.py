"""Whose CPU time it was: on every thread, the span that is innermost there, from one change of context to the next.

Invariants:
    * a thread's CPU time between two changes goes to at most one span, the one that was innermost in between;
    * a change that was not seen makes the figures of both spans it touches unknown, not smaller: an unknown figure
      is no figure;
    * each thread adds to a sum of its own, so nothing is locked where spans begin and end.

The clock is CLOCK_THREAD_CPUTIME_ID: CPU time of the calling thread, in user and kernel mode (clock_gettime(2)). It
costs a system call, several times what the rest of a change costs. So for `SHORT_NS` after it was read the wall clock
stands for it, which is read without one: a thread cannot spend more than passes. What a span gets is thereby at most
`SHORT_NS` off at each end, and that does not add up: the next reading is again the thread's own.
"""

from __future__ import annotations

import threading
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = "_joulegram_account"
"""The attribute of a span under which its account hangs."""

SHORT_NS = 50_000
"""For how long after a reading of the thread's clock the wall clock stands for it."""


class Account:
    """CPU time of one span. Class attributes are what it begins with: one is made for every span.

    `own_ns` is of the thread that began the span, `others_ns` of others by thread; `was_active` says whether it was
    innermost anywhere, `known` whether every moment of that was seen.
    """

    owner: ThreadState
    own_ns = 0
    others_ns: dict[ThreadState, int] | None = None
    was_active = False
    known = True

    def total_ns(self) -> int | None:
        """Nanoseconds in all; None if it was never active, is active still, or was active unseen."""
        if not (self.known and self.was_active) or self.owner.account is self:
            return None
        if self.others_ns is None:
            return self.own_ns
        others = list(self.others_ns.items())
        if any(state.account is self for state, _ in others):
            return None
        return self.own_ns + sum(spent_ns for _, spent_ns in others)


class ThreadState:
    """What one thread does.

    Args:
        context: the context of OpenTelemetry that the last change led to; None before the first change.
        account: of the span that is innermost in it.
        since_ns: the thread's CPU time at that change.
        read_cpu_ns: the thread's CPU time when it was last read.
        read_wall_ns: the wall clock then.
        in_step: an event loop that is followed runs one of its steps.
        joined_step: that step had begun before anybody followed, so its end will not be seen.
    """

    __slots__ = ("account", "context", "in_step", "joined_step", "read_cpu_ns", "read_wall_ns", "since_ns")

    def __init__(self) -> None:
        self.context: Mapping[str, object] | None = None
        self.account: Account | None = None
        self.since_ns = 0
        self.read_cpu_ns = 0
        self.read_wall_ns = -SHORT_NS
        self.in_step = False
        self.joined_step = False


class _Threads(threading.local):
    """The calling thread's state; made when a thread first asks, because a fork leaves only one of them."""

    def __init__(self) -> None:
        self.state = ThreadState()


THREADS = _Threads()
"""`THREADS.state` is what the calling thread does."""

_making_others = threading.Lock()


def change(state: ThreadState, here: Mapping[str, object] | None, there: Mapping[str, object] | None, key: str) -> None:
    """The calling thread goes from one context to another.

    Args:
        state: of the calling thread.
        here: the context it is really in up to now; None where none was ever set.
        there: the context it is in from now on.
        key: under which a context holds its innermost span.
    """
    before = state.account
    if state.context is not here and here is not None:
        before = _unseen(state, before, getattr(here.get(key), ACCOUNT, None))
    after: Account | None = None if there is None else getattr(there.get(key), ACCOUNT, None)
    state.context = there
    if before is None and after is None:
        return
    wall_ns = perf_counter_ns()
    passed_ns = wall_ns - state.read_wall_ns
    if passed_ns < SHORT_NS:
        now_ns = state.read_cpu_ns + passed_ns
    else:
        now_ns = state.read_cpu_ns = thread_time_ns()
        state.read_wall_ns = wall_ns
    if before is not None:
        # The wall clock may have run ahead of what the thread spent.
        spent_ns = now_ns - state.since_ns if now_ns > state.since_ns else 0
        if before.owner is state:
            before.own_ns += spent_ns
        else:
            assert before.others_ns is not None
            before.others_ns[state] += spent_ns
    if after is not None:
        after.was_active = True
        if after.owner is not state:
            _join(after, state)
    state.account = after
    state.since_ns = now_ns


def doubt(state: ThreadState) -> None:
    """The thread may have been elsewhere since the last change: what it is in now gets no figure."""
    if state.account is not None:
        state.account.known = False


def forget() -> None:
    """In a child process after a fork: this thread has another CPU clock, and all other threads are gone."""
    global _making_others  # noqa: PLW0603 - another thread may have held it at the fork
    _making_others = threading.Lock()
    THREADS.state = ThreadState()


def _join(account: Account, state: ThreadState) -> None:
    """A thread that did not begin the span takes part in it."""
    with _making_others:
        if account.others_ns is None:
            account.others_ns = {}
    account.others_ns.setdefault(state, 0)


def _unseen(state: ThreadState, expected: Account | None, found: Account | None) -> Account | None:
    """The thread is not in the context that the last change led to; whose the time since then is."""
    if expected is found:
        return expected
    for account in (expected, found):
        if account is not None:
            account.known = False
    state.account = None
    return None
