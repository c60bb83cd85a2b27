"""Where changes of context are seen: OpenTelemetry's attach and detach, asyncio's steps, work given to threads.

    a change                        seen by
    attach, detach                  a runtime context in the place of OpenTelemetry's, on the same context variable
    a step of a task, a callback    asyncio.Handle, the one place where asyncio's own loops enter a context
    asyncio.to_thread and           ThreadPoolExecutor.submit, where what is submitted is the `run` of a
      pool.submit(context.run, f)   contextvars.Context

Invariants:
    * nothing is replaced before `install`, and `uninstall` puts back what it found, unless others came after;
    * what happens in a loop of another make (uvloop) is not followed, and said so: spans in it have no figure.

Not seen: a `contextvars.Context.run` of the job's own on the same thread. Its time is the surrounding span's.
"""

# ruff: noqa: SLF001 - OpenTelemetry has no public way to replace its runtime context in a running process

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
from asyncio import _get_running_loop as running_loop
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context as Context_
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import opentelemetry.context as context_api
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.trace.propagation import _SPAN_KEY

from joulegram.cpu_watch import OWNER, THREADS, ThreadState, change, doubt, enter, forget, leave, read, unseen

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar, Token

    from opentelemetry.context.context import Context

log = logging.getLogger(__name__)

_HANDLE: Any = asyncio.Handle
_POOL: Any = ThreadPoolExecutor


class WatchedContext(ContextVarsRuntimeContext):
    """OpenTelemetry's own runtime context that says of each change when it happened.

    Args:
        before: the one it stands for; they share the context variable, so that tokens of one are tokens of both.
    """

    def __init__(self, before: ContextVarsRuntimeContext) -> None:
        super().__init__()
        self.before = before
        self.variable = self._current_context = before._current_context

    # `change` is written out in these two, each called once a span: as calls of it they cost 0.5 us a span more.

    def attach(self, context: Context) -> Token[Context]:
        state = THREADS.state
        if not state.in_step and running_loop() is not None:
            return self._attach_doubtful(state, context)
        variable = self.variable
        before, here = state.span, variable.get()
        if state.context is not here:
            before = unseen(state, here.get(_SPAN_KEY))
        state.context = context
        after: Any = context.get(_SPAN_KEY)
        owner = getattr(after, OWNER, None)
        if owner is not None or before is not None:
            now_ns = perf_counter_ns()
            now_ns = now_ns + state.ahead_ns if now_ns < state.until_ns else read(state, now_ns)
            if before is not None:
                leave(state, before, now_ns)
            if owner is None:
                after = None
            elif owner is state and after._joulegram_own_ns is None:
                after._joulegram_own_ns = 0
            else:
                enter(state, after, owner)
            state.span, state.since_ns = after, now_ns
        return variable.set(context)

    def detach(self, token: Token[Context]) -> None:
        state, variable = THREADS.state, self.variable
        if not state.in_step and running_loop() is not None:
            doubt(state)
        here = variable.get()
        try:
            variable.reset(token)
        finally:
            there = variable.get()
            before = state.span
            if state.context is not here:
                before = unseen(state, here.get(_SPAN_KEY))
            state.context = there
            after: Any = there.get(_SPAN_KEY)
            owner = None if after is None else getattr(after, OWNER, None)
            if owner is not None or before is not None:
                now_ns = perf_counter_ns()
                now_ns = now_ns + state.ahead_ns if now_ns < state.until_ns else read(state, now_ns)
                if before is not None:
                    if before._joulegram_owner is state and now_ns > state.since_ns:
                        before._joulegram_own_ns += now_ns - state.since_ns
                    else:
                        leave(state, before, now_ns)
                if owner is None:
                    after = None
                else:
                    enter(state, after, owner)
                state.span, state.since_ns = after, now_ns

    def _attach_doubtful(self, state: ThreadState, context: Context) -> Token[Context]:
        """In a loop that is not followed: what was active and what becomes active have no figure."""
        doubt(state)
        change(state, self.variable.get(), context, _SPAN_KEY)
        doubt(state)
        return self.variable.set(context)


