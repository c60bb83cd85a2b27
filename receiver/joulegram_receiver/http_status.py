"""Refusals as OTLP/HTTP says them: a `google.rpc.Status` in the encoding of the request (H5)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import orjson
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2, error_details_pb2, status_pb2

from joulegram_receiver.intake_refusals import (
    MediaTypeError,
    OverloadError,
    SlowSenderError,
    TooLargeError,
    UndurableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_pipeline.errors import JoulegramError

_CODES = {
    400: code_pb2.INVALID_ARGUMENT,
    404: code_pb2.NOT_FOUND,
    405: code_pb2.UNIMPLEMENTED,
    408: code_pb2.DEADLINE_EXCEEDED,
    413: code_pb2.RESOURCE_EXHAUSTED,
    415: code_pb2.INVALID_ARGUMENT,
    431: code_pb2.RESOURCE_EXHAUSTED,
    500: code_pb2.INTERNAL,
    503: code_pb2.UNAVAILABLE,
}


class Encoding(Enum):
    """The two encodings of OTLP/HTTP (H2); the value is the media type."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"

    @property
    def header(self) -> tuple[bytes, bytes]:
        """As a response says it."""
        return b"content-type", self.value.encode()


def encoding_of(content_type: str) -> Encoding:
    """What a ``Content-Type`` names, whatever its parameters.

    Raises:
        MediaTypeError: neither of the two.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    try:
        return Encoding(media_type)
    except ValueError:
        expected = f"{Encoding.PROTOBUF.value} or {Encoding.JSON.value}"
        raise MediaTypeError(f"content-type: got {content_type[:80]!r}, expected {expected}") from None


def answer_encoding(headers: Iterable[tuple[bytes, bytes]]) -> Encoding:
    """In which encoding to answer a request that is refused: its own, and protobuf where it names none."""
    for name, value in headers:
        if name == b"content-type":
            try:
                return encoding_of(value.decode("latin-1"))
            except MediaTypeError:
                break
    return Encoding.PROTOBUF


def http_status(error: JoulegramError) -> int:
    """The status code of a refusal; what a client tries again is 503 and nothing else here (H7)."""
    if isinstance(error, (OverloadError, UndurableError)):
        return 503
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, MediaTypeError):
        return 415
    if isinstance(error, SlowSenderError):
        return 408
    return 400


def status_body(
    encoding: Encoding, status: int, text: str, *, field: str | None = None, retry_after_s: int | None = None
) -> bytes:
    """The body of a refusal.

    Args:
        encoding: of it.
        status: of HTTP.
        text: for people.
        field: what a BadRequest detail names (H6); no such detail if None.
        retry_after_s: what a RetryInfo detail says.
    """
    message: Any = status_pb2.Status(code=_CODES[status], message=text)
    if field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
        message.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if retry_after_s is not None:
        message.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_after_s))))
    if encoding is Encoding.JSON:
        return orjson.dumps(MessageToDict(message))
    encoded: bytes = message.SerializeToString()
    return encoded


def _packed(detail: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed
