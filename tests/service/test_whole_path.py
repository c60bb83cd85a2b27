"""The whole path: a known power trace and real spans in, records out, and every figure worked out again."""

from __future__ import annotations

import csv
import getpass
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import joulegram_processor
from joulegram_schemas import validate
from simulators.decoded import attributes, resource_spans, spans
from simulators.otlp_server import SERVICES, OtlpServer
from simulators.powercap import INTEL_RANGE_UJ, PowercapTree
from simulators.protobuf import field, fields_of, varint
from simulators.sidecar import JOULEGRAM, PowerTrace, Serve, archived_ticks, ledger_lines, run_lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from joulegram_pipeline.energy import Tick

pytestmark = pytest.mark.timeout(180)

HAND_RUN = "hand-built-20260102T030405Z"
SDK_RUN = "stock-sdk-20260102T030405Z"
TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
ROOT = b"rootroot"
TO_WRAP_UJ = 20_000_000
SECRETS = ("db7.internal.example", "203.0.113.77", "alice.secret")
"""What a resource may say and no record may: a host name, an address, a user."""

ADDED = {
    *("energy.cpu_j", "energy.dram_j", "energy.total_j", "energy.method", "energy.scope", "energy.allocation_ratio"),
    *("timing.duration_s", "carbon.gco2e", "carbon.gco2e_lower", "carbon.gco2e_upper", "carbon.gas", "carbon.region"),
    *("carbon.intensity_g_per_kwh", "carbon.resolution", "carbon.table", "carbon.upper_bound"),
}
"""What a measured and priced span gains on a node with packages and DRAM (design section 6), and nothing else."""


# -- what no version of OTLP has, and a request without what was added ----------------------------------------------


UNKNOWN = (
    varint(1900 << 3)
    + varint(2**63)
    + varint(1901 << 3 | 1)
    + struct.pack("<d", 1.5)
    + field(1902, b"\x00\xff not text")
    + (varint(1903 << 3 | 3) + varint(7 << 3) + b"\x01" + varint(1903 << 3 | 4))
    + varint(1904 << 3 | 5)
    + struct.pack("<I", 7)
)
"""A field of every wire type that no version of OTLP has yet."""


def without_added(data: bytes, path: tuple[int, ...] = (1, 2, 2)) -> bytes:
    """A trace request as it would be, had its spans not gained what stands at their end."""
    if path:
        return b"".join(
            field(number, without_added(content, path[1:])) if number == path[0] else whole
            for number, whole, content in fields_of(data)
        )
    kept = list(fields_of(data))
    while kept and kept[-1][0] == 9 and key_of(kept[-1][2]) in ADDED:
        kept.pop()
    return b"".join(whole for _, whole, _ in kept)


def key_of(pair: bytes) -> str:
    return next(content for number, _, content in fields_of(pair) if number == 1).decode()


# -- what is sent ----------------------------------------------------------------------------------------------------


def span_bytes(name: str, start_ns: int, end_ns: int, span_id: bytes = b"", parent: bytes = ROOT) -> bytes:
    """A span with an attribute and an event, and fields nobody knows behind them."""
    span = Span(trace_id=TRACE, span_id=span_id or os.urandom(8), parent_span_id=parent, name=name)
    span.start_time_unix_nano, span.end_time_unix_nano = start_ns, end_ns
    span.attributes.add(key="rows").value.int_value = 7
    span.events.add(name="read", time_unix_nano=start_ns)
    return bytes(span.SerializeToString()) + UNKNOWN


def resource_spans_bytes(labels: dict[str, str | int], *contents: bytes) -> bytes:
    """One resource_spans field with the spans given, and unknown fields at every level."""
    resource = ResourceMessage()
    for key, value in {"kfm.run_id": HAND_RUN, **labels}.items():
        given = resource.attributes.add(key=key).value
        if isinstance(value, int):
            given.int_value = value
        else:
            given.string_value = value
    scope = b"".join(field(2, content) for content in contents) + UNKNOWN
    return field(1, field(1, resource.SerializeToString() + UNKNOWN) + field(2, scope) + UNKNOWN)


