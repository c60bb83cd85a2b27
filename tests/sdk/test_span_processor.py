"""`joulegram.cpu_ns`: whose CPU time it was, on threads, after forks, and where it cannot be known (S3-09)."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import opentelemetry.context as context_api
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from joulegram.span_processor import CPU_NS
from simulators.cpu_spans import SLACK_NS, Spans, burn, near

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def test_a_span_has_its_own_time_and_its_childs_is_the_childs(spans: Spans) -> None:
    """Innermost counts: the parent has what it spent before, between and after its children."""
    with spans.tracer.start_as_current_span("parent"):
        burn(20)
        with spans.tracer.start_as_current_span("child"):
            burn(40)
        burn(20)
    found = spans.cpu_ns()
    assert near(found["child"], 40), found
    assert near(found["parent"], 40), found


def test_waiting_is_not_cpu_time(spans: Spans) -> None:
    """A span that sleeps spends next to nothing, however long it lasts."""
    with spans.tracer.start_as_current_span("asleep"):
        time.sleep(0.1)
    assert near(spans.cpu_ns()["asleep"], 0)


def test_threads_at_one_to_three_are_told_apart(spans: Spans) -> None:
    """Two threads of one process that burn 1:3 have shares of the sum within 3 points of 25 and 75 %."""

    def work(name: str, millis: int) -> None:
        with spans.tracer.start_as_current_span(name):
            burn(millis)

    threads = [threading.Thread(target=work, args=args) for args in (("one", 150), ("three", 450))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = spans.cpu_ns()
    share = found["one"] / (found["one"] + found["three"])
    assert abs(share - 0.25) <= 0.03, found


def test_one_span_on_two_threads_has_the_sum(spans: Spans) -> None:
    """A span handed to another thread by `use_span` counts what both spend in it."""
    with spans.tracer.start_as_current_span("shared") as span:

        def work() -> None:
            with trace.use_span(span):
                burn(30)

        thread = threading.Thread(target=work)
        thread.start()
        burn(30)
        thread.join()
    assert near(spans.cpu_ns()["shared"], 60)


def test_a_span_active_on_another_thread_when_it_ends_has_no_figure(spans: Spans) -> None:
    """What the other thread spends in it is not known yet, so nothing is said."""
    inside, over = threading.Event(), threading.Event()
    span = spans.tracer.start_span("left behind")

    def work() -> None:
        with trace.use_span(span):
            inside.set()
            over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    span.end()
    over.set()
    thread.join()
    assert spans.cpu_ns() == {"left behind": None}


def test_a_span_that_was_never_current_has_no_figure(spans: Spans) -> None:
    """Nobody knows what ran for a span that is only started and ended."""
    span = spans.tracer.start_span("manual")
    burn(5)
    span.end()
    assert spans.cpu_ns() == {"manual": None}


def test_a_span_ended_while_it_is_current_counts_up_to_there(spans: Spans) -> None:
    """Its context is left later; what is spent until then is nobody's."""
    with spans.tracer.start_as_current_span("outer"):
        span = spans.tracer.start_span("early")
        with trace.use_span(span):
            burn(20)
            span.end()
            burn(40)
    found = spans.cpu_ns()
    assert near(found["early"], 20), found
    assert near(found["outer"], 0), found


def test_an_exception_leaves_the_accounts_right(spans: Spans) -> None:
    """Unwinding is seen as any other way out."""

    def failing() -> None:
        with spans.tracer.start_as_current_span("outer"):
            burn(10)
            with spans.tracer.start_as_current_span("inner"):
                burn(20)
                raise KeyError

    with pytest.raises(KeyError):
        failing()
    found = spans.cpu_ns()
    assert near(found["inner"], 20), found
    assert near(found["outer"], 10), found


# -- unseen, forks, lives and limits --------------------------------------------------------------------------------


def test_a_context_entered_unseen_gives_no_figure(spans: Spans) -> None:
    """A thread that begins in a copied context is in the span without having attached it."""
    with spans.tracer.start_as_current_span("copied") as span:

        def work() -> None:
            burn(5)
            with spans.tracer.start_as_current_span("seen"):
                burn(10)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()
        assert span.is_recording()
    found = spans.cpu_ns()
    assert found["copied"] is None
    assert near(found["seen"], 10)


