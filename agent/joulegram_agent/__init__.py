"""Measures the node's energy and publishes ticks of one second; privileged, so standard library only."""

from __future__ import annotations

from pathlib import Path

DEFAULT_SOCKET = Path("/run/joulegram/agent.sock")
"""Where the agent listens unless told otherwise."""

MAX_NAMED = 1_024
"""Named processes in all; beyond this a name is refused, because each costs a look at every tick."""
