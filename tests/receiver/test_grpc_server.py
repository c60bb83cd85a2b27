"""OTLP/gRPC in: the checklist of reference/otlp.md section 1, and an acknowledgement that means on disk."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from joulegram_pipeline.errors import BusyError, ConfigError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.wal import WriteAheadLog
from joulegram_receiver.admission import Admission
from joulegram_receiver.grpc_methods import CallRefusedError
from joulegram_receiver.grpc_server import GrpcReceiver
from joulegram_receiver.http2_life import Http2Limits
from joulegram_receiver.intake import Intake
from joulegram_receiver.spool import Spool
from simulators.grpc_methods import ECHO
from simulators.held_sync import HeldSync
from simulators.otlp_server import SERVICES
from simulators.receivers import BY_NAME, requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from joulegram_receiver.http2_head import Head


class Running:
    """A receiver on its spool, and a client."""

    def __init__(self, receiver: GrpcReceiver, spool: Spool, metrics: Metrics) -> None:
        self.receiver = receiver
        self.spool = spool
        self.metrics = metrics
        self.port = receiver.port
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{receiver.port}")

    async def export(self, request: bytes, signal: str = "traces", **options: Any) -> bytes:
        call = self.channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
        response: bytes = await call(request, timeout=20, **options)
        return response

    def stored(self) -> list[tuple[RecordKind, bytes]]:
        return [(record.kind, record.payload) for record in self.spool.read(0, 1 << 26)]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"joulegram_receiver_{name}_total", labels)


@asynccontextmanager
async def running(
    directory: Path, log: WriteAheadLog | None = None, max_queued_bytes: int = 1 << 26, **options: Any
) -> AsyncIterator[Running]:
    metrics = Metrics()
    async with (
        Spool(directory, metrics, log=log, max_queued_bytes=max_queued_bytes) as spool,
        GrpcReceiver("127.0.0.1:0", spool, metrics, **options) as receiver,
    ):
        client = Running(receiver, spool, metrics)
        try:
            yield client
        finally:
            await client.channel.close(None)


def span(**fields: Any) -> dict[str, Any]:
    return {
        "trace_id": b"t" * 16,
        "span_id": b"s" * 8,
        "name": "etl.job",
        "start_time_unix_nano": 10,
        "end_time_unix_nano": 20,
    } | fields


def traces(*spans: dict[str, Any]) -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for fields in spans:
        scope.spans.add(**fields)
    return message.SerializeToString()


def metrics_request() -> bytes:
    message = ExportMetricsServiceRequest()
    message.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    return message.SerializeToString()


def logs_request() -> bytes:
    message = ExportLogsServiceRequest()
    message.resource_logs.add().scope_logs.add().log_records.add(severity_text="INFO")
    return message.SerializeToString()


def test_requests_of_every_signal_are_stored_as_they_came(tmp_path: Path) -> None:
    """A5: full success is an empty response; the bytes in the spool are those sent, unknown fields and all."""
    unknown = traces(span()) + b"\xfa\x3e\x03new"

    async def main() -> None:
        async with running(tmp_path) as client:
            assert await client.export(unknown) == b""
            assert await client.export(metrics_request(), "metrics") == b""
            assert await client.export(logs_request(), "logs") == b""
            assert client.stored() == [
                (RecordKind.TRACES, unknown),
                (RecordKind.METRICS, metrics_request()),
                (RecordKind.LOGS, logs_request()),
            ]
            assert client.metric("accepted_spans") == 1
            assert client.metric("accepted_requests", signal="logs") == 1

    asyncio.run(main())


@pytest.mark.parametrize("signal", SERVICES)
def test_an_empty_request_succeeds_and_is_not_stored(tmp_path: Path, signal: str) -> None:
    """A4: empty → success; there is nothing to keep."""

    async def main() -> None:
        async with running(tmp_path) as client:
            assert await client.export(b"", signal) == b""
            assert client.stored() == []

    asyncio.run(main())


def test_the_sdk_exporter_is_served(tmp_path: Path) -> None:
    """The real Python exporter of a job delivers its spans (S0-25, S0-26)."""

    async def main() -> None:
        async with running(tmp_path) as client:

            def job() -> bool:
                endpoint = f"http://127.0.0.1:{client.receiver.port}"
                provider = TracerProvider(resource=Resource({"service.name": "kfm-etl"}))
                provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
                tracer = provider.get_tracer("t")
                with tracer.start_as_current_span("etl.job"), tracer.start_as_current_span("etl.node.load"):
                    pass
                flushed: bool = provider.force_flush()
                provider.shutdown()
                return flushed

            assert await asyncio.to_thread(job)
            ((kind, payload),) = client.stored()
            assert kind is RecordKind.TRACES
            message = ExportTraceServiceRequest.FromString(payload)
            spans = message.resource_spans[0].scope_spans[0].spans
            assert {"etl.job", "etl.node.load"} == {found.name for found in spans}

    asyncio.run(main())


MALFORMED = {
    "a length that lies": b"\x0a\xff\x01abc",
    "an end of a group that never began": b"\x0c",
    "a truncated varint": b"\x08\xff",
    "text": b"not protobuf at all",
    "a name that is not UTF-8": traces(span(name="XXXX")).replace(b"XXXX", b"\xff\xfe\xfd\xfc"),
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_protobuf_is_an_invalid_argument(tmp_path: Path, request_bytes: bytes) -> None:
    """Undecodable bytes are refused for good, quoted, and not stored (otlp reference 1.2)."""

    async def main() -> None:
        async with running(tmp_path) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.export(request_bytes)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            details = refusal.value.details() or ""
            assert f"got {len(request_bytes)} bytes beginning {request_bytes[:16].hex()!r}" in details
            assert "expected a opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest" in details
            assert client.stored() == []
            assert client.metric("refused_requests", signal="traces", reason="malformed") == 1

    asyncio.run(main())


def test_spans_that_break_otlp_are_named_and_travel_on(tmp_path: Path) -> None:
    """A6, A11: rejected_spans stays 0, the message quotes what was got and expected, the bytes are stored."""
    request = traces(
        span(),
        span(name="late", start_time_unix_nano=30),
        span(name="anonymous", trace_id=bytes(16)),
        span(name="short", span_id=b"\x01\x02"),
    )

    async def main() -> None:
        async with running(tmp_path) as client:
            response = ExportTraceServiceResponse.FromString(await client.export(request))
            assert response.partial_success.rejected_spans == 0
            assert response.partial_success.error_message == (
                'span "late": ends before it starts: start_time_unix_nano=30, end_time_unix_nano=20, '
                "expected end >= start; forwarded without energy; "
                f'span "anonymous": trace id all zero: trace_id={"00" * 16!r}, expected 16 bytes not all zero; '
                "forwarded without energy; "
                "span \"short\": span id of the wrong length: span_id='0102' (2 bytes), expected 8 bytes; "
                "forwarded without energy"
            )
            assert client.stored() == [(RecordKind.TRACES, request)]
            counts = [client.metric("invalid_spans", reason=reason) for reason in ("times", "trace_id", "span_id")]
            assert counts == [1, 1, 1]
            assert client.metric("accepted_spans") == 4

    asyncio.run(main())


def test_no_acknowledgement_before_the_sync(tmp_path: Path) -> None:
    """The call does not return while fdatasync has not."""
    sync = HeldSync()

    async def main() -> None:
        async with running(tmp_path, WriteAheadLog(tmp_path, sync=sync)) as client:
            call = asyncio.create_task(client.export(traces(span())))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            done, _ = await asyncio.wait([call], timeout=0.2)
            assert not done
            sync.go.set()
            assert await call == b""

    asyncio.run(main())


def test_a_disk_that_fails_is_unavailable_with_retry_info(tmp_path: Path) -> None:
    """What is not on disk is not acknowledged: UNAVAILABLE, with the delay to try again after."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        async with running(tmp_path, WriteAheadLog(tmp_path, sync=sync)) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.export(traces(span()))
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            metadata: Any = refusal.value.trailing_metadata()
            status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
            info = error_details_pb2.RetryInfo()
            assert status.details[0].Unpack(info)
            assert info.retry_delay.seconds == 1
            assert client.metric("refused_requests", signal="traces", reason="storage") == 1

    asyncio.run(main())


