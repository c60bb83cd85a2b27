"""CPU time of spans that are not joined, on its way to the nearest span above them that is.

A job's own spans (requests it makes, queries it runs) may say their CPU time like any other, and nobody joins them.
What they spent is not in the span around them, so it is put there. Children end, and mostly come, before their parents.

Invariants:
    * what comes after the span above was settled is nobody's: its energy stays in the pot;
    * the oldest are forgotten beyond `MAX_KEPT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from joulegram_pipeline.records import Json

MAX_KEPT = 20_000
"""Parents that have not come yet; the snapshot holds them."""


class InnerSpans:
    """Sums of CPU time by the span they are to be put to, trace id + span id."""

    def __init__(self) -> None:
        self._spent: dict[bytes, int] = {}

    def add(self, spans: Mapping[bytes, tuple[bytes, int]]) -> None:
        """Take in spans that are not joined: by key, the key of the parent and CPU time in ns."""
        for key, (parent, cpu_ns) in spans.items():
            spent = cpu_ns + self._spent.pop(key, 0)
            above = parent
            for _ in range(len(spans)):  # at most: a circle of parents leads nowhere
                if above not in spans:
                    break
                above = spans[above][0]
            if spent and above and above not in spans:
                self._spent[above] = self._spent.get(above, 0) + spent
        while len(self._spent) > MAX_KEPT:
            del self._spent[next(iter(self._spent))]

    def take(self, key: bytes) -> int:
        """What was spent below a span, in ns; asked once."""
        return self._spent.pop(key, 0) if self._spent else 0

    def of(self, key: bytes) -> int:
        """As `take`, of a span that is not settled yet: it can be asked again."""
        return self._spent.get(key, 0)

    def dump(self) -> Json:
        """As JSON, for the snapshot."""
        return {key.hex(): str(spent) for key, spent in self._spent.items()}

    def load(self, raw: Json) -> None:
        """From the JSON `dump` wrote."""
        self._spent = {bytes.fromhex(key): int(spent) for key, spent in raw.items()}
