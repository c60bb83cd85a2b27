from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.canonical import canonical_plain
from joulegram_pipeline.errors import BusyError, DocumentError, LedgerError, StorageError
from joulegram_pipeline.metrics import Metrics
from joulegram_schemas import validate
from joulegram_sink.ledger import Ledger
from joulegram_sink.ledger_format import FIRST_SEGMENT, ZERO_HASH, run_line
from joulegram_sink.ledger_verify import verify
from simulators.sample_runs import run_record, span_record, unmeasured

if TYPE_CHECKING:
    from pathlib import Path


def lines_of(directory: Path) -> list[bytes]:
    return (directory / FIRST_SEGMENT).read_bytes().splitlines()


def test_a_new_ledger_is_one_genesis_line(tmp_path: Path) -> None:
    """The first line pins the log: its own id, seq 0, a hash of zeros before it."""
    with Ledger(tmp_path / "a") as one, Ledger(tmp_path / "b") as other:
        assert one.last_pos is None
        assert one.state().lines == 1
    first = json.loads(lines_of(tmp_path / "a")[0])
    second = json.loads(lines_of(tmp_path / "b")[0])
    assert (first["kind"], first["seq"], first["prev_hash"]) == ("genesis", 0, ZERO_HASH)
    assert first["log"] != second["log"]
    assert other.state().head != one.state().head


def test_each_line_is_canonical_and_names_the_one_before(tmp_path: Path) -> None:
    """S3-12: RFC 8785 bytes, seq without a gap, prev_hash over the line before; ledger-line-v1 holds."""
    with Ledger(tmp_path) as ledger:
        assert ledger.append([span_record(i) for i in range(5)]) == 5
        assert ledger.append([run_line(run_record()), run_line(unmeasured(pos=(9001, 2)))], sync=True) == 2
        state = ledger.state()
    lines = lines_of(tmp_path)
    previous = ZERO_HASH
    for seq, line in enumerate(lines):
        value = json.loads(line)
        assert rfc8785.dumps(value) == line
        assert (value["seq"], value["prev_hash"]) == (seq, previous)
        validate("ledger-line-v1", value)
        previous = "sha256:" + hashlib.sha256(line).hexdigest()
    assert state == (8, previous, (tmp_path / FIRST_SEGMENT).stat().st_size)


def test_reopened_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Opening reads the end of the file; the chain runs on over it."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(i) for i in range(300)])
        before = ledger.state()
    with Ledger(tmp_path) as ledger:
        assert ledger.state() == before
        assert ledger.last_pos == (1299, 0)
        assert ledger.healed_bytes == 0
        ledger.append([span_record(300)])
    assert verify(tmp_path).ok


def test_a_replay_appends_nothing_twice(tmp_path: Path) -> None:
    """Records at or below the last position, a pair, are skipped, before and after a restart."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(0, pos=[7, 0]), span_record(1, pos=[7, 1])])
        assert ledger.append([span_record(0, pos=[7, 0]), span_record(1, pos=[7, 1]), span_record(2, pos=[7, 2])]) == 1
        assert ledger.append([span_record(0, pos=[6, 99])]) == 0
    with Ledger(tmp_path) as ledger:
        assert ledger.append([span_record(i, pos=[7, i]) for i in range(4)]) == 1
        assert ledger.last_pos == (7, 3)
    report = verify(tmp_path)
    assert (report.ok, report.spans) == (True, 4)


def test_lines_are_counted(tmp_path: Path) -> None:
    """Only what was appended counts; skipped records do not."""
    metrics = Metrics()
    with Ledger(tmp_path, metrics) as ledger:
        ledger.append([span_record(0), span_record(1)])
        ledger.append([span_record(1), span_record(2)])
    assert metrics.registry.get_sample_value("joulegram_sink_ledger_lines_total") == 3


@pytest.mark.parametrize("keep", [1, 5, 400, -1])
def test_a_torn_last_line_goes_to_quarantine(tmp_path: Path, keep: int) -> None:
    """C-56: what a write left half done is cut off, kept aside and counted; the replay brings it back."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(0), span_record(1)])
    path = tmp_path / FIRST_SEGMENT
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    torn = last[:keep]
    path.write_bytes(whole[: -len(last)] + torn)
    with Ledger(tmp_path) as ledger:
        assert ledger.healed_bytes == len(torn)
        assert ledger.last_pos == (1000, 0)
        assert ledger.append([span_record(0), span_record(1)]) == 1
    assert path.read_bytes() == whole
    assert [file.read_bytes() for file in (tmp_path / "quarantine").iterdir()] == [torn]


