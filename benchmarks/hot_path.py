"""Spans per CPU-second of a running sidecar over gRPC, its memory, and how long an acknowledgement takes.

Starts `joulegram serve` on a directory of its own, with an OTLP/gRPC sink as upstream, drives it with requests of 512
spans and of 1 span, and waits until every span is joined, in the ledger and forwarded. CPU is the sidecar's own, user
and system, from the first request until then. Each 512-span request is one trace: a root and its children, which
overlap; a span has 11 attributes and about 600 bytes.

Beside it, in the same run, stands the floor of the transport: a bare grpcio handler that merges five attributes made
before, serialises and forwards, and neither keeps nor joins anything. Machines differ and are shared; the ratio counts.

    python benchmarks/hot_path.py
    python benchmarks/hot_path.py --seconds 20 --no-upstream
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent import futures
from dataclasses import dataclass
from multiprocessing import Process, Queue
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

if TYPE_CHECKING:
    from collections.abc import Callable

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Result:
    """One load's figures."""

    system: str
    spans_per_request: int
    in_flight: int
    spans: int
    wall_s: float
    cpu_s: float
    rss_mib: float
    peak_mib: float
    p50_ms: float
    p99_ms: float

    def row(self) -> str:
        return (
            f"{self.system:<10} {self.spans_per_request:>5} {self.in_flight:>9} {self.spans:>9} "
            f"{self.spans / self.wall_s:>10,.0f} {self.spans / self.cpu_s:>12,.0f} {self.p50_ms:>8.1f} "
            f"{self.p99_ms:>8.1f} {self.rss_mib:>8.0f} {self.peak_mib:>8.0f}"
        )


HEADER = (
    f"{'system':<10} {'spans':>5} {'in flight':>9} {'sent':>9} {'spans/s':>10} {'spans/CPU-s':>12} {'p50 ms':>8} "
    f"{'p99 ms':>8} {'RSS MiB':>8} {'peak MiB':>8}"
)


