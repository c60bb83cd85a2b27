"""OpenTelemetry for one run of a job: a tracer and a meter that say which run they speak for.

Invariants:
    * nothing happens at import, and no global provider is set: a second run in one process works like the first (D-25);
    * a job never waits for its telemetry longer than it says, and runs without a collector (D-27);
    * where telemetry goes is said by OpenTelemetry's own variables, and by nothing else (S1-17).
"""

# ruff: noqa: PLC0415 - importing this module costs nothing; what is slow is imported when a run starts

from __future__ import annotations

import atexit
import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import IdentifierError
from joulegram_pipeline.ids import check_run_id, new_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

SHUTDOWN_S = 5.0
"""How long the end of a process waits for the last of its telemetry."""

TRACER_SCOPE, METER_SCOPE, SCOPE_VERSION = "kfm.telemetry.tracer", "kfm.telemetry.energy", "0.1.0"
"""Instrumentation scopes (S0-14)."""

METRIC_INTERVAL_MS = 5000
"""How often metrics are sent where OTEL_METRIC_EXPORT_INTERVAL does not say (S0-25)."""

CI_RUN_IDS = ("GITHUB_RUN_ID", "CI_PIPELINE_ID")
"""Variables that name a run of a CI system, asked in this order after KFM_RUN_ID."""

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"

_Key = tuple[str, str, str | None, str, bool]

_lock = threading.Lock()
_handles: dict[_Key, Telemetry] = {}
_generated: str | None = None
"""The id of a run that nobody named, while it lasts, so that asking twice gives the same run."""


class _Closer:
    """Closes providers on a thread of its own, so that whoever waits can stop waiting."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._wanted = threading.Event()
        self._closed = threading.Event()
        # Started now: an interpreter that is ending starts no threads.
        self._thread = self._start()

    def wait(self, timeout_s: float) -> bool:
        self._wanted.set()
        if not self._thread.is_alive() and not self._closed.is_set():
            self._thread = self._start()  # a forked child has none of its parent's threads
        return self._closed.wait(max(0.0, timeout_s))

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="joulegram telemetry", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        self._wanted.wait()
        try:
            self._close()
        finally:
            self._closed.set()


@dataclass(frozen=True, slots=True, eq=False)
class Telemetry:
    """The telemetry of one run.

    Args:
        service_name: of its resource.
        run_id: of its resource, and of all that is recorded for it.
        tracer: makes its spans.
        meter: makes its instruments.
    """

    service_name: str
    run_id: str
    tracer: Tracer
    meter: Meter
    _key: _Key
    _closer: _Closer

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Send what is left and end this telemetry; it also happens when the process ends.

        Args:
            timeout_s: seconds this may take; 0 lets go at once.

        Returns:
            Whether it ended in time. What was not sent by then may be lost; the job's work is not.
        """
        global _generated  # noqa: PLW0603 - the run that nobody named ends with its telemetry
        with _lock:
            if _handles.get(self._key) is self:
                del _handles[self._key]
            if _generated == self.run_id and not any(handle.run_id == self.run_id for handle in _handles.values()):
                _generated = None
        atexit.unregister(self.shutdown)
        return self._closer.wait(timeout_s)


def init_otel(
    service_name: str,
    *,
    service_version: str | None = None,
    run_id: str | None = None,
    component: str = "etl",
    cpu_time: bool = True,
    span_processors: Sequence[SpanProcessor] = (),
) -> Telemetry:
    """Start the telemetry of a run: traces and metrics over OTLP/gRPC (S0-24, S1-13, C-19).

    The same arguments in the same run give the same handle until it is shut down; another run gives a new one. Where
    no endpoint is set, nothing is sent and all else works.

    Args:
        service_name: resource attribute `service.name`.
        service_version: resource attribute `service.version`.
        run_id: resource attribute `kfm.run_id`; by default KFM_RUN_ID, else the run id of the CI system, else a new
            ULID (C-15).
        component: resource attribute `kfm.component`.
        cpu_time: set `joulegram.cpu_ns` on every span (`JouleSpanProcessor`), so that spans of one process that
            overlap share its energy by what each of them spent.
        span_processors: more of them, for a handle that is new; they are shut down with it.

    Raises:
        IdentifierError: the run id, given or in KFM_RUN_ID, may not name a run.
        ImportError: the extra ``joulegram[sdk]`` is not installed.
    """
    with _lock:
        run_id = _run_id(run_id)
        key = (run_id, service_name, service_version, component, cpu_time)
        handle = _handles.get(key)
        if handle is None:
            handle = _handles[key] = _make(key, span_processors)
            atexit.register(handle.shutdown)
        return handle


def _run_id(given: str | None) -> str:
    global _generated  # noqa: PLW0603 - see its declaration
    named = given if given is not None else os.environ.get("KFM_RUN_ID") or None
    if named is not None:
        return check_run_id(named)
    for variable in CI_RUN_IDS:
        number = os.environ.get(variable)
        if number:
            try:
                return check_run_id(number)
            except IdentifierError:
                # Pipelines are counted from 1, and a run id has 8 characters at least.
                return check_run_id(f"ci-run-{number}")
    if _generated is None:
        _generated = new_run_id()
    return _generated


def _make(key: _Key, span_processors: Sequence[SpanProcessor]) -> Telemetry:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    run_id, service_name, service_version, component, cpu_time = key
    attributes: dict[str, str | int] = {
        "service.name": service_name,
        "kfm.run_id": run_id,
        "kfm.component": component,
        # What the sidecar names to the agent, so that this process's energy is told from the host's.
        "process.pid": os.getpid(),
    }
    if service_version is not None:
        attributes["service.version"] = service_version
    resource = Resource.create(attributes)
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    if cpu_time:
        from joulegram.span_processor import JouleSpanProcessor

        traces.add_span_processor(JouleSpanProcessor())
    for processor in span_processors:
        traces.add_span_processor(processor)
    readers = []
    if _sends("TRACES"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if _sends("METRICS"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        interval = None if os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") else METRIC_INTERVAL_MS
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=interval))
    metrics = MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)

    def close() -> None:
        traces.shutdown()
        metrics.shutdown()

    return Telemetry(
        service_name=service_name,
        run_id=run_id,
        tracer=traces.get_tracer(TRACER_SCOPE, SCOPE_VERSION),
        meter=metrics.get_meter(METER_SCOPE, SCOPE_VERSION),
        _key=key,
        _closer=_Closer(close),
    )


def _sends(signal: str) -> bool:
    """Whether a signal has somewhere to go, in a protocol that is spoken here."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    if not own and not os.environ.get(_ENDPOINT):
        return False
    variable = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    if not os.environ.get(variable):
        variable = _PROTOCOL
    protocol = os.environ.get(variable) or "grpc"
    if protocol != "grpc":
        log.warning("%s: got %r, expected grpc: %s of this run are not sent", variable, protocol, signal.lower())
        return False
    return True
