"""The compiled part of the SDK gives the accounts that the Python gives, whatever a job does, and holds nothing."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import gc
import os
import subprocess
import sys
import threading
import types
from asyncio import _get_running_loop as running_loop
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import opentelemetry.context as context_api
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.trace.propagation import _SPAN_KEY

from joulegram import cpu_hooks, cpu_watch, native
from joulegram.cpu_hooks import HOOKS
from joulegram.span_processor import CPU_NS, JouleSpanProcessor
from processor.compiled import no_growth
from simulators.cpu_spans import ForeignLoop, Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from joulegram.cpu_watch import AnyWatch

ALONE = "JOULEGRAM_TEST_ALONE"
"""Set where nothing but the growth of memory is tested."""

COMPILED = pytest.mark.skipif(native.LOADED is None, reason=f"the native part is {native.state()}")

# -- random programs ------------------------------------------------------------------------------------------------

WORKERS = 3
Step = tuple[Any, ...]

_NS = st.sampled_from([1, 7_000, 49_999, 50_000, 1_000_000])
_ANY = st.integers(0, 20)
_PLAIN: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("burn"), _NS),
    st.tuples(st.just("wait"), _NS),
    st.tuples(st.just("open")),
    st.tuples(st.just("open")),
    st.tuples(st.just("begin")),
    st.tuples(st.just("use"), _ANY),
    st.tuples(st.just("close"), st.just(0)),
    st.tuples(st.just("close"), st.just(0)),
    st.tuples(st.just("close"), _ANY),
    st.tuples(st.just("end"), _ANY),
)


def _nested(steps: st.SearchStrategy[list[Step]]) -> st.SearchStrategy[list[Step]]:
    tasks = st.lists(steps, min_size=1, max_size=3)
    step = st.one_of(
        _PLAIN,
        st.tuples(st.just("inside a copy"), steps),
        st.tuples(st.just("hand on"), _ANY, steps),
        st.tuples(st.just("tasks"), st.booleans(), tasks),
    )
    return st.lists(step, max_size=8)


STEPS = st.recursive(st.lists(_PLAIN, max_size=8), _nested, max_leaves=8)
PROGRAMS = st.lists(st.tuples(st.integers(0, WORKERS - 1), STEPS), min_size=1, max_size=8)


class Job:
    """Runs a program by clocks of its own, one thread at a time; what it does depends on the program alone."""

    def __init__(self, make: Callable[..., AnyWatch]) -> None:
        self.wall_ns = 10**9
        self.cpu_ns: collections.defaultdict[int, int] = collections.defaultdict(int)
        self.spans: list[Span] = []
        self.errors: list[str] = []
        self._busy: set[int] = set()
        self._pools = [ThreadPoolExecutor(1) for _ in range(WORKERS)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu_hooks, "make_watch", lambda variable: self._make(make, variable))
            self.processor = JouleSpanProcessor()
        self._provider = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
        self._provider.add_span_processor(self.processor)
        self._tracer = self._provider.get_tracer("test")

    def _make(self, make: Callable[..., AnyWatch], variable: Any) -> AnyWatch:
        return make(
            variable,
            _SPAN_KEY,
            running_loop,
            lambda: self.wall_ns,
            lambda: self.cpu_ns[threading.get_ident()],
        )

    def run(self, program: list[tuple[int, list[Step]]]) -> tuple[list[Any], list[str]]:
        """The figures of all spans, by when they began, and what was refused."""
        try:
            tokens: dict[int, list[Any]] = collections.defaultdict(list)
            for worker, steps in program:
                self._on(worker, lambda steps=steps, worker=worker: self._all(steps, tokens[worker]))
            self._on(0, self._end_all)
        finally:
            self._provider.shutdown()
            for pool in self._pools:
                pool.shutdown()
        return [(span.attributes or {}).get(CPU_NS) for span in self.spans], self.errors

    def _on(self, worker: int, work: Callable[..., Any], *args: Any) -> None:
        self._busy.add(worker)
        self._pools[worker].submit(work, *args).result()
        self._busy.remove(worker)

    def _end_all(self) -> None:
        for span in self.spans:
            if span.is_recording():
                span.end()

    def _all(self, steps: list[Step], tokens: list[Any]) -> None:
        for step in steps:
            self._do(step, tokens)

    def _do(self, step: Step, tokens: list[Any]) -> None:
        match step:
            case ("burn", ns):
                self.wall_ns += ns
                self.cpu_ns[threading.get_ident()] += ns
            case ("wait", ns):
                self.wall_ns += ns
            case ("open",):
                self._begin()
                self._use(self.spans[-1], tokens)
            case ("begin",):
                self._begin()
            case ("use", at) if self.spans:
                self._use(self.spans[at % len(self.spans)], tokens)
            case ("close", depth) if tokens:
                # The last, or any: of the wrong order, closed before, or of another context.
                token = tokens.pop() if depth == 0 else tokens[depth % len(tokens)]
                try:
                    context_api._RUNTIME_CONTEXT.detach(token)
                except (RuntimeError, ValueError) as error:
                    self.errors.append(type(error).__name__)
            case ("end", at) if self.spans:
                span = self.spans[at % len(self.spans)]
                if span.is_recording():
                    span.end()
            case ("inside a copy", steps):
                contextvars.copy_context().run(self._all, steps, tokens)
            case ("hand on", at, steps):
                free = [worker for worker in range(WORKERS) if worker not in self._busy]
                if free:
                    self._on(free[at % len(free)], contextvars.copy_context().run, self._all, steps, tokens)
            case ("tasks", followed, programs) if running_loop() is None:
                with asyncio.Runner(loop_factory=None if followed else ForeignLoop) as runner:
                    runner.run(self._gather(programs, tokens))

    def _begin(self) -> None:
        span = self._tracer.start_span(f"{len(self.spans)}")
        assert isinstance(span, Span)
        self.spans.append(span)

    def _use(self, span: Span, tokens: list[Any]) -> None:
        tokens.append(context_api.attach(trace.set_span_in_context(span)))

    async def _gather(self, programs: list[list[Step]], tokens: list[Any]) -> None:
        await asyncio.gather(*(self._task(steps, tokens) for steps in programs))

    async def _task(self, steps: list[Step], tokens: list[Any]) -> None:
        for step in steps:
            self._do(step, tokens)
            await asyncio.sleep(0)


@COMPILED
@settings(max_examples=100, deadline=None)
@given(PROGRAMS)
def test_any_program_has_the_same_accounts_both_ways(program: list[tuple[int, list[Step]]]) -> None:
    """To the nanosecond, by simulated clocks: threads, pools, tasks, unseen contexts, tokens in the wrong order."""
    assert native.LOADED is not None
    assert Job(native.LOADED.Watch).run(program) == Job(cpu_watch.Watch).run(program)


BOTH = pytest.mark.parametrize(
    "make", [cpu_watch.Watch, pytest.param(getattr(native.LOADED, "Watch", None), marks=COMPILED)]
)


@BOTH
def test_a_program_with_a_known_result(make: Any) -> None:
    """The comparison is of figures that are there: own time, a child's, another thread's, a task's."""
    program: list[tuple[int, list[Step]]] = [
        (0, [("open",), ("burn", 1_000_000), ("open",), ("burn", 70_000), ("close", 0), ("burn", 60_000)]),
        (0, [("hand on", 0, [("burn", 500_000)]), ("tasks", True, [[("open",), ("burn", 80_000), ("close", 0)]])]),
        (0, [("close", 0)]),
        (1, [("use", 0), ("burn", 300_000), ("close", 0), ("begin",)]),
    ]
    assert Job(make).run(program) == ([1_860_000, 70_000, 80_000, None], [])


