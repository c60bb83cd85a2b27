"""What is sent as one: requests of one signal and one set of headers, and how they are taken apart again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from joulegram_sink.upstream_answer import SIGNALS
from joulegram_sink.upstream_split import halves

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_sink.outbox import OutboxItem


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that are sent together.

    Args:
        kind: of all of them.
        metadata: of all of them.
        items: one at least, in order of position.
    """

    kind: RecordKind
    metadata: Metadata
    items: Sequence[OutboxItem]

    @property
    def size(self) -> int:
        """Bytes of the requests."""
        return sum(item.size for item in self.items)

    @property
    def body(self) -> bytes:
        """The one request that says what all of them say.

        Protobuf messages concatenate: the repeated resources of both follow each other.
        """
        first = self.items[0].request
        if len(self.items) == 1 and isinstance(first, bytes):
            return first
        return b"".join([piece for item in self.items for piece in item.pieces])

    def parted(self) -> tuple[Batch, Batch] | None:
        """The first and the second half of the requests; None of a single one."""
        if len(self.items) < 2:
            return None
        middle = len(self.items) // 2
        return (
            Batch(self.kind, self.metadata, self.items[:middle]),
            Batch(self.kind, self.metadata, self.items[middle:]),
        )

    def divided(self) -> tuple[Batch, Batch] | None:
        """As `parted`; of a single request its own halves, None where it has none."""
        if len(self.items) > 1:
            return self.parted()
        found = halves(self.body)
        if found is None:
            return None
        item = self.items[0]
        first, second = (
            Batch(self.kind, self.metadata, (item._replace(request=half, size=len(half)),)) for half in found
        )
        return first, second


def batches(items: Iterable[OutboxItem]) -> list[Batch]:
    """Items as batches: requests of one signal and the same headers together, where their concatenation is valid."""
    found: list[Batch] = []
    groups: dict[tuple[RecordKind, Metadata], list[OutboxItem]] = {}
    for item in items:
        if not SIGNALS[item.kind].can_be_joined:
            found.append(Batch(item.kind, item.metadata, (item,)))
            continue
        group = groups.get((item.kind, item.metadata))
        if group is None:
            group = groups[item.kind, item.metadata] = []
            found.append(Batch(item.kind, item.metadata, group))
        group.append(item)
    return found
