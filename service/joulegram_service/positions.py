"""How far those behind a spool have come, read from their files in the data directory and from nothing else.

Where each stands is kept beside what it made (docs/spool.md): the engine's in the snapshot it starts from again, the
ledger's in its last line, each destination's in a file of the outbox.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import JoulegramError
from joulegram_sink.ledger_format import FIRST_SEGMENT
from joulegram_sink.ledger_tail import read_tail
from joulegram_sink.outbox_items import NOTHING
from joulegram_sink.outbox_positions import stored_position

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def positions(data_dir: Path) -> tuple[dict[str, int | None], dict[str, str]]:
    """How far each has come, and of whom it cannot be said, with the reason; who has no file yet is in neither.

    Returns:
        The lsn of the record each made its last output from, `snapshot`: of the first it would read; None: of none yet.
    """
    sources: dict[str, Callable[[], int | None]] = {
        "snapshot": partial(_of_snapshot, data_dir / "state" / "machine.json"),
        "ledger": partial(_of_ledger, data_dir / "ledger" / "telemetry" / FIRST_SEGMENT),
    }
    outbox = data_dir / "outbox" / "positions"
    paths = sorted(outbox.iterdir()) if outbox.is_dir() else []
    sources |= {f"upstream {path.name}": partial(_of_upstream, path) for path in paths}
    found: dict[str, int | None] = {}
    unreadable: dict[str, str] = {}
    for name, read in sources.items():
        try:
            found[name] = read()
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, JoulegramError) as error:
            unreadable[name] = f"{type(error).__name__}: {error}"
    return found, unreadable


def _of_snapshot(path: Path) -> int:
    return int(json.loads(path.read_bytes())["position"])


def _of_ledger(path: Path) -> int | None:
    with path.open("rb") as file:
        tail = read_tail(file.fileno(), os.fstat(file.fileno()).st_size)
    return None if tail is None or tail.pos is None else tail.pos[0]


def _of_upstream(path: Path) -> int | None:
    pos = stored_position(path)
    return None if pos == NOTHING else pos[0]
