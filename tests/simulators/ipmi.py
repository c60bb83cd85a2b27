"""A management controller behind ``/dev/ipmi0``, for processes started with its library preloaded.

Invariants:
    * the library (``ipmi.c``) stands between a process and the kernel, so that the process's own system calls, polls
      and structures are those it would make on a server;
    * it reads its state at every open and request; the file is replaced whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from simulators.c_library import built, needs_header

_SOURCE = Path(__file__).with_name("ipmi.c")


class IpmiSim:
    """One controller.

    Args:
        folder: of its state; is there.
        device: where it answers, one of the names of ``/dev``.
    """

    def __init__(self, folder: Path, device: str = "/dev/ipmi0") -> None:
        needs_header("linux/ipmi.h")
        self._state = folder / "ipmi.txt"
        self.environment = {"LD_PRELOAD": str(built(_SOURCE)), "IPMI_PATH": device, "IPMI_STATE": str(self._state)}
        """For the process that is to meet it."""
        self.say()

    def say(self, **state: int) -> Self:
        """Answer like this from now on: ``watts``, ``code``, ``silent``..., as `State` of ``ipmi.c`` has them."""
        whole = self._state.with_suffix(".new")
        whole.write_text("".join(f"{name} {value}\n" for name, value in state.items()))
        whole.replace(self._state)
        return self

    @property
    def requests(self) -> list[tuple[int, str]]:
        """The number of each request it took, and whether it was made in the ``main`` thread or in another."""
        log = self._state.with_name(self._state.name + ".log")
        if not log.exists():
            return []
        return [(int(number), thread) for number, thread in map(str.split, log.read_text().splitlines())]
