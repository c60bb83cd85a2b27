"""What of this machine's energy can be read, what not, and the one least privilege that would mend it.

1. Every source is opened and its domains are read once; so are the sensors beside.
2. `auto`'s choice is asked for, as `joulegram agent` would make it.
3. Where that does not measure, the first advice of `_ADVICE` whose source and reason are there is given: they stand in
   the order of what they allow beside reading energy, the least first. Where it does, only what is said of boards.
4. It is said whether the processor blurs its counters over short times (`energy_filter`).
5. Where a management controller is there and cannot be asked, it is said what would mend that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegram_agent.cgroups import CGROUP_ROOT, Cgroups
from joulegram_agent.energy_filter import FilterState, energy_filter
from joulegram_agent.ipmi import SENSOR_ID, has_controller
from joulegram_agent.nvml_library import LIBRARY
from joulegram_agent.reasons import MASKED, NO_POWERCAP, PERMISSION_DENIED
from joulegram_agent.sensor_sources import open_sensors
from joulegram_agent.sources import COUNTERS, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from joulegram_agent.reader import Reader
    from joulegram_agent.sensors import SensorTotals
    from joulegram_pipeline.energy import Method

BOARDS = "nvml"
"""The source of boards; it measures no CPU."""

_READ_POWERCAP = (
    "run the agent as uid 0 without any capability, or as its own user with CAP_DAC_READ_SEARCH alone (systemd: "
    "AmbientCapabilities=CAP_DAC_READ_SEARCH): the counters are readable by root only"
)
_READ_PERF = (
    "give the agent CAP_PERFMON alone (systemd: AmbientCapabilities=CAP_PERFMON), and start it with --source perf"
)
_READ_MSR = (
    "run the agent as uid 0 with CAP_SYS_RAWIO, which allows far more than reading energy: prefer a kernel with "
    "powercap or the power PMU"
)
_MOUNT_SYS = (
    "mount the host's /sys read-only at a path of its own, such as /host/sys, and start the agent with --sysfs-root "
    "/host/sys: the container's runtime hides powercap under /sys. The counters are root's: uid 0 reads them, without "
    "any capability"
)
_OPEN_BOARDS = (
    "let the agent's user open /dev/nvidiactl, /dev/nvidia0 and so on for reading and writing: everybody may, unless "
    "the driver's NVreg_DeviceFileMode says otherwise, and then its NVreg_DeviceFileGID names the group to be in; in a "
    "container its runtime has to pass them. No capability is needed"
)
_LOAD_MODULES = (
    "load a module: intel_rapl_common and intel_rapl_msr show the counters of Intel and AMD under "
    "/sys/class/powercap; in a virtual machine there is mostly nothing to show, and the model is what there is"
)
_OPEN_IPMI = (
    'give /dev/ipmi0 to the agent\'s user alone, by a udev rule: SUBSYSTEM=="ipmi", KERNEL=="ipmi0", '
    'OWNER="joulegram", MODE="0600". Not to the group of its socket: who has it open may send the controller any '
    "command"
)
_LOAD_IPMI = (
    "this machine tells of a management controller and shows no /dev/ipmi0: modprobe ipmi_devintf (and ipmi_si, where "
    "it is not loaded); the controller may tell what the platform draws"
)
_ADVICE = (
    ("powercap", PERMISSION_DENIED, _READ_POWERCAP),
    ("hwmon", PERMISSION_DENIED, _READ_POWERCAP),
    ("powercap", MASKED, _MOUNT_SYS),
    ("perf", PERMISSION_DENIED, _READ_PERF),
    ("msr", PERMISSION_DENIED, _READ_MSR),
    (BOARDS, PERMISSION_DENIED, _OPEN_BOARDS),
    ("powercap", NO_POWERCAP, _LOAD_MODULES),
)


@dataclass(frozen=True, slots=True)
class Found:
    """One source.

    Args:
        source: its name.
        domains: that were read.
        refused: those that were not, each with its reason.
        reason: why nothing can be read; None where something was.
    """

    source: str
    domains: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class FoundCgroups:
    """What can be told of containers.

    Args:
        version: ``v1``, ``v2`` or ``hybrid``; None where CPU time is not counted by cgroup.
        cgroups: whose CPU time was read.
        keys: containers and pods among them.
        reason: why nothing can be read; None where something was.
    """

    version: str | None
    cgroups: int
    keys: frozenset[str]
    reason: str | None

    def text(self) -> str:
        """For people."""
        if self.version is None:
            return self.reason or "nothing"
        containers = sum("container/" in key for key in self.keys)
        return f"{self.version}, {self.cgroups} read, containers: {containers}, pods: {len(self.pods)}"

    @property
    def pods(self) -> frozenset[str]:
        """Uids of pods, those that show only by a container too."""
        return frozenset(key.split("/")[1] for key in self.keys if key.startswith("pod/"))

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "version": self.version,
            "cgroups": self.cgroups,
            "containers": sorted(key.rpartition("/")[2] for key in self.keys if "container/" in key),
            "pods": sorted(self.pods),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `joulegram agent doctor` prints.

    Args:
        found: of each source, in the order in which ``auto`` tries them, then the boards.
        takes: what ``auto`` takes.
        method: of that.
        advice: what would make CPU energy measured, or that of boards beside it; None where all is, or nothing would.
        cgroups: what can be told of containers.
        blurred: whether RAPL is filtered, and by what that is told.
        beside: the sensors that are shown beside and are in no sum, read once.
        beside_advice: what would let a management controller be asked; None where it is, or where there is none.
    """

    found: tuple[Found, ...]
    takes: str
    method: Method
    advice: str | None
    cgroups: FoundCgroups
    blurred: tuple[FilterState, str]
    beside: tuple[SensorTotals, ...] = ()
    beside_advice: str | None = None

    @property
    def measures(self) -> bool:
        """Whether one source measures the CPUs, and has all of its domains."""
        return _measures(self.found)

    def text(self) -> str:
        """For people."""
        lines = []
        for each in self.found:
            lines.append(f"{each.source:<9} {', '.join(each.domains) or 'nothing'}")
            lines += [f"{'':<9} not {domain}: {reason}" for domain, reason in each.refused]
            if each.reason is not None:
                lines.append(f"{'':<9} {each.reason}")
        lines += [f"{'beside':<9} {item.sensor.id} ({item.sensor.kind.value}): {_shown(item)}" for item in self.beside]
        if self.beside_advice is not None:
            lines.append(f"{'':<9} to do: {self.beside_advice}")
        lines.append(f"{'auto':<9} takes {self.takes}, {self.method.value}")
        lines.append(f"{'filter':<9} {self.blurred[0].value}: {self.blurred[1]}")
        lines.append(f"{'cgroups':<9} {self.cgroups.text()}")
        if self.advice is not None:
            lines.append(f"{'to do':<9} {self.advice}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "sources": [
                {
                    "source": each.source,
                    "domains": list(each.domains),
                    "refused": dict(each.refused),
                    "reason": each.reason,
                }
                for each in self.found
            ],
            "beside": [each.to_json() for each in self.beside],
            "beside_advice": self.beside_advice,
            "auto": {"source": self.takes, "method": self.method.value},
            "energy_filter": {"state": self.blurred[0].value, "told_by": self.blurred[1]},
            "cgroups": self.cgroups.to_json(),
            "advice": self.advice,
        }


