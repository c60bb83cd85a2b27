"""EnergyRecorder on a real agent over a real socket, on powercap itself, and with neither (S0-22 … S0-38, S3-08)."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from joulegram import EnergyRecorder, TelemetryConfig, TelemetryRecorder, TelemetryResult
from joulegram.process_io import DiskBytes, bytes_between, disk_bytes
from joulegram_pipeline.errors import ConfigError, IdentifierError
from simulators.powercap import PowercapTree
from simulators.sidecar import Agent, PowerTrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN_ID = "etl-20260102T030405Z"
CONFIG = TelemetryConfig(RUN_ID, "nightly", 0.4, "EXAMPLE ONLY", "rack-7", "node")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from outside names a run, a factor or an agent."""
    for name in [*os.environ]:
        if name.startswith(("KFM_", "JOULEGRAM_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowercapTree]:
    """A node that spends energy all the time."""
    made = PowercapTree(tmp_path_factory.mktemp("node") / "sys")
    with PowerTrace(made, seed=5):
        yield made


@pytest.fixture(scope="module")
def agent(tree: PowercapTree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """A real agent on that node."""
    with Agent(tmp_path_factory.mktemp("agent"), tree) as made:
        yield made.wait_ready()


def work(seconds: float = 0.3) -> None:
    """Spend CPU time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_the_hosts_energy_from_an_agent(agent: Agent, tree: PowercapTree) -> None:
    """What the tree spent in the window, to what a tick's uniform power allows; method, scope and factor said."""
    before = sum(tree.truth_uj.values())
    with EnergyRecorder(CONFIG, socket=agent.socket) as recorder:
        work(2.2)
        spent_j = (sum(tree.truth_uj.values()) - before) / 1e6
    found = recorder.result

    assert found.energy_joules is not None
    # At the ends the trace's steps are not uniform within their ticks.
    assert abs(found.energy_joules - spent_j) < 0.25 * spent_j
    assert found.energy_covered_seconds == pytest.approx(found.duration_seconds, abs=0.01)
    assert found.energy_kwh == found.energy_joules / 3_600_000  # S0-52
    assert found.co2_kg == found.energy_kwh * 0.4  # S0-53
    assert (found.energy_method, found.energy_scope, found.energy_reason) == ("measured", "host", None)
    assert (found.emission_factor_kg_per_kwh, found.emission_factor_source) == (0.4, "EXAMPLE ONLY")
    assert (found.run_id, found.status) == (RUN_ID, "ok")
    assert found.allocation_ratio is not None
    assert 0 < found.allocation_ratio < 1  # S3-09
    assert found.attribution_mode == "governor_cpu_time"


def test_the_processs_part_is_less_than_the_hosts(agent: Agent) -> None:
    """With scope `process` a sleeping job has next to nothing of what a busy one has (C-52)."""
    found: dict[str, TelemetryResult] = {}

    def record(name: str, seconds: float) -> None:
        with EnergyRecorder(CONFIG, socket=agent.socket, scope="process") as recorder:
            (work if name == "busy" else time.sleep)(seconds)
        found[name] = recorder.result

    record("asleep", 1.5)
    record("busy", 1.5)
    assert found["busy"].energy_scope == "process"
    assert found["busy"].energy_joules is not None
    assert found["asleep"].energy_joules is not None
    # Ticks reach over the ends, so the sleeper may have a part of a neighbour's second.
    assert found["asleep"].energy_joules < 0.5 * found["busy"].energy_joules


def test_powercap_itself_where_there_is_no_agent(tree: PowercapTree, tmp_path: Path) -> None:
    """Without a socket the job reads the counters it may read, by ticks as an agent does."""
    with EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tree.root) as recorder:
        work(0.2)
    assert recorder.result.energy_method == "measured"
    assert (recorder.result.energy_joules or 0) > 0
    assert recorder.result.energy_reason is None
    assert recorder.result.attribution_mode == "monitor_only"  # S3-08


def test_with_neither_energy_is_missing_with_a_reason(tmp_path: Path) -> None:
    """Never an exception and never 0: None, `unavailable`, and both reasons (S3-08, S0-32, S0-67)."""
    began = time.monotonic()
    with EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tmp_path) as recorder:
        pass
    found = recorder.result
    assert (found.energy_joules, found.energy_kwh, found.co2_kg) == (None, None, None)
    assert found.energy_method == "unavailable"
    assert found.attribution_mode == "monitor_only"
    assert found.energy_reason is not None
    assert found.energy_reason.startswith("no_powercap")
    assert "none.sock" in found.energy_reason
    assert found.reasons["co2_kg"] == "no energy"
    assert found.emission_factor_kg_per_kwh == 0.4  # S0-57: recorded always
    assert time.monotonic() - began < 1, "nothing that cannot come is waited for"


def test_modelled_energy_says_so(tmp_path: Path) -> None:
    """Asked for, a model stands in, and the method is its (S0-59, D-12)."""
    socket = tmp_path / "none.sock"
    with EnergyRecorder(CONFIG, socket=socket, sysfs_root=tmp_path, model=True) as recorder:
        work(0.2)
    assert recorder.result.energy_method == "modelled"
    assert (recorder.result.energy_joules or 0) > 0


def test_an_agent_that_dies_in_the_middle(tree: PowercapTree, tmp_path: Path) -> None:
    """What was measured until then is kept, and how much of the work it covers is said; the job goes on."""
    with Agent(tmp_path, tree) as mortal:
        mortal.wait_ready()
        with EnergyRecorder(CONFIG, socket=mortal.socket) as recorder:
            assert recorder._meter is not None
            assert recorder._meter.wait(time.time_ns(), 3)
            mortal.kill()
            time.sleep(0.3)
    found = recorder.result
    assert found.energy_joules is not None
    assert 0 < found.energy_covered_seconds < found.duration_seconds
    assert found.energy_reason is not None
    assert "agent_lost" in found.energy_reason
    assert re.search(r"[\d.]+ s of [\d.]+ s not covered", found.energy_reason)


def test_an_agent_that_comes_back_is_a_new_epoch(tree: PowercapTree, tmp_path: Path) -> None:
    """Its counts start again; the time between is not covered and nothing is subtracted across it."""
    with Agent(tmp_path, tree) as first:
        first.wait_ready()
        recorder = EnergyRecorder(CONFIG, socket=first.socket).__enter__()
        assert recorder._meter is not None
        assert recorder._meter.wait(time.time_ns(), 3)
        first.kill()
    with Agent(tmp_path, tree) as second:
        second.wait_ready()
        recorder._meter.poll()
        time.sleep(0.2)
        recorder.__exit__(None, None, None)
    found = recorder.result
    assert found.energy_joules is not None
    assert 0 < found.energy_covered_seconds < found.duration_seconds
    assert found.energy_joules < 2 * 60 * found.duration_seconds, "not more than the trace can spend"


def test_an_exception_is_the_jobs_and_is_recorded(tmp_path: Path) -> None:
    """It goes through as it is, and the result says `error` (D-23)."""
    recorder = EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tmp_path)
    with pytest.raises(KeyError, match="mine"), recorder:
        raise KeyError("mine")
    assert recorder.result.status == "error"