def test_a_context_entered_and_left_unseen_gives_no_figure(spans: Spans) -> None:
    """As above, and the thread has gone on in its own context by the time the span ends."""
    with spans.tracer.start_as_current_span("copied"):
        context = contextvars.copy_context()

        def inside() -> None:
            burn(5)
            with spans.tracer.start_as_current_span("seen"):
                pass

        def work() -> None:
            context.run(inside)
            with spans.tracer.start_as_current_span("after"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    found = spans.cpu_ns()
    assert found["copied"] is None
    assert near(found["after"], 0)


def test_contexts_that_take_turns_unseen_give_no_figure(spans: Spans) -> None:
    """What is left is not what the last change led to: which of the two the thread was in is not known."""
    contexts = [contextvars.Context(), contextvars.Context()]
    made = [spans.tracer.start_span(name) for name in ("a", "b")]
    tokens = [
        context.run(context_api.attach, trace.set_span_in_context(span))
        for context, span in zip(contexts, made, strict=True)
    ]
    burn(5)
    for context, token in zip(contexts, tokens, strict=True):
        context.run(context_api.detach, token)
    for span in made:
        span.end()
    assert spans.cpu_ns() == {"a": None, "b": None}


@pytest.mark.parametrize("copied", [False, True])
def test_a_span_left_here_and_ended_on_another_thread(spans: Spans, copied: bool) -> None:
    """Its figure is what it had here, unless the other thread was in it unseen: then it has none."""
    span = spans.tracer.start_span("handed on")
    with trace.use_span(span):
        burn(20)
        context = contextvars.copy_context()

    def work() -> None:
        burn(30)
        span.end()

    run = context.run if copied else contextvars.Context().run
    thread = threading.Thread(target=run, args=(work,))
    thread.start()
    thread.join()
    figure = spans.cpu_ns()["handed on"]
    assert figure is None if copied else near(figure, 20)


def test_a_library_that_switches_unseen_turns_it_off(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """With trio, gevent or curio loaded no span gets a figure."""
    monkeypatch.setitem(sys.modules, "trio", contextvars)
    with spans.tracer.start_as_current_span("x"):
        burn(1)
    assert spans.cpu_ns() == {"x": None}


def test_a_fork_starts_anew(spans: Spans) -> None:
    """In the child the parent's open span has no figure and the child's own have; the parent's are as ever."""
    read, write = os.pipe()
    with spans.tracer.start_as_current_span("parent") as span:
        began_ns = time.thread_time_ns()
        burn(20)
        pid = os.fork()  # which takes the longer the more memory there is to share
        if pid == 0:
            with spans.tracer.start_as_current_span("child"):
                burn(30)
            span.end()
            os.write(write, repr(spans.cpu_ns()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        spent_ns = time.thread_time_ns() - began_ns
    os.close(write)
    with os.fdopen(read) as pipe:
        inside = eval(pipe.read())
    assert near(inside["child"], 30), inside
    assert inside["parent"] is None
    parent_ns = spans.cpu_ns()["parent"]
    assert parent_ns is not None
    assert abs(parent_ns - spent_ns) <= SLACK_NS


def test_in_a_forked_child_what_began_before_has_no_figure(spans: Spans) -> None:
    """Innermost at the fork, around that, or left before it: the parent's time is told by the parent alone."""
    read, write = os.pipe()
    left = spans.tracer.start_span("left")
    with trace.use_span(left):
        burn(5)
    with spans.tracer.start_as_current_span("outer"):
        burn(5)
        with spans.tracer.start_as_current_span("inner"):
            pid = os.fork()
        burn(5)
    left.end()
    if pid == 0:
        with spans.tracer.start_as_current_span("child"):
            burn(5)
        os.write(write, repr(spans.cpu_ns()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        inside = eval(pipe.read())
    assert inside.pop("child") > 0
    assert inside == {"inner": None, "outer": None, "left": None}
    assert all(cpu_ns is not None for cpu_ns in spans.cpu_ns().values())


def test_spans_are_not_kept_alive(spans: Spans) -> None:
    """An ended or forgotten span is garbage, although threads remember what they did."""
    span = spans.tracer.start_span("forgotten")
    with trace.use_span(span):
        pass
    gone = weakref.ref(span)
    del span
    gc.collect()
    assert gone() is None


def test_a_full_span_keeps_what_the_job_set(spans: Spans) -> None:
    """A span with all the attributes it may have loses none of them to ours."""
    limit = 128
    with spans.tracer.start_as_current_span("full") as span:
        for number in range(limit):
            span.set_attribute(f"mine.{number}", number)
    (ended,) = spans.kept.get_finished_spans()
    assert ended.attributes is not None
    assert "mine.0" in ended.attributes
    assert CPU_NS not in ended.attributes


def test_what_was_hooked_is_put_back() -> None:
    """With the last processor's shutdown OpenTelemetry, asyncio and the pools are as they were; a second one stays."""
    before = (type(context_api._RUNTIME_CONTEXT), asyncio.Handle._run, ThreadPoolExecutor.submit)
    first, second = Spans(), Spans()
    first.provider.shutdown()
    first.provider.shutdown()
    with second.tracer.start_as_current_span("still"):
        burn(5)
    assert near(second.cpu_ns()["still"], 5)
    second.provider.shutdown()
    after = (type(context_api._RUNTIME_CONTEXT), asyncio.Handle._run, ThreadPoolExecutor.submit)
    assert after == before


def test_a_span_open_when_it_begins_can_be_left(spans: Spans) -> None:
    """A processor added inside a span changes nothing about leaving it: the tokens of before still fit."""
    other = TracerProvider(shutdown_on_exit=False).get_tracer("other")
    with other.start_as_current_span("outer") as outer:
        late = Spans()
        with late.tracer.start_as_current_span("inner"):
            burn(5)
        late.provider.shutdown()
        assert trace.get_current_span() is outer
    assert near(late.cpu_ns()["inner"], 5)


def test_a_token_of_another_context_is_refused_as_ever(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A detach that OpenTelemetry cannot do is logged by it, and the accounts go on."""
    with spans.tracer.start_as_current_span("x"):
        token = contextvars.copy_context().run(context_api.attach, context_api.get_current())
        context_api.detach(token)
        burn(5)
    assert "Failed to detach context" in caplog.text
    assert spans.cpu_ns()["x"] is None or near(spans.cpu_ns()["x"], 5)
