"""A sidecar as its neighbours see it: requests go in on a wire, and what left on the other one is looked at."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.rpc import status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from simulators.decoded import spans
from simulators.otlp_server import OtlpServer
from simulators.protobuf import field
from simulators.receivers import BY_NAME, PROTOBUF, Answer, Body, ask
from simulators.sidecar import Serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 20.0
NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
WITHOUT_ENERGY = "agent: {source: none}\nenergy: {max_wait: 100ms}\n"
"""Of a configuration: spans are joined, and never wait long for what they are joined with."""

_HTTP_PORT = re.compile(r"OTLP/HTTP on \S+, port (\d+)")


class Hop:
    """A sidecar that is ready, between its clients and an upstream.

    Args:
        serve: the sidecar.
        upstream: where it forwards to over gRPC.
    """

    def __init__(self, serve: Serve, upstream: OtlpServer) -> None:
        self.serve = serve
        self.upstream = upstream
        self.target = serve.target
        self.http_port = int(serve.wait_for(_HTTP_PORT)[1])
        self.channel = grpc.insecure_channel(self.target, NO_LIMIT)

    def export(self, request: bytes, signal: str = "traces", **options: Any) -> bytes:
        """The bytes that a gRPC call is answered with; grpc.RpcError where it is refused."""
        call = self.channel.unary_unary(f"/{BY_NAME[signal].service}/Export", None, None)
        response: bytes = call(request, timeout=TIMEOUT_S, **options)
        return response

    def post(self, body: Body, signal: str = "traces", kind: str = PROTOBUF, **headers: str) -> Answer:
        """One POST; ``content_encoding="gzip"`` is a header."""
        named = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", BY_NAME[signal].path, body, named)

    def ask(self, method: str, path: str, body: Body = b"", headers: dict[str, str] | None = None) -> Answer:
        """One HTTP request of any kind."""
        return ask(self.http_port, method, path, body, headers or {})

    def forwards(self, request: bytes, signal: str = "traces", times: int = 1) -> None:
        """Block until these very bytes went upstream so often; requests that leave together stand behind each other."""

        def came(server: OtlpServer) -> bool:
            return sum(body.count(request) for kind, body in server.taken if kind == signal) >= times

        self.upstream.wait_for(came, TIMEOUT_S)

    def forwarded(self, name: str) -> Any:
        """The first span of this name that went upstream, once it has."""
        self.upstream.wait_for(lambda server: any(span.name == name for span in spans(server)), TIMEOUT_S)
        return next(span for span in spans(self.upstream) if span.name == name)


_Kind = TypeVar("_Kind", bound=Hop)


@contextmanager
def running(folder: Path, kind: type[_Kind]) -> Iterator[_Kind]:
    """`joulegram serve` as it is delivered, forwarding over gRPC, on a node that measures nothing and does not wait."""
    config = folder / "joulegram.yaml"
    config.write_text(WITHOUT_ENERGY)
    with (
        OtlpServer() as upstream,
        Serve(folder, f"--config={config}", f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve,
    ):
        hop = kind(serve.wait_ready(), upstream)
        yield hop
        hop.channel.close()


def one_span(name: str, number: int = 1, **fields: Any) -> bytes:
    """A trace request of one span that has ended long ago; its ids are made of its name, so that no two share one."""
    made = ExportTraceServiceRequest()
    span = (
        made.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=(name.encode() * 16)[:16],
            span_id=number.to_bytes(8, "big"),
            name=name,
            start_time_unix_nano=10,
            end_time_unix_nano=20,
        )
    )
    for key, value in fields.items():
        setattr(span, key, value)
    encoded: bytes = made.SerializeToString()
    return encoded


def with_fields(request: bytes, more: bytes) -> bytes:
    """The request with these encoded fields behind those of its only span."""
    message = ExportTraceServiceRequest.FromString(request)
    content = message.resource_spans[0].scope_spans[0].spans[0].SerializeToString()
    return field(1, field(2, field(2, content + more)))


def status_of(refusal: grpc.RpcError) -> Any:
    """The google.rpc.Status that came with a refusal; None where none did."""
    found: Any = refusal
    details = dict(found.trailing_metadata() or ()).get("grpc-status-details-bin")
    return None if details is None else status_pb2.Status.FromString(details)
