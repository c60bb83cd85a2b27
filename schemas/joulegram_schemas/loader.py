"""Loads the schemas beside this file and validates against them, offline.

Invariants:
    * no reference leaves this folder: the registry holds these files and has no way to fetch others;
    * `jsonschema` is imported on first use, never by importing this module.

`SchemaError` lives here and not in the error tree of joulegram_pipeline: this is the lowest floor and knows
no other.
"""

from __future__ import annotations

import functools
import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

NAMES: tuple[str, ...] = (
    "agent-protocol-v1",
    "ledger-line-v1",
    "otel-energy-span-v1",
    "telemetry-prov-v1",
    "telemetry-rollup-v1",
)
"""The schemas there are; each is the file of that name with ``.json``."""

_FOLDER = Path(__file__).parent
_QUOTE_CHARS = 200
_DATE_TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


class SchemaError(Exception):
    """An instance is not what its schema asks for, or the schema asked for does not exist.

    Args:
        path: where in the instance, as ``$.energy.method``; ``$`` is the whole of it.
        got: the value that stood there.
        expected: what may stand there.
    """

    def __init__(self, path: str, got: object, expected: str) -> None:
        self.path = path
        self.got = got
        self.expected = expected
        quoted = repr(got)
        if len(quoted) > _QUOTE_CHARS:
            quoted = quoted[:_QUOTE_CHARS] + "…"
        super().__init__(f"{path}: got {quoted}, expected {expected}")


def schema(name: str) -> dict[str, Any]:
    """A schema by its name, as a dict of the caller's own.

    Raises:
        SchemaError: there is no schema of that name.
    """
    if name not in NAMES:
        raise SchemaError("schema", name, f"one of {', '.join(NAMES)}")
    loaded: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """The validator of a schema, formats checked; built once.

    Raises:
        SchemaError: there is no schema of that name.
    """
    from jsonschema import Draft202012Validator, FormatChecker  # noqa: PLC0415  (65 ms; only validation pays)
    from referencing import Registry  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    wanted = schema(name)
    resources = [(f"urn:joulegram:schema:{each}", DRAFT202012.create_resource(schema(each))) for each in NAMES]
    formats = FormatChecker(formats=())
    formats.checks("date-time")(_is_date_time)
    registry: Any = Registry().with_resources(resources)
    return Draft202012Validator(wanted, registry=registry, format_checker=formats)


def validate(name: str, instance: object) -> None:
    """Check an instance against a schema.

    Raises:
        SchemaError: with the path of what is wrong, the value there and what the schema expects.
    """
    from jsonschema.exceptions import best_match  # noqa: PLC0415

    error = best_match(validator(name).iter_errors(instance))
    if error is not None:
        raise SchemaError(error.json_path, error.instance, _expected(error))


def _expected(error: ValidationError) -> str:
    rule = json.dumps(error.validator_value, ensure_ascii=False)
    if len(rule) > _QUOTE_CHARS:
        rule = rule[:_QUOTE_CHARS] + "…"
    return f"{error.validator} {rule}"


def _is_date_time(value: object) -> bool:
    # Text alone: `type` refuses the rest, and a format never speaks for another type (JSON Schema 2020-12,
    # 7.2).
    if not isinstance(value, str):
        return True
    match = _DATE_TIME.fullmatch(value)
    if match is None:
        return False
    date, hms, offset = match.groups()
    try:
        datetime.fromisoformat(f"{date}T{hms}{'+00:00' if offset in 'Zz' else offset}")
    except ValueError:
        return False
    return True
