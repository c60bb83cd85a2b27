"""The example job as a user runs it: a process of its own, real files, a real OTLP receiver or none."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simulators.decoded import attributes, resource_metrics, resource_spans, spans
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB = Path(__file__).parents[2] / "examples" / "nightly_etl.py"
RUN_ID = "etl-20260102T030405Z"
NODES = ("etl.node.extract", "etl.node.aggregate", "etl.node.publish")
STEPS = ("etl.step.by_zone", "etl.step.by_year")
EXIT_BUDGET_S = 15


def run(
    cwd: Path, *options: str, endpoint: str | None = None, run_id: str | None = RUN_ID
) -> subprocess.CompletedProcess[str]:
    """The job with few resamples, in an environment that has no OTLP variable but those given."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "KFM_"))}
    if endpoint is not None:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    if run_id is not None:
        env["KFM_RUN_ID"] = run_id
    command = [sys.executable, str(JOB), "--resamples", "400", *options]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OtlpServer, Path]]:
    """What one run sent, and the folder it ran in."""
    cwd = tmp_path_factory.mktemp("job")
    with OtlpServer() as sink:
        done = run(cwd, endpoint=f"http://127.0.0.1:{sink.port}")
        assert done.returncode == 0, done.stderr
        yield sink, cwd


def by_name(sink: OtlpServer) -> dict[str, Any]:
    names = {span.name: span for span in spans(sink)}
    assert len(names) == len(spans(sink)), "every span of the job has a name of its own"
    return names


