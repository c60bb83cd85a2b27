"""What a driver and the comparison say to each other: a word a line in, a line of JSON out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def talk(
    begin: Callable[[], None], read: Callable[[], None], end: Callable[[], float | Mapping[str, float | None]]
) -> None:
    """Do as told until the end: ``begin``, ``read`` as often as it comes, ``end``.

    Args:
        begin: starts measuring.
        read: what the reader does by itself from time to time.
        end: stops, and gives the joules that the reader reports since the beginning, by name where it has several.

    An exception is the answer: that is what the reader's user would get.
    """
    words = {"begin": begin, "read": read, "end": end}
    answers, sys.stdout = sys.stdout, sys.stderr  # what the reader prints is not an answer
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"joules": words[line.strip()]()}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the reader does
            answer = {"raised": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if line.strip() == "end":
            return
