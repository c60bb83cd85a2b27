"""Spans that come again: a client's retry of a request whose acknowledgement was lost."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulegram_pipeline.records import Json
    from joulegram_processor.spans import Batch


class Repeats:
    """Knows the last spans by trace id and span id.

    Args:
        window: how many at least; up to twice as many are known.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()

    def mark(self, batch: Batch) -> int:
        """Mark the spans of a request that came before, and keep the others in mind; how many were marked."""
        keys = batch.keys
        seen, before = self._seen, self._seen_before
        fresh = set(keys)
        if len(fresh) == len(keys) and seen.isdisjoint(fresh) and before.isdisjoint(fresh):
            seen |= fresh
        else:
            for at, key in enumerate(keys):
                if key in seen or key in before:
                    batch.repeated.add(at)
                else:
                    seen.add(key)
            batch.waiting -= len(batch.repeated)
        if len(seen) >= self._window:
            self._seen_before, self._seen = seen, set()
        return len(batch.repeated)

    def dump(self) -> Json:
        """As JSON, for the snapshot."""
        return {"seen": _pack(self._seen), "before": _pack(self._seen_before)}

    def load(self, raw: Json) -> None:
        """From the JSON `dump` wrote."""
        self._seen, self._seen_before = _unpack(raw["seen"]), _unpack(raw["before"])


def _pack(keys: set[bytes]) -> str:
    return base64.b64encode(b"".join(keys)).decode()


def _unpack(text: str) -> set[bytes]:
    data = base64.b64decode(text)
    return {data[at : at + 24] for at in range(0, len(data), 24)}
