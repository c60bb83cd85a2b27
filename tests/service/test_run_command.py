"""`joulegram run`: it is to its command what `time` is, and leaves records that other tools read."""

from __future__ import annotations

import getpass
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rdflib import RDF, Graph, Namespace, URIRef
from rdflib.namespace import PROV

from joulegram_schemas import validate
from simulators.decoded import attributes, resource_metrics, spans
from simulators.otlp_server import OtlpServer
from simulators.powercap import PowercapTree
from simulators.sidecar import (
    PowerTrace,
    Serve,
    clean_environment,
    ledger_lines,
    run_command,
    run_line,
    run_lines,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.timeout(180),
    # rdflib's own JSON-LD parser makes the graph it has deprecated.
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
]

KFM = Namespace("urn:kfm:")
JOB = Path(__file__).parents[2] / "examples" / "nightly_etl.py"
RUN_ID = "etl-20260102T030405Z"
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
MEMBERS = {"telemetry-json", "telemetry-prov"}


# -- as `time` is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM), ("kill -KILL $$", 128 + signal.SIGKILL)],
)
def test_the_status_of_the_command_is_passed_through(tmp_path: Path, script: str, status: int) -> None:
    """Its exit status, or 128+n where signal n ended it; the run is recorded as ok or error all the same (D-23)."""
    done = run_command(tmp_path, "--source=none", "--", "sh", "-c", script)

    assert done.returncode == status, done.stderr
    (run,) = ledger_lines(tmp_path / "data", "run")
    assert (run["status"], run["ended_by"]) == ("ok" if status == 0 else "error", "root_span")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """A command that traps SIGTERM or SIGINT does what it does then, and its own status is the answer."""
    script = "trap 'exit 7' TERM INT; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        run_line(tmp_path, "--source=none", "--", "sh", "-c", script),
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
            assert process.returncode == 7, said.decode()
        finally:
            process.kill()
    assert [line["status"] for line in ledger_lines(tmp_path / "data", "run")] == ["error"]


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """127 and a message that quotes it."""
    done = run_command(tmp_path, "--source=none", "--", "nosuchcommand", "--flag")

    assert done.returncode == NOT_FOUND
    assert "got command 'nosuchcommand': No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    """126 and a message that quotes it."""
    file = tmp_path / "plain.txt"
    file.write_text("no program\n")
    done = run_command(tmp_path, "--source=none", "--", str(file))

    assert done.returncode == NOT_EXECUTABLE
    assert f"got command {str(file)!r}: Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


OWN_FAILURES: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "region": (("--region=NOWHERE",), {}, ("carbon.region", "got 'NOWHERE'")),
    "run id": ((), {"KFM_RUN_ID": "../../x"}, ("run_id: got '../../x'",)),
    "upstream": (("--upstream=ftp://x:1",), {}, ("upstream.endpoint", "got 'ftp://x:1'", "grpc://host:port")),
    "factor without source": (("--emission-factor=0.4",), {}, ("carbon.factor.source",)),
    "data directory": (("--data-dir=/proc/nowhere/data",), {}, ("/proc/nowhere",)),
}


@pytest.mark.parametrize("name", OWN_FAILURES)
def test_a_failure_of_joulegram_is_125_and_nothing_was_executed(tmp_path: Path, name: str) -> None:
    """What cannot be used is quoted (D-41 for the run id), and the command was never begun."""
    flags, environment, quoted = OWN_FAILURES[name]
    mark = tmp_path / "begun"
    done = run_command(tmp_path, "--source=none", *flags, "--", "touch", str(mark), environment=environment)

    assert done.returncode == FAILED, done.stderr
    assert all(text in done.stderr for text in quoted), done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("given", [None, RUN_ID])
def test_what_the_command_finds_in_its_environment(tmp_path: Path, given: str | None) -> None:
    """The endpoint and protocol of the sidecar, a run id (S1-16: kept when set), and nothing that overrides them."""
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://elsewhere:1",
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json",
        "OTEL_EXPORTER_OTLP_LOGS_INSECURE": "false",
        "OTEL_SERVICE_NAME": "mine",
        "KEPT": "as it is \udcff",
        **({} if given is None else {"KFM_RUN_ID": given}),
    }
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    done = run_command(tmp_path, "--source=none", "--", sys.executable, "-c", script, environment=environment)
    found = json.loads(done.stdout)
    (run,) = ledger_lines(tmp_path / "data", "run")

    assert done.returncode == 0
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("http://127.0.0.1:")
    assert found["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"
    assert [key for key in found if key.startswith("OTEL_EXPORTER_OTLP_") and key.count("_") > 4] == []
    assert (found["OTEL_SERVICE_NAME"], found["KEPT"]) == ("mine", environment["KEPT"])
    assert found["KFM_RUN_ID"] == run["run_id"] == (given or run["run_id"])
    assert len(run["run_id"]) >= 8


BUSY = """
import sys, time
print("out", len(sys.argv[1]))
print("err", file=sys.stderr)
until = time.monotonic() + 0.5
while time.monotonic() < until:
    sum(range(1000))
