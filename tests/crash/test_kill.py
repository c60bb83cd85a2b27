"""kill -9 of the sidecar: what was acknowledged is recorded once, with the figures it would have had without it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_pipeline.wal_segment import list_segments, record_header
from joulegram_processor.machine import Machine, Settings
from joulegram_service.carbon_model import build_carbon
from joulegram_service.config import load_config
from joulegram_sink.ledger_format import run_line
from simulators.decoded import spans
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.powercap import PowercapTree
from simulators.sidecar import (
    JOULEGRAM,
    Agent,
    PowerTrace,
    Serve,
    archived_ticks,
    ledger_lines,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from joulegram_processor.machine import Outputs

pytestmark = pytest.mark.timeout(300)

KILLS = 21
REGION = "SPP_KS"
EXPORT = f"/{SERVICES['traces']}/Export"
RUN_ID = "killed-20260102T030405Z"

Key = tuple[str, str]
"""Trace id and span id, in hex."""


def request(trace_id: bytes, names: list[str], chance: random.Random, pid: int, *, root: bool) -> bytes:
    """Spans of the last half second, of one trace; the first one is its root where there is one."""
    message = ExportTraceServiceRequest()
    part = message.resource_spans.add()
    part.resource.attributes.add(key="process.pid").value.int_value = pid
    scope = part.scope_spans.add()
    now = time.time_ns()
    for number, name in enumerate(names):
        is_root = root and number == 0
        end = now - chance.randrange(1_000_000)
        scope.spans.add(
            trace_id=trace_id,
            span_id=trace_id[:8] if is_root else chance.randbytes(8),
            parent_span_id=b"" if is_root else trace_id[:8],
            name=name,
            start_time_unix_nano=end - chance.randrange(500_000_000),
            end_time_unix_nano=end,
        )
    return bytes(message.SerializeToString())


def keys_of(body: bytes) -> list[Key]:
    message = ExportTraceServiceRequest.FromString(body)
    return [
        (span.trace_id.hex(), span.span_id.hex())
        for part in message.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]


class Client:
    """A client that never stops sending and repeats, byte for byte, what was not acknowledged; a thread.

    Args:
        target: of the sidecar, whichever process that is at the time.
        seed: of what it sends.
        pid: the process its spans name.
    """

    def __init__(self, target: str, seed: int, pid: int) -> None:
        self._chance = random.Random(seed)
        self._target = target
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client {seed}", daemon=True)
        self.acknowledged: list[Key] = []
        self.cut_off = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Have the last request acknowledged and end."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(self._target, options=options) as channel:
            call = channel.unary_unary(EXPORT, None, None)
            while not self._stop.wait(self._chance.uniform(0.005, 0.05)):
                # Children first and in requests of their own, so that kills fall between the parts of a trace.
                trace_id = self._chance.randbytes(16)
                for part in range(self._chance.randrange(3)):
                    names = [f"etl.node.n{part}"] * self._chance.randrange(1, 12) + ["SELECT"]
                    self._send(call, request(trace_id, names, self._chance, self._pid, root=False))
                self._send(call, request(trace_id, ["etl.job", "etl.step.x"], self._chance, self._pid, root=True))

    def _send(self, call: Any, body: bytes) -> None:
        # Now and then it does not wait for the answer: what was taken comes again, as when a kill ate the answer.
        timeout_s = 0.002 if self._chance.random() < 0.1 else 5.0
        while True:
            try:
                call(body, timeout=timeout_s, wait_for_ready=True)
            except grpc.RpcError as error:
                self.cut_off += error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
                timeout_s = 5.0
            else:
                self.acknowledged += keys_of(body)
                return


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Agent]:
    """A node that spends energy all the time, and its agent in a process of its own."""
    tree = PowercapTree(tmp_path / "sys", packages=2)
    with Agent(tmp_path, tree) as agent, PowerTrace(tree, seed=3):
        agent.wait_ready()
        yield agent


def replay(spool: Path, metrics: Metrics) -> tuple[list[dict[str, Any]], int]:
    """Every ledger line a machine without kills makes of a log, and where that log ends."""
    config = load_config(None, {("carbon", "region"): REGION}, {})
    carbon, identity = build_carbon(config)
    log = WriteAheadLog(spool)
    log.open()
    try:
        machine = Machine(Settings(), carbon, identity, log, metrics)
        lines: list[dict[str, Any]] = []
        while records := log.read(machine.position, 1 << 20):
            for record in records:
                for outputs in machine.feed(record):
                    lines += lines_of(outputs)
        return lines, machine.position
    finally:
        log.close()


def lines_of(outputs: Outputs) -> list[dict[str, Any]]:
    made = [json.loads("".join(line[2:])) for line in outputs.lines]
    return [*made, *(dict(record) for record in outputs.records), *(run_line(run) for run in outputs.runs)]


def unchained(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in {"seq", "prev_hash"}}


def verified(data: Path) -> str:
    """What `joulegram ledger verify` says of a ledger it finds nothing wrong with."""
    command = [*JOULEGRAM, "ledger", "verify", str(data / "ledger" / "telemetry")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_acknowledged_is_lost_or_doubled_by_kills(tmp_path: Path, node: Agent) -> None:
    """Each acknowledged span stands in the ledger once, as if nothing had been killed, and was forwarded (S3-12)."""
    chance = random.Random(21)
    port = free_port()
    with OtlpServer() as upstream:
        flags = (f"--agent-socket={node.socket}", f"--region={REGION}", f"--grpc-endpoint=127.0.0.1:{port}")
        to = f"--upstream=grpc://127.0.0.1:{upstream.port}"
        target = f"127.0.0.1:{port}"
        with Client(target, 1, os.getpid()) as first, Client(target, 2, 0) as second:
            for kill in range(KILLS):
                with Serve(tmp_path, *flags, to, name=f"serve-{kill:02}") as serve:
                    if kill % 4 == 3:  # while it starts: it replays, heals or opens its port
                        time.sleep(chance.uniform(0.3, 1.0))
                    else:
                        serve.wait_ready()
                        time.sleep(chance.uniform(0.0, 1.2))
            with Serve(tmp_path, *flags, to, name="serve-last") as serve:
                serve.wait_ready()
                first.finish()
                second.finish()
                settled = time.time_ns()
                wait_until(lambda: archived_ticks(serve.data)[-1].end_ns > settled, "a last tick", log=serve.log)
                # The stop's snapshot lets go of the log, so it is kept aside before.
                spool = Path(shutil.copytree(serve.data / "spool", tmp_path / "spool"))
                assert serve.stop() == 0
    acknowledged = Counter(first.acknowledged + second.acknowledged)
    taken = {(span.trace_id.hex(), span.span_id.hex()): span.name for span in spans(upstream)}
    lines = ledger_lines(serve.data)
    recorded = Counter((line["trace_id"], line["span_id"]) for line in lines if line["kind"] == "span")
    metrics = Metrics()
    made, end = replay(spool, metrics)

    assert first.cut_off + second.cut_off >= 3, "the kills hit requests"
    assert metrics.registry.get_sample_value("joulegram_processor_duplicate_spans_total"), "the log holds some twice"
    assert len(acknowledged) > 500
    assert acknowledged.keys() - taken.keys() == set(), "forwarded at least once"
    selected = {key for key in acknowledged if taken[key].startswith("etl.")}
    assert selected - recorded.keys() == set(), "none lost"
    assert recorded.keys() - selected == set(), "none that nobody has"
    assert set(recorded.values()) == {1}, "none twice"
    assert [unchained(line) for line in lines[1:] if line["pos"][0] < end] == made
    assert len(made) > len(selected)
    assert {line["energy"]["scope"] for line in made if line["kind"] == "span"} == {"host", "process"}
    assert "problem" not in verified(serve.data)


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
