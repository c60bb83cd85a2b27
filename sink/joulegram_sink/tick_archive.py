"""Every tick batch, kept by day: what a replay, a late span or a later rejoin takes its energy from.

One NDJSON line a batch: ``{"lsn": …, "batch": {…}}``, in the file of the UTC day of the batch's last tick.

Invariants:
    * lines of a file are in the order of the log, and so is what `load` gives, even where the wall clock stepped back
      over midnight; a batch at or below the last archived lsn is dropped, so a replay adds nothing;
    * a torn last line is cut at the next start: its record is still in the spool, because the spool is released only
      after `sync`.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.energy import TickBatch
from joulegram_pipeline.errors import AgentError, StorageError
from joulegram_pipeline.files import safe_mkdir

if TYPE_CHECKING:
    from pathlib import Path


class TickArchive:
    """Appends tick batches and reads them back.

    Args:
        directory: ``<data_dir>/ticks``.
        retention_ns: files of days that ended longer ago than this are deleted.
    """

    def __init__(self, directory: Path, retention_ns: int) -> None:
        self._directory = safe_mkdir(directory)
        self._retention_ns = retention_ns
        self._fd: int | None = None
        self._day = ""
        self.last_lsn = -1

    def load(self) -> list[tuple[int, TickBatch]]:
        """All that is kept, in the order of the log, with each batch's lsn; cuts a torn tail.

        Raises:
            StorageError: a whole line is not what was written, or the disk refused.
        """
        found: list[tuple[int, TickBatch]] = []
        paths = sorted(self._directory.glob("????-??-??.ndjson"))
        for path in paths:
            data = self._bytes(path)
            good = 0
            for number, line in enumerate(data.splitlines(keepends=True), 1):
                try:
                    if not line.endswith(b"\n"):
                        break
                    raw = json.loads(line)
                    found.append((int(raw["lsn"]), TickBatch.from_json(raw["batch"])))
                except (ValueError, KeyError, TypeError, AgentError) as error:
                    raise StorageError(f"{path.name}:{number}: got {line[:120]!r}: {error}") from error
                good += len(line)
            if good < len(data):
                try:
                    os.truncate(path, good)
                except OSError as error:
                    raise StorageError(f"tick archive: {path.name}: {error.strerror or error}") from error
        found.sort(key=lambda item: item[0])
        if found:
            self.last_lsn = found[-1][0]
        return found

    def append(self, batches: list[tuple[int, bytes]]) -> None:
        """Append batches given as (lsn, `TickBatch.to_bytes`).

        Raises:
            StorageError: the disk refused; the file is cut back to its last whole line.
        """
        for lsn, data in batches:
            if lsn <= self.last_lsn:
                continue
            ticks = json.loads(data)["ticks"]
            if not ticks:
                continue
            end_ns = int(ticks[-1]["end_ns"])
            line = b'{"lsn":%d,"batch":%s}\n' % (lsn, data)
            try:
                fd = self._file(utc_iso(end_ns)[:10], end_ns)
                size = os.fstat(fd).st_size
                if os.write(fd, line) != len(line):
                    os.ftruncate(fd, size)
                    raise StorageError("tick archive: short write; is the disk full?")
            except OSError as error:
                raise StorageError(f"tick archive: {error.strerror or error}") from error
            self.last_lsn = lsn

    def days(self) -> list[str]:
        """The days there are ticks of, the oldest first."""
        return sorted(path.stem for path in self._directory.glob("????-??-??.ndjson"))

    def sync(self) -> None:
        """Make what was appended durable."""
        if self._fd is not None:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise StorageError(f"tick archive: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the day's file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._day = ""

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise StorageError(f"tick archive: {path.name}: {error.strerror or error}") from error

    def _file(self, day: str, now_ns: int) -> int:
        if self._fd is None or day > self._day:
            if self._fd is not None:
                self.sync()
                self.close()
            self._fd = os.open(
                self._directory / f"{day}.ndjson", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
            self._day = day
            oldest = utc_iso(max(0, now_ns - self._retention_ns))[:10]
            for path in self._directory.glob("????-??-??.ndjson"):
                if path.name[:10] < oldest:
                    path.unlink()
        return self._fd
