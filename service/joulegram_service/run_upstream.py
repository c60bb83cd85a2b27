"""Where `joulegram run` forwards to by itself: where the command would have sent, so that nobody misses anything."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import ValidationError

from joulegram_service.config_file import validated
from joulegram_service.config_upstream import UpstreamConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
_TLS = {
    "ca_file": "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "cert_file": "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "key_file": "OTEL_EXPORTER_OTLP_CLIENT_KEY",
}
_SCHEMES = {("grpc", "http"): "grpc", ("grpc", "https"): "grpcs", ("http", "http"): "http", ("http", "https"): "https"}


def implied_upstream(environ: Mapping[str, str]) -> UpstreamConfig | None:
    """The destination that OTEL_EXPORTER_OTLP_ENDPOINT and the variables beside it name; None where there is none.

    One that cannot be used is told on stderr: the run is then recorded and not forwarded.
    """
    endpoint = environ.get(ENDPOINT, "")
    if not endpoint:
        return None
    scheme, _, rest = endpoint.partition("://")
    family = "grpc" if environ.get(PROTOCOL, "grpc") == "grpc" else "http"
    to = _SCHEMES.get((family, scheme.lower()))
    if to is None:
        _not_forwarded(endpoint, "http://host:port or https://host")
        return None
    one: dict[str, Any] = {"endpoint": f"{to}://{rest.rstrip('/')}", "headers": _headers(environ.get(_HEADERS, ""))}
    if to in {"grpcs", "https"}:
        one["tls"] = {key: environ[name] for key, name in _TLS.items() if environ.get(name)}
    try:
        return validated(UpstreamConfig, {"destinations": {"upstream": one}})
    except ValidationError as error:
        fault = error.errors()[0]
        # What a header says is shown nowhere.
        if "headers" in fault["loc"]:
            _not_forwarded(f"{_HEADERS}", "key=value pairs with the names of headers")
        else:
            _not_forwarded(endpoint, str(fault["msg"]).removeprefix("Value error, "))
        return None


def _headers(text: str) -> dict[str, str]:
    """``k=v,k=v`` with values percent-encoded (OpenTelemetry specification, exporter configuration)."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair.strip())
    return {key.strip(): unquote(value.strip()) for key, _, value in pairs}


def _not_forwarded(got: str, expected: str) -> None:
    sys.stderr.write(
        f"joulegram: {ENDPOINT}: got {got!r}, expected {expected}; this run is recorded here and not forwarded\n"
    )