def test_the_job_imports_nothing_of_joulegram() -> None:
    """The example is stock OpenTelemetry: a user copies it without taking joulegram along."""
    imported = {
        name
        for node in ast.walk(ast.parse(JOB.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    tops = {name.partition(".")[0] for name in imported}

    assert tops - sys.stdlib_module_names == {"opentelemetry"}


def test_spans_are_one_tree_with_the_names_of_the_contract(sent: tuple[OtlpServer, Path]) -> None:
    """`etl.job` over three `etl.node.<name>`, the steps of one node beneath it (S0-37, S1-21, D-24)."""
    named = by_name(sent[0])
    job, aggregate = named["etl.job"], named["etl.node.aggregate"]

    assert set(named) == {"etl.job", *NODES, *STEPS}
    assert len({span.trace_id for span in named.values()}) == 1
    assert job.parent_span_id == b""
    assert {named[name].parent_span_id for name in NODES} == {job.span_id}
    assert {named[name].parent_span_id for name in STEPS} == {aggregate.span_id}


def test_children_lie_in_their_parents_and_the_steps_overlap(sent: tuple[OtlpServer, Path]) -> None:
    """The root is open from the first moment to the last (D-24), and two spans of one node run at once."""
    named = by_name(sent[0])
    parents = {span.span_id: span for span in named.values()}

    for span in named.values():
        parent = parents.get(span.parent_span_id, span)
        assert parent.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano
    first, second = (named[name] for name in STEPS)
    assert first.start_time_unix_nano < second.end_time_unix_nano
    assert second.start_time_unix_nano < first.end_time_unix_nano


def test_the_resource_and_the_root_say_which_run(sent: tuple[OtlpServer, Path]) -> None:
    """service.name, kfm.run_id and kfm.component on the resource (S1-14); job.id and job.type on the root."""
    sink, cwd = sent
    resource = attributes(resource_spans(sink)[0].resource)
    root = attributes(by_name(sink)["etl.job"])

    assert resource["service.name"] == "kfm.etl.nightly"
    assert (resource["kfm.run_id"], resource["kfm.component"]) == (RUN_ID, "etl")
    assert (root["job.id"], root["job.type"]) == (RUN_ID, "nightly")
    assert root["kfm.stac_item"] == str(cwd / "nightly-out" / "grid-intensity.item.json")


@pytest.mark.parametrize("name", NODES)
def test_a_node_carries_what_the_span_contract_requires(sent: tuple[OtlpServer, Path], name: str) -> None:
    """kfm.run_id, node, component, domain and pipeline_kind (S1-22, S1-25), records, and no host name (S0-64)."""
    found = attributes(by_name(sent[0])[name])

    assert found.pop("records_out") > 0
    assert found == {
        "kfm.run_id": RUN_ID,
        "kfm.node": name.removeprefix("etl.node."),
        "kfm.component": "etl",
        "kfm.domain": "energy",
        "kfm.pipeline_kind": "nightly",
    }


def test_metrics_are_sent_beside_the_spans(sent: tuple[OtlpServer, Path]) -> None:
    """One run has a trace and a metrics provider on the same resource (S1-13, S1-15)."""
    sink, _ = sent
    (resource,) = resource_metrics(sink)
    (metric,) = [metric for scope in resource.scope_metrics for metric in scope.metrics]
    nodes = {attributes(point)["kfm.node"]: point.as_int for point in metric.sum.data_points}

    assert attributes(resource.resource)["kfm.run_id"] == RUN_ID
    assert metric.name == "etl.records"
    assert nodes == {name.removeprefix("etl.node."): attributes(by_name(sink)[name])["records_out"] for name in NODES}


def test_the_asset_holds_estimates_of_every_zone_and_year(sent: tuple[OtlpServer, Path]) -> None:
    """Each zone has its figure and its rank, each year its median; each estimate lies in its interval."""
    with (sent[1] / "nightly-out" / "grid-intensity.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    keys = {(row["table"], row["group"], row["key"], row["measure"]) for row in rows}

    assert len(keys) == len(rows) > 400
    assert {row["measure"] for row in rows} == {"g_per_kwh", "cleaner_zones", "median_g_per_kwh"}
    assert ("epa-egrid-subregion", "zone", "egrid:SPNO", "g_per_kwh") in keys
    assert {row["key"] for row in rows} & {"egrid:US", "ember:WORLD"} == set(), "sums of zones are no zones"
    for row in rows:
        assert bool(row["low"]) == bool(row["high"]) == (row["measure"] != "g_per_kwh")
        if row["low"]:
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_the_same_input_gives_the_same_asset(tmp_path: Path) -> None:
    """The job is deterministic: two runs write the same bytes, and --out says where."""
    for name in ("a", "b"):
        assert run(tmp_path, "--out", name).returncode == 0
    first, second = ((tmp_path / name / "grid-intensity.csv").read_bytes() for name in ("a", "b"))

    assert first == second


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_the_item_is_valid_stac(tmp_path: Path, version: str) -> None:
    """The Item is what pystac and the Item's own rules call valid, in both versions, and its asset exists."""
    import pystac

    done = run(tmp_path, "--stac-version", version)
    path = tmp_path / "nightly-out" / "grid-intensity.item.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    item = pystac.Item.from_file(str(path))
    asset = item.assets["data"].get_absolute_href()

    assert done.returncode == 0, done.stderr
    assert raw["stac_version"] == version
    assert raw["id"] == item.id == f"grid-intensity-{RUN_ID}"
    assert raw["properties"]["datetime"] is None
    assert item.common_metadata.start_datetime is not None
    assert item.common_metadata.end_datetime is not None
    assert item.common_metadata.start_datetime < item.common_metadata.end_datetime
    assert item.assets["data"].roles == ["data"]
    assert asset is not None
    assert Path(asset).is_file()
    assert [link.rel for link in item.links if link.rel != "self"] == ["via", "via"]


def test_without_an_endpoint_the_job_runs_and_says_that_nothing_is_sent(tmp_path: Path) -> None:
    """No collector is a mode, not a failure (D-27); the run id is made of the time (S0-50)."""
    done = run(tmp_path, run_id=None)

    assert done.returncode == 0, done.stderr
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is not set: no telemetry is sent" in done.stdout
    assert re.search(r"^run etl-\d{8}T\d{6}Z: published /.*/grid-intensity\.item\.json$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("accepts", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_dead_endpoint_does_not_hold_the_job(tmp_path: Path, *, accepts: bool) -> None:
    """The job exits 0 within its budget, its results written, though its telemetry goes nowhere (D-27)."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if not accepts:
            listener.close()
        began = time.monotonic()
        done = run(tmp_path, endpoint=endpoint)
        took_s = time.monotonic() - began

    assert done.returncode == 0, done.stderr
    assert took_s < EXIT_BUDGET_S
    assert (tmp_path / "nightly-out" / "grid-intensity.item.json").is_file()


def test_an_error_is_recorded_and_raised(tmp_path: Path) -> None:
    """A job that fails says so in the spans it fails in, sends them, and exits 1 with its message (D-23)."""
    with OtlpServer() as sink:
        done = run(tmp_path, "--data", str(tmp_path / "nowhere"), endpoint=f"http://127.0.0.1:{sink.port}")
        named = by_name(sink)

    assert done.returncode == 1
    assert f"no epa-egrid-subregion/*/table.csv in {tmp_path}/nowhere" in done.stderr
    assert set(named) == {"etl.job", "etl.node.extract"}
    for span in named.values():
        assert span.status.code == span.status.STATUS_CODE_ERROR
        assert attributes(span.events[0])["exception.type"] == "FileNotFoundError"
    assert "kfm.stac_item" not in attributes(named["etl.job"])
