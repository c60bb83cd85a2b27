"""Reads a ledger from its first line to its last and says what is wrong with it, and what it cannot know.

A chain of hashes pins everything before its last line, and nothing after it. So whole lines missing at the
end, a missing file, or a chain written anew by someone who can write the file are seen only against a head
kept elsewhere: `expect_lines` and `expect_head`, as `Ledger.state` gave them, or as printed by an earlier
verification.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from joulegram_pipeline.canonical import MAX_SAFE_INTEGER, canonical, canonical_plain
from joulegram_pipeline.errors import DocumentError, LedgerError, StorageError
from joulegram_sink.ledger_format import MAX_LINE_BYTES, SEGMENTS, ZERO_HASH, is_genesis, line_hash

if TYPE_CHECKING:
    from pathlib import Path

_MAX_PROBLEMS = 100
_COVERED = "edited, removed, repeated, swapped and torn lines before the last"
_NOT_COVERED = (
    "whole lines removed at the end, the whole file removed, a chain written anew from some line on: "
    "give a head and a line count you kept"
)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Args:
        lines: whole lines read, the genesis included.
        spans: lines of kind ``span``.
        runs: lines of kind ``run``.
        head: hash of the last line; keep it with `lines` to pin this ledger for the next verification.
        gaps: lines that say what was dropped before it was recorded.
        problems: the first of them, in the order of the file; each names file and line.
        anchored_lines: how many lines from the first an expected head pins; 0 where none was given or none
            matched.
    """

    lines: int
    spans: int
    runs: int
    gaps: int
    head: str
    problems: tuple[LedgerError, ...]
    anchored_lines: int = 0

    @property
    def ok(self) -> bool:
        """No problem was found; see `text` for what that covers."""
        return not self.problems

    def text(self) -> str:
        """The report for people, ending in what it covers and what it does not."""
        gaps = f", {self.gaps} gaps" if self.gaps else ""
        out = [f"{self.lines} lines: {self.spans} spans, {self.runs} runs{gaps}; head {self.head}"]
        out += [f"problem: {problem}" for problem in self.problems]
        if self.anchored_lines:
            out.append(f"covered: {_COVERED}; lines 1 to {self.anchored_lines} are those of the expected head")
            after = self.lines - self.anchored_lines
            out.append(
                f"not covered: of the {after} lines after it, lines removed at the end, a chain written anew"
                if after
                else "not covered: lines appended after the expected head and removed again"
            )
        else:
            out.append(f"covered: {_COVERED}")
            out.append(f"not covered: {_NOT_COVERED}")
        return "\n".join(out)


@dataclass(slots=True)
class _Walk:
    """State of a verification: what the next line has to be."""

    expect_head: str | None
    expect_lines: int | None
    seq: int = 0
    lines: int = 0
    spans: int = 0
    runs: int = 0
    gaps: int = 0
    head: str = ZERO_HASH
    pos: tuple[int, int] = (-1, -1)
    anchored: int = 0
    problems: list[LedgerError] = field(default_factory=list)

    def problem(self, where: str, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(LedgerError(where, text))


def verify(directory: Path, expect_head: str | None = None, expect_lines: int | None = None) -> VerifyReport:
    """Verify the ledger of a directory, streaming.

    Args:
        directory: ``<data_dir>/ledger/telemetry``.
        expect_head: hash of a line that has to be there, kept from earlier.
        expect_lines: how many lines there were then; with `expect_head` the head has to be that of exactly
            this line.

    Raises:
        StorageError: a file cannot be read.
    """
    walk = _Walk(expect_head, expect_lines)
    segments = sorted(directory.glob(SEGMENTS))
    if not segments:
        walk.problem(str(directory), f"got no file {SEGMENTS}, expected a ledger")
    for path in segments:
        try:
            _segment(path, walk)
        except OSError as error:
            raise StorageError(f"cannot read ledger {str(path)!r}: {error.strerror or error}") from error
    _anchor(walk, segments[-1].name if segments else str(directory))
    return VerifyReport(walk.lines, walk.spans, walk.runs, walk.gaps, walk.head, tuple(walk.problems), walk.anchored)


def _segment(path: Path, walk: _Walk) -> None:
    number = 0
    with path.open("rb") as handle:
        # readline with a limit: a file without line feeds must not be read into memory.
        while raw := handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path.name}:{number}"
            if raw.endswith(b"\n"):
                _line(where, raw[:-1], walk)
            elif len(raw) > MAX_LINE_BYTES:
                walk.problem(where, f"got a line longer than {MAX_LINE_BYTES} bytes, expected a ledger line")
                while raw and not raw.endswith(b"\n"):
                    raw = handle.readline(MAX_LINE_BYTES + 1)
            else:
                walk.problem(where, f"got a torn line of {len(raw)} bytes, expected a line feed at its end")
    if number == 0:
        walk.problem(f"{path.name}:1", "got an empty file, expected the genesis line")


