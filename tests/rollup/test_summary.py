from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from joulegram_pipeline.errors import DocumentError
from joulegram_rollup.render import render
from joulegram_rollup.summary import RunSummary, read_run, to_json
from joulegram_sink.ledger import Ledger
from joulegram_sink.ledger_format import run_line
from simulators.sample_runs import RUN_ID, TABLE, run_record, span_record, unmeasured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SEGMENT = "ledger-000000.ndjson"


def write(directory: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    with Ledger(directory) as ledger:
        ledger.append(records)
    return directory


def shown(summary: RunSummary, written: Mapping[str, Path] | None = None) -> str:
    out = io.StringIO()
    render(summary, Console(file=out, width=200, color_system=None), written)
    return out.getvalue()


def test_a_run_is_read_back_as_it_was_recorded(tmp_path: Path) -> None:
    """Spans, totals and account of one run; lines of other runs count for the ledger alone."""
    other = "etl-20260102T999999Z"
    write(
        tmp_path,
        [span_record(0), span_record(1, run_id=other), span_record(2), run_line(run_record())],
    )
    with Ledger(tmp_path) as ledger:
        lines, head, _ = ledger.state()
    summary = read_run(tmp_path, RUN_ID)
    assert [span.span_id for span in summary.spans] == [f"{1:016x}", f"{3:016x}"]
    span = summary.spans[0]
    assert (span.name, span.duration_s, span.total_j) == ("etl.node.hrrr_ingest", 1.0, 1.5)
    assert (span.gco2e, span.gco2e_lower, span.gco2e_upper) == (0.000167, 0.00015, 0.000184)
    assert (span.method, span.scope, span.table, span.reason) == ("measured", "host", TABLE.name, None)
    totals = summary.totals
    assert totals is not None
    assert (totals.total_j, totals.gco2e, totals.duration_s) == (36000.0, 4.0, 90.5)
    assert (totals.factor_kg_per_kwh, totals.tables) == (0.4, (TABLE.name,))
    assert totals.account_j is not None
    parts = dict(totals.account_j)
    assert parts.pop("measured") == sum(parts.values()) == 40000.0
    assert (summary.ledger_lines, summary.ledger_head, summary.problems) == (lines, head, ())


def test_the_highest_revision_counts(tmp_path: Path) -> None:
    """Late spans made a second run line: it is the run's."""
    write(
        tmp_path,
        [run_line(run_record()), span_record(9000), run_line(run_record(pos=(19999, 0), revision=2, spans=4))],
    )
    totals = read_run(tmp_path, RUN_ID).totals
    assert totals is not None
    assert (totals.revision, totals.spans) == (2, 4)


def test_a_run_that_has_not_ended_has_no_totals(tmp_path: Path) -> None:
    """Spans alone: the summary says so instead of adding them up."""
    summary = read_run(write(tmp_path, [span_record(0)]), RUN_ID)
    assert summary.totals is None
    assert "not ended" in shown(summary)


def test_what_is_not_known_is_absent_and_explained(tmp_path: Path) -> None:
    """No 0 for want of a reading: JSON has no such key, the terminal a question mark and the reason."""
    span = span_record(0, energy={"method": "unavailable", "reason": "no source"}, carbon={})
    summary = read_run(write(tmp_path, [span, run_line(unmeasured())]), RUN_ID)
    assert "total_j" not in to_json(summary)["spans"][0]
    assert "gco2e" not in to_json(summary)["totals"]
    assert "null" not in json.dumps(to_json(summary))
    text = shown(summary)
    assert "unavailable [1]" in text
    assert "\n[1] no source\n" in text
    assert "energy: not known: no energy source on this node" in text
    assert "carbon: not known: energy is not known" in text
    assert " 0 J" not in text


def test_a_run_nobody_recorded_is_named(tmp_path: Path) -> None:
    """An unknown run, or no ledger at all, is an error that quotes what was asked."""
    with pytest.raises(DocumentError, match="expected a ledger"):
        read_run(tmp_path, RUN_ID)
    write(tmp_path, [span_record(0)])
    with pytest.raises(DocumentError, match="got run 'etl-other-run'"):
        read_run(tmp_path, "etl-other-run")


def test_a_name_that_holds_a_run_id_is_not_the_run(tmp_path: Path) -> None:
    """A span may be called like a line of the ledger; only its own run id counts."""
    other = span_record(0, run_id="etl-other-run", name=f'"run_id":"{RUN_ID}"', energy={"method": "unavailable"})
    write(tmp_path, [other, span_record(1)])
    assert [span.span_id for span in read_run(tmp_path, RUN_ID).spans] == [f"{2:016x}"]


def test_problems_of_the_ledger_are_shown(tmp_path: Path) -> None:
    """An edited and a torn line are reported with file and line; what can be read is still read."""
    write(tmp_path, [span_record(i) for i in range(4)])
    path = tmp_path / SEGMENT
    lines = path.read_bytes().splitlines()
    lines[2] = lines[2].replace(b"hrrr", b"HRRR")
    lines[3] = lines[3].replace(b'"start_ns":"', b'"start_ns":"x')
    path.write_bytes(b"\n".join(lines)[:-10])
    summary = read_run(tmp_path, RUN_ID)
    assert len(summary.spans) == 2
    wheres = [problem.split(": ")[0] for problem in summary.problems]
    assert wheres == [f"{SEGMENT}:4", f"{SEGMENT}:4", f"{SEGMENT}:5"]
    assert "torn line" in summary.problems[-1]
    assert f"ledger problem: {SEGMENT}:4" in shown(summary)


def test_the_terminal_shows_spans_totals_account_and_files(tmp_path: Path) -> None:
    """Everything a reader asks for is on one screen: figures with their interval, method, table, where it stands."""
    summary = read_run(write(tmp_path, [span_record(0), run_line(run_record())]), RUN_ID)
    text = shown(summary, {"telemetry_json": tmp_path / "a.json"})
    for piece in (
        "etl.node.hrrr_ingest",
        "0.00015…0.000184",
        TABLE.name,
        "energy: 36000 J, measured, host scope",
        "carbon: 4 gCO2e (95 %: 3.6…4.4), an estimate; eGRID",
        "account: 40000 J measured = spans 36000, other spans 0, idle 3000, other 700, unattributed 300",
        f"telemetry_json: {tmp_path}/a.json",
        f"ledger: 3 lines, head {summary.ledger_head}",
    ):
        assert piece in text


def test_of_many_spans_the_largest_are_shown(tmp_path: Path) -> None:
    """Forty rows and a line that says how many more; a span of unknown energy is not hidden behind small ones."""
    records = [
        span_record(i, name=f"etl.n{i:02d}", energy={"method": "measured", "total_uj": i * 1_000_000})
        for i in range(1, 60)
    ]
    unknown = span_record(60, name="etl.unknown", energy={"method": "unavailable", "reason": "gap"})
    text = shown(read_run(write(tmp_path, [*records, unknown]), RUN_ID))
    assert "and 20 more spans" in text
    assert "etl.unknown" in text
    assert "etl.n59" in text
    assert "etl.n21" in text
    assert "etl.n20" not in text


def test_a_span_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """Names come from jobs: escape sequences and markup are shown as text."""
    record = span_record(0, name="etl.\x1b[2J[red]x\nnext")
    text = shown(read_run(write(tmp_path, [record]), RUN_ID))
    assert "\x1b" not in text
    assert "[red]x\ufffdnext" in text


def test_time_that_nothing_measured_is_said(tmp_path: Path) -> None:
    """A gap in the run's window stands beside its account."""
    line = run_line(run_record())
    line["account"]["uncovered_ns"] = "2500000000"
    assert "2.5 s of the run are in no measurement" in shown(read_run(write(tmp_path, [line]), RUN_ID))
