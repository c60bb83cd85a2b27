"""Prometheus text exposition format 0.0.4, written by hand: the agent imports the standard library only.

Invariants:
    * names and label names are ours and checked where a family is made; label values and help may be any text, and are
      escaped as the format asks;
    * a family without samples is its HELP and TYPE alone: what is not known is absent, never 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_IN_VALUE = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One value.

    Args:
        value: finite or not, as the format has both.
        labels: by name.
        suffix: of the family's name: ``_bucket``, ``_sum``, ``_count``; empty for counters and gauges.
    """

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: Literal["", "_bucket", "_sum", "_count"] = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Args:
        name: a counter's ends in ``_total``.
        kind: its TYPE.
        text: its HELP.
        samples: none where nothing is known.
        labels: names of the labels its samples have, beside a histogram's ``le``.

    Raises:
        ValueError: a name that the format does not allow, which is a defect of ours.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    samples: tuple[Sample, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not all(map(_LABEL.fullmatch, self.labels)):
            raise ValueError(f"got metric {self.name!r} with labels {self.labels}, expected names of letters and _")


def counter(name: str, text: str, samples: Iterable[Sample], *labels: str) -> Family:
    """A family of counts that only grow."""
    return Family(name, "counter", text, tuple(samples), labels)


def gauge(name: str, text: str, samples: Iterable[Sample], *labels: str) -> Family:
    """A family of values as they are now."""
    return Family(name, "gauge", text, tuple(samples), labels)


def histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Family:
    """A histogram without labels.

    Args:
        name: without a suffix.
        text: its HELP.
        bounds: upper bounds, rising.
        counts: observations between two bounds; one more than there are bounds.
        total: sum of what was observed.
    """
    samples: list[Sample] = []
    below = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        below += count
        samples.append(Sample(below, {"le": _number(bound)}, "_bucket"))
    samples += [Sample(total, suffix="_sum"), Sample(below, suffix="_count")]
    return Family(name, "histogram", text, tuple(samples))


def render(families: Iterable[Family]) -> bytes:
    """The page: every family with its HELP, TYPE and samples."""
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.text.translate(_IN_HELP)}", f"# TYPE {family.name} {family.kind}"]
        lines += [f"{family.name}{sample.suffix}{_labels(sample)} {_number(sample.value)}" for sample in family.samples]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_IN_VALUE)}"' for name, value in sample.labels.items()) + "}"


def _number(value: float) -> str:
    """As Go's ParseFloat reads it, exact: the shortest decimals that give the same double."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
