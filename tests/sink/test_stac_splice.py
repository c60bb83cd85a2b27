from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import DocumentError
from joulegram_sink.json_splice import scan, set_member

VALUE = {"run_id": "etl-20260102T030405Z", "co2_kg": 0.004, "note": "Zürich", "roles": ["a"], "none": None}

_SPACES = st.sampled_from(["", " ", "\n", "\n  ", "\r\n\t", "   \n"])
_NUMBERS = st.sampled_from(["0", "-0", "1.0", "1.50", "1e3", "-2.5E-07", "12345678901234567890", "0.0000275"])
_STRINGS = st.sampled_from(['""', '"a"', '"\\u00e9"', '"\\/"', '"\\ud83d\\ude00"', '"\\ud800"', '"é"', '"{\\"[,:"'])
_LITERALS = st.sampled_from(["true", "false", "null"])


@st.composite
def json_text(draw: st.DrawFn, depth: int = 2) -> str:
    """Any JSON text: numbers, escapes and white space as a hand might write them."""
    kind = draw(st.integers(0, 4 if depth else 2))
    if kind < 3:
        return draw((_NUMBERS, _STRINGS, _LITERALS)[kind])
    if kind == 3:
        items = draw(st.lists(json_text(depth=depth - 1), max_size=3))
        return "[" + draw(_SPACES) + ",".join(draw(_SPACES) + item + draw(_SPACES) for item in items) + "]"
    keys = draw(st.lists(st.sampled_from(['"k"', '"\\u0061"', '"b:c"', '"type"']), unique=True, max_size=3))
    return draw(object_text([(key, draw(json_text(depth=depth - 1))) for key in keys]))


@st.composite
def object_text(draw: st.DrawFn, members: list[tuple[str, str]]) -> str:
    """An object of these members, with any white space wherever JSON allows it."""
    written = [f"{draw(_SPACES)}{key}{draw(_SPACES)}:{draw(_SPACES)}{value}{draw(_SPACES)}" for key, value in members]
    return "{" + (",".join(written) if written else draw(_SPACES)) + "}"


