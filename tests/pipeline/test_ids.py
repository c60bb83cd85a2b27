"""What may name a run and its files (C-15, D-41), and ids of traces and spans."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import IdentifierError
from joulegram_pipeline.ids import check_run_id, is_span_id, is_trace_id, new_run_id

MILLIS = st.integers(min_value=0, max_value=2**48 - 1)

GOOD = [
    "etl-20260102T030405Z",
    "20260102030405",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "0f1e2d3c-4b5a-4697-8899-aabbccddeeff",
    "a:b.c_d-e",
    "a" * 8,
    "a" * 128,
]

BAD = {
    "a way up": "../../x",
    "a way up inside": "etl-a..b",
    "a slash": "etl/20260102",
    "two letters and a slash": "a/b",
    "two dots": "..",
    "two dots and enough": "..abcdefgh",
    "dots only": "........",
    "a backslash": "etl\\2026010",
    "too short": "a" * 7,
    "too long": "a" * 129,
    "nothing": "",
    "unicode letters": "etl-2026é01",
    "unicode digits": "etl-٢٠٢٦٠١",
    "a line feed behind": "etl-20260102\n",
    "a NUL": "etl-2026\0102",
    "a space": "etl 20260102",
    "a hidden file": ".etl-20260102",
    "an option": "-etl-20260102",
    "a per cent": "etl%2f..%2fx",
}


@pytest.mark.parametrize("run_id", GOOD)
def test_a_run_id_is_given_back_as_it_was(run_id: str) -> None:
    """ULIDs, UUIDs, dates of 14 digits: what C-15 lists."""
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("run_id", BAD.values(), ids=BAD)
def test_a_run_id_that_is_no_path_segment_is_refused(run_id: str) -> None:
    """It becomes a directory: what could leave it is refused, quoted, with the rule (D-41)."""
    with pytest.raises(IdentifierError, match="expected 8 to 128 of") as caught:
        check_run_id(run_id)
    assert repr(run_id) in str(caught.value)


@given(st.text(max_size=140))
def test_what_is_accepted_is_one_segment_of_a_path(run_id: str) -> None:
    """Whatever the text: accepted means ASCII, no separator, no dots that climb, and visible."""
    try:
        check_run_id(run_id)
    except IdentifierError:
        return
    assert re.fullmatch(r"[A-Za-z0-9:._-]{8,128}", run_id)
    assert run_id[0].isalnum()
    assert ".." not in run_id


@given(MILLIS, MILLIS)
def test_ulids_sort_by_time(first_ms: int, second_ms: int) -> None:
    """Of two moments the earlier has the smaller id; the time is its first ten digits (C-15)."""
    first, second = (new_run_id(millis * 1_000_000) for millis in (first_ms, second_ms))
    if first_ms != second_ms:
        assert (first < second) == (first_ms < second_ms)
    else:
        assert first[:10] == second[:10]


@given(MILLIS)
def test_a_ulid_holds_its_time_and_may_name_a_run(millis: int) -> None:
    """26 Crockford digits; the first ten read back as the milliseconds."""
    ulid = new_run_id(millis * 1_000_000 + 999_999)
    assert check_run_id(ulid) == ulid
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", ulid)
    value = 0
    for digit in ulid[:10]:
        value = value * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(digit)
    assert value == millis


def test_ulids_of_one_moment_differ() -> None:
    """80 bits of chance: a thousand in one millisecond are a thousand."""
    assert len({new_run_id(0) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("value", "is_trace", "is_span"),
    [
        (b"\1" * 16, True, False),
        (b"\0" * 15 + b"\1", True, False),
        (b"\0" * 16, False, False),
        (b"\1" * 8, False, True),
        (b"\0" * 8, False, False),
        (b"", False, False),
        (b"\1" * 17, False, False),
        (b"\1" * 32, False, False),
    ],
)
def test_ids_of_traces_and_spans(value: bytes, *, is_trace: bool, is_span: bool) -> None:
    """16 and 8 bytes, not all zero; hex text is not bytes."""
    assert (is_trace_id(value), is_span_id(value)) == (is_trace, is_span)
