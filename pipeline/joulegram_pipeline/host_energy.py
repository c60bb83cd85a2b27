"""`hw.host.energy` out of OTLP metrics: the energy of a node whose agent sends it instead of being asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.units import UJ_PER_J, j_to_uj

if TYPE_CHECKING:
    from collections.abc import Iterator

METRIC = "hw.host.energy"
UNIT = "J"

_DELTA = 1
_CUMULATIVE = 2
_NO_RECORDED_VALUE = 1


@dataclass(frozen=True, slots=True)
class HostEnergySample:
    """One data point of the counter.

    Args:
        hw_id: `hw.id` of the point, else of its resource; None where neither names one.
        start_ns: `start_time_unix_nano`: since when `value_uj` counts; 0 where the sender does not say.
        time_ns: `time_unix_nano`.
        value_uj: microjoules, to the nearest.
        is_delta: whether `value_uj` counts from `start_ns` only, or since the counter began.
    """

    hw_id: str | None
    start_ns: int
    time_ns: int
    value_uj: int
    is_delta: bool


def host_energy_samples(request: Any) -> list[HostEnergySample]:
    """The `hw.host.energy` points of a parsed ExportMetricsServiceRequest, in the order they stand.

    Left out, because no energy follows from them: another unit than ``J``, a metric that is no sum or whose
    temporality is not stated, a point without a value, without a time, negative or not finite.
    """
    return [
        sample
        for resource_metrics in request.resource_metrics
        for scope_metrics in resource_metrics.scope_metrics
        for metric in scope_metrics.metrics
        if metric.name == METRIC and metric.unit == UNIT and metric.WhichOneof("data") == "sum"
        for sample in _samples(metric.sum, _text(resource_metrics.resource.attributes, "hw.id"))
    ]


def _samples(counter: Any, resource_hw_id: str | None) -> Iterator[HostEnergySample]:
    if counter.aggregation_temporality not in (_DELTA, _CUMULATIVE):
        return
    for point in counter.data_points:
        value_uj = _value_uj(point)
        if value_uj is not None and point.time_unix_nano:
            yield HostEnergySample(
                hw_id=_text(point.attributes, "hw.id") or resource_hw_id,
                start_ns=point.start_time_unix_nano,
                time_ns=point.time_unix_nano,
                value_uj=value_uj,
                is_delta=counter.aggregation_temporality == _DELTA,
            )


def _value_uj(point: Any) -> int | None:
    if point.flags & _NO_RECORDED_VALUE:
        return None
    match point.WhichOneof("value"):
        case "as_int":
            return point.as_int * UJ_PER_J if point.as_int >= 0 else None
        case "as_double":
            joules = point.as_double
            return j_to_uj(joules) if math.isfinite(joules) and joules >= 0 else None
    return None


def _text(attributes: Any, key: str) -> str | None:
    return next(
        (
            attribute.value.string_value
            for attribute in attributes
            if attribute.key == key and attribute.value.string_value
        ),
        None,
    )
