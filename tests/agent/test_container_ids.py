"""From the paths of cgroups to containers and pods."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_agent.container_ids import container_key, process_path

ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
INNER = "022c4ffba65e5031285fd427553e56c3fd6cc85a3a49f3fa2825d0a258d8a5d6"
UID = "2c48913c-b29f-11e7-9350-020968147796"
UID_ = UID.replace("-", "_")
HASH = "99dcb84d2a34f7e338778606703258c4"
KIND = f"/system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"

PATHS = {
    # kubelet, systemd driver (pkg/kubelet/cm/cgroup_manager_linux.go: "-" in a uid becomes "_")
    "containerd, burstable": (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"pod/{UID}/container/{ID}",
    ),
    "containerd, guaranteed": (
        f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"pod/{UID}/container/{ID}",
    ),
    "CRI-O, best effort": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope",
        f"pod/{UID}/container/{ID}",
    ),
    "CRI-O with crun, a cgroup inside": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope/container",
        f"pod/{UID}/container/{ID}",
    ),
    "CRI-O's monitor": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-conmon-{ID}.scope",
        f"pod/{UID}",
    ),
    "dockershim": (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/docker-{ID}.scope",
        f"pod/{UID}/container/{ID}",
    ),
    "static pod": (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/cri-containerd-{ID}.scope",
        f"pod/{HASH}/container/{ID}",
    ),
    "pod itself": (f"/kubepods.slice/kubepods-pod{UID_}.slice", f"pod/{UID}"),
    "a class of pods": ("/kubepods.slice/kubepods-burstable.slice", None),
    # kubelet, cgroupfs driver
    "cgroupfs, burstable": (f"/kubepods/burstable/pod{UID}/{ID}", f"pod/{UID}/container/{ID}"),
    "cgroupfs, guaranteed": (f"/kubepods/pod{UID}/{ID}", f"pod/{UID}/container/{ID}"),
    "cgroupfs, static pod": (f"/kubepods/burstable/pod{HASH}/{ID}", f"pod/{HASH}/container/{ID}"),
    "cgroupfs, CRI-O": (f"/kubepods/besteffort/pod{UID}/crio-{ID}", f"pod/{UID}/container/{ID}"),
    "cgroupfs, CRI-O's monitor": (f"/kubepods/besteffort/pod{UID}/crio-conmon-{ID}", f"pod/{UID}"),
    # containerd's CRI plugin with systemd's form under runc's cgroupfs manager (getCgroupsPath: slice:prefix:id)
    "containerd, colons": (
        f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
        f"pod/{UID}/container/{ID}",
    ),
    "k3s, colons at the root": (
        f"/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{ID}",
        f"pod/{UID}/container/{ID}",
    ),
    "docker, colons": (f"/system.slice:docker:{ID}", f"container/{ID}"),
    # another cgroup namespace (cgroups(7)): the beginning is hidden
    "seen from a sibling pod": (f"/../../pod{UID}/{ID}", f"pod/{UID}/container/{ID}"),
    "seen from a sibling slice": (
        f"/../../kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope",
        f"pod/{UID}/container/{ID}",
    ),
    # docker (moby, daemon/oci_linux.go)
    "docker, systemd": (f"/system.slice/docker-{ID}.scope", f"container/{ID}"),
    "docker, cgroupfs": (f"/docker/{ID}", f"container/{ID}"),
    "docker, systemd inside": (f"/system.slice/docker-{ID}.scope/init.scope", f"container/{ID}"),
    "docker, rootless": (
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
        f"container/{ID}",
    ),
    "docker's build": ("/docker/buildkit/3q4bmykrmf5e5s3s8n8z1f0ab", None),
    "nerdctl": (f"/system.slice/nerdctl-{ID}.scope", f"container/{ID}"),
    "ECS": (f"/ecs/0a1b2c3d4e5f60718293a4b5c6d7e8f9/{ID}", f"container/{ID}"),
    "an overlay's mount unit": (f"/system.slice/var-lib-docker-overlay2-{ID}-merged.mount", None),
    # podman (libpod/container_internal_linux.go, and conmon's own)
    "podman, rootful": (f"/machine.slice/libpod-{ID}.scope", f"container/{ID}"),
    "podman, crun's cgroup inside": (f"/machine.slice/libpod-{ID}.scope/container", f"container/{ID}"),
    "podman, rootless": (
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        f"container/{ID}",
    ),
    "podman, quadlet": (f"/system.slice/nginx.service/libpod-payload-{ID}", f"container/{ID}"),
    "podman, quadlet's monitor": ("/system.slice/nginx.service/runtime", None),
    "podman's monitor": (f"/machine.slice/libpod-conmon-{ID}.scope", None),
    "podman, in a pod of its own": (
        f"/machine.slice/machine-libpod_pod_{INNER}.slice/libpod-{ID}.scope",
        f"container/{ID}",
    ),
    "podman's pod": (f"/machine.slice/machine-libpod_pod_{INNER}.slice", None),
    "podman, cgroupfs": (f"/libpod_parent/libpod-{ID}", f"container/{ID}"),
    "podman's pod, cgroupfs": (f"/libpod_parent/{INNER}", None),
    "podman's monitor, cgroupfs": ("/libpod_parent/conmon", None),
    # nested: the innermost wins
    "docker in docker": (f"/docker/{ID}/docker/{INNER}", f"container/{INNER}"),
    "docker in a pod": (
        f"/kubepods/burstable/pod{UID}/{ID}/docker/{INNER}",
        f"pod/{UID}/container/{INNER}",
    ),
    "kind": (
        f"{KIND}/kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{INNER}.scope",
        f"pod/{UID}/container/{INNER}",
    ),
    "kind, the kubelet": (f"/system.slice/docker-{ID}.scope/kubelet.slice/kubelet.service", f"container/{ID}"),
    "minikube": (f"/docker/{ID}/kubepods/besteffort/pod{UID}/{INNER}", f"pod/{UID}/container/{INNER}"),
    "a pod in minikube": (f"/docker/{ID}/kubepods/besteffort/pod{UID}", f"pod/{UID}"),
    # removed (cgroups(7))
    "removed while it ran": (f"/docker/{ID} (deleted)", f"container/{ID}"),
    # none
    "root": ("/", None),
    "nothing": ("", None),
    "unit": ("/system.slice/sshd.service", None),
    "session": ("/user.slice/user-1000.slice/session-3.scope", None),
    "nspawn": ("/machine.slice/systemd-nspawn@debian.service/payload", None),
    "LXC": ("/lxc.payload.web", None),
    "containerd's ctr": ("/default/redis", None),
    "Nomad": ("/nomad.slice/share.slice/8a2e9a9d-19a9-4b0b-8e3a-2f0b3b0b7a11.web.scope", None),
    "a short id": ("/docker/9bca8d63d5fa", None),
    "65 digits": (f"/docker/{ID}0", None),
    "capitals": (f"/docker/{ID.upper()}", None),
    "a pod without a uid": ("/kubepods/burstable/podsomething", None),
}
KEY = re.compile(r"(pod/[0-9a-f-]{32,36})?(/?container/[0-9a-f]{64})?")


@pytest.mark.parametrize(("path", "key"), PATHS.values(), ids=PATHS)
def test_path_of_each_runtime_gives_its_key(path: str, key: str | None) -> None:
    """Issue 5, deliver 3: container and pod ids of containerd, CRI-O, docker, podman and systemd."""
    assert container_key(path) == key


@pytest.mark.parametrize(("path", "key"), PATHS.values(), ids=PATHS)
def test_what_lies_below_belongs_to_it(path: str, key: str | None) -> None:
    """A key holds for a cgroup's whole subtree, until an inner container or pod begins."""
    path = path.removesuffix(" (deleted)")
    pod = (key or "").partition("container/")[0].rstrip("/")
    assert container_key(f"{path}/init.scope") == key
    assert container_key(f"{path}/docker-{INNER}.scope") == f"{pod}/container/{INNER}".lstrip("/")


