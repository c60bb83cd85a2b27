"""What the machine does at this moment, for a look: CPU, memory and GPUs (S1-19, S1-20; carbon-ops' samples).

Invariants:
    * what cannot be read is None or an absent entry, never 0;
    * psutil and NVML are loaded when they are asked for, and need not be there.
"""

# ruff: noqa: PLC0415 - psutil may be absent, and NVML is for who asks for it

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_agent.nvml_library import Handle, NvmlLibrary

_GB = 1 << 30


def sample_cpu_util_pct(interval_s: float = 1.0) -> float | None:
    """How busy the machine's CPUs are over an interval, in percent of all of them (S1-19).

    Args:
        interval_s: blocks for so long; 0 compares with the last call and blocks not at all.

    Returns:
        0 to 100; None where psutil is not installed or the first call does not block.
    """
    try:
        import psutil
    except ImportError:
        return None
    return float(psutil.cpu_percent(interval=interval_s or None))


def gpu_power_watts(library: str | None = None) -> float | None:
    """What all NVIDIA boards draw now, in watts (S1-20); for energy over a time ask an agent (D-09).

    Args:
        library: NVML's name or path.

    Returns:
        None where there is no board, or one of them does not say.
    """
    from joulegram_agent.nvml_library import NvmlError

    try:
        with _boards(library) as (nvml, boards):
            return sum(nvml.power_mw(board) for board in boards) / 1000 if boards else None
    except NvmlError:
        return None


def gpu_metrics(library: str | None = None) -> list[dict[str, Any]]:
    """One entry for each NVIDIA board: its number and its watts where it says them."""
    from joulegram_agent.nvml_library import NvmlError

    found: list[dict[str, Any]] = []
    with contextlib.suppress(NvmlError), _boards(library) as (nvml, boards):
        for number, board in enumerate(boards):
            entry: dict[str, Any] = {"gpu_id": number}
            with contextlib.suppress(NvmlError):
                entry["power_watts"] = nvml.power_mw(board) / 1000
            found.append(entry)
    return found


def cpu_metrics() -> dict[str, float | None]:
    """`cpu_percent` since the last call, `cpu_freq_mhz`; None where psutil does not say."""
    out: dict[str, float | None] = {"cpu_percent": sample_cpu_util_pct(0), "cpu_freq_mhz": None}
    with contextlib.suppress(ImportError, OSError, NotImplementedError, AttributeError):
        import psutil

        out["cpu_freq_mhz"] = getattr(psutil.cpu_freq(), "current", None)  # it is None where there is none
    return out


def memory_metrics() -> dict[str, float | None]:
    """`memory_used_gb`, `memory_percent`, `memory_available_gb`; None where psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return dict.fromkeys(("memory_used_gb", "memory_percent", "memory_available_gb"))
    memory = psutil.virtual_memory()
    return {
        "memory_used_gb": memory.used / _GB,
        "memory_percent": float(memory.percent),
        "memory_available_gb": memory.available / _GB,
    }


@contextlib.contextmanager
def _boards(library: str | None) -> Iterator[tuple[NvmlLibrary, list[Handle]]]:
    from joulegram_agent.nvml_library import LIBRARY, NvmlLibrary

    nvml = NvmlLibrary(library or LIBRARY)
    try:
        yield nvml, [nvml.board_at(index) for index in range(nvml.count())]
    finally:
        nvml.close()