def make_template(spans: int) -> ExportTraceServiceRequest:
    """A request whose ids and times are filled in before each send."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key, value in (("service.name", "bench"), ("kfm.run_id", "bench-run-0001"), ("kfm.component", "etl")):
        item = resource_spans.resource.attributes.add()
        item.key, item.value.string_value = key, value
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "bench"
    for index in range(spans):
        span = scope_spans.spans.add()
        span.name = f"etl.node.step_{index % 16:02d}"
        span.kind = Span.SPAN_KIND_INTERNAL
        for number in range(11):
            item = span.attributes.add()
            item.key = f"bench.attribute.{number:02d}"
            item.value.string_value = f"value-{index:06d}-{number:02d}"
    return request


def fill(request: ExportTraceServiceRequest) -> bytes:
    """Fresh ids and times; the first span is the root and covers the rest."""
    now = time.time_ns()
    trace_id = os.urandom(16)
    spans = request.resource_spans[0].scope_spans[0].spans
    ids = os.urandom(8 * len(spans))
    chance = random.Random()
    for index, span in enumerate(spans):
        span.trace_id = trace_id
        span.span_id = ids[8 * index : 8 * index + 8]
        if index:
            span.parent_span_id = ids[:8]
            span.start_time_unix_nano = now - chance.randrange(20_000_000, 90_000_000)
            span.end_time_unix_nano = span.start_time_unix_nano + chance.randrange(1_000_000, 19_000_000)
        else:
            span.start_time_unix_nano = now - 100_000_000
            span.end_time_unix_nano = now
    return request.SerializeToString()


def drive(port: int, spans: int, in_flight: int, seconds: float, out: Any) -> None:
    """Send for some seconds; puts (requests acknowledged, latencies in seconds)."""
    out.put(asyncio.run(_drive(port, spans, in_flight, seconds)))


async def _drive(port: int, spans: int, in_flight: int, seconds: float) -> tuple[int, list[float]]:
    latencies: list[float] = []
    deadline = time.monotonic() + seconds
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        export: Any = channel.unary_unary(EXPORT)  # type: ignore[call-arg]
        await export(b"")

        async def worker() -> None:
            template = make_template(spans)
            while time.monotonic() < deadline:
                body = fill(template)
                start = time.perf_counter()
                await export(body)
                latencies.append(time.perf_counter() - start)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return len(latencies), latencies


def serve_raw(handle: Callable[[bytes], bytes], ports: Any) -> None:
    """Answer every method with `handle` of the request's bytes, until the process is ended."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        def service(self, handler_call_details: Any) -> Any:  # noqa: ARG002 - any method
            return grpc.unary_unary_rpc_method_handler(lambda request, _: handle(request))

    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 * 1024 * 1024)])
    server.add_generic_rpc_handlers((Handler(),))
    ports.put(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


def sink(ports: Any) -> None:
    """An OTLP/gRPC server that takes everything and looks at nothing."""
    serve_raw(lambda _: b"", ports)


def bare(sink_port: int, ports: Any) -> None:
    """The floor: what grpcio and protobuf cost by themselves."""
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{sink_port}")
    export = channel.unary_unary(EXPORT)
    made = Span()
    for number in range(5):
        item = made.attributes.add()
        item.key, item.value.double_value = f"bare.attribute.{number}", 1.5
    five = made.SerializeToString()

    def handle(body: bytes) -> bytes:
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    span.MergeFromString(five)
        export(request.SerializeToString())
        return b""

    serve_raw(handle, ports)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mib(pid: int, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    return sum(float(m[1]) for m in re.finditer(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def measure(spans: int, in_flight: int, seconds: float, *, upstream: bool) -> Result:
    """One load on a fresh sidecar."""
    directory = Path(tempfile.mkdtemp(prefix="joulegram-bench-"))
    ports: Queue[Any] = Queue()
    sink_process = Process(target=sink, args=(ports,), daemon=True)
    sink_process.start()
    command = [sys.executable, "-m", "joulegram_service", "serve", "--grpc-endpoint", "127.0.0.1:0"]
    command += [
        "--http-endpoint",
        "127.0.0.1:0",
        "--metrics-endpoint",
        "127.0.0.1:0",
        "--data-dir",
        str(directory / "data"),
    ]
    command += ["--region", "SPP_KS", "--source", "model"]
    sink_port = ports.get()
    if upstream:
        command += ["--upstream", f"grpc://127.0.0.1:{sink_port}"]
    sidecar = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert sidecar.stderr is not None
        found: dict[str, int] = {}
        while len(found) < 2:
            line = sidecar.stderr.readline()
            assert line, "the sidecar did not start"
            if match := re.search(r"(gRPC|readyz) .*port (\d+)", line):
                found[match[1]] = int(match[2])
        grpc_port, metrics_port = found["gRPC"], found["readyz"]
        before = cpu_s(sidecar.pid)
        start = time.monotonic()
        out: Queue[Any] = Queue()
        client = Process(target=drive, args=(grpc_port, spans, in_flight, seconds, out), daemon=True)
        client.start()
        requests, latencies = out.get()
        wall = time.monotonic() - start
        client.join()
        sent = requests * spans
        while metric(metrics_port, "joulegram_sink_ledger_lines_total") < sent:
            time.sleep(0.1)
        while upstream and metric(metrics_port, "joulegram_sink_forward_backlog_bytes") > 0:
            time.sleep(0.1)
        used = cpu_s(sidecar.pid) - before
        latencies.sort()
        return Result(
            "joulegram",
            spans,
            in_flight,
            sent,
            wall,
            used,
            memory_mib(sidecar.pid, "VmRSS"),
            memory_mib(sidecar.pid, "VmHWM"),
            1000 * latencies[len(latencies) // 2],
            1000 * latencies[len(latencies) * 99 // 100],
        )
    finally:
        sidecar.terminate()
        sidecar.wait(30)
        sink_process.terminate()
        shutil.rmtree(directory)


def measure_bare(spans: int, in_flight: int, seconds: float) -> Result:
    """The same load on the bare handler."""
    ports: Queue[Any] = Queue()
    sink_process = Process(target=sink, args=(ports,), daemon=True)
    sink_process.start()
    server = Process(target=bare, args=(ports.get(), ports), daemon=True)
    server.start()
    port = ports.get()
    assert server.pid is not None
    before = cpu_s(server.pid)
    start = time.monotonic()
    out: Queue[Any] = Queue()
    client = Process(target=drive, args=(port, spans, in_flight, seconds, out), daemon=True)
    client.start()
    requests, latencies = out.get()
    wall = time.monotonic() - start
    client.join()
    used = cpu_s(server.pid) - before
    latencies.sort()
    result = Result(
        "bare",
        spans,
        in_flight,
        requests * spans,
        wall,
        used,
        memory_mib(server.pid, "VmRSS"),
        memory_mib(server.pid, "VmHWM"),
        1000 * latencies[len(latencies) // 2],
        1000 * latencies[len(latencies) * 99 // 100],
    )
    server.terminate()
    sink_process.terminate()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of sending, each load (default 10)")
    parser.add_argument("--no-upstream", action="store_true", help="join and record only")
    parser.add_argument("--loads", default="512x4,1x8", help="spans x in flight, comma-separated (default 512x4,1x8)")
    arguments = parser.parse_args()
    print(HEADER)
    for load in arguments.loads.split(","):
        spans, _, in_flight = load.partition("x")
        floor = measure_bare(int(spans), int(in_flight), arguments.seconds)
        print(floor.row(), flush=True)
        result = measure(int(spans), int(in_flight), arguments.seconds, upstream=not arguments.no_upstream)
        print(result.row(), flush=True)
        ratio = (result.spans / result.cpu_s) / (floor.spans / floor.cpu_s)
        print(f"{'':<10} joulegram does {ratio:.2f} of the bare handler's spans per CPU-second")


if __name__ == "__main__":
    main()
