"""The telemetry ledger: append-only RFC 8785 lines, each naming the hash of the line before it (S3-12, C-56).

Invariants:
    * a line is written once and never rewritten; what is cut is the torn end of a write that did not finish,
      and it is moved to ``quarantine/``, not dropped; the log it was made from makes its lines again;
    * a record whose `pos` is not above the last line's is already there, and is skipped: exactly once under
      replay;
    * after an error the file ends at a whole line, or no further line is appended.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from joulegram_pipeline.canonical import canonical_plain, sha256_hex
from joulegram_pipeline.errors import BusyError, DocumentError, LedgerError, StorageError
from joulegram_pipeline.files import replace_file, safe_mkdir, sync_directory
from joulegram_pipeline.ids import new_run_id
from joulegram_sink.ledger_format import FIRST_SEGMENT, MAX_LINE_BYTES, genesis_line, is_genesis, line_hash
from joulegram_sink.ledger_tail import first_hole, read_first_line, read_tail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import LedgerLine

_BEFORE_ALL = [-1, -1]


class LedgerState(NamedTuple):
    """Where a ledger ends.

    Args:
        lines: how many lines there are, the genesis included.
        head: hash of the last line; with `lines` it pins everything before it.
        bytes: length of the file.
    """

    lines: int
    head: str
    bytes: int


class _Point(NamedTuple):
    """The state with the last line's position."""

    state: LedgerState
    pos: list[int]


