"""Clients that are no SDK of a job: grpcurl and curl; and the Python exporters over HTTP."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peers.through import assert_joined_only, endpoint, sidecar
from simulators.decoded import attributes, spans
from simulators.otlp_server import OtlpServer
from simulators.sidecar import clean_environment

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]  # the first test builds what all use

SEND = Path(__file__).parent / "python" / "send.py"
RUN_ID = "peer-python-20260102T030405Z"
NODES = 300
HEALTH = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { enum Status { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; } Status status = 1; }
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"""
"""grpc.health.v1 as far as a probe asks it."""


@pytest.mark.parametrize(
    "service", ["", "opentelemetry.proto.collector.trace.v1.TraceService"], ids=["server", "traces"]
)
def test_grpcurl_finds_the_otlp_port_healthy(service: str, grpcurl: Path, tmp_path: Path) -> None:
    """grpc.health.v1 answers SERVING on the port that takes OTLP, as a Kubernetes probe asks for it."""
    (tmp_path / "health.proto").write_text(HEALTH)
    with OtlpServer() as sink, sidecar(tmp_path, sink.port) as serve:
        ask = [
            "-plaintext",
            "-max-time=10",
            "-import-path=.",
            "-proto=health.proto",
            f"-d={json.dumps({'service': service})}",
        ]
        target = serve.wait_ready().target
        done = subprocess.run(
            [grpcurl, *ask, target, "grpc.health.v1.Health/Check"], cwd=tmp_path, capture_output=True, text=True
        )

        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize(
    ("protocol", "compression"),
    [
        ("grpc", "gzip"),
        ("http/protobuf", "none"),
        ("http/protobuf", "gzip"),
        ("http/protobuf", "deflate"),
        ("http/json", "none"),
        ("http/json", "gzip"),
    ],
    ids=lambda value: value.replace("/", "-"),
)
def test_python_exporters(protocol: str, compression: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Stock Python over each transport and compression: every span once, its values as they were (H2, H3, H9)."""
    python = request.getfixturevalue("json_python") if protocol == "http/json" else sys.executable
    with OtlpServer() as sink, sidecar(tmp_path, sink.port) as serve:
        url = endpoint(serve.wait_ready(), protocol)
        done = subprocess.run(
            [python, SEND, protocol, compression, str(NODES)],
            env=clean_environment(OTEL_EXPORTER_OTLP_ENDPOINT=url, KFM_RUN_ID=RUN_ID),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        sink.wait_for(lambda sink: len(spans(sink)) > 2 * NODES)
        assert serve.stop() == 0, serve.said

        taken = spans(sink)
        assert Counter(span.name for span in taken) == {"etl.job": 1, "etl.node.x": NODES, "GET /": NODES}
        (job,) = [span for span in taken if span.name == "etl.job"]
        nodes = [span for span in taken if span.name == "etl.node.x"]
        assert Counter(attributes(span)["peer.index"] for span in nodes) == Counter(range(NODES))
        assert {attributes(span)["peer.int"] for span in nodes} == {2**53 + 1}
        assert {(span.trace_id, span.parent_span_id) for span in nodes} == {(job.trace_id, job.span_id)}
        assert_joined_only(sink, lambda span: span.name.startswith("etl."))


def json_request(spans_: int, padding: int) -> dict[str, Any]:
    """A request in OTLP JSON: hex ids, 64-bit integers as strings, a name that nobody knows (H9)."""
    now = time.time_ns()
    pad = {"key": "peer.pad", "value": {"bytesValue": base64.b64encode(b"\x00\xff" * (padding // 2)).decode()}}
    made = [
        {
            "traceId": "0AF7651916CD43DD8448EB211C80319C",
            "spanId": f"{number + 1:016x}",
            "name": "etl.job",
            "startTimeUnixNano": str(now - 10**7),
            "endTimeUnixNano": str(now),
            "attributes": [{"key": "peer.index", "value": {"intValue": str(number)}}, pad],
            "laterField": {"of": "a newer OTLP"},
        }
        for number in range(spans_)
    ]
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "curl"}, "spans": made}]}]}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("headers", "compressed"),
    [
        ((), False),
        (("Transfer-Encoding: chunked",), False),
        (("Expect: 100-continue",), False),
        (("Content-Encoding: gzip",), True),
    ],
    ids=["length", "chunked", "expect", "gzip"],
)
def test_curl_sends_json(headers: tuple[str, ...], compressed: bool, tmp_path: Path) -> None:
    """OTLP JSON by curl, 2 MB: 200, an answer without `partialSuccess`, the same content upstream (A5, H9, H10)."""
    count = 500
    with OtlpServer() as sink, sidecar(tmp_path, sink.port) as serve:
        url = endpoint(serve.wait_ready(), "http/json") + "/v1/traces"
        body = json.dumps(json_request(count, padding=3000)).encode()  # now: before its start nothing was measured
        (tmp_path / "body").write_bytes(gzip.compress(body) if compressed else body)
        sent = [f"-H{header}" for header in ("Content-Type: application/json; charset=utf-8", *headers)]
        ask = ["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code} %{content_type}", "--data-binary", "@body"]
        done = subprocess.run([*ask, *sent, url], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer, _, status = done.stdout.rpartition("\n")
        assert (status, json.loads(answer)) == ("200 application/json", {})
        sink.wait_for(lambda sink: len(spans(sink)) >= count)
        assert serve.stop() == 0, serve.said

        taken = spans(sink)
        assert Counter(attributes(span)["peer.index"] for span in taken) == Counter(range(count))
        assert {span.trace_id.hex() for span in taken} == {"0af7651916cd43dd8448eb211c80319c"}
        assert {attributes(span)["peer.pad"] for span in taken} == {b"\x00\xff" * 1500}
        assert_joined_only(sink, lambda span: True)
