"""The time in which a span is open and no descendant of it is.

Procedure:
    1. Give every span of a family a place in preorder: its descendants are at the places after its own, to its last.
    2. Sweep over starts and ends, ends first; hold the places of the spans that are open.
    3. A span is innermost while the open place next above its own is no descendant's. One that opens or closes changes
       that for itself, and for the open place next below its own where that is its ancestor's; for no other.

So the cost is that of sorting, however deep spans nest.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_processor.attribution import Columns

Piece = tuple[int, int, int]
"""Start, end, and the index of the span it belongs to."""


def unpacked(packed: bytes) -> list[Piece]:
    """The pieces that the native module packed."""
    numbers = memoryview(packed).cast("q").tolist()
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def innermost(spans: Columns, members: Iterable[int], homes: list[int], *, whole: bool) -> list[Piece]:
    """The pieces of time in which a member is open and none of its descendants among the members is.

    A span without duration has one such piece, for where it would have been.

    Args:
        spans: the columns, nested.
        members: indices of the spans of one process.
        homes: the process each span is nested in, by index.
        whole: whether the members are all there are.
    """
    starts, ends = spans.starts, spans.ends
    children: dict[int, list[int]] = {}
    if whole:
        children = dict(spans.below)
    else:
        for index in members:
            same = [child for child in spans.below.get(index, ()) if homes[child] == homes[index]]
            if same:
                children[index] = same
    if not children:
        return [(starts[index], ends[index], index) for index in members]
    order, last = _places(children)
    place = {index: at for at, index in enumerate(order)}
    events = sorted(
        (instant, begins, index)
        for index in order
        if starts[index] < ends[index]
        for instant, begins in ((starts[index], True), (ends[index], False))
    )
    pieces = [
        (starts[index], ends[index], index) for index in members if index not in place or starts[index] == ends[index]
    ]
    opened: list[int] = []
    since: dict[int, int] = {}
    for instant, begins, index in events:
        here = place[index]
        at = bisect_left(opened, here)
        around = order[opened[at - 1]] if at and last[opened[at - 1]] >= here else -1
        if begins:
            if since.get(around, instant) < instant:
                pieces.append((since[around], instant, around))
            since.pop(around, None)
            insort(opened, here)
            if at + 1 == len(opened) or opened[at + 1] > last[here]:
                since[index] = instant
        else:
            if since.get(index, instant) < instant:
                pieces.append((since[index], instant, index))
            since.pop(index, None)
            del opened[at]
            if around >= 0 and (at == len(opened) or opened[at] > last[place[around]]):
                since[around] = instant
    return pieces


def _places(children: dict[int, list[int]]) -> tuple[list[int], list[int]]:
    """The spans of families in preorder, and by place that of the last descendant; cycles of parents are cut."""
    above = {child: index for index, group in children.items() for child in group}
    order = _downwards(children, [index for index in children if index not in above])
    reached = set(order)
    if not reached.issuperset(children):  # the rest is cycles and what hangs below them
        looping = _cycles(above, [index for index in children if index not in reached])
        for index in looping:
            children[index] = [child for child in children[index] if child not in looping]
            del above[index]
        order += _downwards(children, list(looping))
    place = {index: at for at, index in enumerate(order)}
    last = list(range(len(order)))
    for at in range(len(order) - 1, 0, -1):
        parent = above.get(order[at])
        if parent is not None:
            last[place[parent]] = max(last[place[parent]], last[at])
    return order, last


def _downwards(children: dict[int, list[int]], roots: list[int]) -> list[int]:
    """Roots and all below them, in preorder."""
    order: list[int] = []
    stack = roots
    while stack:
        index = stack.pop()
        order.append(index)
        stack += children.get(index, ())
    return order


def _cycles(above: dict[int, int], suspects: list[int]) -> set[int]:
    """Those of the suspects that are their own ancestors."""
    looping: set[int] = set()
    done: set[int] = set()
    for index in suspects:
        path: list[int] = []
        at = index
        while at not in done:
            done.add(at)
            path.append(at)
            at = above[at]
        if at in path:
            looping.update(path[path.index(at) :])
    return looping
