"""The sidecar's log has nothing of a request in it, whoever quotes the request and whatever goes wrong with it.

Every field of what is sent holds `MARK`, but for the run's id, which the log names; upstreams answer with the words of
the request. What was refused is told with its words in ``deadletter/``, which shows that they came.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
from contextlib import ExitStack
from threading import Thread
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from google.rpc import status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from receiver.conformance.hop import WITHOUT_ENERGY
from simulators.otlp_server import SERVICES, OtlpHttpServer, OtlpServer
from simulators.receivers import BY_NAME, JSON, PROTOBUF, ask
from simulators.sidecar import Serve, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.timeout(120)

MARK = "zqx"
TRACE_ID, SPAN_ID = b"zqx-the-trace-id", b"zqx-span"
RUN = "nightly-20260102"


def trace_request(number: int, stac_item: str) -> bytes:
    """A trace of a span to join and one to pass on; everything in it is marked."""
    made = ExportTraceServiceRequest()
    part = made.resource_spans.add(schema_url=f"https://{MARK}.example")
    pairs = {"kfm.run_id": f"{RUN}-{number}", f"{MARK}-key": f"{MARK}-value"}
    for key, value in pairs.items():
        part.resource.attributes.add(key=key).value.string_value = value
    scope = part.scope_spans.add()
    scope.scope.name = f"{MARK}-scope"
    for index, name in enumerate((f"etl.{MARK}", f"{MARK}-name")):
        span = scope.spans.add(
            trace_id=TRACE_ID[:-1] + bytes([number]),
            span_id=SPAN_ID[:-1] + bytes([index + 1]),
            parent_span_id=SPAN_ID[:-1] + b"\x01" if index else b"",
            trace_state=f"{MARK}=state",
            name=name,
            start_time_unix_nano=10,
            end_time_unix_nano=20,
        )
        span.attributes.add(key="kfm.stac_item").value.string_value = stac_item
        span.attributes.add(key=f"{MARK}-key").value.bytes_value = MARK.encode()
        span.events.add(name=f"{MARK}-event")
        span.links.add(trace_id=TRACE_ID, span_id=SPAN_ID)
        span.status.message = f"{MARK}-status"
    return bytes(made.SerializeToString())


def invalid_spans() -> bytes:
    """What OTLP forbids and a receiver takes with a warning."""
    made = ExportTraceServiceRequest()
    made.resource_spans.add().scope_spans.add().spans.add(name=f"{MARK}-odd", trace_id=MARK.encode())
    return bytes(made.SerializeToString())


def other_requests() -> dict[str, bytes]:
    """A request of each other signal."""
    logs, metrics, profiles = ExportLogsServiceRequest(), ExportMetricsServiceRequest(), ExportProfilesServiceRequest()
    record = logs.resource_logs.add().scope_logs.add().log_records.add(severity_text=f"{MARK}-severity")
    record.body.string_value = f"{MARK}-body"
    metric = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name=f"{MARK}-metric", unit=MARK)
    metric.gauge.data_points.add(as_int=1)
    profiles.resource_profiles.add(schema_url=f"{MARK}-schema")
    messages = {"logs": logs, "metrics": metrics, "profiles": profiles}
    return {name: bytes(message.SerializeToString()) for name, message in messages.items()}


def words(request: bytes) -> str:
    """What an upstream says that quotes the data."""
    return f"cannot take {request[:400].decode('latin-1')!r}"


def partial(request: bytes) -> bytes:
    """A success that quotes what was left out, of traces; other signals have the same fields."""
    left_out = ExportTracePartialSuccess(rejected_spans=1, error_message=words(request))
    return bytes(ExportTraceServiceResponse(partial_success=left_out).SerializeToString())


def status(request: bytes) -> bytes:
    return bytes(status_pb2.Status(code=14, message=words(request)).SerializeToString())


@contextlib.contextmanager
def no_http() -> Iterator[int]:
    """The port of a server whose answer is the body that came, and no HTTP."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while MARK.encode() not in data:
                more = self.request.recv(65536)
                if not more:
                    return
                data += more
            self.request.sendall(data[data.index(MARK.encode()) :] + b"\r\n\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def upstreams(stack: ExitStack) -> dict[str, str]:
    """Endpoints of destinations that quote what they were sent, by what they do with it."""
    away, invalid = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT
    over_grpc = {
        "grpc-retry": OtlpServer(judge=lambda _, request: (away, words(request))),
        "grpc-refuse": OtlpServer(judge=lambda _, request: (invalid, words(request))),
        "grpc-partial": OtlpServer(judge=lambda _, request: partial(request)),
    }
    over_http = {
        "http-retry": OtlpHttpServer(judge=lambda _, request: (503, {}, status(request))),
        "http-refuse": OtlpHttpServer(judge=lambda _, request: (422, {}, request)),
        "http-partial": OtlpHttpServer(judge=lambda _, request: (200, {}, partial(request))),
    }
    endpoints = {"no-http": f"http://127.0.0.1:{stack.enter_context(no_http())}"}
    for name, server in over_grpc.items():
        endpoints[name] = f"grpc://127.0.0.1:{stack.enter_context(server).port}"
    for name, page in over_http.items():
        endpoints[name] = f"http://127.0.0.1:{stack.enter_context(page).port}"
    return endpoints


def send_all(serve: Serve, requests: list[tuple[str, bytes]]) -> None:
    """Every request over gRPC and HTTP, in both encodings, with a tenant; and what the receiver refuses."""
    port = int(serve.http_url.rpartition(":")[2])
    tenant = {"x-tenant": f"{MARK}-tenant"}
    with grpc.insecure_channel(serve.target) as channel:
        for signal, request in requests:
            call: Any = channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
            call(request, timeout=20, metadata=list(tenant.items()))
            path = BY_NAME[signal].path
            assert ask(port, "POST", path, request, {"content-type": PROTOBUF, **tenant}).status == 200
            if signal == "traces":
                spans = [{"name": f"{MARK}-json", "attributes": [{"key": MARK, "value": {"stringValue": MARK}}]}]
                document = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()
                assert ask(port, "POST", path, document, {"content-type": JSON, **tenant}).status == 200
            for wrong in (f'{{"{MARK}": '.encode(), f'{{"resourceSpans": "{MARK}"}}'.encode()):
                ask(port, "POST", path, wrong, {"content-type": JSON, **tenant})
            ask(port, "POST", path, MARK.encode(), {"content-type": f"text/{MARK}", "content-encoding": MARK})
            ask(port, "POST", path, request, {"content-type": PROTOBUF, "x-tenant": f"{MARK}\xe9"})
            with pytest.raises(grpc.RpcError):
                call(MARK.encode(), timeout=20)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{MARK}/Export", None, None)(b"", timeout=20)
        ask(port, "POST", f"/v1/{MARK}", b"", {})


def test_the_log_has_nothing_of_a_request(tmp_path: Path) -> None:
    """Issue 4, own telemetry: no payload content, though upstreams quote it and documents fail for it."""
    broken = tmp_path / f"{MARK}-item.json"
    broken.write_text(json.dumps({"type": MARK, "properties": {}, "assets": {}}))
    items = (f"{MARK}-missing.json", broken.name)
    requests = [("traces", trace_request(number + 1, item)) for number, item in enumerate(items)]
    requests += [("traces", invalid_spans()), *other_requests().items()]
    with ExitStack() as stack:
        destinations = {
            name: {
                "endpoint": endpoint,
                "retry_on_failure": {"initial_interval": "50ms", "max_interval": "200ms"},
                "sending_queue": {"batch": {"flush_timeout": "0ms"}},
            }
            for name, endpoint in upstreams(stack).items()
        }
        config = yaml.safe_load(WITHOUT_ENERGY) | {
            "receiver": {"metadata_keys": ["x-tenant"]},
            "telemetry": {"logs": {"level": "debug"}},
            "upstream": {"destinations": destinations},
            "run": {"idle_timeout": "100ms"},
            "shutdown": {"drain_timeout": "200ms"},
        }
        file = tmp_path / "joulegram.yaml"
        file.write_text(yaml.safe_dump(config))
        with Serve(tmp_path, f"--config={file}") as serve:
            serve.wait_ready()
            send_all(serve, requests)
            told = {
                *(f"destination '{name}' does not take data" for name in ("grpc-retry", "http-retry", "no-http")),
                *(f"destination '{name}' did not take a batch" for name in ("grpc-refuse", "http-refuse")),
                *(f"run {RUN}-{number + 1}: STAC Item: " for number in range(len(items))),
            }
            wait_until(lambda: all(each in serve.said for each in told), "each failure is told", log=serve.log)
            kind = 'joulegram_sink_forward_failures_total{{destination="{}",kind="partial"}}'
            counted = {kind.format(name) for name in ("grpc-partial", "http-partial")}
            wait_until(lambda: all(each in serve.get("/metrics")[1] for each in counted), "partial successes")
            serve.stop()
        reasons = [json.loads(path.read_bytes()) for path in (serve.data / "deadletter").glob("*.json")]
    assert {each["destination"] for each in reasons} == {"grpc-refuse", "http-refuse"}
    assert all(MARK in each["reason"] for each in reasons), "what is quoted stands beside the dead letter"
    assert "INVALID_ARGUMENT" in serve.said
    assert "HTTP 503 Service Unavailable" in serve.said
    said = serve.said.lower()
    for secret in (MARK, TRACE_ID[:-1].hex(), SPAN_ID[:-1].hex(), TRACE_ID[:3].hex()):
        assert [line for line in said.splitlines() if secret in line] == []
