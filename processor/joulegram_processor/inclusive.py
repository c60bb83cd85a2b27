"""Inclusive energy: what a span's settled descendants had, beside its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from joulegram_processor.attribution import Columns
    from joulegram_processor.rows import Triple


def add_up(spans: Columns, carried: dict[bytes, Triple]) -> None:
    """Fill `kids`: what settled descendants add to each span; what has no parent here is carried for one to come.

    A cycle of parents adds nothing: no member of it is a descendant of another.
    """
    count = len(spans)
    keys, parents = spans.keys, spans.parents
    kids = spans.kids = ([0] * count, [0] * count, [0] * count)
    if carried:
        for index, key in enumerate(keys):
            if key in carried:
                for kind, uj in enumerate(carried.pop(key)):
                    kids[kind][index] = uj
    spans.nest()
    above, below = spans.above, spans.below
    for index, parent in enumerate(above):
        if parent is None and parents[index] and index not in below:
            _carry(spans, index, carried)
    active = [kind for kind in range(3) if any(spans.own[kind]) or any(kids[kind])]
    for kind in active:
        own, more = spans.own[kind], kids[kind]
        for parent, children in below.items():
            more[parent] += sum(own[child] + more[child] for child in children if child not in below)
    waiting = {parent: sum(child in below for child in children) for parent, children in below.items()}
    ready = [parent for parent, left in waiting.items() if not left]
    while ready:
        index = ready.pop()
        parent = above[index]
        if parent is None:
            if parents[index]:
                _carry(spans, index, carried)
            continue
        for kind in active:
            kids[kind][parent] += spans.own[kind][index] + kids[kind][index]
        waiting[parent] -= 1
        if not waiting[parent]:
            ready.append(parent)


def _carry(spans: Columns, index: int, carried: dict[bytes, Triple]) -> None:
    key = spans.parents[index]
    held = carried.get(key, (0, 0, 0))
    cpu, dram, gpu = (held[kind] + spans.own[kind][index] + spans.kids[kind][index] for kind in range(3))
    carried[key] = (cpu, dram, gpu)
