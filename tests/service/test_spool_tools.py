"""`joulegram spool`: what it says of a spool, what it heals, and what it writes out."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError
from typer.testing import CliRunner

from joulegram_pipeline.files import DirectoryLock
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import segment_header
from joulegram_receiver.spool import Spool
from joulegram_service.cli_spool import app
from joulegram_service.config_file import load_config, validated
from joulegram_service.config_spool import SpoolConfig
from joulegram_service.sidecar import Sidecar
from joulegram_service.spool_tools import inspect
from joulegram_sink.ledger_format import FIRST_SEGMENT
from simulators.ports import free_port
from simulators.sidecar import wait_until
from simulators.traces import request, span

if TYPE_CHECKING:
    from pathlib import Path

TRACES, LOGS, TICKS = RecordKind.TRACES, RecordKind.LOGS, RecordKind.TICKS
HEADER = 24
SEGMENT_HEADER = 16
SECOND_NS = 10**9
TRACE_ID = bytes(range(16))


def spans(name: str) -> bytes:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(trace_id=TRACE_ID, span_id=b"\xab" * 8, name=name)
    return bytes(message.SerializeToString())


def logs(text: str) -> bytes:
    message = ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add(body={"string_value": text})
    return bytes(message.SerializeToString())


RECORDS = [
    (TRACES, 1 * SECOND_NS, spans("one")),
    (LOGS, 2 * SECOND_NS, logs("a line")),
    (TICKS, 3 * SECOND_NS, b"{}"),
    (TRACES, 4 * SECOND_NS, spans("two")),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a spool of two segments."""
    directory = tmp_path / "data"
    log = WriteAheadLog(directory / "spool", segment_bytes=110)
    log.open()
    for record in RECORDS:
        log.append([record])
        log.sync()
    log.close()
    return directory


