"""The whole path: a known power trace and real spans in, records out, and every figure worked out again."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import joulegram_processor
from joulegram_schemas import validate
from simulators.decoded import attributes, resource_spans, spans
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.powercap import INTEL_RANGE_UJ, PowercapTree
from simulators.sidecar import JOULEGRAM, PowerTrace, Serve, archived_ticks, ledger_lines, run_lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from joulegram_pipeline.energy import Tick

pytestmark = pytest.mark.timeout(180)

HAND_RUN = "hand-built-20260102T030405Z"
SDK_RUN = "stock-sdk-20260102T030405Z"
DRIVEN_S = 4.0
SECRETS = ("db7.internal.example", "203.0.113.77", "alice.secret")
"""What a resource may say and no record may: a host name, an address, a user."""

ADDED = {
    *("energy.cpu_j", "energy.dram_j", "energy.total_j", "energy.method", "energy.scope", "energy.allocation_ratio"),
    *("timing.duration_s", "carbon.gco2e", "carbon.gco2e_lower", "carbon.gco2e_upper", "carbon.gas", "carbon.region"),
    *("carbon.intensity_g_per_kwh", "carbon.resolution", "carbon.table", "carbon.upper_bound"),
}
"""What a measured and priced span gains on a node with packages and DRAM (design section 6), and nothing else."""


# -- protobuf's wire format, read and written independently of the product ------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def holding(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


UNKNOWN = (
    varint(1900 << 3)
    + varint(2**63)
    + varint(1901 << 3 | 1)
    + struct.pack("<d", 1.5)
    + holding(1902, b"\x00\xff not text")
    + (varint(1903 << 3 | 3) + varint(7 << 3) + b"\x01" + varint(1903 << 3 | 4))
    + varint(1904 << 3 | 5)
    + struct.pack("<I", 7)
)
"""A field of every wire type that no version of OTLP has yet."""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields_of(data: bytes, at: int = 0, group: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
    """Each field as (number, all its bytes, its content where it is length-delimited)."""
    while at < len(data):
        begin = at
        tag, at = read_varint(data, at)
        number, kind, content = tag >> 3, tag & 7, b""
        if kind == 4:
            assert number == group
            yield 0, data[:at], b""
            return
        if kind == 0:
            _, at = read_varint(data, at)
        elif kind == 2:
            length, at = read_varint(data, at)
            content, at = data[at : at + length], at + length
        elif kind == 3:
            *_, (_, inside, _) = fields_of(data, at, number)
            at = len(inside)
        else:
            at += {1: 8, 5: 4}[kind]
        yield number, data[begin:at], content


def without_added(data: bytes, path: tuple[int, ...] = (1, 2, 2)) -> bytes:
    """A trace request as it would be, had its spans not gained what stands at their end."""
    if path:
        return b"".join(
            holding(number, without_added(content, path[1:])) if number == path[0] else whole
            for number, whole, content in fields_of(data)
        )
    kept = list(fields_of(data))
    while kept and kept[-1][0] == 9 and key_of(kept[-1][2]) in ADDED:
        kept.pop()
    return b"".join(whole for _, whole, _ in kept)


def key_of(pair: bytes) -> str:
    return next(content for number, _, content in fields_of(pair) if number == 1).decode()


# -- what is sent ----------------------------------------------------------------------------------------------------


def span_bytes(name: str, start_ns: int, end_ns: int, trace_id: bytes, parent: bytes = b"") -> bytes:
    """A span with an attribute and an event, and fields nobody knows behind them."""
    span = Span(
        trace_id=trace_id,
        span_id=os.urandom(8),
        parent_span_id=parent,
        name=name,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
    )
    span.attributes.add(key="rows").value.int_value = 7
    span.events.add(name="read", time_unix_nano=start_ns)
    return bytes(span.SerializeToString()) + UNKNOWN


def resource_bytes(*contents: bytes, **labels: str | int) -> bytes:
    """One resource_spans field with unknown fields at every level; labels have ``_`` where the key has a dot."""
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add().resource
    for key, value in labels.items():
        pair = resource.attributes.add(key=key.replace("__", "_dash_").replace("_", ".").replace(".dash.", "_"))
        if isinstance(value, int):
            pair.value.int_value = value
        else:
            pair.value.string_value = value
    scope = b"".join(holding(2, content) for content in contents) + UNKNOWN
    return holding(1, holding(1, resource.SerializeToString() + UNKNOWN) + holding(2, scope) + UNKNOWN)


class Client:
    """Exports raw bytes and keeps what was acknowledged."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self.sent: list[tuple[str, bytes]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def export(self, signal_name: str, request: bytes) -> bytes:
        call: Any = self._channel.unary_unary(f"/{SERVICES[signal_name]}/Export")
        answer: bytes = call(request, timeout=10, wait_for_ready=True)
        self.sent.append((signal_name, request))
        return answer


