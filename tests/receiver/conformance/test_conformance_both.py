"""OTLP 1.11, what holds on both transports: rows A1 to A11 of the otlp reference, section 1.1, seen on the wire."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import zstandard
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from receiver.conformance.hop import Hop, one_span, with_fields
from simulators.decoded import attributes, spans
from simulators.otlp_server import OtlpServer
from simulators.protobuf import field, varint
from simulators.receivers import BY_NAME, JSON, requests
from simulators.sidecar import Serve, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1024 * 1024


def attribute(key: str, value: AnyValue) -> bytes:
    """An attribute as a field of a span."""
    return field(9, KeyValue(key=key, value=value).SerializeToString())


# -- A1: compression -------------------------------------------------------------------------------------------------

CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "gzip of two members": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a01_grpc_takes_none_and_gzip(hop: Hop, compression: grpc.Compression) -> None:
    """A1, MUST: what went in compressed leaves as the bytes it was."""
    request = one_span(f"a01 grpc {compression.name}")
    assert hop.export(request, compression=compression) == b""
    hop.forwards(request)


@pytest.mark.parametrize("name", CODINGS)
def test_a01_http_takes_none_and_gzip_and_two_more(hop: Hop, name: str) -> None:
    """A1, MUST; zstd and deflate although the standard does not ask."""
    request = one_span(f"a01 http {name}")
    coding = "" if name == "none" else name.split(maxsplit=1)[0]
    assert hop.post(CODINGS[name](request), content_encoding=coding).status == 200
    hop.forwards(request)


# -- A2, A3: sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_a02_the_limit_is_64_mib_before_and_after_decompression(hop: Hop, over: str) -> None:
    """A2, MUST: the recommended default, to the byte; one byte more is refused in either form."""
    limit = 64 * MIB
    request = field(1, field(2003, bytes(limit - 11)))
    assert len(request) == limit
    if over == "http":
        assert hop.post(gzip.compress(request, 1), "logs", content_encoding="gzip").status == 200
        assert hop.post(request + b"\0", "logs").status == 413
        assert hop.post(gzip.compress(request + b"\0", 1), "logs", content_encoding="gzip").status == 413
        return
    assert hop.export(request, "logs", compression=grpc.Compression.Gzip) == b""
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with pytest.raises(grpc.RpcError) as refusal:
            hop.export(request + b"\0", "logs", compression=compression)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_a03_a_response_is_cut_to_4_mib(hop: Hop, over: str) -> None:
    """A3, MUST: `error_message` is shortened first; here it would quote three ids of a megabyte each, in hex."""
    request = one_span("etl.a03", trace_id=b"t" * MIB) * 3
    response = hop.export(request) if over == "grpc" else hop.post(request).body
    assert 4 * MIB - 8 < len(response) <= 4 * MIB
    assert ExportTraceServiceResponse.FromString(response).partial_success.error_message


# -- A4, A5, A6: what a response says --------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", BY_NAME)
def test_a04_an_empty_request_succeeds(hop: Hop, signal: str) -> None:
    """A4, SHOULD: on either transport and in either encoding."""
    assert hop.export(b"", signal) == b""
    assert (hop.post(b"", signal).status, hop.post(b"", signal).body) == (200, b"")
    assert (hop.post(b"{}", signal, JSON).status, hop.post(b"{}", signal, JSON).body) == (200, b"{}")


@pytest.mark.parametrize("signal", BY_NAME)
def test_a05_full_success_leaves_partial_success_unset(hop: Hop, signal: str) -> None:
    """A5, MUST: no byte of an answer, and no key of one in JSON."""
    request = requests()[signal]
    assert hop.export(request, signal) == b""
    assert hop.post(request, signal).body == b""
    empty = json.dumps({f"resource{signal.title()}".replace("Traces", "Spans"): [{}]}).encode()
    assert hop.post(empty, signal, JSON).body == b"{}"


def test_a06_a_warning_is_partial_success_with_nothing_rejected(hop: Hop) -> None:
    """A6: 200 or OK, a count that is exact (0: all travel on), an English message; alike on both transports."""
    request = one_span("etl.a06", trace_id=bytes(16))
    response = hop.export(request)
    found = ExportTraceServiceResponse.FromString(response)
    assert found.HasField("partial_success")
    assert found.partial_success.rejected_spans == 0
    assert 'span "etl.a06": trace id all zero' in found.partial_success.error_message
    answer = hop.post(request)
    assert (answer.status, answer.body) == (200, response)
    hop.forwards(request, times=2)


# -- A7, A8: what is forwarded ---------------------------------------------------------------------------------------

VALUES = {
    "no value": AnyValue(),
    "an empty string": AnyValue(string_value=""),
    "bytes": AnyValue(bytes_value=b"\x00\xff"),
    "an array in an array": AnyValue(
        array_value=ArrayValue(values=[AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=-1)]))])
    ),
    "a list of pairs": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(bool_value=True))])),
    "not a number": AnyValue(double_value=float("nan")),
}


@pytest.mark.parametrize("name", ["a07", "etl.a07"], ids=["not joined", "joined"])
def test_a07_any_value_may_be_an_attribute(hop: Hop, name: str) -> None:
    """A7: all of AnyValue, since 1.9.0, on spans that are joined too."""
    for number, (what, value) in enumerate(VALUES.items(), 1):
        assert hop.export(with_fields(one_span(f"{name} {what}", number), attribute("k", value))) == b""
    for what, value in VALUES.items():
        span = hop.forwarded(f"{name} {what}")
        assert span.attributes[0].SerializeToString() == KeyValue(key="k", value=value).SerializeToString()
        assert (len(span.attributes) > 1) == name.startswith("etl.")


@pytest.mark.parametrize("name", ["a07 index", "etl.a07 index"], ids=["not joined", "joined"])
def test_a07_indices_of_profiles_are_not_fatal(hop: Hop, name: str) -> None:
    """A7: `key_strindex` and `string_value_strindex` stand where they should not, and travel on."""
    indices = field(2, b"\x40\x07") + b"\x18\x05"
    assert hop.export(with_fields(one_span(name), field(9, indices))) == b""
    assert hop.forwarded(name).attributes[0].SerializeToString() == indices


NEW = field(4000, b"new") + varint(4001 << 3) + b"\x05" + varint(4002 << 3 | 1) + bytes(8)


@pytest.mark.parametrize("name", ["a08", "etl.a08"], ids=["not joined", "joined"])
def test_a08_unknown_fields_travel_on(hop: Hop, name: str) -> None:
    """A8: at each level, field 1000 (the old instrumentation library) and the high bits of both flags among them.

    What a joined span gains stands at its end, and all else is as it came.
    """
    span = with_fields(one_span(name, flags=0xFFFFFD01), field(13, b"\x35\x00\xff\xff\xff") + NEW)
    scope = span[4:] + field(1000, field(1, b"old")) + NEW
    request = field(1, field(2, scope) + NEW) + NEW
    assert hop.export(request) == b""
    hop.forwarded(name)
    sent = next(body for signal, body in hop.upstream.taken if signal == "traces" and name.encode() in body)
    assert scope[len(span) - 4 :] + NEW + NEW in sent
    assert ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans[0].flags == 0xFFFFFD01
    content = span[6:]
    assert content in sent
    if not name.startswith("etl."):
        hop.forwards(request)


# -- A9, A10: acknowledgements ---------------------------------------------------------------------------------------


def test_a09_what_comes_twice_is_taken_twice(hop: Hop) -> None:
    """A9: at least once; a span that is joined is counted and forwarded once all the same."""
    plain, joined = one_span("a09 plain"), one_span("etl.a09")
    for request in (plain, joined, joined, plain):
        assert hop.export(request) == b""
    hop.forwards(plain, times=2)
    hop.forwarded("etl.a09")
    assert hop.export(one_span("etl.a09 later")) == b""
    hop.forwarded("etl.a09 later")
    assert [span.name for span in spans(hop.upstream)].count("etl.a09") == 1


def test_a09_a_receipt_is_of_this_hop_alone(tmp_path: Path) -> None:
    """A9: acknowledged while the upstream takes nothing, and delivered when it does."""
    down = True

    def judge(signal: str, request: bytes) -> grpc.StatusCode | None:
        return grpc.StatusCode.UNAVAILABLE if down else None

    with (
        OtlpServer(judge=judge) as upstream,
        Serve(tmp_path, "--source=none", f"--upstream=grpc://127.0.0.1:{upstream.port}") as serve,
    ):
        hop = Hop(serve.wait_ready(), upstream)
        request = one_span("a09 down")
        assert hop.export(request) == b""
        upstream.wait_for(lambda server: server.calls > 1)
        assert upstream.taken == []
        down = False
        hop.forwards(request)
        hop.channel.close()


def test_a10_each_destination_has_its_own_queue(tmp_path: Path) -> None:
    """A10: one that takes nothing does not keep another waiting."""
    config = tmp_path / "two.yaml"
    with OtlpServer() as good, OtlpServer(judge=lambda *_: grpc.StatusCode.UNAVAILABLE) as bad:
        text = f"upstream:\n  destinations:\n    bad: {{endpoint: 'grpc://127.0.0.1:{bad.port}'}}\n"
        config.write_text(text + f"    good: {{endpoint: 'grpc://127.0.0.1:{good.port}'}}\n")
        with Serve(tmp_path, f"--config={config}", "--source=none") as serve:
            hop = Hop(serve.wait_ready(), good)
            for number in range(3):
                request = one_span("a10", number + 1)
                assert hop.export(request) == b""
                hop.forwards(request)
            bad.wait_for(lambda server: server.calls > 1)
            empty = 'forward_backlog_bytes{{destination="{}"}} 0.0'
            wait_until(lambda: empty.format("good") in serve.get("/metrics")[1], "the good one has all")
            assert empty.format("bad") not in serve.get("/metrics")[1]
            hop.channel.close()


# -- A11: what a span should be --------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a trace id of zeros": ({"trace_id": bytes(16)}, "trace id all zero"),
    "a trace id of 8 bytes": ({"trace_id": b"t" * 8}, "trace id of the wrong length"),
    "a span id of zeros": ({"span_id": bytes(8)}, "span id all zero"),
    "no span id": ({"span_id": b""}, "span id of the wrong length"),
    "an end before its start": ({"start_time_unix_nano": 30}, "ends before it starts"),
}


@pytest.mark.parametrize(("fields", "text"), BROKEN.values(), ids=BROKEN.keys())
def test_a11_what_is_not_a_span_is_said_and_travels_on_unjoined(hop: Hop, fields: dict[str, Any], text: str) -> None:
    """A11: named in the answer, forwarded byte for byte, and not joined."""
    request = one_span(f"etl.a11 {text}", **fields)
    assert text in ExportTraceServiceResponse.FromString(hop.export(request)).partial_success.error_message
    hop.forwards(request)


def test_a11_a_name_may_be_empty(hop: Hop) -> None:
    """A11: allowed, and selected by an attribute like any other."""
    request = with_fields(
        one_span("", trace_id=b"a11a11a11a11a11!"), attribute("kfm.node", AnyValue(string_value="load"))
    )
    assert hop.export(request) == b""
    hop.upstream.wait_for(lambda server: any(span.trace_id == b"a11a11a11a11a11!" for span in spans(server)))
    (span,) = [span for span in spans(hop.upstream) if span.trace_id == b"a11a11a11a11a11!"]
    assert attributes(span)["energy.method"] == "unavailable"


def test_a11_no_key_of_ours_stands_twice(hop: Hop) -> None:
    """A11: what a client sent under our keys is replaced, even where a key stands twice; its own stays as it is."""
    spoofed = AnyValue(double_value=-1.0)
    ours = ("carbon.gco2e", "carbon.gco2e", "carbon.table", "energy.method", "energy.reason", "timing.duration_s")
    more = b"".join(attribute(key, spoofed) for key in (*ours, "mine", "mine"))
    assert hop.export(with_fields(one_span("etl.a11 spoofed"), more)) == b""
    span = hop.forwarded("etl.a11 spoofed")
    keys = [pair.key for pair in span.attributes]
    assert keys.count("mine") == 2
    assert len(set(keys)) == len(keys) - 1
    found = attributes(span)
    assert found["energy.method"] == "unavailable"
    assert found["timing.duration_s"] == pytest.approx(1e-8)
    assert -1.0 not in [found[key] for key in found if key != "mine"]


def test_a11_a_spoofed_key_on_a_span_that_is_not_joined_is_not_ours_to_touch(hop: Hop) -> None:
    """A11, design section 10: forwarded telemetry is the user's; what we do not join we do not change."""
    request = with_fields(one_span("a11 theirs"), attribute("carbon.gco2e", AnyValue(double_value=-1.0)))
    assert hop.export(request) == b""
    hop.forwards(request)
