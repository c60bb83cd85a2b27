"""The last segment of a log, open for writing: preallocated ahead, written in one call, cut when it is done.

Invariants:
    * what a failed write left is cut off again before the next one;
    * after a failure that leaves it unknown what is on disk, `poison` says which, and nothing more is taken.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import sync_directory
from joulegram_pipeline.wal_segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    new_mark,
    segment_at,
    segment_header,
    with_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# A sync that need not change the file's length costs about a quarter of the processor time of one that must.
_PREALLOCATE_BYTES = 4 * 1024 * 1024
_IOV_MAX = os.sysconf("SC_IOV_MAX")


class Write(Protocol):
    """`os.pwritev`, or what a test puts in its place."""

    def __call__(self, fd: int, buffers: Sequence[bytes], offset: int, /) -> int: ...


class SegmentWriter:
    """One segment file open for writing.

    Args:
        segment: with its mark.
        fd: of its file; closed by `close`.
        length: of the file.
        sync: makes a file's contents durable.
        write: writes buffers at an offset.
    """

    def __init__(self, segment: Segment, fd: int, length: int, sync: Callable[[int], None], write: Write) -> None:
        self.segment = segment
        self.poison: str | None = None
        """Why nothing more may be written."""
        self._fd = fd
        self._allocated = length
        self._sync = sync
        self._write = write

    @classmethod
    def create(
        cls, directory: Path, base: int, sync: Callable[[int], None], write: Write, *, after_hole: bool = False
    ) -> SegmentWriter:
        """Make the file of a new segment, its header durable.

        Raises:
            OSError: the disk refused; the file is not there then.
        """
        header = segment_header(base, new_mark(), after_hole=after_hole)
        segment = with_header(segment_at(directory, base), header)
        fd = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(fd, header, 0)
            os.fsync(fd)
            sync_directory(directory)
        except OSError:
            os.close(fd)
            # Left there it would claim positions that the segment before may still give.
            with contextlib.suppress(OSError):
                segment.path.unlink()
            raise
        return cls(segment, fd, SEGMENT_HEADER_BYTES, sync, write)

    @classmethod
    def reopen(cls, segment: Segment, end_lsn: int, sync: Callable[[int], None], write: Write) -> SegmentWriter:
        """Go on with a segment that ends at `end_lsn`.

        Raises:
            OSError: the file cannot be opened.
        """
        fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        return cls(segment, fd, segment.offset(end_lsn), sync, write)

    def write(self, buffers: list[bytes], size: int, lsn: int) -> None:
        """Write `buffers`, `size` bytes together, so that they begin at `lsn`.

        Raises:
            StorageError: the disk refused; what was written of them is cut off again.
        """
        offset = self.segment.offset(lsn)
        try:
            if offset + size > self._allocated:
                self._preallocate(offset + size)
            self._write_all(buffers, offset)
        except OSError as error:
            self._take_back(offset)
            raise StorageError(
                f"cannot append {size} bytes to {str(self.segment.path)!r}: {error.strerror or error}"
            ) from error

    def sync(self) -> None:
        """Make what was written durable.

        Raises:
            StorageError: it failed, which is not tried again: the kernel may have dropped the pages.
        """
        try:
            self._sync(self._fd)
        except OSError as error:
            self._poisoned(error)

    def seal(self, lsn: int) -> None:
        """Sync, and cut the preallocated rest behind `lsn`.

        Raises:
            StorageError: a sync failed.
            OSError: the file could not be cut.
        """
        self.sync()
        self._allocated = self.segment.offset(lsn)
        os.ftruncate(self._fd, self._allocated)
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._poisoned(error)

    def close(self) -> None:
        """Let the file go as it is."""
        os.close(self._fd)

    def _poisoned(self, error: OSError) -> None:
        self.poison = f"sync of {self.segment.path.name} failed: {error.strerror or error}"
        raise StorageError(
            f"log {str(self.segment.path.parent)!r}: {self.poison}; it takes nothing more until the next start"
        ) from error

    def _preallocate(self, needed: int) -> None:
        target = -(-needed // _PREALLOCATE_BYTES) * _PREALLOCATE_BYTES
        # Only a speed-up: whether there is room is for the write itself to say.
        with contextlib.suppress(OSError):
            os.posix_fallocate(self._fd, self._allocated, target - self._allocated)
            self._allocated = target

    def _write_all(self, buffers: list[bytes], offset: int) -> None:
        for begin in range(0, len(buffers), _IOV_MAX):
            part = buffers[begin : begin + _IOV_MAX]
            size = sum(map(len, part))
            wrote = self._write(self._fd, part, offset)
            if wrote < size:
                whole = b"".join(part)
                while wrote < size:
                    more = self._write(self._fd, [whole[wrote:]], offset + wrote)
                    if more == 0:
                        raise OSError(0, f"wrote {wrote} of {size} bytes and then none")
                    wrote += more
            offset += size

    def _take_back(self, offset: int) -> None:
        """Cut a half-written batch, so that the next one begins at the last good end."""
        try:
            os.ftruncate(self._fd, offset)
        except OSError as error:
            self.poison = f"a failed write could not be taken back: {error.strerror or error}"
        self._allocated = offset
