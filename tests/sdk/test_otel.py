"""Telemetry of one run: what it says of itself, how often it can be started, and how it ends (S1-13 to S1-17)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from joulegram import otel
from joulegram_pipeline.errors import IdentifierError
from simulators.decoded import attributes, resource_metrics, resource_spans, spans
from simulators.otlp_server import OtlpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_ID = "etl-20260102T030405Z"
ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of OpenTelemetry, KFM or a CI system; every handle of a test is closed after it."""
    for name in [*os.environ]:
        if name.startswith(("OTEL_", "KFM_", "GITHUB_", "CI")):
            monkeypatch.delenv(name)
    yield
    for handle in [*otel._handles.values()]:
        handle.shutdown()


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpServer]:
    """A collector that the standard variable names."""
    with OtlpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.port}")
        yield server


def metric_names(sink: OtlpServer) -> set[str]:
    return {m.name for item in resource_metrics(sink) for scope in item.scope_metrics for m in scope.metrics}


def test_spans_and_metrics_arrive_with_the_resource_of_the_run(sink: OtlpServer) -> None:
    """service.name, kfm.run_id, kfm.component and service.version on both signals (S1-13, S1-14, S0-24)."""
    handle = otel.init_otel("kfm.etl.hrrr_ingest", service_version="1.2.3", run_id=RUN_ID)
    with handle.tracer.start_as_current_span("etl.job"):
        handle.meter.create_counter("etl.records").add(3)
    assert handle.shutdown()

    (traces,), (metrics,) = resource_spans(sink), resource_metrics(sink)
    for found in (attributes(traces.resource), attributes(metrics.resource)):
        assert found["service.name"] == "kfm.etl.hrrr_ingest"
        assert found["service.version"] == "1.2.3"
        assert (found["kfm.run_id"], found["kfm.component"]) == (RUN_ID, "etl")
        assert not {"host.name", "host.id"} & found.keys(), "no host name by default (S0-64)"
    assert [span.name for span in spans(sink)] == ["etl.job"]
    assert metric_names(sink) == {"etl.records"}
    assert traces.scope_spans[0].scope.name == "kfm.telemetry.tracer"  # S0-14
    assert (metrics.scope_metrics[0].scope.name, metrics.scope_metrics[0].scope.version) == (
        "kfm.telemetry.energy",
        "0.1.0",
    )


def test_no_version_is_no_attribute(sink: OtlpServer) -> None:
    """What was not given is absent, not null (D-22); the component is the caller's."""
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID, component="ai-workloads")
    handle.tracer.start_span("etl.job").end()
    assert handle.shutdown()
    found = attributes(resource_spans(sink)[0].resource)
    assert "service.version" not in found
    assert found["kfm.component"] == "ai-workloads"


def test_the_same_run_gives_the_same_handle() -> None:
    """Initialising twice is as good as once (C-19); a run that nobody named keeps the id it was given."""
    first = otel.init_otel("kfm-etl", run_id=RUN_ID)
    assert otel.init_otel("kfm-etl", run_id=RUN_ID) is first
    unnamed = otel.init_otel("kfm-etl")
    assert otel.init_otel("kfm-etl") is unnamed
    assert unnamed is not first


def test_a_second_run_in_one_process_works_too(sink: OtlpServer) -> None:
    """The second run's spans carry the second run's id, and closing the first does not close it (D-25)."""
    other = "etl-20260103T030405Z"
    first, second = otel.init_otel("kfm-etl", run_id=RUN_ID), otel.init_otel("kfm-etl", run_id=other)
    first.tracer.start_span("first").end()
    assert first.shutdown()
    second.tracer.start_span("second").end()
    assert second.shutdown()
    said = {
        scope.spans[0].name: attributes(item.resource)["kfm.run_id"]
        for item in resource_spans(sink)
        for scope in item.scope_spans
    }
    assert said == {"first": RUN_ID, "second": other}


