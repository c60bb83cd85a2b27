"""The attributes a joined span gains (design section 6), encoded once and filled in.

Absent, not null, when unknown (D-22). Doubles exist only here, derived from the integers at the rim.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from joulegram_processor.wire import bool_attribute, double_prefix, string_attribute, without_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WRITTEN_KEYS = frozenset(
    {
        "carbon.gas",
        "carbon.gco2e",
        "carbon.gco2e_lower",
        "carbon.gco2e_upper",
        "carbon.intensity_g_per_kwh",
        "carbon.reason",
        "carbon.region",
        "carbon.resolution",
        "carbon.table",
        "carbon.upper_bound",
        "energy.allocation_ratio",
        "energy.cpu_j",
        "energy.dram_j",
        "energy.gpu_j",
        "energy.gpu_w_avg",
        "energy.method",
        "energy.reason",
        "energy.scope",
        "energy.state",
        "energy.total_j",
        "timing.duration_s",
    }
)
"""Every key enrichment may write; one of these that the client sent is replaced, never doubled (A11)."""

_WRITTEN_BYTES = frozenset(key.encode() for key in WRITTEN_KEYS)
_FIGURES = frozenset(
    {
        b"energy.allocation_ratio",
        b"energy.cpu_j",
        b"energy.dram_j",
        b"energy.gpu_j",
        b"energy.gpu_w_avg",
        b"energy.total_j",
    }
)
"""What a job may report itself; method, scope, reason and state are ours to say, and are replaced all the same."""

_REPORTED_BYTES = _WRITTEN_BYTES - _FIGURES


class Encoder:
    """Encodes attribute sets; the layout of a set of doubles and the text of a set of strings are made once."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, ...], Callable[[Sequence[float]], bytes]] = {}
        self._prefixes: dict[tuple[str, ...], tuple[bytes, ...]] = {}
        self._texts: dict[tuple[tuple[str, str | bool], ...], bytes] = {}

    def doubles(self, names: tuple[str, ...], values: Sequence[float]) -> bytes:
        """Double attributes, in the order of `names`."""
        return self.packer(names)(values)

    def packer(self, names: tuple[str, ...]) -> Callable[[Sequence[float]], bytes]:
        """What turns the values of these double attributes, in this order, into bytes."""
        known = self._layouts.get(names)
        if known is None:
            known = self._layouts[names] = _packer(names)
        return known

    def prefixes(self, names: tuple[str, ...]) -> tuple[bytes, ...]:
        """What stands before the eight bytes of each of these double attributes."""
        known = self._prefixes.get(names)
        if known is None:
            known = self._prefixes[names] = tuple(map(double_prefix, names))
        return known

    def texts(self, pairs: tuple[tuple[str, str | bool], ...]) -> bytes:
        """String and boolean attributes; remembered, because whole batches share them."""
        known = self._texts.get(pairs)
        if known is None:
            known = b"".join(
                bool_attribute(key, value=value) if isinstance(value, bool) else string_attribute(key, value)
                for key, value in pairs
            )
            if len(self._texts) < 4096:
                self._texts[pairs] = known
        return known


def _packer(names: tuple[str, ...]) -> Callable[[Sequence[float]], bytes]:
    prefixes = tuple(double_prefix(name) for name in names)
    pack = struct.Struct("<" + "".join(f"{len(prefix)}sd" for prefix in prefixes)).pack
    fields: list[bytes | float] = [b""] * (2 * len(names))
    fields[::2] = prefixes

    def fill(values: Sequence[float]) -> bytes:
        fields[1::2] = values
        return pack(*fields)

    return fill


def upsert(span: bytes, attributes: bytes, *, reported: bool) -> bytes:
    """A span's content with `attributes` appended, after the keys it has already are taken out (A11).

    A span whose energy the job reported keeps its own figures of energy.
    """
    return without_attributes(span, _REPORTED_BYTES if reported else _WRITTEN_BYTES) + attributes