def metrics_bytes() -> bytes:
    """A metrics request with fields nobody knows: it concerns joulegram not at all."""
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="etl.records").sum.data_points.add(as_int=3)
    return bytes(request.SerializeToString()) + UNKNOWN


class Client:
    """Exports raw bytes and keeps what was acknowledged; its own process is the one hand-built spans name."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self.sent: list[tuple[str, bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def export(self, signal: str, request: bytes) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICES[signal]}/Export", None, None)
        answer: bytes = call(request, timeout=10, wait_for_ready=True)
        self.sent.append((signal, request))
        return answer


def stock_job(target: str) -> None:
    """A job of the stock SDK that knows nothing of joulegram: a root, two nodes, and spans that are not ours."""
    labels = {"service.name": "kfm.etl.hrrr", "kfm.run_id": SDK_RUN, "kfm.component": "etl", "kfm.domain": "weather"}
    secret = dict(zip(("host.name", "host.ip", "enduser.id"), SECRETS, strict=True))
    resource = Resource.create({**labels, **secret, "kfm.pipeline_kind": "nightly"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://{target}")))
    tracer = provider.get_tracer("job", "1.0")
    with tracer.start_as_current_span("etl.job", attributes={"job.id": SDK_RUN, "job.type": "nightly"}):
        for node in ("extract", "load"):
            with tracer.start_as_current_span(f"etl.node.{node}", attributes={"kfm.node": node}):
                with tracer.start_as_current_span("SELECT", attributes={"db.system": "postgresql"}):
                    spin(0.3)
                spin(0.2)
    provider.shutdown()


def spin(seconds: float) -> None:
    """Honest CPU work."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


@contextmanager
def neighbour() -> Iterator[None]:
    """CPU work that is nobody's: a process outside this one's tree, which is named, so that others have a share too.

    Its parent ends at once, so it leaves the tree. It ends by itself if nobody ends it.
    """
    work = "import time\nuntil = time.monotonic() + 60\nwhile time.monotonic() < until: sum(range(1000))"
    shell = ["sh", "-c", 'exec >/dev/null 2>&1; "$0" -c "$1" & echo $! >"$2"', sys.executable, work]
    with tempfile.NamedTemporaryFile("r") as pid_file:
        subprocess.run([*shell, pid_file.name], check=True)
        pid = int(pid_file.read())
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)


