"""The command line as a user meets it: real processes, their exit codes, and what they say when something is wrong."""

from __future__ import annotations

import re
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from joulegram import __version__
from joulegram import native as native_sdk
from joulegram_pipeline.files import DirectoryLock
from joulegram_processor import native
from joulegram_sink.ledger import Ledger
from joulegram_sink.ledger_format import run_line
from simulators.sample_runs import run_record, span_record
from simulators.sidecar import JOULEGRAM, Serve, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEGMENT = "ledger-000000.ndjson"


def joulegram(
    cwd: Path, *arguments: str, env: dict[str, str] | None = None, code: int | None = None
) -> subprocess.CompletedProcess[str]:
    """`joulegram <arguments>` to its end, and never a traceback."""
    done = subprocess.run(
        [*JOULEGRAM, *arguments],
        cwd=cwd,
        env=clean_environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert code in (None, done.returncode), done.stderr
    return done


@pytest.mark.parametrize("flag", ["--grpc-endpoint", "--metrics-endpoint"])
def test_a_port_in_use_ends_the_start(tmp_path: Path, flag: str) -> None:
    """Exit 1, quoting the endpoint; what had started is undone, so the data directory is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        with Serve(tmp_path, f"{flag}={endpoint}") as served:
            assert served.wait_end() == 1
    (line,) = [line for line in served.said.splitlines() if line.startswith("joulegram: ")]
    assert endpoint in line
    assert "in use" in line
    assert "Traceback" not in served.said
    with DirectoryLock(served.data):
        pass


@pytest.mark.parametrize("where", ["file/data", "/proc/joulegram-data"])
@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_data_directory_that_cannot_be_written_is_quoted(tmp_path: Path, where: str, command: str) -> None:
    """Exit 1 of serve and 125 of run, whose command is not executed; the path is quoted with the reason."""
    (tmp_path / "file").write_text("x")
    ran = tmp_path / "ran"
    rest = ("--", "touch", str(ran)) if command == "run" else ("--grpc-endpoint=127.0.0.1:0",)
    done = joulegram(tmp_path, command, f"--data-dir={where}", *rest, code=125 if command == "run" else 1)
    assert re.search(rf"^joulegram: cannot make directory '{where}': \w+", done.stderr, re.MULTILINE)
    assert not ran.exists()


def test_a_data_directory_in_use_names_its_holder(tmp_path: Path) -> None:
    """Exit 1 with the other's pid and what to do."""
    with Serve(tmp_path) as first:
        first.wait_ready()
        assert first.process is not None
        with Serve(tmp_path, name="second") as second:
            assert second.wait_end() == 1
    assert f"in use by another joulegram (pid {first.process.pid}); stop it or give this one another --data-dir" in (
        second.said
    )


def test_validate_prints_every_fault_at_once(tmp_path: Path) -> None:
    """Keys, units, variables and the region, in one run; exit 2; nothing is started or written."""
    (tmp_path / "joulegram.yaml").write_text(
        "enery: {}\n"
        "energy: {max_wait: 30, idle: split}\n"
        "telemetry: {metrics: {endpoint: localhost}}\n"
        "stac: {roots: ['${env:ITEMS}']}\n"
        "carbon: {region: MISO}\n"
    )
    done = joulegram(tmp_path, "validate", "--config=joulegram.yaml", "--upstream=tcp://c:1", code=2)
    lines = done.stderr.splitlines()
    assert all(line.startswith("joulegram: ") for line in lines)
    keys = {line.split(": ")[1] for line in lines}
    assert keys == {
        "enery",
        "energy.max_wait",
        "energy.idle",
        "telemetry.metrics.endpoint",
        "stac.roots[0]",
        "carbon.region",
        "--upstream (upstream.endpoint)",
    }
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joulegram.yaml"]


def test_validate_says_what_would_be_used(tmp_path: Path) -> None:
    """Exit 0 with the factor's source and how the region was reached."""
    done = joulegram(tmp_path, "validate", "--region=SPP_KS", code=0)
    assert "configuration: ok\n" in done.stdout
    assert re.search(r"^factor: .*epa-egrid-subregion@", done.stdout, re.MULTILINE)
    assert "region: SPP_KS → egrid:SPNO" in done.stdout
    assert "region: none" in joulegram(tmp_path, "validate", code=0).stdout


def test_validate_takes_the_factor_of_the_job_side(tmp_path: Path) -> None:
    """KFM_EMISSION_FACTOR_*: taken if right, quoted if in g/kWh (S0-55, D-19)."""
    env = {"KFM_EMISSION_FACTOR_KG_PER_KWH": "0.4", "KFM_EMISSION_FACTOR_SOURCE": "bill"}
    assert "factor: bill" in joulegram(tmp_path, "validate", env=env, code=0).stdout
    env["KFM_EMISSION_FACTOR_KG_PER_KWH"] = "400"
    done = joulegram(tmp_path, "validate", env=env, code=2)
    assert "KFM_EMISSION_FACTOR_KG_PER_KWH (carbon.factor.kg_per_kwh): got '400'" in done.stderr


@pytest.mark.parametrize("command", ["serve", "run", "validate"])
def test_a_region_that_cannot_be_used_stops_every_command(tmp_path: Path, command: str) -> None:
    """At start, not at the first span; `run` does not execute its command."""
    rest = ("--", "touch", "ran") if command == "run" else ()
    done = joulegram(tmp_path, command, "--region=spp_ks", *rest, code=125 if command == "run" else 2)
    assert "joulegram: --region (carbon.region): got 'spp_ks'" in done.stderr
    assert "did you mean 'SPP_KS'?" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "arguments", [("run", "--regoin=SPP_KS", "--", "touch", "ran"), ("run",), ("run", "--"), ("serve", "--port=1"), ()]
)
def test_a_command_line_that_is_wrong_is_a_usage_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Exit 2 with what is wrong; a flag that does not exist is not taken for the command to run."""
    joulegram(tmp_path, *arguments, code=2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("arguments", [("--", "python3", "-c", "print(1)", "--region"), ("sh", "-c", "echo 1")])
def test_flags_behind_the_command_are_the_commands(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """With `--` or without: what follows the program belongs to it."""
    assert joulegram(tmp_path, "run", "--source=none", *arguments, code=0).stdout == "1\n"


def test_a_run_id_that_is_no_path_is_refused_before_the_command_runs(tmp_path: Path) -> None:
    """KFM_RUN_ID becomes a directory (D-41): exit 125, quoted, nothing executed and nothing written."""
    done = joulegram(tmp_path, "run", "--", "touch", "ran", env={"KFM_RUN_ID": "../../outside"}, code=125)
    assert "run_id: got '../../outside', expected 8 to 128 of" in done.stderr
    assert [*tmp_path.iterdir()] == []


def test_an_agent_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A source that is none is exit 2, a socket that cannot be made exit 1; both are quoted."""
    done = joulegram(tmp_path, "agent", "--source=rapl", f"--socket={tmp_path}/a.sock", code=2)
    assert "got 'rapl', expected one of auto, powercap, msr, perf, hwmon, nvml, model, none" in done.stderr
    done = joulegram(tmp_path, "agent", "--socket=/proc/joulegram/a.sock", code=1)
    assert "'/proc/joulegram/a.sock'" in done.stderr


