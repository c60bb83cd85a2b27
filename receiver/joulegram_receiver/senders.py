"""Where a request comes from: a process id says something only of the machine whose kernel gave it.

Invariants:
    * what cannot be told is taken for near: a Unix socket, a loopback address, the address the request came to.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import Any


def came_from_afar(sender: Any, own: Any) -> bool:
    """Whether a connection comes from another machine or network namespace, as that of a pod.

    Args:
        sender: the other end, as getpeername(2) gives it: host first; a text or None where it has no address.
        own: this end, as getsockname(2) does.
    """
    if not (isinstance(sender, tuple | list) and isinstance(own, tuple | list)) or sender[0] == own[0]:
        return False
    try:
        address = ip_address(str(sender[0]).partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return not (mapped or address).is_loopback