def test_a_busy_spool_is_unavailable(tmp_path: Path) -> None:
    """When too much waits for the disk a request is refused early, and taken once there is room."""
    sync = HeldSync()

    async def main() -> None:
        async with running(tmp_path, WriteAheadLog(tmp_path, sync=sync), max_queued_bytes=50) as client:
            first = asyncio.create_task(client.export(traces(span())))
            assert await asyncio.to_thread(sync.begun.wait, 20)
            with pytest.raises(grpc.aio.AioRpcError, match="try again") as refusal:
                await client.export(traces(span()))
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            sync.go.set()
            await first
            assert await client.export(traces(span())) == b""
            assert client.metric("refused_requests", signal="traces", reason="busy") == 1

    asyncio.run(main())


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_an_oversized_request_is_resource_exhausted(tmp_path: Path, compression: grpc.Compression) -> None:
    """A2: the limit holds before and after decompression; RESOURCE_EXHAUSTED without RetryInfo."""
    request = traces(span(name="x" * 5000))
    assert len(gzip.compress(request)) < 1000

    async def main() -> None:
        async with running(tmp_path, max_recv_bytes=2000) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.export(request, compression=compression)
            assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            metadata: Any = refusal.value.trailing_metadata()
            assert "grpc-status-details-bin" not in (metadata or {})
            assert await client.export(traces(span())) == b""

    asyncio.run(main())


