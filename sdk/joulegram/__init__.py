"""joulegram: joules in, grams out; what a job may import, light enough to cost it nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulegram.carbon_estimator import CarbonEstimator
    from joulegram.carbon_models import CarbonEstimate, CarbonEstimateDict
    from joulegram.energy_logger import EnergyLogger
    from joulegram.machine_metrics import gpu_power_watts, sample_cpu_util_pct
    from joulegram.nodes import etl_node
    from joulegram.otel import init_otel
    from joulegram.recorder import EnergyRecorder, TelemetryRecorder
    from joulegram.snapshot import Snapshot, delta, take_snapshot
    from joulegram.span_processor import JouleSpanProcessor
    from joulegram.telemetry import TelemetryConfig, TelemetryResult
    from joulegram_agent.powercap import read_cpu_energy_joules, read_intel_rapl_energy_joules
    from joulegram_pipeline.clock import utc_now_iso
    from joulegram_pipeline.files import safe_mkdir
    from joulegram_pipeline.units import JOULES_PER_KWH, joules_to_kwh

    RegionFactor: Any
    lookup_factor: Any
    to_gco2e: Any

__version__ = "0.1.0"

__all__ = [
    "JOULES_PER_KWH",
    "CarbonEstimate",
    "CarbonEstimateDict",
    "CarbonEstimator",
    "EnergyLogger",
    "EnergyRecorder",
    "JouleSpanProcessor",
    "RegionFactor",
    "Snapshot",
    "TelemetryConfig",
    "TelemetryRecorder",
    "TelemetryResult",
    "__version__",
    "delta",
    "etl_node",
    "gpu_power_watts",
    "init_otel",
    "joules_to_kwh",
    "lookup_factor",
    "read_cpu_energy_joules",
    "read_intel_rapl_energy_joules",
    "safe_mkdir",
    "sample_cpu_util_pct",
    "take_snapshot",
    "to_gco2e",
    "utc_now_iso",
]

_HOMES = {
    "CarbonEstimate": "joulegram.carbon_models",
    "CarbonEstimateDict": "joulegram.carbon_models",
    "CarbonEstimator": "joulegram.carbon_estimator",
    "EnergyLogger": "joulegram.energy_logger",
    "EnergyRecorder": "joulegram.recorder",
    "JOULES_PER_KWH": "joulegram_pipeline.units",
    "JouleSpanProcessor": "joulegram.span_processor",
    "RegionFactor": "joulegram.intensity",
    "Snapshot": "joulegram.snapshot",
    "TelemetryConfig": "joulegram.telemetry",
    "TelemetryRecorder": "joulegram.recorder",
    "TelemetryResult": "joulegram.telemetry",
    "delta": "joulegram.snapshot",
    "etl_node": "joulegram.nodes",
    "gpu_power_watts": "joulegram.machine_metrics",
    "init_otel": "joulegram.otel",
    "joules_to_kwh": "joulegram_pipeline.units",
    "lookup_factor": "joulegram.intensity",
    "read_cpu_energy_joules": "joulegram_agent.powercap",
    "read_intel_rapl_energy_joules": "joulegram_agent.powercap",
    "safe_mkdir": "joulegram_pipeline.files",
    "sample_cpu_util_pct": "joulegram.machine_metrics",
    "take_snapshot": "joulegram.snapshot",
    "to_gco2e": "joulegram.intensity",
    "utc_now_iso": "joulegram_pipeline.clock",
}
"""Where each name lives; imported when it is first asked for, so that `import joulegram` is free."""


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'joulegram' has no attribute {name!r}")
    return getattr(import_module(home), name)
