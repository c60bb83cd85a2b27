"""The next hops of a configuration, and whether what asks for one has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError
from joulegram_service.config_upstream import destinations

if TYPE_CHECKING:
    from joulegram_service.config import Config
    from joulegram_sink.upstream_destination import Destination


def build_hops(config: Config) -> tuple[Destination, ...]:
    """Where everything is forwarded to; empty where nothing is.

    Raises:
        ConfigError: quoting a key of a destination, or one that makes no sense without any.
    """
    hops = destinations(config.upstream, config.said("upstream", "endpoint"))
    interval_ns = config.telemetry.metrics.otlp_interval
    if interval_ns is not None and not hops:
        raise ConfigError(
            config.said("telemetry", "metrics", "otlp_interval"),
            f"{interval_ns / 1e9:g}s",
            "upstream.endpoint or upstream.destinations beside it: metrics over OTLP go there",
        )
    return hops
