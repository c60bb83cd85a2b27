"""Every input that fuzzing kept goes through its target again, without the fuzzer."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_every_target_has_a_corpus_and_it_is_small() -> None:
    """Each, so that to grow one takes nothing from another: 20 files (run.py keeps fewer) and 20 kB."""
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    for name in TARGETS:
        sizes = [path.stat().st_size for path in INPUTS if path.parent.name == name]
        assert len(sizes) <= 20, name
        assert sum(sizes) <= 20_000, name


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus(path: Path) -> None:
    """No defect that its target would raise for."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\n", b"\xff" * 64, bytes(range(256)), b"{}"], ids=range(6))
def test_bytes_that_mean_nothing(name: str, data: bytes) -> None:
    """Every target takes any bytes."""
    TARGETS[name](data)
