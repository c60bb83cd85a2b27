"""The schema of the agent's protocol: what it takes, and that each of its rules keeps something out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from joulegram_agent.protocol import OPS
from joulegram_schemas import schema, validate
from simulators.agent_lines import FULL, SCHEMA, Json, examples, part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.exceptions import ValidationError

RULES = ("type", "const", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "maxItems", "anyOf")
REPLACEMENTS: list[Any] = [
    None,
    True,
    False,
    "",
    "x",
    "x" * 65,
    "UPPER: x",
    "1" * 20,
    -1,
    0,
    1.5,
    2,
    2**31,
    2**53,
    -(2**53),
    [],
    {},
    [1] * 1025,
    {"é/": 1},
    {"1" * 11: 1},
]

Rule = tuple[int, str, str]
"""Of which node, by its identity, which keyword, and of `required` which name."""


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place; what lies beside its path is shared."""
    if not at:
        return new
    out = copy.copy(value)
    out[at[0]] = changed(value[at[0]], at[1:], new)
    return out


def mutants(value: Json) -> Iterator[Any]:
    """The value with one thing wrong, or perhaps not."""
    for at in paths(value):
        for new in REPLACEMENTS:
            yield changed(value, at, new)
        inner = value
        for key in at:
            inner = inner[key]
        if isinstance(inner, dict):
            yield changed(value, at, {**inner, "key of nobody": 1})
            for key in inner:
                yield changed(value, at, {other: inner[other] for other in inner if other != key})


def rules(node: Any) -> Iterator[tuple[Rule, str]]:
    """Every rule of a schema, with its path for people."""
    for at in paths(node):
        here = node
        for key in at:
            here = here[key]
        if not isinstance(here, dict) or (at and at[-1] in {"properties", "$defs"}):
            continue
        for name in RULES:
            if name in here:
                yield (id(here), name, ""), f"{'/'.join(map(str, at))}/{name}"
        if here.get("additionalProperties") is False:
            yield (id(here), "additionalProperties", ""), f"{'/'.join(map(str, at))}/additionalProperties"
        for name in here.get("required", ()):
            yield (id(here), "required", name), f"{'/'.join(map(str, at))}/required/{name}"


def kept_out_by(error: ValidationError) -> Iterator[Rule]:
    """The rules each of which alone, taken away, would let this in."""
    wanted: Any = error.validator_value if error.validator == "required" else []
    held: Any = error.instance
    missing = [name for name in wanted if name not in held]
    yield id(error.schema), str(error.validator), missing[0] if missing else ""
    branches: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    for errors in branches.values():
        if len(errors) == 1:
            yield from kept_out_by(errors[0])


def test_each_rule_keeps_something_out() -> None:
    """For every rule there is a line with one thing wrong that this rule, and no other, refuses."""
    loaded = schema(SCHEMA)
    needed: set[Rule] = set()
    for name, full in FULL.items():
        judge = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": loaded["$defs"]})
        for mutant in mutants(full):
            errors = list(judge.iter_errors(mutant))
            if len(errors) == 1:
                needed.update(kept_out_by(errors[0]))
    assert [where for rule, where in rules(loaded["$defs"]) if rule not in needed] == []


@pytest.mark.parametrize("name", FULL)
def test_every_value_is_looked_at(name: str) -> None:
    """A line that has all its keys passes, and no value in it can be just anything."""
    assert part(name).is_valid(FULL[name])
    for at in paths(FULL[name]):
        wrong = [new for new in REPLACEMENTS if not part(name).is_valid(changed(FULL[name], at, new))]
        assert wrong, at


def test_the_full_lines_have_every_key_of_the_schema() -> None:
    """No key of the schema is left out of the tests above."""
    parts = schema(SCHEMA)["$defs"]
    known = {key for at in paths(parts) if at[-1:] == ("properties",) for key in _at(parts, at)}
    assert (
        known
        == {key for full in FULL.values() for at in paths(full) for key in at[-1:] if isinstance(key, str)} & known
    )


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_a_line_is_one_of_four_things() -> None:
    """Requests, answers, refusals and events pass as lines; a bare result does not."""
    for name, full in FULL.items():
        assert part("request").is_valid(full) == name.endswith("_request")
        if name.endswith("_result"):
            validate(SCHEMA, {"v": 1, "id": None, "ok": True, "result": full})
        else:
            validate(SCHEMA, full)


def test_the_schema_knows_the_ops_of_the_program() -> None:
    """Each op has a request and a result, and hello may name it."""
    parts = schema(SCHEMA)["$defs"]
    assert {name.removesuffix("_request") for name in parts if name.endswith("_request")} == set(OPS)
    assert {name.removesuffix("_result") for name in parts if name.endswith("_result")} == set(OPS)
    assert parts["hello_result"]["properties"]["capabilities"]["properties"]["ops"]["items"]["enum"] == list(OPS)


def test_the_examples_of_the_page_pass() -> None:
    """docs/agent-protocol.md: every line shown is valid, but for the request that is shown to be refused."""
    shown = examples()
    assert len(shown) > 2 * len(OPS)
    refused = [line for line in shown if line.get("op") == "reset"]
    assert [part("request").is_valid(line) for line in refused] == [False]
    for line in shown:
        if line not in refused:
            validate(SCHEMA, line)
