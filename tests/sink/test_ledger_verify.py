from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from joulegram_pipeline.canonical import canonical, canonical_plain
from joulegram_sink.ledger import Ledger
from joulegram_sink.ledger_format import FIRST_SEGMENT, ZERO_HASH, line_hash, run_line
from joulegram_sink.ledger_verify import VerifyReport, verify
from simulators.sample_runs import run_record, span_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Lines = list[bytes]


@pytest.fixture
def ledger_dir(tmp_path: Path) -> Path:
    """Genesis, eight spans, one run: ten lines, numbered from 1."""
    with Ledger(tmp_path) as ledger:
        ledger.append([*(span_record(i) for i in range(8)), run_line(run_record())])
    return tmp_path


def edit(line: bytes, **changes: Any) -> bytes:
    return canonical_plain({**json.loads(line), **changes})


def rechain(lines: Lines, first: int) -> Lines:
    """What someone does who can write the file: edit, then hash everything after it anew."""
    out = lines[:first]
    for number, line in enumerate(lines[first:], first):
        prev = line_hash(out[-1]) if out else ZERO_HASH
        out.append(edit(line, seq=number, prev_hash=prev))
    return out


def change(number: int, new: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    return lambda lines: [new(line) if at == number else line for at, line in enumerate(lines, 1)]


BAD: dict[str, tuple[Callable[[Lines], Lines], str, str]] = {
    "edited": (change(4, lambda line: edit(line, name="etl.other")), ":5", "was edited"),
    "edited last byte": (change(4, lambda line: line[:-1] + b" "), ":4", "expected JSON"),
    "edited, not canonical": (change(4, lambda line: line.replace(b",", b", ", 1)), ":4", "RFC 8785"),
    "edited, key twice": (change(4, lambda line: b'{"name":"x",' + line[1:]), ":4", "RFC 8785"),
    "edited, number as float": (
        change(4, lambda line: line.replace(b":1500000}", b":1500000.0}")),
        ":4",
        "RFC 8785",
    ),
    "edited to an unsafe integer": (
        change(4, lambda line: line.replace(b'"origin":642', b'"origin":9007199254740993')),
        ":4",
        "RFC 8785",
    ),
    "edited to a list": (change(4, lambda line: b"[]"), ":4", "expected a JSON object"),
    "kind edited": (change(4, lambda line: edit(line, kind="note")), ":4", "expected 'span', 'run' or 'gap'"),
    "seq edited": (change(4, lambda line: edit(line, seq="3")), ":4", "got seq '3', expected 3"),
    "pos removed": (
        change(4, lambda line: canonical({k: v for k, v in json.loads(line).items() if k != "pos"})),
        ":4",
        "expected [lsn, ordinal]",
    ),
    "pos not above": (
        change(4, lambda line: edit(line, pos=[1001, 0])),
        ":4",
        "expected one above [1001, 0]",
    ),
    "removed in the middle": (
        lambda lines: lines[:3] + lines[4:],
        ":4",
        "got seq 4, expected 3: 1 lines removed",
    ),
    "first removed": (lambda lines: lines[1:], ":1", "expected the genesis line"),
    "first two removed": (lambda lines: lines[2:], ":1", "expected the genesis line"),
    "genesis edited": (change(1, lambda line: edit(line, version="2")), ":1", "expected the genesis line"),
    "genesis of another log": (change(1, lambda line: edit(line, log="0" * 26)), ":2", "was edited"),
    "genesis again": (lambda lines: [*lines[:5], lines[0], *lines[5:]], ":6", "repeated or moved"),
    "swapped": (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], ":4", "removed or moved"),
    "duplicated": (lambda lines: [*lines[:4], lines[3], *lines[4:]], ":5", "a line repeated or moved"),
    "duplicated last": (lambda lines: [*lines, lines[-1]], ":11", "a line repeated or moved"),
    "a line too long": (lambda lines: [*lines[:4], b"x" * 200_000, *lines[4:]], ":5", "longer than 65535"),
    "appended without its hash": (
        lambda lines: [*lines, edit(lines[-1], seq=10, pos=[9999, 0])],
        ":11",
        "expected 'sha256:",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_changed_ledger_is_found_out(ledger_dir: Path, name: str) -> None:
    """S3-12: every change before the last line is reported with its line and what was expected."""
    damage, where, says = BAD[name]
    path = ledger_dir / FIRST_SEGMENT
    assert verify(ledger_dir).ok
    path.write_bytes(b"\n".join([*damage(path.read_bytes().splitlines()), b""]))
    problems = verify(ledger_dir).problems
    assert problems[0].where == FIRST_SEGMENT + where
    assert says in problems[0].problem
    assert "expected" in problems[0].problem


def test_every_single_bit_of_a_whole_ledger_counts(tmp_path: Path) -> None:
    """Flip one bit anywhere but in the last line: never does the ledger still pass."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(0), span_record(1)])
    path = tmp_path / FIRST_SEGMENT
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for at in range(0, last, 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert not verify(tmp_path).ok, at


def test_a_torn_last_line_is_told_from_a_removed_one(ledger_dir: Path) -> None:
    """Half a line at the end is named with its length."""
    path = ledger_dir / FIRST_SEGMENT
    path.write_bytes(path.read_bytes()[:-30])
    report = verify(ledger_dir)
    assert (report.lines, len(report.problems)) == (9, 1)
    assert report.problems[0].where == f"{FIRST_SEGMENT}:10"
    assert "torn line" in report.problems[0].problem


def test_a_whole_ledger_says_what_it_covers_and_what_not(ledger_dir: Path) -> None:
    """The report counts, gives the head to keep, and names what a chain alone cannot see."""
    report = verify(ledger_dir)
    assert (report.lines, report.spans, report.runs, report.problems) == (10, 8, 1, ())
    text = report.text()
    assert report.head in text
    assert "covered: edited, removed" in text
    assert "not covered: whole lines removed at the end, the whole file removed" in text


def test_what_a_chain_cannot_see_needs_a_kept_head(ledger_dir: Path) -> None:
    """Lines removed at the end and a chain written anew pass alone, and fail against a head kept before."""
    path = ledger_dir / FIRST_SEGMENT
    kept = verify(ledger_dir)
    lines = path.read_bytes().splitlines()
    shortened = lines[:-2]
    rewritten = rechain([*lines[:3], edit(lines[3], name="etl.other"), *lines[4:]], 4)
    for content, says in ((shortened, "lines removed at the end"), (rewritten, "written anew")):
        path.write_bytes(b"\n".join([*content, b""]))
        assert verify(ledger_dir).ok
        anchored = verify(ledger_dir, expect_head=kept.head, expect_lines=kept.lines)
        assert not anchored.ok
        assert says in anchored.problems[0].problem
        by_head = verify(ledger_dir, expect_head=kept.head)
        assert kept.head in by_head.problems[0].problem
    # The count alone does not see a chain written anew at the same length.
    assert verify(ledger_dir, expect_lines=kept.lines).ok


def test_a_kept_head_covers_up_to_its_line(ledger_dir: Path) -> None:
    """A ledger that has grown since still passes; the report tells anchored lines from those after them."""
    kept = verify(ledger_dir)
    with Ledger(ledger_dir) as ledger:
        ledger.append([span_record(9000), span_record(9001)])
    for report in (verify(ledger_dir, kept.head, kept.lines), verify(ledger_dir, kept.head)):
        assert report.ok
        assert report.anchored_lines == 10
        assert "lines 1 to 10 are those of the expected head" in report.text()
        assert "of the 2 lines after it" in report.text()
    assert "appended after the expected head" in _now(ledger_dir).text()


def _now(directory: Path) -> VerifyReport:
    return verify(directory, verify(directory).head)


def test_a_right_head_at_the_wrong_line_is_refused(ledger_dir: Path) -> None:
    """Head and count pin one line together."""
    kept = verify(ledger_dir)
    assert not verify(ledger_dir, kept.head, 9).ok


@pytest.mark.parametrize("content", [None, b""], ids=["no file", "empty file"])
def test_a_ledger_that_is_not_there_is_a_problem(tmp_path: Path, content: bytes | None) -> None:
    """Nothing to read never verifies."""
    if content is not None:
        (tmp_path / FIRST_SEGMENT).write_bytes(content)
    report = verify(tmp_path)
    assert not report.ok
    assert "expected" in report.text()
