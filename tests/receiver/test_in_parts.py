"""A large request that is checked in pieces: the same verdict as of the whole, beside the loop, a little at a time."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest

from joulegram_pipeline.errors import WireError
from joulegram_pipeline.metrics import Metrics
from joulegram_receiver import in_parts
from joulegram_receiver.intake import Intake
from joulegram_receiver.signals import LOGS, METRICS, PROFILES
from joulegram_receiver.spool import Spool
from simulators.protobuf import field

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_receiver.signals import Signal


def logs(records: int, size: int = 20) -> bytes:
    """A request of so many records with a text of so many bytes."""
    message = ExportLogsServiceRequest()
    scope = message.resource_logs.add().scope_logs.add()
    for number in range(records):
        record = scope.log_records.add(time_unix_nano=number, severity_text="né")
        record.body.string_value = "x" * size
        record.attributes.add(key="k").value.kvlist_value.values.add(key="é").value.double_value = 1.5
    return bytes(message.SerializeToString())


def metrics(count: int) -> bytes:
    message = ExportMetricsServiceRequest()
    scope = message.resource_metrics.add().scope_metrics.add()
    for number in range(count):
        point = scope.metrics.add(name="né").histogram.data_points.add(count=number)
        point.bucket_counts.extend(range(20))
    return bytes(message.SerializeToString())


def profiles(count: int, of: int = 1) -> bytes:
    message = ExportProfilesServiceRequest()
    message.dictionary.string_table.extend(["", *(f"né{number}" for number in range(count))])
    for _ in range(of):
        message.resource_profiles.add().scope_profiles.add().profiles.add(profile_id=b"p" * 16)
    return bytes(message.SerializeToString())


REQUESTS: dict[str, tuple[Signal, bytes]] = {
    "logs": (LOGS, logs(8)),
    "metrics": (METRICS, metrics(8)),
    "profiles": (PROFILES, profiles(30)),
    "a dictionary alone": (PROFILES, profiles(30, of=0)),
    "unknown fields": (LOGS, field(1900, b"\xff" * 100) + logs(2) + field(1900, b"")),
    "unknown fields alone": (LOGS, field(1900, b"\xff" * 300)),
}


def verdict(signal: Signal, payload: bytes) -> bool | str:
    """Of the whole: whether it holds something, or the refusal's words."""
    try:
        return bool(getattr(signal.parse(payload), signal.envelope))
    except WireError as error:
        return str(error)


def verdict_in_parts(signal: Signal, payload: bytes, piece_bytes: int) -> bool | str:
    try:
        return in_parts.holds_something(signal, payload, piece_bytes)
    except WireError as error:
        return str(error)


@pytest.mark.parametrize("piece_bytes", [1, 16, 64, 1 << 20])
@pytest.mark.parametrize("case", REQUESTS)
def test_the_verdict_is_that_of_the_whole(case: str, piece_bytes: int) -> None:
    """As it is, and with bytes changed, cut or doubled at random."""
    signal, whole = REQUESTS[case]
    assert verdict_in_parts(signal, whole, piece_bytes) == verdict(signal, whole)
    chance = random.Random(case)
    refused = 0
    for _ in range(300):
        payload = bytearray(whole)
        for _ in range(chance.randrange(1, 3)):
            at = chance.randrange(len(payload))
            match chance.randrange(3):
                case 0:
                    payload[at] = chance.randrange(256)
                case 1:
                    del payload[at : at + chance.randrange(1, 9)]
                case _:
                    payload[at:at] = payload[at : at + 9]
            payload = payload or bytearray(whole)
        expected = verdict(signal, bytes(payload))
        refused += isinstance(expected, str)
        assert verdict_in_parts(signal, bytes(payload), piece_bytes) == expected, bytes(payload).hex()
    assert 0 < refused < 300


def deep(levels: int) -> bytes:
    """A request whose first metric has a value in so many arrays, in front of others."""
    value = field(1, b"x")
    for _ in range(levels):
        value = field(5, field(1, value))
    metric = field(2, field(1, b"m") + field(12, field(1, b"k") + field(2, value)))
    return field(1, field(2, metric + field(2, field(2, b"d" * 500)) * 3))


def test_what_nests_too_deep_does_so_in_parts_too() -> None:
    """Protobuf takes a hundred levels: what the upstream could not parse is refused here, however it was checked."""
    verdicts = [verdict(METRICS, deep(levels)) for levels in range(40, 52)]
    assert {type(each) for each in verdicts} == {bool, str}
    for piece_bytes in (16, 256, 1024):
        assert [verdict_in_parts(METRICS, deep(levels), piece_bytes) for levels in range(40, 52)] == verdicts


LARGE: dict[str, tuple[Signal, bytes]] = {
    "logs": (LOGS, logs(40_000, 100)),
    "metrics": (METRICS, metrics(40_000)),
    "profiles": (PROFILES, profiles(500_000)),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_large_request_is_parsed_beside_the_loop_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """No signal is parsed by the event loop above 4 MiB, nor at once: protobuf does not let go of the interpreter."""
    signal, payload = LARGE[case]
    parsed: list[tuple[bool, int]] = []
    parse = in_parts.parse

    def told(kind: Any, piece: bytes) -> Any:
        parsed.append((threading.current_thread() is threading.main_thread(), len(piece)))
        return parse(kind, piece)

    monkeypatch.setattr(in_parts, "parse", told)

    async def main() -> None:
        async with Spool(tmp_path, Metrics()) as spool:
            assert await Intake(spool, Metrics()).take(signal, payload) == b""
            assert [record.payload for record in spool.read(0, 1 << 30)] == [payload]

    asyncio.run(main())
    assert len(payload) > 4 * 1024 * 1024
    assert not any(on_loop for on_loop, _ in parsed)
    assert max(size for _, size in parsed) < 2 * in_parts.PIECE_BYTES
    assert sum(size for _, size in parsed) > 0.9 * len(payload)
