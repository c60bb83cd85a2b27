"""Which source measures: counters if there are any, else the model; always with the reason (S0-20).

Invariants:
    * a source is imported where it is tried: the others are not in the agent's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.reader import NoEnergyReader, Reader
from joulegram_pipeline.energy import Method
from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from joulegram_pipeline.clock import Clock

COUNTERS = ("powercap", "msr", "perf", "hwmon")
"""The sources that measure CPUs, in the order in which ``auto`` tries them."""

SOURCES = ("auto", *COUNTERS, "nvml", "model", "none")


def open_reader(
    source: str = "auto",
    *,
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    dev_root: Path = Path("/dev"),
    watts_idle: float | None = None,
    watts_max: float | None = None,
    clock: Clock | None = None,
    nvml_library: str | None = None,
) -> Reader:
    """Open the source asked for; missing hardware is a reason, never an error.

    Args:
        source: ``auto``: the first of `COUNTERS` that measures anything, else the model, with the reasons why not
            those before it; the NVIDIA boards beside it, where there are any. One of `COUNTERS`, or ``nvml`` for the
            boards alone: that or no energy. ``model``: always the model. ``none``: no energy.
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted.
        dev_root: ``/dev``, or where the host's is mounted.
        watts_idle: for the model, watts of an idle logical CPU; by default the table's (`model_table`).
        watts_max: for the model, watts of a busy logical CPU; likewise.
        clock: for the model, and for boards whose power is added up.
        nvml_library: the NVIDIA library's name or path; None is the driver's own.

    Raises:
        ConfigError: a source that is none of `SOURCES`, or watts the model refuses.
    """
    if source not in SOURCES:
        raise ConfigError("source", source, "one of " + ", ".join(SOURCES))
    if source == "none":
        return NoEnergyReader("disabled")
    if source == "nvml":
        from joulegram_agent.nvml import NvmlReader
        from joulegram_agent.nvml_library import LIBRARY

        boards = NvmlReader(nvml_library or LIBRARY, clock)
        if boards.domains():
            return boards
        boards.close()
        return NoEnergyReader(boards.reason or source)
    reasons: list[str] = []
    for name in COUNTERS:
        if source not in {"auto", name}:
            continue
        reader = _open_counters(name, sysfs_root, proc_root, dev_root, "; ".join(reasons) or None)
        if reader.method is Method.MEASURED:
            return _with_gpus(reader, nvml_library, clock) if source == "auto" else reader
        reasons.append(reader.reason or name)
        reader.close()
    reason = "; ".join(reasons) or None
    if source in COUNTERS:
        return NoEnergyReader(reason or source)
    from joulegram_agent.model import ModelReader

    model = ModelReader(proc_root, sysfs_root, reason, watts_idle=watts_idle, watts_max=watts_max, clock=clock)
    return _with_gpus(model, nvml_library, clock) if source == "auto" else model


def _with_gpus(reader: Reader, library: str | None, clock: Clock | None) -> Reader:
    from joulegram_agent.beside import with_gpus
    from joulegram_agent.nvml_library import LIBRARY

    return with_gpus(reader, library or LIBRARY, clock)


def _open_counters(name: str, sysfs_root: Path, proc_root: Path, dev_root: Path, instead_of: str | None) -> Reader:
    if name == "msr":
        from joulegram_agent.msr import MsrReader

        return MsrReader(dev_root, sysfs_root, proc_root, instead_of=instead_of)
    if name == "perf":
        from joulegram_agent.perf import PerfReader

        return PerfReader(sysfs_root, proc_root, instead_of=instead_of)
    if name == "hwmon":
        from joulegram_agent.hwmon_energy import HwmonReader

        return HwmonReader(sysfs_root, instead_of=instead_of)
    from joulegram_agent.powercap import PowercapReader

    return PowercapReader(sysfs_root)
