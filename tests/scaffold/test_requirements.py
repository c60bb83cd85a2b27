"""Requirements owed so far, each cited by a test that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

OWED = (
    "S0-01 S0-02 S0-03 S0-04 S0-05 S0-06 S0-07 S0-08 S0-09…S0-12 S0-14 S0-16…S0-50 S0-52…S0-69 S1-05 S1-13…S1-30 "
    "S3-01 S3-03 S3-06 S3-08…S3-13 D-01…D-19 D-22 D-24 D-25 D-27 D-29…D-42 D-45…D-50"
)

_RANGE = re.compile(r"\b((?:S\d|D)-)(\d{2})(?:\s?…\s?(?:S\d-|D-)?(\d{2}))?")


def expand(text: str) -> set[str]:
    """Ids in a text, ranges as ``S0-17…S0-23`` included."""
    found = set()
    for prefix, first, last in _RANGE.findall(text):
        found |= {f"{prefix}{number:02d}" for number in range(int(first), int(last or first) + 1)}
    return found


BUILT = TESTS / "peers" / ".build"
"""Environments of the peers, with tests of their own."""
OURS = [path for path in TESTS.rglob("test_*.py") if path != Path(__file__) and BUILT not in path.parents]
CITED = set().union(*(expand(path.read_text()) for path in OURS))


@pytest.mark.parametrize("requirement", sorted(expand(OWED)))
def test_each_requirement_owed_is_cited_by_a_test(requirement: str) -> None:
    """Somebody who looks for a requirement finds the test that shows it."""
    assert requirement in CITED
