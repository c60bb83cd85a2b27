"""What is downstream starts first and stops last; a start that fails is undone (design 2), a task that fails tells."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import pytest

from joulegram_pipeline.life import Background, enter_all, start_task

if TYPE_CHECKING:
    from types import TracebackType


class Part:
    """Says in `said` when it starts and stops; fails where it is told to."""

    def __init__(self, name: str, said: list[str], fails: str = "") -> None:
        self._name = name
        self._said = said
        self._fails = fails

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0)
        if self._fails == "start":
            raise OSError(f"{self._name} does not start")
        self._said.append(f"+{self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._said.append(f"-{self._name}")
        if self._fails == "stop":
            raise OSError(f"{self._name} does not stop")


def lived(*fails: str) -> tuple[list[str], BaseException | None]:
    """What parts a, b, c say over a life, and how it ended."""
    said: list[str] = []
    parts = [Part(name, said, how) for name, how in zip("abc", fails, strict=True)]

    async def life() -> None:
        async with AsyncExitStack() as stack:
            await enter_all(stack, parts)
            said.append("up")

    try:
        asyncio.run(life())
    except OSError as error:
        return said, error
    return said, None


def test_downstream_first_and_last() -> None:
    """Started in the order given, stopped in reverse."""
    assert lived("", "", "") == (["+a", "+b", "+c", "up", "-c", "-b", "-a"], None)


def test_a_part_that_does_not_start_undoes_the_start() -> None:
    """Those that had started are stopped in reverse, those behind never start, and the error goes on."""
    said, error = lived("", "start", "")
    assert said == ["+a", "-a"]
    assert str(error) == "b does not start"


@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_part_that_does_not_stop_does_not_keep_the_others(where: int) -> None:
    """The rest is stopped all the same, and the error goes on."""
    fails = ["", "", ""]
    fails[where] = "stop"
    said, error = lived(*fails)
    assert said[-3:] == ["-c", "-b", "-a"]
    assert str(error) == f"{'abc'[where]} does not stop"


async def failing() -> None:
    await asyncio.sleep(0)
    raise OSError("the disk is gone")


async def told(caplog: pytest.LogCaptureFixture) -> None:
    while not caplog.records:  # noqa: ASYNC110 - the log tells no task
        await asyncio.sleep(0)


def test_background_work_goes_on_until_it_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """It runs while others do, its end is waited for, and a stop is no failure to tell of."""
    ended = []

    async def life() -> None:
        begun = asyncio.Event()

        async def pulse() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(True)

        async with Background(pulse, "pulse"):
            await begun.wait()
            assert ended == []
        assert ended == [True]

    asyncio.run(asyncio.wait_for(life(), 10))
    assert caplog.records == []


def test_background_work_that_fails_tells_at_once_and_once(caplog: pytest.LogCaptureFixture) -> None:
    """With its name and the trace, while the rest goes on; the stop is not disturbed by it."""

    async def life() -> None:
        async with Background(failing, "pulse"):
            await told(caplog)

    asyncio.run(asyncio.wait_for(life(), 10))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "the task 'pulse' failed and does not go on: OSError: the disk is gone"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


def test_who_is_cancelled_while_it_stops_background_work_notices() -> None:
    """Work that takes its time to end does not swallow the order that its owner is to end."""

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)

    async def owner() -> None:
        async with Background(slow, "slow"):
            await asyncio.sleep(0)

    async def life() -> None:
        task = asyncio.create_task(owner())
        for _ in range(5):  # it is leaving by now
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(life(), 10))


def test_a_task_that_fails_tells_though_nobody_awaits_it(caplog: pytest.LogCaptureFixture) -> None:
    """And whoever does await it gets the error still."""

    async def life() -> None:
        task = start_task(failing(), "poller")
        await told(caplog)
        with pytest.raises(OSError, match="the disk is gone"):
            await task

    asyncio.run(asyncio.wait_for(life(), 10))
    assert [record.getMessage() for record in caplog.records] == [
        "the task 'poller' failed and does not go on: OSError: the disk is gone"
    ]