@pytest.mark.parametrize("pages", [1, 3])
def test_a_page_that_never_reached_the_disk_ends_the_ledger_there(tmp_path: Path, pages: int) -> None:
    """C-56: a power cut writes back pages in any order; what stands behind a lost one is made again, not believed."""
    records = [span_record(i) for i in range(60)]
    with Ledger(tmp_path) as ledger:
        ledger.append(records)
    path = tmp_path / FIRST_SEGMENT
    whole = path.read_bytes()
    assert len(whole) > 6 * 4096
    path.write_bytes(whole[:8192] + b"\0" * 4096 * pages + whole[8192 + 4096 * pages :])
    with Ledger(tmp_path) as ledger:
        kept = ledger.state().bytes
        assert 0 < kept <= 8192
        assert ledger.healed_bytes == len(whole) - kept
        ledger.append(records)
    assert path.read_bytes() == whole
    assert verify(tmp_path).ok


@pytest.mark.parametrize(
    "torn",
    [b"\0" * 200_000, b"\0" * 70_000 + b"\n", b"{}\n", b'{"seq":3}\n{"kind"\n', b"\n"],
    ids=["zeros", "zeros-lf", "no-ledger-line", "two-lines", "empty-line"],
)
def test_a_tail_that_is_no_ledger_line_is_cut(tmp_path: Path, torn: bytes) -> None:
    """Blocks of zeros and half lines that a power loss leaves are cut back to the last whole line."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(0)])
        state = ledger.state()
    with (tmp_path / FIRST_SEGMENT).open("ab") as handle:
        handle.write(torn)
    with Ledger(tmp_path) as ledger:
        assert ledger.state() == state
        assert ledger.healed_bytes == len(torn)
    assert verify(tmp_path).ok


def test_a_torn_genesis_is_begun_again(tmp_path: Path) -> None:
    """A process killed while it made the ledger leaves nothing that was ever acknowledged."""
    (tmp_path / FIRST_SEGMENT).write_bytes(b'{"kind":"gene')
    with Ledger(tmp_path) as ledger:
        assert ledger.state().lines == 1
    assert verify(tmp_path).ok


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"hello\nworld\n", "without one ledger line"),
        (b"x" * 70_000, "without one ledger line"),
        (canonical_plain({**span_record(0), "seq": 0, "prev_hash": ZERO_HASH}) + b"\n", "no genesis"),
    ],
    ids=["text", "long", "first-line-removed"],
)
def test_a_file_that_is_no_ledger_is_refused_untouched(tmp_path: Path, content: bytes, got: str) -> None:
    """Something else under the ledger's name is not healed away."""
    path = tmp_path / FIRST_SEGMENT
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=got) as caught:
        Ledger(tmp_path)
    assert caught.value.where == "ledger-000000.ndjson:1"
    assert path.read_bytes() == content