class Hooks:
    """What is replaced, once in a process however many processors ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._at_fork = False
        self._context: WatchedContext | None = None
        self._steps: tuple[Callable[[Any], None], Callable[[Any], None]] | None = None
        self._submits: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def install(self) -> ContextVar[Context] | None:
        """Begin to see changes; the variable that holds the context, or None, with a warning, where they stay unseen.

        Every call that gave a variable is undone by an `uninstall`.
        """
        with self._lock:
            if self._users == 0 and not self._begin():
                return None
            self._users += 1
            assert self._context is not None
            return self._context.variable

    def uninstall(self) -> None:
        """One processor less; with the last, everything is as it was."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._end()

    def _begin(self) -> bool:
        found = context_api._RUNTIME_CONTEXT
        if type(found) is not ContextVarsRuntimeContext or getattr(sys.flags, "thread_inherit_context", False):
            log.warning(
                "got runtime context %s, expected ContextVarsRuntimeContext and threads that begin with an empty "
                "context: spans of this process get no joulegram.cpu_ns",
                type(found).__name__,
            )
            return False
        if not self._at_fork and hasattr(os, "register_at_fork"):
            self._at_fork = True
            os.register_at_fork(after_in_child=forget)
        self._context = context_api._RUNTIME_CONTEXT = WatchedContext(found)
        run_step, submit = _HANDLE._run, _POOL.submit
        self._steps = run_step, _followed_step(self._context.variable, run_step)
        self._submits = submit, _followed_submit(self._context.variable, submit)
        _HANDLE._run = self._steps[1]
        _POOL.submit = self._submits[1]
        if isinstance(running_loop(), asyncio.BaseEventLoop):
            state = THREADS.state
            state.in_step = state.joined_step = True
        return True

    def _end(self) -> None:
        assert self._context is not None
        assert self._steps is not None
        assert self._submits is not None
        if context_api._RUNTIME_CONTEXT is self._context:
            context_api._RUNTIME_CONTEXT = self._context.before
        if _HANDLE._run is self._steps[1]:
            _HANDLE._run = self._steps[0]
        if _POOL.submit is self._submits[1]:
            _POOL.submit = self._submits[0]


HOOKS = Hooks()
"""The hooks of this process."""


def _followed_step(variable: ContextVar[Context], run_step: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(run_step)
    def run(handle: Any) -> None:
        inside = handle._context
        state = THREADS.state
        here = variable.get(None)
        if state.joined_step:
            # The step in which this was installed has just ended, and nothing but the loop ran since.
            state.in_step = state.joined_step = False
            change(state, state.context, here, _SPAN_KEY)
        outer_step = state.in_step
        change(state, here, inside.get(variable), _SPAN_KEY)
        state.in_step = True
        try:
            run_step(handle)
        finally:
            state.in_step = outer_step
            change(state, inside.get(variable), variable.get(None), _SPAN_KEY)

    return run


def _followed_submit(variable: ContextVar[Context], submit: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(submit)
    def followed(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        inside = _entered_by(fn)
        if inside is None:
            return submit(pool, fn, *args, **kwargs)

        def work(*args: Any, **kwargs: Any) -> Any:
            state = THREADS.state
            change(state, variable.get(None), inside.get(variable), _SPAN_KEY)
            try:
                return fn(*args, **kwargs)
            finally:
                change(state, inside.get(variable), variable.get(None), _SPAN_KEY)

        return submit(pool, work, *args, **kwargs)

    return followed


def _entered_by(fn: Callable[..., Any]) -> Context_ | None:
    """The context that calling `fn` enters: it is the `run` of one, perhaps with its arguments bound."""
    if isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", None)
    return owner if isinstance(owner, Context_) and getattr(fn, "__name__", "") == "run" else None
