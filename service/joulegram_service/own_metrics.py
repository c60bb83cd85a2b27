"""joulegram's own metrics as OTLP, for who has no Prometheus: they go through the spool and upstream like any others.

The names are those of /metrics; counters are cumulative sums since the start, gauges gauges, histograms histograms.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from joulegram_pipeline.errors import RetryableError
from joulegram_pipeline.life import Background
from joulegram_pipeline.records import RecordKind

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from joulegram_receiver.spool import Spool

_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def to_otlp(registry: CollectorRegistry, version: str, instance: str, start_ns: int, now_ns: int) -> bytes:
    """What the registry holds now, as an ExportMetricsServiceRequest.

    Args:
        registry: Prometheus names and values.
        version: of joulegram, for the resource and the scope.
        instance: `service.instance.id`, a configured id, never a host name (C-01).
        start_ns: wall clock at which the counters began.
        now_ns: wall clock of the values.
    """
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    for key, value in (("service.name", "joulegram"), ("service.version", version), ("service.instance.id", instance)):
        _attribute(group.resource, key, value)
    scope = group.scope_metrics.add()
    scope.scope.name, scope.scope.version = "joulegram", version
    for family in registry.collect():
        metric = Metric(name=family.name, description=family.documentation)
        if family.type == "counter":
            metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, _CUMULATIVE
            samples = [sample for sample in family.samples if sample.name.endswith("_total")]
            _numbers(metric.sum, samples, start_ns, now_ns)
        elif family.type == "gauge":
            _numbers(metric.gauge, family.samples, 0, now_ns)
        elif family.type == "histogram":
            _histogram(metric, family.samples, start_ns, now_ns)
        else:
            continue
        scope.metrics.append(metric)
    return bytes(request.SerializeToString())


def _numbers(target: Any, samples: list[Any], start_ns: int, now_ns: int) -> None:
    for sample in samples:
        point = target.data_points.add(start_time_unix_nano=start_ns, time_unix_nano=now_ns, as_double=sample.value)
        for key, value in sample.labels.items():
            _attribute(point, key, value)


def _histogram(metric: Metric, samples: list[Any], start_ns: int, now_ns: int) -> None:
    metric.histogram.aggregation_temporality = _CUMULATIVE
    points: dict[tuple[tuple[str, str], ...], Any] = {}
    below: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        point = points.get(labels)
        if point is None:
            point = points[labels] = metric.histogram.data_points.add(
                start_time_unix_nano=start_ns, time_unix_nano=now_ns
            )
            for key, value in labels:
                _attribute(point, key, value)
        if sample.name.endswith("_bucket"):  # Prometheus counts up to a bound, OTLP between two
            point.bucket_counts.append(int(sample.value - below.get(labels, 0)))
            below[labels] = sample.value
            if sample.labels["le"] != "+Inf":
                point.explicit_bounds.append(float(sample.labels["le"]))
        elif sample.name.endswith("_count"):
            point.count = int(sample.value)
        elif sample.name.endswith("_sum"):
            point.sum = sample.value


def _attribute(target: Any, key: str, value: str) -> None:
    item = target.attributes.add()
    item.key, item.value.string_value = key, value


class OwnMetrics(Background):
    """Appends the metrics to the spool every `interval_s`; an async context manager.

    Args:
        registry: what is sent.
        spool: entered before this and left after it.
        version: of joulegram.
        instance: `service.instance.id`.
        interval_s: between two.
    """

    def __init__(
        self, registry: CollectorRegistry, spool: Spool, version: str, instance: str, interval_s: float
    ) -> None:
        super().__init__(self._run, "own metrics")
        self._registry = registry
        self._spool = spool
        self._version = version
        self._instance = instance
        self._interval_s = interval_s
        self._start_ns = time.time_ns()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            payload = to_otlp(self._registry, self._version, self._instance, self._start_ns, time.time_ns())
            # Counters are cumulative: what is not taken now is in the next.
            with contextlib.suppress(RetryableError):
                await self._spool.append(RecordKind.METRICS, payload)
