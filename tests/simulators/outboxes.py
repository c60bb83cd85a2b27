"""An outbox without a loop around it, and items whose payload is their position."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from joulegram_sink.outbox import OutboxItem, OutboxReader, Pos

TRACES = RecordKind.TRACES
ALL = 1 << 30
GIB = 1 << 30


@contextmanager
def opened(directory: Path, *names: str, metrics: Metrics | None = None, **options: Any) -> Iterator[Outbox]:
    """An outbox of these destinations, without a loop around it."""
    outbox = Outbox(directory, metrics or Metrics(), dict.fromkeys(names or ("one",), GIB), **options)
    asyncio.run(outbox.__aenter__())
    try:
        yield outbox
    finally:
        asyncio.run(outbox.__aexit__(None, None, None))


def item(pos: Pos) -> Outgoing:
    return Outgoing(pos, TRACES, b"%d.%d" % pos)


def items(*lsns: int) -> list[Outgoing]:
    return [item((lsn, 0)) for lsn in lsns]


def positions(found: list[OutboxItem]) -> list[Pos]:
    assert [b"".join(each.pieces) for each in found] == [b"%d.%d" % each.pos for each in found]
    return [each.pos for each in found]


def take(reader: OutboxReader, count: int | None = None) -> list[Pos]:
    """Read and take so many items, or all there are."""
    taken: list[Pos] = []
    while count is None or len(taken) < count:
        found = reader.read(ALL, 8192 if count is None else count - len(taken))
        if not found:
            break
        taken += positions(found)
        reader.advance(found[-1])
    return taken
