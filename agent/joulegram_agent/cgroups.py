"""CPU time of every cgroup, and of it what each container and pod spent in a window.

Invariants:
    * a cgroup is its path and its inode, so a path used again is another cgroup, counted from its beginning;
    * the figures of a window are disjoint: a cgroup belongs to its nearest container or pod, and a pod has what none of
      its containers spent;
    * what a cgroup spent between its last read and its end is in its parent's count, and so its pod's, or nobody's;
    * no figure is negative, and none below `LEAST_NS` is given; what is left out, above or below 0, is kept for the
      windows that follow: over time the sum of a container's figures is what the kernel counted, less what the named
      processes in it were given.

The kernel's counts include descendants, removed ones too (cgroup-v1/cpuacct.rst; cgroup-v2.rst, ``cpu.stat``). They are
read from the leaves up, so that a parent's count holds what was read of its children.

What one read costs: a read for each cgroup, and a stat as well where the tree may have changed. On v2 it has not where
the root's ``cgroup.stat`` counts as many cgroups as are known and each of them can be read by the descriptor that was
opened on it: a cgroup that went cannot, though another may have come in its place. On v1, and where there are more
than descriptors, it always may have. A folder is listed only where its number of links says that it has another number
of children, or one of them is gone: the links of a cgroup's folder are 2 and its children.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_agent.cgroup_hierarchy import find_hierarchy
from joulegram_agent.container_ids import container_key
from joulegram_agent.kept import KeptFiles
from joulegram_agent.reasons import NO_CGROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping

CGROUP_ROOT = Path("/sys/fs/cgroup")

LEAST_NS = 1_000_000
"""Less than this a container has no line in a tick for."""

MAX_CGROUPS = 8_192
"""More are not read: their time stays with the nearest ancestor that is."""

_NS_PER_US = 1_000
_DESCENDANTS = b"nr_descendants"


@dataclass(slots=True, eq=False)
class _Node:
    """One cgroup as last seen.

    Args:
        path: of its folder.
        file: path of its count.
        inode: of its folder.
        key: of the container or pod it belongs to.
        above: the key of the cgroup around it.
        used_ns: the kernel's count; None before the first read.
        is_new: it was created since the read before, so that all of its count is of this window.
        folders: children the folder had when it was listed.
        is_gone: it was removed, or another has taken its path.
        children: by name.
    """

    path: str
    file: str
    inode: int
    parent: _Node | None
    key: str | None
    above: str | None
    used_ns: int | None = None
    is_new: bool = True
    folders: int = -1
    is_gone: bool = False
    children: dict[str, _Node] = field(default_factory=dict)


class Cgroups:
    """Reads the tree under `cgroup_root`; where there is none, every window is empty and `reason` says why."""

    def __init__(self, cgroup_root: Path = CGROUP_ROOT) -> None:
        self.hierarchy = find_hierarchy(cgroup_root)
        self.reason: str | None = None
        self.keys: frozenset[str] = frozenset()
        """The containers and pods there were at the last read."""
        self._is_v2 = self.hierarchy is not None and self.hierarchy.version == "v2"
        self._files = KeptFiles(size=1_024)
        self._numbers = KeptFiles(size=64, most=1)
        self._root: _Node | None = None
        self._order: list[_Node] = []
        self._owed: dict[str, int] = {}
        self._is_crowded = False
        self._count = 0
        self._failed = 0
        if self.hierarchy is None:
            self.reason = f"{NO_CGROUPS}: no cpuacct.usage and no cpu.stat under {cgroup_root}"

    def counters(self) -> dict[str, int]:
        """Nanoseconds of CPU time by path below the hierarchy's root, ``/`` itself included, as last read.

        As the kernel counts: descendants included, from the cgroup's creation.
        """
        if self.hierarchy is None:
            return {}
        cut = len(str(self.hierarchy.root))
        return {node.path[cut:] or "/": node.used_ns for node in self._order if node.used_ns is not None}

    @property
    def tally(self) -> dict[str, int]:
        """Cgroups by what became of them at the last read: ``read``, ``failed``, and ``left_out`` beyond `MAX_CGROUPS`.

        Of those left out the uppermost alone are known. Empty where there is no hierarchy.
        """
        if self.hierarchy is None:
            return {}
        left_out = sum(max(0, node.folders - len(node.children)) for node in self._order)
        return {"read": len(self._order) - self._failed, "failed": self._failed, "left_out": left_out}

    @property
    def kept(self) -> int:
        """Files open now."""
        return self._files.kept + self._numbers.kept

    def open(self) -> None:
        """Take every count as it stands: the next window begins here. What was owed is forgotten."""
        self._read()
        self._owed.clear()

    def window(self, named_ns: Mapping[str, int]) -> dict[str, int]:
        """Nanoseconds by container and pod since the window before, or since `open`.

        1. Every cgroup is read; what grew is put to its container or pod and taken off the one around it.
        2. What named processes spent inside is taken off.
        3. What is then above `LEAST_NS` is given; the rest is owed to a later window. A container that is gone is given
           what it is owed, however little; what it was given too much is taken from its pod.

        Args:
            named_ns: what named processes spent in this window, by the container or pod they ran in.
        """
        grown, gone = self._read()
        for part in (grown, {key: -spent for key, spent in named_ns.items()}):
            for key, nanos in part.items():
                self._owed[key] = self._owed.get(key, 0) + nanos
        given: dict[str, int] = {}
        # A pod's key is shorter than its containers', so what they were given too much has come to it by its turn.
        for key in sorted((key for key in self._owed if key not in self.keys), key=len, reverse=True):
            owed = self._owed.pop(key)
            above = gone.get(key)
            if owed > 0:
                given[key] = owed
            elif above is not None:
                self._owed[above] = self._owed.get(above, 0) + owed
        given |= {key: owed for key, owed in self._owed.items() if owed >= LEAST_NS}
        for key in given:
            self._owed.pop(key, None)
        return given

    def close(self) -> None:
        """Close what is open."""
        self._files.close()
        self._numbers.close()

    def _read(self) -> tuple[dict[str, int], dict[str, str | None]]:
        """What containers and pods spent since the read before, and those that are gone with the key around each."""
        gone: dict[str, str | None] = {}
        counts = self._counts() if self._is_same_number() else [None]
        if None in counts:
            self._follow(gone)
            counts = self._counts()
        grown: dict[str, int] = {}
        self._failed = counts.count(None)
        for node, used_ns in zip(reversed(self._order), counts, strict=True):
            if used_ns is None:
                node.is_new = False
                continue
            was_ns = node.used_ns if node.used_ns is not None else 0 if node.is_new else used_ns
            node.used_ns = used_ns
            if node.key == node.above:
                continue
            rise_ns = max(0, used_ns - was_ns)  # root may write 0 to a count of v1
            assert node.key is not None  # a key begins below, and never ends
            grown[node.key] = grown.get(node.key, 0) + rise_ns
            if node.above is not None:
                grown[node.above] = grown.get(node.above, 0) - rise_ns
        return grown, gone

    def _counts(self) -> list[int | None]:
        """What each cgroup ever used in nanoseconds, from the leaves up; None where it cannot be read."""
        counts: list[int | None] = []
        for node in reversed(self._order):
            try:
                data = self._files.read(node.file)
                if self._is_v2:
                    counts.append(int(data.partition(b"usage_usec ")[2].partition(b"\n")[0]) * _NS_PER_US)
                else:
                    counts.append(int(data))
            except (OSError, ValueError):
                counts.append(None)
        return counts

    def _is_same_number(self) -> bool:
        """Whether there are as many cgroups as are known, and the file of each was opened when it was met."""
        if not self._is_v2 or not self._order or self._files.kept < len(self._order):
            return False
        try:
            words = self._numbers.read(f"{self._order[0].path}/cgroup.stat").split(None, 2)
        except OSError:
            return False
        return words[:2] == [_DESCENDANTS, b"%d" % self._count]

    def _follow(self, gone: dict[str, str | None]) -> None:
        """Bring the known tree up to what there is."""
        if self.hierarchy is None:
            return
        if self._root is None:
            root = str(self.hierarchy.root)
            self._root = _Node(root, f"{root}/{self.hierarchy.file}", 0, None, None, None)
        listed = [self._root] if not self._order else []
        for node in self._order:
            if node.is_gone:
                continue
            try:
                status = os.stat(node.path)  # noqa: PTH116 - a Path each is a third of the cost of all
            except OSError:
                status = None
            if node.parent is not None and (status is None or status.st_ino != node.inode):
                self._drop(node, gone)
                listed.append(node.parent)
            elif status is None or status.st_nlink - 2 != node.folders:
                listed.append(node)
        for node in listed:  # grows while it is gone through
            if not node.is_gone:
                self._list(node, listed)
        if listed:
            self._order = _in_order(self._root)
            self.keys = frozenset(node.key for node in self._order if node.key is not None)

    def _list(self, node: _Node, listed: list[_Node]) -> None:
        """Take in the children a folder has; the new ones join `listed`."""
        assert self._root is not None
        assert self.hierarchy is not None
        found: dict[str, int] = {}
        try:
            with os.scandir(node.path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_ino
        except OSError:
            found.clear()  # removed while it was listed
        node.folders = len(found)
        for name, inode in found.items():
            if name in node.children:
                continue
            if self._count >= MAX_CGROUPS:
                self._is_crowded = True
                return
            path = f"{node.path}/{name}"
            key = container_key(path.removeprefix(self._root.path))
            child = _Node(
                path, f"{path}/{self.hierarchy.file}", inode, node, key, node.key, is_new=not self._is_crowded
            )
            node.children[name] = child
            self._count += 1
            listed.append(child)

    def _drop(self, node: _Node, gone: dict[str, str | None]) -> None:
        """Forget a cgroup and all below it."""
        if node.parent is not None:
            node.parent.children.pop(node.path.rpartition("/")[2], None)
        for each in _in_order(node):
            each.is_gone = True
            self._count -= 1
            self._files.let_go(each.file)
            if each.key is not None and each.key != each.above:
                gone[each.key] = each.above


def _in_order(root: _Node) -> list[_Node]:
    """A cgroup and all below it, each after its parent."""
    found = [root]
    for node in found:  # grows while it is gone through
        found += node.children.values()
    return found
