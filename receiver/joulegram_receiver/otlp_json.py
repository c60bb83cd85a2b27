"""OTLP as JSON (H9): what came becomes the protobuf message it stands for, and messages become OTLP JSON.

OTLP JSON is not the JSON of protobuf: ids are hex, enums are integers only, names are lowerCamelCase only, and what is
unknown is ignored. Both directions are driven by the descriptors, so that they know every field there is.

Invariants:
    * what is refused is refused with the path to it, as ``resourceSpans[0].scopeSpans[0].spans[3].traceId``;
    * a number that does not fit its field is refused, never cut;
    * `from_otlp_json` of `to_otlp_json` is the message, but for fields that its descriptor does not know: JSON has no
      place for them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any, Final

import orjson
from google.protobuf.descriptor import FieldDescriptor

from joulegram_pipeline.errors import WireError
from joulegram_receiver.intake_refusals import TooLargeError

MAX_DEPTH: Final = 100
"""Of messages in messages: what protobuf parsers take, so that whoever reads the request next can."""

MAX_VALUES: Final = 4_000_000
"""Of one document. A value takes up to 100 bytes in memory, whatever it takes as text."""

_HEX_FIELDS: Final = {"trace_id": 32, "span_id": 16, "parent_span_id": 16, "profile_id": 32}
_SHOWN: Final = 40
_SHOWN_PATH: Final = 200
_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_REAL = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_NAMED_REALS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_Kind = FieldDescriptor
_SIGNED_32: Final = frozenset({_Kind.TYPE_INT32, _Kind.TYPE_SINT32, _Kind.TYPE_SFIXED32})
_UNSIGNED_32: Final = frozenset({_Kind.TYPE_UINT32, _Kind.TYPE_FIXED32})
_SIGNED_64: Final = frozenset({_Kind.TYPE_INT64, _Kind.TYPE_SINT64, _Kind.TYPE_SFIXED64})
_UNSIGNED_64: Final = frozenset({_Kind.TYPE_UINT64, _Kind.TYPE_FIXED64})
_REALS: Final = frozenset({_Kind.TYPE_DOUBLE, _Kind.TYPE_FLOAT})

_Convert = Callable[[Any, int], Any]
"""A JSON value and the depth it stands at, to what the message is made with."""


class JsonError(WireError):
    """A JSON document is not the OTLP it claims to be.

    Args:
        field: the path to what is wrong, empty for the document; a long one has its middle left out.
        problem: what was got and what was expected.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field if len(field) <= _SHOWN_PATH else f"{field[: _SHOWN_PATH // 2]}…{field[-_SHOWN_PATH // 2 :]}"
        self.problem = problem
        super().__init__(f"{self.field}: {problem}" if field else problem)


class _Fault(Exception):  # noqa: N818 - it never leaves this file
    """What is wrong, and on its way out, where: the innermost part of the path first."""

    def __init__(self, got: Any, expected: str) -> None:
        super().__init__()
        shown = repr(got) if isinstance(got, (str, int, float, bool, type(None))) else f"a JSON {_json_type(got)}"
        self.problem = f"got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}, expected {expected}"
        self.path: list[str] = []

    def where(self) -> str:
        return "".join(reversed(self.path)).removeprefix(".")


def from_otlp_json(document: bytes, kind: Any) -> Any:
    """The message of type `kind` that a JSON document stands for.

    Raises:
        JsonError: it is not one.
        TooLargeError: it has more values than may be held in memory.
    """
    # Every value but the first of its array or object stands behind a comma.
    values = document.count(b",") + document.count(b"{") + document.count(b"[")
    if values > MAX_VALUES:
        raise TooLargeError(f"got a JSON document of up to {values} values, expected at most {MAX_VALUES}")
    try:
        tree = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise JsonError("", f"got {len(document)} bytes that are not JSON ({error}), expected a JSON object") from error
    try:
        return kind(**_reader(kind.DESCRIPTOR)(tree, 0))
    except _Fault as fault:
        raise JsonError(fault.where(), fault.problem) from None


def to_otlp_json(message: Any) -> dict[str, Any]:
    """A message as the tree of its OTLP JSON; `orjson.dumps` makes it text."""
    tree: dict[str, Any] = {}
    for field, value in message.ListFields():
        write = _writer(field)
        tree[field.json_name] = [write(item) for item in value] if field.is_repeated else write(value)
    return tree


# -- reading --------------------------------------------------------------------------------------------------------

_READERS: dict[str, _Convert] = {}


