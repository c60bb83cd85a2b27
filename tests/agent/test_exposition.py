"""Prometheus' text format by hand, read back by Prometheus' own parser."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from joulegram_agent.exposition import Family, Sample, counter, gauge, histogram, render

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def read(page: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by sample name and labels, as Prometheus reads them."""
    out: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            out.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return out


@given(TEXT, TEXT, st.floats(allow_nan=False))
def test_any_label_and_value_come_back(first: str, second: str, value: float) -> None:
    """Whatever stands in a label, and every double, is read as it was."""
    page = render([gauge("a_b", "x", [Sample(value, {"one": first, "two": second})], "one", "two")])
    assert read(page) == {"a_b": {(("one", first), ("two", second)): value}}


@given(TEXT)
def test_any_help_is_one_line(text: str) -> None:
    """A help text with line feeds and backslashes does not become a sample."""
    page = render([gauge("a", text, [Sample(1)])])
    assert page.count(b"\n") == 3
    (family,) = text_string_to_metric_families(page.decode())
    assert (family.name, [sample.value for sample in family.samples]) == ("a", [1])


def test_the_bytes_of_a_page() -> None:
    """Exposition format 0.0.4: HELP, TYPE, samples; escapes of labels and help; the forms of odd numbers."""
    families = [
        counter("a_total", "Of a\\b\nc.", [Sample(3, {"x": 'q"\\\n'}), Sample(2.5)], "x"),
        gauge("b", "Not known.", []),
        gauge("c", "Odd.", [Sample(math.inf), Sample(-math.inf), Sample(math.nan), Sample(2.0**60)]),
    ]
    assert render(families).decode() == (
        "# HELP a_total Of a\\\\b\\nc.\n# TYPE a_total counter\n"
        'a_total{x="q\\"\\\\\\n"} 3\na_total 2.5\n'
        "# HELP b Not known.\n# TYPE b gauge\n"
        "# HELP c Odd.\n# TYPE c gauge\nc +Inf\nc -Inf\nc NaN\nc 1.152921504606847e+18\n"
    )


def test_a_histogram_counts_up_to_each_bound() -> None:
    """Buckets are cumulative and end at +Inf, beside sum and count."""
    page = render([histogram("h", "x", (0.5, 1.0), (1, 0, 4), 7.5)])
    assert read(page) == {
        "h_bucket": {(("le", "0.5"),): 1, (("le", "1"),): 1, (("le", "+Inf"),): 5},
        "h_sum": {(): 7.5},
        "h_count": {(): 5},
    }


@pytest.mark.parametrize(("name", "label"), [("1a", "x"), ("a-b", "x"), ("", "x"), ("a", "__x"), ("a", "x:y")])
def test_names_the_format_does_not_have_are_a_defect(name: str, label: str) -> None:
    """A name of ours that nobody could read is found when it is made."""
    with pytest.raises(ValueError, match="expected names"):
        Family(name, "gauge", "x", (), (label,))