def test_version_is_the_packages(tmp_path: Path) -> None:
    """One line of its own, and two that say whether the compiled parts are in use."""
    shown = joulegram(tmp_path, "version", code=0).stdout.splitlines()
    assert shown == [
        f"joulegram {__version__}",
        f"native: {native.state()}",
        f"native in the SDK: {native_sdk.state()}",
    ]


# -- ledger verify -------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of a genesis, four spans and a run."""
    directory = tmp_path / "telemetry"
    with Ledger(directory) as found:
        found.append([*(span_record(number) for number in range(4)), run_line(run_record())])
    return directory


def test_a_whole_ledger_verifies(tmp_path: Path, ledger: Path) -> None:
    """Exit 0 with counts and head, and what is and is not covered."""
    done = joulegram(tmp_path, "ledger", "verify", str(ledger), code=0)
    assert re.search(r"^6 lines: 4 spans, 1 runs; head sha256:[0-9a-f]{64}$", done.stdout, re.MULTILINE)
    assert "covered: edited" in done.stdout
    assert "not covered: whole lines removed at the end" in done.stdout


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited": (lambda lines: [*lines[:2], lines[2].replace(b'"ok"', b'"no"'), *lines[3:]], ":4: got prev_hash"),
    "removed": (lambda lines: [*lines[:2], *lines[3:]], ":3: got seq 3, expected 2: 1 lines removed or moved"),
    "the first removed": (lambda lines: lines[1:], ":1: got a line of kind 'span' and seq 1, expected the genesis"),
    "swapped": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], ":2: got seq 2, expected 1"),
    "repeated": (lambda lines: [*lines[:3], lines[2], *lines[3:]], ":4: got seq 2, expected 3: a line repeated"),
    "torn": (lambda lines: [*lines[:-1], lines[-1][:-9]], ":6: got a torn line"),
    "a blank put in": (lambda lines: [*lines[:2], b" " + lines[2], *lines[3:]], ":3: got b' {"),
    "a line of no JSON": (lambda lines: [*lines[:2], b"hello\n", *lines[3:]], ":3: got b'hello', expected JSON"),
    "emptied": (lambda lines: [], ":1: got an empty file"),
}


@pytest.mark.parametrize(("tamper", "expected"), TAMPERED.values(), ids=TAMPERED)
def test_a_ledger_that_was_changed_shows(
    tmp_path: Path, ledger: Path, tamper: Callable[[list[bytes]], list[bytes]], expected: str
) -> None:
    """Exit 1, naming file and line and what was expected there (S3-12)."""
    path = ledger / SEGMENT
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    done = joulegram(tmp_path, "ledger", "verify", str(ledger), code=1)
    assert f"problem: {SEGMENT}{expected}" in done.stdout


def test_a_ledger_cut_at_a_line_shows_only_against_a_kept_head(tmp_path: Path, ledger: Path) -> None:
    """Without the head it verifies and says that this is not covered; with it, exit 1."""
    head = re.search(r"sha256:[0-9a-f]{64}", joulegram(tmp_path, "ledger", "verify", str(ledger)).stdout)
    assert head is not None
    kept = ("--expect-head", head[0], "--expect-lines", "6")
    joulegram(tmp_path, "ledger", "verify", str(ledger), *kept, code=0)
    path = ledger / SEGMENT
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "not covered: whole lines removed at the end" in (
        joulegram(tmp_path, "ledger", "verify", str(ledger), code=0).stdout
    )
    done = joulegram(tmp_path, "ledger", "verify", str(ledger), *kept, code=1)
    assert "got 5 lines, expected at least 6: lines removed at the end" in done.stdout


def test_a_ledger_that_is_not_there_is_no_verdict(tmp_path: Path) -> None:
    """A directory that is missing is exit 2 and quoted; one without the file is exit 1: it was removed."""
    done = joulegram(tmp_path, "ledger", "verify", "nowhere", code=2)
    assert "got 'nowhere', expected a directory that holds a ledger" in done.stderr
    done = joulegram(tmp_path, "ledger", "verify", ".", code=1)
    assert "got no file" in done.stdout
