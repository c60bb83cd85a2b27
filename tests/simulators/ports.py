"""Ports that stay free while nobody listens on them, for processes that end and come back on the same one.

Invariants:
    * a port lies outside the range the kernel draws from for port 0 and for outgoing connections: it would give one
      away between two lives, now and then to the very client that calls it, which is then connected to itself;
    * no port is given twice by one process.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_DRAWN_FROM = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _HIGHEST = 10_000, 65_000
_TRIES = 1_000

_given: set[int] = set()
_chance = random.SystemRandom()


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago and that the kernel gives to nobody."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As many of them, all different.

    Raises:
        AssertionError: if so many cannot be found.
    """
    first, last = (int(bound) for bound in _DRAWN_FROM.read_text().split())
    ours = [port for port in range(_LOWEST, _HIGHEST) if not first <= port <= last]
    assert ours, f"the kernel draws from all ports between {first} and {last}: no other is left for a test"
    found: list[int] = []
    for _ in range(_TRIES):
        if len(found) == count:
            break
        port = _chance.choice(ours)
        if port not in _given and _is_free(port):
            _given.add(port)
            found.append(port)
    assert len(found) == count, f"{len(found)} of {count} free ports after {_TRIES} tries"
    return found


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
