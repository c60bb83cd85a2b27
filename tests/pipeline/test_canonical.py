"""RFC 8785 bytes, by two writers that agree (S3-12; the ledger's lines)."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.canonical import MAX_SAFE_INTEGER, canonical, canonical_plain, sha256_hex
from joulegram_pipeline.errors import DocumentError

SAFE = st.integers(min_value=-MAX_SAFE_INTEGER, max_value=MAX_SAFE_INTEGER)
ASCII_KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.dictionaries(
    ASCII_KEYS,
    st.recursive(
        st.none() | st.booleans() | SAFE | STRINGS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ASCII_KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=6,
)


@given(PLAIN)
def test_the_quick_writer_writes_what_the_reference_writes(record: dict[str, Any]) -> None:
    """On records of ASCII keys, strings, booleans, None and safe integers the two are equal, byte for byte."""
    assert canonical_plain(record) == canonical(record) == rfc8785.dumps(record)


@given(PLAIN)
def test_canonical_bytes_are_json_of_the_same_value(record: dict[str, Any]) -> None:
    """What is hashed reads back as what was meant."""
    assert json.loads(canonical(record)) == record


NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]
"""IEEE 754 bits and their text, RFC 8785 appendix B."""


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_are_written_as_the_rfc_lists_them(bits: str, text: str) -> None:
    """The sample numbers of RFC 8785, appendix B."""
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value) == text.encode()


def test_keys_are_sorted_as_utf_16() -> None:
    """By code units, not code points or UTF-8 bytes: the example of RFC 8785, section 3.2.3."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = list(json.loads(canonical(dict.fromkeys(keys, 0))))
    assert written == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_strings_are_escaped_as_little_as_may_be() -> None:
    """Control characters, quote and backslash, and nothing else (RFC 8785, section 3.2.2.2)."""
    record = {"s": '\u20ac$\u000f\nA\'B"\\\\"/\u007f\u2028'}
    expected = '{"s":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\u007f\u2028"}'.encode()
    assert canonical(record) == canonical_plain(record) == expected


NOT_JSON: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "an integer that readers round": MAX_SAFE_INTEGER + 1,
    "the same below 0": -MAX_SAFE_INTEGER - 1,
    "half a character": "\ud800",
    "half a character in a key": {"\ud800": 1, "a": 2},
    "bytes": b"x",
    "a set": {1},
    "a key that is no text": {1: 2},
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON)
def test_what_has_no_canonical_form_is_a_document_error(value: Any) -> None:
    """No other exception leaves the writer, and no value is bent to fit."""
    with pytest.raises(DocumentError, match="no canonical JSON for this value"):
        canonical({"v": value})


def test_a_value_without_end_is_a_document_error() -> None:
    """A list that holds itself ends in an error of the tree."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(DocumentError):
        canonical(endless)


@pytest.mark.parametrize(
    "value", [MAX_SAFE_INTEGER + 1, "\ud800", b"x", {1: 2}], ids=["large", "surrogate", "bytes", "key"]
)
def test_the_quick_writer_refuses_what_it_can_see(value: Any) -> None:
    """What orjson refuses is an error of the tree too."""
    with pytest.raises(DocumentError, match="no canonical JSON for this record"):
        canonical_plain({"v": value})


@given(st.binary(max_size=100))
def test_hashes_are_lower_case_hex(data: bytes) -> None:
    """64 digits, as hashlib has them."""
    assert sha256_hex(data) == hashlib.sha256(data).hexdigest()
