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
from typing import TYPE_CHECKING, Any

import opentelemetry.context as context_api
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.trace.propagation import _SPAN_KEY

from joulegram import native
from joulegram.cpu_watch import AnyWatch, Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import ContextVar

    from opentelemetry.context.context import Context

log = logging.getLogger(__name__)

_HANDLE: Any = asyncio.Handle
_POOL: Any = ThreadPoolExecutor


class WatchedContext(ContextVarsRuntimeContext):
    """OpenTelemetry's own runtime context that says of each change when it happened.

    Args:
        before: the one it stands for; they share the context variable, so that tokens of one are tokens of both.
        watch: is told of the changes.
    """

    def __init__(self, before: ContextVarsRuntimeContext, watch: AnyWatch) -> None:
        super().__init__()
        self.before = before
        self._current_context = before._current_context
        # Called several times a span: as attributes of the instance they cost no call of a method in between.
        vars(self).update(get_current=self._current_context.get, attach=watch.attach, detach=watch.detach)


def make_watch(variable: ContextVar[Context]) -> AnyWatch:
    """What charges for the changes, compiled where it is there."""
    make = Watch if native.LOADED is None else native.LOADED.Watch
    return make(variable, _SPAN_KEY, running_loop)


class Hooks:
    """What is replaced, once in a process however many processors ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._at_fork = False
        self._watch: AnyWatch | None = None
        self._context: WatchedContext | None = None
        self._steps: tuple[Callable[[Any], None], Callable[[Any], None]] | None = None
        self._submits: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def install(self) -> AnyWatch | None:
        """Begin to see changes; what charges for them, or None, with a warning, where they stay unseen.

        Every call that gave a watch is undone by an `uninstall`.
        """
        with self._lock:
            if self._users == 0 and not self._begin():
                return None
            self._users += 1
            return self._watch

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
            os.register_at_fork(after_in_child=self._forget)
        variable = found._current_context
        watch = self._watch = make_watch(variable)
        self._context = context_api._RUNTIME_CONTEXT = WatchedContext(found, watch)
        run_step, submit = _HANDLE._run, _POOL.submit
        self._steps = run_step, _followed_step(variable, watch, run_step)
        self._submits = submit, _followed_submit(variable, watch, submit)
        _HANDLE._run = self._steps[1]
        _POOL.submit = self._submits[1]
        if isinstance(running_loop(), asyncio.BaseEventLoop):
            state = watch.state()
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

    def _forget(self) -> None:
        if self._watch is not None:
            self._watch.forget()


HOOKS = Hooks()
"""The hooks of this process."""


def _followed_step(
    variable: ContextVar[Context], watch: AnyWatch, run_step: Callable[[Any], None]
) -> Callable[[Any], None]:
    change = watch.change

    @functools.wraps(run_step)
    def run(handle: Any) -> None:
        inside = handle._context
        state = watch.state()
        here = variable.get(None)
        if state.joined_step:
            # The step in which this was installed has just ended, and nothing but the loop ran since.
            state.in_step = state.joined_step = False
            change(state, state.context, here)
        outer_step = state.in_step
        change(state, here, inside.get(variable))
        state.in_step = True
        try:
            run_step(handle)
        finally:
            state.in_step = outer_step
            change(state, inside.get(variable), variable.get(None))

    return run


def _followed_submit(variable: ContextVar[Context], watch: AnyWatch, submit: Callable[..., Any]) -> Callable[..., Any]:
    change = watch.change

    @functools.wraps(submit)
    def followed(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        inside = _entered_by(fn)
        if inside is None:
            return submit(pool, fn, *args, **kwargs)

        def work(*args: Any, **kwargs: Any) -> Any:
            state = watch.state()
            change(state, variable.get(None), inside.get(variable))
            try:
                return fn(*args, **kwargs)
            finally:
                change(state, inside.get(variable), variable.get(None))

        return submit(pool, work, *args, **kwargs)

    return followed


def _entered_by(fn: Callable[..., Any]) -> Context_ | None:
    """The context that calling `fn` enters: it is the `run` of one, perhaps with its arguments bound."""
    if isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", None)
    return owner if isinstance(owner, Context_) and getattr(fn, "__name__", "") == "run" else None