def joulegram_spool(*arguments: object, code: int = 0) -> str:
    """What it prints; never a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    return result.output


def segment(data: Path, number: int) -> Path:
    return sorted((data / "spool").glob("*.wal"))[number]


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_inspect_says_what_is_there(data: Path) -> None:
    """Segments, records by kind, positions, times and bytes, for people and as JSON; nothing is changed."""
    before = contents(data)
    report = json.loads(joulegram_spool("inspect", "--json", data))
    log = WriteAheadLog(data / "spool")
    log.open()
    last = log.last_lsn
    log.close()
    assert (report["records"], report["ok"]) == ({"traces": 2, "logs": 1, "ticks": 1}, True)
    assert (report["first_lsn"], report["last_lsn"]) == (0, last)
    assert (report["first_received"], report["last_received"]) == (
        "1970-01-01T00:00:01.000000000Z",
        "1970-01-01T00:00:04.000000000Z",
    )
    assert [(each["version"], each["records"], each["bytes"]) for each in report["segments"]] == [
        (2, 2, segment(data, 0).stat().st_size),
        (2, 2, segment(data, 1).stat().st_size),
    ]
    assert report["bytes"] == sum(each["bytes"] for each in report["segments"])
    text = joulegram_spool("inspect", data / "spool")
    assert "2 segments" in text
    assert "records: logs 1, ticks 1, traces 2" in text
    assert "received: 1970-01-01T00:00:01.000000000Z to" in text
    assert contents(data) == before


def test_inspect_finds_damage_and_exits_1(data: Path) -> None:
    """A flipped byte, a flipped header, a segment cut short and a torn tail are each said, each in its place."""
    damage(segment(data, 0), SEGMENT_HEADER + HEADER)
    report = json.loads(joulegram_spool("inspect", "--json", data, code=1))
    assert (report["damaged"], report["segments"][0]["damaged"], report["missing_bytes"]) == (1, 1, 0)
    damage(segment(data, 1), 3)
    report = json.loads(joulegram_spool("inspect", "--json", data, code=1))
    assert [each["header_damaged"] for each in report["segments"]] == [False, True]
    assert report["segments"][1]["records"] == 2
    segment(data, 0).write_bytes(segment(data, 0).read_bytes()[:-5])
    report = inspect(data).as_json()
    assert (report["missing_bytes"], report["records"]) == (5, {"ticks": 1, "traces": 1})
    segment(data, 1).write_bytes(segment(data, 1).read_bytes() + b"torn" + bytes(50))
    assert inspect(data).tail_bytes == 4
    assert "its header damaged" in joulegram_spool("inspect", data, code=1)


def test_inspect_shows_how_far_each_has_come(tmp_path: Path) -> None:
    """The engine's snapshot, the ledger and each destination, of a sidecar whose upstream is away; then of none."""
    spool = tmp_path / "data" / "spool"

    async def life() -> None:
        endpoint = f"grpc://127.0.0.1:{free_port()}"
        flags = {("data_dir",): tmp_path / "data", ("upstream", "endpoint"): endpoint, ("agent", "source"): "model"}
        flags |= {("receiver", "protocols", name, "endpoint"): "127.0.0.1:0" for name in ("grpc", "http")}
        flags |= {("telemetry", "metrics", "endpoint"): "127.0.0.1:0", ("shutdown", "drain_timeout"): "1ms"}
        async with Sidecar(load_config(None, flags, {})) as sidecar:
            now_ns = time.time_ns()
            await sidecar.receive_span(request(span(1, now_ns - 10**8, now_ns, name="etl.job")))
            await asyncio.to_thread(wait_until, lambda: sidecar.ledger.last_pos is not None, "a line of the ledger")
            while_it_runs = inspect(spool).positions
            assert while_it_runs["upstream upstream"] is None
            assert sidecar.ledger.last_pos is not None
            assert while_it_runs["ledger"] == sidecar.ledger.last_pos[0]

    asyncio.run(life())
    report = json.loads(joulegram_spool("inspect", "--json", tmp_path / "data"))
    assert [*report["positions"]] == ["snapshot", "ledger", "upstream upstream"]
    assert report["positions"]["snapshot"] == report["segments"][-1]["next_lsn"]
    assert 0 < report["positions"]["ledger"] < report["positions"]["snapshot"]
    assert report["positions"]["upstream upstream"] is None
    assert "upstream upstream none" in joulegram_spool("inspect", spool)
    for path in (tmp_path / "data").iterdir():
        if path.is_dir() and path.name != "spool":
            shutil.rmtree(path)
    assert "positions: none" in joulegram_spool("inspect", spool)


def test_what_stands_beside_a_spool_and_cannot_be_read_is_said(data: Path) -> None:
    """The report of the spool itself is as ever: it is wanted most where something is broken."""
    (data / "state").mkdir()
    (data / "state" / "machine.json").write_text('{"posi')
    (data / "ledger" / "telemetry" / FIRST_SEGMENT).mkdir(parents=True)
    (data / "outbox" / "positions").mkdir(parents=True)
    (data / "outbox" / "positions" / "torn").write_bytes(b"\x00")
    report = json.loads(joulegram_spool("inspect", "--json", data))
    assert (report["ok"], report["records"]["traces"]) == (True, 2)
    assert report["positions"] == {"upstream torn": None}
    assert [why.partition(":")[0] for why in report["unreadable"].values()] == ["JSONDecodeError", "IsADirectoryError"]
    text = joulegram_spool("inspect", data)
    assert "  snapshot: cannot be read: JSONDecodeError: " in text
    assert joulegram_spool("repair", "--dry-run", data) == "nothing to do\n"


def test_a_tail_alone_is_no_damage(data: Path) -> None:
    """Bytes behind the last record were never acknowledged, or are being written at this moment."""
    segment(data, 1).write_bytes(segment(data, 1).read_bytes() + b"torn")
    assert "behind the last record: 4 bytes" in joulegram_spool("inspect", data)


