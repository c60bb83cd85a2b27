"""`JouleSpanProcessor`: each span says how much CPU time it had, so that energy goes to who spent it."""

from __future__ import annotations

import logging
from sys import modules
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace.propagation import _SPAN_KEY

from joulegram.cpu_hooks import HOOKS
from joulegram.cpu_watch import ACCOUNT, THREADS, Account, change

if TYPE_CHECKING:
    from contextvars import ContextVar

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

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
        self._variable: ContextVar[Context] | None = None
        if not hasattr(SpanProcessor, "_on_ending"):
            log.warning("opentelemetry-sdk is older than 1.40: spans get no %s", CPU_NS)
            return
        self._variable = HOOKS.install()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the interface
        """Give the span its account."""
        if self._variable is None or "gevent" in modules or "trio" in modules or "curio" in modules:
            return
        account = Account()
        account.owner = THREADS.state
        span._joulegram_account = account  # type: ignore[attr-defined]  # noqa: SLF001 - ours

    def _on_ending(self, span: Span) -> None:
        """Close the account and write it down, before any processor exports the span."""
        account: Account | None = getattr(span, ACCOUNT, None)
        if account is None or self._variable is None:
            return
        state, here = THREADS.state, self._variable.get(None)
        if state.account is account or (here is not None and here.get(_SPAN_KEY) is span):
            # It ends where it is active: from here on the time is nobody's, although its context is not left yet.
            change(state, here, here, _SPAN_KEY)
            state.account = None
        one_thread = account.others_ns is None and account.known and account.was_active and state.account is not account
        cpu_ns = account.own_ns if one_thread and account.owner is state else account.total_ns()
        if cpu_ns is None:
            return
        # The SDK closes a span's attributes before it calls this, so this writes where they are kept. A span whose
        # attributes are full stays as it is: what the job set is not dropped for ours.
        attributes: Any = span._attributes  # noqa: SLF001 - see above
        kept = getattr(attributes, "_dict", None)
        if kept is not None and (attributes.maxlen is None or len(kept) < attributes.maxlen):
            kept[CPU_NS] = cpu_ns

    def shutdown(self) -> None:
        """Let go of what was hooked; spans that end later are left as they are."""
        if self._variable is not None:
            self._variable = None
            HOOKS.uninstall()
