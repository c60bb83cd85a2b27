"""What the agent costs on a busy node: CPU in per cent of a core and resident memory, beside a bare loop.

    python benchmarks/agent.py
    python benchmarks/agent.py --seconds 660 --systems named
    python benchmarks/agent.py --systems bare,carbon-ops     # installs carbon-ops 0.1.1 in a throwaway environment

The node: 8 zones of a simulated powercap tree read at 10 Hz, 10 named processes with a child each, 50 cgroups of a
simulated v2 tree (40 of them containers, each of which spends something every second), and so many sleeping processes
that 400 are on the machine, on its real /proc. The agent is `joulegram agent` as people start it; a client names the
processes and is told the ticks as they are published, as the sidecar is. `all` is the same with --processes all. `bare`
is a loop without anything around it: 8 descriptors and /proc/stat by pread, ten times a second. `carbon-ops` is its
daemon on two zones. With --active each named process starts a child five times a second and waits for it, in place of
one that sleeps. Aims: 0.5 % of a core, 20 MiB. The agent keeps 600 ticks: after ten minutes its memory stays what it
is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
# In place of this folder, whose `peers` would hide that of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from joulegram_agent.subscriber import Subscriber  # noqa: E402
from joulegram_pipeline.errors import AgentError  # noqa: E402
from simulators.cgroupfs import CgroupTree  # noqa: E402
from simulators.powercap import PowercapTree  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_pipeline.energy import Tick

PROCESSES, NAMED = 400, 10
PODS, CONTAINERS = 4, 36
MS = 1_000_000

BARE = """
import os, sys, time
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]
due = time.monotonic()
while True:
    for fd in fds:
        os.pread(fd, 4096, 0)
    due += 0.1
    time.sleep(max(0, due - time.monotonic()))
"""


def node_tree(root: Path) -> CgroupTree:
    """50 cgroups: 4 pods with 9 containers each, 4 containers of docker, 2 units, and the slices above them."""
    tree = CgroupTree(root)
    for number in range(PODS):
        pod = f"kubepods.slice/kubepods-pod{number:08x}_0000_0000_0000_000000000000.slice"
        for index in range(CONTAINERS // PODS):
            tree.create(f"{pod}/cri-containerd-{number * 16 + index:064x}.scope")
    for number in range(PODS):
        tree.create(f"system.slice/docker-{number:064x}.scope")
    for unit in ("sshd", "cron", "dbus"):
        tree.create(f"system.slice/{unit}.service")
    assert len(tree.used_ns) - 1 == 49
    tree.create("user.slice")
    return tree


@contextmanager
def sleepers(*, active: bool = False) -> Iterator[list[int]]:
    """Fill the machine up to 400 processes; the pids of those to be named, shells with a child each."""
    script = "while sleep 0.2; do :; done" if active else "sleep 100000 & wait"
    started = [subprocess.Popen(["sh", "-c", script], start_new_session=True) for _ in range(NAMED)]
    there = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    started += [subprocess.Popen(["sleep", "100000"]) for _ in range(PROCESSES - NAMED - there)]
    try:
        yield [process.pid for process in started[:NAMED]]
    finally:
        for number, process in enumerate(started):
            with contextlib.suppress(ProcessLookupError):
                if number < NAMED:
                    os.killpg(process.pid, 9)
                process.kill()
            process.wait()


def cpu_s(pid: int) -> float:
    """By the clock of the process (clock_getcpuclockid(3)): its file counts hundredths, which is a fifth of the aim."""
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


def memory_mib(pid: int) -> tuple[float, float]:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["RssAnon"].split()[0]) / 1024


def report(name: str, pid: int, spent_s: float, wall_s: float) -> None:
    rss, anonymous = memory_mib(pid)
    print(f"{name:>12} {100 * spent_s / wall_s:>8.2f} {rss:>8.1f} {anonymous:>8.1f}", flush=True)


async def ask(socket: Path, pids: list[int], tree: CgroupTree, zones: PowercapTree, pid: int, seconds: float) -> float:
    """Be the sidecar for a time; the agent's CPU seconds over it."""
    containers = [path for path in tree.used_ns if path.endswith(".scope")]
    async with Subscriber(socket) as client:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(AgentError):
                    await client.name(pids)
                    break
                await asyncio.sleep(0.05)
        await asyncio.sleep(3)
        before, begun, last = cpu_s(pid), time.monotonic(), 0
        sample: Tick | None = None
        containers_seen = 0
        while time.monotonic() - begun < seconds:
            zones.advance(dict.fromkeys(zones.domain_ids, 20_000_000))
            for path in containers:
                tree.spend(path, 7 * MS)
            await asyncio.sleep(1)
            batch = await client.ticks(last)
            if batch.ticks:
                sample = batch.ticks[-1]
                last = sample.seq
                containers_seen = max(containers_seen, len(sample.container_cpu_ns))
        spent_s = cpu_s(pid) - before
    assert sample is not None
    assert (len(sample.energy_uj), set(pids) <= set(sample.process_cpu_ns)) == (8, True)
    assert containers_seen == PODS + CONTAINERS
    return spent_s / (time.monotonic() - begun)