def test_inspect_and_export_work_beside_a_sidecar(data: Path) -> None:
    """While a spool is written they see what is whole, and neither disturb it nor wait for it."""

    async def main() -> None:
        with DirectoryLock(data):
            async with Spool(data / "spool", Metrics()) as spool:
                await spool.append(TRACES, spans("three"))
                report = await asyncio.to_thread(inspect, data)
                assert (report.ok, report.records["traces"], report.tail_bytes) == (True, 3, 0)
                lines = await asyncio.to_thread(joulegram_spool, "export", "--signal", "traces", data)
                assert len(lines.splitlines()) == 3
                said = await asyncio.to_thread(joulegram_spool, "repair", data, code=1)
                assert f"in use by another joulegram (pid {os.getpid()})" in said
                await spool.append(TRACES, spans("four"))

    asyncio.run(main())


def test_repair_heals_says_what_it_did_and_has_nothing_to_do_then(data: Path) -> None:
    """A torn end is cut, damaged bytes and torn ones are kept, the header is written anew; whole records stay."""
    damage(segment(data, 0), SEGMENT_HEADER + HEADER)
    damage(segment(data, 1), 5)
    segment(data, 1).write_bytes(segment(data, 1).read_bytes() + b"torn")
    before = contents(data)
    dry = joulegram_spool("repair", "--dry-run", data)
    assert contents(data) == before
    done = joulegram_spool("repair", data)
    for said, tense in ((dry, "keep"), (done, "kept")):
        assert f"{segment(data, 0).name}: {tense} 1 damaged record, lsn 0 to" in said
        assert f"{segment(data, 1).name}: {'write' if tense == 'keep' else 'wrote'} its header anew" in said
        assert "cut 4 torn bytes from the end" in said
    assert sorted(path.suffix for path in (data / "spool" / "quarantine").iterdir()) == [".damaged", ".torn"]
    report = inspect(data)
    assert (report.tail_bytes, [each.header_damaged for each in report.segments]) == (0, [False, False])
    assert sum(report.records.values()) == 3
    assert joulegram_spool("repair", data) == "nothing to do\n"


def test_repair_gives_up_positions_when_it_is_told_to(data: Path) -> None:
    """--continue-at lets a log that lost its end go on where its readers are."""
    log = WriteAheadLog(data / "spool")
    log.open()
    end = log.end_lsn
    log.close()
    assert f"gave up lsn {end} to {end + 500}" in joulegram_spool("repair", "--continue-at", end + 500, data)
    log = WriteAheadLog(data / "spool")
    log.open()
    assert (log.end_lsn, log.missing_bytes) == (end + 500, 0)
    log.close()
    assert inspect(data).ok
    assert joulegram_spool("repair", "--continue-at", end, data) == "nothing to do\n"


def test_export_writes_otlp_json_lines(data: Path, tmp_path: Path) -> None:
    """One request a line, ids in hex, as the Collector's file exporter writes them; ticks are no OTLP."""
    lines = [json.loads(line) for line in joulegram_spool("export", data).splitlines()]
    assert [next(iter(line)) for line in lines] == ["resourceSpans", "resourceLogs", "resourceSpans"]
    (span,) = lines[0]["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span == {"traceId": TRACE_ID.hex(), "spanId": "ab" * 8, "name": "one"}
    out = tmp_path / "traces.jsonl"
    second = inspect(data).segments[1].first_lsn
    assert joulegram_spool("export", "--signal", "traces", "--from-lsn", second, "--out", out, data) == ""
    (line,) = out.read_text().splitlines()
    assert json.loads(line) == lines[2]
    assert "expected a new file" in joulegram_spool("export", "--out", out, data, code=2)


def test_export_goes_on_over_what_it_cannot_write(data: Path) -> None:
    """A damaged record is left out; one that is no OTLP is said, and the exit code is 1."""
    damage(segment(data, 0), SEGMENT_HEADER + HEADER)
    log = WriteAheadLog(data / "spool")
    log.open()
    log.append([(TRACES, 5 * SECOND_NS, b"\xff\xff"), (TRACES, 5 * SECOND_NS, spans("last"))])
    log.close()
    said = joulegram_spool("export", data, code=1)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    names = [line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] for line in lines if "resourceSpans" in line]
    assert names == ["two", "last"]
    assert "expected a opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest" in said


