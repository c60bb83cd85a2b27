"""`hw.host.energy` from OTLP metrics (S0-09; otlp reference 4.1)."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from joulegram_pipeline.host_energy import HostEnergySample, host_energy_samples


def request(**metric: Any) -> Any:
    message = ExportMetricsServiceRequest()
    resource = message.resource_metrics.add()
    resource.resource.attributes.add(key="hw.id").value.string_value = "node-7"
    scope = resource.scope_metrics.add()
    scope.metrics.add(name="hw.host.power", unit="W").gauge.data_points.add(as_double=3.0, time_unix_nano=1)
    scope.metrics.add(**({"name": "hw.host.energy", "unit": "J"} | metric))
    return message


def point(**fields: Any) -> dict[str, Any]:
    return {"start_time_unix_nano": 10, "time_unix_nano": 20, "as_double": 1.5} | fields


def counter(points: list[dict[str, Any]], temporality: int = 2) -> dict[str, Any]:
    return {"data_points": points, "aggregation_temporality": temporality, "is_monotonic": True}


def test_points_of_both_temporalities_and_types_are_read() -> None:
    """Double and integer joules become microjoules; delta and cumulative are told apart."""
    whole = {"start_time_unix_nano": 10, "time_unix_nano": 30, "as_int": 7}
    samples = host_energy_samples(request(sum=counter([point(), whole])))
    assert samples == [
        HostEnergySample("node-7", 10, 20, 1_500_000, is_delta=False),
        HostEnergySample("node-7", 10, 30, 7_000_000, is_delta=False),
    ]
    (delta,) = host_energy_samples(request(sum=counter([point()], temporality=1)))
    assert delta.is_delta


def test_the_points_own_hw_id_goes_first() -> None:
    """`hw.id` is an attribute of the point by convention; the resource's is the fallback."""
    message = request(sum=counter([point()]))
    data_point = message.resource_metrics[0].scope_metrics[0].metrics[1].sum.data_points[0]
    data_point.attributes.add(key="hw.id").value.string_value = "host-1"
    (sample,) = host_energy_samples(message)
    assert sample.hw_id == "host-1"


NO_ENERGY = {
    "another unit": {"unit": "kWh", "sum": counter([point()])},
    "another name": {"name": "hw.energy", "sum": counter([point()])},
    "a gauge": {"gauge": {"data_points": [point()]}},
    "no temporality": {"sum": counter([point()], temporality=0)},
    "no value": {"sum": counter([{"time_unix_nano": 20}])},
    "no recorded value": {"sum": counter([point(flags=1)])},
    "no time": {"sum": counter([point(time_unix_nano=0)])},
    "not a number": {"sum": counter([point(as_double=float("nan"))])},
    "infinite": {"sum": counter([point(as_double=float("inf"))])},
    "negative": {"sum": counter([point(as_double=-1.0)])},
}


@pytest.mark.parametrize("metric", NO_ENERGY.values(), ids=NO_ENERGY.keys())
def test_what_gives_no_energy_is_left_out(metric: dict[str, Any]) -> None:
    """A missing or impossible measurement is missing, never 0 (design section 3)."""
    assert host_energy_samples(request(**metric)) == []
