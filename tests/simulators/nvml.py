"""NVIDIA boards behind a compiled ``libnvidia-ml.so.1``, with the truth of what they spent beside their counters.

Invariants:
    * the library reads its folder's ``nvml.txt`` at every call; it is replaced whole, so that a reader in another
      process sees the old state or the new one;
    * `SimBoard.truth_mj` counts what a board spent since it was made, whatever its counter shows or refuses.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from simulators.c_library import built

LIBRARY = "libnvidia-ml.so.1"
_SOURCE = Path(__file__).with_name("nvml.c")


@dataclass(eq=False)
class SimBoard:
    """One board; a code that is not 0 is what the call it is named for answers.

    Args:
        uuid: with ``GPU-`` before it.
        energy_mj: what its counter shows.
        power_mw: what it draws.
        age: handles taken at another age are dead.
        find_code: of every call on the board.
    """

    uuid: str
    energy_mj: int = 5_000_000
    power_mw: int = 60_000
    mig: bool = False
    age: int = 0
    find_code: int = 0
    uuid_code: int = 0
    energy_code: int = 0
    power_code: int = 0
    mig_code: int = 0
    samples_code: int = 0
    name: str = "NVIDIA H100 80GB HBM3"
    truth_mj: int = 0
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    """(pid, microseconds, percent) of the processes on it."""

    @property
    def domain(self) -> str:
        """The id its domain is to have."""
        return self.uuid.replace("GPU-", "gpu-")

    def spend(self, energy_mj: int) -> None:
        """Let it spend energy."""
        self.energy_mj += energy_mj
        self.truth_mj += energy_mj

    def line(self) -> str:
        """Its line in ``nvml.txt``."""
        board = f"{self.find_code} {self.uuid_code} {self.energy_code} {self.power_code}"
        codes = f"{board} {self.mig_code} {self.samples_code}"
        return f"board {self.uuid} {self.energy_mj} {self.power_mw} {int(self.mig)} {self.age} {codes} {self.name}\n"


class NvmlSim:
    """A library of its own in a folder, and the boards it shows.

    Args:
        folder: is made; stays for the process's life, as a loaded library is known by its inode.
        boards: in the order of their index.
        options: for the compiler, as ``-DOLD``.
    """

    def __init__(self, folder: Path, *boards: SimBoard, options: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True)
        self.library = str(folder / LIBRARY)
        self.boards = list(boards)
        self.init_code = 0
        self.count_code = 0
        self._since_ns: int | None = None
        self._state = folder / "nvml.txt"
        shutil.copy(built(_SOURCE, *options), self.library)
        self.write()

    def draw(self, board: SimBoard | None = None, power_mw: int = 0) -> None:
        """Let counters rise by themselves from now on, by their boards' power; one board's changes with it."""
        now_ns = time.monotonic_ns()
        for each in self.boards:
            each.spend(0 if self._since_ns is None else (now_ns - self._since_ns) // 1_000 * each.power_mw // 1_000_000)
        self._since_ns = now_ns
        if board is not None:
            board.power_mw = power_mw
        self.write()

    def write(self) -> None:
        """Make the library say what the boards hold now."""
        whole = self._state.with_suffix(".new")
        lines = [f"init {self.init_code}\n", f"count {self.count_code}\n", *(board.line() for board in self.boards)]
        if self._since_ns is not None:
            lines.append(f"since {self._since_ns}\n")
        for index, board in enumerate(self.boards):
            lines += [f"sample {index} {pid} {at_us} {percent}\n" for pid, at_us, percent in board.samples]
        whole.write_text("".join(lines))
        whole.replace(self._state)


def uuid(number: int) -> str:
    """An UUID as NVML writes them."""
    return f"GPU-8f6a2b1c-0d3e-4f5a-9b7c-{number:012x}"
