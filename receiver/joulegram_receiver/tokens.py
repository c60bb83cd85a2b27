"""Bearer tokens: who has none of them is refused before the body is read.

Invariants:
    * a token is compared with every known one, in a time that does not depend on where they differ;
    * no token is in a log, an error, a metric or a repr: of the file only digests stay in memory;
    * what is refused is told the same whether a method exists or not.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import TYPE_CHECKING, Any

from google.rpc import code_pb2, status_pb2

from joulegram_pipeline.errors import ConfigError
from joulegram_receiver.grpc_methods import CallRefusedError
from joulegram_receiver.tls import Followed, warn_if_world_readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from joulegram_pipeline.metrics import Metrics
    from joulegram_receiver.http2_head import Head

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
    """An ASGI application."""

_TOKEN = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750 section 2.1, b64token."""

_HEADER = re.compile(rb"bearer +([A-Za-z0-9\-._~+/]+=*) *", re.IGNORECASE)
_CHALLENGE = b'Bearer realm="joulegram"'
_OPEN_METHODS = frozenset({b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"})
"""What probes ask: whether this serves, which any who connects can tell."""

_SIGNALS = (("trace", "traces"), ("metrics", "metrics"), ("logs", "logs"), ("profiles", "profiles"))


class TokenFile:
    """The bearer tokens of a file, followed: one a line, empty lines and those that begin with ``#`` aside.

    A new version that is empty, broken or gone leaves the tokens before it in force, so that a file caught half
    written locks nobody out; whoever wants to let nobody in writes one token that nobody knows.

    Args:
        path: the file; one that every user can read is warned of.
        key: of the configuration, for messages, as ``receiver.protocols.grpc.auth.bearer_token_file``.
        reload_interval_s: how long the file is not looked at again.
        on_failure: called once for each new version that cannot be used.

    Raises:
        ConfigError: the file cannot be read, has no token, or a line is none; quotes path and line number.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        reload_interval_s: float = 1.0,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._followed = Followed([path], lambda: _read(path, key), reload_interval_s, on_failure)

    def refusal(self, authorizations: Iterable[bytes | str]) -> str | None:
        """Why a request may not come in, in words for its sender; None where it may.

        Args:
            authorizations: the values of its ``authorization`` headers.
        """
        values = [value.encode() if isinstance(value, str) else value for value in authorizations]
        if not values:
            return "got no authorization header, expected 'authorization: Bearer <token>'"
        match = _HEADER.fullmatch(values[0]) if len(values) == 1 else None
        if match is None:
            return "got an authorization header of another form, expected one 'authorization: Bearer <token>'"
        digest = hashlib.sha256(match[1]).digest()
        known = False
        for each in self._followed.current():
            known |= hmac.compare_digest(digest, each)
        return None if known else "got a bearer token that is not known here, expected one of this receiver's"


def bearer_calls(tokens: TokenFile, metrics: Metrics) -> Callable[[Head], CallRefusedError | None]:
    """What lets gRPC calls in: UNAUTHENTICATED for those without a known token, health checks aside.

    Args:
        tokens: those known.
        metrics: refused_requests, reason ``unauthenticated``.
    """

    def authorize(head: Head) -> CallRefusedError | None:
        if head.path in _OPEN_METHODS:
            return None
        refusal = tokens.refusal(value for key, value in head.fields if key == b"authorization")
        if refusal is None:
            return None
        metrics.refuse(_signal(head.path.decode("latin-1")), "unauthenticated")
        return CallRefusedError(code_pb2.UNAUTHENTICATED, refusal)

    return authorize


def bearer_app(app: App, tokens: TokenFile, metrics: Metrics) -> App:
    """An ASGI application that answers 401 for requests without a known token, and hands the others to `app`.

    The body is a google.rpc.Status in the request's encoding (H5), protobuf where that is none of the two.
    """

    async def guarded(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        refusal = tokens.refusal(value for name, value in scope["headers"] if name == b"authorization")
        if refusal is None:
            await app(scope, receive, send)
            return
        metrics.refuse(_signal(scope["path"]), "unauthenticated")
        kind, body = _status(dict(scope["headers"]).get(b"content-type", b""), refusal)
        given = any(name == b"authorization" for name, _ in scope["headers"])
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"www-authenticate", _CHALLENGE + (b', error="invalid_token"' if given else b"")),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return guarded


def _read(path: Path, key: str) -> tuple[bytes, ...]:
    try:
        lines = path.read_bytes().splitlines()
        warn_if_world_readable(path, key)
    except OSError as error:
        raise ConfigError(key, str(path), f"a readable file of bearer tokens ({error.strerror or error})") from error
    digests: list[bytes] = []
    for number, line in enumerate(lines, 1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if _TOKEN.fullmatch(token) is None:
            raise ConfigError(
                f"{key}, line {number}",
                f"{len(token)} characters of {path!s}",
                "one bearer token: letters, digits, -._~+/ and = at its end (RFC 6750)",
            )
        digests.append(hashlib.sha256(token).digest())
    if not digests:
        raise ConfigError(key, str(path), "a file with one bearer token at least, each on a line of its own")
    return tuple(dict.fromkeys(digests))


def _signal(path: str) -> str:
    return next((signal for word, signal in _SIGNALS if word in path), "unknown")


def _status(content_type: bytes, text: str) -> tuple[bytes, bytes]:
    if content_type.partition(b";")[0].strip().lower() == b"application/json":
        return b"application/json", json.dumps({"code": code_pb2.UNAUTHENTICATED, "message": text}).encode()
    status = status_pb2.Status(code=code_pb2.UNAUTHENTICATED, message=text)
    return b"application/x-protobuf", status.SerializeToString()
