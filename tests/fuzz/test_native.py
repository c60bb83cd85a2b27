"""What fuzzing kept goes through the compiled part and the Python beside it, which the fuzzer alone does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fuzz.test_corpus import INPUTS
from joulegram_processor.wire import SpanAt, splice, splice_all, splice_all_in_python, splice_some
from processor.compiled import COMPILED
from processor.test_native_extract import check_extract
from processor.test_native_splice import outcome, spans_in

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = COMPILED

REQUESTS = [path for path in INPUTS if path.parent.name in {"attributes", "extract", "halves", "splice"}]


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus_is_the_same_to_both(path: Path) -> None:
    """Extracted, and grown in every span, in every second one, and with one that is left out."""
    payload = path.read_bytes()
    check_extract(payload)
    count = sum(spans_in(payload))
    more = [b"x" * (17 * at) for at in range(count)]
    assert outcome(splice_all, payload, more) == outcome(splice_all_in_python, payload, more)
    chosen = list(range(0, count, 2))
    gains = [None if at == 0 else more[at] for at in chosen]

    def edit(index: int, place: SpanAt) -> bytes | None:
        gain = gains[chosen.index(index)]
        return None if gain is None else payload[place.start : place.end] + gain

    assert outcome(splice_some, payload, chosen, gains) == outcome(splice, payload, chosen, edit)
