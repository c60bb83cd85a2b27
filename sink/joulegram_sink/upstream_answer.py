"""What an upstream's answer means for the data, whichever transport brought it (OTLP 1.11: A5, A6, H7)."""

from __future__ import annotations

import contextlib
import math
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from joulegram_pipeline.records import RecordKind

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""What OTLP 1.11 recommends a client to take."""

MAX_ASKED_WAIT_S = 3600.0
"""An upstream that asks for more is asked again after this."""

_MAX_TEXT = 500
_PACKAGE = "opentelemetry.proto.collector"
# Servers say it in different codes and words; tonic's OUT_OF_RANGE would otherwise be tried again for ever.
_TOO_LARGE = re.compile(r"too large|larger than|too big|message exceeds|size limit|maximum size", re.IGNORECASE)


class Verdict(Enum):
    """What becomes of the data that was sent."""

    TAKEN = "taken"
    RETRY = "retry"
    SPLIT = "split"
    """Refused, perhaps for one request in it: halves are tried; a single request is refused."""
    TOO_LARGE = "too large"
    """Refused for its size: halves are tried, of a single request too."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the upstream said.

    Args:
        verdict: what follows.
        text: its code, or why there was no answer, in words of ours: they may be logged.
        said: its own words, those of a partial success too; they may quote the data, which belongs in no log.
        rejected: items it left out of data it took.
        retry_after_s: how long it asked to wait, None if it did not.
        timed_out: whether there was no answer in time, perhaps because the batch is large for the link.
    """

    verdict: Verdict
    text: str = ""
    said: str = ""
    rejected: int = 0
    retry_after_s: float | None = None
    timed_out: bool = False

    @property
    def reason(self) -> str:
        """All of it, for a file that is its owner's alone."""
        return f"{self.text}: {self.said}" if self.said else self.text


@dataclass(frozen=True, slots=True)
class Signal:
    """How a signal is called by each transport.

    Args:
        name: ``traces`` and so on.
        rpc: method of gRPC.
        path: of HTTP.
        response: its message.
        rejected: the field of `partial_success` that counts.
        can_be_joined: whether the concatenation of two requests is the request of both.
    """

    name: str
    rpc: str
    path: str
    response: Any
    rejected: str
    can_be_joined: bool = True


SIGNALS: dict[RecordKind, Signal] = {
    RecordKind.TRACES: Signal(
        "traces",
        f"/{_PACKAGE}.trace.v1.TraceService/Export",
        "/v1/traces",
        ExportTraceServiceResponse,
        "rejected_spans",
    ),
    RecordKind.METRICS: Signal(
        "metrics",
        f"/{_PACKAGE}.metrics.v1.MetricsService/Export",
        "/v1/metrics",
        ExportMetricsServiceResponse,
        "rejected_data_points",
    ),
    RecordKind.LOGS: Signal(
        "logs",
        f"/{_PACKAGE}.logs.v1.LogsService/Export",
        "/v1/logs",
        ExportLogsServiceResponse,
        "rejected_log_records",
    ),
    # A request's profiles point into its own dictionary; joined, two dictionaries would be merged into a wrong one.
    RecordKind.PROFILES: Signal(
        "profiles",
        f"/{_PACKAGE}.profiles.v1development.ProfilesService/Export",
        "/v1development/profiles",
        ExportProfilesServiceResponse,
        "rejected_profiles",
        can_be_joined=False,
    ),
}


def taken(kind: RecordKind, response: bytes) -> Answer:
    """The answer of a success, with what its `partial_success` says (A5, A6)."""
    signal = SIGNALS[kind]
    try:
        partial = signal.response.FromString(response).partial_success
    except DecodeError:
        # It said success; an answer we cannot read does not make the data less taken.
        return Answer(Verdict.TAKEN)
    return Answer(Verdict.TAKEN, said=shortened(partial.error_message), rejected=getattr(partial, signal.rejected))


def means_too_large(text: str) -> bool:
    """Whether a refusal speaks of size."""
    return _TOO_LARGE.search(text) is not None


def shortened(text: str) -> str:
    """What is kept of an upstream's words."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def retry_info_s(details: bytes) -> float | None:
    """The delay of the RetryInfo in a google.rpc.Status, None without one."""
    with contextlib.suppress(DecodeError):
        for detail in status_pb2.Status.FromString(details).details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return _bounded(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None


def retry_after_s(header: str | None) -> float | None:
    """Seconds, or an HTTP date (RFC 9110); None where there is neither (H7)."""
    if header is None:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if header.strip().isdecimal():
            return _bounded(float(header))
        return _bounded(math.ceil(parsedate_to_datetime(header).timestamp() - time.time()))
    return None


def status_message(body: bytes) -> str:
    """The message of the google.rpc.Status an OTLP server answers with, else the body's beginning."""
    with contextlib.suppress(DecodeError):
        message = status_pb2.Status.FromString(body).message
        if message:
            return shortened(str(message))
    return body[:200].decode("utf-8", "replace")


def _bounded(wait_s: float) -> float:
    return min(max(0.0, wait_s), MAX_ASKED_WAIT_S)
