"""What a start finds after a kill or a stop: ticks, names, torn tails, and a directory that is in use."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import grpc
import pytest

from crash.clients import EXPORT, keys_of, request
from crash.lane import REGION, verified
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import list_segments, record_header
from simulators.decoded import spans
from simulators.otlp_server import OtlpServer
from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, PowerTrace, Serve, archived_ticks, ledger_lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


BUDGET_S = 3


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Agent]:
    """A node that spends energy all the time, and its agent in a process of its own."""
    tree = PowercapTree(tmp_path / "sys", packages=2)
    with Agent(tmp_path, tree) as agent, PowerTrace(tree, seed=3):
        agent.wait_ready()
        yield agent


def test_no_tick_is_written_twice_over_kills(tmp_path: Path, node: Agent) -> None:
    """Ticks of the archive never overlap, however often the sidecar began anew: they add up to the node's energy."""
    flags = (f"--agent-socket={node.socket}", f"--region={REGION}")
    for kill in range(3):
        with Serve(tmp_path, *flags, name=f"serve-{kill}") as serve:
            serve.wait_ready()
            wait_for_tick(serve, after_ns=time.time_ns())
    ticks = archived_ticks(serve.data)

    assert len(ticks) >= 3
    assert [(one, other) for one, other in pairwise(ticks) if other.start_ns < one.end_ns] == []


def test_a_process_named_before_a_kill_is_named_again_after_it(tmp_path: Path, node: Agent) -> None:
    """The agent forgot the processes of a killed sidecar; the next one names them, and spans keep scope `process`."""
    flags = (f"--agent-socket={node.socket}", f"--region={REGION}")
    pid = os.getpid()

    for start in ("first", "second"):
        with Serve(tmp_path, *flags, name=f"serve-{start}") as serve:
            target = serve.wait_ready().target
            begun = time.time_ns()
            send(target, request(os.urandom(16), ["etl.job"], random.Random(start), pid, root=True))
            wait_for_tick(serve, after_ns=begun, naming=pid)


def wait_for_tick(serve: Serve, after_ns: int, naming: int | None = None) -> None:
    """Until a tick that began later is archived, one in which a process is named if one is asked for."""

    def is_there() -> bool:
        ticks = [tick for tick in archived_ticks(serve.data) if tick.start_ns > after_ns]
        return any(naming is None or naming in tick.process_cpu_ns for tick in ticks)

    wait_until(is_there, f"a tick with process {naming}", 8, serve.log)


def send(target: str, body: bytes) -> None:
    """Have one request acknowledged."""
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(EXPORT, None, None)
        call(body, timeout=10, wait_for_ready=True)


def test_sigterm_records_what_came_in_the_last_second(tmp_path: Path, node: Agent) -> None:
    """A stop right after an acknowledgement exits 0 with the span recorded, its energy measured, and forwarded."""
    body = request(os.urandom(16), ["etl.job", "etl.step.x"], random.Random(5), 0, root=True)
    with OtlpServer() as upstream:
        flags = (f"--agent-socket={node.socket}", f"--region={REGION}", f"--upstream=grpc://127.0.0.1:{upstream.port}")
        with Serve(tmp_path, *flags) as serve:
            target = serve.wait_ready().target
            wait_until(lambda: len(archived_ticks(serve.data)) > 1, "two ticks", log=serve.log)
            send(target, body)

            assert serve.stop(signal.SIGTERM) == 0
        assert {(span.trace_id.hex(), span.span_id.hex()) for span in spans(upstream)} == set(keys_of(body))
    lines = ledger_lines(serve.data)
    assert {(line["trace_id"], line["span_id"]) for line in lines if line["kind"] == "span"} == set(keys_of(body))
    assert {line["energy"]["method"] for line in lines if line["kind"] == "span"} == {"measured"}
    assert [line["ended_by"] for line in lines if line["kind"] == "run"] == ["root_span"]
    verified(serve.data)


