"""`etl_node`: a node's span with the name and the attributes of the contract (S1-21 … S1-25).

    with etl_node("hrrr_ingest", telemetry, domain="atmo") as span:
        span.set_attribute("records_out", ingest())

`energy.cpu_j`, `energy.gpu_w_avg` and `carbon.gco2e` are not set here (S1-23, S1-24): the sidecar adds them, because it
alone sees what else ran, and a span that never passes one has none. The run id is read when the span opens, so a
decorator at import time asks for nothing.
"""

from __future__ import annotations

import functools
import inspect
import time
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from joulegram_pipeline.errors import ConfigError
from joulegram_pipeline.units import ns_to_s

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from opentelemetry.trace import Span

    from joulegram.otel import Telemetry

P = ParamSpec("P")
R = TypeVar("R")


class etl_node(AbstractContextManager["Span"]):  # noqa: N801 - used as a function is
    """A context manager, sync and async, and a decorator of functions of both kinds.

    An exception marks the span as ERROR, stands on it as an event, and goes on.

    Args:
        node: name of the node; the span is ``etl.node.<node>``.
        telemetry: of `init_otel`; by default that of service ``kfm.etl.<node>`` in this run (S1-21).
        domain: attribute `kfm.domain`.
        pipeline_kind: attribute `kfm.pipeline_kind`.
        component: attribute `kfm.component`.
        attributes: more of them.

    Raises:
        ConfigError: a node without a name.
    """

    def __init__(
        self,
        node: str,
        telemetry: Telemetry | None = None,
        *,
        domain: str = "unknown",
        pipeline_kind: str = "nightly",
        component: str = "etl",
        attributes: dict[str, Any] | None = None,
    ) -> None:
        if not node or node != node.strip():
            raise ConfigError("node", node, "a name without spaces around it")
        self._node = node
        self._telemetry = telemetry
        self._attributes = {
            **(attributes or {}),
            "kfm.node": node,
            "kfm.component": component,
            "kfm.domain": domain,
            "kfm.pipeline_kind": pipeline_kind,
        }
        self._open = ExitStack()
        self._span: Span | None = None
        self._since_ns = 0

    def __enter__(self) -> Span:
        if self._span is not None:
            raise RuntimeError(f"got node {self._node!r} that was entered before, expected a new etl_node")
        telemetry = self._telemetry
        if telemetry is None:
            from joulegram.otel import init_otel  # noqa: PLC0415 - OpenTelemetry when a node runs, not at import

            telemetry = init_otel(f"kfm.etl.{self._node}", component=self._attributes["kfm.component"])
        self._since_ns = time.monotonic_ns()
        attributes = self._attributes | {"kfm.run_id": telemetry.run_id}
        span = telemetry.tracer.start_as_current_span(f"etl.node.{self._node}", attributes=attributes)
        self._span = self._open.enter_context(span)
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.set_attribute("timing.duration_s", ns_to_s(time.monotonic_ns() - self._since_ns))
        self._open.__exit__(kind, value, trace)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, value, trace)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Each call of the function is a span of its own."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def node_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self._again():
                    return await function(*args, **kwargs)

            return node_async  # type: ignore[return-value]

        @functools.wraps(function)
        def node(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._again():
                return function(*args, **kwargs)

        return node

    def _again(self) -> Self:
        kept = dict(self._attributes)
        return type(self)(
            kept.pop("kfm.node"),
            self._telemetry,
            domain=kept.pop("kfm.domain"),
            pipeline_kind=kept.pop("kfm.pipeline_kind"),
            component=kept.pop("kfm.component"),
            attributes=kept,
        )
