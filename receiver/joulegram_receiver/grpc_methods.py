"""What a gRPC server offers: methods of one request and one answer, and methods of streams; and how each refuses."""

from __future__ import annotations

import re
from binascii import b2a_base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from joulegram_pipeline.errors import PermanentError
from joulegram_pipeline.http2_frames import header_block
from joulegram_receiver.admission import Admission
from joulegram_receiver.intake_refusals import (
    MediaTypeError,
    OverloadError,
    SlowSenderError,
    TooLargeError,
    UndurableError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from joulegram_pipeline.errors import JoulegramError
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.http2_head import Head

_UNSAFE = re.compile(rb"[^\x20-\x24\x26-\x7e]+")
_MAX_MESSAGE_BYTES = 4096
"""Of a status message; what quotes a request may be long, and clients limit what they read of trailers."""

_TALKS_BYTES = 64 * 1024 * 1024
"""Of all calls of a method of streams."""

_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"gzip,deflate,zstd"))
ANSWER_BLOCK = header_block(_HEAD)
"""The head of an answer that has a message."""

OK_BLOCK = header_block(((b"grpc-status", b"0"),))
"""The trailers of one that went well."""


class CallRefusedError(PermanentError):
    """A call is answered with a status and no message.

    Args:
        code: of google.rpc.Code.
        text: for whoever reads it.
        details: a google.rpc.Status, encoded; None where the code says all.
        reason: it is counted under.
    """

    def __init__(self, code: int, text: str, details: bytes | None = None, reason: str = "malformed") -> None:
        self.code = code
        self.details = details
        self.reason = reason
        super().__init__(text)


class Talk(Protocol):
    """A call of streams, as its method sees it."""

    async def receive(self) -> bytes | None:
        """The next message; None behind the last."""

    async def send(self, message: bytes) -> None:
        """Send a message, once the client reads."""


def _nothing(error: JoulegramError) -> None:
    """Of a method that counts no refusals."""
    del error


@dataclass(frozen=True, slots=True)
class Unary:
    """A method of one message and one answer.

    Args:
        answer: given the message, the call's header fields and what it holds; raises JoulegramError to refuse.
        refused: told of each refusal, also of those made before the message was whole.
        admission: what its messages are held in while they come.
        max_bytes: a larger message is refused, before and after decompression; None leaves that to the server.
    """

    answer: Callable[[bytes, Head, Hold], Awaitable[bytes]]
    refused: Callable[[JoulegramError], None] = _nothing
    admission: Admission = field(default_factory=Admission)
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method of any number of messages and answers; `serve` may raise JoulegramError to refuse.

    Args:
        serve: handles one call.
        admission: each call holds in it, while it lasts, all that it may have unread.
    """

    serve: Callable[[Talk], Awaitable[None]]
    admission: Admission = field(default_factory=lambda: Admission(_TALKS_BYTES))


Method: TypeAlias = Unary | Streaming


def failure() -> CallRefusedError:
    """INTERNAL: a defect of ours, whose words are for the log and not for strangers."""
    return CallRefusedError(code_pb2.INTERNAL, "the receiver failed; its log says why", reason="failed")


def refusal_of(error: JoulegramError) -> CallRefusedError:
    """An error in the words of gRPC (otlp reference 1.2).

    Without RetryInfo a client does not send again what would be refused again.
    """
    if isinstance(error, CallRefusedError):
        return error
    if isinstance(error, (OverloadError, UndurableError)):
        return unavailable(str(error), error.retry_after_s)
    if isinstance(error, TooLargeError):
        return CallRefusedError(code_pb2.RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, SlowSenderError):
        return CallRefusedError(code_pb2.DEADLINE_EXCEEDED, str(error))
    if isinstance(error, MediaTypeError):
        return CallRefusedError(code_pb2.UNIMPLEMENTED, str(error))
    return CallRefusedError(code_pb2.INVALID_ARGUMENT, str(error))


def unavailable(text: str, retry_after_s: int) -> CallRefusedError:
    """UNAVAILABLE with RetryInfo, what OTLP clients try again after."""
    details = AnyMessage()
    details.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_after_s)))
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message=text, details=[details])
    return CallRefusedError(code_pb2.UNAVAILABLE, text, status.SerializeToString())


def refusal_block(refusal: CallRefusedError, *, begun: bool) -> bytes:
    """The trailers of a refusal; with the head of the answer in them where that was not sent (Trailers-Only)."""
    pairs = [] if begun else list(_HEAD)
    pairs += [(b"grpc-status", b"%d" % refusal.code), (b"grpc-message", _percent(str(refusal)))]
    if refusal.details is not None:
        pairs.append((b"grpc-status-details-bin", b2a_base64(refusal.details, newline=False).rstrip(b"=")))
    return header_block(pairs)


def _percent(text: str) -> bytes:
    """As gRPC's HTTP/2 protocol encodes a status message."""
    return _UNSAFE.sub(lambda found: b"%" + found[0].hex("%").upper().encode(), text.encode()[:_MAX_MESSAGE_BYTES])
