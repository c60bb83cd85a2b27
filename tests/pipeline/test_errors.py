"""The one tree of errors: what is permanent, what is worth another try, and what each message quotes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from joulegram_pipeline import errors

ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "pipeline", "processor", "receiver", "rollup", "sink", "sdk", "service")


def test_every_error_is_permanent_or_worth_another_try() -> None:
    """The two kinds are all there is, and no error is both: the kind decides what happens to the input."""
    for name in set(errors.__all__) - {"JoulegramError", "PermanentError", "RetryableError"}:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.PermanentError) != issubclass(kind, errors.RetryableError), name


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each error stands in the picture, and nothing else does."""
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert drawn == set(errors.__all__)


def test_a_configuration_error_quotes_key_value_and_what_was_expected() -> None:
    """The three are in the message and on the object."""
    error = errors.ConfigError("energy.max_wait", 30, "a duration with a unit")
    assert str(error) == "energy.max_wait: got 30, expected a duration with a unit"
    assert (error.key, error.got, error.expected) == ("energy.max_wait", 30, "a duration with a unit")


def test_a_ledger_error_names_file_and_line() -> None:
    """An auditor finds the line."""
    error = errors.LedgerError("ledger-000000.ndjson:12", "got seq 4, expected 3")
    assert str(error) == "ledger-000000.ndjson:12: got seq 4, expected 3"


@pytest.mark.parametrize("room", ROOMS)
def test_errors_of_other_modules_are_in_the_tree(room: str) -> None:
    """No package defines an error outside the tree: whoever catches JoulegramError catches them all."""
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert bases & {*errors.__all__, "Exception"}, f"{path.name}: {node.name}"
                assert "Exception" not in bases or node.name == "JoulegramError", f"{path.name}: {node.name}"