def test_two_processes_never_append_to_one_ledger(tmp_path: Path) -> None:
    """flock: the second is told the ledger is open elsewhere, and may have it once the first is done."""
    with Ledger(tmp_path), pytest.raises(BusyError, match="open in another process"):
        Ledger(tmp_path)
    with Ledger(tmp_path) as ledger:
        assert ledger.state().lines == 1


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A write that stops half way is undone: the file ends as it did, and the same records go in later."""
    with Ledger(tmp_path) as ledger:
        ledger.append([span_record(0)])
        before = ledger.state()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The kernel writes up to the limit and then refuses, as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (before.bytes + 300, hard))
        try:
            with pytest.raises(StorageError, match="cannot be written"):
                ledger.append([span_record(1), span_record(2)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert ledger.state() == before
        assert (tmp_path / FIRST_SEGMENT).stat().st_size == before.bytes
        assert ledger.append([span_record(1), span_record(2)]) == 2
    assert verify(tmp_path).ok


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it was given; the rest follows, no byte lost or doubled."""
    real = os.write
    with Ledger(tmp_path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:100]))
            ledger.append([span_record(i) for i in range(3)])
        assert ledger.state().bytes == (tmp_path / FIRST_SEGMENT).stat().st_size
    assert verify(tmp_path).ok


def test_after_a_failed_sync_nothing_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not synced is cut off and the ledger shuts: the kernel would call the next sync a success."""

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    ledger = Ledger(tmp_path)
    ledger.append([span_record(0)], sync=True)
    synced = ledger.state()
    ledger.append([span_record(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(StorageError, match="Input/output error"):
            ledger.sync()
    assert ledger.state() == synced
    with pytest.raises(StorageError, match="until it is opened again"):
        ledger.append([span_record(1)])
    ledger.close()
    with Ledger(tmp_path) as again:
        assert again.append([span_record(0), span_record(1)]) == 1
    assert verify(tmp_path).spans == 2


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"name": "x" * 66_000}, "expected at most 65535"),
        ({"name": "\ud800"}, "no canonical JSON"),
        ({"origin": 2**60}, "no canonical JSON"),
    ],
    ids=["too-long", "lone-surrogate", "unsafe-integer"],
)
def test_a_record_without_a_line_is_refused_with_its_batch(tmp_path: Path, change: dict[str, Any], got: str) -> None:
    """A record that cannot be written leaves the ledger as it was."""
    with Ledger(tmp_path) as ledger:
        before = ledger.state()
        with pytest.raises(DocumentError, match=got):
            ledger.append([span_record(0), span_record(1, **change)])
        assert ledger.state() == before
        assert ledger.append([span_record(0)]) == 1
    assert verify(tmp_path).ok


def test_a_closed_ledger_takes_nothing(tmp_path: Path) -> None:
    """Closing twice is closing once; an append after it is told why."""
    ledger = Ledger(tmp_path)
    ledger.close()
    ledger.close()
    with pytest.raises(StorageError, match="closed"):
        ledger.append([span_record(0)])


_WRITER = """
import sys
from pathlib import Path
from simulators.sample_runs import span_record
from joulegram_sink.ledger import Ledger
with Ledger(Path(sys.argv[1])) as ledger:
    print(ledger.state().lines, flush=True)
    at = ledger.state().lines
    while True:
        ledger.append([span_record(at + i) for i in range(7)], sync=True)
        at += 7
        print(at, flush=True)
"""


def test_killed_at_any_moment_it_holds_all_it_promised(tmp_path: Path) -> None:
    """SIGKILL between and inside appends: what was synced and said is there, and the chain is whole."""
    tests = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    for round_number in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": tests},
        )
        assert writer.stdout is not None
        promised = [int(writer.stdout.readline()) for _ in range(5 + 3 * round_number)]
        writer.send_signal(signal.SIGKILL)
        promised += [int(line) for line in writer.stdout.read().splitlines()]
        writer.stdout.close()
        writer.wait()
        with Ledger(tmp_path) as ledger:
            assert ledger.state().lines >= promised[-1]
        assert verify(tmp_path).ok


_safe = st.integers(-(2**53 - 1), 2**53 - 1)
_plain = st.recursive(
    st.none() | st.booleans() | _safe | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=8), _plain, max_size=5), st.text())
def test_the_quick_writer_gives_the_reference_bytes(extra: dict[str, Any], name: str) -> None:
    """canonical_plain equals rfc8785 on span records, whatever strings, integers and nesting they carry."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = "lone"
    record = {**span_record(0), **extra, "name": name}
    assert canonical_plain(record) == rfc8785.dumps(record)
