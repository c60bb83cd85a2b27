"""A record on its way to the disk, and the answer to whoever waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from joulegram_pipeline.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_pipeline.span_rows import Extract

Outcome = int | StorageError
"""The lsn of a record, or why it has none."""

AnyFuture = asyncio.Future[int] | Future[int]
"""Of a task of the loop, or of another thread."""


class Waiting(NamedTuple):
    """A record that is not on disk yet; the first four are what the log takes.

    Args:
        kind: what the payload is.
        received_ns: wall clock at receipt.
        payload: as it came.
        metadata: that travels with it.
        size: bytes of both.
        future: of whoever waits.
        parsed: what was read of it already.
    """

    kind: RecordKind
    received_ns: int
    payload: bytes
    metadata: Metadata
    size: int
    future: AnyFuture
    parsed: Extract | None


def tell(group: Sequence[Waiting], result: list[int] | StorageError, loop: asyncio.AbstractEventLoop | None) -> None:
    """Give each its lsn, or all the error; the loop is woken once for all of its tasks."""
    of_loop: list[tuple[asyncio.Future[int], Outcome]] = []
    for index, waiting in enumerate(group):
        outcome = result if isinstance(result, StorageError) else result[index]
        if isinstance(waiting.future, asyncio.Future):
            of_loop.append((waiting.future, outcome))
        else:
            _settle(waiting.future, outcome)
    if of_loop and loop is not None:
        # The loop is gone only where its tasks, and with them everyone who waited, are gone too.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle_all, of_loop)


def _settle(future: AnyFuture, outcome: Outcome) -> None:
    if future.done():
        return
    if isinstance(outcome, StorageError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _settle_all(outcomes: Iterable[tuple[asyncio.Future[int], Outcome]]) -> None:
    for future, outcome in outcomes:
        _settle(future, outcome)
