"""How components live: what is downstream starts first and stops last, and a task that fails says so at once."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from joulegram_pipeline.logs import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

log = logging.getLogger(__name__)

Component = AbstractAsyncContextManager[Any]
"""Anything with a life: entering starts it, leaving stops it and loses nothing it was given."""


async def enter_all(stack: AsyncExitStack, downstream_first: Sequence[Component]) -> None:
    """Start components, the most downstream first, so that each finds its consumer ready.

    The stack leaves them in reverse: the receiver stops taking before the sinks stop giving. If one does not start,
    those already started are stopped by the stack and the error goes on.
    """
    for component in downstream_first:
        await stack.enter_async_context(component)


def start_task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that says in the log when it fails; of any other nobody hears before somebody awaits it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell)
    return task


class Background:
    """Work without an end, done from entering to leaving; an async context manager.

    A failure is said in the log when it happens, and not raised again when this is left: the stop goes on.

    Args:
        work: begun on entering, cancelled on leaving.
        name: what the log calls it.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = start_task(self._work(), self._name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            # Not awaited itself: whoever is cancelled while waiting here must notice it, and the failure was told.
            await asyncio.wait([self._task])


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the task %r failed and does not go on: %s", task.get_name(), words_of(error), exc_info=error)
