"""The order of life: what is downstream starts first and stops last."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Component = AbstractAsyncContextManager[Any]
"""Anything with a life: entering starts it, leaving stops it and loses nothing it was given."""


async def enter_all(stack: AsyncExitStack, downstream_first: Sequence[Component]) -> None:
    """Start components, the most downstream first, so that each finds its consumer ready.

    The stack leaves them in reverse: the receiver stops taking before the sinks stop giving. If one does not start,
    those already started are stopped by the stack and the error goes on.
    """
    for component in downstream_first:
        await stack.enter_async_context(component)
