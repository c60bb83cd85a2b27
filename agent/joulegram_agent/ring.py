"""The published ticks that are kept, packed: a tick of 40 containers is some 700 bytes in place of 2 000.

Invariants:
    * what comes out equals what went in;
    * all are of one epoch, and each follows the one before by its number;
    * beyond `most` the oldest goes.

Ticks that follow each other tell of the same domains, processes and containers. So a tick is its numbers in one row of
four or eight bytes each, and what they are of stands beside it once for all those that are of the same.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from joulegram_pipeline.energy import Tick

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from joulegram_pipeline.energy import Gap

    Keys = tuple[tuple[Any, ...], ...]
    """Of the mappings in the order of `_mappings`."""

    Packed = tuple[int, int, int, tuple[Gap, ...], int | None, int | None, Keys, tuple[str, ...], bytes]
    """Number, start, end, gaps, CPU time spent and there, keys, GPU domains, numbers."""

_FOUR = 4
_MOST_IN_FOUR = 2**32 - 1


class TickEnergy(NamedTuple):
    """What a tick says of energy, as `Tick` has it."""

    start_ns: int
    end_ns: int
    energy_uj: Mapping[str, int]
    gaps: tuple[Gap, ...]


class TickRing:
    """Keeps ticks.

    Args:
        most: ticks kept.
    """

    def __init__(self, most: int) -> None:
        self._ring: deque[Packed] = deque(maxlen=most)
        self._keys: Keys = ()
        self._boards: tuple[str, ...] = ()
        self.last: Tick | None = None
        """The newest, as it came."""

    def append(self, tick: Tick) -> None:
        """Keep the next tick."""
        mappings = _mappings(tick)
        self._keys = _shared(tuple(map(tuple, mappings)), self._keys)
        boards = tuple(tick.process_gpu_ns)
        self._boards = self._boards if boards == self._boards else boards
        numbers = [*chain.from_iterable(mapping.values() for mapping in mappings)]
        code = "I" if min(numbers, default=0) >= 0 and max(numbers, default=0) <= _MOST_IN_FOUR else "q"
        row = struct.pack(f"{len(numbers)}{code}", *numbers)
        self._ring.append(
            (
                tick.seq,
                tick.start_ns,
                tick.end_ns,
                tick.gaps,
                tick.cpu_busy_ns,
                tick.cpu_total_ns,
                self._keys,
                self._boards,
                row,
            )
        )
        self.last = tick

    def clear(self) -> None:
        """Keep none."""
        self._ring.clear()
        self._keys, self._boards, self.last = (), (), None

    def above(self, seq: int) -> Iterator[Tick]:
        """Those of a higher number, oldest first; each is unpacked when it is taken, before another is kept."""
        if self.last is None or seq >= self.last.seq:
            return iter(())
        if seq == self.last.seq - 1:
            return iter((self.last,))
        return map(_unpacked, islice(self._ring, max(0, len(self._ring) - (self.last.seq - seq)), None))

    def touching(self, start_ns: int, end_ns: int) -> Iterator[TickEnergy]:
        """The energy of those of which a part lies between two instants of the wall clock, oldest first.

        Nothing else of them is unpacked: whoever asks for a long window has the agent go through all of them.
        """
        return (_energy(packed) for packed in self._ring if packed[2] > start_ns and packed[1] < end_ns)


def _mappings(tick: Tick) -> tuple[Mapping[str, int] | Mapping[int, int], ...]:
    return (
        tick.energy_uj,
        tick.static_uj,
        tick.process_cpu_ns,
        tick.descendant_cpu_ns,
        tick.container_cpu_ns,
        *tick.process_gpu_ns.values(),
    )


def _shared(keys: Keys, before: Keys) -> Keys:
    """Equal keys as the objects they were before."""
    if keys == before:
        return before
    return tuple(was if was == own else own for own, was in zip(keys, before, strict=False)) + keys[len(before) :]


def _code(keys: Keys, row: bytes) -> str:
    return "I" if len(row) == _FOUR * sum(map(len, keys)) else "q"


def _energy(packed: Packed) -> TickEnergy:
    _, start_ns, end_ns, gaps, _, _, keys, _, row = packed
    domains = keys[0]
    energy = dict(zip(domains, struct.unpack_from(f"{len(domains)}{_code(keys, row)}", row), strict=True))
    return TickEnergy(start_ns, end_ns, energy, gaps)


def _unpacked(packed: Packed) -> Tick:
    seq, start_ns, end_ns, gaps, cpu_busy_ns, cpu_total_ns, keys, boards, row = packed
    numbers = iter(struct.unpack(f"{sum(map(len, keys))}{_code(keys, row)}", row))
    energy, static, processes, descendants, containers, *gpus = (
        dict(zip(own, islice(numbers, len(own)), strict=True)) for own in keys
    )
    return Tick(
        seq=seq,
        start_ns=start_ns,
        end_ns=end_ns,
        energy_uj=energy,
        static_uj=static,
        gaps=gaps,
        cpu_busy_ns=cpu_busy_ns,
        cpu_total_ns=cpu_total_ns,
        process_cpu_ns=processes,
        descendant_cpu_ns=descendants,
        container_cpu_ns=containers,
        process_gpu_ns=dict(zip(boards, gpus, strict=True)),
    )