def test_sigterm_ends_within_the_budget_though_the_upstream_never_answers(tmp_path: Path, node: Agent) -> None:
    """`shutdown.drain_timeout`, and at most twice 2.5 s for the last tick: far below ten times the budget."""
    hang = threading.Event()

    def judge(signal: str, request: bytes) -> None:
        hang.wait(120)

    config = tmp_path / "joulegram.yaml"
    config.write_text(f"shutdown: {{drain_timeout: {BUDGET_S}s}}\n")
    flags = (f"--config={config}", f"--agent-socket={node.socket}", f"--region={REGION}")
    with (
        OtlpServer(judge=judge) as upstream,
        Serve(tmp_path, *flags, f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve,
    ):
        try:
            send(serve.wait_ready().target, request(os.urandom(16), ["etl.job"], random.Random(5), 0, root=True))
            begun_s = time.monotonic()
            assert serve.stop(signal.SIGTERM, timeout_s=10 * BUDGET_S) == 0
            took_s = time.monotonic() - begun_s
        finally:
            hang.set()
    assert took_s < 7 * BUDGET_S, serve.said
    assert f"the upstream did not take all within {BUDGET_S} s" in serve.said


def test_a_second_sidecar_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """It exits 1 with a message that quotes the directory and who holds it; the first one does not notice."""
    with Serve(tmp_path, "--source=none", name="first") as first:
        first.wait_ready()
        assert first.process is not None
        with Serve(tmp_path, "--source=none", name="second") as second:
            assert second.wait_end() == 1
        assert f"{str(first.data)!r} is in use by another joulegram (pid {first.process.pid})" in second.said
        assert "Traceback" not in second.said
        assert first.get("/readyz")[0] == 200
        assert first.stop() == 0


def test_a_torn_tail_is_healed_at_the_next_start(tmp_path: Path, node: Agent) -> None:
    """Half a ledger line and half a spool record are put aside, not dropped, and nothing before them is touched."""
    flags = (f"--agent-socket={node.socket}", f"--region={REGION}")
    one, other = (request(os.urandom(16), ["etl.job"], random.Random(n), 0, root=True) for n in range(2))
    with Serve(tmp_path, *flags, name="before") as serve:
        send(serve.wait_ready().target, one)
        wait_until(lambda: bool(ledger_lines(serve.data, "run")), "the run", log=serve.log)
    ledger = serve.data / "ledger" / "telemetry" / "ledger-000000.ndjson"
    half_line = b'{"carbon":{"exclusive_ug":12,"ga'
    with ledger.open("ab") as handle:
        handle.write(half_line)
    half_record = tear(serve.data / "spool", tmp_path / "copy")
    with Serve(tmp_path, *flags, name="after") as serve:
        send(serve.wait_ready().target, other)
        wait_until(lambda: len(ledger_lines(serve.data, "run")) == 2, "the second run", log=serve.log)
        assert serve.stop() == 0
    (torn_line,) = ledger.parent.glob("quarantine/*.torn")
    (torn_record,) = serve.data.glob("spool/quarantine/*.torn")

    assert torn_line.read_bytes() == half_line
    assert torn_record.read_bytes() == half_record
    spans_recorded = [(line["trace_id"], line["span_id"]) for line in ledger_lines(serve.data, "span")]
    assert spans_recorded == [*keys_of(one), *keys_of(other)]
    verified(serve.data)


def tear(spool: Path, copy: Path) -> bytes:
    """Put the first half of a record behind the last whole one of a log, as a crash in a write does; what was put."""
    shutil.copytree(spool, copy)
    log = WriteAheadLog(copy)
    log.open()
    end = log.end_lsn
    log.close()
    segment = list_segments(spool)[-1]
    half = record_header(RecordKind.TRACES, time.time_ns(), [b"x" * 100]) + b"x" * 40
    with segment.path.open("r+b") as handle:
        handle.seek(segment.offset(end))
        handle.write(half)
    return half