# -- the scenario, once ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journey:
    """All that went in and came out; `window` runs from edge to edge of whole ticks."""

    tree: PowercapTree
    data: Path
    sent: list[tuple[str, bytes]]
    upstream: OtlpServer
    window: tuple[int, int]
    status: int

    @property
    def spans(self) -> list[dict[str, Any]]:
        return ledger_lines(self.data, "span")

    @property
    def account(self) -> dict[str, Any]:
        (run,) = run_lines(self.data, HAND_RUN)
        account: dict[str, Any] = run["account"]
        return account


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A sidecar over a tree whose package counters wrap, an upstream behind it, and two jobs in front of it."""
    folder = tmp_path_factory.mktemp("whole")
    tree = PowercapTree(folder / "sys", packages=2, psys=True, mmio=True, start_uj=INTEL_RANGE_UJ - TO_WRAP_UJ)
    flags = ("--source=powercap", f"--sysfs-root={tree.root}", "--region=SPP_KS")
    with OtlpServer() as upstream:
        with Serve(folder, *flags, f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve:
            with Client(serve.wait_ready().target) as client:
                window = send_all(tree, serve, client)
            wait_until(lambda: bool(run_lines(serve.data, HAND_RUN)), "the hand-built run", log=serve.log)
            status = serve.stop()
        yield Journey(tree, serve.data, client.sent, upstream, window, status)


def send_all(tree: PowercapTree, serve: Serve, client: Client) -> tuple[int, int]:
    """Both jobs under the trace, which is spent between two quiet seconds: all of it lies in published ticks.

    The hand-built run is made to begin and end on edges of ticks, so that its account is one of whole ticks.
    """

    def ticks() -> list[Tick]:
        return archived_ticks(serve.data)

    wait_until(lambda: bool(ticks()), "a first tick", log=serve.log)
    ours: dict[str, str | int] = {"process.pid": os.getpid(), "host.name": SECRETS[0]}
    now = time.time_ns()
    client.export("traces", resource_spans_bytes(ours, span_bytes("etl.step.early", now - 1_000_000, now)) + UNKNOWN)
    wait_until(lambda: os.getpid() in ticks()[-1].process_cpu_ns, "this process in a tick", log=serve.log)
    with neighbour(), PowerTrace(tree, seed=20260102), OtlpServer(judge=client.export) as tee:
        # The tee hands on, byte for byte, what the stock exporter sends, so that those bytes are known.
        stock_job(f"127.0.0.1:{tee.port}")
        start = time.time_ns()
        spin(0.5)
        end = time.time_ns()
        wait_until(lambda: ticks()[-1].start_ns > end, "a tick behind the work", log=serve.log)
    stopped = time.time_ns()
    wait_until(lambda: ticks()[-1].end_ns > stopped, "a tick behind the trace", log=serve.log)
    wait_until(lambda: bool(run_lines(serve.data, SDK_RUN)), "the run of the stock SDK", log=serve.log)
    client.export("metrics", metrics_bytes())
    window = ticks()[0].start_ns, ticks()[-1].end_ns
    work = resource_spans_bytes(
        ours,
        span_bytes("etl.node.inner", start + 50_000_000, start + 250_000_000),
        span_bytes("etl.node.beside", start + 150_000_000, end),
        span_bytes("turned", end, start),
        span_bytes("SELECT", start, end),
        span_bytes("etl.job", start, end, span_id=ROOT, parent=b""),
    )
    edges = resource_spans_bytes(
        {"service.name": "edges"},
        span_bytes("etl.step.first", window[0], window[0] + 10_000_000),
        span_bytes("etl.step.last", window[1] - 10_000_000, window[1]),
    )
    client.export("traces", edges + UNKNOWN + work)
    return window


# -- what must hold --------------------------------------------------------------------------------------------------


def test_the_sidecar_stops_cleanly_and_its_ledger_is_whole(journey: Journey) -> None:
    """S3-12: exit 0 after SIGTERM, and the verifier of a second process finds nothing wrong."""
    verify = [*JOULEGRAM, "ledger", "verify", str(journey.data / "ledger" / "telemetry")]

    assert journey.status == 0
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def test_ticks_hold_the_trace_to_the_microjoule(journey: Journey) -> None:
    """S3-03: over the wrap of both packages, each domain's ticks add up to what was spent in it, difference 0 uJ."""
    counted: Counter[str] = Counter()
    for tick in archived_ticks(journey.data):
        assert tick.gaps == ()
        counted.update(tick.energy_uj)

    assert counted == journey.tree.truth_uj
    for package in ("package-0", "package-1"):
        assert counted[package] > TO_WRAP_UJ, "the counter wrapped"
        assert int((journey.tree.zone_path(package) / "energy_uj").read_text()) < INTEL_RANGE_UJ - TO_WRAP_UJ