def test_a_second_server_on_the_port_is_refused(tmp_path: Path) -> None:
    """Two receivers never share a port in silence; the error quotes the endpoint."""

    async def main() -> None:
        async with running(tmp_path / "a") as client:
            for host in ("127.0.0.1", "localhost"):
                endpoint = f"{host}:{client.receiver.port}"
                with pytest.raises(BusyError, match=f"{endpoint}: another process listens on this port"):
                    async with GrpcReceiver(endpoint, client.spool, Metrics()):
                        pass
            assert await client.export(traces(span())) == b""

    asyncio.run(main())


def test_a_port_held_by_another_program_is_busy(tmp_path: Path) -> None:
    """A plain listening socket is reason enough."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            async with Spool(tmp_path, Metrics()) as spool:
                with pytest.raises(BusyError, match=f"127.0.0.1:{holder.getsockname()[1]}"):
                    async with GrpcReceiver(f"127.0.0.1:{holder.getsockname()[1]}", spool, Metrics()):
                        pass

    asyncio.run(main())


BAD_ENDPOINTS = {
    "no port": "127.0.0.1",
    "no host": ":4317",
    "a port that is none": "127.0.0.1:http",
    "a port too high": "127.0.0.1:65536",
    "a URL": "http://127.0.0.1:4317",
    "an address of another machine": "192.0.2.1:4317",
}


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS.values(), ids=BAD_ENDPOINTS.keys())
def test_a_bad_endpoint_is_a_config_error(tmp_path: Path, endpoint: str) -> None:
    """The error names the key and quotes the value."""

    async def main() -> None:
        async with Spool(tmp_path, Metrics()) as spool:
            with pytest.raises(ConfigError) as error:
                async with GrpcReceiver(endpoint, spool, Metrics()):
                    pass
            assert (error.value.key, error.value.got) == ("receiver.protocols.grpc.endpoint", endpoint)

    asyncio.run(main())


def test_a_request_under_way_at_stop_is_answered(tmp_path: Path) -> None:
    """Leaving gives requests under way their grace, so that what they brought is on disk."""
    sync = HeldSync()

    async def main() -> None:
        metrics = Metrics()
        async with Spool(tmp_path, metrics, log=WriteAheadLog(tmp_path, sync=sync)) as spool:
            async with GrpcReceiver("127.0.0.1:0", spool, metrics) as receiver:
                client = Running(receiver, spool, metrics)
                call = asyncio.create_task(client.export(traces(span())))
                assert await asyncio.to_thread(sync.begun.wait, 20)
                asyncio.get_running_loop().call_later(0.1, sync.go.set)
            assert await call == b""
            assert len(client.stored()) == 1
            await client.channel.close(None)

    asyncio.run(main())


def test_profiles_are_passed_through(tmp_path: Path) -> None:
    """The fourth signal, in development, stored as it came and checked like the others."""
    request = requests()["profiles"]

    async def main() -> None:
        async with running(tmp_path) as client:
            call = client.channel.unary_unary(f"/{BY_NAME['profiles'].service}/Export", None, None)
            assert await call(request, timeout=20) == b""
            assert await call(b"", timeout=20) == b""
            assert client.stored() == [(RecordKind.PROFILES, request)]
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call(b"\x0a\x7f", timeout=20)
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert client.metric("refused_requests", signal="profiles", reason="malformed") == 1

    asyncio.run(main())


def test_retry_info_grows_with_the_backlog(tmp_path: Path) -> None:
    """Refused before it is parsed: what came is not even protobuf."""
    fullness = [0.0]

    async def main() -> None:
        metrics = Metrics()
        async with Spool(tmp_path, metrics) as spool:
            intake = Intake(spool, metrics, admission=Admission(1, backlog=lambda: fullness[0]))
            async with GrpcReceiver("127.0.0.1:0", intake, metrics) as receiver:
                client = Running(receiver, spool, metrics)
                assert await client.export(traces(span())) == b""
                fullness[0] = 1.0
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await client.export(b"\xff")
                metadata: Any = refusal.value.trailing_metadata()
                info = error_details_pb2.RetryInfo()
                status_pb2.Status.FromString(metadata["grpc-status-details-bin"]).details[0].Unpack(info)
                assert (refusal.value.code(), info.retry_delay.seconds) == (grpc.StatusCode.UNAVAILABLE, 30)
                await client.channel.close(None)

    asyncio.run(main())


def test_methods_and_access_control_are_added(tmp_path: Path) -> None:
    """Health and access control go beside and around what is here."""

    def gate(head: Head) -> CallRefusedError | None:
        if head.get(b"x-token") == b"right":
            return None
        return CallRefusedError(code_pb2.UNAUTHENTICATED, "no token: 100 % refused, é")

    async def main() -> None:
        async with running(tmp_path, methods={"/more.Echo/Say": ECHO}, authorize=gate) as client:
            right = (("x-token", "right"),)
            echo = client.channel.unary_unary("/more.Echo/Say", None, None)
            assert await echo(b"ab", metadata=right) == b"ab"
            assert await client.export(traces(span()), metadata=right) == b""
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.export(traces(span()))
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert refusal.value.details() == "no token: 100 % refused, é"

    asyncio.run(main())


def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    """unix:/path, for the owner and its group; who else would listen there is refused."""
    endpoint = f"unix:{tmp_path / 'otlp.sock'}"

    async def main() -> None:
        metrics = Metrics()
        async with Spool(tmp_path / "spool", metrics) as spool, GrpcReceiver(endpoint, spool, metrics):
            assert (tmp_path / "otlp.sock").stat().st_mode & 0o777 == 0o660
            async with grpc.aio.insecure_channel(endpoint) as channel:
                call = channel.unary_unary(f"/{SERVICES['traces']}/Export", None, None)
                assert await call(traces(span()), timeout=20) == b""
            with pytest.raises(BusyError, match="another process listens there"):
                async with GrpcReceiver(endpoint, spool, metrics):
                    pass

    asyncio.run(main())


def test_an_aged_connection_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    """max_connection_age: the client connects anew, and every call is answered."""

    async def main() -> None:
        age = Http2Limits(max_age_s=0.2, max_age_grace_s=5)
        async with running(tmp_path, limits=age) as client:
            until = asyncio.get_running_loop().time() + 1
            sent = 0
            while asyncio.get_running_loop().time() < until:
                assert await client.export(traces(span()), wait_for_ready=True) == b""
                sent += 1
            assert client.metric("accepted_spans") == sent

    asyncio.run(main())
