"""`joulegram.yaml` as the user writes it: keys, defaults, and errors that quote the key.

A flag beats the environment, which beats the file. An unknown key, a bad unit or an unresolvable region is an error;
all of them are found at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config_receiver import ReceiverConfig
from joulegram_service.config_spool import SpoolConfig
from joulegram_service.config_types import Duration, Endpoint, Factor, Section
from joulegram_service.config_upstream import UpstreamConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_CREDENTIALS = re.compile(r"://[^/@]*@")
_EXPECTED = {
    "path_type": "a path",
    "string_too_long": "128 characters at most",
    "string_too_short": "1 character at least",
    "string_type": "text",
    "tuple_type": "a list",
}
"""Kinds of pydantic's faults, in the words of the file."""


class MetricsConfig(Section):
    """Where /metrics, /healthz, /readyz and /debug/pipelines are served.

    With `otlp_interval` the metrics are also sent upstream as OTLP, that often.
    """

    endpoint: Endpoint = "127.0.0.1:9464"
    otlp_interval: Duration | None = None


class LogsConfig(Section):
    """joulegram's own log on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    encoding: Literal["console", "json"] = "console"


class TelemetryConfig(Section):
    """joulegram's own telemetry."""

    metrics: MetricsConfig = MetricsConfig()
    logs: LogsConfig = LogsConfig()


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


class EnergyConfig(Section):
    """The join of energy."""

    max_wait: Duration = 30 * 10**9
    retention: Duration = 24 * 3600 * 10**9
    idle: Literal["bucket", "share"] = "bucket"


class FactorConfig(Section):
    """A declared emission factor, instead of a table (C-06)."""

    kg_per_kwh: Factor
    source: str


class CarbonConfig(Section):
    """The join of intensity."""

    region: str | None = None
    table: str | None = None
    table_dirs: tuple[Path, ...] = ()
    factor: FactorConfig | None = None


class SelectorConfig(Section):
    """Which spans are joined."""

    names: tuple[str, ...] = ("etl.job", "etl.*")
    attributes: tuple[str, ...] = ("kfm.node",)


class StacConfig(Section):
    """The Items a job may name for patching."""

    roots: tuple[Path, ...] | None = None
    key: Literal["telemetry", "kfm:telemetry"] = "telemetry"


class HostConfig(Section):
    """What records call this machine; never its host name (C-01)."""

    hw_id: Annotated[str, Field(min_length=1, max_length=128)] = "host-unknown"
    hw_name: Annotated[str, Field(min_length=1, max_length=128)] = "kfm-node"


class RunConfig(Section):
    """When a run ends that says nothing of its end."""

    idle_timeout: Duration = 15 * 60 * 10**9


class ShutdownConfig(Section):
    """How long a stop may take."""

    drain_timeout: Duration = 10 * 10**9


class Config(Section):
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

    _origin: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    def said(self, *keys: str) -> str:
        """A key as whoever set it wrote it: ``carbon.region``, ``JOULEGRAM_REGION (carbon.region)``, ``--region …``."""
        return self._origin.get(keys, ".".join(keys))


ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "JOULEGRAM_DATA_DIR": ("data_dir",),
    "JOULEGRAM_GRPC_ENDPOINT": ("receiver", "protocols", "grpc", "endpoint"),
    "JOULEGRAM_HTTP_ENDPOINT": ("receiver", "protocols", "http", "endpoint"),
    "JOULEGRAM_METRICS_ENDPOINT": ("telemetry", "metrics", "endpoint"),
    "JOULEGRAM_AGENT_SOCKET": ("agent", "socket"),
    "JOULEGRAM_AGENT_SOURCE": ("agent", "source"),
    "JOULEGRAM_SYSFS_ROOT": ("agent", "sysfs_root"),
    "JOULEGRAM_PROC_ROOT": ("agent", "proc_root"),
    "JOULEGRAM_CGROUP_ROOT": ("agent", "cgroup_root"),
    "JOULEGRAM_AGENT_PROCESSES": ("agent", "processes"),
    "JOULEGRAM_REGION": ("carbon", "region"),
    "JOULEGRAM_TABLE": ("carbon", "table"),
    "JOULEGRAM_UPSTREAM": ("upstream", "endpoint"),
    "KFM_EMISSION_FACTOR_KG_PER_KWH": ("carbon", "factor", "kg_per_kwh"),
    "KFM_EMISSION_FACTOR_SOURCE": ("carbon", "factor", "source"),
    "KFM_HW_ID": ("host", "hw_id"),
    "KFM_HW_NAME": ("host", "hw_name"),
}
"""Variables and the keys they override. Others are ignored: Kubernetes sets JOULEGRAM_PORT and the like by itself."""


