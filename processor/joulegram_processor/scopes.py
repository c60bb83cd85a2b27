"""Whose energy: what a span says of itself and what a tick says of whom it counted, as one set of keys.

A scope is an integer where energy is divided: the pid of a named process, a negative number for a container, a pod or
a GPU board, and `HOST` for all that no other speaks for. A key is its name in text:

    process 4711      the pid itself
    container         ``container/<id>``; an id of 12 to 64 hex digits counts by its first 12, as it may be abbreviated
    pod               ``pod/<uid>``, without dashes, as a static pod's directory has it
    GPU board         ``board/<uuid>``

Invariants:
    * what is written differently and means the same has one key; what cannot be a key is none.
"""

from __future__ import annotations

import re
from typing import Any

HOST = 0
"""The scope of spans that nobody else speaks for; pid 0 is no process."""

CONTAINER, POD, BOARD = "container/", "pod/", "board/"

LABELS: tuple[str, ...] = ("host", "process", "container", "pod", "span")
"""The texts of `energy.scope`, in the order of the numbers below."""

WIDEST_FIRST: tuple[str, ...] = ("host", "pod", "container", "process", "span")
"""What spans of several scopes are called together: the widest, so that no more is claimed than is known (S0-06)."""

BY_HOST, BY_PROCESS, BY_CONTAINER, BY_POD, BY_SPAN = range(len(LABELS))

MAX_KEY = 256
"""Characters of an id; what is longer is nobody's."""

_HEX_ID = re.compile(r"[0-9a-fA-F]{12,64}")
_SHORT_ID = 12
_GPU_PREFIX = re.compile(r"(gpu-)+", re.IGNORECASE)


def key_of(resource: dict[str, Any]) -> int | str:
    """The key of a resource's spans: its container with its pod, its pod, or its process; `HOST` where it names none.

    A process id beside a container's is of another pid namespace, and says nothing here.
    """
    container, pod = _text(resource.get("container.id")), _text(resource.get("k8s.pod.uid"))
    if not (container or pod) and ("container.id" in resource or "k8s.pod.uid" in resource):
        return HOST
    if container or pod:
        return "/".join((*((POD + pod,) if pod else ()), *((CONTAINER + container,) if container else ())))
    pid = resource.get("process.pid")
    if isinstance(pid, str) and pid.isascii() and pid.isdigit() and len(pid) < 10:
        pid = int(pid)
    return pid if isinstance(pid, int) and not isinstance(pid, bool) and 1 < pid < 2**31 else HOST


def board_of(attributes: dict[str, Any]) -> str | None:
    """The key of the GPU board a span names by ``hw.id`` (semantic conventions, hardware); None where it names none."""
    text = _text(attributes.get("hw.id"))
    return board_key(text) if text else None


def board_key(domain: str) -> str:
    """The key of a board by the id of its domain or by its UUID."""
    return BOARD + _GPU_PREFIX.sub("", domain, count=1).lower()


def candidates(key: str) -> tuple[str, ...]:
    """The scopes a key may be counted in, the nearest first: the container, then the pod it is in."""
    if key.startswith(BOARD):
        return (key,)
    head, found, container = key.partition(CONTAINER)
    pod = head.removeprefix(POD).rstrip("/") if head.startswith(POD) else ""
    nearest = (CONTAINER + _container(container),) if found else ()
    return (*nearest, *((POD + pod.replace("-", "").lower(),) if pod else ()))


def label_of(key: str) -> int:
    """The number of the label of a scope with this key."""
    return BY_CONTAINER if key.startswith(CONTAINER) else BY_POD if key.startswith(POD) else BY_HOST


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_KEY:
        return ""
    text = value.rpartition("://")[2].strip()  # Kubernetes writes containerd://<id>
    return "" if "/" in text else text


def _container(text: str) -> str:
    return text[:_SHORT_ID].lower() if _HEX_ID.fullmatch(text) else text
