"""Real processes that spend CPU time in a known ratio under one real sidecar, and what each of their spans is given.

Invariants:
    * a worker steers by the CPU time it has had, not by the clock, so the ratio holds on a machine that others use too;
    * what is true is what each process says of its own CPU time, from the beginning of its span to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc

from simulators.otlp_server import SERVICES
from simulators.powercap import PowercapTree
from simulators.sidecar import PowerTrace, Serve, archived_ticks, ledger_lines, wait_until
from simulators.traces import request, span, trace_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from joulegram_pipeline.energy import Tick

_EXPORT = f"/{SERVICES['traces']}/Export"
_WORK = """
import json, sys, time
share, seconds = float(sys.argv[1]), float(sys.argv[2])
sys.stdin.readline()
start_ns, begun_s, had_s = time.time_ns(), time.monotonic(), time.process_time()
if not share:
    time.sleep(seconds)
while share and (spent_s := time.process_time() - had_s) < share * seconds:
    if spent_s > share * (time.monotonic() - begun_s):
        time.sleep(0.002)
cpu_ns = round((time.process_time() - had_s) * 1e9)
print(json.dumps({"start_ns": start_ns, "end_ns": time.time_ns(), "cpu_ns": cpu_ns}), flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Given:
    """One process's span.

    Args:
        cpu_ns: the CPU time it had in its span, as it says itself.
        counted_ns: the same as the ticks that share time with the span have it.
        energy_uj: what the span was given for itself.
        scope: as its record has it.
    """

    cpu_ns: int
    counted_ns: int
    energy_uj: int
    scope: str


class Worker:
    """A process that, when told, spends `share` of a core for `seconds`; with a share of 0 it sleeps."""

    def __init__(self, share: float, seconds: float) -> None:
        command = [sys.executable, "-c", _WORK, str(share), str(seconds)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def go(self) -> None:
        """Begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def done(self) -> dict[str, int]:
        """Its span and its CPU time, when it has finished; it stays alive, so that the agent still sees it."""
        assert self._process.stdout is not None
        said: dict[str, int] = json.loads(self._process.stdout.readline())
        return said


def spans_of_workers(directory: Path, shares: Mapping[str, float], seconds: float) -> dict[str, Given]:
    """Run a worker for each name at the same time, each with a span of its own process, and read the records.

    Args:
        directory: an empty one.
        shares: of a core, by the name of the worker.
        seconds: how long.
    """
    tree = PowercapTree(directory / "sys", packages=2)
    flags = ("--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS")
    with Serve(directory, *flags) as serve, ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(serve.wait_ready().target))
        workers = {name: stack.enter_context(Worker(share, seconds)) for name, share in shares.items()}

        def ticks() -> list[Tick]:
            return archived_ticks(serve.data)

        def export(number: int, name: str, pid: int, start_ns: int, end_ns: int) -> None:
            one = span(number, start_ns, end_ns, name=name, trace=trace_id(number))
            call: Any = channel.unary_unary(_EXPORT)  # type: ignore[call-arg]
            call(request(one, resource={"process.pid": pid}), timeout=20, wait_for_ready=True)

        # A process is a scope of its own from the tick in which it was first counted: name them all before they begin.
        now = time.time_ns()
        for number, (name, worker) in enumerate(workers.items(), start=1):
            export(number, f"etl.early.{name}", worker.pid, now - 1_000_000, now)
        pids = {worker.pid for worker in workers.values()}
        wait_until(lambda: bool(ticks()) and pids <= ticks()[-1].process_cpu_ns.keys(), "all in a tick", log=serve.log)
        with PowerTrace(tree, seed=20260103):
            for worker in workers.values():
                worker.go()
            said = {name: worker.done() for name, worker in workers.items()}
            last_ns = max(one["end_ns"] for one in said.values())
            wait_until(lambda: ticks()[-1].end_ns > last_ns, "a tick behind the work", log=serve.log)
        for number, (name, one) in enumerate(said.items(), start=101):
            export(number, f"etl.work.{name}", workers[name].pid, one["start_ns"], one["end_ns"])
        names = {f"etl.work.{name}" for name in workers}

        def records() -> dict[str, dict[str, Any]]:
            return {line["name"]: line["energy"] for line in ledger_lines(serve.data, "span") if line["name"] in names}

        wait_until(lambda: records().keys() == names, "the records of all", log=serve.log)
        found, kept = records(), ticks()
    return {
        name: Given(
            said[name]["cpu_ns"],
            counted_ns(kept, workers[name].pid, said[name]["start_ns"], said[name]["end_ns"]),
            found[f"etl.work.{name}"]["exclusive_uj"],
            found[f"etl.work.{name}"]["scope"],
        )
        for name in workers
    }


def counted_ns(ticks: list[Tick], pid: int, start_ns: int, end_ns: int) -> int:
    """The CPU time of a process in the ticks that share time with a window."""
    return sum(tick.process_cpu_ns.get(pid, 0) for tick in ticks if tick.start_ns < end_ns and tick.end_ns > start_ns)
