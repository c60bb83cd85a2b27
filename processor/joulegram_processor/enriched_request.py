"""A request as it is sent on: the bytes that came, and in each joined span the attributes it gained.

Invariants:
    * what is not a joined span is what came, byte for byte;
    * a span that was joined before is left out; a key we write replaces one that came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_processor.enrich import WRITTEN_KEYS, upsert
from joulegram_processor.spans import reported_uj
from joulegram_processor.waiting import NO_EXTRAS
from joulegram_processor.wire import splice, splice_all, splice_some

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_processor.spans import Batch
    from joulegram_processor.wire import SpanAt


def enriched(payload: bytes, batch: Batch) -> bytes:
    """The request with what its spans gained.

    Args:
        payload: as it came.
        batch: its spans, all of them settled.

    Raises:
        WireError: its spans cannot be found in it.
    """
    if len(batch.blobs) == batch.total and not batch.extras:
        return splice_all(payload, [batch.blobs[at] for at in range(batch.total)])
    if all(WRITTEN_KEYS.isdisjoint(extras) for extras in batch.extras.values()):
        gains = [None if at in batch.repeated else batch.blobs[at] for at in range(len(batch.indices))]
        return splice_some(payload, batch.indices, gains)
    rows = {index: at for at, index in enumerate(batch.indices)}
    return splice(payload, rows, _editor(batch, payload, rows))


def _editor(batch: Batch, payload: bytes, rows: dict[int, int]) -> Callable[[int, SpanAt], bytes | None]:
    def edit(index: int, place: SpanAt) -> bytes | None:
        content = payload[place.start : place.end]
        at = rows[index]
        if at in batch.repeated:
            return None
        extras = batch.extras.get(at, NO_EXTRAS)
        if WRITTEN_KEYS.isdisjoint(extras):
            return content + batch.blobs[at]
        return upsert(content, batch.blobs[at], reported=reported_uj(extras) is not None)

    return edit
