"""The keys under `upstream`: where everything is forwarded to, spelled as the Collector spells its exporters.

`upstream.endpoint` is the short form: one destination with the defaults. Other than in the Collector the scheme says
the transport, sizes are of bytes, nothing is given up unless `max_elapsed_time` is set, and there is no queue to
enable: it is always there, and durable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config_types import (
    Check,
    CheckAfter,
    CheckBeside,
    Count,
    Duration,
    FilePath,
    HeaderName,
    PositiveDuration,
    PositiveSize,
    Section,
    Size,
    Switch,
    whole_number,
)
from joulegram_sink.outbox_items import MAX_BACKLOG_BYTES
from joulegram_sink.upstream_destination import (
    Batching,
    Destination,
    Header,
    Retry,
    Tls,
    parse_endpoint,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_NS = 10**9
_RETRY = Retry()
_BATCHING = Batching()


def _endpoint(value: object) -> object:
    try:
        parse_endpoint(value if isinstance(value, str) else "")
    except ConfigError as error:
        raise ValueError(error.expected) from None
    return value


def _url(value: object) -> object:
    if not str(_endpoint(value)).startswith("http"):
        raise ValueError("http://host:port/path or https://host/path")
    return value


def _name(value: object) -> object:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError("a name of letters, digits, '-', '_' and '.', 64 at most: files are called after it")
    return value


def _header(value: object) -> object:
    """A plain value as the mapping it stands for; YAML reads some as numbers."""
    return {"value": str(value)} if isinstance(value, str | int | float) else value


def _version(value: object) -> object:
    return str(value) if isinstance(value, float) else value  # 1.2 without quotes is a number of YAML


def _factor(value: float) -> float:
    if not 1 <= value <= 100:
        raise ValueError("a number from 1 to 100")
    return value


def _spread(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError("a number from 0 to below 1")
    return value


def _alone(value: bool, beside: Mapping[str, Any]) -> bool:
    others = [name for name in ("ca_file", "cert_file", "key_file", "server_name_override") if beside.get(name)]
    if value and others:
        raise ValueError(f"false, because {others[0]} beside it asks for TLS")
    return value


def _agrees(value: UpstreamTlsConfig | None, beside: Mapping[str, Any]) -> UpstreamTlsConfig | None:
    scheme = str(beside.get("endpoint", "")).partition("://")[0]
    if value is not None and value.insecure and scheme in {"grpcs", "https"}:
        raise ValueError(f"no `insecure` beside an endpoint of {scheme}://")
    if value is not None and not value.insecure and scheme == "http":
        raise ValueError("no TLS beside an endpoint of http://; https:// asks for it")
    return value


def _either(value: str | None, beside: Mapping[str, Any]) -> str | None:
    if value is not None and beside.get("destinations"):
        raise ValueError("either upstream.endpoint or upstream.destinations, not both: name it there")
    return value


Factor = Annotated[float, CheckAfter(_factor)]
Spread = Annotated[float, CheckAfter(_spread)]
Endpoint = Annotated[str, Check(_endpoint)]
Url = Annotated[str, Check(_url)]


@dataclass(frozen=True)
class UpstreamTlsConfig(Section):
    """TLS towards a destination; the files are followed when they change."""

    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    server_name_override: str | None = None
    min_version: Annotated[Literal["1.2", "1.3"], Check(_version)] = "1.2"
    insecure: Annotated[Switch, CheckBeside(_alone)] = False


@dataclass(frozen=True)
class HeaderConfig(Section):
    """A header's value: as it stands, or the text of a file, with `prefix` before it."""

    value: str | None = field(default=None, repr=False)
    file: FilePath | None = None
    prefix: str = field(default="", repr=False)


@dataclass(frozen=True)
class RetryConfig(Section):
    """How often what can be taken later is offered again; for ever, unless `max_elapsed_time` is above 0."""

    enabled: Switch = True
    initial_interval: PositiveDuration = round(_RETRY.initial_interval_s * _NS)
    randomization_factor: Spread = _RETRY.randomization_factor
    multiplier: Factor = _RETRY.multiplier
    max_interval: PositiveDuration = round(_RETRY.max_interval_s * _NS)
    max_elapsed_time: Duration = round(_RETRY.max_elapsed_time_s * _NS)


