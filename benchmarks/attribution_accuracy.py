"""What processes that spend CPU time at 1:3 are given of the energy, beside one that sleeps.

    python benchmarks/attribution_accuracy.py
    python benchmarks/attribution_accuracy.py --seconds 20 --rounds 3
    python benchmarks/attribution_accuracy.py --threads

Real processes, the real `/proc`, a real sidecar with the agent in it; only the counters are simulated, two packages
with DRAM whose power changes at random 20 times a second. The processes steer by the CPU time they have had, so the
ratio holds on a machine that others use. Aim: each within 3 points of its part of the CPU time, and nothing for the one
that sleeps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from simulators.threaded_worker import spans_of_threads  # noqa: E402
from simulators.workers import spans_of_workers  # noqa: E402

SHARES = {"one": 0.2, "three": 0.6, "sleeps": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of work (default 20)")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    parser.add_argument("--threads", action="store_true", help="threads of one process that has the SDK in it")
    arguments = parser.parse_args()
    measure = spans_of_threads if arguments.threads else spans_of_workers
    who = "thread" if arguments.threads else "process"
    print(f"{who:<8} {'CPU s':>8} {'of both':>8} {'J':>10} {'of both':>8} {'off, points':>12}", flush=True)
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="joulegram-accuracy-") as directory:
            given = measure(Path(directory), SHARES, arguments.seconds)
        cpu_ns, energy_uj = (sum(getattr(one, name) for one in given.values()) for name in ("cpu_ns", "energy_uj"))
        for name, one in given.items():
            spent, got = one.cpu_ns / cpu_ns, one.energy_uj / energy_uj
            print(
                f"{name:<8} {one.cpu_ns / 1e9:>8.3f} {spent:>8.2%} {one.energy_uj / 1e6:>10.3f} {got:>8.2%} "
                f"{100 * (got - spent):>+12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