"""


def test_a_command_without_opentelemetry_gets_one_root_span(tmp_path: Path) -> None:
    """S0-37: one `etl.job` over all of its time (D-24), forwarded too; its arguments, which may be secret, nowhere."""
    with OtlpServer() as upstream:
        done = run_command(
            tmp_path,
            "--source=model",
            "--region=SPP_KS",
            f"--upstream=grpc://127.0.0.1:{upstream.port}",
            *("--", sys.executable, "-c", BUSY, "s3cr3t-token"),
            environment={"KFM_RUN_ID": RUN_ID},
        )
        (span,) = spans(upstream)
    (line,) = ledger_lines(tmp_path / "data", "span")
    found = attributes(span)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "out 12\n", "its stdout is its own"
    assert "err\n" in done.stderr
    assert (span.name, span.parent_span_id) == ("etl.job", b"")
    assert (found["job.id"], found["job.type"], found["process.exit.code"]) == (RUN_ID, "command", 0)
    assert found["timing.duration_s"] >= 0.5
    assert line["span_id"] == span.span_id.hex()
    assert (line["energy"]["method"], line["energy"]["scope"]) == ("modelled", "process")
    assert line["energy"]["total_uj"] > 0
    for file in (tmp_path / "data").rglob("*"):
        assert not file.is_file() or b"s3cr3t" not in file.read_bytes(), file


def test_the_summary_for_programs(tmp_path: Path) -> None:
    """`--json` leaves nothing but JSON on stdout; it says what the ledger says, and names files that are there."""
    done = run_command(tmp_path, "--json", "--source=model", "--region=SPP_KS", "--", "sh", "-c", "echo out")
    summary = json.loads(done.stdout)
    (line,) = ledger_lines(tmp_path / "data", "span")

    assert "out\n" in done.stderr
    assert (summary["run_id"], summary["problems"]) == (line["run_id"], [])
    assert [row["span_id"] for row in summary["spans"]] == [line["span_id"]]
    assert summary["spans"][0]["total_j"] == line["energy"]["total_uj"] / 1e6
    assert summary["totals"]["status"] == "ok"
    assert set(summary["written"]) == {"ledger", "telemetry_json", "telemetry_prov"}
    assert all((tmp_path / path).exists() for path in summary["written"].values())


def test_two_runs_at_once(tmp_path: Path) -> None:
    """On data directories of their own neither knows of the other; on the same one the second is refused."""
    folders = [tmp_path / name for name in "ab"]
    running = []
    for folder in folders:
        folder.mkdir()
        command = run_line(folder, "--source=model", "--", "sh", "-c", "echo ready; read line")
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        refused = run_command(folders[0], "--source=none", "--", "true")
        for process in running:
            _, said = process.communicate(b"\n", timeout=30)
            assert process.returncode == 0, said.decode()
    finally:
        for process in running:
            process.kill()
            process.communicate()

    assert refused.returncode == FAILED
    assert f"{str(folders[0] / 'data')!r} is in use" in refused.stderr
    ids = [line["run_id"] for folder in folders for line in ledger_lines(folder / "data", "span")]
    assert len(set(ids)) == len(ids) == 2


# -- a real job and its catalogue ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[PowercapTree]:
    """A node that spends energy all the time."""
    made = PowercapTree(tmp_path / "sys")
    with PowerTrace(made, seed=11):
        yield made


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_the_nightly_job_under_run(tmp_path: Path, tree: PowercapTree, version: str) -> None:
    """S0-03: every span joined, forwarded to where the job would have sent, and the Item says what the run spent."""
    with OtlpServer() as upstream:
        done = run_command(
            tmp_path,
            *("--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS", "--json", "--"),
            *(sys.executable, str(JOB), "--resamples=400", f"--stac-version={version}"),
            environment={"KFM_RUN_ID": RUN_ID, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{upstream.port}"},
        )
        assert done.returncode == 0, done.stderr
        assert f"run {RUN_ID}: published " in done.stderr
        names = {span.name for span in spans(upstream)}
        assert all(attributes(span)["energy.method"] == "measured" for span in spans(upstream))
        assert resource_metrics(upstream), "metrics go there too (S1-13)"
    lines = ledger_lines(tmp_path / "data", "span")

    assert len(lines) == len(names) == 6
    assert {line["name"] for line in lines} == names >= {"etl.job", "etl.node.extract", "etl.node.aggregate"}
    assert {line["run_id"] for line in lines} == {RUN_ID}
    assert {row["name"] for row in json.loads(done.stdout)["spans"]} == names
    check_documents(tmp_path, version)


def test_a_laptop_user_of_serve_gets_the_same(tmp_path: Path, tree: PowercapTree) -> None:
    """The same job pointed at a plain `joulegram serve` ends in the same documents and a patched Item."""
    with Serve(tmp_path, "--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS") as serve:
        environment = clean_environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{serve.wait_ready().target}", KFM_RUN_ID=RUN_ID
        )
        job = [sys.executable, str(JOB), "--resamples=400", "--stac-version=1.1.0"]
        subprocess.run(job, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)
        wait_until(lambda: bool(run_lines(serve.data, RUN_ID)), "the run", log=serve.log)
        assert serve.stop() == 0

    check_documents(tmp_path, "1.1.0")


def check_documents(folder: Path, version: str) -> None:
    """Item, roll-up and provenance of the nightly job agree with the ledger and are read by others' tools."""
    item_path = folder / "nightly-out" / "grid-intensity.item.json"
    assets = folder / "data" / "runs" / RUN_ID / "assets"
    rollup = json.loads((assets / f"{RUN_ID}-telemetry.json").read_text())
    (run,) = run_lines(folder / "data", RUN_ID)

    validate("telemetry-rollup-v1", rollup)
    assert rollup["energy_joules"] == run["energy"]["total_uj"] / 1e6 > 0
    assert rollup["co2_kg"] == run["carbon"]["ug"] / 1e9 > 0
    assert (rollup["energy_method"], rollup["spans"]) == ("measured", 6)
    assert rollup["status"] in {"ok", "unset"}
    check_item(item_path, assets, rollup, version)
    check_provenance(assets / f"{RUN_ID}-telemetry-prov.jsonld", rollup)
    check_privacy(folder)


