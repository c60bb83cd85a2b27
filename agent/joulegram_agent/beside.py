"""Several sources side by side as one: packages from one reader, GPU boards from another.

Invariants:
    * each domain belongs to one reader. Whether two domains hold the same energy is for whoever puts the readers
      together: an id that two of them have is refused, an overlap under two names cannot be seen here;
    * a reader that fails is a gap in its own domains and leaves the others' alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joulegram_agent.nvml import NvmlReader
from joulegram_agent.nvml_library import LIBRARY
from joulegram_agent.reader import Lasting, Reading, SharesBoards
from joulegram_pipeline.energy import Method
from joulegram_pipeline.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from joulegram_agent.cpu import CpuReading
    from joulegram_agent.reader import Reader
    from joulegram_pipeline.clock import Clock
    from joulegram_pipeline.energy import Domain, Gap


class Beside:
    """One reader whose domains are those of all.

    Args:
        primary: whose source and reason come first; it is closed with the rest.
        others: readers of other domains.

    Raises:
        AgentError: two readers have a domain of the same id. Nothing is closed then.
    """

    def __init__(self, primary: Reader, *others: Reader) -> None:
        self._readers = (primary, *others)
        self._domains: tuple[Domain, ...] = ()
        owners: dict[str, str] = {}
        for reader in self._readers:
            for domain in reader.domains():
                if domain.id in owners:
                    first = owners[domain.id]
                    raise AgentError(
                        f"got domain {domain.id!r} from {first} and from {reader.source}, expected it from one reader"
                    )
                owners[domain.id] = reader.source
                self._domains += (domain,)

    @property
    def source(self) -> str:
        """The sources joined by ``+``: the primary's, and those of the others that have domains."""
        primary, *others = self._readers
        return "+".join([primary.source, *(reader.source for reader in others if reader.domains())])

    @property
    def method(self) -> Method:
        """The one method of those that have energy, MIXED where they differ, UNAVAILABLE where none has."""
        known = {reader.method for reader in self._readers} - {Method.UNAVAILABLE}
        if not known:
            return Method.UNAVAILABLE
        return known.pop() if len(known) == 1 else Method.MIXED

    @property
    def reason(self) -> str | None:
        """The reasons there are, the primary's first."""
        return "; ".join(reader.reason for reader in self._readers if reader.reason is not None) or None

    def domains(self) -> tuple[Domain, ...]:
        return self._domains

    def read(self) -> Reading:
        counters: dict[str, int] = {}
        static: dict[str, int] = {}
        gaps: list[Gap] = []
        cpu: CpuReading | None = None
        for reader in self._readers:
            reading = reader.read()
            counters.update(reading.counters_uj)
            static.update(reading.static_uj)
            gaps.extend(reading.gaps)
            cpu = cpu or reading.cpu
        return Reading(counters, tuple(gaps), static, cpu)

    def lasting(self) -> dict[str, str]:
        """See `Lasting`."""
        return {
            domain: source
            for reader in self._readers
            if isinstance(reader, Lasting)
            for domain, source in reader.lasting().items()
        }

    def process_gpu_ns(self, root_of: Callable[[int], int | None]) -> dict[str, Mapping[int, int]]:
        """See `SharesBoards`."""
        return {
            domain: times
            for reader in self._readers
            if isinstance(reader, SharesBoards)
            for domain, times in reader.process_gpu_ns(root_of).items()
        }

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def with_gpus(primary: Reader, library: str = LIBRARY, clock: Clock | None = None) -> Reader:
    """The NVIDIA boards beside a reader; the reader itself where there are none.

    Args:
        primary: which measures no boards.
        library: see `NvmlReader`.
        clock: for boards whose power is added up.
    """
    boards = NvmlReader(library, clock)
    if not boards.domains():
        boards.close()
        return primary
    return Beside(primary, boards)
