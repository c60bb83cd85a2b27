"""NVML's energy counters beside `nvidia-smi` and the agent's ticks, over a real load on real boards.

    python benchmarks/nvml.py
    python benchmarks/nvml.py --seconds 60 --load "python train.py"

For a machine with an NVIDIA GPU. One window: idle, the load, idle again. Over it three accounts of each board are
compared: its counter (nvmlDeviceGetTotalEnergyConsumption, by the agent's own reader, read at the two ends), what
`nvidia-smi` says it draws ten times a second, added up by trapezoids, and the ticks of a real `joulegram agent`. On
boards from Ampere on nvidia-smi says the mean of the last second: with idle at both ends of the window that costs
nothing. The load's own energy is what the agent's account of its process gives it of each tick, idle power included.

The load is a command (with its children), stopped after --seconds; without one, benchmarks/nvml_load.py keeps all
CUDA devices busy. Aim: both differences within 5 % of the counter.

Exit codes: 0 within it, 1 beyond, 2 nothing was shown: no library, board, nvidia-smi or load, or a figure is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path[:1] = [str(ROOT)]

from benchmarks.nvml_smi import NS_PER_S, Smi, SmiError  # noqa: E402

from joulegram.agent_socket import AgentSocket  # noqa: E402
from joulegram_agent.nvml import NvmlReader  # noqa: E402
from joulegram_pipeline.energy import Method  # noqa: E402
from joulegram_pipeline.errors import AgentError  # noqa: E402
from joulegram_pipeline.exact import apportion  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from joulegram_agent.nvml import Board
    from joulegram_pipeline.energy import Tick

AIM = 0.05
LEAST_RISE = 1.1
"""A load that does not raise a board's power by this is none, and agreement over it shows nothing."""

KEPT_S = 500
"""The agent keeps ten minutes of ticks."""

START_S, END_S = 30.0, 10.0
_UJ = 1e6


class NothingShownError(Exception):
    """Why there is no comparison."""


@dataclass(frozen=True, slots=True)
class Window:
    """What was done when, wall clock; and the counters at its two ends, microjoules by domain."""

    start_ns: int
    load_ns: tuple[int, int]
    end_ns: int
    pid: int
    before_uj: dict[str, int]
    after_uj: dict[str, int]


@dataclass(frozen=True, slots=True)
class Account:
    """What the ticks say of one board: joules in the window, and the load's of them; None where there is no account."""

    board_j: float
    load_j: float | None


def counters(reader: NvmlReader, boards: list[Board]) -> dict[str, int]:
    reading = reader.read()
    for gap in reading.gaps:
        if gap.domain in {board.domain.id for board in boards}:
            raise NothingShownError(f"{gap.domain}: {gap.reason}")
    return dict(reading.counters_uj)


def comparable(reader: NvmlReader) -> list[Board]:
    """The boards that answer and have a counter; says why not of the others."""
    if reader.method is Method.UNAVAILABLE:
        raise NothingShownError(str(reader.reason))
    silent = {gap.domain: gap.reason for gap in reader.read().gaps}
    counted = reader.lasting()
    boards = []
    for board in reader.boards:
        name = board.domain.id
        if name in silent:
            print(f"{name}: left out: {silent[name]}")
        elif name not in counted:
            print(f"{name}: left out: no energy counter, its power is added up, and that is what nvidia-smi shows")
        else:
            boards.append(board)
    if not boards:
        raise NothingShownError("got no board with an energy counter, expected at least 1")
    return boards


