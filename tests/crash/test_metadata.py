"""What `receiver.metadata_keys` lists goes through a kill with its request, for every signal; no other header does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest

from receiver.conformance.hop import WITHOUT_ENERGY, one_span
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.ports import free_port
from simulators.receivers import BY_NAME, PROTOBUF, ask
from simulators.sidecar import Serve

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)


def requests(sender: str) -> dict[str, tuple[str, bytes]]:
    """Signal and bytes by a text that the bytes hold: spans that are joined and that are not, and the other signals."""
    metrics, logs, profiles = ExportMetricsServiceRequest(), ExportLogsServiceRequest(), ExportProfilesServiceRequest()
    metrics.resource_metrics.add(schema_url=f"{sender}-metrics").scope_metrics.add()
    logs.resource_logs.add(schema_url=f"{sender}-logs").scope_logs.add()
    profiles.resource_profiles.add(schema_url=f"{sender}-profiles").scope_profiles.add()
    return {
        f"etl.{sender}": ("traces", one_span(f"etl.{sender}")),
        f"{sender}-other": ("traces", one_span(f"{sender}-other")),
        f"{sender}-metrics": ("metrics", metrics.SerializeToString()),
        f"{sender}-logs": ("logs", logs.SerializeToString()),
        f"{sender}-profiles": ("profiles", profiles.SerializeToString()),
    }


def test_a_listed_header_arrives_with_its_request_after_a_kill(tmp_path: Path) -> None:
    """Taken while the upstream is down, killed, started again: each request has the tenant it came with (issue 4)."""
    port = free_port()
    config = tmp_path / "joulegram.yaml"
    config.write_text(WITHOUT_ENERGY + "receiver: {metadata_keys: [x-tenant]}\n")
    flags = (f"--config={config}", f"--upstream=grpc://127.0.0.1:{port}")
    sent: dict[str, str] = {}
    with Serve(tmp_path, *flags, name="killed") as serve, grpc.insecure_channel(serve.wait_ready().target) as channel:
        http_port = int(serve.http_url.rpartition(":")[2])
        for name, (signal, body) in requests("by-grpc").items():
            sent[name] = f"tenant of {name}"
            call: Any = channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
            call(body, timeout=20, metadata=[("x-tenant", sent[name]), ("x-other", "stays")])
        for name, (signal, body) in requests("by-http").items():
            sent[name] = f"tenant of {name}"
            headers = {"content-type": PROTOBUF, "x-tenant": sent[name], "x-other": "stays"}
            assert ask(http_port, "POST", BY_NAME[signal].path, body, headers).status == 200
        serve.kill()
    with OtlpServer(port) as upstream, Serve(tmp_path, *flags, name="again") as serve:
        serve.wait_ready()
        upstream.wait_for(lambda server: len(server.taken) >= len(sent))
        assert serve.stop() == 0, serve.said
    arrived = list(zip(upstream.taken, upstream.headers, strict=True))
    for name, tenant in sent.items():
        found = [headers for (_, body), headers in arrived if name.encode() in body]
        assert [headers.get("x-tenant") for headers in found] == [tenant], name
        assert not any("x-other" in headers for headers in found)