def test_a_run_that_was_closed_can_be_opened_again(sink: OtlpServer) -> None:
    """After its shutdown the same call gives a new handle that works; an unnamed one is a new run."""
    first, unnamed = otel.init_otel("kfm-etl", run_id=RUN_ID), otel.init_otel("kfm-etl")
    assert first.shutdown()
    assert unnamed.shutdown()
    again = otel.init_otel("kfm-etl", run_id=RUN_ID)
    assert again is not first
    again.tracer.start_span("again").end()
    assert again.shutdown()
    assert "again" in {span.name for span in spans(sink)}
    assert otel.init_otel("kfm-etl").run_id != unnamed.run_id


def test_shutdown_twice_sends_once(sink: OtlpServer) -> None:
    """A second shutdown changes nothing and says the same (D-28)."""
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    handle.tracer.start_span("etl.job").end()
    assert handle.shutdown()
    assert handle.shutdown()
    assert len(spans(sink)) == 1


RUN_IDS: list[tuple[str, str | None, dict[str, str], str]] = [
    ("argument", RUN_ID, {"KFM_RUN_ID": "kfm-run-1", "GITHUB_RUN_ID": "16584821493"}, RUN_ID),
    ("KFM_RUN_ID", None, {"KFM_RUN_ID": "kfm-run-1", "GITHUB_RUN_ID": "16584821493"}, "kfm-run-1"),
    ("GitHub", None, {"GITHUB_RUN_ID": "16584821493", "CI_PIPELINE_ID": "123456789"}, "16584821493"),
    ("GitLab", None, {"CI_PIPELINE_ID": "123456789"}, "123456789"),
    ("a pipeline number too short for a run id", None, {"CI_PIPELINE_ID": "42"}, "ci-run-42"),
    ("an empty KFM_RUN_ID names no run", None, {"KFM_RUN_ID": "", "GITHUB_RUN_ID": "16584821493"}, "16584821493"),
    ("14 digits of a date", None, {"KFM_RUN_ID": "20260102030405"}, "20260102030405"),
]


@pytest.mark.parametrize(("given", "env", "expected"), [row[1:] for row in RUN_IDS], ids=[row[0] for row in RUN_IDS])
def test_who_names_the_run(
    monkeypatch: pytest.MonkeyPatch, given: str | None, env: dict[str, str], expected: str
) -> None:
    """Argument, then KFM_RUN_ID, then the CI system's run id (S1-16, C-15)."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert otel.init_otel("kfm-etl", run_id=given).run_id == expected


def test_a_run_that_nobody_names_gets_a_ulid() -> None:
    """26 characters that sort by time (C-15), and no KeyError for want of a variable (D-25)."""
    assert ULID.fullmatch(otel.init_otel("kfm-etl").run_id)


@pytest.mark.parametrize("from_env", [False, True], ids=["argument", "KFM_RUN_ID"])
@pytest.mark.parametrize("run_id", ["../../etc/passwd", "a/b", "short"])
def test_a_run_id_that_may_not_be_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, run_id: str, *, from_env: bool
) -> None:
    """It would become a path (D-41): it is quoted, whoever said it, and no handle is left behind."""
    if from_env:
        monkeypatch.setenv("KFM_RUN_ID", run_id)
    with pytest.raises(IdentifierError, match=re.escape(repr(run_id))):
        otel.init_otel("kfm-etl", run_id=None if from_env else run_id)
    assert not otel._handles


def test_without_an_endpoint_nothing_is_sent_and_all_works() -> None:
    """The mode without a collector (D-27): spans are real, the end is at once."""
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    with handle.tracer.start_as_current_span("etl.job") as span:
        assert span.get_span_context().is_valid
    began = time.monotonic()
    assert handle.shutdown()
    assert time.monotonic() - began < 1


def test_each_signal_goes_where_its_own_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_TRACES_ENDPOINT alone sends traces alone (S1-17)."""
    with OtlpServer() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{server.port}")
        handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
        handle.tracer.start_span("etl.job").end()
        handle.meter.create_counter("etl.records").add(1)
        assert handle.shutdown()
        assert {what for what, _ in server.taken} == {"traces"}