class Ledger:
    """The ledger of a directory, open for appending by this process alone.

    Args:
        directory: ``<data_dir>/ledger/telemetry``; made if it is not there.
        metrics: counts the lines appended.

    Raises:
        BusyError: another process has it open.
        LedgerError: the file does not begin with a genesis line, or holds no whole line at all.
        StorageError: the disk refused.
    """

    def __init__(self, directory: Path, metrics: Metrics | None = None) -> None:
        self._directory = directory
        self._path = directory / FIRST_SEGMENT
        self._metrics = metrics
        self._unwritable: str | None = None
        self.healed_bytes = 0
        """Bytes of torn lines moved to quarantine when this ledger was opened."""
        safe_mkdir(directory)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._storage_error("opened", error) from error
        try:
            self._lock()
            self._end = self._synced = self._open()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def last_pos(self) -> tuple[int, int] | None:
        """Position (lsn, ordinal) of the last line; None while there is the genesis alone."""
        lsn, ordinal = self._end.pos
        return None if lsn < 0 else (lsn, ordinal)

    def state(self) -> LedgerState:
        """Lines, head and bytes as appended; on disk for certain is what was there at the last `sync`."""
        return self._end.state

    def append(self, records: Sequence[Mapping[str, Any]], *, sync: bool = False) -> int:
        """Append records in the order of their `pos`, in one write; those already there are skipped.

        Args:
            records: span records or run lines, plain dicts: `seq` and `prev_hash` are set in them.
            sync: make them durable before returning.

        Returns:
            How many were appended.

        Raises:
            DocumentError: a record has no canonical form, or is too long for a line; nothing was appended.
            StorageError: the disk refused; the file ends where it ended before.
        """
        (seq, head, _), last = self._end
        lines: list[bytes] = []
        # The hot path, as in `append_lines`: no call, allocation or check that a line could do without.
        sha256 = hashlib.sha256
        for record in cast("Sequence[dict[str, Any]]", records):
            pos = record["pos"]
            if pos <= last:
                continue
            record["seq"] = seq
            record["prev_hash"] = head
            line = canonical_plain(record)
            head = "sha256:" + sha256(line).hexdigest()
            lines.append(line)
            seq += 1
            last = pos
        return self._put(lines, seq, head, last, sync=sync)

    def append_lines(self, lines: Sequence[LedgerLine], *, sync: bool = False) -> int:
        """Append lines whose canonical JSON is made already but for `prev_hash` and `seq`; else as `append`.

        Args:
            lines: see `joulegram_pipeline.records.LedgerLine`.
            sync: make them durable before returning.
        """
        (seq, head, _), last = self._end
        if lines and [lines[0][0], lines[0][1]] <= last:
            lines = [line for line in lines if [line[0], line[1]] > last]
        made: list[bytes] = []
        sha256 = hashlib.sha256
        for _, _, before, between, after in lines:
            text = f'{before}"prev_hash":"{head}",{between}"seq":{seq},{after}'.encode()
            head = "sha256:" + sha256(text).hexdigest()
            made.append(text)
            seq += 1
        return self._put(made, seq, head, [lines[-1][0], lines[-1][1]] if lines else last, sync=sync)

    def _put(self, lines: list[bytes], seq: int, head: str, last: list[int], *, sync: bool) -> int:
        """Write lines that follow the last one, and move the end behind them."""
        if lines:
            if max(map(len, lines)) > MAX_LINE_BYTES:
                longest = max(lines, key=len)
                plain = f"got a record of {len(longest)} bytes, expected at most {MAX_LINE_BYTES}"
                raise DocumentError(f"{plain}: {longest[:200]!r}…", plain)
            lines.append(b"")
            data = b"\n".join(lines)
            self._write(data)
            self._end = _Point(LedgerState(seq, head, self._end.state.bytes + len(data)), list(last))
            if self._metrics is not None:
                self._metrics.ledger_lines.inc(len(lines) - 1)
        if sync:
            self.sync()
        return max(0, len(lines) - 1)

    @property
    def must_reopen(self) -> bool:
        """Whether a sync failed, so that nothing is taken until the ledger is opened again and the log replayed."""
        return self._unwritable is not None

    def sync(self) -> None:
        """Make every appended line durable (fdatasync).

        Raises:
            StorageError: the disk refused. The kernel may then have dropped the pages and would call the next
                sync a success, so the lines since the last sync are cut off and the ledger takes no more
                until it is opened again: the replay brings them back.
        """
        self._check_writable()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._end = self._synced
            self._unwritable = f"a sync of it failed: {error.strerror or error}"
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end.state.bytes)
            raise self._storage_error("synced", error) from error
        self._synced = self._end

    def close(self) -> None:
        """Sync if that is possible, let go of the file. A second call does nothing.

        Raises:
            StorageError: the last sync failed; the file is closed all the same.
        """
        if self._fd < 0:
            return
        try:
            if self._unwritable is None:
                self.sync()
        finally:
            os.close(self._fd)
            self._fd = -1
            self._unwritable = "it is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"ledger {str(self._path)!r} is open in another process") from error
        except OSError as error:
            raise self._storage_error("locked", error) from error

    def _open(self) -> _Point:
        try:
            size = os.fstat(self._fd).st_size
            hole = first_hole(self._fd)
            tail = read_tail(self._fd, size if hole is None else hole)
            if tail is None:
                if size > MAX_LINE_BYTES or b"\n" in os.pread(self._fd, size, 0):
                    raise LedgerError(
                        f"{self._path.name}:1", f"got {size} bytes without one ledger line, expected a ledger"
                    )
                # Nothing is appended before the genesis is durable, so half of one is all that can be torn
                # here.
                self._cut(0, size)
                return self._begin()
            if not is_genesis(read_first_line(self._fd)):
                raise LedgerError(f"{self._path.name}:1", "got a line that is no genesis, expected the genesis line")
            self._cut(tail.end, size)
        except OSError as error:
            raise self._storage_error("read", error) from error
        state = LedgerState(tail.seq + 1, tail.head, tail.end)
        return _Point(state, _BEFORE_ALL if tail.pos is None else list(tail.pos))

    def _begin(self) -> _Point:
        line = canonical_plain(genesis_line(new_run_id()))
        os.write(self._fd, line + b"\n")
        os.fsync(self._fd)
        sync_directory(self._directory)
        sync_directory(self._directory.parent)
        return _Point(LedgerState(1, line_hash(line), len(line) + 1), _BEFORE_ALL)

    def _cut(self, end: int, size: int) -> None:
        """Move what follows `end` to quarantine, named by where it was torn and by its hash."""
        if size == end:
            return
        torn = os.pread(self._fd, size - end, end)
        quarantine = safe_mkdir(self._directory / "quarantine")
        replace_file(quarantine / f"{self._path.name}.{end}.{sha256_hex(torn)[:12]}.torn", torn)
        os.ftruncate(self._fd, end)
        os.fsync(self._fd)
        self.healed_bytes += size - end

    def _write(self, data: bytes) -> None:
        self._check_writable()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            try:
                os.ftruncate(self._fd, self._end.state.bytes)
            except OSError as cut:
                self._unwritable = f"its torn end cannot be cut: {cut.strerror or cut}"
            raise self._storage_error("written", error) from error

    def _check_writable(self) -> None:
        if self._unwritable is not None:
            raise StorageError(
                f"ledger {str(self._path)!r} takes no more lines until it is opened again: {self._unwritable}"
            )

    def _storage_error(self, what: str, error: OSError) -> StorageError:
        return StorageError(f"ledger {str(self._path)!r} cannot be {what}: {error.strerror or error}")
