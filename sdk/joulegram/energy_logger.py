"""`EnergyLogger`: energy and load of a process under the names of carbon-ops 0.1.1 (S3-01, S3-08 … S3-10).

What differs from carbon-ops, on purpose:
    * energy is counted by ticks of one second that do not wrap, not by the difference of two readings; where it is
      modelled, `energy_method` says so; where it is not known it is None, with `energy_reason`, and not a guess;
    * `allocation_ratio` is what the process tree spent of the host's energy, idle left out, tick by tick;
      `energy_wh_total` stays the host's, as it is there, and `energy_wh_process` is the process's;
    * `attribution_mode` is ``monitor_only`` where there is no agent, ``governor_cpu_time`` or ``governor_energy``
      where there is one (S3-08).

Invariants:
    * no method raises for want of hardware, an agent or psutil (C-59);
    * an energy belongs to the window between `timestamp_start` and `timestamp_end` of its record.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections import deque
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram.machine_metrics import cpu_metrics, gpu_metrics, memory_metrics
from joulegram.meter import MONITOR_ONLY, WAIT_S, Meter, attribution_mode
from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.units import ns_to_s, uj_to_wh

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from joulegram.window import WindowEnergy

IDLE_VARIABLE = "IDLE_BASELINE_WATTS"
CALIBRATION_VARIABLE = "CALIBRATION_VERSION"
_UJ_PER_WH = 3_600_000_000


class EnergyLogger:
    """Takes records, each with the energy since the one before it.

    Args:
        log_level: of the records' log lines, on the logger ``joulegram.energy``.
        history_limit: records kept in `metrics`.
        trace_id: a name for all of them; by default a UUID.
        socket: of an agent; by default JOULEGRAM_AGENT_SOCKET, else the agent's own.
        model: where nothing is measured, model the energy from CPU time, and say so.
        sysfs_root: ``/sys``, where there is no agent.

    Raises:
        ConfigError: `history_limit`, or the variable IDLE_BASELINE_WATTS, is not what it should be.
    """

    def __init__(
        self,
        log_level: int = logging.INFO,
        history_limit: int = 10_000,
        trace_id: str | None = None,
        *,
        socket: str | os.PathLike[str] | None = None,
        model: bool = True,
        sysfs_root: Path = Path("/sys"),
    ) -> None:
        if history_limit < 1:
            raise ConfigError("history_limit", history_limit, "at least 1")
        self.log_level = log_level
        self.trace_id = trace_id or str(uuid.uuid4())
        self.logger = logging.getLogger("joulegram.energy")
        self.metrics: deque[dict[str, Any]] = deque(maxlen=history_limit)
        self.idle_baseline_watts = _idle_watts()
        self.calibration_version = os.environ.get(CALIBRATION_VARIABLE, "v1")
        self._meter = Meter(socket, model=model, sysfs_root=sysfs_root)
        self._last_ns = self._meter.begin_ns

    @property
    def attribution_mode(self) -> str:
        """``monitor_only`` where there is no agent (S3-08)."""
        return "governor_cpu_time" if self._meter.origin == "agent" else MONITOR_ONLY

    def log_metrics(self, operation: str, additional_info: Mapping[str, object] | None = None) -> dict[str, Any]:
        """A record: the load now, and the energy since the last record, or since this logger was made (S3-10).

        Energy is known up to the last whole tick; `timestamp_end` is there, and the rest is in the next record. It
        waits for a tick only where none has come yet.
        """
        if self._meter.last_ns <= self._last_ns:
            self._meter.wait(self._last_ns + 1, WAIT_S)
        else:
            self._meter.poll()
        start_ns = self._last_ns
        end_ns = max(start_ns, self._meter.last_ns) if self._meter.last_ns else time.time_ns()
        self._last_ns = end_ns
        window = self._meter.energy(start_ns, end_ns)
        return self._record(
            operation, start_ns, end_ns, self._summary(window, ns_to_s(end_ns - start_ns)), additional_info
        )

    async def log_metrics_async(
        self, operation: str, additional_info: Mapping[str, object] | None = None
    ) -> dict[str, Any]:
        """As `log_metrics`, beside the event loop."""
        import asyncio  # noqa: PLC0415 - who awaits has it loaded; to import it takes longer than all of this

        return await asyncio.to_thread(self.log_metrics, operation, additional_info)

    @contextmanager
    def monitor(
        self,
        operation: str,
        log_interval: float | None = None,  # noqa: ARG002 - carbon-ops' signature
    ) -> Generator[dict[str, Any], None, None]:
        """Around a piece of work: yields a dict that, after it, holds its record with its `energy`.

        The end waits for the closing tick, two seconds at most.
        """
        start_ns, start_mono_ns = time.time_ns(), time.monotonic_ns()
        record: dict[str, Any] = {"operation": operation}
        try:
            yield record
        finally:
            end_ns, duration_s = time.time_ns(), ns_to_s(time.monotonic_ns() - start_mono_ns)
            self._meter.wait(end_ns)
            summary = self._summary(self._meter.energy(start_ns, end_ns), duration_s)
            record.update(self._record(f"{operation}_end", start_ns, end_ns, summary, {"duration_seconds": duration_s}))

    def calibrate_idle(self, samples: int = 5, interval: float = 0.2) -> float | None:
        """Take the host's mean power over a time in which nothing runs as its idle baseline.

        Args:
            samples: with `interval`, how long it looks; at least one tick, a second.
            interval: seconds.

        Returns:
            watts; None where the energy of that time is not known, and the baseline stays what it was.
        """
        start_ns = time.time_ns()
        until_ns = start_ns + round(max(1.0, samples * interval) * 1e9)
        self._meter.wait(until_ns, ns_to_s(until_ns - start_ns) + WAIT_S)
        window = self._meter.energy(start_ns, until_ns)
        if window.host_uj is None or not window.covered_ns:
            return None
        self.idle_baseline_watts = 1000 * window.host_uj / window.covered_ns
        return self.idle_baseline_watts

    async def calibrate_idle_async(self, samples: int = 5, interval: float = 0.2) -> float | None:
        """As `calibrate_idle`, beside the event loop."""
        import asyncio  # noqa: PLC0415 - who awaits has it loaded; to import it takes longer than all of this

        return await asyncio.to_thread(self.calibrate_idle, samples, interval)

    def get_cpu_metrics(self) -> dict[str, float | None]:
        """The CPU's load now; the power beside it is that of the last record, None before one."""
        watts = self.metrics[-1]["cpu"]["estimated_power_watts"] if self.metrics else None
        return {**cpu_metrics(), "estimated_power_watts": watts}

    def get_memory_metrics(self) -> dict[str, float | None]:
        """Memory in use now."""
        return memory_metrics()

    def get_gpu_metrics(self) -> list[dict[str, Any]]:
        """Every board's load and power now."""
        return gpu_metrics()

    def get_metrics_summary(self) -> dict[str, Any]:
        """Means over the records kept; None for what none of them knew."""
        if not self.metrics:
            return {"message": "No metrics collected yet"}
        return {
            "total_measurements": len(self.metrics),
            "average_cpu_percent": _mean(record["cpu"]["cpu_percent"] for record in self.metrics),
            "average_memory_percent": _mean(record["memory"]["memory_percent"] for record in self.metrics),
            "average_power_watts": _mean(record["total_estimated_power_watts"] for record in self.metrics),
            "gpu_monitoring_enabled": any(record["gpu"] for record in self.metrics),
        }

    def export_metrics(self, filepath: str | os.PathLike[str]) -> None:
        """Write summary and records as JSON."""
        payload = {"summary": self.get_metrics_summary(), "metrics": list(self.metrics)}
        Path(filepath).write_text(json.dumps(payload, indent=2, default=str) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Let the agent go; a logger that is forgotten does so too."""
        self._meter.close()

    def _record(
        self,
        operation: str,
        start_ns: int,
        end_ns: int,
        summary: dict[str, Any],
        additional_info: Mapping[str, object] | None,
    ) -> dict[str, Any]:
        self._meter.forget(start_ns)
        watts = summary["avg_power_watts"]
        record = {
            "timestamp": datetime.now(UTC).isoformat(),
            "timestamp_start": _iso(start_ns),
            "timestamp_end": _iso(end_ns),
            "operation": operation,
            "cpu": {**cpu_metrics(), "estimated_power_watts": watts},
            "memory": memory_metrics(),
            "gpu": gpu_metrics(),
            "total_estimated_power_watts": watts,
            "additional_info": dict(additional_info) if additional_info else None,
            "energy": summary,
        }
        self.metrics.append(record)
        self.logger.log(self.log_level, "%s: %s Wh", operation, summary["energy_wh_total"])
        return record

    def _summary(self, window: WindowEnergy, duration_s: float) -> dict[str, Any]:
        ratio = window.allocation_ratio
        watts = total_wh = active_wh = cpu_wh = None
        if window.host_uj is not None:
            total_wh = uj_to_wh(window.host_uj)
            cpu_wh = uj_to_wh(window.host_uj - (window.gpu_uj or 0))
            watts = 1000 * window.host_uj / window.covered_ns
            idle_uj = (self.idle_baseline_watts or 0.0) * window.covered_ns / 1000
            active_wh = max(0.0, window.host_uj - idle_uj) / _UJ_PER_WH
        return {
            "duration_seconds": duration_s,
            "avg_power_watts": watts,
            "idle_baseline_watts": self.idle_baseline_watts,
            "calibration_version": self.calibration_version,
            "energy_wh_total": total_wh,
            "energy_wh_active": active_wh,
            "energy_wh_process": None if window.process_uj is None else uj_to_wh(window.process_uj),
            "allocation_ratio": ratio,
            "attribution_mode": attribution_mode(self._meter.origin, window),
            "cpu_energy_wh": cpu_wh,
            "gpu_energy_wh": None if window.gpu_uj is None else uj_to_wh(window.gpu_uj),
            "energy_method": window.method.value,
            "energy_scope": "host",
            "energy_reason": window.reason,
        }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _iso(wall_ns: int) -> str:
    """Microseconds, rounded down: what `datetime` holds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000).isoformat()


def _idle_watts() -> float | None:
    text = os.environ.get(IDLE_VARIABLE)
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(IDLE_VARIABLE, text, "watts") from error
