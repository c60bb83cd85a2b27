"""`joulegram.cpu_ns` in asyncio: tasks that take turns, work given to threads, loops that are not followed (S3-09)."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from simulators.cpu_spans import ForeignLoop, Spans, burn, near

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("way")


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def test_tasks_that_take_turns_on_one_thread_are_told_apart(spans: Spans) -> None:
    """Neither attach nor detach happens when asyncio changes tasks; each span has its own steps' time all the same."""

    async def work(name: str, millis: int) -> None:
        with spans.tracer.start_as_current_span(name):
            for _ in range(10):
                burn(millis)
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(work("one", 3), work("three", 9))

    with spans.tracer.start_as_current_span("job"):
        asyncio.run(main())
    found = spans.cpu_ns()
    assert near(found["one"], 30), found
    assert near(found["three"], 90), found
    assert found["job"] is not None


def test_a_span_that_waits_is_not_charged_for_who_runs_meanwhile(spans: Spans) -> None:
    """A task asleep in its span spends nothing while a task without a span burns on the same thread."""

    async def sleeper() -> None:
        with spans.tracer.start_as_current_span("asleep"):
            await asyncio.sleep(0.05)

    async def main() -> None:
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0)
        burn(80)
        await task

    asyncio.run(main())
    assert near(spans.cpu_ns()["asleep"], 0)


@pytest.mark.parametrize("way", ["to_thread", "run_in_executor", "submit"])
def test_work_given_to_a_thread_with_its_context_counts(spans: Spans, way: str) -> None:
    """`asyncio.to_thread` and its kind run in a copy of the context, where nothing is attached."""
    pool = ThreadPoolExecutor(1)

    async def main() -> None:
        with spans.tracer.start_as_current_span("heavy"):
            if way == "to_thread":
                await asyncio.to_thread(burn, 50)
            elif way == "run_in_executor":
                run = contextvars.copy_context().run
                await asyncio.get_running_loop().run_in_executor(pool, run, burn, 50)
            else:
                await asyncio.wrap_future(pool.submit(contextvars.copy_context().run, burn, 50))

    with pool:
        asyncio.run(main())
    assert near(spans.cpu_ns()["heavy"], 50)


def test_a_pool_without_the_context_is_not_the_spans(spans: Spans) -> None:
    """What a worker does outside the span's context was not spent while it was innermost there."""
    with ThreadPoolExecutor(1) as pool, spans.tracer.start_as_current_span("giver"):
        pool.submit(burn, 50).result()
    assert near(spans.cpu_ns()["giver"], 0)


def test_begun_inside_a_running_loop_it_follows_from_there() -> None:
    """A job that calls `init_otel` in its coroutine has figures from its first span on."""
    made: list[Spans] = []

    async def main() -> None:
        made.append(Spans())
        with made[0].tracer.start_as_current_span("job"):
            burn(20)
            await asyncio.gather(asyncio.to_thread(burn, 20), asyncio.sleep(0.01))

    asyncio.run(main())
    made[0].provider.shutdown()
    assert near(made[0].cpu_ns()["job"], 40)


@pytest.mark.parametrize("beside", ["a span", "no span"])
def test_a_loop_that_is_not_followed_gives_no_figure(spans: Spans, beside: str) -> None:
    """Where tasks change unseen (uvloop), a wrong figure is worse than none: both spans have none."""

    async def work(name: str) -> None:
        with spans.tracer.start_as_current_span(name):
            burn(5)
            await asyncio.sleep(0)
            burn(5)

    async def without_a_span() -> None:
        burn(5)

    async def main() -> None:
        await asyncio.gather(work("a"), *([work("b")] if beside == "a span" else [without_a_span()]))

    with asyncio.Runner(loop_factory=ForeignLoop) as runner:
        runner.run(main())
    assert set(spans.cpu_ns().values()) == {None}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has eager tasks from Python 3.12 on")
def test_an_eager_task_leaves_no_wrong_figure(spans: Spans) -> None:
    """It begins inside its creator's step and comes back from there unseen: both spans have the truth or nothing."""

    async def inner() -> None:
        with spans.tracer.start_as_current_span("eager"):
            burn(10)
            await asyncio.sleep(0.01)
            burn(10)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        with spans.tracer.start_as_current_span("outer"):
            task = asyncio.create_task(inner())
            burn(30)
            await task

    asyncio.run(main())
    found = spans.cpu_ns()
    assert found["eager"] is None or near(found["eager"], 20)
    assert found["outer"] is None or near(found["outer"], 30)
