"""Builders of what stands in the log: OTLP trace and metrics requests, ticks, control records; and the log itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method, Tick, TickBatch
from joulegram_pipeline.records import LogRecord, RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from joulegram_pipeline.records import Metadata

S = 1_000_000_000
T0 = 1_767_323_045 * S
"""2026-01-02T03:04:05Z."""

TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")

CPU = Domain("package-0", DomainKind.CPU, 2**32)
DRAM = Domain("package-0/dram", DomainKind.DRAM, 2**32)
GPU = Domain("gpu-0", DomainKind.GPU)
DOMAINS = (CPU, DRAM, GPU)


def trace_id(number: int) -> bytes:
    """The `number`-th trace id, 0 being `TRACE`."""
    return TRACE if number == 0 else (number << 64 | 0xABCDEF).to_bytes(16, "big")


def span_id(number: int) -> bytes:
    """A span id that is not all zero for 1 and above."""
    return number.to_bytes(8, "big")


def set_value(target: Any, value: object) -> None:
    """Put a plain value into an AnyValue."""
    match value:
        case bool():
            target.bool_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case bytes():
            target.bytes_value = value
        case _:
            target.string_value = str(value)


def add_attributes(owner: Any, attributes: Mapping[str, object] | Iterable[tuple[str, object]]) -> None:
    """Append attributes; as pairs, a key may stand twice."""
    pairs = attributes.items() if hasattr(attributes, "items") else attributes
    for key, value in pairs:
        set_value(owner.attributes.add(key=key).value, value)


def span(
    number: int,
    start_ns: int,
    end_ns: int,
    *,
    name: str = "etl.step",
    parent: int | None = None,
    trace: bytes = TRACE,
    status: int = 0,
    attributes: Mapping[str, object] | Iterable[tuple[str, object]] = (),
) -> Span:
    """A span whose ids are numbers; without `parent` a root."""
    made = Span(
        trace_id=trace,
        span_id=span_id(number),
        parent_span_id=b"" if parent is None else span_id(parent),
        name=name,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
    )
    if status:
        made.status.code = status  # type: ignore[assignment]
    add_attributes(made, attributes)
    return made


def request(*spans: Span, resource: Mapping[str, object] | None = None) -> bytes:
    """One ExportTraceServiceRequest of one resource and one scope."""
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    add_attributes(group.resource, {"service.name": "kfm.etl.test"} if resource is None else resource)
    scope = group.scope_spans.add()
    scope.scope.name = "kfm.etl"
    scope.spans.extend(spans)
    return message.SerializeToString()


def spans_of(payload: bytes) -> list[Any]:
    """The spans of a request in order of appearance."""
    message = ExportTraceServiceRequest.FromString(payload)
    return [item for resource in message.resource_spans for scope in resource.scope_spans for item in scope.spans]


def tick(
    seq: int,
    start_ns: int,
    end_ns: int,
    *,
    cpu_uj: int | None = None,
    dram_uj: int | None = None,
    gpu_uj: int | None = None,
    static_uj: int | None = None,
    busy_ns: int | None = None,
    total_ns: int | None = None,
    processes: Mapping[int, int] | None = None,
    descendants: Mapping[int, int] | None = None,
    containers: Mapping[str, int] | None = None,
    on_gpu: Mapping[int, int] | None = None,
    gaps: Sequence[tuple[str, str]] = (),
) -> Tick:
    """A tick of the three domains; a kind that is None was not read."""
    energies = ((CPU.id, cpu_uj), (DRAM.id, dram_uj), (GPU.id, gpu_uj))
    return Tick(
        seq=seq,
        start_ns=start_ns,
        end_ns=end_ns,
        energy_uj={name: uj for name, uj in energies if uj is not None},
        static_uj={} if static_uj is None else {CPU.id: static_uj},
        gaps=tuple(Gap(domain, reason) for domain, reason in gaps),
        cpu_busy_ns=busy_ns,
        cpu_total_ns=total_ns,
        process_cpu_ns=dict(processes or {}),
        descendant_cpu_ns=dict(descendants or {}),
        container_cpu_ns=dict(containers or {}),
        process_gpu_ns={} if on_gpu is None else {GPU.id: dict(on_gpu)},
    )


def tick_batch(
    *ticks: Tick,
    domains: tuple[Domain, ...] = DOMAINS,
    method: Method = Method.MEASURED,
    reason: str | None = None,
) -> TickBatch:
    """A batch of the simulated agent."""
    return TickBatch("boot-1", "powercap" if domains else "none", method, reason, domains, ticks)


def host_energy(
    *points: tuple[int, int, float],
    delta: bool = False,
    hw_id: str | None = None,
    unit: str = "J",
) -> bytes:
    """A metrics request of `hw.host.energy`; a point is (start_ns, time_ns, joules)."""
    message = ExportMetricsServiceRequest()
    group = message.resource_metrics.add()
    if hw_id is not None:
        add_attributes(group.resource, {"hw.id": hw_id})
    metric = group.scope_metrics.add().metrics.add(name="hw.host.energy", unit=unit)
    metric.sum.aggregation_temporality = 1 if delta else 2  # type: ignore[assignment]
    metric.sum.is_monotonic = True
    for start_ns, time_ns, joules in points:
        metric.sum.data_points.add(start_time_unix_nano=start_ns, time_unix_nano=time_ns, as_double=joules)
    return message.SerializeToString()


class Log:
    """A log in memory: records one behind the other, as the spool gives them.

    `records` is what was appended; lsns are as far apart as in the file.
    """

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self._at: dict[int, LogRecord | None] = {}
        """None where a record was damaged."""
        self.end = 0
        self.start_lsn = 0
        self.now_ns = T0

    def find(self, lsn: int) -> LogRecord | None:
        """The record at a position, as `LogReader` has it."""
        return None if lsn < self.start_lsn else self._at[lsn]

    def append(
        self, kind: RecordKind, payload: bytes, received_ns: int | None = None, metadata: Metadata = ()
    ) -> LogRecord:
        """One more record; without a time it is received when the one before was."""
        self.now_ns = self.now_ns if received_ns is None else received_ns
        following = self.end + 24 + len(payload)
        record = LogRecord(self.end, following, kind, self.now_ns, payload, metadata=metadata)
        self.records.append(record)
        self._at[record.lsn] = record
        self.end = following
        return record

    def traces(
        self,
        *spans: Span,
        at: int | None = None,
        resource: Mapping[str, object] | None = None,
        metadata: Metadata = (),
    ) -> LogRecord:
        """A trace request."""
        return self.append(RecordKind.TRACES, request(*spans, resource=resource), at, metadata)

    def ticks(self, *ticks: Tick, at: int | None = None, **batch: Any) -> LogRecord:
        """A tick batch, received when its last tick ended unless `at` says when."""
        if at is None and ticks:
            at = max(self.now_ns, ticks[-1].end_ns)
        return self.append(RecordKind.TICKS, tick_batch(*ticks, **batch).to_bytes(), at)

    def control(self, kind: str, run_id: str, at: int | None = None, **fields: object) -> LogRecord:
        """A control record: ``run.start`` with a `pid`, ``run.end`` with `ended_by` and `status`."""
        payload = json.dumps({"type": kind, "run_id": run_id, **fields}).encode()
        return self.append(RecordKind.CONTROL, payload, at)
