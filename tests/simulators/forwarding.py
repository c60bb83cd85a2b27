"""An outbox with what sends it, and trace requests to put in, for tests of the upstream."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import Outgoing, RecordKind
from joulegram_sink.outbox import Outbox
from joulegram_sink.upstream import Destination, Upstreams
from joulegram_sink.upstream_destination import Batching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from joulegram_pipeline.records import Metadata
    from simulators.otlp_server import OtlpServer

BUDGET_S = 20.0
AT_ONCE = Batching(flush_timeout_s=0.0)


def request(name: str) -> bytes:
    """A trace request of one span."""
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(name=name)
    return bytes(message.SerializeToString())


def names(requests: Iterable[tuple[str, bytes]]) -> list[str]:
    """The spans' names in the order they arrived."""
    return [
        span.name
        for signal, data in requests
        if signal == "traces"
        for resource_spans in ExportTraceServiceRequest.FromString(data).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def destination(endpoint: str, name: str = "upstream", **options: Any) -> Destination:
    """A destination that does not wait for company, and sends in order unless told otherwise."""
    return replace(Destination(name, endpoint, batching=AT_ONCE, num_consumers=1), **options)


def to(server: OtlpServer) -> str:
    """The endpoint of a server, over gRPC."""
    return f"grpc://127.0.0.1:{server.port}"


def arrived(count: int) -> Callable[[OtlpServer], bool]:
    """Whether a server has so many spans, for its `wait_for`."""
    return lambda server: len(names(server.taken)) == count


class Forwarding:
    """An outbox and what sends it."""

    def __init__(self, outbox: Outbox, upstream: Upstreams, metrics: Metrics, deadletter: Path) -> None:
        self.outbox = outbox
        self.upstream = upstream
        self.metrics = metrics
        self.deadletter = deadletter
        self._lsn = 0

    def put(self, *requests: bytes, kind: RecordKind = RecordKind.TRACES, metadata: Metadata = ()) -> None:
        """Append requests as the outputs of one record."""
        self.outbox.append(
            [Outgoing((self._lsn, ordinal), kind, data, metadata) for ordinal, data in enumerate(requests)]
        )
        self._lsn += 1

    def failures(self, kind: str) -> float:
        """Sends that failed, by what happened then."""
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "joulegram_sink_forward_failures_total" and sample.labels["kind"] == kind
        )


@asynccontextmanager
async def forwarding(
    tmp_path: Path, *destinations: Destination, put: Iterable[bytes] = (), **options: Any
) -> AsyncIterator[Forwarding]:
    """What is `put` is in the outbox, as the outputs of one record, before the upstream starts."""
    metrics = Metrics()
    deadletter = tmp_path / "deadletter"
    queues = {each.name: each.queue_bytes for each in destinations}
    async with Outbox(tmp_path / "outbox", metrics, queues, **options) as outbox:
        upstream = Upstreams(destinations, outbox, metrics, deadletter)
        forward = Forwarding(outbox, upstream, metrics, deadletter)
        requests = list(put)
        if requests:
            forward.put(*requests)
        async with upstream:
            yield forward
        # What the engine does at a stop: what was not taken is on disk.
        outbox.sync()