def examine(
    sysfs_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    dev_root: Path = Path("/dev"),
    nvml_library: str = LIBRARY,
    cgroup_root: Path = CGROUP_ROOT,
) -> Diagnosis:
    """Try every source; see `open_reader` for the arguments, and `Cgroups` for `cgroup_root`."""

    def opened(source: str) -> Reader:
        return open_reader(
            source, sysfs_root=sysfs_root, proc_root=proc_root, dev_root=dev_root, nvml_library=nvml_library
        )

    found = tuple(_try(source, opened) for source in (*COUNTERS, BOARDS))
    sensors = open_sensors(sysfs_root, dev_root)
    sensors.sample()
    sensors.close()
    auto = opened("auto")
    takes, method = auto.source, auto.method
    auto.close()
    advice = _advice(found if not _measures(found) else found[len(COUNTERS) :])
    beside = sensors.totals
    return Diagnosis(
        found,
        takes,
        method,
        advice,
        _look_at_cgroups(cgroup_root),
        energy_filter(proc_root, dev_root),
        beside,
        _beside_advice(beside, sysfs_root),
    )


def _look_at_cgroups(cgroup_root: Path) -> FoundCgroups:
    cgroups = Cgroups(cgroup_root)
    cgroups.open()
    cgroups.close()
    version = None if cgroups.hierarchy is None else cgroups.hierarchy.version
    return FoundCgroups(version, len(cgroups.counters()), cgroups.keys, cgroups.reason)


def _shown(totals: SensorTotals) -> str:
    if totals.reason is not None:
        return totals.reason
    return "a counter of energy" if totals.power_uw is None else f"{totals.power_uw / 1_000_000} W"


def _beside_advice(beside: tuple[SensorTotals, ...], sysfs_root: Path) -> str | None:
    for totals in beside:
        if totals.sensor.id == SENSOR_ID:
            return _OPEN_IPMI if (totals.reason or "").startswith(PERMISSION_DENIED) else None
    return _LOAD_IPMI if has_controller(sysfs_root) else None


def _measures(found: tuple[Found, ...]) -> bool:
    return any(each.domains and not each.refused for each in found if each.source in COUNTERS)


def _try(source: str, opened: Callable[[str], Reader]) -> Found:
    reader = opened(source)
    try:
        reading = reader.read()
    finally:
        reader.close()
    return Found(
        source,
        tuple(reading.counters_uj),
        tuple((gap.domain, gap.reason) for gap in reading.gaps),
        reader.reason if not reading.counters_uj else None,
    )


def _advice(found: tuple[Found, ...]) -> str | None:
    for source, code, text in _ADVICE:
        for each in found:
            reasons = [each.reason or "", *(reason for _, reason in each.refused)]
            if each.source == source and any(reason.startswith(code) for reason in reasons):
                return text
    return None