def check_item(path: Path, assets: Path, rollup: dict[str, Any], version: str) -> None:
    """S0-56, D-35, D-36: our members and no other byte; pystac reads it, and what it names is there."""
    import pystac

    text = path.read_text(encoding="utf-8")
    item = json.loads(text)
    read = pystac.Item.from_file(str(path))
    hrefs = {key: asset.get_absolute_href() for key, asset in read.assets.items()}

    assert item["properties"].pop("telemetry") == rollup
    assert {key for key in MEMBERS if item["assets"].pop(key)["roles"][0] == "metadata"} == MEMBERS
    # The job wrote json.dumps with an indent of 2: taken apart from our members, these are its own bytes.
    before = json.dumps(item, indent=2) + "\n"
    assert item["stac_version"] == version
    assert "telemetry" not in before
    assert removed(text, before) == text.count("\n") - before.count("\n")
    assert hrefs.keys() == {"data"} | MEMBERS
    assert {Path(str(href)) for href in hrefs.values()} == {path.with_name("grid-intensity.csv"), *assets.iterdir()}
    assert all(Path(str(href)).is_file() for href in hrefs.values())


def removed(after: str, before: str) -> int:
    """How many lines of `after` are not those of `before`, which must follow each other in it as they did.

    A line that another is put behind gains a comma; that is the only change a line may see.
    """
    lines = iter(after.splitlines())
    skipped = 0
    for wanted in before.splitlines():
        for line in lines:
            if line in (wanted, wanted + ","):
                break
            skipped += 1
        else:
            raise AssertionError(f"{wanted!r} is gone")
    assert list(lines) == []
    return skipped


def check_provenance(path: Path, rollup: dict[str, Any]) -> None:
    """D-37, D-38: after expansion the activity, the entity it generated, its agents and the table are there."""
    validate("telemetry-prov-v1", json.loads(path.read_text()))
    graph = Graph().parse(data=path.read_text(), format="json-ld")
    run, telemetry = URIRef(f"urn:kfm:run:{RUN_ID}"), URIRef(f"urn:kfm:entity:telemetry:{RUN_ID}")
    (table,) = graph.objects(run, PROV.used)
    nodes = {str(name) for name in graph.objects(None, KFM.node)}

    assert (run, RDF.type, PROV.Activity) in graph
    assert (telemetry, RDF.type, PROV.Entity) in graph
    assert (telemetry, PROV.wasGeneratedBy, run) in graph
    assert (table, RDF.type, PROV.Entity) in graph
    assert "epa-egrid-subregion" in str(table)
    assert all((agent, RDF.type, PROV.Agent) in graph for agent in graph.objects(run, PROV.wasAssociatedWith))
    assert len(list(graph.objects(run, PROV.wasAssociatedWith))) == 2
    assert nodes == {"extract", "aggregate", "publish"}
    for key in ("energy_joules", "co2_kg", "emission_factor_kg_per_kwh"):
        (figure,) = graph.objects(telemetry, KFM[key])
        assert float(str(figure)) == rollup[key]


