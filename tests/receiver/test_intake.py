"""What both transports share: answers, limits and the headers that travel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_pipeline.errors import BusyError, ConfigError, StorageError, WireError
from joulegram_pipeline.metrics import Metrics
from joulegram_pipeline.records import RecordKind
from joulegram_pipeline.span_rows import Extract
from joulegram_receiver.admission import Admission
from joulegram_receiver.intake import MAX_METADATA_BYTES, Intake
from joulegram_receiver.intake_refusals import OverloadError, TooLargeError, UndurableError, reason_of
from joulegram_receiver.signals import BY_PATH, LOGS, SIGNALS, TRACES
from simulators.receivers import requests, span, traces

ONE = traces(span())


class Store:
    """Keeps what it is given, or fails as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.taken: list[tuple[RecordKind, bytes, Any, Any]] = []
        self._failure = failure

    async def append(
        self, kind: RecordKind, payload: bytes, received_ns: int | None = None, parsed: Any = None, metadata: Any = ()
    ) -> int:
        if self._failure is not None:
            raise self._failure
        self.taken.append((kind, payload, parsed, metadata))
        return 0


def test_every_signal_has_its_names() -> None:
    """H1 and the gRPC list of the otlp reference, section 1.2."""
    assert [(signal.name, signal.kind.name.lower(), signal.path) for signal in SIGNALS] == [
        ("traces", "traces", "/v1/traces"),
        ("metrics", "metrics", "/v1/metrics"),
        ("logs", "logs", "/v1/logs"),
        ("profiles", "profiles", "/v1development/profiles"),
    ]
    for signal in SIGNALS:
        assert BY_PATH[signal.path] is signal
        assert (
            signal.service == signal.request.DESCRIPTOR.file.services_by_name[signal.service.split(".")[-1]].full_name
        )
        assert signal.request.DESCRIPTOR.fields_by_name[signal.envelope].is_repeated


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_a_request_is_stored_and_the_answer_is_empty(signal: Any) -> None:
    """A5: partial_success unset is no byte at all; metadata goes along."""
    store = Store()
    request = requests()[signal.name]
    metadata = (("x-tenant", "a"),)
    assert asyncio.run(Intake(store, Metrics()).take(signal, request, metadata)) == b""
    ((kind, payload, _, carried),) = store.taken
    assert (kind, payload, carried) == (signal.kind, request, metadata)


def test_what_the_join_wants_travels_with_the_request() -> None:
    """With an extractor the request is read once, and spans that break OTLP are those it found."""
    row = ("late", b"t" * 16, b"s" * 8, b"", 30, 20, 0)
    found = Extract(total=3, broken=[row])
    store = Store()
    metrics = Metrics()
    answer = asyncio.run(Intake(store, metrics, extract=lambda payload: found).take(TRACES, b"anything"))
    assert store.taken == [(RecordKind.TRACES, b"anything", found, ())]
    response = ExportTraceServiceResponse.FromString(answer)
    assert response.partial_success.error_message.startswith('span "late": ends before it starts')
    assert metrics.registry.get_sample_value("joulegram_receiver_accepted_spans_total") == 3


def test_a_long_answer_has_its_message_cut() -> None:
    """A3: the error message is shortened first, at a character; the answer still parses."""
    intake = Intake(Store(), Metrics(), max_response_bytes=100)
    answer = intake.warn(TRACES, "é" * 1000)
    assert 90 <= len(answer) <= 100
    assert set(ExportTraceServiceResponse.FromString(answer).partial_success.error_message) == {"é"}
    assert len(intake.warn(LOGS, "short")) < 20


@pytest.mark.parametrize(
    ("failure", "expected", "reason"),
    [(BusyError("full"), OverloadError, "busy"), (StorageError("EIO"), UndurableError, "storage")],
)
def test_what_the_spool_refuses_has_a_delay(failure: Exception, expected: type[Exception], reason: str) -> None:
    """Its words and when to try again; a failure that lasts makes the delay grow."""
    intake = Intake(Store(failure), Metrics(), admission=Admission(len(ONE)))

    async def main() -> list[int]:
        delays = []
        for _ in range(6):
            with pytest.raises(expected, match=str(failure)) as refusal:
                await intake.take(TRACES, ONE)
            error: Any = refusal.value
            delays.append(error.retry_after_s)
            assert reason_of(error) == reason
        return delays

    delays = asyncio.run(main())
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (2, 30)
    assert intake.admission.held_bytes == 0


def test_a_request_above_the_limit() -> None:
    """Not parsed, not stored, not to be sent again."""
    store = Store()
    with pytest.raises(TooLargeError, match=f"got a request of {len(ONE)} bytes, expected at most 10"):
        asyncio.run(Intake(store, Metrics(), max_request_bytes=10).take(TRACES, ONE))
    assert store.taken == []


def test_large_requests_are_read_beside_the_loop() -> None:
    """The loop turns while 5 MiB are parsed."""
    intake = Intake(Store(), Metrics())
    request = traces(*(span(name="n" * 100) for _ in range(40_000)))

    async def main() -> int:
        turns = 0
        task = asyncio.create_task(intake.take(TRACES, request))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert task.result() == b""
        return turns

    assert len(request) > 5_000_000
    assert asyncio.run(main()) > 3


# -- headers --------------------------------------------------------------------------------------------------------


def test_only_listed_headers_travel() -> None:
    """Sorted, of str or bytes, repeated ones each."""
    intake = Intake(Store(), Metrics(), metadata_keys=frozenset({"x-tenant", "x-team"}))
    assert intake.metadata_of([("x-tenant", "b"), ("x-team", "z"), ("x-tenant", "a"), ("cookie", "secret")]) == (
        ("x-team", "z"),
        ("x-tenant", "a"),
        ("x-tenant", "b"),
    )
    assert intake.metadata_of([(b"x-tenant", b"b"), (b"cookie", b"\xff")]) == (("x-tenant", "b"),)
    assert Intake(Store(), Metrics()).metadata_of([("x-tenant", "b")]) == ()


def test_headers_that_cannot_travel_are_refused() -> None:
    """Too long, or not text: never cut, and the value is not told."""
    intake = Intake(Store(), Metrics(), metadata_keys=frozenset({"x-tenant"}))
    with pytest.raises(TooLargeError, match=f"got 8200 bytes, expected at most {MAX_METADATA_BYTES}"):
        intake.metadata_of([("x-tenant", "a" * 8192)])
    with pytest.raises(WireError, match="header x-tenant: got 6 characters, expected printable ASCII only") as refusal:
        intake.metadata_of([(b"x-tenant", b"secr\xc3\xa9")])
    assert "secr" not in str(refusal.value)


@pytest.mark.parametrize("key", ["x-bytes-bin", "X-Tenant", "", "a b", ":path", "grpc-timeout"])
def test_keys_that_cannot_travel_are_a_config_error(key: str) -> None:
    """-bin headers hold bytes, which the log's metadata does not."""
    with pytest.raises(ConfigError) as error:
        Intake(Store(), Metrics(), metadata_keys=frozenset({key, "x-fine"}))
    assert (error.value.key, error.value.got) == ("receiver.metadata_keys", key)