def _line(where: str, line: bytes, walk: _Walk) -> None:
    previous = walk.head
    walk.head = line_hash(line)
    walk.lines += 1
    if walk.head == walk.expect_head and walk.expect_lines in (None, walk.lines):
        walk.anchored = walk.lines
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        walk.problem(where, f"got {line[:80]!r}, expected JSON: {error}")
        value = None
    if not isinstance(value, dict):
        if value is not None:
            walk.problem(where, f"got {line[:80]!r}, expected a JSON object")
        walk.seq += 1
        return
    if not _is_canonical(value, line):
        walk.problem(where, f"got {line[:80]!r}, expected the canonical JSON (RFC 8785) of its value: edited")
    if walk.lines == 1:
        _first(where, value, walk)
    else:
        _chain(where, value, previous, walk)
        _kind(where, value, walk)


def _first(where: str, value: dict[str, Any], walk: _Walk) -> None:
    if not is_genesis(value):
        got = f"got a line of kind {value.get('kind')!r} and seq {value.get('seq')!r}"
        walk.problem(where, f"{got}, expected the genesis line: the first lines removed, or this one edited")
    seq = value.get("seq")
    walk.seq = seq + 1 if type(seq) is int else 1


def _chain(where: str, value: dict[str, Any], previous: str, walk: _Walk) -> None:
    seq = value.get("seq")
    if type(seq) is not int:
        walk.problem(where, f"got seq {seq!r}, expected {walk.seq}")
        seq = walk.seq
    elif seq > walk.seq:
        walk.problem(where, f"got seq {seq}, expected {walk.seq}: {seq - walk.seq} lines removed or moved")
    elif seq < walk.seq:
        walk.problem(where, f"got seq {seq}, expected {walk.seq}: a line repeated or moved")
    elif value.get("prev_hash") != previous:
        walk.problem(
            where,
            f"got prev_hash {value.get('prev_hash')!r}, expected {previous!r}: "
            f"this line or the one before it was edited",
        )
    walk.seq = seq + 1


def _kind(where: str, value: dict[str, Any], walk: _Walk) -> None:
    kind = value.get("kind")
    if kind == "span":
        walk.spans += 1
    elif kind == "run":
        walk.runs += 1
    elif kind == "gap":
        walk.gaps += 1
    else:
        walk.problem(where, f"got kind {kind!r}, expected 'span', 'run' or 'gap'")
        return
    match value.get("pos"):
        case [int(lsn), int(ordinal)]:
            if (lsn, ordinal) <= walk.pos:
                walk.problem(where, f"got pos {[lsn, ordinal]}, expected one above {list(walk.pos)}")
            walk.pos = (lsn, ordinal)
        case other:
            walk.problem(where, f"got pos {other!r}, expected [lsn, ordinal]")


def _anchor(walk: _Walk, name: str) -> None:
    if walk.expect_lines is not None and walk.lines < walk.expect_lines:
        walk.problem(
            f"{name}:{walk.lines + 1}",
            f"got {walk.lines} lines, expected at least {walk.expect_lines}: lines removed at the end",
        )
    elif walk.expect_head is not None and not walk.anchored:
        at = "any line" if walk.expect_lines is None else f"line {walk.expect_lines}"
        walk.problem(
            f"{name}:{walk.expect_lines or walk.lines}",
            f"got another hash at {at}, expected head {walk.expect_head!r}: lines removed, or the chain written anew",
        )


def _is_canonical(value: dict[str, Any], line: bytes) -> bool:
    try:
        return (canonical_plain(value) if _is_plain(value) else canonical(value)) == line
    except DocumentError:
        return False


def _is_plain(value: Any) -> bool:
    """Whether `canonical_plain` may write this value."""
    kind: type = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(-MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER)
    if kind is dict:
        return all(key.isascii() and _is_plain(item) for key, item in value.items())
    return kind is list and all(_is_plain(item) for item in value)
