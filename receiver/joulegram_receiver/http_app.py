"""OTLP/HTTP as an ASGI application: one port, four paths, protobuf and JSON (H1-H10)."""

from __future__ import annotations

import asyncio
import gzip
import logging
from typing import TYPE_CHECKING, Any

import orjson

from joulegram_pipeline.errors import JoulegramError, WireError
from joulegram_receiver.http_body import decoder_for, read_body
from joulegram_receiver.http_status import Encoding, answer_encoding, encoding_of, http_status, status_body
from joulegram_receiver.intake_refusals import SenderGoneError, TooLargeError
from joulegram_receiver.otlp_json import from_otlp_json, to_otlp_json
from joulegram_receiver.senders import came_from_afar
from joulegram_receiver.signals import BY_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from joulegram_receiver.intake import Intake
    from joulegram_receiver.signals import Signal

log = logging.getLogger(__name__)

_GZIP_ABOVE_BYTES = 512
"""A shorter response is not worth the compressing."""

_THREAD_BYTES = 1024 * 1024
"""A JSON document above this is read beside the event loop."""

Headers = list[tuple[bytes, bytes]]


class OtlpApp:
    """The application.

    Args:
        intake: where requests go.
        body_timeout_s: how long a body may take to come.
    """

    def __init__(self, intake: Intake, body_timeout_s: float) -> None:
        self._intake = intake
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers: Headers = scope["headers"]
        signal = BY_PATH.get(scope["path"])
        if signal is None:
            text = f"path: got {scope['path'][:80]!r}, expected one of {', '.join(BY_PATH)}"
            await _refuse(send, headers, 404, text)
            return
        if scope["method"] != "POST":
            text = f"method: got {scope['method']}, expected POST"
            await _refuse(send, headers, 405, text, more=[(b"allow", b"POST")])
            return
        try:
            encoding = encoding_of(_header(headers, b"content-type"))
            afar = came_from_afar(scope.get("client"), scope.get("server"))
            response = await self._take(signal, encoding, headers, receive, afar=afar)
        except JoulegramError as error:
            self._intake.count_refusal(signal, error)
            if not isinstance(error, SenderGoneError):
                await _explain(send, headers, error)
        except Exception as error:
            # One request that breaks us must not silence the sidecar; what it held is not said.
            log.exception("a %s request broke the receiver", signal.name)
            await _refuse(send, headers, 500, f"internal error: {type(error).__name__}")
        else:
            await _send(send, headers, 200, [encoding.header], response)

    async def _take(self, signal: Signal, encoding: Encoding, headers: Headers, receive: Any, *, afar: bool) -> bytes:
        """Read, take, and encode the answer."""
        intake = self._intake
        decoder = decoder_for(_header(headers, b"content-encoding"))
        metadata = intake.metadata_of(headers, afar=afar)
        max_bytes = intake.max_request_bytes
        announced = _header(headers, b"content-length")
        if announced and int(announced) > max_bytes:  # the parser of HTTP saw to it that it is a number
            raise TooLargeError(f"content-length: got {announced}, expected at most {max_bytes}")
        intake.admission.check(int(announced or 0))
        with intake.admission.enter(0) as hold:
            body = await read_body(receive, decoder, hold, max_bytes=max_bytes, timeout_s=self._body_timeout_s)
            if encoding is Encoding.JSON:
                if len(body) > _THREAD_BYTES:
                    body = await asyncio.to_thread(_from_json, body, signal)
                else:
                    body = _from_json(body, signal)
            response = await intake.take_held(signal, body, metadata, hold)
        if encoding is Encoding.JSON:
            return orjson.dumps(to_otlp_json(signal.response.FromString(response))) if response else b"{}"
        return response


def _from_json(document: bytes, signal: Signal) -> bytes:
    """The protobuf bytes of a JSON request."""
    encoded: bytes = from_otlp_json(document, signal.request).SerializeToString()
    return encoded


def _header(headers: Headers, name: bytes) -> str:
    """The value of a header, empty where it is absent; several are one list, as HTTP has it."""
    values = [value.decode("latin-1") for key, value in headers if key == name]
    return values[0] if len(values) == 1 else ", ".join(values)


async def _explain(send: Any, headers: Headers, error: JoulegramError) -> None:
    """Answer a refusal."""
    retry_after_s: int | None = getattr(error, "retry_after_s", None)
    more = [] if retry_after_s is None else [(b"retry-after", str(retry_after_s).encode())]
    field = getattr(error, "field", "") if isinstance(error, WireError) else None
    await _refuse(send, headers, http_status(error), str(error), field=field, retry_after_s=retry_after_s, more=more)


async def _refuse(
    send: Any,
    headers: Headers,
    status: int,
    text: str,
    *,
    field: str | None = None,
    retry_after_s: int | None = None,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    encoding = answer_encoding(headers)
    body = status_body(encoding, status, text, field=field, retry_after_s=retry_after_s)
    await _send(send, headers, status, [encoding.header, *more], body)


async def _send(send: Any, asked: Headers, status: int, headers: Headers, body: bytes) -> None:
    """Send a response, compressed where its size asks for it and the client takes it (H3)."""
    if len(body) > _GZIP_ABOVE_BYTES and _takes_gzip(_header(asked, b"accept-encoding")):
        body = gzip.compress(body, 6)
        headers = [*headers, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _takes_gzip(accept_encoding: str) -> bool:
    for item in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in item.split(";"))
        if coding in {"gzip", "x-gzip", "*"}:
            weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
            return weight.strip("0.") != ""
    return False
