"""Bytes that this process read from and wrote to disks, from ``/proc/self/io`` (C-13, D-31, D-32).

`read_bytes` and `write_bytes` are what went to and came from storage (Linux, Documentation/filesystems/proc.rst,
3.3); what the page cache answered is not in them, and children are in them once they were waited for. Bytes on
the network are not counted by process anywhere in /proc, so they are absent: the host's counters are not ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NETWORK_REASON = "not_supported: the kernel does not count network bytes by process"


@dataclass(frozen=True, slots=True)
class DiskBytes:
    """Counters of this process at one moment; None with a reason where they cannot be read."""

    read: int | None = None
    written: int | None = None
    reason: str | None = None


def disk_bytes(proc_root: Path = Path("/proc")) -> DiskBytes:
    """Read them now; a kernel without task I/O accounting, or another system, has none."""
    path = proc_root / "self" / "io"
    try:
        found = dict(line.split(": ", 1) for line in path.read_text("ascii").splitlines())
        return DiskBytes(int(found["read_bytes"]), int(found["write_bytes"]))
    except OSError as error:
        return DiskBytes(reason=f"read_failed: {path}: {error.strerror}")
    except (KeyError, ValueError):
        return DiskBytes(reason=f"read_failed: {path} has no read_bytes and write_bytes")


def bytes_between(
    before: DiskBytes, after: DiskBytes, *, strict: bool = False
) -> tuple[int | None, int | None, str | None]:
    """Bytes read and written between two moments, and why they are not known where they are not.

    Args:
        before: at the beginning.
        after: at the end.
        strict: a counter that fell is an error and not a reason.

    Raises:
        ValueError: with `strict`, in the seed's words, naming the counter (S0-31, C-11).
    """
    reason = before.reason or after.reason
    if reason is not None or None in (before.read, before.written, after.read, after.written):
        return None, None, reason
    found: dict[str, int | None] = {}
    for name, old, new in (("read", before.read, after.read), ("write", before.written, after.written)):
        assert old is not None
        assert new is not None
        found[name] = new - old
        if new < old:
            text = f"Negative byte delta detected: {name}: got {new} after {old}"
            if strict:
                raise ValueError(text)
            found[name], reason = None, f"counter_reset: {text}"
    return found["read"], found["write"], reason
