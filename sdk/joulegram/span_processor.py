"""`JouleSpanProcessor`: each span says how much CPU time it had, so that energy goes to who spent it."""

# ruff: noqa: SLF001 - a span's attributes are closed to the public way

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor

from joulegram.cpu_hooks import HOOKS

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from joulegram.cpu_watch import AnyWatch

log = logging.getLogger(__name__)

CPU_NS = "joulegram.cpu_ns"
"""Nanoseconds of CPU time that threads spent while the span was the innermost active one on them."""


class JouleSpanProcessor(SpanProcessor):
    """Sets the integer attribute `joulegram.cpu_ns` on every span that ends, where it is known.

    It is known for spans that are made current (`start_as_current_span`, `use_span`), on any number of threads and
    in asyncio's own loops; time in children is the children's. It is absent, never guessed, for a span that was
    never current, that is still current on another thread when it ends, that ran in an event loop that is not
    followed, or that began before a fork.

    Needs opentelemetry-sdk 1.40, the first that says when a span is about to end; with an older one spans are left
    as they are. The order among other processors does not matter.
    """

    def __init__(self) -> None:
        self._watch: AnyWatch | None = None
        if not hasattr(SpanProcessor, "_on_ending"):
            log.warning("opentelemetry-sdk is older than 1.40: spans get no %s", CPU_NS)
            return
        self._watch = HOOKS.install()

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the interface
        """Give the span its account."""
        watch = self._watch
        if watch is not None:
            watch.begin(span)

    def _on_ending(self, span: Any) -> None:
        """Close the account and write it down, before any processor exports the span."""
        watch = self._watch
        cpu_ns = None if watch is None else watch.end(span)
        if cpu_ns is None:
            return
        # The SDK closes a span's attributes before it calls this, so this writes where they are kept. A span whose
        # attributes are full stays as it is: what the job set is not dropped for ours.
        attributes = span._attributes
        try:
            kept, most = attributes._dict, attributes.maxlen
        except AttributeError:
            return  # an SDK that keeps them elsewhere
        if most is None or len(kept) < most:
            kept[CPU_NS] = cpu_ns

    def shutdown(self) -> None:
        """Let go of what was hooked; spans that end later are left as they are."""
        if self._watch is not None:
            self._watch = None
            HOOKS.uninstall()
