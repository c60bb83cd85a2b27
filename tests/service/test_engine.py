"""The engine and a spool that drops what it was about to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_service.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path


class DroppingSpool:
    """Refuses to read, and has let go of what lies below `start_lsn`."""

    def __init__(self, start_lsn: int) -> None:
        self.start_lsn = start_lsn

    def read(self, lsn: int, max_bytes: int) -> list[Any]:
        """As where the segment is gone."""
        raise StorageError(f"got lsn {lsn} for {max_bytes} bytes, expected {self.start_lsn} or above")


def engine(directory: Path, start_lsn: int) -> Engine:
    """At position 10 of such a spool; nothing else of it is asked for."""
    machine: Any = SimpleNamespace(position=10)
    spool: Any = DroppingSpool(start_lsn)
    sinks: Any = None
    return Engine(
        machine, spool, sinks, directory / "state.json", Metrics(), lambda pids: None, lambda run, documents: None
    )


def test_what_a_full_spool_drops_in_the_moment_of_the_read_is_gone_on_from(tmp_path: Path) -> None:
    """No failure: the next round begins where the spool does."""
    assert engine(tmp_path, 20)._read() == []


def test_what_the_disk_withholds_is_a_failure(tmp_path: Path) -> None:
    """What the spool still has must be read, and is never passed over."""
    with pytest.raises(StorageError, match="got lsn 10"):
        engine(tmp_path, 10)._read()
