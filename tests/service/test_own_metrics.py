"""joulegram's own metrics as OTLP: the same names and numbers as /metrics, in a request that any receiver takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_receiver.spool import Spool
from joulegram_service.own_metrics import OwnMetrics, to_otlp

if TYPE_CHECKING:
    from pathlib import Path


def values(found: Any) -> dict[str, str]:
    return {item.key: item.value.string_value for item in found.attributes}


def test_the_request_says_what_the_registry_says() -> None:
    """Counters are cumulative monotonic sums, gauges gauges, and a histogram's buckets lie between bounds."""
    metrics = Metrics()
    metrics.accepted_spans.inc(512)
    metrics.refused_requests.labels("traces", "busy").inc(3)
    metrics.spool_bytes.set(77)
    for seconds in (0.0002, 0.0003, 0.02, 9.0):
        metrics.spool_sync_seconds.observe(seconds)
    request = ExportMetricsServiceRequest.FromString(to_otlp(metrics.registry, "1.2.3", "node-7", 10, 20))
    (group,) = request.resource_metrics
    assert values(group.resource) == {
        "service.name": "joulegram",
        "service.version": "1.2.3",
        "service.instance.id": "node-7",
    }
    found = {metric.name: metric for metric in group.scope_metrics[0].metrics}
    (accepted,) = found["joulegram_receiver_accepted_spans"].sum.data_points
    assert (accepted.as_double, accepted.start_time_unix_nano, accepted.time_unix_nano) == (512, 10, 20)
    assert found["joulegram_receiver_accepted_spans"].sum.is_monotonic
    (refused,) = found["joulegram_receiver_refused_requests"].sum.data_points
    assert (refused.as_double, values(refused)) == (3, {"signal": "traces", "reason": "busy"})
    assert [point.as_double for point in found["joulegram_spool_bytes"].gauge.data_points] == [77]
    (syncs,) = found["joulegram_spool_sync_seconds"].histogram.data_points
    assert (syncs.count, round(syncs.sum, 4)) == (4, 9.0205)
    assert list(syncs.explicit_bounds) == [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]
    assert list(syncs.bucket_counts) == [0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_every_family_is_there() -> None:
    """Nothing that /metrics has is left out."""
    registry = Metrics().registry
    request = ExportMetricsServiceRequest.FromString(to_otlp(registry, "1", "n", 1, 2))
    made = [metric.name for metric in request.resource_metrics[0].scope_metrics[0].metrics]
    assert made == [family.name for family in registry.collect()]


def test_they_go_through_the_spool(tmp_path: Path) -> None:
    """As a metrics request like any other, which the upstream gets."""

    async def life() -> None:
        metrics = Metrics()
        async with Spool(tmp_path, metrics) as spool, OwnMetrics(metrics.registry, spool, "1", "n", 0.01):
            while spool.durable_lsn == spool.start_lsn:  # noqa: ASYNC110 - the spool tells threads, not tasks
                await asyncio.sleep(0.01)
            (record, *_) = spool.read(spool.start_lsn, 1 << 20)
        assert record.kind is RecordKind.METRICS
        assert ExportMetricsServiceRequest.FromString(record.payload).resource_metrics

    asyncio.run(asyncio.wait_for(life(), 10))