@dataclass(frozen=True)
class BatchConfig(Section):
    """What is sent together; sizes are of bytes before compression."""

    flush_timeout: Duration = round(_BATCHING.flush_timeout_s * _NS)
    min_size: Size = _BATCHING.min_bytes
    max_size: PositiveSize = _BATCHING.max_bytes
    max_requests: Count = _BATCHING.max_requests


@dataclass(frozen=True)
class SendingQueueConfig(Section):
    """The queue of a destination; `queue_size` bytes behind it, nothing more is taken in until there is room."""

    num_consumers: Annotated[int, whole_number(1, 64)] = 2
    queue_size: PositiveSize = MAX_BACKLOG_BYTES
    batch: BatchConfig = BatchConfig()


@dataclass(frozen=True)
class DestinationConfig(Section):
    """One next hop."""

    endpoint: Endpoint
    traces_endpoint: Url | None = None
    metrics_endpoint: Url | None = None
    logs_endpoint: Url | None = None
    profiles_endpoint: Url | None = None
    compression: Literal["none", "gzip", "zstd"] | None = None
    tls: Annotated[UpstreamTlsConfig | None, CheckBeside(_agrees)] = None
    headers: dict[HeaderName, Annotated[HeaderConfig, Check(_header)]] = field(default_factory=dict)
    timeout: PositiveDuration = 10 * _NS
    retry_on_failure: RetryConfig = RetryConfig()
    sending_queue: SendingQueueConfig = SendingQueueConfig()


@dataclass(frozen=True)
class UpstreamConfig(Section):
    """Where everything is forwarded to: one endpoint, or destinations by name."""

    # Before the endpoint, whose check looks at it: an error there quotes an address, never the headers of these.
    destinations: dict[Annotated[str, Check(_name)], DestinationConfig] = field(default_factory=dict)
    endpoint: Annotated[Endpoint | None, CheckBeside(_either)] = None


def destinations(config: UpstreamConfig, endpoint_key: str = "upstream.endpoint") -> tuple[Destination, ...]:
    """What the keys say, for the sink; empty where nothing is forwarded.

    Args:
        config: checked.
        endpoint_key: what errors call the short form, as whoever set it wrote it.

    Raises:
        ConfigError: a header with not exactly one of `value` and `file`.
    """
    if config.endpoint is not None:
        return (Destination("upstream", config.endpoint, endpoint_key),)
    return tuple(_destination(name, section) for name, section in config.destinations.items())


def _destination(name: str, config: DestinationConfig) -> Destination:
    key = f"upstream.destinations.{name}"
    own = {
        "traces": config.traces_endpoint,
        "metrics": config.metrics_endpoint,
        "logs": config.logs_endpoint,
        "profiles": config.profiles_endpoint,
    }
    retry, queue = config.retry_on_failure, config.sending_queue
    return Destination(
        name=name,
        endpoint=config.endpoint,
        key=f"{key}.endpoint",
        signal_endpoints=tuple((signal, url) for signal, url in own.items() if url is not None),
        compression=config.compression,
        tls=_tls(config.tls),
        headers=tuple(_one_header(header, value, key) for header, value in config.headers.items()),
        timeout_s=config.timeout / _NS,
        retry=Retry(
            enabled=retry.enabled,
            initial_interval_s=retry.initial_interval / _NS,
            multiplier=retry.multiplier,
            randomization_factor=retry.randomization_factor,
            max_interval_s=retry.max_interval / _NS,
            max_elapsed_time_s=retry.max_elapsed_time / _NS,
        ),
        batching=Batching(
            flush_timeout_s=queue.batch.flush_timeout / _NS,
            min_bytes=queue.batch.min_size,
            max_bytes=queue.batch.max_size,
            max_requests=queue.batch.max_requests,
        ),
        num_consumers=queue.num_consumers,
        queue_bytes=queue.queue_size,
    )


def _tls(config: UpstreamTlsConfig | None) -> Tls | None:
    if config is None or config.insecure:
        return None
    return Tls(config.ca_file, config.cert_file, config.key_file, config.server_name_override, config.min_version)


def _one_header(name: str, config: HeaderConfig, key: str) -> Header:
    if (config.value is None) == (config.file is None) or (config.prefix and config.file is None):
        # What stands there may be a secret, and stays unsaid.
        raise ConfigError(
            f"{key}.headers.{name}", "a header that is not shown", "a text, or `file` with or without `prefix`"
        )
    return Header(name.lower(), config.value, config.file, config.prefix)
