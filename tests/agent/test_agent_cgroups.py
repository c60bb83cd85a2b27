"""CPU time of cgroups, and of it what containers and pods spent."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joulegram_agent import cgroups as cgroups_module
from joulegram_agent.cgroup_hierarchy import find_hierarchy
from joulegram_agent.cgroups import CGROUP_ROOT, LEAST_NS, Cgroups
from simulators.cgroupfs import IDS, POD, POD_CGROUPFS, STATIC_UID, UID, CgroupTree, in_docker, in_pod

MS = 1_000_000
POD_KEY = f"pod/{UID}"


def pod_key(number: int) -> str:
    return f"{POD_KEY}/container/{IDS[number]}"


def docker_key(number: int) -> str:
    return f"container/{IDS[number]}"


@pytest.fixture(params=["v1", "v2", "hybrid"])
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> CgroupTree:
    tree = CgroupTree(tmp_path / "cgroup", request.param)
    for path in (in_pod(0), in_pod(1), in_docker(2), "system.slice/sshd.service"):
        tree.create(path)
    return tree


def opened(tree: CgroupTree) -> Cgroups:
    cgroups = Cgroups(tree.root)
    cgroups.open()
    return cgroups


@pytest.mark.parametrize(
    ("version", "file"), [("v1", "cpuacct.usage"), ("v2", "cpu.stat"), ("hybrid", "cpuacct.usage")]
)
def test_hierarchy_that_counts_is_found(tmp_path: Path, version: str, file: str) -> None:
    """Issue 5, deliver 3: v1, v2, and of a hybrid machine v1's cpuacct, where its containers are."""
    tree = CgroupTree(tmp_path / "cgroup", version)
    hierarchy = find_hierarchy(tree.root)
    assert hierarchy is not None
    assert (hierarchy.version, hierarchy.root, hierarchy.file) == (version, tree.base, file)


@pytest.mark.parametrize("name", ["cpuacct", "cpu,cpuacct", "cpuacct,cpu", "."])
def test_v1_is_found_wherever_distributions_mount_it(tmp_path: Path, name: str) -> None:
    """The controller alone, joined with cpu in either order, or given itself as the root."""
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "cpuacct.usage").write_text("1\n")
    hierarchy = find_hierarchy(tmp_path)
    assert hierarchy is not None
    assert hierarchy.root == tmp_path / name


def test_machine_without_cgroups_says_so(tmp_path: Path) -> None:
    """A missing measurement has a reason, and gives no figure."""
    cgroups = Cgroups(tmp_path)
    cgroups.open()
    assert cgroups.reason == f"no_cgroups: no cpuacct.usage and no cpu.stat under {tmp_path}"
    assert cgroups.window({}) == {}
    assert cgroups.counters() == {}


def test_containers_and_pods_get_what_they_spent(tree: CgroupTree) -> None:
    """Disjoint: the pod has what its containers did not spend, units have nothing, the past is not counted."""
    tree.spend(in_pod(0), 900 * MS)
    cgroups = opened(tree)
    tree.spend(in_pod(0), 30 * MS)
    tree.spend(in_pod(1), 20 * MS)
    tree.spend(POD, 5 * MS)
    tree.spend(in_docker(2), 7 * MS)
    tree.spend("system.slice/sshd.service", 11 * MS)
    assert cgroups.window({}) == {pod_key(0): 30 * MS, pod_key(1): 20 * MS, POD_KEY: 5 * MS, docker_key(2): 7 * MS}
    assert cgroups.window({}) == {}


def test_cgroups_inside_a_container_are_its_own(tree: CgroupTree) -> None:
    """A container that runs systemd, or crun's `container`, has one figure."""
    inside = f"{in_docker(2)}/system.slice/cron.service"
    tree.create(inside)
    cgroups = opened(tree)
    tree.spend(inside, 4 * MS)
    tree.spend(in_docker(2), 3 * MS)
    assert cgroups.window({}) == {docker_key(2): 7 * MS}


def test_container_in_a_container_is_taken_off_it(tree: CgroupTree) -> None:
    """Docker in Docker: the inner has its own, the outer what is left."""
    tree.create(f"{in_docker(2)}/docker/{IDS[3]}")
    cgroups = opened(tree)
    tree.spend(f"{in_docker(2)}/docker/{IDS[3]}", 40 * MS)
    tree.spend(in_docker(2), 2 * MS)
    assert cgroups.window({}) == {docker_key(3): 40 * MS, docker_key(2): 2 * MS}


