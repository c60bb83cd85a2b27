"""From the path of a cgroup to the container or pod it belongs to.

1. The path is read from its root to its leaf, one component at a time.
2. A component of a pod (``pod<uid>``, ``…-pod<uid>.slice``) begins a pod, outside of any container.
3. A component that ends in 64 hexadecimal digits, alone or behind a runtime's prefix, is a container; what lies below
   is the container's own. The innermost wins: with Docker in Docker, or a cluster in containers, that is the container
   a process was started in, and the outer one keeps what is left.
4. What is no component of these has no part in the key: units, slices, sessions, nspawn and LXC, which go by names.

Monitors (``crio-conmon-<id>``, ``libpod-conmon-<id>``) run beside a container and are not it: inside a pod their time
is the pod's, else it is nobody's. A pod of podman is not one of Kubernetes: only its containers have keys.

The forms are those of kubelet's cgroup manager (cgroupfs and systemd, where ``-`` in a uid is written ``_``), runc's
systemd unit names, containerd's CRI plugin, CRI-O, moby and podman; static pods have the 32 digits of their manifest's
hash for a uid.
"""

from __future__ import annotations

import re

_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_POD = re.compile(rf"(?:[A-Za-z0-9_.-]*-)?pod{_UID}(?:\.slice)?")
_CONTAINER = re.compile(r"(?:(?P<prefix>[A-Za-z][A-Za-z0-9_.-]*)[-_:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_DELETED = " (deleted)"

CPU_CONTROLLER = "cpuacct"
"""The v1 controller that counts CPU time; where it is mounted, its paths are the ones that count."""


def container_key(path: str) -> str | None:
    """``container/<id>``, ``pod/<uid>/container/<id>`` or ``pod/<uid>``; None where the cgroup is of neither.

    Args:
        path: as ``/proc/<pid>/cgroup`` has it, or below the root of a hierarchy. Leading ``/..`` of another cgroup
            namespace do no harm.
    """
    key: str | None = None
    pod: str | None = None
    above = ""
    for component in path.removesuffix(_DELETED).split("/"):
        # runc's cgroupfs manager takes systemd's "parent slice : prefix : name" for one name.
        slice_name, colon, scope = component.partition(".slice:")
        parts = (slice_name + ".slice", scope) if colon else (component,)
        for part in parts:
            if match := _POD.fullmatch(part):
                pod = f"pod/{match['uid'].replace('_', '-')}"
                key = pod
            elif (found := _container_id(part, above)) is not None:
                key = f"container/{found}" if pod is None else f"{pod}/container/{found}"
            above = part
    return key


def process_path(lines: bytes) -> str | None:
    """The path that counts in ``/proc/<pid>/cgroup``: of v1's cpuacct, else of v2; None where neither is there.

    Source: cgroups(7), ``/proc/<pid>/cgroup``: ``hierarchy-ID:controllers:path`` a line, v2 as ``0::path``.
    """
    unified: str | None = None
    for line in lines.decode("utf-8", "surrogateescape").split("\n"):
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if CPU_CONTROLLER in controllers.split(","):
            return path
        if colon and number == "0" and not controllers:
            unified = path
    return unified


def _container_id(part: str, above: str) -> str | None:
    match = _CONTAINER.fullmatch(part)
    if match is None:
        return None
    prefix: str | None = match["prefix"]
    if prefix is None:
        return None if above == "libpod_parent" else match["id"]  # podman's own pods have 64 digits too
    return None if "conmon" in prefix else match["id"]