@BOTH
def test_a_wall_clock_that_ran_ahead_takes_nothing_away(make: Any) -> None:
    """A thread that waited has less CPU time than the wall clock stood for: the next span has 0, not less."""
    program: list[tuple[int, list[Step]]] = [
        (0, [("open",), ("wait", 49_999), ("open",), ("wait", 7_000), ("close", 0), ("burn", 60_000), ("close", 0)])
    ]
    assert Job(make).run(program) == ([49_999 + 60_000, 0], [])


@BOTH
def test_a_detach_in_a_loop_that_is_not_followed_is_in_doubt(make: Any) -> None:
    """A task that leaves a span of outside cannot, and the thread may have been elsewhere meanwhile."""
    program: list[tuple[int, list[Step]]] = [
        (0, [("open",), ("burn", 70_000), ("tasks", False, [[("close", 0)]]), ("burn", 70_000)])
    ]
    assert Job(make).run(program) == ([None], ["ValueError"])


# -- one way at a time ----------------------------------------------------------------------------------------------


@pytest.fixture
def spans(way: str) -> Iterator[Spans]:
    made = Spans()
    assert type(HOOKS._watch).__module__ == {"native": "joulegram._native", "python": "joulegram.cpu_watch"}[way]
    yield made
    made.provider.shutdown()


