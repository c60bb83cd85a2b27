"""Whether the compiled hot loops are there: `LOADED` is the module, or None, and then all is done in Python.

Invariants:
    * what a function of it gives is what the Python beside its call gives; property tests hold them equal;
    * it gives None for whatever it does not know for certain and has no errors of its own: Python decides.

``JOULEGRAM_NATIVE=0`` in the environment leaves it aside. A wheel that was built without a C compiler has none.
"""

from __future__ import annotations

import os

VARIABLE = "JOULEGRAM_NATIVE"

_VERSION = 3
"""Of the signatures in _native.pyi: a module that another version of joulegram left here is not called."""

try:
    from joulegram_processor import _native

    BUILT = _native.VERSION == _VERSION
except ImportError:
    BUILT = False

LOADED = _native if BUILT and os.environ.get(VARIABLE) != "0" else None


def state() -> str:
    """For people: whether it is in use, and if not, why."""
    if LOADED is not None:
        return "in use"
    return f"off: {VARIABLE} is 0" if BUILT else "not built: Python does its work"
