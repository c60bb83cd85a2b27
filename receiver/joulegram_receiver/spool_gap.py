"""What `drop_oldest` deletes unforwarded, said where nobody can miss it: in a record of the log itself.

Invariants:
    * what is about to be dropped is written down, durably, before the first file is deleted;
    * each drop has one record, whatever is killed when: the note names the position the record gets.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import StorageError
from joulegram_pipeline.files import replace_file
from joulegram_pipeline.wal_scan import Damaged, ends, walk
from joulegram_pipeline.wal_segment import opened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from joulegram_pipeline.wal import WriteAheadLog
    from joulegram_pipeline.wal_segment import Segment

GAP = "spool.gap"
DAMAGED = "damaged"
"""Counted beside the kinds: records of the range that could not be read any more."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that were dropped to make room.

    Args:
        first_lsn: of the first.
        next_lsn: behind the last.
        records: how many of each kind stood there, ``{"traces": 12}``.
        unread: how many of them no reader had been given since the start.
        log_bytes: of log that went.
    """

    first_lsn: int
    next_lsn: int
    records: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    log_bytes: int = 0

    def to_bytes(self) -> bytes:
        """As the payload of its control record."""
        members = {
            "first_lsn": self.first_lsn,
            "next_lsn": self.next_lsn,
            "records": self.records,
            "unread": self.unread,
            "bytes": self.log_bytes,
        }
        return json.dumps({"type": GAP, **members}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Gap:
        """What `to_bytes` wrote.

        Raises:
            StorageError: it is something else.
        """
        try:
            raw = json.loads(payload)
            return cls(int(raw["first_lsn"]), int(raw["next_lsn"]), raw["records"], raw["unread"], int(raw["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"got {payload[:200]!r}, expected a note of dropped records") from error

    def then(self, later: Gap) -> Gap:
        """This one and the one behind it as one."""
        return Gap(
            self.first_lsn,
            later.next_lsn,
            dict(Counter(self.records) + Counter(later.records)),
            dict(Counter(self.unread) + Counter(later.unread)),
            self.log_bytes + later.log_bytes,
        )


def count(segments: Sequence[Segment], next_lsn: int, read_lsn: int) -> Gap:
    """What whole segments hold, which end at `next_lsn`; what lies below `read_lsn` was given to a reader.

    Raises:
        StorageError: a file cannot be read.
    """
    records: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    try:
        for segment, end in zip(segments, ends(segments, next_lsn), strict=True):
            with opened(segment) as fd:
                for found in walk(fd, segment, end, sealed=True):
                    if isinstance(found, Damaged):
                        records[DAMAGED] += found.records
                        continue
                    name = found.kind.name.lower()
                    records[name] += 1
                    unread[name] += found.lsn >= read_lsn
    except OSError as error:
        raise StorageError(f"cannot count what is about to be dropped: {error}") from error
    first = segments[0].base
    return Gap(first, next_lsn, dict(records), dict(+unread), next_lsn - first)


class GapNote:
    """The file that carries a drop over a crash between the deletion and its record."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "gap.json"

    def write(self, gap: Gap, at_lsn: int) -> None:
        """Say that segments below `gap.next_lsn` go, and that a record at `at_lsn` will say so.

        Raises:
            StorageError: the disk refused.
        """
        replace_file(self._path, json.dumps({"at_lsn": at_lsn, "gap": gap.to_bytes().decode()}).encode())

    def clear(self) -> None:
        """The record is durable."""
        # If it stays, the next start finds the record where the note says.
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def take_up(self, log: WriteAheadLog) -> Gap | None:
        """After a crash: finish the deletion; the drop whose record is still to be written, if there is one.

        Raises:
            StorageError: a file cannot be read or deleted, or the note is not one.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {str(self._path)!r}: {error}") from error
        try:
            raw = json.loads(data)
            at_lsn, gap = int(raw["at_lsn"]), Gap.from_bytes(str(raw["gap"]).encode())
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"got {str(self._path)!r} that is no note of dropped records: {error}") from error
        log.release(gap.next_lsn)
        with contextlib.suppress(StorageError):
            if log.start_lsn <= at_lsn < log.durable_lsn and log.read_at(at_lsn).payload == gap.to_bytes():
                self.clear()
                return None
        return gap