@pytest.mark.parametrize("command", ["inspect", "repair", "export"])
@pytest.mark.parametrize("where", ["missing", "empty"])
def test_no_spool_there_is_usage(tmp_path: Path, command: str, where: str) -> None:
    """Exit 2 with the directory as it was typed."""
    (tmp_path / "empty").mkdir()
    said = joulegram_spool(command, tmp_path / where, code=2)
    assert f"DIRECTORY: got '{tmp_path / where}', expected a spool" in said
    assert not (tmp_path / "missing").exists()


def test_a_signal_that_is_none_is_quoted(data: Path) -> None:
    """Exit 2 with what may stand there."""
    said = joulegram_spool("export", "--signal", "spans", data, code=2)
    assert "--signal: got 'spans', expected traces, metrics, logs or profiles" in said


def test_a_spool_of_a_later_version_is_left_alone(data: Path) -> None:
    """Every command says which version it got; nothing is written."""
    path = segment(data, 1)
    path.write_bytes(segment_header(int(path.stem), 7, version=3) + b"x" * 50)
    before = contents(data)
    for command in ("inspect", "repair", "export"):
        assert "expected format version 1 or 2, got 3" in joulegram_spool(command, data, code=1)
    assert contents(data) == before


def test_the_commands_import_late() -> None:
    """`--help` does not pay for gRPC, protobuf or pydantic."""
    code = (
        "import sys, joulegram_service.cli_spool; "
        "print([name for name in ('grpc', 'google.protobuf', 'pydantic', 'orjson') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "sync": ({"sync": "sometimes"}, "'always', 'interval' or 'none'"),
    "interval too short": ({"sync_interval": "1ms"}, "a duration from 10ms to 60s"),
    "interval without unit": ({"sync_interval": 1}, "a duration with a unit"),
    "cap too small": ({"max_bytes": "64MiB"}, "a size of 128MiB at least"),
    "cap without unit": ({"max_bytes": 1 << 30}, "a size with a unit"),
    "policy": ({"policy": "drop_newest"}, "'refuse' or 'drop_oldest'"),
    "unknown": ({"max_size": "1GiB"}, "Unexpected keyword argument"),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_wrong_key_says_what_was_expected(name: str) -> None:
    """Each fault of the `spool` section in the words that the user is shown."""
    raw, expected = SECTIONS[name]
    with pytest.raises(ValidationError) as caught:
        validated(SpoolConfig, raw)
    assert expected in str(caught.value)


def test_the_defaults_are_those_of_the_spool() -> None:
    """What no file says is what a Spool without arguments does; the environment's text is read too."""
    from inspect import signature

    config = SpoolConfig()
    defaults = {name: parameter.default for name, parameter in signature(Spool).parameters.items()}
    assert config.sync == defaults["sync"]
    assert config.sync_interval == defaults["sync_interval_s"] * SECOND_NS
    assert (config.max_bytes, config.min_free_bytes) == (defaults["max_bytes"], defaults["min_free_bytes"])
    assert config.policy == defaults["policy"]
    changed = {"sync": "interval", "sync_interval": "200ms", "max_bytes": "1GiB", "policy": "drop_oldest"}
    read = validated(SpoolConfig, changed)
    assert (read.sync, read.sync_interval, read.policy) == ("interval", 200_000_000, "drop_oldest")
    assert (read.max_bytes, read.min_free_bytes) == (1024**3, config.min_free_bytes)
