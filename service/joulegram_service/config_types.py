"""The kinds of value a configuration key can have, each with the error that says what was expected."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

_UNITS_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})(B|KiB|MiB|GiB)", re.ASCII)
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", re.ASCII)


def _duration_ns(value: object) -> object:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration with a unit, as 500ms, 30s, 15m, 24h or 7d")
    return int(Decimal(match[1]) * _UNITS_NS[match[2]])


def _endpoint(value: object) -> object:
    match = _ENDPOINT.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) > 65_535:
        raise ValueError("host:port, as 127.0.0.1:4317 (port 0 takes a free one)")
    return value


def _upstream(value: object) -> object:
    if value is None:
        return None
    text = value if isinstance(value, str) else ""
    scheme, _, rest = text.partition("://")
    if scheme not in {"grpc", "http"} or _ENDPOINT.fullmatch(rest.rstrip("/").partition("/")[0]) is None:
        raise ValueError("grpc://host:port or http://host:port")
    return value


def _factor(value: object) -> object:
    # As text, so that what is recorded is what was written; YAML reads 0.4 as a number, and yes as one too.
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    if text is None:
        raise ValueError("a decimal number of kg/kWh, as 0.394")
    return text


def _size(value: object) -> object:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size with a unit, as 512KiB, 64MiB or 10GiB")
    return int(match[1]) << {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]


Duration = Annotated[int, BeforeValidator(_duration_ns)]
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
Size = Annotated[int, BeforeValidator(_size)]
Factor = Annotated[str, BeforeValidator(_factor)]
Upstream = Annotated[str | None, BeforeValidator(_upstream)]


class Section(BaseModel):
    """A mapping of the file; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
