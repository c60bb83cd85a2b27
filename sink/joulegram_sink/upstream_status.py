"""How a gRPC call ended, from its answer ("gRPC over HTTP2", "HTTP to gRPC Status Code Mapping")."""

from __future__ import annotations

import binascii
import contextlib
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from google.rpc import code_pb2

from joulegram_pipeline.http2_frames import Code

if TYPE_CHECKING:
    from joulegram_sink.upstream_call import Response

MESSAGE_PREFIX = struct.Struct(">BL")
"""Of a message: whether it is compressed, and its length."""

_OF_HTTP = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
_OF_RESET = {
    Code.REFUSED_STREAM: "UNAVAILABLE",
    Code.CANCEL: "CANCELLED",
    Code.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    Code.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}
_NAMES = {number: name for name, number in code_pb2.Code.items()}
_GZIP_OR_ZLIB = 47
_SHOWN_BYTES = 200


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended.

    Args:
        code: its name, of google.rpc.Code.
        message: the server's words.
        why: ours, where it did not say how the call ended.
        details: a google.rpc.Status as bytes, None without one.
    """

    code: str
    message: str = ""
    why: str = ""
    details: bytes | None = None


def status_of(response: Response) -> Status:
    """What the server said of a call, or what follows from how it said nothing."""
    fields = dict(response.trailers or response.head)
    if response.reset is not None:
        with contextlib.suppress(ValueError):
            code = Code(response.reset)
            return Status(
                _OF_RESET.get(code, "INTERNAL"), why=f"the server ended the call with RST_STREAM ({code.name})"
            )
        return Status("INTERNAL", why=f"the server ended the call with RST_STREAM ({response.reset})")
    said = fields.get(b"grpc-status")
    if said is None:
        return _without_status(response)
    number = int(said) if said.isdigit() and len(said) <= 3 else -1
    message = unquote_to_bytes(fields.get(b"grpc-message", b"")).decode("utf-8", "replace")
    details = _details(fields.get(b"grpc-status-details-bin", b""))
    return Status(_NAMES.get(number, "UNKNOWN"), message, details=details)


def message_of(response: Response) -> bytes:
    """The message of an answer, empty where it cannot be read: what the status says is said."""
    body = response.body
    if len(body) < MESSAGE_PREFIX.size:
        return b""
    is_compressed, size = MESSAGE_PREFIX.unpack_from(body)
    message = bytes(body[MESSAGE_PREFIX.size : MESSAGE_PREFIX.size + size])
    if not is_compressed:
        return message
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(message, response.max_bytes)
    return b""


def _without_status(response: Response) -> Status:
    code = _OF_HTTP.get(response.http_status, "UNKNOWN")
    if response.http_status == 200 and dict(response.head).get(b"content-type", b"").startswith(b"application/grpc"):
        return Status(code, why="the answer ended without grpc-status")
    begins = bytes(response.body[:_SHOWN_BYTES]).decode("utf-8", "replace")
    return Status(code, begins, f"HTTP {response.http_status} instead of an answer of gRPC")


def _details(text: bytes) -> bytes | None:
    """Of base64, with or without its padding; the first where several were joined."""
    first = text.partition(b",")[0].rstrip(b"=")
    if not first:
        return None
    with contextlib.suppress(binascii.Error):
        return binascii.a2b_base64(first + b"=" * (-len(first) % 4))
    return None
