from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from joulegram_processor.enrich import WRITTEN_KEYS, Encoder, upsert
from joulegram_processor.wire import string_attribute
from simulators.traces import T0, S, span

FIGURES = {key for key in WRITTEN_KEYS if key.startswith("energy.") and key.endswith("_j")} | {
    "energy.allocation_ratio",
    "energy.gpu_w_avg",
}
MINE = st.lists(st.sampled_from([*sorted(WRITTEN_KEYS), "kfm.node", "energy.other", "job.id"]), max_size=8)


@given(MINE, st.booleans())
def test_what_is_written_replaces_what_stood_there(keys: list[str], reported: bool) -> None:
    """Law (A11): each key we write is taken out, all others stay in order; a reporting job keeps its own figures."""
    pairs: list[tuple[str, object]] = [(key, f"{at}") for at, key in enumerate(keys)]
    content = span(1, T0, T0 + S, attributes=pairs).SerializeToString()
    made = Span.FromString(upsert(content, string_attribute("energy.method", "m"), reported=reported))
    replaced = WRITTEN_KEYS - FIGURES if reported else WRITTEN_KEYS
    kept = [(key, value) for key, value in pairs if key not in replaced]
    assert [(pair.key, pair.value.string_value) for pair in made.attributes] == [*kept, ("energy.method", "m")]


def test_more_texts_than_are_remembered() -> None:
    """What is remembered is bounded; what is not is the same."""
    encoder = Encoder()
    for number in range(5000):
        (pair,) = Span.FromString(encoder.texts((("energy.reason", f"reason {number}"),))).attributes
        assert pair.value.string_value == f"reason {number}"
    assert len(encoder._texts) == 4096