def _delete(name: str) -> Callable[[Any], None]:
    return lambda span: delattr(span, name)


def _put(name: str, value: object) -> Callable[[Any], None]:
    return lambda span: setattr(span, name, value)


@pytest.mark.parametrize(
    ("damage", "figure"),
    [
        (_delete("_joulegram_owner"), None),
        (_put("_joulegram_owner", None), None),
        (_put("_joulegram_owner", "nobody"), None),
        (_put("_joulegram_others", 7), None),
        (_put("_joulegram_others", {"nobody": 7}), None),
        (_put("_joulegram_own_ns", 2**80), 2**80),
        (_put("_joulegram_own_ns", True), 1),
        (_put("_joulegram_others", {}), 0),
    ],
)
def test_an_account_that_was_tampered_with(spans: Spans, damage: Callable[[Any], None], figure: int | None) -> None:
    """What Python makes of it, both make of it, and the next span is charged as ever."""
    span = spans.tracer.start_span("damaged")
    with trace.use_span(span):
        pass
    damage(span)
    span.end()
    with spans.tracer.start_as_current_span("next"):
        pass
    found = spans.cpu_ns()
    assert found["next"] is not None
    assert found["damaged"] is None if figure is None else abs(found["damaged"] - figure) < 10**6


@pytest.mark.parametrize("name", ["_joulegram_owner", "_joulegram_own_ns", "_joulegram_others"])
@pytest.mark.parametrize("when", ["before", "inside", "at the end"])
def test_an_attribute_gone_is_no_figure_and_no_error(spans: Spans, name: str, when: str) -> None:
    """A job that tampers with a span's account loses that figure alone."""
    with spans.tracer.start_as_current_span("outer") as outer:
        span = spans.tracer.start_span("damaged")
        if when == "before":
            delattr(span, name)
        with trace.use_span(span):
            if when == "inside":
                delattr(span, name)
        assert trace.get_current_span() is outer
        if when == "at the end":
            delattr(span, name)
        span.end()
    found = spans.cpu_ns()
    assert found["damaged"] is None
    assert found["outer"] is not None


def test_a_span_that_is_not_the_sdks_is_left_alone(spans: Spans) -> None:
    """A span of a remote parent is current like any other, and what ran in it is nobody's."""
    remote = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=True))
    with spans.tracer.start_as_current_span("outer"), trace.use_span(remote):
        assert trace.get_current_span() is remote
        assert vars(remote) == {"_context": remote.get_span_context()}
    assert spans.cpu_ns()["outer"] is not None


def test_contexts_of_any_kind(spans: Spans) -> None:
    """A mapping that is no dictionary is asked by its `get`, what has none is refused before it is attached."""
    before = context_api.get_current()
    contexts: list[Any] = [{}, types.MappingProxyType({}), collections.ChainMap()]
    for context in contexts:
        context_api.detach(context_api.attach(context))
    with pytest.raises(AttributeError, match="'int' object has no attribute 'get'"):
        context_api.attach(7)  # type: ignore[arg-type]
    assert context_api.get_current() is before


@pytest.mark.parametrize("clock", ["wall", "cpu"])
@BOTH
def test_a_failure_in_the_middle_is_told_and_over(make: Any, clock: str) -> None:
    """An error on the way comes out of attach and detach; the variable is as it should be, and the next call works."""

    class Thing:
        pass

    failing = True
    now_ns = 0

    def read(which: str) -> int:
        if failing and which == clock:
            raise OSError(which)
        return now_ns

    before: dict[str, object] = {}
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("test", default=before)
    watch: AnyWatch = make(variable, "span", lambda: None, lambda: read("wall"), lambda: read("cpu"))
    watch.forget()
    span: Any = Thing()
    watch.begin(span)
    with pytest.raises(OSError, match=clock):
        watch.attach({"span": span})
    assert variable.get() == {}
    failing = False
    now_ns = 10**9
    token = watch.attach({"span": span})
    now_ns = 2 * 10**9
    failing = True
    with pytest.raises(OSError, match=clock):
        watch.detach(token)
    assert variable.get() == {}
    failing = False
    watch.detach(watch.attach({}))
    assert watch.end(span) in (None, 10**9)
    watch.forget()


