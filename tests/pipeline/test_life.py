"""What is downstream starts first and stops last; a start that fails is undone (design 2)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import pytest

from joulegram_pipeline.life import enter_all

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
