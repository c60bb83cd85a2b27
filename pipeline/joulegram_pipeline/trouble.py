"""What last went wrong in one stage, and when: kept when it is over, for who looks later (/debug/pipelines)."""

from __future__ import annotations

import time


class LastTrouble:
    """The last sentence of trouble of a stage. Any thread notes, any reads.

    A sentence is shown to whoever may open the page, so nothing of a request's content stands in it.
    """

    __slots__ = ("_said",)

    def __init__(self) -> None:
        self._said: tuple[str, float] | None = None  # one value, so that no reader sees half of two

    def note(self, text: str) -> None:
        """It went wrong just now."""
        self._said = text, time.monotonic()

    @property
    def text(self) -> str | None:
        """The sentence; None where there was none since the start."""
        return None if self._said is None else self._said[0]

    @property
    def since_s(self) -> float | None:
        """How long ago that was; None where there was none."""
        return None if self._said is None else time.monotonic() - self._said[1]
