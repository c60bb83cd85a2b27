"""NVIDIA boards through NVML: the energy counter of each board, or its power added up where it has none.

Invariants:
    * a domain is a whole board, ``gpu-<UUID>``, with MIG as well: NVML has no energy for an instance, and the
      board's is the sum that must be conserved;
    * the set of boards is fixed when the reader is made. One that cannot be read stays in it as a gap with
      NVML's own words, and the others go on; nothing is ever 0 for want of a reading;
    * the counter is NVML's, in steps of 1000 uJ, from the loading of the driver. One that stands still between
      two reads adds nothing, and its energy comes with the next change; one that falls is a new start of the
      driver, which the accumulator makes a gap (``counter_reset``), as the domain has no range to wrap at;
    * a board that ever answered with its counter is never measured by power, nor the other way round: the two
      have no common zero.

Power that is added up is measured but is no counter: a load that comes and goes between two reads is seen only as
far as the board's own averaging shows it. `reason` names the boards it is done for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_agent.integral import PowerIntegral
from joulegram_agent.nvml_library import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    GPU_NOT_FOUND,
    LIB_RM_VERSION_MISMATCH,
    LIBRARY,
    LIBRARY_NOT_FOUND,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    Handle,
    NvmlError,
    NvmlLibrary,
)
from joulegram_agent.nvml_processes import BoardProcesses
from joulegram_agent.reader import Reading
from joulegram_agent.reasons import DOMAIN_VANISHED, PERMISSION_DENIED, READ_FAILED
from joulegram_pipeline.clock import Clock, SystemClock
from joulegram_pipeline.energy import Domain, DomainKind, Gap, Method

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

NO_NVML = "no_nvml"
NOT_MEASURED = "not_supported"
INTEGRATED = "integrated_power"

FIND_AGAIN_NS = 10_000_000_000
"""How long after a failed read a board is looked up anew: a handle does not outlive a board that was reset."""

_UJ_PER_MJ = 1_000
_UW_PER_MW = 1_000
_UNKNOWN_NAME = "unknown"
_NO_COUNTER = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND})
_CODES = {
    NOT_SUPPORTED: NOT_MEASURED,
    FUNCTION_NOT_FOUND: NOT_MEASURED,
    NO_PERMISSION: PERMISSION_DENIED,
    LIBRARY_NOT_FOUND: NO_NVML,
    DRIVER_NOT_LOADED: NO_NVML,
    LIB_RM_VERSION_MISMATCH: NO_NVML,
    NOT_FOUND: DOMAIN_VANISHED,
    GPU_NOT_FOUND: DOMAIN_VANISHED,
    GPU_IS_LOST: DOMAIN_VANISHED,
}
_PLAIN = {
    NOT_SUPPORTED: "the board does not measure this",
    FUNCTION_NOT_FOUND: "the NVIDIA library is too old for this",
    NO_PERMISSION: "the NVIDIA driver refuses this user",
    LIBRARY_NOT_FOUND: "there is no NVIDIA library",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    LIB_RM_VERSION_MISMATCH: "the NVIDIA library and driver differ in version",
    NOT_FOUND: "the board is not there",
    GPU_NOT_FOUND: "the board is not there",
    GPU_IS_LOST: "the board fell off the bus",
}


def why(error: NvmlError) -> str:
    """The reason a refusal stands for: a code, plain words where there are any, and NVML's own."""
    plain = _PLAIN.get(error.code)
    return f"{_CODES.get(error.code, READ_FAILED)}: {plain + ': ' if plain else ''}{error}"


@dataclass(frozen=True, slots=True)
class Board:
    """What a board was when the reader was made.

    Args:
        domain: its place in the measured set.
        name: the product's, or ``unknown``.
        mig: whether it was split into instances; None where it cannot be, or did not say.
    """

    domain: Domain
    name: str
    mig: bool | None


class BoardCounter:
    """Reads one board; by its counter or by its power is settled by the first answer.

    Args:
        library: which knows it.
        board: for what it is called.
        uuid: by which it is found again.
        handle: of the board.
        clock: for power that is added up.
    """

    def __init__(self, library: NvmlLibrary, board: Board, uuid: str, handle: Handle, clock: Clock) -> None:
        self.board = board
        self._uuid = uuid
        self._library = library
        self._handle = handle
        self._clock = clock
        self._counted = False
        self._integral: PowerIntegral | None = None
        self._find_again_ns = clock.mono_ns()
        self._processes = BoardProcesses(library, board.domain.id)

    @property
    def integrates(self) -> bool:
        """Whether its power is added up."""
        return self._integral is not None

    def probe(self) -> int | str:
        """Read once before counting begins."""
        value = self.read()
        if self._integral is not None:
            # The first sweep may be seconds away, and what is drawn until then is nobody's.
            self._integral = PowerIntegral()
        return value

    def read(self) -> int | str:
        """The counter in microjoules, or the reason why it is not known; then the next read asks again."""
        try:
            return self._measure()
        except NvmlError as error:
            self._find_again()
            return why(error)

    def process_ns(self, root_of: Callable[[int], int | None]) -> dict[int, int] | None:
        """See `BoardProcesses.take`."""
        return self._processes.take(self._handle, self._clock.mono_ns(), root_of)

    def _measure(self) -> int | str:
        if self._integral is None:
            try:
                energy_uj = self._library.energy_mj(self._handle) * _UJ_PER_MJ
            except NvmlError as error:
                if self._counted or error.code not in _NO_COUNTER:
                    raise
                self._integral = PowerIntegral()
            else:
                self._counted = True
                return energy_uj
        power_mw = self._library.power_mw(self._handle)
        return self._integral.add(power_mw * _UW_PER_MW, self._clock.mono_ns())

    def _find_again(self) -> None:
        now_ns = self._clock.mono_ns()
        if now_ns < self._find_again_ns:
            return
        self._find_again_ns = now_ns + FIND_AGAIN_NS
        try:
            self._handle = self._library.board_of(self._uuid)
        except NvmlError as error:
            log.debug("domain %s: %s", self.board.domain.id, error)