@contextmanager
def agent(directory: Path) -> Iterator[AgentSocket]:
    """A real agent on the boards, which answers."""
    path, log = directory / "agent.sock", directory / "agent.log"
    command = [str(Path(sys.executable).with_name("joulegram")), "agent", f"--socket={path}", "--source=nvml"]
    client = AgentSocket(path)
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + START_S
            while not _ticks(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NothingShownError(f"the agent does not answer: {log.read_text(errors='replace')}")
                time.sleep(0.1)
            yield client
        finally:
            client.close()
            process.terminate()


def _ticks(client: AgentSocket) -> tuple[Tick, ...]:
    """The ticks there are; none where the agent is not up yet."""
    try:
        return client.ticks(0).ticks
    except AgentError:
        return ()


def work(command: list[str], seconds: float, client: AgentSocket) -> tuple[int, int, int]:
    """Run the command, named at the agent, to its end or until the time is over; its pid, and when it ran."""
    begun_ns = time.time_ns()
    process = subprocess.Popen(command, start_new_session=True)
    code = 0
    try:
        client.name([process.pid])
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
    finally:
        end(process)
    if code:
        raise NothingShownError(f"the load ended with {code}: give one that runs here with --load COMMAND")
    return process.pid, begun_ns, time.time_ns()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and the children it left in its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def measure(
    reader: NvmlReader, boards: list[Board], client: AgentSocket, command: list[str], seconds: float, idle_s: float
) -> Window:
    before_uj, start_ns = counters(reader, boards), time.time_ns()
    time.sleep(idle_s)
    pid, *load_ns = work(command, seconds, client)
    time.sleep(idle_s)
    after_uj, end_ns = counters(reader, boards), time.time_ns()
    return Window(start_ns, (load_ns[0], load_ns[1]), end_ns, pid, before_uj, after_uj)


def ticks_until(client: AgentSocket, end_ns: int) -> list[Tick]:
    """All ticks up to one that ends at or after an instant."""
    deadline = time.monotonic() + START_S
    while True:
        ticks = _ticks(client)
        if ticks and ticks[-1].end_ns >= end_ns:
            return list(ticks)
        if time.monotonic() > deadline:
            raise NothingShownError(f"the agent published no tick to the end of the window in {START_S:g} s")
        time.sleep(0.1)


def account(ticks: list[Tick], name: str, window: Window) -> Account:
    """What of the ticks falls into the window; of one at its ends the part inside, as its power is idle there."""
    board = mine = 0.0
    has_account = False
    for tick in ticks:
        part_ns = min(tick.end_ns, window.end_ns) - max(tick.start_ns, window.start_ns)
        if part_ns <= 0:
            continue
        if name not in tick.energy_uj:
            raise NothingShownError(f"{name} in a tick: {[gap.reason for gap in tick.gaps if gap.domain == name]}")
        part = part_ns / (tick.end_ns - tick.start_ns)
        board += part * tick.energy_uj[name]
        times = tick.process_gpu_ns.get(name)
        has_account = has_account or times is not None
        if times and any(times.values()):
            rest_ns = sum(times.values()) - times.get(window.pid, 0)
            mine += part * apportion(tick.energy_uj[name], [times.get(window.pid, 0), rest_ns])[0]
    return Account(board / _UJ, mine / _UJ if has_account else None)


def compare(boards: list[Board], smi: Smi, ticks: list[Tick], window: Window) -> list[float]:
    """Print the table; every difference from the counter, as a part of it."""
    heads = f"{'counter J':>11} {'nvidia-smi J':>13} {'off %':>7} {'ticks J':>11} {'off %':>7} {'load J':>11}"
    print(f"{'board':<41} {heads} of board")
    off: list[float] = []
    loaded = False
    for board in boards:
        name = board.domain.id
        uuid = "GPU-" + name.removeprefix("gpu-")
        smi.wait(uuid, window.end_ns)
        counter_j = (window.after_uj[name] - window.before_uj[name]) / _UJ
        if counter_j <= 0:
            raise NothingShownError(f"{name}: its counter went by {counter_j} J, expected more than 0")
        integrated_j = smi.joules(uuid, window.start_ns, window.end_ns)
        idle_w = smi.joules(uuid, window.start_ns, window.load_ns[0]) * NS_PER_S / (window.load_ns[0] - window.start_ns)
        busy_w = smi.joules(uuid, *window.load_ns) * NS_PER_S / (window.load_ns[1] - window.load_ns[0])
        loaded = loaded or busy_w >= LEAST_RISE * idle_w
        told = account(ticks, name, window)
        differences = [integrated_j / counter_j - 1, told.board_j / counter_j - 1]
        off += differences
        mine = "no account" if told.load_j is None else f"{told.load_j:11.1f} {told.load_j / told.board_j:7.1%}"
        print(
            f"{name:<41} {counter_j:>11.1f} {integrated_j:>13.1f} {100 * differences[0]:>+7.2f} {told.board_j:>11.1f} "
            f"{100 * differences[1]:>+7.2f} {mine}   {board.name}: {idle_w:.0f} W idle, {busy_w:.0f} W under the load",
            flush=True,
        )
    if not loaded:
        raise NothingShownError(f"the load raised no board's power by {LEAST_RISE - 1:.0%}, so this shows nothing")
    return off


def run(command: list[str], seconds: float, idle_s: float) -> int:
    reader = NvmlReader()
    try:
        boards = comparable(reader)
        if shutil.which(command[0]) is None:
            raise NothingShownError(f"the load cannot be started: got {command[0]!r}, expected a program")
        with Smi() as smi, tempfile.TemporaryDirectory(prefix="joulegram-nvml-") as directory:
            for board in boards:
                smi.wait("GPU-" + board.domain.id.removeprefix("gpu-"), 1)
            with agent(Path(directory)) as client:
                window = measure(reader, boards, client, command, seconds, idle_s)
                ticks = ticks_until(client, window.end_ns)
            off = compare(boards, smi, ticks, window)
    except (NothingShownError, SmiError, AgentError) as error:
        print(f"nothing was shown: {error}", file=sys.stderr)
        return 2
    finally:
        reader.close()
    worst = max(abs(one) for one in off)
    print(f"furthest off the counter: {worst:.2%}, aim {AIM:.0%}: {'met' if worst <= AIM else 'missed'}")
    return 0 if worst <= AIM else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="the load may last (default 60)")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds before it and after it (default 5)")
    parser.add_argument("--load", help="a command line (default: all CUDA devices kept busy)")
    arguments = parser.parse_args()
    if not (arguments.seconds > 0 and arguments.idle >= 2 and arguments.seconds + 2 * arguments.idle <= KEPT_S):
        parser.error(
            f"got --seconds {arguments.seconds:g} --idle {arguments.idle:g}, expected more than 0, at least 2, and "
            f"{KEPT_S} together, the second twice"
        )
    own = [sys.executable, str(ROOT / "benchmarks" / "nvml_load.py"), f"--seconds={arguments.seconds}"]
    sys.exit(run(shlex.split(arguments.load) if arguments.load else own, arguments.seconds, arguments.idle))


if __name__ == "__main__":
    main()
