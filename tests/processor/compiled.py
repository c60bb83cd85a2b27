"""What the tests of the compiled part share: when they run, and that a call holds on to nothing."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram_processor import native

if TYPE_CHECKING:
    from collections.abc import Callable

COMPILED = pytest.mark.skipif(native.LOADED is None, reason=f"the native part is {native.state()}")
"""For modules that compare: without the compiled part there is nothing to compare."""


def no_growth(call: Callable[[], object]) -> None:
    """Calling it more often holds no more memory and no more references; lists of the free may fill for a while.

    What holds on to anything grows by at least one a call for as long as it is called: half of that is the bound.
    """
    for _ in range(20):
        call()
    measured = []
    for _ in range(6):
        gc.collect()
        blocks, nones = sys.getallocatedblocks(), sys.getrefcount(None)
        for _ in range(200):
            call()
        gc.collect()
        measured.append((sys.getallocatedblocks() - blocks, abs(sys.getrefcount(None) - nones)))
        if max(measured[-1]) < 100:
            return
    pytest.fail(f"grew by (blocks, references to None) {measured} in 200 calls each")