def _reader(descriptor: Any) -> _Convert:
    """What reads a message of this type; made once."""
    known = _READERS.get(descriptor.full_name)
    if known is not None:
        return known
    fields: dict[str, tuple[str, _Convert, str | None]] = {}

    def read(value: Any, depth: int) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Fault(value, "a JSON object")
        if depth > MAX_DEPTH:
            raise _Fault(value, f"at most {MAX_DEPTH} messages in each other")
        found: dict[str, Any] = {}
        chosen: dict[str, str] | None = None
        for name, item in value.items():
            known_field = fields.get(name)
            if known_field is None or item is None:
                continue
            key, convert, oneof = known_field
            if oneof is not None:
                chosen = chosen or {}
                if oneof in chosen:
                    raise _Fault(value, f"one of {chosen[oneof]} and {name}")
                chosen[oneof] = name
            try:
                found[key] = convert(item, depth)
            except _Fault as fault:
                fault.path.append(f".{name}")
                raise
        return found

    # Before its fields are known, because a message may hold itself.
    _READERS[descriptor.full_name] = read
    for field in descriptor.fields:
        oneof = field.containing_oneof
        convert = _scalar(field)
        several = field.is_repeated
        fields[field.json_name] = (field.name, _each(convert) if several else convert, oneof and oneof.full_name)
    return read


def _each(convert: _Convert) -> _Convert:
    def read(value: Any, depth: int) -> list[Any]:
        if type(value) is not list:
            raise _Fault(value, "a JSON array")
        found: list[Any] = []
        try:
            found.extend(convert(item, depth) for item in value)
        except _Fault as fault:
            fault.path.append(f"[{len(found)}]")
            raise
        return found

    return read


def _scalar(field: Any) -> _Convert:
    """What reads one value of a field."""
    kind = field.type
    if kind == _Kind.TYPE_MESSAGE:
        inner = _reader(field.message_type)
        return lambda value, depth: inner(value, depth + 1)
    if kind == _Kind.TYPE_STRING:
        return _string
    if kind == _Kind.TYPE_BYTES:
        return _hex(_HEX_FIELDS[field.name]) if field.name in _HEX_FIELDS else _base64
    if kind == _Kind.TYPE_BOOL:
        return _bool
    if kind == _Kind.TYPE_ENUM:
        return _enum
    if kind in _REALS:
        return _real
    bits = 32 if kind in _SIGNED_32 or kind in _UNSIGNED_32 else 64
    return _integer(bits, signed=kind in _SIGNED_32 or kind in _SIGNED_64)


def _string(value: Any, _depth: int) -> str:
    if type(value) is not str:
        raise _Fault(value, "a string")
    return value


def _bool(value: Any, _depth: int) -> bool:
    if type(value) is not bool:
        raise _Fault(value, "true or false")
    return value


def _enum(value: Any, _depth: int) -> int:
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise _Fault(value, "an integer (enums have no names in OTLP JSON)")
    return value


def _integer(bits: int, *, signed: bool) -> _Convert:
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1 if signed else bits)) - 1
    expected = f"an integer from {low} to {high}, as a number or a decimal string"

    def read(value: Any, _depth: int) -> int:
        number: Any = value
        if type(value) is str:
            number = int(value) if _DECIMAL.fullmatch(value) else None
        elif type(value) is float and value.is_integer():
            number = int(value)
        if type(number) is not int or not low <= number <= high:
            raise _Fault(value, expected)
        return number

    return read


def _real(value: Any, _depth: int) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is str:
        if value in _NAMED_REALS:
            return _NAMED_REALS[value]
        if _REAL.fullmatch(value) and math.isfinite(number := float(value)):
            return number
    raise _Fault(value, "a number, or NaN, Infinity or -Infinity as a string")


def _hex(digits: int) -> _Convert:
    def read(value: Any, _depth: int) -> bytes:
        if type(value) is str:
            try:
                return binascii.unhexlify(value)
            except ValueError:
                pass
        raise _Fault(value, f"{digits} hex digits")

    return read


def _base64(value: Any, _depth: int) -> bytes:
    if type(value) is str:
        plain = value.replace("-", "+").replace("_", "/")
        if _BASE64.fullmatch(plain):
            try:
                return base64.b64decode(plain.rstrip("=") + "=" * (-len(plain.rstrip("=")) % 4), validate=True)
            except ValueError:
                pass
    raise _Fault(value, "base64")


def _json_type(value: Any) -> str:
    return "array" if isinstance(value, list) else "object"


# -- writing --------------------------------------------------------------------------------------------------------

_WRITERS: dict[str, Callable[[Any], Any]] = {}


def _writer(field: Any) -> Callable[[Any], Any]:
    """What writes one value of a field; made once."""
    known = _WRITERS.get(field.full_name)
    if known is None:
        known = _WRITERS[field.full_name] = _make_writer(field)
    return known


def _make_writer(field: Any) -> Callable[[Any], Any]:
    kind = field.type
    if kind == _Kind.TYPE_MESSAGE:
        return to_otlp_json
    if kind == _Kind.TYPE_BYTES:
        return bytes.hex if field.name in _HEX_FIELDS else lambda value: base64.b64encode(value).decode()
    if kind in _SIGNED_64 or kind in _UNSIGNED_64:
        return str
    if kind in _REALS:
        return _write_real
    return lambda value: value


def _write_real(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