class ConfigFaultsError(ConfigError):
    """All faults of a configuration at once.

    Args:
        errors: one for each key.
        rest: the sections that are not at fault, the others on their defaults, so that more can be checked.
    """

    def __init__(self, errors: list[ConfigError], rest: Config) -> None:
        self.errors = errors
        self.rest = rest
        first = errors[0]
        super().__init__(first.key, first.got, first.expected)
        self.args = ("\n".join(str(error) for error in errors),)


def load_config(
    path: Path | None,
    flags: Mapping[tuple[str, ...], Any],
    environment: Mapping[str, str] | None = None,
    flag_names: Mapping[tuple[str, ...], str] | None = None,
) -> Config:
    """Read the file, lay the environment over it, and the flags over that.

    Args:
        path: the file; None runs on defaults.
        flags: key paths and the values of flags that were given.
        environment: for tests; the process's own by default.
        flag_names: how the user types the flag of a key path, as ``--region``.

    Raises:
        ConfigFaultsError: quoting every key that is wrong.
        ConfigError: the file cannot be read as YAML.
    """
    environ = os.environ if environment is None else environment
    origin: dict[tuple[str, ...], str] = {}
    faults: list[ConfigError] = []
    raw: dict[str, Any] = {} if path is None else _read(path, environ, faults)
    for name, keys in ENVIRONMENT.items():
        if environ.get(name):
            _put(raw, keys, environ[name])
            origin[keys] = f"{name} ({'.'.join(keys)})"
    for keys, value in flags.items():
        _put(raw, keys, value)
        origin.pop(keys, None)
        if flag_names is not None:
            origin[keys] = f"{flag_names[keys]} ({'.'.join(keys)})"
    faulty = {fault.key.partition(".")[0].partition("[")[0] for fault in faults}
    try:
        config = Config.model_validate({key: value for key, value in raw.items() if key not in faulty})
    except ValidationError as error:
        items = error.errors()
        faults += [_fault(item, origin) for item in items]
        faulty |= {str(item["loc"][0]) for item in items}
        config = Config.model_validate({key: value for key, value in raw.items() if key not in faulty})
    config._origin.update(origin)  # noqa: SLF001 - of a model made here
    if faults:
        raise ConfigFaultsError(faults, config)
    return config


def _read(path: Path, environ: Mapping[str, str], faults: list[ConfigError]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("--config", str(path), f"a readable file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError("--config", str(path), f"UTF-8 ({error})") from error
    try:
        raw = yaml.safe_load(text)
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise ConfigError("--config", type(raw).__name__, "a mapping of keys at the top of the file")
        return {str(key): _substitute(value, str(key), environ, faults) for key, value in raw.items()}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError("--config", str(path), f"YAML ({error})") from error


def _substitute(value: Any, key: str, environ: Mapping[str, str], faults: list[ConfigError]) -> Any:
    if isinstance(value, dict):
        return {str(name): _substitute(inner, f"{key}.{name}", environ, faults) for name, inner in value.items()}
    if isinstance(value, list):
        return [_substitute(inner, f"{key}[{index}]", environ, faults) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = environ.get(match[1], match[2])
        if found is None:
            faults.append(ConfigError(key, match[0], f"an environment variable {match[1]} that is set"))
            return match[0]
        return found

    return _ENV.sub(fill, value)


def _put(raw: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.get(key)
        if not isinstance(inner, dict):
            inner = raw[key] = {}
        raw = inner
    raw[keys[-1]] = value


def _fault(item: Any, origin: Mapping[tuple[str, ...], str]) -> ConfigError:
    where = tuple(str(part) for part in item["loc"])
    key = origin.get(where) or "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])[1:]
    got = item["input"]
    if isinstance(got, str):
        got = _CREDENTIALS.sub("://...@", got)
    if item["type"] == "extra_forbidden":
        return ConfigError(key, got, f"no such key; here may stand {_siblings(where)}")
    if item["type"] == "missing":
        return ConfigError(key, None, "a value: it is required beside its sibling keys")
    if item["type"] == "model_type":
        return ConfigError(key, got, f"a mapping that may hold {_siblings((*where, ''))}")
    if item["type"] in _EXPECTED:
        return ConfigError(key, got, _EXPECTED[item["type"]])
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigError(key, got, message[0].lower() + message[1:])


def _siblings(where: tuple[str, ...]) -> str:
    model: Any = Config
    for part in where[:-1]:
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
        if model is None:
            return "none"
    return ", ".join(sorted(model.model_fields))
