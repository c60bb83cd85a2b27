"""The keys under `upstream`: where everything is forwarded to."""

from __future__ import annotations

from joulegram_service.config_types import Section, Upstream


class UpstreamConfig(Section):
    """Where everything is forwarded to."""

    endpoint: Upstream = None
