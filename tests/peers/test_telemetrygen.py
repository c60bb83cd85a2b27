"""The Collector's own load generator, through the sidecar, through a Collector: nothing lost, doubled or touched."""

from __future__ import annotations

import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from peers.collector import Collector, collector_config
from peers.through import assert_joined_only, endpoint, sidecar
from simulators.decoded import attributes, resource_metrics, spans
from simulators.otlp_server import OtlpServer
from simulators.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]  # the first test builds what all use

WORKERS, TRACES, CHILDREN = 2, 150, 3
SELECT_ROOTS = "selector:\n  names: [lets-go]\n"
"""telemetrygen's roots are `lets-go`, their children `okey-dokey-N`."""


def generate(telemetrygen: Path, signal: str, target: str, protocol: str, *arguments: str) -> None:
    """Run it to its end; it fails if an export did."""
    common = ["--otlp-insecure", f"--otlp-endpoint={target.removeprefix('http://')}", "--rate=0"]
    transport = [] if protocol == "grpc" else ["--otlp-http"]
    done = subprocess.run(
        [telemetrygen, signal, *common, *transport, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_telemetrygen_through_joulegram_to_a_collector(
    protocol: str, telemetrygen: Path, otelcol: Path, tmp_path: Path
) -> None:
    """Every span of it leaves the Collector once; the selected ones, and only they, have energy and carbon."""
    (port,) = free_ports(1)
    (tmp_path / "joulegram.yaml").write_text(SELECT_ROOTS)
    with OtlpServer() as sink:
        to_sink = {"endpoint": f"127.0.0.1:{sink.port}", "tls": {"insecure": True}}
        config = collector_config({"grpc": {"endpoint": f"127.0.0.1:{port}"}}, "otlp_grpc", to_sink)
        with Collector(otelcol, tmp_path, config), sidecar(tmp_path, port, "--config=joulegram.yaml") as serve:
            target = endpoint(serve.wait_ready(), protocol)
            counts = (f"--workers={WORKERS}", f"--traces={TRACES}", f"--child-spans={CHILDREN}")
            generate(telemetrygen, "traces", target, protocol, *counts)
            sink.wait_for(lambda sink: len(spans(sink)) >= WORKERS * TRACES * (1 + CHILDREN))
            assert serve.stop() == 0, serve.said

        taken = spans(sink)
        assert Counter(span.name for span in taken) == {"lets-go": WORKERS * TRACES} | {
            f"okey-dokey-{number}": WORKERS * TRACES for number in range(CHILDREN)
        }
        assert len({(span.trace_id, span.span_id) for span in taken}) == len(taken)
        assert {attributes(span)["network.peer.address"] for span in taken} == {"1.2.3.4"}
        assert_joined_only(sink, lambda span: span.name == "lets-go")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_metrics_and_logs_of_telemetrygen_pass_through(protocol: str, telemetrygen: Path, tmp_path: Path) -> None:
    """What joulegram does not join it forwards: every data point and log record, once."""
    with OtlpServer() as sink, sidecar(tmp_path, sink.port) as serve:
        target = endpoint(serve.wait_ready(), protocol)
        generate(telemetrygen, "metrics", target, protocol, "--metrics=400", "--metric-type=Sum")
        generate(telemetrygen, "logs", target, protocol, "--logs=400", "--body=a line")
        sink.wait_for(lambda sink: points(sink) >= 400 and len(log_records(sink)) >= 400)
        assert serve.stop() == 0, serve.said

        assert points(sink) == 400
        assert [record.body.string_value for record in log_records(sink)] == ["a line"] * 400


def points(sink: OtlpServer) -> int:
    """Data points of sums taken so far."""
    return sum(
        len(metric.sum.data_points)
        for group in resource_metrics(sink)
        for scope in group.scope_metrics
        for metric in scope.metrics
    )


def log_records(sink: OtlpServer) -> list[Any]:
    """Log records taken so far."""
    bodies = [body for signal, body in sink.taken if signal == "logs"]
    return [
        record
        for body in bodies
        for group in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    ]
