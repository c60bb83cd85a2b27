"""The kinds of value a configuration key can have, each with the error that says what was expected.

Invariants:
    * nothing is imported to state a kind: pydantic, which applies the rules, comes with config_file.py alone, and a
      process that is given its configuration never has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNITS_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})(B|KiB|MiB|GiB)", re.ASCII)
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,128}", re.ASCII)
_CARRIED_NAME = re.compile(r"[a-z0-9._-]+", re.ASCII)
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#,]+", re.ASCII | re.IGNORECASE)
_SOCKET_PATH = re.compile(r"/[^/\0](?:[^\0]*[^/\0])?")
_MAX_UNIX_BYTES = 107
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Check:
    """A rule for what stands in the file, before it is taken for the type beside it.

    Args:
        rule: gives the value, or raises ValueError with what was expected.
    """

    rule: Callable[[object], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Called by pydantic (its documentation, "Custom types")."""
        from pydantic import BeforeValidator

        return BeforeValidator(self.rule).__get_pydantic_core_schema__(source, handler)


@dataclass(frozen=True)
class CheckAfter:
    """A rule for a value of the right type; otherwise as `Check`."""

    rule: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """As `Check`'s."""
        from pydantic import AfterValidator

        return AfterValidator(self.rule).__get_pydantic_core_schema__(source, handler)


@dataclass(frozen=True)
class CheckBeside:
    """A rule for a value beside those of the keys that stand before it in its section; otherwise as `CheckAfter`."""

    rule: Callable[[Any, Mapping[str, Any]], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """As `Check`'s."""
        from pydantic import AfterValidator

        def beside(value: Any, info: Any) -> object:
            return self.rule(value, info.data)

        return AfterValidator(beside).__get_pydantic_core_schema__(source, handler)


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


def _listen(value: object) -> object:
    if isinstance(value, str) and value.startswith("unix:"):
        path = value.removeprefix("unix:")
        path = path[2:] if path.startswith("///") else path
        if _SOCKET_PATH.fullmatch(path) is None or len(path.encode()) > _MAX_UNIX_BYTES:
            raise ValueError(
                f"unix: and an absolute path of {_MAX_UNIX_BYTES} bytes at most, as unix:/run/joulegram/otlp.sock"
            )
        return value
    try:
        return _endpoint(value)
    except ValueError as error:
        raise ValueError(f"{error}, or unix:/path") from None


def whole_number(low: int, high: int) -> Check:
    """A whole number, as text too, because a variable of the environment is one; never `yes`, which YAML makes True."""

    def check(value: object) -> object:
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if _WHOLE.fullmatch(text) is None or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return Check(check)


def _switch(value: object) -> object:
    known = {"true": True, "false": False}
    found = value if isinstance(value, bool) else known.get(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("true or false")
    return found


def _positive(value: object) -> object:
    found = _duration_ns(value)
    if found == 0:
        raise ValueError("a duration above 0")
    return found


def _path(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("a path of a file")
    return value


def _origin(value: object) -> object:
    if not isinstance(value, str) or _ORIGIN.fullmatch(value) is None:
        raise ValueError("an origin, as https://app.example.com, https://*.example.com or *")
    return value


def _header(value: object) -> object:
    if not isinstance(value, str) or _HEADER_NAME.fullmatch(value) is None:
        raise ValueError("the name of a header, as x-tenant")
    return value


def _any_header(value: object) -> object:
    return value if value == "*" else _header(value)


def _carried_header(value: object) -> object:
    name = str(_header(value)).lower()
    if _CARRIED_NAME.fullmatch(name) is None:
        raise ValueError("the name of a header of letters, digits, '-', '_' and '.', as gRPC takes them")
    if name in _SECRET_HEADERS:
        raise ValueError("a header that is no credential: what is carried is written to disk")
    if name.endswith("-bin") or name.startswith("grpc-"):
        raise ValueError("a header of text, which -bin is not, and not one of gRPC's own")
    return name


def _factor(value: object) -> object:
    # As text, so that what is recorded is what was written; YAML reads 0.4 as a number, and yes as one too.
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    if text is None:
        raise ValueError("a decimal number of kg/kWh, as 0.394")
    return text


def _host_id(value: str) -> str:
    if not value:
        raise ValueError("1 character at least")
    if len(value) > 128:
        raise ValueError("128 characters at most")
    return value


def _size(value: object) -> object:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size with a unit, as 512KiB, 64MiB or 10GiB")
    return int(match[1]) << {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]


def _positive_size(value: object) -> object:
    found = _size(value)
    if found == 0:
        raise ValueError("a size above 0")
    return found


Duration = Annotated[int, Check(_duration_ns)]
Endpoint = Annotated[str, Check(_endpoint)]
Listen = Annotated[str, Check(_listen)]
PositiveDuration = Annotated[int, Check(_positive)]
Switch = Annotated[bool, Check(_switch)]
FilePath = Annotated[Path, Check(_path)]
Origin = Annotated[str, Check(_origin)]
HeaderName = Annotated[str, Check(_header)]
AllowedHeader = Annotated[str, Check(_any_header)]
CarriedHeader = Annotated[str, Check(_carried_header)]
Count = Annotated[int, whole_number(1, 1_000_000)]
Mebibytes = Annotated[int, whole_number(1, 1024)]
Seconds = Annotated[int, whole_number(0, 86_400)]
Size = Annotated[int, Check(_size)]
PositiveSize = Annotated[int, Check(_positive_size)]
Factor = Annotated[str, Check(_factor)]
HostId = Annotated[str, CheckAfter(_host_id)]


@dataclass(frozen=True)
class Section:
    """A mapping of the file, a frozen dataclass; an unknown key in it is an error."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
