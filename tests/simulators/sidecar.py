"""joulegram as real processes on free ports, a known power trace behind them, and what they wrote read back.

Invariants:
    * a process never outlives its `with` block;
    * nothing waits for a time: what is awaited is a condition, and it is an AssertionError with the log where it does
      not come.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, ClassVar, Self

from joulegram_pipeline.energy import TickBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.energy import Tick
    from simulators.powercap import PowercapTree

JOULEGRAM = (sys.executable, "-m", "joulegram_service")

_GRPC_PORT = re.compile(r"OTLP/gRPC on \S+, port (\d+)")
_HTTP_PORT = re.compile(r"OTLP/HTTP on \S+, port (\d+)")
_HEALTH_PORT = re.compile(r"/readyz on port (\d+)")
_AGENT_UP = re.compile(r"agent on \S+: source")
_POLL_S = 0.02


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would configure joulegram or a job, and with `more`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "KFM_", "JOULEGRAM_"))}
    return kept | more


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 20.0, log: Path | None = None) -> None:
    """Block until `done()` holds; AssertionError naming `what`, with the log, if it does not come to that."""
    until = time.monotonic() + timeout_s
    while not done():
        said = "" if log is None else f"; it said:\n{log.read_text()}"
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {what}{said}"
        time.sleep(_POLL_S)


class Service:
    """`joulegram <arguments>` as a process of its own; entered, it runs, left, it is gone.

    Args:
        directory: where it runs and logs.
        arguments: of the command line.
        name: of its log file.
        environment: added to a clean one.
    """

    program: ClassVar[Sequence[str]] = JOULEGRAM

    def __init__(self, directory: Path, *arguments: str, name: str, environment: dict[str, str] | None = None) -> None:
        self.log = directory / f"{name}.log"
        self._directory = directory
        self._arguments = arguments
        self._environment = clean_environment(**(environment or {}))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.program, *self._arguments], cwd=self._directory, env=self._environment, stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def said(self) -> str:
        """All it logged so far."""
        return self.log.read_text()

    def wait_for(self, pattern: re.Pattern[str], timeout_s: float = 30.0) -> re.Match[str]:
        """The first place in its log that matches; AssertionError if it ends before."""
        assert self.process is not None
        process = self.process

        def said_or_ended() -> bool:
            return pattern.search(self.said) is not None or process.poll() is not None

        wait_until(said_or_ended, pattern.pattern, timeout_s, self.log)
        found = pattern.search(self.said)
        assert found is not None, f"it ended with {process.returncode} and said:\n{self.said}"
        return found

    def wait_end(self, timeout_s: float = 30.0) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_end(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and reap it; nothing if it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Serve(Service):
    """`joulegram serve` on free ports.

    Args:
        directory: where it runs; its data is in ``directory/data``.
        arguments: more flags; they may repeat ``--grpc-endpoint`` to choose a port.
        name: of its log file.
        environment: added to a clean one.
    """

    def __init__(
        self, directory: Path, *arguments: str, name: str = "serve", environment: dict[str, str] | None = None
    ) -> None:
        self.data = directory / "data"
        endpoints = (
            "--grpc-endpoint=127.0.0.1:0",
            "--http-endpoint=127.0.0.1:0",
            "--metrics-endpoint=127.0.0.1:0",
            f"--data-dir={self.data}",
        )
        super().__init__(directory, "serve", *endpoints, *arguments, name=name, environment=environment)

    @property
    def target(self) -> str:
        """host:port of its gRPC listener, once it has one."""
        return f"127.0.0.1:{self.wait_for(_GRPC_PORT)[1]}"

    @property
    def http_url(self) -> str:
        """URL of its HTTP listener, once it has one."""
        return f"http://127.0.0.1:{self.wait_for(_HTTP_PORT)[1]}"

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page of its health listener."""
        url = f"http://127.0.0.1:{self.wait_for(_HEALTH_PORT)[1]}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_ready(self) -> Self:
        """Block until /readyz says yes."""
        wait_until(lambda: self.get("/readyz")[0] == 200, "ready", log=self.log)
        return self


class Agent(Service):
    """`joulegram agent` on a socket, over a powercap tree, with more flags and a larger environment."""

    program = (*JOULEGRAM, "agent")

    def __init__(
        self, directory: Path, tree: PowercapTree, *arguments: str, environment: dict[str, str] | None = None
    ) -> None:
        self.socket = directory / "agent.sock"
        super().__init__(
            directory,
            f"--socket={self.socket}",
            "--source=powercap",
            f"--sysfs-root={tree.root}",
            *arguments,
            name="agent",
            environment=environment,
        )

    def wait_ready(self) -> Self:
        """Block until it listens."""
        self.wait_for(_AGENT_UP)
        return self


class BareAgent(Agent):
    """The process that `joulegram agent` becomes, without the slower start of the command line before it."""

    program = (sys.executable, "-P", "-m", "joulegram_agent")


class PowerTrace:
    """Spends seeded random energy in a tree's domains, in real time, while it is entered.

    Args:
        tree: its `truth_uj` says what was spent.
        seed: of the energies.
        watts: at most, of each domain.
        step_s: between two steps.
    """

    def __init__(self, tree: PowercapTree, seed: int, watts: int = 60, step_s: float = 0.05) -> None:
        self._tree = tree
        self._random = random.Random(seed)
        self._most_uj = round(watts * step_s * 1e6)
        self._step_s = step_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power trace", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._step_s):
            self._tree.advance({domain: self._random.randrange(self._most_uj) for domain in self._tree.domain_ids})


def ledger_lines(data: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The whole lines of a data directory's ledger, of one kind if one is named; none where there is no ledger."""
    path = data / "ledger" / "telemetry" / "ledger-000000.ndjson"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in lines if kind in (None, line["kind"])]


def run_lines(data: Path, run_id: str) -> list[dict[str, Any]]:
    """The lines a ledger has of a run as such, one for each revision."""
    return [line for line in ledger_lines(data, "run") if line["run_id"] == run_id]


def archived_ticks(data: Path) -> list[Tick]:
    """Every tick in a data directory's archive, as it stands there."""
    return [
        tick
        for path in sorted((data / "ticks").glob("*.ndjson"))
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
        for tick in TickBatch.from_json(json.loads(line)["batch"]).ticks
    ]


def run_command(
    directory: Path, *arguments: str, environment: dict[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """`joulegram run <arguments>` to its end, with its data in ``directory/data`` unless they say otherwise."""
    return subprocess.run(
        run_line(directory, *arguments),
        cwd=directory,
        env=clean_environment(**(environment or {})),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


def run_line(directory: Path, *arguments: str) -> Sequence[str]:
    """The command line of `run_command`."""
    return [*JOULEGRAM, "run", f"--data-dir={directory / 'data'}", *arguments]