def test_finalize_before_it_was_entered(tmp_path: Path) -> None:
    """The seed's RuntimeError, in the seed's words (S0-29)."""
    with pytest.raises(RuntimeError, match="must be used as a context manager"):
        TelemetryRecorder(CONFIG).finalize()


def test_finalize_is_idempotent_and_a_recorder_is_used_once(tmp_path: Path) -> None:
    """The same object each time (D-28); entering again is refused."""
    recorder = EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tmp_path)
    with recorder:
        inside = recorder.finalize()
    assert recorder.finalize() is inside is recorder.result
    with pytest.raises(RuntimeError, match="expected a new one"), recorder:
        pass


def test_the_result_has_the_seeds_fields() -> None:
    """The thirteen of S0-28 by name, and those that say how the energy is known."""
    names = [field.name for field in fields(TelemetryResult)]
    assert names[:13] == [
        *("run_id", "started_at", "ended_at", "duration_seconds", "energy_joules", "energy_kwh", "co2_kg"),
        *("bytes_sent", "bytes_received", "disk_bytes_read", "disk_bytes_write"),
        *("emission_factor_kg_per_kwh", "emission_factor_source"),
    ]
    assert {"energy_method", "energy_scope", "energy_reason", "attribution_mode"} < set(names)
    assert [field.name for field in fields(TelemetryConfig)] == [
        *("run_id", "job_type", "emission_factor_kg_per_kwh", "emission_factor_source"),
        *("host_hw_id", "host_hw_name", "process_pid"),
    ]


