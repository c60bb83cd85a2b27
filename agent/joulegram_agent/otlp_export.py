"""The agent's own OTLP export, for a node without a sidecar; beside one it is off, because the sidecar asks the agent.

Invariants:
    * nothing is queued: series are cumulative, so what was not taken now is in the next request;
    * a receiver that is away, slow or hostile costs one attempt at a time, bounded in time and bytes, and no sample.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from joulegram_agent.exposition import Family, Sample, counter
from joulegram_agent.otlp_export_http import Reply, Target, post
from joulegram_pipeline.errors import UpstreamError
from joulegram_pipeline.life import Background

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from types import TracebackType

    from joulegram_agent.otlp_export_payload import EnergySeries

log = logging.getLogger(__name__)

ATTEMPT_S = 10.0
LAST_ATTEMPT_S = 2.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0

RETRIED = frozenset({429, 502, 503, 504})
"""opentelemetry-proto docs/specification.md, "Retryable Response Codes"."""


class OtlpExport(Background):
    """Posts a series every `interval_s`; an async context manager that posts once more when it is left.

    Args:
        series: what is sent.
        target: to where.
        interval_s: between two posts.
        first_backoff_s: after a failure; doubled with each, up to `MAX_BACKOFF_S`, and spread by half.
    """

    def __init__(
        self,
        series: EnergySeries,
        target: Target,
        interval_s: float,
        *,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        super().__init__(self._run, "OTLP export")
        self.outcomes: Counter[str] = Counter()
        self._series = series
        self.target = target
        self._interval_s = interval_s
        self._first_backoff_s = first_backoff_s
        self._failures = 0
        self._tls = _tls() if target.tls else None

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, value, trace)
        await self.export(LAST_ATTEMPT_S)

    def families(self) -> Iterable[Family]:
        """Its metrics."""
        samples = [Sample(count, {"outcome": outcome}) for outcome, count in self.outcomes.items()]
        yield counter("joulegram_agent_otlp_exports_total", "Posts of the agent's own OTLP.", samples, "outcome")

    async def export(self, attempt_s: float = ATTEMPT_S) -> float:
        """Post what is new, if anything is; seconds until the next attempt."""
        request = self._series.request()
        if request is None:
            return self._interval_s
        body, at_ns = request
        try:
            async with asyncio.timeout(attempt_s):
                reply = await post(self.target, body, self._tls)
        except TimeoutError:
            return self._failed(f"{self.target}: no answer within {attempt_s:g} s")
        except UpstreamError as error:
            return self._failed(str(error))
        if reply.status in RETRIED:
            return self._failed(f"{self.target}: HTTP {reply.status}", _retry_after_s(reply))
        self._failures = 0
        if 200 <= reply.status < 300:
            self._series.sent(at_ns)
            self._count(reply)
        else:
            self.outcomes["refused"] += 1
            log.warning("OTLP to %s: got HTTP %d, expected 200: not sent", self.target, reply.status)
        return self._interval_s

    async def _run(self) -> None:
        wait_s = self._interval_s
        while True:
            await asyncio.sleep(wait_s)
            wait_s = await self.export()

    def _failed(self, problem: str, retry_after_s: float = 0.0) -> float:
        self.outcomes["failed"] += 1
        log.warning("OTLP: %s: sent again with what is new then", problem)
        backoff_s = min(MAX_BACKOFF_S, self._first_backoff_s * float(1 << min(self._failures, 16)))
        self._failures += 1
        return max(retry_after_s, backoff_s * random.uniform(0.5, 1.0))  # noqa: S311  (spreads agents, keeps no secret)

    def _count(self, reply: Reply) -> None:
        rejected = _rejected(reply.body)
        self.outcomes["partial" if rejected else "sent"] += 1
        if rejected:
            log.warning("OTLP to %s: %d data points rejected: %s", self.target, rejected, reply.body[:300])


def _rejected(body: bytes) -> int:
    """`rejectedDataPoints` of an ExportMetricsServiceResponse; 0 where it says none, or is no JSON."""
    try:
        response: Any = json.loads(body or b"{}")
        return max(0, int(response.get("partialSuccess", {}).get("rejectedDataPoints", 0)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return 0


def _retry_after_s(reply: Reply) -> float:
    """Seconds of a Retry-After; its form of a date counts as none, and more than `MAX_BACKOFF_S` as that."""
    text = reply.headers.get("retry-after", "")
    return min(float(text), MAX_BACKOFF_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def _tls() -> ssl.SSLContext:
    import ssl  # an agent that sends nowhere by TLS does without OpenSSL

    return ssl.create_default_context()
