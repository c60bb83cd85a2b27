"""Whether the compiled part of the SDK is there: `LOADED` is the module, or None, and then all is done in Python.

Invariants:
    * what is compiled charges as the Python beside it does (cpu_watch.py), and calls it for what is rare.

``JOULEGRAM_NATIVE=0`` in the environment leaves it aside. A wheel that was built without a C compiler has none.
"""

from __future__ import annotations

import os

_VERSION = 2
"""Of the signatures in _native.pyi: a module that another version of joulegram left here is not called."""

try:
    from joulegram import _native

    BUILT = _native.VERSION == _VERSION
except ImportError:
    BUILT = False

LOADED = _native if BUILT and os.environ.get("JOULEGRAM_NATIVE") != "0" else None


def state() -> str:
    """For people: whether it is in use, and if not, why."""
    if LOADED is not None:
        return "in use"
    return "off: JOULEGRAM_NATIVE is 0" if BUILT else "not built: Python does its work"
