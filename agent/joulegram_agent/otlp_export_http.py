"""One POST of OTLP/HTTP (opentelemetry-proto docs/specification.md, OTLP/HTTP), by asyncio's streams alone.

Invariants:
    * one request a connection; the answer is bounded in size, and the whole in time by the caller;
    * redirects are not followed: what is measured goes where it was told to, or nowhere.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  (asyncio imports it late, when privileges to read it may be gone)
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from joulegram_pipeline.errors import ConfigError, UpstreamError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

DEFAULT_PORT = 4318
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r)")
_EXPECTED = "a URL such as http://127.0.0.1:4318, without user, query or fragment"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to post.

    Args:
        host: name or address, without brackets.
        port: of it.
        path: with ``/v1/metrics`` at its end.
        tls: whether to speak TLS, with the machine's authorities.
    """

    host: str
    port: int
    path: str
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args:
        status: of HTTP.
        headers: lower-case names.
        body: empty where its length was not stated, or is above `MAX_BODY_BYTES`.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def target_of(flag: str, text: str) -> Target:
    """Read an endpoint; ``/v1/metrics`` is put at the end of its path.

    Raises:
        ConfigError: no URL, or one with parts that have no meaning here.
    """
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
        (host or "").encode("idna")  # as a look-up will, and for what that imports: see above
    except ValueError as error:  # UnicodeError is one
        raise ConfigError(flag, text, _EXPECTED) from error
    odd = url.username is not None or url.query or url.fragment or not text.isascii() or re.search(r"\s", text)
    if url.scheme not in {"http", "https"} or not host or odd:
        raise ConfigError(flag, text, _EXPECTED)
    path = url.path.rstrip("/") + "/v1/metrics"
    return Target(host, DEFAULT_PORT if port is None else port, path, url.scheme == "https")


async def post(target: Target, body: bytes, tls: ssl.SSLContext | None = None) -> Reply:
    """Send a JSON body.

    Raises:
        UpstreamError: no connection, or an answer that is none of HTTP/1.1.
    """
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port, ssl=tls, limit=MAX_HEAD_BYTES)
    except OSError as error:  # ssl.SSLError is one
        raise UpstreamError(f"{target}: {error.strerror or error}") from error
    try:
        host = f"{target}".split("/")[2]
        head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nUser-Agent: joulegram-agent\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode("ascii") + body)
        await writer.drain()
        return await _reply(target, reader)
    except OSError as error:
        raise UpstreamError(f"{target}: {error.strerror or error}") from error
    finally:
        writer.transport.abort()


async def _reply(target: Target, reader: asyncio.StreamReader) -> Reply:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise UpstreamError(f"{target}: got no head of an answer of HTTP/1.1: {error}") from error
    status = _STATUS.match(head)
    if status is None:
        raise UpstreamError(f"{target}: got {head[:60]!r}, expected an answer of HTTP/1.1")
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    headers = {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, _, value in fields if name}
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MAX_BODY_BYTES):
        return Reply(int(status[1]), headers, b"")
    try:
        return Reply(int(status[1]), headers, await reader.readexactly(int(length)))
    except asyncio.IncompleteReadError as error:
        raise UpstreamError(f"{target}: got {len(error.partial)} bytes, expected {length}") from error