def check_privacy(folder: Path) -> None:
    """S0-64, S0-69: neither this machine's name nor its user nor an address stands in what was recorded."""
    files = [*(folder / "data" / "runs").rglob("*.json*"), *(folder / "data" / "ledger").rglob("*.ndjson")]
    names = [socket.gethostname(), getpass.getuser(), "127.0.0.1"]

    assert len(files) == 3
    for file in files:
        words = set(json.dumps(file.read_text()).replace("\\", '"').replace("/", '"').split('"'))
        assert words.isdisjoint(names), file


# -- an Item of the user's own hand ----------------------------------------------------------------------------------

HEAD = (
    '{\r\n\t"type" : "Feature", "stac_version": "1.0.0", "id":"hand\\u002dmade", "n": 1.5e0,\r\n\t"properties" : {"a":1'
)
MIDDLE = (
    '},\r\n  "geometry": null, "bbox": [1.0,  2, 3.00, 4],\r\n\t"links": [ ],\r\n\t"assets": { "x" : {"href": "é.csv"}'
)
TAIL = ' }\r\n  ,"z":\t[ {} ]}\r\n\r\n'

SPAN_OF_ITEM = """
import sys
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
with provider.get_tracer("hand").start_as_current_span("etl.job", attributes={"kfm.stac_item": sys.argv[1]}):
    pass
provider.shutdown()
"""


def test_an_item_of_any_hand_changes_in_our_members_alone(tmp_path: Path) -> None:
    """S0-04, S0-56, D-35: tabs, CRLF, odd numbers and escapes stay; ours stand at the ends of their objects."""
    path = tmp_path / "item.json"
    path.write_bytes((HEAD + MIDDLE + TAIL).encode())
    done = run_command(
        tmp_path, "--source=model", "--region=SPP_KS", "--", sys.executable, "-c", SPAN_OF_ITEM, "item.json"
    )
    after = path.read_bytes().decode()
    inserted, _, rest = after.removeprefix(HEAD).partition(MIDDLE)

    assert done.returncode == 0, done.stderr
    assert after.startswith(HEAD)
    assert rest.endswith(TAIL)
    assert set(json.loads("{" + inserted.lstrip().removeprefix(",") + "}")) == {"telemetry"}
    assert set(json.loads("{" + rest.removesuffix(TAIL).lstrip().removeprefix(",") + "}")) == MEMBERS


HOSTILE: dict[str, dict[str, str]] = {
    "a proxy": {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"},
    "TLS asked for": {"OTEL_EXPORTER_OTLP_INSECURE": "false"},
    "another endpoint for spans": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_telemetry_of_the_command_comes_whatever_its_environment_says(tmp_path: Path, name: str) -> None:
    """Variables that are right for the collector of a site do not keep a job's spans from the run (D-27)."""
    done = run_command(
        tmp_path, "--source=none", "--", sys.executable, "-c", SPAN_OF_ITEM, "", environment=HOSTILE[name]
    )
    (run,) = ledger_lines(tmp_path / "data", "run")

    assert done.returncode == 0, done.stderr
    assert run["job_type"] == "etl", "the job's own root span, not the one that stands in for it"


def test_an_item_outside_of_the_working_directory_is_left_alone(tmp_path: Path) -> None:
    """A job cannot have files patched anywhere; the run and its documents are recorded all the same."""
    folder = tmp_path / "job"
    folder.mkdir()
    path = tmp_path / "item.json"
    path.write_bytes((HEAD + MIDDLE + TAIL).encode())
    done = run_command(folder, "--source=model", "--", sys.executable, "-c", SPAN_OF_ITEM, "../item.json")

    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == (HEAD + MIDDLE + TAIL).encode()
    assert "STAC Item: expected a regular file" in done.stderr
    (line,) = ledger_lines(folder / "data", "run")
    assert len(list((folder / "data" / "runs" / line["run_id"] / "assets").iterdir())) == 2
