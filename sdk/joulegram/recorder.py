"""`EnergyRecorder`: what a piece of work spent, measured around it.

    with EnergyRecorder() as recorder:
        work()
    print(recorder.result)

Invariants:
    * the work's own exception is recorded and raised again; nothing that is missing for the measurement raises;
    * the window is the work's, from the first instant to the last; waiting for the closing tick is after it and not
      in the duration, the span or the bytes (docs/sdk.md says how the ends are cut);
    * a recorder is used once, and `finalize` gives the same result however often it is asked (D-28).
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from joulegram.meter import MONITOR_ONLY, WAIT_S, Meter, attribution_mode, wall_steps
from joulegram.process_io import NETWORK_REASON, bytes_between, disk_bytes
from joulegram.telemetry import TelemetryConfig, TelemetryResult
from joulegram_pipeline.clock import utc_iso
from joulegram_pipeline.units import joules_to_kwh, ns_to_s, uj_to_j

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from types import TracebackType

    from joulegram.otel import Telemetry
    from joulegram.process_io import DiskBytes
    from joulegram.recorder_otel import RunSpan
    from joulegram.window import WindowEnergy

__all__ = ["EnergyRecorder", "TelemetryConfig", "TelemetryRecorder", "TelemetryResult"]

Scope = Literal["host", "process"]
P = ParamSpec("P")
R = TypeVar("R")

_OUTSIDE = "EnergyRecorder must be used as a context manager"
_STEP = "clock_step: the wall clock was set during the work, so its ticks cannot be told"


class EnergyRecorder:
    """Records one run, or one piece of it (S0-22 … S0-38); a context manager, sync and async, and a decorator.

    Energy comes from an agent where there is one, else from powercap where this process may read it, else it is
    None with the reason. As a decorator it records each call with a recorder of its own; the last one's result is
    in the function's attribute `last_result`.

    Args:
        config: of the run; by default what the environment says (`TelemetryConfig.from_environment`).
        scope: whose energy: the ``host``'s (C-52), or that of this ``process`` with its descendants, by CPU time.
        telemetry: of `init_otel`: then a span `etl.job` is open around the work, and counters are added to.
        socket: of an agent; by default JOULEGRAM_AGENT_SOCKET, else the agent's own.
        wait_s: how long the end may wait for the closing tick, in seconds; 0 waits for nothing, and the last
            second of the work may then not be covered.
        model: where nothing is measured, model the energy from CPU time, and say so.
        strict: a byte counter that fell is the seed's ValueError and not a reason (C-11).
        sysfs_root: ``/sys``, where there is no agent.

    Raises:
        ConfigError, IdentifierError: of the configuration.
    """

    def __init__(
        self,
        config: TelemetryConfig | None = None,
        *,
        scope: Scope = "host",
        telemetry: Telemetry | None = None,
        socket: str | os.PathLike[str] | None = None,
        wait_s: float = WAIT_S,
        model: bool = False,
        strict: bool = False,
        sysfs_root: Path | None = None,
    ) -> None:
        self._given: dict[str, Any] = {
            "scope": scope,
            "telemetry": telemetry,
            "socket": socket,
            "wait_s": wait_s,
            "model": model,
            "strict": strict,
            "sysfs_root": sysfs_root,
        }
        if config is None:
            run_id = {} if telemetry is None else {"run_id": telemetry.run_id}
            config = TelemetryConfig.from_environment(os.environ, **run_id)
        self.config = config
        self.scope = scope
        self._meter: Meter | None = None
        self._span: RunSpan | None = None
        self._began: tuple[int, int, DiskBytes] | None = None
        self._ended: tuple[int, int, DiskBytes, BaseException | None] | None = None
        self._result: TelemetryResult | None = None

    # -- around the work -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._began is not None:
            raise RuntimeError("got a recorder that was used before, expected a new one")
        given = self._given
        roots = {} if given["sysfs_root"] is None else {"sysfs_root": given["sysfs_root"]}
        self._meter = Meter(given["socket"], model=given["model"], **roots)
        if given["telemetry"] is not None:
            from joulegram.recorder_otel import RunSpan  # noqa: PLC0415 - OpenTelemetry only for who has it

            self._span = RunSpan(given["telemetry"], self.config)
        self._began = time.time_ns(), time.monotonic_ns(), disk_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(value)
        self.finalize()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(value)
        assert self._meter is not None
        assert self._ended is not None
        import asyncio  # noqa: PLC0415 - who awaits has it loaded; to import it takes longer than all of this

        # The loop goes on while this waits for a tick.
        await asyncio.to_thread(self._meter.wait, self._ended[0], self._given["wait_s"])
        self.finalize()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Record every call of a function, each with a recorder made as this one was."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def recorded_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                recorder = self._again()
                work: Awaitable[Any] = function(*args, **kwargs)
                try:
                    async with recorder:
                        return await work
                finally:
                    recorded_async.last_result = recorder.result  # type: ignore[attr-defined]

            return recorded_async  # type: ignore[return-value]

        @functools.wraps(function)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
            recorder = self._again()
            try:
                with recorder:
                    return function(*args, **kwargs)
            finally:
                recorded.last_result = recorder.result  # type: ignore[attr-defined]

        return recorded

    # -- what came out -------------------------------------------------------------------------------------

    @property
    def result(self) -> TelemetryResult:
        """As `finalize`."""
        return self.finalize()

    def finalize(self) -> TelemetryResult:
        """End the measurement if it has not ended, and say what it found; the same each time.

        Raises:
            RuntimeError: it was never entered (S0-29).
            ValueError: with `strict`, a byte counter fell.
        """
        if self._result is not None:
            return self._result
        if self._began is None or self._meter is None:
            raise RuntimeError(_OUTSIDE)
        self._end(None)
        assert self._ended is not None
        end_ns, end_mono_ns, after, failure = self._ended
        start_ns, start_mono_ns, before = self._began
        self._meter.wait(end_ns, self._given["wait_s"])
        window = self._meter.energy(start_ns, end_ns)
        self._meter.close()
        stepped = wall_steps(start_ns, end_ns, start_mono_ns, end_mono_ns)
        try:
            read, written, reason = bytes_between(before, after, strict=self._given["strict"])
            self._result = self._compose(window, stepped, end_mono_ns - start_mono_ns, (read, written, reason), failure)
        finally:
            if self._span is not None and not self._meter.is_forked:
                self._span.end(self._result, end_ns, failure)
        return self._result

    def _end(self, failure: BaseException | None) -> None:
        if self._ended is None:
            self._ended = time.time_ns(), time.monotonic_ns(), disk_bytes(), failure
            if self._span is not None:
                self._span.leave()

    def _again(self) -> EnergyRecorder:
        return EnergyRecorder(self.config, **self._given)

    def _compose(
        self,
        window: WindowEnergy,
        stepped: bool,
        duration_ns: int,
        disk: tuple[int | None, int | None, str | None],
        failure: BaseException | None,
    ) -> TelemetryResult:
        config = self.config
        energy_uj = window.host_uj if self.scope == "host" else window.process_uj
        reason = window.reason
        if self.scope == "process" and energy_uj is None and window.host_uj is not None:
            reason = reason or "no_cpu_time: the ticks do not say what this process spent"
        assert self._meter is not None
        mode = attribution_mode(self._meter.origin, window)
        if stepped:
            energy_uj, reason, mode = None, _STEP, MONITOR_ONLY
        energy_j = None if energy_uj is None else uj_to_j(energy_uj)
        kwh = None if energy_j is None else joules_to_kwh(energy_j)
        factor = config.emission_factor_kg_per_kwh
        reasons = {"bytes_sent": NETWORK_REASON, "bytes_received": NETWORK_REASON}
        if disk[2] is not None:
            reasons |= {
                name: disk[2]
                for name, value in (("disk_bytes_read", disk[0]), ("disk_bytes_write", disk[1]))
                if value is None
            }
        if kwh is None or factor is None:
            reasons["co2_kg"] = "no energy" if kwh is None else "no emission factor was declared"
        return TelemetryResult(
            run_id=config.run_id,
            started_at=utc_iso(window.start_ns),
            ended_at=utc_iso(window.end_ns),
            duration_seconds=ns_to_s(duration_ns),
            energy_joules=energy_j,
            energy_kwh=kwh,
            co2_kg=None if kwh is None or factor is None else kwh * factor,
            bytes_sent=None,
            bytes_received=None,
            disk_bytes_read=disk[0],
            disk_bytes_write=disk[1],
            emission_factor_kg_per_kwh=factor,
            emission_factor_source=config.emission_factor_source,
            energy_method=window.method.value if energy_j is not None else "unavailable",
            energy_scope=self.scope,
            energy_reason=reason,
            energy_covered_seconds=0.0 if energy_j is None else ns_to_s(window.covered_ns),
            allocation_ratio=None if stepped else window.allocation_ratio,
            attribution_mode=mode,
            reasons=reasons,
            status="ok" if failure is None else "error",
        )


TelemetryRecorder = EnergyRecorder
"""The seed's name (S0-29)."""
