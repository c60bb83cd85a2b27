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
    """Calling it more often holds no more memory and no more references."""
    for _ in range(20):
        call()
    gc.collect()
    blocks, nones = sys.getallocatedblocks(), sys.getrefcount(None)
    for _ in range(200):
        call()
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 50
    assert abs(sys.getrefcount(None) - nones) < 50
