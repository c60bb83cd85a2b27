"""One real process whose threads spend CPU time in a known ratio, with the SDK in it, under one real sidecar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from simulators.powercap import PowercapTree
from simulators.sidecar import PowerTrace, Serve, archived_ticks, ledger_lines, wait_until
from simulators.workers import Given

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_WORK = """
import json, sys, threading, time
from joulegram import init_otel

shares, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
telemetry = init_otel("threads", run_id="threads-0001")
with telemetry.tracer.start_as_current_span("etl.early"):
    pass
sys.stdin.readline()
spent_ns = {}

def work(name, share):
    with telemetry.tracer.start_as_current_span(f"etl.work.{name}"):
        begun_s, had_s = time.monotonic(), time.thread_time()
        if not share:
            time.sleep(seconds)
        while share and (spent_s := time.thread_time() - had_s) < share * seconds:
            if spent_s > share * (time.monotonic() - begun_s):
                time.sleep(0.002)
        spent_ns[name] = round((time.thread_time() - had_s) * 1e9)

threads = [threading.Thread(target=work, args=each) for each in shares.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
telemetry.shutdown()
print(json.dumps(spent_ns), flush=True)
sys.stdin.readline()
"""


def spans_of_threads(directory: Path, shares: Mapping[str, float], seconds: float) -> dict[str, Given]:
    """Run a thread for each name at the same time, each in a span of its own, and read the records.

    Args:
        directory: an empty one.
        shares: of a core, by the name of the thread; 0 sleeps.
        seconds: how long.
    """
    tree = PowercapTree(directory / "sys", packages=2)
    flags = ("--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS")
    with Serve(directory, *flags) as serve:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{serve.wait_ready().target}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        command = [sys.executable, "-c", _WORK, json.dumps(shares), str(seconds)]
        with (
            PowerTrace(tree, seed=20260104),
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            ) as process,
        ):
            try:
                assert process.stdin is not None
                assert process.stdout is not None

                def is_named() -> bool:
                    ticks = archived_ticks(serve.data)
                    return bool(ticks) and process.pid in ticks[-1].process_cpu_ns

                wait_until(is_named, "the process in a tick", log=serve.log)
                process.stdin.write("go\n")
                process.stdin.flush()
                spent_ns: dict[str, int] = json.loads(process.stdout.readline())

                def records() -> dict[str, dict[str, Any]]:
                    lines = ledger_lines(serve.data, "span")
                    return {line["name"]: line["energy"] for line in lines if line["name"].startswith("etl.work.")}

                wait_until(lambda: len(records()) == len(shares), "the records of all", log=serve.log)
                found = {name: records()[f"etl.work.{name}"] for name in shares}
            finally:
                process.kill()
    return {
        name: Given(spent_ns[name], spent_ns[name], energy["exclusive_uj"], energy["scope"])
        for name, energy in found.items()
    }