@st.composite
def around(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> tuple[str, str, str]:
    """A document and the object `properties` in it, as (before, object, after)."""
    others = [(f'"o{n}"', draw(json_text())) for n in range(draw(st.integers(0, 3)))]
    mark = "\x00"
    members = draw(st.permutations([*others, ('"properties"', mark)]))
    text = draw(st.sampled_from(["", "\ufeff"])) + draw(_SPACES) + draw(object_text(members)) + draw(_SPACES)
    before, _, after = text.partition(mark)
    return before, draw(inner), after


@st.composite
def own(draw: st.DrawFn) -> str:
    """An object that holds our member already, a mark in the place of its value."""
    others = [(f'"p{n}"', draw(json_text())) for n in range(draw(st.integers(0, 2)))]
    return draw(object_text(draw(st.permutations([*others, ('"telemetry"', "\x01")]))))


@st.composite
def foreign(draw: st.DrawFn) -> str:
    """An object without our member, empty ones too."""
    return draw(object_text([(f'"p{n}"', draw(json_text())) for n in range(draw(st.integers(0, 3)))]))


@given(around(foreign()))
def test_adding_a_member_is_a_pure_insertion(parts: tuple[str, str, str]) -> None:
    """S0-56, D-35: not one character of the document goes or moves; a second time changes nothing."""
    text = "".join(parts)
    patched = set_member(text, ("properties", "telemetry"), VALUE)
    assert _alike(text, patched) + _alike(text[::-1], patched[::-1]) >= len(text)
    assert json.loads(patched.removeprefix("\ufeff"))["properties"].pop("telemetry") == VALUE
    assert set_member(patched, ("properties", "telemetry"), VALUE) == patched


def _alike(one: str, other: str) -> int:
    """How many characters the two have in common from the start."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


@given(around(own()))
def test_replacing_a_member_replaces_its_value_alone(parts: tuple[str, str, str]) -> None:
    """D-39: the old value goes whole, whatever it was; before and after it every character stays."""
    before, inner, after = parts
    left, _, right = inner.partition("\x01")
    results = set()
    for old in ("null", '{"stale": [1, {"telemetry": 2}]}', '"}"'):
        patched = set_member(before + left + old + right + after, ("properties", "telemetry"), VALUE)
        assert patched.startswith(before + left)
        assert patched.endswith(right + after)
        middle = patched[len(before + left) : len(patched) - len(right + after)]
        assert json.loads(middle) == VALUE
        results.add(patched)
    assert len(results) == 1
    assert set_member(patched, ("properties", "telemetry"), VALUE) == patched


@given(json_text())
def test_the_scanner_accepts_what_json_is(text: str) -> None:
    """Every JSON text passes; a character cut off or put after it does not pass unless it is still JSON."""
    scan(text)
    for other in (text[:-1], text + ",", text + "}", "," + text):
        if not _is_json(other):
            with pytest.raises(DocumentError):
                scan(other)


@given(st.text(st.sampled_from('{}[]",:\\u0019eE+-. \ntrfalsn'), max_size=20))
def test_the_scanner_refuses_what_json_is_not(text: str) -> None:
    """It agrees with the standard library about any jumble of JSON's own characters."""
    if _is_json(text):
        scan(text)
    else:
        with pytest.raises(DocumentError, match="expected"):
            scan(text)


def _is_json(text: str) -> bool:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError(pairs)
        return dict(pairs)

    def none(text: str) -> float:
        raise ValueError(text)

    try:
        json.loads(text, object_pairs_hook=once, parse_constant=none)
    except ValueError:
        return False
    return True


BAD = {
    "nothing": "",
    "trailing comma": '{"a": 1,}',
    "comment": '{"a": 1} // x',
    "single quotes": "{'a': 1}",
    "two values": "{} {}",
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": -Infinity}',
    "leading zero": '{"a": 01}',
    "plus sign": '{"a": +1}',
    "bare fraction": '{"a": .5}',
    "hex": '{"a": 0x1}',
    "bad escape": '{"a": "\\x"}',
    "short escape": '{"a": "\\u12"}',
    "raw line feed in a string": '{"a": "\n"}',
    "string without end": '{"a": "x',
    "object without end": '{"a": 1',
    "array without end": "[1, 2",
    "array without comma": "[1 2]",
    "no colon": '{"a" 1}',
    "key twice": '{"a": 1, "a": 2}',
    "key twice by escape": '{"a": 1, "\\u0061": 2}',
    "key twice below": '{"x": [{"a": 1, "a": 2}]}',
    "nested without end": "[" * 100_000,
    "word": "nul",
    "two marks": "\ufeff\ufeff{}",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json_is_refused_with_its_place(name: str) -> None:
    """What is not JSON, or could be read in two ways, is never patched; line, text and expectation are quoted."""
    with pytest.raises(DocumentError, match=r"line \d+: got .*, expected "):
        scan(BAD[name])


LAYOUTS: dict[str, tuple[str, str]] = {
    "indent 2": (
        '{\n  "properties": {\n    "a": 1\n  }\n}\n',
        '{\n  "properties": {\n    "a": 1,\n    "t": {\n      "x": 1.5\n    }\n  }\n}\n',
    ),
    "indent 2, empty": (
        '{\n  "properties": {}\n}\n',
        '{\n  "properties": {\n    "t": {\n      "x": 1.5\n    }\n  }\n}\n',
    ),
    "indent 4, CRLF": (
        '{\r\n    "properties": {\r\n        "a": 1\r\n    }\r\n}\r\n',
        '{\n    "properties": {\n        "a": 1,\n        "t": {\n            "x": 1.5\n        }\n    }\n}\n'.replace(
            "\n", "\r\n"
        ),
    ),
    "tabs": (
        '{\n\t"properties": {\n\t}\n}',
        '{\n\t"properties": {\n\t\t"t": {\n\t\t\t"x": 1.5\n\t\t}\n\t}\n}',
    ),
    "compact": ('{"properties":{"a":1}}', '{"properties":{"a":1,"t":{"x":1.5}}}'),
    "one line": ('{"properties": {"a": 1}}', '{"properties": {"a": 1, "t": {"x": 1.5}}}'),
    "byte order mark": ('\ufeff{"properties":{}}', '\ufeff{"properties":{"t":{"x":1.5}}}'),
    "replaced": (
        '{\n  "properties": {"t": {"old": [1,\n2]}, "a": 1}\n}',
        '{\n  "properties": {"t": {"x": 1.5}, "a": 1}\n}',
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_added_looks_like_what_is_there(name: str) -> None:
    """Indentation, line ends and the space after colons follow the document."""
    text, expected = LAYOUTS[name]
    assert set_member(text, ("properties", "t"), {"x": 1.5}) == expected


def test_a_value_json_cannot_hold_is_refused() -> None:
    """NaN never reaches a document."""
    for text in ('{"p":{}}', '{\n"p":{}}'):
        with pytest.raises(DocumentError, match="a value JSON can hold"):
            set_member(text, ("p", "t"), float("nan"))
