"""The keys of `joulegram.yaml` and their defaults, as frozen dataclasses; config_file.py reads them.

A process that is handed a configuration needs no more than this: what read it stays behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from joulegram_agent.counters import HIGHEST_POWER_W, MAX_POWER_W
from joulegram_service.config_receiver import ReceiverConfig
from joulegram_service.config_spool import SpoolConfig
from joulegram_service.config_types import Duration, Endpoint, Factor, HostId, Section, whole_number
from joulegram_service.config_upstream import UpstreamConfig

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class MetricsConfig(Section):
    """Where /metrics, /healthz, /readyz and /debug/pipelines are served.

    With `otlp_interval` the metrics are also sent upstream as OTLP, that often.
    """

    endpoint: Endpoint = "127.0.0.1:9464"
    otlp_interval: Duration | None = None


@dataclass(frozen=True)
class LogsConfig(Section):
    """joulegram's own log on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    encoding: Literal["console", "json"] = "console"


@dataclass(frozen=True)
class TelemetryConfig(Section):
    """joulegram's own telemetry."""

    metrics: MetricsConfig = MetricsConfig()
    logs: LogsConfig = LogsConfig()


@dataclass(frozen=True)
class AgentConfig(Section):
    """Where energy comes from: an agent behind a socket, or one inside the sidecar.

    Where `socket` is not set and `source` is auto, /run/joulegram/agent.sock is used if it is there and may be used.
    """

    socket: Path | None = None
    source: Literal["auto", "powercap", "msr", "perf", "hwmon", "nvml", "model", "none"] = "auto"
    sysfs_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    dev_root: Path = Path("/dev")
    cgroup_root: Path = Path("/sys/fs/cgroup")
    processes: Literal["named", "all"] = "named"
    max_power_w: Annotated[int, whole_number(1, HIGHEST_POWER_W)] = MAX_POWER_W


@dataclass(frozen=True)
class EnergyConfig(Section):
    """The join of energy."""

    max_wait: Duration = 30 * 10**9
    settle_after: Duration = 10**9
    retention: Duration = 24 * 3600 * 10**9
    idle: Literal["bucket", "share"] = "bucket"


@dataclass(frozen=True)
class FactorConfig(Section):
    """A declared emission factor, instead of a table (C-06)."""

    kg_per_kwh: Factor
    source: str


@dataclass(frozen=True)
class CarbonConfig(Section):
    """The join of intensity."""

    region: str | None = None
    table: str | None = None
    table_dirs: tuple[Path, ...] = ()
    factor: FactorConfig | None = None


@dataclass(frozen=True)
class SelectorConfig(Section):
    """Which spans are joined."""

    names: tuple[str, ...] = ("etl.job", "etl.*")
    attributes: tuple[str, ...] = ("kfm.node",)


@dataclass(frozen=True)
class StacConfig(Section):
    """The Items a job may name for patching."""

    roots: tuple[Path, ...] | None = None
    key: Literal["telemetry", "kfm:telemetry"] = "telemetry"


@dataclass(frozen=True)
class HostConfig(Section):
    """What records call this machine; never its host name (C-01)."""

    hw_id: HostId = "host-unknown"
    hw_name: HostId = "kfm-node"


@dataclass(frozen=True)
class RunConfig(Section):
    """When a run ends that says nothing of its end."""

    idle_timeout: Duration = 15 * 60 * 10**9


@dataclass(frozen=True)
class ShutdownConfig(Section):
    """How long a stop may take."""

    drain_timeout: Duration = 10 * 10**9


@dataclass(frozen=True)
class ConfigKeys(Section):
    """The whole file."""

    data_dir: Path = Path("joulegram-data")
    receiver: ReceiverConfig = ReceiverConfig()
    spool: SpoolConfig = SpoolConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    agent: AgentConfig = AgentConfig()
    energy: EnergyConfig = EnergyConfig()
    carbon: CarbonConfig = CarbonConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    selector: SelectorConfig = SelectorConfig()
    stac: StacConfig = StacConfig()
    host: HostConfig = HostConfig()
    run: RunConfig = RunConfig()
    shutdown: ShutdownConfig = ShutdownConfig()


@dataclass(frozen=True)
class Config(ConfigKeys):
    """A configuration that was read and checked.

    Args:
        origin: what set a key, where it was not the file.
    """

    origin: Mapping[tuple[str, ...], str] = field(default_factory=dict, repr=False, compare=False)

    def said(self, *keys: str) -> str:
        """A key as whoever set it wrote it: ``carbon.region``, ``JOULEGRAM_REGION (carbon.region)``, ``--region …``."""
        return self.origin.get(keys, ".".join(keys))