def test_a_protocol_that_is_not_spoken_is_said_and_sends_nothing(
    sink: OtlpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Telemetry that cannot be sent does not break the job: a warning quotes the variable and what is spoken."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    handle.tracer.start_span("etl.job").end()
    handle.meter.create_counter("etl.records").add(1)
    assert handle.shutdown()
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: got 'http/protobuf', expected grpc" in caplog.text
    assert {what for what, _ in sink.taken} == {"metrics"}


def test_spans_are_sent_in_batches_beside_the_job(sink: OtlpServer) -> None:
    """BatchSpanProcessor: ending spans sends nothing by itself, and what is sent comes in one request (S1-15, C-18)."""
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    for number in range(100):
        handle.tracer.start_span(f"etl.node.{number}").end()
    assert handle.shutdown()
    assert len(spans(sink)) == 100
    assert len([1 for what, _ in sink.taken if what == "traces"]) == 1


def test_metrics_come_by_themselves_while_the_job_runs(sink: OtlpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is periodic (S0-25), as often as the standard variable says."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    handle.meter.create_counter("etl.records").add(1)
    sink.wait_for(lambda server: any(what == "metrics" for what, _ in server.taken))
    assert handle.shutdown()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        yield listener.getsockname()[1]


def test_shutdown_ends_within_its_budget_though_nobody_answers(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it did not end in time, and takes the time it was given (D-27)."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    handle = otel.init_otel("kfm-etl", run_id=RUN_ID)
    handle.tracer.start_span("etl.job").end()
    began = time.monotonic()
    assert not handle.shutdown(timeout_s=0.2)
    assert time.monotonic() - began < 1
    assert handle.shutdown(timeout_s=30)


JOB = """
import os, sys
from joulegram.otel import init_otel
handle = init_otel("kfm-etl", run_id="etl-20260102T030405Z")
{work}
with handle.tracer.start_as_current_span("etl.job"):
    pass
"""


def job(port: int, work: str = "") -> tuple[subprocess.CompletedProcess[str], float]:
    """A job that never calls shutdown, and how long it took."""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(work=work)], env=env, capture_output=True, text=True, timeout=60
    )
    return done, time.monotonic() - began


def test_a_job_that_forgets_to_shut_down_loses_nothing() -> None:
    """The end of the process sends what is left (D-27)."""
    with OtlpServer() as server:
        done, _ = job(server.port)
        assert (done.returncode, done.stderr) == (0, "")
        assert [span.name for span in spans(server)] == ["etl.job"]


def test_a_job_ends_within_its_budget_though_nobody_answers(silent: int) -> None:
    """A dead collector costs a forgetful job SHUTDOWN_S and not more (D-27: it was 19.7 s)."""
    done, took_s = job(silent)
    assert done.returncode == 0, done.stderr
    assert took_s < otel.SHUTDOWN_S + 4


def test_a_forked_child_can_close_its_own() -> None:
    """A fork has none of its parent's threads; its spans and its shutdown work all the same."""
    work = """
pid = os.fork()
if pid == 0:
    handle.tracer.start_span("child").end()
    os._exit(0 if handle.shutdown(20) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    with OtlpServer() as server:
        done, _ = job(server.port, work)
        assert done.returncode == 0, done.stderr
        assert sorted(span.name for span in spans(server)) == ["child", "etl.job"]


def test_the_end_by_signal_is_the_processes_own_business() -> None:
    """Starting telemetry takes over no signal: SIGTERM ends the job as it always did."""
    done, _ = job(9, f"os.kill(os.getpid(), {int(signal.SIGTERM)})")
    assert done.returncode == -signal.SIGTERM


def test_no_global_provider_is_set(sink: OtlpServer) -> None:
    """Global providers can be set once in a process, so a run must not take them (D-25)."""
    from opentelemetry import metrics, trace

    before: tuple[Any, Any] = trace.get_tracer_provider(), metrics.get_meter_provider()
    otel.init_otel("kfm-etl", run_id=RUN_ID)
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
