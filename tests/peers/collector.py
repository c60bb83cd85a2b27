"""The OpenTelemetry Collector as a real process, before or behind the sidecar, and configurations for it."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any, Self

import yaml

from simulators.sidecar import clean_environment, wait_until

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_READY = re.compile(r"Everything is ready")


def collector_config(
    receivers: dict[str, Any],
    exporter: str,
    exporter_config: dict[str, Any],
    processors: dict[str, Any] | None = None,
    extensions: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Collector with an OTLP receiver and one exporter for traces, metrics and logs.

    Args:
        receivers: what stands under ``receivers.otlp.protocols``.
        exporter: its type, as ``otlp_grpc``.
        exporter_config: what stands under it.
        processors: of traces only, in this order.
        extensions: by name.
    """
    pipe = {"receivers": ["otlp"], "exporters": [exporter]}
    return {
        "receivers": {"otlp": {"protocols": receivers}},
        "exporters": {exporter: exporter_config},
        "processors": processors or {},
        "extensions": extensions or {},
        "service": {
            "extensions": list(extensions or {}),
            "pipelines": {
                "traces": pipe | {"processors": list(processors or {})},
                "metrics": dict(pipe),
                "logs": dict(pipe),
            },
            "telemetry": {"metrics": {"level": "none"}},
        },
    }


class Collector:
    """A Collector as a process of its own; entered, it is ready, left, it is gone.

    Args:
        program: as build.py gives it.
        directory: where its configuration and log lie.
        config: as `collector_config` makes it.
        name: of these files.
        before: put before its command line, as ``taskset -c 0``.
        environment: added to a clean one.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        config: dict[str, Any],
        name: str = "otelcol",
        before: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = directory / f"{name}.log"
        self._config = directory / f"{name}.yaml"
        self._config.write_text(yaml.safe_dump(config, sort_keys=False))
        self._command = [*before, str(program), f"--config={self._config}"]
        self._environment = clean_environment(**(environment or {}))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        try:
            process = self.process
            wait_until(
                lambda: _READY.search(self.said) is not None or process.poll() is not None, "ready", 30.0, self.log
            )
            assert process.poll() is None, f"the Collector ended with {process.returncode} and said:\n{self.said}"
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def said(self) -> str:
        """All it logged so far."""
        return self.log.read_text()

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and reap it; nothing if it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
