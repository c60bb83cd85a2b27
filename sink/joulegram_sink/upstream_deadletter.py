"""Dead letters: what a destination refused for good, whole, with the reason beside it."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from joulegram_pipeline.canonical import canonical_plain
from joulegram_pipeline.clock import utc_iso_ns
from joulegram_pipeline.files import replace_file, safe_mkdir
from joulegram_sink.upstream_answer import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.outbox import OutboxItem

_numbers = itertools.count()


def put_aside(
    directory: Path,
    destination: str,
    kind: RecordKind,
    metadata: Metadata,
    items: Sequence[OutboxItem],
    reason: str,
) -> None:
    """Write what was refused, then why; the reason's file stands only beside whole data.

    Args:
        directory: made if absent.
        destination: that refused.
        kind: the signal.
        metadata: the headers that would be needed to send it again.
        items: in order; their requests are joined.
        reason: the destination's words.

    Raises:
        StorageError: it could not be written.
    """
    safe_mkdir(directory)
    wall_ns = time.time_ns()
    signal = SIGNALS[kind].name
    # The number tells two of one moment apart.
    name = f"{wall_ns}-{next(_numbers):06d}-{destination}-{signal}"
    body = b"".join([piece for item in items for piece in item.pieces])
    replace_file(directory / f"{name}.bin", body, mode=0o600)
    said = {
        "at": utc_iso_ns(wall_ns),
        "bytes": len(body),
        "destination": destination,
        "metadata": [list(pair) for pair in metadata],
        "positions": [list(item.pos) for item in items],
        "reason": reason,
        "signal": signal,
    }
    replace_file(directory / f"{name}.json", canonical_plain(said) + b"\n", mode=0o600)