def agent(name: str, seconds: float, root: Path, pids: list[int]) -> None:
    """`joulegram agent`; prints its line."""
    zones = PowercapTree(root / "sys", packages=4, core=False)
    tree = node_tree(root / "cgroup")
    command = [
        str(Path(sys.executable).with_name("joulegram")),
        "agent",
        f"--socket={root / 'agent.sock'}",
        "--source=powercap",
        f"--sysfs-root={zones.root}",
        f"--cgroup-root={tree.root}",
        f"--processes={name}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            rate = asyncio.run(ask(root / "agent.sock", pids, tree, zones, process.pid, seconds))
            report(name, process.pid, rate, 1)
        finally:
            process.terminate()


def plain(name: str, command: list[str], seconds: float) -> None:
    """A program that needs nobody to ask it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(3)
            before, begun = cpu_s(process.pid), time.monotonic()
            time.sleep(seconds)
            if process.poll() is not None:
                print(f"{name:>12} ended with {process.returncode}")
                return
            report(name, process.pid, cpu_s(process.pid) - before, time.monotonic() - begun)
        finally:
            process.terminate()


def bare(seconds: float, root: Path) -> None:
    zones = PowercapTree(root / "sys", packages=4, core=False)
    files = [str(zones.zone_path(domain) / "energy_uj") for domain in zones.domain_ids]
    plain("bare", [sys.executable, "-c", BARE, *files, "/proc/stat"], seconds)


def carbon_ops(seconds: float, root: Path, base: str) -> None:
    """Its daemon, on the devices path of two zones: under the class path it finds none."""
    subprocess.run([base, "-m", "venv", str(root / "venv")], check=True)
    python = str(root / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "carbon-ops==0.1.1"]
    if subprocess.run(install, check=False).returncode:
        print(f"{'carbon-ops':>12} could not be installed")
        return
    zones = PowercapTree(root / "sys", core=False)
    powercap = zones.root / "devices" / "virtual" / "powercap"
    daemon = [python, "-m", "carbon_ops.governor.daemon", "--socket-path", str(root / "ops.sock")]
    plain("carbon-ops", [*daemon, "--socket-group=root", "--powercap-root", str(powercap)], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="each system (default 60)")
    parser.add_argument("--systems", default="bare,named,all", help="of bare, named, all, carbon-ops, with commas")
    parser.add_argument("--active", action="store_true", help="the named processes do something")
    parser.add_argument(
        "--carbon-ops-python", default="python3.12", help="that carbon-ops runs on: before 3.12 its daemon cannot start"
    )
    arguments = parser.parse_args()
    print(f"{'system':>12} {'CPU %':>8} {'RSS MiB':>8} {'anon':>8}", flush=True)
    with sleepers(active=arguments.active) as pids:
        for system in arguments.systems.split(","):
            with tempfile.TemporaryDirectory(prefix="joulegram-agent-") as directory:
                if system == "bare":
                    bare(arguments.seconds, Path(directory))
                elif system == "carbon-ops":
                    carbon_ops(arguments.seconds, Path(directory), arguments.carbon_ops_python)
                else:
                    agent(system, arguments.seconds, Path(directory), pids)


if __name__ == "__main__":
    main()