class NvmlReader:
    """Reads every board that NVML shows.

    Args:
        library: the shared library's name, or its path.
        clock: for power that is added up.

    `method` is UNAVAILABLE and `reason` says why until a board has answered. After that `reason` is None, or
    names the boards whose power is added up.
    """

    source = "nvml"

    def __init__(self, library: str = LIBRARY, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.boards: tuple[Board, ...] = ()
        self._counters: dict[str, BoardCounter] = {}
        self._refused: dict[str, str] = {}
        self._library: NvmlLibrary | None = None
        self._answered = False
        self._missing: str | None = None
        try:
            self._library = NvmlLibrary(library)
            self.boards = tuple(self._board(self._library, index) for index in range(self._library.count()))
        except NvmlError as error:
            self._missing = why(error)
        if not self.boards:
            self._missing = self._missing or f"{NO_NVML}: got 0 boards from {library}, expected at least 1"
            self.close()
        for board in self.boards:
            self._probe(board)

    @property
    def method(self) -> Method:
        return Method.MEASURED if self._answered else Method.UNAVAILABLE

    @property
    def reason(self) -> str | None:
        if not self._answered:
            return self._missing
        added_up = [counter.board.domain.id for counter in self._counters.values() if counter.integrates]
        if not added_up:
            return None
        return f"{INTEGRATED}: no energy counter, power is added up between reads: {', '.join(added_up)}"

    def domains(self) -> tuple[Domain, ...]:
        return tuple(board.domain for board in self.boards)

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        gaps: list[Gap] = []
        for board in self.boards:
            key = board.domain.id
            counter = self._counters.get(key)
            value = counter.read() if counter is not None else self._refused.get(key, f"{READ_FAILED}: closed")
            if isinstance(value, str):
                gaps.append(Gap(key, value))
            else:
                counters[key] = value
                self._answered = True
        return Reading(counters, tuple(gaps))

    def lasting(self) -> dict[str, str]:
        """See `Lasting`: the boards with an energy counter; power that is added up ends with the agent."""
        return {key: self.source for key, counter in self._counters.items() if not counter.integrates}

    def process_gpu_ns(self, root_of: Callable[[int], int | None]) -> dict[str, dict[int, int]]:
        """See `SharesBoards`."""
        taken = {key: counter.process_ns(root_of) for key, counter in self._counters.items()}
        return {key: times for key, times in taken.items() if times is not None}

    def close(self) -> None:
        self._counters.clear()
        if self._library is not None:
            self._library.close()

    def _board(self, library: NvmlLibrary, index: int) -> Board:
        """The board at an index; one that does not say who it is stays a gap until the next start."""
        try:
            handle = library.board_at(index)
            uuid = library.uuid(handle)
        except NvmlError as error:
            return self._nameless(index, why(error))
        domain = Domain("gpu-" + uuid.removeprefix("GPU-"), DomainKind.GPU)
        if domain.id in self._counters:
            return self._nameless(index, f"{READ_FAILED}: got the UUID {uuid} of another board, expected its own")
        board = Board(domain, _name(library, handle), _mig(library, handle))
        self._counters[domain.id] = BoardCounter(library, board, uuid, handle, self._clock)
        return board

    def _nameless(self, index: int, reason: str) -> Board:
        domain = Domain(f"gpu-{index}", DomainKind.GPU)
        self._refused[domain.id] = reason
        return Board(domain, _UNKNOWN_NAME, None)

    def _probe(self, board: Board) -> None:
        key = board.domain.id
        counter = self._counters.get(key)
        value = counter.probe() if counter is not None else self._refused[key]
        if isinstance(value, str):
            log.warning("domain %s (%s): %s", key, board.name, value)
            self._missing = self._missing or f"{value}: {key}"
            return
        self._answered = True
        how = "power added up" if counter is not None and counter.integrates else "energy counter"
        log.info("domain %s (%s): %s%s", key, board.name, how, ", MIG: the whole board" if board.mig else "")


def _name(library: NvmlLibrary, handle: Handle) -> str:
    try:
        return library.name(handle)
    except NvmlError:
        return _UNKNOWN_NAME


def _mig(library: NvmlLibrary, handle: Handle) -> bool | None:
    try:
        return library.mig_enabled(handle)
    except NvmlError:
        return None
