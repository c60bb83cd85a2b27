"""How far those behind a spool have come, read from their files in the data directory and from nothing else.

Where each stands is kept beside what it made (docs/spool.md): the engine's in the snapshot it starts from again, the
ledger's in its last line, each destination's in a file of the outbox.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_sink.ledger_format import FIRST_SEGMENT
from joulegram_sink.ledger_tail import read_tail
from joulegram_sink.outbox_items import NOTHING
from joulegram_sink.outbox_positions import stored_positions

if TYPE_CHECKING:
    from pathlib import Path


def positions(data_dir: Path) -> dict[str, int | None]:
    """The lsn of the record each made its last output from, `snapshot`: of the first it would read; None: of none yet.

    Raises:
        StorageError: a file is there and cannot be read.
    """
    found: dict[str, int | None] = {}
    try:
        snapshot, ledger = data_dir / "state" / "machine.json", data_dir / "ledger" / "telemetry" / FIRST_SEGMENT
        if snapshot.is_file():
            found["snapshot"] = int(json.loads(snapshot.read_bytes())["position"])
        if ledger.is_file():
            with ledger.open("rb") as file:
                tail = read_tail(file.fileno(), os.fstat(file.fileno()).st_size)
            found["ledger"] = None if tail is None or tail.pos is None else tail.pos[0]
        for name, pos in sorted(stored_positions(data_dir / "outbox" / "positions").items()):
            found[f"upstream {name}"] = None if pos == NOTHING else pos[0]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"positions in {str(data_dir)!r} cannot be read: {type(error).__name__}: {error}") from error
    return found
