"""The account of a span: who began it, and what each thread spent in it.

A span carries its own account, in three attributes that its processor makes: an object beside it would be one more to
make, to find and to free for every span.

    _joulegram_owner     state of the thread that began it; None once a moment of it was not seen
    _joulegram_own_ns    CPU time on that thread; None until it is innermost there
    _joulegram_others    by state of thread, CPU time on the others; None while there are none

Invariants:
    * each thread adds to a sum of its own, so nothing is locked where spans begin and end;
    * whoever tampers with an account gets no figure, and no error: one here would come back at every later change.
"""

# ruff: noqa: SLF001 - the account hangs on the span, see above

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER = "_joulegram_owner"
"""The attribute by which a span is known to have an account."""


class ThreadState:
    """What one thread does.

    Args:
        context: the context of OpenTelemetry that the last change led to; None before the first change.
        span: the innermost in it, if it has an account.
        since_ns: the thread's CPU time at that change.
        until_ns: by the wall clock, how long that stands for the thread's own.
        ahead_ns: what is added to the wall clock until then.
        forks: how many lay behind the process when the state was made; with another number it is of a parent's thread.
        in_step: an event loop that is followed runs one of its steps.
        joined_step: that step had begun before anybody followed, so its end will not be seen.
    """

    __slots__ = ("ahead_ns", "context", "forks", "in_step", "joined_step", "since_ns", "span", "until_ns")

    def __init__(self, forks: int = 0) -> None:
        self.context: Mapping[str, object] | None = None
        self.span: Any = None
        self.since_ns = 0
        self.until_ns = 0
        self.ahead_ns = 0
        self.forks = forks
        self.in_step = False
        self.joined_step = False


_making_others = threading.Lock()


def total_ns(span: Any, forks: int) -> int | None:
    """Nanoseconds in all; None if it was never innermost, is so still, was so unseen, or began before so many forks."""
    try:
        owner, others = span._joulegram_owner, span._joulegram_others
        own_ns: int | None = span._joulegram_own_ns
        if owner is None or owner.span is span or owner.forks != forks:
            return None
        if others is None:
            return own_ns
        spent: list[tuple[ThreadState, int]] = list(others.items())
        if any(state.span is span for state, _ in spent):
            return None
        return (own_ns or 0) + sum(spent_ns for _, spent_ns in spent)
    except (AttributeError, TypeError):
        return None


def leave(state: ThreadState, span: Any, now_ns: int) -> None:
    """Until now the thread was in the span."""
    # The wall clock may have run ahead of what the thread spent.
    spent_ns = now_ns - state.since_ns if now_ns > state.since_ns else 0
    owner = getattr(span, OWNER, None)
    try:
        if owner is state:
            span._joulegram_own_ns += spent_ns
        elif owner is not None:
            span._joulegram_others[state] += spent_ns
    except (AttributeError, KeyError, TypeError):
        span._joulegram_owner = None


def enter(state: ThreadState, span: Any, owner: ThreadState) -> None:
    """From now on the thread is in the span, which `owner` began."""
    try:
        if owner is state:
            if span._joulegram_own_ns is None:
                span._joulegram_own_ns = 0
            return
        with _making_others:
            if span._joulegram_others is None:
                span._joulegram_others = {}
        span._joulegram_others.setdefault(state, 0)
    except AttributeError:
        span._joulegram_owner = None


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


def begin_anew() -> None:
    """In a child process after a fork: all other threads are gone, and one of them may have held the lock."""
    global _making_others  # noqa: PLW0603 - as said
    _making_others = threading.Lock()