def test_no_microjoule_is_lost_or_given_twice(journey: Journey) -> None:
    """Design section 4: Σ exclusive + idle + other + unattributed = the trace's energy, difference 0 uJ."""
    account = journey.account
    begin, finish = journey.window
    whole = [tick for tick in archived_ticks(journey.data) if begin <= tick.start_ns and tick.end_ns <= finish]
    exclusive = sum(line["energy"]["exclusive_uj"] for line in journey.spans)
    parts = [account[f"{part}_uj"] for part in ("idle", "other", "unattributed")]

    assert (int(account["start_ns"]), int(account["end_ns"])) == (begin, finish)
    assert (whole[0].start_ns, whole[-1].end_ns) == (begin, finish)
    assert sum(sum(tick.energy_uj.values()) for tick in whole) == sum(journey.tree.truth_uj.values())
    assert exclusive == account["spans_uj"] + account["other_spans_uj"]
    assert exclusive + sum(parts) == account["measured_uj"] == sum(journey.tree.truth_uj.values())
    assert account["uncovered_ns"] == "0"
    assert min(exclusive, account["other_spans_uj"], *parts) > 0, "each part is put to the test"


def test_a_span_holds_the_energy_of_those_below_it(journey: Journey) -> None:
    """Inclusive energy on the span, exclusive energy in the sum: root = Σ exclusive of its run's connected spans."""
    lines = [line for line in journey.spans if line["run_id"] == SDK_RUN]
    (root,) = [line for line in lines if line["name"] == "etl.job"]

    assert {line["name"] for line in lines} == {"etl.job", "etl.node.extract", "etl.node.load"}
    assert root["energy"]["total_uj"] == sum(line["energy"]["exclusive_uj"] for line in lines) > 0
    for line in journey.spans:
        assert line["energy"]["cpu_uj"] + line["energy"]["dram_uj"] == line["energy"]["total_uj"]
        assert line["energy"]["method"] == "measured"
    scopes = {line["name"]: line["energy"]["scope"] for line in journey.spans if line["run_id"] == HAND_RUN}
    assert scopes["etl.node.inner"] == scopes["etl.job"] == "process"
    assert scopes["etl.step.first"] == "host"


def test_carbon_is_energy_times_the_table_exactly(journey: Journey) -> None:
    """S0-52: `carbon.gco2e` of every span is the product of its energy and the table's row, rounded once."""
    lines = {bytes.fromhex(line["span_id"]): line for line in journey.spans}
    joined = [span for span in spans(journey.upstream) if "energy.method" in attributes(span)]

    assert {span.span_id for span in joined} == set(lines)
    for span in joined:
        found, line = attributes(span), lines[span.span_id]
        g_per_kwh = intensity(found["carbon.table"], "egrid:SPNO")
        grams = Fraction(line["energy"]["total_uj"], 3_600_000_000_000) * g_per_kwh
        micrograms = round(grams * 1_000_000)  # Python rounds a Fraction's halves to even

        assert line["carbon"]["ug"] == micrograms
        assert found["carbon.gco2e"] == float(Fraction(micrograms, 1_000_000))
        assert found["energy.total_j"] == float(Fraction(line["energy"]["total_uj"], 1_000_000))
        assert found["carbon.intensity_g_per_kwh"] == float(g_per_kwh)
        assert found["carbon.gco2e_lower"] <= found["carbon.gco2e"] <= found["carbon.gco2e_upper"]
        assert (found["carbon.region"], found["carbon.resolution"]) == ("egrid:SPNO", "static")
    assert max(line["carbon"]["ug"] for line in lines.values()) > 1000


