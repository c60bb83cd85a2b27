"""Real processes under a real sidecar: who spent the CPU time is given the energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from simulators.threaded_worker import spans_of_threads
from simulators.workers import Given, spans_of_workers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)

SECONDS = 4.0
POINTS = 0.03


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Given]:
    """Three processes at the same time: a part of CPU time, three parts, and none."""
    folder: Path = tmp_path_factory.mktemp("accuracy")
    return spans_of_workers(folder, {"one": 0.2, "three": 0.6, "none": 0.0}, SECONDS)


def test_energy_is_given_in_the_ratio_of_cpu_time(given: dict[str, Given]) -> None:
    """Issue 5: two processes at 1:3; each gets its part of their energy within 3 points of its part of the CPU time."""
    one, three = given["one"], given["three"]
    spent, energy = one.cpu_ns + three.cpu_ns, one.energy_uj + three.energy_uj

    assert one.scope == three.scope == "process"
    assert one.cpu_ns / spent == pytest.approx(0.25, abs=0.01), "the workers steer by the CPU time they had"
    assert energy > 0
    assert one.energy_uj / energy == pytest.approx(one.cpu_ns / spent, abs=POINTS)


def test_who_sleeps_is_given_no_dynamic_energy(given: dict[str, Given]) -> None:
    """Design section 4: under `bucket` a span that sleeps gets nothing, or what a jiffy of CPU time is due."""
    none, three = given["none"], given["three"]

    assert none.scope == "process"
    assert none.counted_ns <= 10_000_000
    assert none.energy_uj * three.counted_ns <= 3 * none.counted_ns * three.energy_uj


def test_threads_of_one_process_are_told_apart_by_their_own_cpu_time(tmp_path: Path) -> None:
    """Issue 5: threads at 1:3 with the SDK's processor, and one that sleeps; a process's energy follows its threads."""
    given = spans_of_threads(tmp_path, {"one": 0.15, "three": 0.45, "none": 0.0}, SECONDS)
    one, three, none = given["one"], given["three"], given["none"]
    spent, energy = one.cpu_ns + three.cpu_ns, one.energy_uj + three.energy_uj

    assert {each.scope for each in given.values()} == {"span"}
    assert energy > 0
    assert one.energy_uj / energy == pytest.approx(one.cpu_ns / spent, abs=POINTS)
    assert none.energy_uj / energy <= none.cpu_ns / spent + 0.001