@given(
    st.lists(st.sampled_from([*"/.:-_", "pod", "docker", ".slice", ".scope", "..", "kubepods", ID, UID, UID_, HASH]))
)
def test_no_path_made_of_their_parts_breaks_it(parts: list[str]) -> None:
    """Whatever is put together, there is no key or a well-formed one."""
    key = container_key("".join(parts))
    assert key is None or (key and KEY.fullmatch(key))


@given(st.text())
def test_no_text_breaks_it(path: str) -> None:
    """A path is chosen by whoever may make cgroups."""
    assert container_key(path) is None


@given(st.binary())
def test_no_bytes_break_the_file_of_a_process(lines: bytes) -> None:
    """`/proc/<pid>/cgroup` holds names of others' choosing."""
    path = process_path(lines)
    assert path is None or container_key(path) is None or ID.encode() in lines


FILES = {
    "v2": (b"0::/docker/x\n", "/docker/x"),
    "v1": (b"12:memory:/m\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/s\n", "/docker/x"),
    "v1, apart": (b"2:cpuacct:/docker/x\n1:cpu:/c\n", "/docker/x"),
    "hybrid": (b"4:cpuacct,cpu:/docker/x\n1:name=systemd:/s\n0::/s\n", "/docker/x"),
    "colons in the path": (b"0::/a.slice:docker:x\n", "/a.slice:docker:x"),
    "no CPU time": (b"1:name=systemd:/s\n", None),
    "empty": (b"", None),
    "not the format": (b"cpuacct\n", None),
}


@pytest.mark.parametrize(("lines", "path"), FILES.values(), ids=FILES)
def test_line_that_counts_is_found(lines: bytes, path: str | None) -> None:
    """cgroups(7): v1's cpuacct where it is, else v2."""
    assert process_path(lines) == path