def test_container_that_appears_is_counted_from_its_beginning(tree: CgroupTree) -> None:
    """What it spent before it was first seen is of this window, and in nobody else's figure."""
    cgroups = opened(tree)
    tree.create(in_pod(5))
    tree.spend(in_pod(5), 25 * MS)
    assert cgroups.window({}) == {pod_key(5): 25 * MS}
    tree.create(f"{POD_CGROUPFS.replace(UID, STATIC_UID)}/{IDS[6]}")
    tree.spend(f"{POD_CGROUPFS.replace(UID, STATIC_UID)}/{IDS[6]}", 2 * MS)
    assert cgroups.window({}) == {f"pod/{STATIC_UID}/container/{IDS[6]}": 2 * MS}


def test_last_second_of_a_removed_container_is_its_pods(tree: CgroupTree) -> None:
    """It is in the parent's count (cgroup-v2.rst): not lost and not negative."""
    cgroups = opened(tree)
    tree.spend(in_pod(0), 30 * MS)
    assert cgroups.window({}) == {pod_key(0): 30 * MS}
    tree.spend(in_pod(0), 12 * MS)
    tree.remove(in_pod(0))
    assert cgroups.window({}) == {POD_KEY: 12 * MS}
    tree.spend(in_pod(1), MS)
    assert cgroups.window({}) == {pod_key(1): MS}


def test_container_that_came_and_went_between_two_reads_is_its_pods(tree: CgroupTree) -> None:
    """Kepler's 5 s (energy.md 1b: what lives shorter is ignored): here it is in the figure of what held it."""
    cgroups = opened(tree)
    tree.create(in_pod(7))
    tree.spend(in_pod(7), 400 * MS)
    tree.remove(in_pod(7))
    assert cgroups.window({}) == {POD_KEY: 400 * MS}


def test_path_used_again_is_another_cgroup(tree: CgroupTree) -> None:
    """A restarted container's scope has the old path and counts from 0: no fall, nothing counted twice."""
    cgroups = opened(tree)
    tree.spend(in_docker(2), 500 * MS)
    assert cgroups.window({}) == {docker_key(2): 500 * MS}
    tree.remove(in_docker(2))
    tree.create(in_docker(2))
    tree.spend(in_docker(2), 3 * MS)
    assert cgroups.window({}) == {docker_key(2): 3 * MS}
    tree.spend(in_docker(2), 600 * MS)
    assert cgroups.window({}) == {docker_key(2): 600 * MS}


