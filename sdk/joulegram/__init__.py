"""joulegram: joules in, grams out; what a job may import, light enough to cost it nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joulegram_agent.powercap import read_intel_rapl_energy_joules
    from joulegram_pipeline.clock import utc_now_iso
    from joulegram_pipeline.files import safe_mkdir
    from joulegram_pipeline.units import JOULES_PER_KWH, joules_to_kwh

__version__ = "0.1.0"

__all__ = [
    "JOULES_PER_KWH",
    "__version__",
    "joules_to_kwh",
    "read_intel_rapl_energy_joules",
    "safe_mkdir",
    "utc_now_iso",
]

_HOMES = {
    "JOULES_PER_KWH": "joulegram_pipeline.units",
    "joules_to_kwh": "joulegram_pipeline.units",
    "read_intel_rapl_energy_joules": "joulegram_agent.powercap",
    "safe_mkdir": "joulegram_pipeline.files",
    "utc_now_iso": "joulegram_pipeline.clock",
}
"""Where each name lives (S0-17 to S0-21); imported when it is first asked for, so that `import joulegram` is free."""


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'joulegram' has no attribute {name!r}")
    return getattr(import_module(home), name)
