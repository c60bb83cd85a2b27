"""CORS for browsers that send OTLP/HTTP: the keys, and the meaning, of the Collector's confighttp.

Invariants:
    * no rules, no middleware: without allowed origins no answer differs;
    * a preflight is answered here, because a browser sends none of the job's headers with it, tokens included;
    * the origin that asked is named, never ``*``: answers are not for another one's cache, and say so in ``Vary``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
    """An ASGI application."""

_ALWAYS_ALLOWED = frozenset({"accept", "accept-language", "content-language", "content-type", "x-requested-with"})
"""The safelist of the Fetch standard, with what confighttp adds to it."""

_METHOD = b"POST"


@dataclass(frozen=True, slots=True)
class CorsRules:
    """Who may send from a browser.

    Args:
        allowed_origins: as ``https://app.example.com``; a ``*`` stands for any text, as in ``https://*.example.com``.
        allowed_headers: of requests, beside those that are always allowed; ``*`` is any.
        exposed_headers: of responses, that scripts may read.
        max_age_s: how long a browser may keep the answer to a preflight; 0 leaves it to the browser (5 s).
    """

    allowed_origins: tuple[str, ...]
    allowed_headers: tuple[str, ...] = ()
    exposed_headers: tuple[str, ...] = ()
    max_age_s: int = 0


def cors_app(app: App, rules: CorsRules) -> App:
    """An ASGI application that answers preflights, and lets allowed origins read what `app` answers.

    It goes around the check of tokens. A request of another origin is handed on as it came: without the headers of
    CORS its browser keeps the answer from the script, and would not have sent it after its preflight.
    """
    origins = [_pattern(origin) for origin in rules.allowed_origins]
    allowed_headers = _ALWAYS_ALLOWED | {header.lower() for header in rules.allowed_headers}
    exposed = ", ".join(rules.exposed_headers).encode()

    def granted(origin: bytes) -> list[tuple[bytes, bytes]]:
        text = origin.decode("latin-1")
        if not any(pattern.fullmatch(text) for pattern in origins):
            return []
        # navigator.sendBeacon, which the JS exporter uses, always asks for credentials to be allowed.
        return [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]

    def preflight(asked: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        wanted = asked.get(b"access-control-request-headers", b"")
        names = {name.strip().lower() for name in wanted.decode("latin-1").split(",")} - {""}
        headers = granted(asked[b"origin"])
        if (
            not headers
            or asked[b"access-control-request-method"] != _METHOD
            or not ("*" in allowed_headers or names <= allowed_headers)
        ):
            return []
        headers.append((b"access-control-allow-methods", _METHOD))
        if names:
            headers.append((b"access-control-allow-headers", ", ".join(sorted(names)).encode("latin-1")))
        if rules.max_age_s:
            headers.append((b"access-control-max-age", str(rules.max_age_s).encode()))
        return headers

    async def answering(scope: dict[str, Any], receive: Any, send: Any) -> None:
        asked = dict(scope["headers"]) if scope["type"] == "http" else {}
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and _is_preflight(asked):
            vary = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
            headers = [*preflight(asked), (b"vary", vary)]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if b"origin" not in asked:
            await app(scope, receive, send)
            return
        more = granted(asked[b"origin"])
        if more and exposed:
            more.append((b"access-control-expose-headers", exposed))
        more.append((b"vary", b"Origin"))

        async def send_with(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *more]}
            await send(message)

        await app(scope, receive, send_with)

    return answering


def _is_preflight(asked: dict[bytes, bytes]) -> bool:
    return b"origin" in asked and b"access-control-request-method" in asked


def _pattern(origin: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in origin.split("*")), re.IGNORECASE)
