"""kill -9 of the sidecar: what was acknowledged is recorded once, with the figures it would have had without it."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.wal import WriteAheadLog
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
    run_lines,
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
        self.repeats = 0

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
            call: Any = channel.unary_unary(EXPORT)
            while not self._stop.wait(self._chance.uniform(0.005, 0.05)):
                # Children first and in requests of their own, so that kills fall between the parts of a trace.
                trace_id = self._chance.randbytes(16)
                for part in range(self._chance.randrange(3)):
                    names = [f"etl.node.n{part}"] * self._chance.randrange(1, 12) + ["SELECT"]
                    self._send(call, request(trace_id, names, self._chance, self._pid, root=False))
                self._send(call, request(trace_id, ["etl.job", "etl.step.x"], self._chance, self._pid, root=True))

    def _send(self, call: Any, body: bytes) -> None:
        while True:
            try:
                call(body, timeout=5, wait_for_ready=True)
            except grpc.RpcError:
                self.repeats += 1
            else:
                self.acknowledged += keys_of(body)
                return


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[PowercapTree, Agent]]:
    """A node that spends energy all the time, and its agent in a process of its own."""
    tree = PowercapTree(tmp_path / "sys", packages=2)
    with Agent(tmp_path, tree) as agent, PowerTrace(tree, seed=3):
        agent.wait_ready()
        yield tree, agent


def replay(spool: Path) -> tuple[list[dict[str, Any]], int]:
    """Every ledger line a machine without kills makes of a log, and where that log ends."""
    config = load_config(None, {("carbon", "region"): REGION}, {})
    carbon, identity = build_carbon(config)
    log = WriteAheadLog(spool)
    log.open()
    try:
        machine = Machine(Settings(), carbon, identity, log, Metrics())
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


def test_nothing_acknowledged_is_lost_or_doubled_by_kills(
    tmp_path: Path, node: tuple[PowercapTree, Agent], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each acknowledged span stands in the ledger once, as if nothing had been killed, and was forwarded (S3-12)."""
    _, agent = node
    chance = random.Random(21)
    port = free_port()
    with OtlpServer() as upstream:
        flags = (f"--agent-socket={agent.socket}", f"--region={REGION}", f"--grpc-endpoint=127.0.0.1:{port}")
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
                acknowledged = [*first.acknowledged, *second.acknowledged]
                wanted = set(acknowledged)
                settled = time.time_ns()
                wait_until(lambda: archived_ticks(serve.data)[-1].end_ns > settled, "a last tick", log=serve.log)
                upstream.wait_for(lambda server: wanted <= forwarded(server))
                # The stop's snapshot lets go of the log, so it is kept aside before.
                spool = Path(shutil.copytree(serve.data / "spool", tmp_path / "spool"))
                assert serve.stop() == 0
    lines = ledger_lines(serve.data)
    made, end = replay(spool)
    recorded = [line for line in lines if line["kind"] != "genesis" and line["pos"][0] < end]
    times = Counter((line["trace_id"], line["span_id"]) for line in lines if line["kind"] == "span")
    selected = {key for key in wanted if key not in passed_through(upstream)}

    assert first.repeats + second.repeats >= KILLS // 2, "the kills hit requests"
    assert len(acknowledged) == len(wanted) > 500
    assert selected <= times.keys()
    assert {key: count for key, count in times.items() if count != 1} == {}
    assert wanted <= forwarded(upstream)
    assert [unchained(line) for line in recorded] == made
    assert len(recorded) >= len(selected)
    assert "problem" not in verified(serve.data)
    with capsys.disabled():
        print(f"\n{len(wanted)} acknowledged, {first.repeats + second.repeats} repeats, {len(lines)} lines")
    ticks = archived_ticks(serve.data)
    overlaps = [
        (a.start_ns, a.end_ns, b.start_ns, b.end_ns)
        for a, b in zip(ticks, ticks[1:], strict=False)
        if b.start_ns < a.end_ns
    ]
    with capsys.disabled():
        print(len(ticks), "ticks", len(overlaps), "overlaps", {l["energy"].get("scope") for l in lines if l["kind"]=="span"})


def forwarded(server: OtlpServer) -> set[Key]:
    return {(span.trace_id.hex(), span.span_id.hex()) for span in spans(server)}


def passed_through(server: OtlpServer) -> set[Key]:
    return {(span.trace_id.hex(), span.span_id.hex()) for span in spans(server) if span.name == "SELECT"}
