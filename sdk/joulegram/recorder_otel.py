"""A recorder's span and counters (S0-09 … S0-14, S0-33 … S0-38).

Invariants:
    * the span is open while the work runs, so that the work's spans are its children (D-24), and it ends when the
      work does, although its last attributes are known a moment later;
    * what is not known adds to no counter and sets no attribute (S0-33, D-22);
    * the factor is on the span whether or not there is CO2 (D-17).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from joulegram.otel import Telemetry
    from joulegram.telemetry import TelemetryConfig, TelemetryResult

ROOT_SPAN = "etl.job"
HOST_ENERGY, DISK_IO, NETWORK_IO = "hw.host.energy", "process.disk.io", "process.network.io"


class RunSpan:
    """The span `etl.job` of one run, current from here until `leave`.

    Args:
        telemetry: of `init_otel`.
        config: of the run.
    """

    def __init__(self, telemetry: Telemetry, config: TelemetryConfig) -> None:
        self._config = config
        self._meter = telemetry.meter
        self._span = telemetry.tracer.start_span(
            ROOT_SPAN, attributes={"job.id": config.run_id, "job.type": config.job_type, "kfm.run_id": config.run_id}
        )
        self._token = context.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        """The work is over: what comes now is not in the span."""
        context.detach(self._token)

    def end(self, result: TelemetryResult | None, end_ns: int, failure: BaseException | None) -> None:
        """Say what the run spent, and end the span where the work ended.

        Args:
            result: None where there is none.
            end_ns: of the work, wall clock.
            failure: what the work raised (D-23).
        """
        span = self._span
        if failure is not None:
            span.record_exception(failure, timestamp=end_ns)
            span.set_status(Status(StatusCode.ERROR, f"{type(failure).__name__}: {failure}"))
        if result is not None:
            for name, value in _attributes(result).items():
                if value is not None:
                    span.set_attribute(name, value)
            self._count(result)
        span.end(end_ns)

    def _count(self, result: TelemetryResult) -> None:
        config = self._config
        if result.energy_joules is not None and result.energy_scope == "host":
            counter = self._meter.create_counter(HOST_ENERGY, unit="J", description="Energy of the host in this run")
            counter.add(result.energy_joules, {"hw.id": config.host_hw_id, "hw.name": config.host_hw_name})
        pid = {"process.pid": config.process_pid}
        for name, what, values in (
            (DISK_IO, "disk.io.direction", {"read": result.disk_bytes_read, "write": result.disk_bytes_write}),
            (NETWORK_IO, "network.io.direction", {"transmit": result.bytes_sent, "receive": result.bytes_received}),
        ):
            for direction, count in values.items():
                if count is not None:
                    counter = self._meter.create_counter(name, unit="By", description="Bytes of this process")
                    counter.add(count, pid | {what: direction})


def _attributes(result: TelemetryResult) -> dict[str, str | int | float | None]:
    """Attributes of the span; None is one that is left out (S0-38, S0-60)."""
    return {
        "telemetry.duration_seconds": result.duration_seconds,
        "telemetry.energy_joules": result.energy_joules,
        "telemetry.energy_kwh": result.energy_kwh,
        "telemetry.energy_method": result.energy_method,
        "telemetry.energy_scope": result.energy_scope,
        "telemetry.energy_reason": result.energy_reason,
        "telemetry.co2_kg": result.co2_kg,
        "telemetry.emission_factor_kg_per_kwh": result.emission_factor_kg_per_kwh,
        "telemetry.emission_factor_source": result.emission_factor_source,
        "telemetry.bytes_sent": result.bytes_sent,
        "telemetry.bytes_received": result.bytes_received,
        "telemetry.disk_bytes_read": result.disk_bytes_read,
        "telemetry.disk_bytes_write": result.disk_bytes_write,
    }
