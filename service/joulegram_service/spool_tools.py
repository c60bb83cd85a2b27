"""What `joulegram spool` does with a spool directory: look at it, heal it, write its requests as OTLP JSON.

Looking and exporting only read and work beside a running sidecar; healing needs the data directory for itself.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.clock import utc_iso_ns
from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import DirectoryLock
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_heal import Quarantine, rewrite_header
from joulegram_pipeline.wal_scan import Damaged, ends, identify, walk
from joulegram_pipeline.wal_segment import V1_MARK, list_segments, opened
from joulegram_service.positions import positions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from joulegram_pipeline.records import LogRecord, RecordKind
    from joulegram_pipeline.wal_segment import Segment


@dataclass(slots=True)
class SegmentReport:
    """One file: its name, the format's version (None: unknown), where it begins and ends, and what is in it."""

    file: str
    version: int | None
    first_lsn: int
    next_lsn: int
    bytes: int
    records: int = 0
    damaged: int = 0
    header_damaged: bool = False


@dataclass(slots=True)
class SpoolReport:
    """What stands in a spool.

    Args:
        directory: it is in.
        segments: its files.
        records: how many of each kind.
        first_lsn: of the first whole record, None where there is none.
        last_lsn: of the last.
        first_received: of the first, RFC 3339.
        last_received: of the last.
        bytes: of all files.
        damaged: records that are not whole, as far as they can be told apart.
        missing_bytes: that no file has, between two that are there.
        tail_bytes: behind the last whole record: torn, or being written at this moment.
        quarantined: files kept aside so far.
        positions: how far the engine's snapshot, the ledger and each destination have come; see `positions`.
        unreadable: of those, whose position cannot be read, and why.
    """

    directory: str
    segments: list[SegmentReport] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    first_lsn: int | None = None
    last_lsn: int | None = None
    first_received: str | None = None
    last_received: str | None = None
    bytes: int = 0
    damaged: int = 0
    missing_bytes: int = 0
    tail_bytes: int = 0
    quarantined: int = 0
    positions: dict[str, int | None] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every record that must be there is whole; a tail was never acknowledged."""
        return not (self.damaged or self.missing_bytes or any(each.header_damaged for each in self.segments))

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "ok": self.ok}

    def text(self) -> str:
        """For people."""
        lines = [f"spool {self.directory}: {len(self.segments)} segments, {self.bytes} bytes"]
        for each in self.segments:
            version = f"version {each.version}" if each.version else "unknown version"
            flaws = f", {each.damaged} damaged" if each.damaged else ""
            flaws += ", its header damaged" if each.header_damaged else ""
            lines.append(
                f"  {each.file}  {version}  lsn {each.first_lsn} to {each.next_lsn}  {each.bytes} bytes  "
                f"{each.records} records{flaws}"
            )
        kinds = ", ".join(f"{name} {number}" for name, number in sorted(self.records.items())) or "none"
        lines.append(f"records: {kinds}")
        if self.first_lsn is not None:
            lines.append(f"lsn: {self.first_lsn} to {self.last_lsn}")
            lines.append(f"received: {self.first_received} to {self.last_received}")
        lines.append(f"damaged: {self.damaged} records; missing: {self.missing_bytes} bytes")
        lines.append(f"behind the last record: {self.tail_bytes} bytes, torn or being written")
        lines.append(f"kept aside before: {self.quarantined} files")
        stands = ", ".join(f"{name} {'none' if lsn is None else lsn}" for name, lsn in self.positions.items())
        lines.append(f"positions: {stands or 'none'}")
        lines += [f"  {name}: cannot be read: {why}" for name, why in self.unreadable.items()]
        return "\n".join(lines)


def spool_in(directory: Path) -> Path:
    """The spool itself where a data directory is named.

    Raises:
        StorageError: there is none.
    """
    inner = directory / "spool"
    found = inner if inner.is_dir() else directory
    if not found.is_dir() or not list_segments(found):
        raise StorageError(f"got {str(directory)!r}, expected a spool or a data directory with one: no .wal file in it")
    return found


def inspect(directory: Path) -> SpoolReport:
    """Read a whole spool and change nothing; beside a running sidecar it sees a moment.

    Raises:
        StorageError: there is no spool, it cannot be read, or a later joulegram wrote it.
    """
    spool = spool_in(directory)
    report = SpoolReport(str(spool), quarantined=len(list(spool.glob("quarantine/*"))))
    kinds: Counter[str] = Counter()
    for segment, size, end, is_last in _segments(spool):
        each = SegmentReport(
            segment.path.name,
            None if segment.mark is None else 1 if segment.mark == V1_MARK else 2,
            segment.base,
            segment.base,
            size,
            header_damaged=segment.damaged_header,
        )
        for found in _walk(segment, end, sealed=not is_last):
            each.next_lsn = found.next_lsn
            if isinstance(found, Damaged):
                each.damaged += found.records
                report.missing_bytes += max(0, found.next_lsn - max(found.lsn, segment.lsn(size)))
                continue
            each.records += 1
            kinds[found.kind.name.lower()] += 1
            if report.first_lsn is None:
                report.first_lsn, report.first_received = found.lsn, utc_iso_ns(found.received_ns)
            report.last_lsn, report.last_received = found.lsn, utc_iso_ns(found.received_ns)
        if is_last:
            with contextlib.suppress(FileNotFoundError):
                data = segment.path.read_bytes()[segment.offset(each.next_lsn) :]
                report.tail_bytes = len(data.rstrip(b"\0"))
        report.segments.append(each)
        report.bytes += size
        report.damaged += each.damaged
    report.records = dict(kinds)
    report.positions, report.unreadable = positions(spool.parent)
    return report


def records(directory: Path, kinds: frozenset[RecordKind], from_lsn: int) -> Iterator[LogRecord]:
    """The whole records of these kinds from `from_lsn`; damaged ones are left out.

    Raises:
        StorageError: there is no spool, or it cannot be read.
    """
    for segment, _, end, _ in _segments(spool_in(directory)):
        if end > from_lsn:
            for found in _walk(segment, end, sealed=False):
                if not isinstance(found, Damaged) and found.kind in kinds and found.lsn >= from_lsn:
                    yield found


def repair(directory: Path, *, continue_at: int | None = None, dry_run: bool = False) -> list[str]:
    """Do now what a start would: cut a torn end, keep damaged bytes aside; and write damaged headers anew.

    Args:
        directory: the spool, or the data directory.
        continue_at: give up the positions from the end of the log to this one.
        dry_run: only say what would be done.

    Returns:
        What was done, a line each; nothing where nothing is wrong.

    Raises:
        BusyError: a sidecar runs on it.
        StorageError: there is no spool, or the disk refused.
    """
    spool = spool_in(directory)
    with contextlib.ExitStack() as stack:
        if not dry_run and (spool.parent / "lock").exists():
            stack.enter_context(DirectoryLock(spool.parent))
        done = []
        for segment, _, end, is_last in _segments(spool):
            done += _repair_segment(spool, segment, end, is_last=is_last, dry_run=dry_run)
        if dry_run:
            before = inspect(spool)
            if before.tail_bytes:
                done.append(f"cut {before.tail_bytes} torn bytes from the end and keep them in quarantine")
            if continue_at is not None:
                done.append(f"go on at lsn {continue_at}, if the log ends before")
            return done
        log = WriteAheadLog(spool)
        log.open()
        try:
            if log.healed_bytes:
                done.append(f"cut {log.healed_bytes} torn bytes from the end and kept them in quarantine")
            if log.missing_bytes:
                done.append(f"{log.missing_bytes} bytes of acknowledged records are gone; nothing can be done for them")
            if continue_at is not None and continue_at > log.end_lsn:
                done.append(f"gave up lsn {log.end_lsn} to {continue_at}: the log goes on there")
                log.skip_to(continue_at)
        finally:
            log.close()
        return done


def _repair_segment(spool: Path, segment: Segment, end: int, *, is_last: bool, dry_run: bool) -> list[str]:
    done = []
    name = segment.path.name
    if segment.damaged_header and segment.mark:
        done.append(f"{name}: {'write' if dry_run else 'wrote'} its header anew")
        if not dry_run:
            rewrite_header(segment)
    for found in list(_walk(segment, end, sealed=not is_last)):
        if not isinstance(found, Damaged):
            continue
        with opened(segment) as fd:
            if not dry_run and not Quarantine(spool).damaged(fd, found):
                continue
        keep = "keep" if dry_run else "kept"
        done.append(
            f"{name}: {keep} {found.records} damaged record{'s' if found.records > 1 else ''}, "
            f"lsn {found.lsn} to {found.next_lsn}, in quarantine; reading skips them"
        )
    return done


def _segments(spool: Path) -> Iterator[tuple[Segment, int, int, bool]]:
    """Each segment with its file's size, the lsn its records end at, and whether it is the last."""
    found = []
    try:
        for segment in list_segments(spool):
            with contextlib.suppress(FileNotFoundError), opened(segment) as fd:  # released meanwhile
                found.append(identify(fd, segment))
        if not found:
            return
        sizes = [_size(segment) for segment in found]
        limits = ends(found, found[-1].lsn(sizes[-1]))
    except OSError as error:
        raise StorageError(f"cannot read the spool in {str(spool)!r}: {error}") from error
    for index, (segment, size, end) in enumerate(zip(found, sizes, limits, strict=True)):
        yield segment, size, end, index == len(found) - 1


def _size(segment: Segment) -> int:
    with contextlib.suppress(FileNotFoundError):
        return segment.path.stat().st_size
    return 0


def _walk(segment: Segment, end: int, *, sealed: bool) -> Iterator[LogRecord | Damaged]:
    try:
        with opened(segment) as fd:
            yield from walk(fd, segment, end, sealed=sealed)
    except FileNotFoundError:
        return  # released meanwhile
    except OSError as error:
        raise StorageError(f"cannot read {str(segment.path)!r}: {error}") from error