def intensity(table: str, region: str) -> Fraction:
    """The latest figure of a region, read from the shipped table by its name alone."""
    folder = Path(str(joulegram_processor.__file__)).with_name("tables").joinpath(*table.split("@"))
    with (folder / "table.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["region_key"] == region]
    return Fraction(max(rows, key=lambda row: row["end_utc"])["g_per_kwh"])


def test_what_is_forwarded_differs_by_the_added_keys_alone(journey: Journey) -> None:
    """A8, A11: decoded and byte for byte, all else is as it was sent, fields nobody knows included."""
    for service in ("traces", "metrics"):
        sent = [whole for name, body in journey.sent if name == service for _, whole, _ in fields_of(body)]
        taken = [
            whole
            for name, body in journey.upstream.taken
            if name == service
            for _, whole, _ in fields_of(without_added(body) if name == "traces" else body)
        ]
        assert Counter(taken) == Counter(sent)
        assert sent
    before = {span.span_id: span for _, body in traces_of(journey.sent) for span in spans_of(body)}
    after = {span.span_id: span for _, body in traces_of(journey.upstream.taken) for span in spans_of(body)}
    assert after.keys() == before.keys()
    for span_id, span in after.items():
        assert len(attributes(span)) == len(span.attributes), "no key twice"
        gained = attributes(span).keys() - attributes(before[span_id]).keys()
        selected = span.name.startswith("etl.") and span.start_time_unix_nano <= span.end_time_unix_nano
        if "energy.total_j" in gained and not attributes(span)["energy.total_j"]:
            gained |= {"energy.allocation_ratio"}  # of no energy at all there is no share
        assert gained == (ADDED if selected else set())
        kept = [pair for pair in span.attributes if pair.key not in ADDED]
        del span.attributes[:]
        span.attributes.extend(kept)
        assert span == before[span_id]


def traces_of(messages: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [message for message in messages if message[0] == "traces"]


def spans_of(body: bytes) -> list[Any]:
    request = ExportTraceServiceRequest.FromString(body)
    return [span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]


def test_a_joined_span_is_what_its_contract_says(journey: Journey) -> None:
    """S0-60, D-42: resource and span attributes together are valid, method and scope on every joined span."""
    for part in resource_spans(journey.upstream):
        for span in (span for scope in part.scope_spans for span in scope.spans):
            found = attributes(part.resource) | attributes(span)
            if "energy.method" in found:
                validate("otel-energy-span-v1", found)


def test_names_of_hosts_people_and_addresses_are_not_recorded(journey: Journey) -> None:
    """S0-64, S0-69: they are forwarded as the user sent them, and stand in no ledger line and no document."""
    forwarded = b"".join(body for _, body in journey.upstream.taken)
    recorded = [*journey.data.glob("ledger/**/*"), *journey.data.glob("runs/**/*"), *journey.data.glob("ticks/*")]

    for secret in (*SECRETS, socket.gethostname() + ".", getpass.getuser() + "@"):
        for file in recorded:
            assert not file.is_file() or secret.encode() not in file.read_bytes(), file
    assert all(secret.encode() in forwarded for secret in SECRETS)
    assert {file.suffix for file in recorded if file.is_file()} == {".ndjson", ".json", ".jsonld"}


def test_without_an_agent_the_sidecar_goes_on_and_says_so(tmp_path: Path) -> None:
    """S3-08: spans are forwarded as unavailable with a reason that names the socket; the sidecar stays ready."""
    missing = tmp_path / "nobody.sock"
    flags = (f"--agent-socket={missing}", "--region=SPP_KS")
    with OtlpServer() as upstream, Serve(tmp_path, *flags, f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve:
        with Client(serve.wait_ready().target) as client:
            now = time.time_ns()
            root = span_bytes("etl.job", now - 1_000_000, now, span_id=ROOT, parent=b"")
            client.export("traces", resource_spans_bytes({}, root))
        upstream.wait_for(lambda server: bool(spans(server)))
        (span,) = spans(upstream)
        found = attributes(span)

        assert found["energy.method"] == "unavailable"
        assert str(missing) in found["energy.reason"]
        assert [key for key in found if key.endswith("_j") or key == "carbon.gco2e"] == [], "missing, never 0"
        assert serve.get("/readyz")[0] == 200
        wait_until(lambda: bool(run_lines(serve.data, HAND_RUN)), "the run", log=serve.log)
        assert serve.stop() == 0
    (run,) = run_lines(serve.data, HAND_RUN)
    assert run["energy"]["method"] == "unavailable"
    assert "total_uj" not in run["energy"]
    assert str(missing) in run["energy"]["reason"]
