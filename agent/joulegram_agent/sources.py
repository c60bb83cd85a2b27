"""Which source measures: counters if there are any, else the model; always with the reason (S0-20)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.model import WATTS_IDLE, WATTS_MAX, ModelReader
from joulegram_agent.powercap import PowercapReader
from joulegram_agent.reader import NoEnergyReader, Reader
from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from joulegram_pipeline.clock import Clock

SOURCES = ("auto", "powercap", "model", "none")


def open_reader(
    source: str = "auto",
    *,
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    watts_idle: float = WATTS_IDLE,
    watts_max: float = WATTS_MAX,
    clock: Clock | None = None,
) -> Reader:
    """Open the source asked for; missing hardware is a reason, never an error.

    Args:
        source: ``auto``: powercap, else the model with the reason why not powercap. ``powercap``: that or no
            energy. ``model``: always the model. ``none``: no energy.
        sysfs_root: ``/sys``, or where the host's is mounted.
        proc_root: ``/proc``, or where the host's is mounted.
        watts_idle: for the model, watts of an idle logical CPU.
        watts_max: for the model, watts of a busy logical CPU.
        clock: for the model.

    Raises:
        ConfigError: a source that is none of `SOURCES`, or watts the model refuses.
    """
    if source not in SOURCES:
        raise ConfigError("source", source, "one of " + ", ".join(SOURCES))
    if source == "none":
        return NoEnergyReader("disabled")
    reason = None
    if source in {"auto", "powercap"}:
        powercap = PowercapReader(sysfs_root)
        if powercap.reason is None:
            return powercap
        reason = powercap.reason
        powercap.close()
        if source == "powercap":
            return NoEnergyReader(reason)
    return ModelReader(proc_root, reason, watts_idle=watts_idle, watts_max=watts_max, clock=clock)