# -- lives ----------------------------------------------------------------------------------------------------------


def _states() -> int:
    return sum(type(held).__name__ == "ThreadState" for held in gc.get_objects())


def test_a_threads_state_goes_with_it(spans: Spans) -> None:
    """A thread that ended, even inside a span, leaves nothing once its spans are gone."""

    def work() -> None:
        with spans.tracer.start_as_current_span("whole"):
            pass
        context_api.attach(trace.set_span_in_context(spans.tracer.start_span("left open")))

    with spans.tracer.start_as_current_span("here"):
        pass
    spans.kept.clear()
    gc.collect()
    before = _states()
    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    spans.kept.clear()
    gc.collect()
    assert _states() == before


@COMPILED
@pytest.mark.skipif(ALONE not in os.environ, reason="test_nothing_is_held_where_nothing_else_ran runs it")
def test_nothing_is_held_by_what_every_span_does(spans: Spans) -> None:
    """Nor by the rare ways: errors, tokens of elsewhere, contexts entered unseen, other threads, new watches."""

    def work() -> None:
        with spans.tracer.start_as_current_span("outer") as outer:
            with spans.tracer.start_as_current_span("inner"):
                pass
            context_api.detach(context_api.attach(context_api.get_current()))
            token = contextvars.copy_context().run(context_api.attach, context_api.get_current())
            for _ in range(2):
                with pytest.raises((ValueError, RuntimeError)):
                    context_api._RUNTIME_CONTEXT.detach(token)
            contextvars.Context().run(lambda: context_api.attach(trace.set_span_in_context(outer)))
            with pytest.raises(AttributeError):
                context_api.attach(7)  # type: ignore[arg-type]
            with pytest.raises((TypeError, AttributeError)):
                HOOKS._watch.change(1, 2, 3)  # type: ignore[union-attr, arg-type]
            thread = threading.Thread(target=contextvars.copy_context().run, args=(context_api.attach, {}))
            thread.start()
            thread.join()
        spans.kept.clear()
        spans.processor.shutdown()
        spans.processor.__init__()  # type: ignore[misc] # hooks anew

    no_growth(work)


@COMPILED
def test_nothing_is_held_where_nothing_else_ran() -> None:
    """The test above, both ways: what other tests left in this process (threads, hooks, lists) counts for nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "what_every_span_does"]
    root, env = Path(__file__).resolve().parents[2], os.environ | {ALONE: "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "2 passed" in done.stdout


@COMPILED
def test_a_watch_of_a_variable_that_is_none() -> None:
    """What cannot be a context variable is refused, and what was made so far is let go."""
    assert native.LOADED is not None
    make: Any = native.LOADED.Watch

    def refused() -> None:
        with pytest.raises(AttributeError, match="'int' object has no attribute 'get'"):
            make(1, "key", os.getpid)
        with pytest.raises(TypeError):
            make()

    no_growth(refused)


@COMPILED
def test_an_interpreter_beside_has_accounts_of_its_own() -> None:
    """The module is for each interpreter anew, so that neither sees threads or types of the other."""
    interpreters = pytest.importorskip("_xxsubinterpreters", reason="this Python names its interpreters otherwise")
    code = """
import contextvars
from joulegram import native
variable = contextvars.ContextVar("test", default={})
clock = [0]
watch = native.LOADED.Watch(variable, "span", lambda: None, lambda: clock[0], lambda: clock[0])
class Thing: pass
span = Thing()
watch.begin(span)
token = watch.attach({"span": span})
clock[0] = 10**9
watch.detach(token)
assert watch.end(span) == 10**9, watch.end(span)
"""
    assert native.LOADED is not None
    mine = native.LOADED.Watch(contextvars.ContextVar("mine"), "span", lambda: None).state()
    for _ in range(3):
        beside = interpreters.create()
        interpreters.run_string(beside, code)
        interpreters.destroy(beside)
    assert native.LOADED.Watch(contextvars.ContextVar("mine"), "span", lambda: None).state() is mine