def test_a_result_is_plain_data(tmp_path: Path) -> None:
    """`to_dict` is JSON; UTC to the second with Z (S0-18); a line for people."""
    with EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tmp_path) as recorder:
        pass
    raw = json.loads(json.dumps(recorder.result.to_dict()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", raw["started_at"])
    assert raw["bytes_sent"] is None
    assert "by process" in raw["reasons"]["bytes_sent"]
    assert str(recorder.result).startswith("energy not known (unavailable, host) in ")


# -- decorator, async, forks, garbage ----------------------------------------------------------------------------------


def test_as_a_decorator_each_call_is_recorded(tmp_path: Path) -> None:
    """The function's result and name are its own; the last call's figures hang on it."""

    @EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tmp_path)
    def double(number: int) -> int:
        return 2 * number

    assert (double(21), double.__name__) == (42, "double")
    first = double.last_result  # type: ignore[attr-defined]
    assert double(1) == 2
    assert double.last_result is not first  # type: ignore[attr-defined]


def test_async_does_not_hold_the_loop(agent: Agent) -> None:
    """While the end waits for its tick other tasks run; async functions can be decorated too."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    @EnergyRecorder(CONFIG, socket=agent.socket)
    async def answer() -> int:
        return 42

    async def main() -> Any:
        task = asyncio.create_task(others())
        found = await answer()
        task.cancel()
        return found

    assert asyncio.run(main()) == 42
    assert turns > 2
    assert answer.last_result.energy_method == "measured"  # type: ignore[attr-defined]


def test_a_forked_child_that_leaves_the_block_measures_nothing(agent: Agent) -> None:
    """It has neither the connection nor the thread; its parent's figures are the parent's."""
    read, write = os.pipe()
    with EnergyRecorder(CONFIG, socket=agent.socket) as recorder:
        pid = os.fork()
        if pid == 0:
            os.write(write, str(recorder.finalize().energy_reason).encode())
            os._exit(0)
        os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert "forked" in pipe.read()
    assert recorder.result.energy_method == "measured"


def test_a_forgotten_recorder_leaves_nothing_behind(tree: PowercapTree, tmp_path: Path) -> None:
    """Its threads end and its counters are closed when it is garbage, although its block was never left."""
    before = set(threading.enumerate())  # a thread of a test before may still be ending
    recorder = EnergyRecorder(CONFIG, socket=tmp_path / "none.sock", sysfs_root=tree.root).__enter__()
    its = set(threading.enumerate()) - before
    assert {thread.name for thread in its} == {"joulegram counters", "joulegram meter"}
    del recorder
    gc.collect()
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in its):
        assert time.monotonic() < deadline, "its threads are still there"
        time.sleep(0.01)


# -- configuration and bytes -------------------------------------------------------------------------------------------


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """KFM_RUN_ID, KFM_HW_ID, KFM_HW_NAME and the factor with its source (S0-49, S0-55); a factor of 0 is one (D-16)."""
    monkeypatch.setenv("KFM_RUN_ID", RUN_ID)
    monkeypatch.setenv("KFM_HW_ID", "rack-7")
    monkeypatch.setenv("KFM_EMISSION_FACTOR_KG_PER_KWH", "0.0")
    monkeypatch.setenv("KFM_EMISSION_FACTOR_SOURCE", "own hydro")
    found = EnergyRecorder().config
    assert (found.run_id, found.host_hw_id, found.host_hw_name) == (RUN_ID, "rack-7", "kfm-node")
    assert (found.emission_factor_kg_per_kwh, found.emission_factor_source) == (0.0, "own hydro")


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ({"emission_factor_kg_per_kwh": 394.0, "emission_factor_source": "x"}, "got 394.0"),
        ({"emission_factor_kg_per_kwh": -1.0, "emission_factor_source": "x"}, "got -1.0"),
        ({"emission_factor_kg_per_kwh": float("nan"), "emission_factor_source": "x"}, "got nan"),
        ({"emission_factor_kg_per_kwh": 0.4}, "emission_factor_source: got None"),
        ({"emission_factor_kg_per_kwh": 0.4, "emission_factor_source": " "}, "emission_factor_source: got ' '"),
        ({"job_type": ""}, "job_type: got ''"),
    ],
)
def test_a_factor_that_cannot_be_one_is_refused(given: dict[str, Any], quoted: str) -> None:
    """g/kWh for kg/kWh (C-07), no number, no source (D-18): quoted."""
    with pytest.raises(ConfigError, match=re.escape(quoted)):
        TelemetryConfig(**given)


def test_a_variable_that_is_no_number_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own key, and what stood there."""
    monkeypatch.setenv("KFM_EMISSION_FACTOR_KG_PER_KWH", "about 0.4")
    with pytest.raises(ConfigError, match=r"KFM_EMISSION_FACTOR_KG_PER_KWH: got 'about 0\.4'"):
        EnergyRecorder()
    with pytest.raises(IdentifierError, match="got 'a/b'"):
        TelemetryConfig("a/b")


def test_disk_bytes_are_this_processs(tmp_path: Path) -> None:
    """Read from /proc/self/io, as integers (C-13, D-31, D-34); what cannot be read is None with a reason (D-32)."""
    found = disk_bytes()
    if found.reason is None:
        assert type(found.read) is int
        assert type(found.written) is int
    assert disk_bytes(tmp_path).read is None
    assert str(disk_bytes(tmp_path).reason).startswith("read_failed")


def test_a_byte_counter_that_fell() -> None:
    """None with a reason, and the seed's ValueError only where it is asked for (S0-31, C-11, D-33); never 0 (S0-65)."""
    before, after = DiskBytes(read=10, written=10), DiskBytes(read=15, written=4)
    read, written, reason = bytes_between(before, after)
    assert (read, written) == (5, None)
    assert str(reason).startswith("counter_reset: Negative byte delta detected: write")
    with pytest.raises(ValueError, match="Negative byte delta detected: write"):
        bytes_between(before, after, strict=True)
