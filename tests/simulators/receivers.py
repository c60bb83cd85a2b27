"""Both OTLP receivers on one spool, clients that speak to them byte by byte, and small requests to send."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_receiver.grpc_server import GrpcReceiver
from joulegram_receiver.http_server import HttpReceiver
from joulegram_receiver.intake import Intake
from joulegram_receiver.memory import MemoryKeeper, settle_memory
from joulegram_receiver.signals import SIGNALS
from joulegram_receiver.spool import Spool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from joulegram_pipeline.records import LogRecord
    from joulegram_pipeline.wal import WriteAheadLog

BY_NAME = {signal.name: signal for signal in SIGNALS}
PROTOBUF = "application/x-protobuf"
JSON = "application/json"
TIMEOUT_S = 20.0

Body = bytes | list[bytes]
"""A body whole, or the chunks of one that does not say its length."""


@dataclass(frozen=True)
class Answer:
    """What HTTP answered; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def said(self) -> Any:
        """The body as the google.rpc.Status it is, in either encoding."""
        if self.headers["content-type"] == JSON:
            return ParseDict(json.loads(self.body), status_pb2.Status())
        assert self.headers["content-type"] == PROTOBUF
        return status_pb2.Status.FromString(self.body)

    def details(self) -> list[Any]:
        """The details of that Status, unpacked."""
        kinds = (error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
        found = []
        for packed in self.said().details:
            (kind,) = [kind for kind in kinds if packed.Is(kind.DESCRIPTOR)]
            detail = kind()
            packed.Unpack(detail)
            found.append(detail)
        return found


class Receivers:
    """What runs, and clients of it."""

    def __init__(self, grpc_port: int, http_port: int, spool: Spool, metrics: Metrics, intake: Intake) -> None:
        self.grpc_port = grpc_port
        self.http_port = http_port
        self.spool = spool
        self.metrics = metrics
        self.intake = intake
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{grpc_port}", options=[("grpc.max_send_message_length", -1)]
        )

    async def export(self, request: bytes, signal: str = "traces", **options: Any) -> bytes:
        """One gRPC call with these bytes."""
        call = self.channel.unary_unary(f"/{BY_NAME[signal].service}/Export", None, None)
        response: bytes = await call(request, timeout=TIMEOUT_S, **options)
        return response

    async def post(self, body: Body, signal: str = "traces", kind: str = PROTOBUF, **headers: str) -> Answer:
        """One POST on a connection of its own; ``content_encoding="gzip"`` is a header."""
        named = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("POST", BY_NAME[signal].path, body, named)

    async def ask(self, method: str, path: str, body: Body = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request of any kind."""
        return await asyncio.to_thread(ask, self.http_port, method, path, body, headers or {})

    async def raw(self, *parts: bytes) -> bytes:
        """Send bytes on a connection of their own, and read until the other side closes it."""
        return await asyncio.to_thread(raw, self.http_port, *parts)

    def records(self) -> list[LogRecord]:
        """What is in the spool."""
        return self.spool.read(0, 1 << 30)

    def stored(self) -> list[bytes]:
        """The payloads in the spool."""
        return [record.payload for record in self.records()]

    def metric(self, name: str, **labels: str) -> float | None:
        """A counter of the receiver; None where it was never moved."""
        return self.metrics.registry.get_sample_value(f"joulegram_receiver_{name}_total", labels)


@asynccontextmanager
async def receivers(
    directory: Path,
    *,
    host: str = "127.0.0.1",
    log: WriteAheadLog | None = None,
    spool: dict[str, Any] | None = None,
    intake: dict[str, Any] | None = None,
    grpc_options: dict[str, Any] | None = None,
    http_options: dict[str, Any] | None = None,
) -> AsyncIterator[Receivers]:
    """Both receivers on free ports of a host; each dict is of keyword arguments."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        settle_memory()
        await stack.enter_async_context(MemoryKeeper())
        store = await stack.enter_async_context(Spool(directory, metrics, log=log, **(spool or {})))
        way_in = Intake(store, metrics, **(intake or {}))
        limit = {"max_recv_bytes": way_in.max_request_bytes}
        over_grpc = GrpcReceiver(f"{host}:0", way_in, metrics, **(limit | (grpc_options or {})))
        over_http = HttpReceiver(f"{host}:0", way_in, metrics, **({"grace_s": 1} | (http_options or {})))
        await stack.enter_async_context(over_grpc)
        await stack.enter_async_context(over_http)
        running = Receivers(over_grpc.port, over_http.port, store, metrics, way_in)
        try:
            yield running
        finally:
            await running.channel.close(None)


def ask(port: int, method: str, path: str, body: Body, headers: dict[str, str]) -> Answer:
    """One request over HTTP/1.1; a body given in chunks is sent in chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, iter(body) if isinstance(body, list) else body, headers)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def raw(port: int, *parts: bytes) -> bytes:
    """Send bytes, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        for part in parts:
            connection.sendall(part)
        found = bytearray()
        while data := connection.recv(1 << 16):
            found += data
        return bytes(found)


def span(**fields: Any) -> dict[str, Any]:
    """Fields of a span that OTLP is content with."""
    whole = {"trace_id": b"t" * 16, "span_id": b"s" * 8, "name": "etl.job"}
    return whole | {"start_time_unix_nano": 10, "end_time_unix_nano": 20} | fields


def traces(*spans: dict[str, Any]) -> bytes:
    """A trace request of one scope."""
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for fields in spans:
        scope.spans.add(**fields)
    return message.SerializeToString()


def requests() -> dict[str, bytes]:
    """One small request of each signal."""
    metrics, logs, profiles = (BY_NAME[name].request() for name in ("metrics", "logs", "profiles"))
    metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    logs.resource_logs.add().scope_logs.add().log_records.add(severity_text="INFO")
    profiles.resource_profiles.add().scope_profiles.add().profiles.add(profile_id=b"p" * 16)
    return {
        "traces": traces(span()),
        "metrics": metrics.SerializeToString(),
        "logs": logs.SerializeToString(),
        "profiles": profiles.SerializeToString(),
    }