def stock_job(target: str) -> None:
    """A job of the stock SDK that knows nothing of joulegram: a root, two nodes, and a span that is not ours."""
    resource = Resource.create(
        {
            "service.name": "kfm.etl.hrrr",
            "kfm.run_id": SDK_RUN,
            "kfm.component": "etl",
            "host.name": SECRETS[0],
            "host.ip": SECRETS[1],
            "enduser.id": SECRETS[2],
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://{target}")))
    tracer = provider.get_tracer("job", "1.0")
    with tracer.start_as_current_span("etl.job", attributes={"job.id": SDK_RUN, "job.type": "nightly"}):
        for node in ("extract", "load"):
            with tracer.start_as_current_span(f"etl.node.{node}", attributes={"kfm.node": node}):
                with tracer.start_as_current_span("SELECT", attributes={"db.system": "postgresql"}):
                    spin(0.4)
                spin(0.2)
    provider.shutdown()


def spin(seconds: float) -> None:
    """Honest CPU work."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


# -- the scenario, once ----------------------------------------------------------------------------------------------


@dataclass
class Path_:
    """All that went in and came out."""

    tree: PowercapTree
    data: Path
    sent: list[tuple[str, bytes]]
    taken: list[tuple[str, bytes]]
    ticks: list[Tick]
    upstream: OtlpServer
    exit_status: int
    said: str
    edges: tuple[int, int]
    wrapped: set[str] = field(default_factory=set)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return ledger_lines(self.data, "span")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path_]:
    """A sidecar over a tree whose package counters wrap, an upstream behind it, and two jobs in front of it.

    The trace is spent between two quiet seconds, so that every microjoule lies in a published tick.
    """
    folder = tmp_path_factory.mktemp("whole")
    tree = PowercapTree(folder / "sys", packages=2, psys=True, mmio=True, start_uj=INTEL_RANGE_UJ - 20_000_000)
    with OtlpServer() as upstream:
        flags = ("--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS")
        with Serve(folder, *flags, f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve:
            serve.wait_ready()
            with Client(serve.target) as client, tee(client) as front:
                drive(folder, tree, serve, client, front.port)
                edges = send_edges(serve, client)
                wait_until(lambda: bool(run_lines(serve.data, HAND_RUN)), "the run of hand-built spans", log=serve.log)
                upstream.wait_for(lambda server: len(spans(server)) >= span_count(client.sent))
                status = serve.stop()
                sent = list(client.sent)
        wrapped = {
            domain
            for domain in tree.domain_ids
            if int((tree.zone_path(domain) / "energy_uj").read_text()) < 20_000_000 < tree.truth_uj[domain]
        }
        yield Path_(
            tree,
            serve.data,
            sent,
            list(upstream.taken),
            archived_ticks(serve.data),
            upstream,
            status,
            serve.said,
            edges,
            wrapped,
        )


def tee(client: Client) -> OtlpServer:
    """A server that hands on, byte for byte, what a stock exporter sends, so that those bytes are known."""
    return OtlpServer(judge=client.export)


def span_count(sent: list[tuple[str, bytes]]) -> int:
    requests = [ExportTraceServiceRequest.FromString(body) for name, body in sent if name == "traces"]
    return sum(
        len(scope.spans) for request in requests for part in request.resource_spans for scope in part.scope_spans
    )


def drive(folder: Path, tree: PowercapTree, serve: Serve, client: Client, front_port: int) -> None:
    """Both jobs under the trace, from one quiet second to the next."""
    wait_until(lambda: bool(archived_ticks(serve.data)), "a first tick", log=serve.log)
    trace_id = b"\x0a" + os.urandom(15)
    now = time.time_ns()
    # Names this process to the agent; its trace has no root yet, so it waits.
    early = span_bytes("etl.step.early", now - 1_000_000, now, trace_id, parent=b"rootroot")
    client.export("traces", resource_bytes(early, service_name="hand", kfm_run__id=HAND_RUN, process_pid=os.getpid()))
    named = lambda: any(os.getpid() in tick.process_cpu_ns for tick in archived_ticks(serve.data))  # noqa: E731
    wait_until(named, "this process in a tick", log=serve.log)
    with PowerTrace(tree, seed=20260102):
        began = time.monotonic()
        stock_job(f"127.0.0.1:{front_port}")
        start = time.time_ns()
        spin(0.3)
        inner = span_bytes("etl.node.inner", start + 50_000_000, start + 250_000_000, trace_id, parent=b"rootroot")
        overlapping = span_bytes("etl.node.other", start + 150_000_000, time.time_ns(), trace_id, parent=b"rootroot")
        root = Span.FromString(span_bytes("etl.job", start, time.time_ns(), trace_id))
        root.span_id = b"rootroot"
        body = resource_bytes(
            inner,
            overlapping,
            bytes(root.SerializeToString()),
            service_name="hand",
            kfm_run__id=HAND_RUN,
            process_pid=os.getpid(),
        )
        client.held = body  # type: ignore[attr-defined]
        wait_until(lambda: time.monotonic() - began >= DRIVEN_S, "the trace")
    stopped = time.time_ns()
    wait_until(lambda: archived_ticks(serve.data)[-1].end_ns > stopped, "a tick behind the trace", log=serve.log)
    wait_until(lambda: bool(run_lines(serve.data, SDK_RUN)), "the run of the stock SDK", log=serve.log)