def test_what_is_too_small_for_a_line_is_owed(tree: CgroupTree) -> None:
    """Small amounts wait until they are worth a line, and none is lost."""
    cgroups = opened(tree)
    seen = []
    for _ in range(10):
        tree.spend(in_docker(2), LEAST_NS // 4)
        seen.append(cgroups.window({}).get(docker_key(2), 0))
    assert seen == [0, 0, 0, LEAST_NS] * 2 + [0, 0]
    tree.remove(in_docker(2))
    assert cgroups.window({}) == {docker_key(2): LEAST_NS // 2}


def test_named_processes_are_taken_off_and_the_rest_is_exact_over_time(tree: CgroupTree) -> None:
    """Jiffies are coarser than the cgroup's count: a window may owe, none is negative, the sum is exact."""
    cgroups = opened(tree)
    given = 0
    for named_ms in (10, 0, 10, 0, 10):
        tree.spend(in_pod(0), 7 * MS)
        window = cgroups.window({pod_key(0): named_ms * MS})
        assert all(nanos >= LEAST_NS for nanos in window.values())
        given += window.get(pod_key(0), 0)
    tree.spend(in_pod(0), 20 * MS)
    given += cgroups.window({})[pod_key(0)]
    assert given == (5 * 7 + 20 - 30) * MS


def test_named_process_of_a_container_that_is_gone_is_taken_off_its_pod(tree: CgroupTree) -> None:
    """Its last second is in the pod's figure, so that is where it must be taken off."""
    cgroups = opened(tree)
    tree.spend(in_pod(0), 30 * MS)
    tree.remove(in_pod(0))
    assert cgroups.window({pod_key(0): 20 * MS}) == {POD_KEY: 10 * MS}


def test_named_process_of_a_container_nobody_sees_takes_nothing_off(tree: CgroupTree) -> None:
    """An agent in a cgroup namespace knows processes whose containers it cannot read."""
    cgroups = opened(tree)
    tree.spend(in_pod(0), 30 * MS)
    assert cgroups.window({pod_key(9): 20 * MS}) == {pod_key(0): 30 * MS}
    assert cgroups.window({}) == {}


def test_count_that_falls_is_clamped(tmp_path: Path) -> None:
    """D-08: root may write 0 into a count of v1; what grows from there is counted."""
    tree = CgroupTree(tmp_path / "cgroup", "v1")
    tree.create(in_docker(2))
    tree.spend(in_docker(2), 70 * MS)
    cgroups = opened(tree)
    tree.reset(in_docker(2))
    assert cgroups.window({}) == {}
    tree.spend(in_docker(2), 8 * MS)
    assert cgroups.window({}) == {docker_key(2): 8 * MS}


def test_counters_are_of_every_cgroup(tree: CgroupTree) -> None:
    """Issue 5, deliver 3: each second that of every cgroup; units too, as the kernel counts them."""
    cgroups = opened(tree)
    tree.spend("system.slice/sshd.service", 11 * MS)
    tree.spend(in_docker(2), 7 * MS)
    cgroups.window({})
    counters = cgroups.counters()
    assert counters["/"] == counters["/system.slice"] == 18 * MS
    assert counters["/system.slice/sshd.service"] == 11 * MS
    assert set(counters) == {f"/{path}" for path in tree.used_ns}


def test_the_root_alone_is_read(tmp_path: Path) -> None:
    """No cgroup below it, and none counted: as many as are known before the first look."""
    tree = CgroupTree(tmp_path / "cgroup")
    tree.spend("", 5 * MS)
    assert opened(tree).counters() == {"/": 5 * MS}


def test_more_cgroups_than_are_read_stay_with_those_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound: what is beyond it is its pod's, and when there is room again its past is not counted anew."""
    monkeypatch.setattr(cgroups_module, "MAX_CGROUPS", 5)
    tree = CgroupTree(tmp_path / "cgroup", "v2")
    tree.create(in_pod(0))
    tree.create("late")
    cgroups = opened(tree)
    assert cgroups.tally == {"read": 1 + 5, "failed": 0, "left_out": 0}
    tree.create(in_pod(1))
    tree.spend(in_pod(1), 50 * MS)
    assert cgroups.window({}) == {POD_KEY: 50 * MS}
    assert cgroups.tally == {"read": 1 + 5, "failed": 0, "left_out": 1}
    tree.remove("late")
    assert cgroups.window({}) == {}
    tree.spend(POD, MS)
    tree.create(in_pod(2))
    tree.spend(in_pod(1), 6 * MS)
    assert cgroups.window({}) == {POD_KEY: 7 * MS}
    tree.spend(in_pod(1), 8 * MS)
    tree.spend(in_pod(2), 9 * MS)
    window = cgroups.window({})
    assert sum(window.values()) == 17 * MS
    assert len(window) == 2


def test_room_is_given_back_by_what_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often pods come and go, so many cgroups are read and no more."""
    monkeypatch.setattr(cgroups_module, "MAX_CGROUPS", 6)
    tree = CgroupTree(tmp_path / "cgroup", "v2")
    cgroups = opened(tree)
    for _ in range(3):
        for number in range(5):
            tree.create(in_pod(number))
        cgroups.window({})
        assert len(cgroups.counters()) == 1 + 6
        tree.remove(POD)
        cgroups.window({})
        assert len(cgroups.counters()) == 1 + 2


def test_what_was_owed_is_forgotten_with_an_epoch(tree: CgroupTree) -> None:
    """A new epoch begins with nothing of the old one's."""
    cgroups = opened(tree)
    tree.spend(in_docker(2), LEAST_NS // 2)
    assert cgroups.window({}) == {}
    cgroups.open()
    tree.spend(in_docker(2), LEAST_NS // 2)
    assert cgroups.window({}) == {}


def test_descriptors_are_bounded_and_given_back(tree: CgroupTree) -> None:
    """One is kept for each cgroup that is there, beside v2's number of them, and none after the end."""
    cgroups = opened(tree)
    tree.remove(POD)
    for _ in range(2):
        cgroups.window({})
        assert cgroups.kept == len(tree.used_ns) + (tree.version == "v2")
    cgroups.close()
    assert cgroups.kept == 0


def test_folder_is_listed_only_where_something_changed(tree: CgroupTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a second costs: a stat and a read each, and no listing while nothing comes or goes."""
    cgroups = opened(tree)
    listed: list[str] = []
    real = os.scandir

    def scandir(path: str) -> object:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    tree.spend(in_docker(2), MS)
    assert cgroups.window({}) == {docker_key(2): MS}
    assert listed == []
    tree.create(in_pod(8))
    cgroups.window({})
    assert listed == [f"{tree.base}/{POD}", f"{tree.base}/{in_pod(8)}"]


@pytest.mark.parametrize("counts_itself", [True, False])
def test_folders_of_v2_are_looked_at_only_where_their_number_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, counts_itself: bool
) -> None:
    """A second costs a read each and no stat while as many are there as are known; kernels before 4.14 do not say."""
    tree = CgroupTree(tmp_path / "cgroup", counts_itself=counts_itself)
    tree.create(in_pod(0))
    cgroups = opened(tree)
    looked: list[str] = []
    real = os.stat

    def stat(path: str) -> object:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(os, "stat", stat)
    assert cgroups.window({}) == {}
    assert len(looked) == (0 if counts_itself else len(tree.used_ns))


def test_container_in_the_place_of_another_is_found_in_its_first_window(tree: CgroupTree) -> None:
    """D-10: one went and one came, so their number is the same: what the new one spent is its own at once."""
    cgroups = opened(tree)
    assert cgroups.window({}) == {}
    tree.remove(in_pod(1))
    tree.create(in_pod(8))
    tree.spend(in_pod(8), 5 * MS)
    assert cgroups.window({}) == {pod_key(8): 5 * MS}


def test_path_used_again_is_another_cgroup_without_descriptors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not kept open is whosever path it is by now: there the number of cgroups says too little."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))
    tree = CgroupTree(tmp_path / "cgroup")
    for path in (in_docker(2), "deep/er/est"):
        tree.create(path)
    tree.spend(in_docker(2), 2 * MS)
    cgroups = opened(tree)
    assert cgroups.kept == 2  # the deepest
    tree.remove(in_docker(2))
    tree.create(in_docker(2))
    tree.spend(in_docker(2), 3 * MS)
    assert cgroups.window({}) == {docker_key(2): 3 * MS}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["spend", "spend", "create", "remove", "window"]),
        st.sampled_from([in_pod(0), in_pod(1), POD, in_docker(2), f"{in_docker(2)}/docker/{IDS[3]}"]),
        st.integers(0, 3 * MS).map(lambda nanos: nanos // 1_000 * 1_000),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS, version=st.sampled_from(["v1", "v2"]))
def test_nothing_is_lost_and_nothing_invented(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, int]], version: str
) -> None:
    """Whatever comes and goes: no figure below a line's worth, and in sum what the pod and what is in it spent."""
    tree = CgroupTree(tmp_path_factory.mktemp("tree") / "cgroup", version)
    tree.create(in_pod(0))
    cgroups = opened(tree)
    given: dict[str, int] = {}
    for action, path, nanos in [*actions, ("window", "", 0)]:
        if action == "window":
            for key, value in cgroups.window({}).items():
                assert value > 0
                given[key] = given.get(key, 0) + value
        elif action == "create" and path not in tree.used_ns:
            tree.create(path)
        elif action == "spend" and path in tree.used_ns:
            tree.spend(path, nanos)
        elif action == "remove" and path in tree.used_ns and path != POD:
            tree.remove(path)
    in_pods = sum(value for path, value in tree.spent_ns.items() if path.startswith(POD))
    told = sum(value for key, value in given.items() if key.startswith("pod/"))
    assert in_pods - 3 * LEAST_NS < told <= in_pods
    outside = sum(value for path, value in tree.spent_ns.items() if not path.startswith(POD))
    assert sum(given.values()) - told <= outside


def test_this_machines_own_tree() -> None:
    """The real kernel: our own CPU time is in the root's count, each count below its parent's, and a window works."""
    if find_hierarchy(CGROUP_ROOT) is None:
        pytest.skip(f"no cgroup hierarchy that counts CPU time under {CGROUP_ROOT}")
    cgroups = Cgroups()
    cgroups.open()
    before = cgroups.counters()["/"]
    burnt_ns = time.process_time_ns() + 50 * MS
    while time.process_time_ns() < burnt_ns:
        pass
    assert all(nanos >= LEAST_NS for nanos in cgroups.window({}).values())
    counters = cgroups.counters()
    cgroups.close()
    assert counters["/"] > before
    for path, used_ns in counters.items():
        parent = str(Path(path).parent)
        if parent != "/":  # v2's root is counted by ticks, the others by the scheduler
            assert used_ns <= counters[parent], path


def test_cgroup_that_cannot_be_read_is_told_of(tree: CgroupTree) -> None:
    """D-10: what it spends is its parent's; that it was not read is said, until it is read again."""
    cgroups = opened(tree)
    there = cgroups.tally["read"]
    count = next((tree.base / in_docker(2)).glob("cpu*"))
    was = count.read_bytes()
    count.write_bytes(b"")
    cgroups.window({})
    assert cgroups.tally == {"read": there - 1, "failed": 1, "left_out": 0}
    count.write_bytes(was)
    cgroups.window({})
    assert cgroups.tally == {"read": there, "failed": 0, "left_out": 0}
