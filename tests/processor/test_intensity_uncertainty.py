from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.energy import Method
from joulegram_processor.intensity.chain import IntensityChain
from joulegram_processor.intensity.static_factor import StaticFactor
from joulegram_processor.intensity.table import load_table
from joulegram_processor.intensity.uncertainty import (
    MODEL_PPM,
    RAPL_PPM,
    STALENESS_PPM,
    TABLE_PPM,
    CompiledInterval,
    Component,
    Estimate,
    alignment_ug,
    default_components,
    interval,
    sum_interval,
)

UG = st.integers(0, 10**13)
PPM = st.integers(0, 900_000)
COMPONENTS = st.lists(
    st.builds(Component, st.just("c"), st.sampled_from("abc"), PPM, st.integers(0, 10**6)), max_size=6
)
RELATIVE = st.lists(st.builds(Component, st.just("c"), st.sampled_from("abc"), PPM), max_size=6)
CHAIN = IntensityChain(load_table("epa-egrid-subregion"), "egrid:SPNO")


def _half(value_ug: int, components: list[Component]) -> int:
    """The half-width rounded up, by the definition, in Decimal."""
    groups: dict[str, Decimal] = {}
    with localcontext() as context:
        context.prec = 80
        for part in components:
            width = Decimal(value_ug) * part.relative_ppm / 1_000_000 + part.absolute_ug
            groups[part.group] = groups.get(part.group, Decimal(0)) + width
        root = sum((width * width for width in groups.values()), Decimal(0)).sqrt()
        return int(root.to_integral_value("ROUND_CEILING"))


def test_groups_add_linearly_inside_and_in_quadrature_between() -> None:
    """By hand: 3 % and 4 % are 7 % in one group and 5 % in two."""
    same = [Component("one", "g", 30_000), Component("two", "g", 40_000)]
    apart = [Component("one", "g", 30_000), Component("two", "h", 40_000)]
    assert interval(1_000_000, same) == (930_000, 1_070_000)
    assert interval(1_000_000, apart) == (950_000, 1_050_000)
    assert interval(1_000_000, []) == (1_000_000, 1_000_000)


def test_bounds_are_rounded_outward_and_cut_at_zero() -> None:
    """A fraction of a microgram widens; emissions below 0 are not claimed."""
    assert interval(3, [Component("c", "g", 500_000)]) == (1, 5)
    assert interval(1, [Component("c", "g", 1)]) == (0, 2)
    assert interval(10, [Component("c", "g", 0, 25)]) == (0, 35)


@given(UG, COMPONENTS)
def test_the_interval_is_its_definition(value_ug: int, components: list[Component]) -> None:
    """Law: the integer arithmetic equals the definition in Decimal, and holds the value."""
    lower, upper = interval(value_ug, components)
    half = _half(value_ug, components)
    assert (lower, upper) == (max(0, value_ug - half), value_ug + half)
    assert 0 <= lower <= value_ug <= upper


@given(st.lists(UG, min_size=1, max_size=8), RELATIVE)
def test_results_that_share_their_errors_do_not_narrow(values: list[int], components: list[Component]) -> None:
    """Law: the relative width of a sum of spans with shared groups is that of one span (design section 5)."""
    results = [Estimate(value, tuple(components)) for value in values]
    assert sum_interval(results) == interval(sum(values), components)
    upper = sum(interval(value, components)[1] for value in values)
    assert upper - len(values) < sum_interval(results)[1] <= upper


@given(st.lists(st.tuples(UG, COMPONENTS), max_size=6))
def test_a_sum_is_never_narrower_than_any_of_its_parts(parts: list[tuple[int, list[Component]]]) -> None:
    """Law: adding a result never takes uncertainty away."""
    results = [Estimate(value, tuple(components)) for value, components in parts]
    width = sum_interval(results)[1] - sum(value for value, _ in parts)
    for value, components in parts:
        assert width >= interval(value, components)[1] - value


def test_errors_of_their_own_do_add_in_quadrature() -> None:
    """Four spans with independent alignment errors of 3 ug: 6, not 12; one shared error stays linear: 12."""
    own = [Estimate(100, (Component("alignment", f"span {n}", 0, 3),)) for n in range(4)]
    shared = [Estimate(100, (Component("alignment", "span", 0, 3),)) for _ in range(4)]
    assert sum_interval(own) == (394, 406)
    assert sum_interval(shared) == (388, 412)


@given(st.lists(st.tuples(UG, st.integers(0, 10**6)), min_size=1, max_size=8), RELATIVE)
def test_the_compiled_interval_is_the_interval(spans: list[tuple[int, int]], shared: list[Component]) -> None:
    """Law: the quick path gives the bounds of the slow one, for a span and for a sum of spans."""
    compiled = CompiledInterval(shared)
    results = [
        Estimate(value, (*shared, Component("alignment", f"span {n}", 0, own))) for n, (value, own) in enumerate(spans)
    ]
    for result, (value, own) in zip(results, spans, strict=True):
        assert compiled(value, own) == interval(value, result.components)
    total, square = sum(value for value, _ in spans), sum(own * own for _, own in spans)
    assert compiled.over(total, square) == sum_interval(results)


def test_a_compiled_interval_takes_relative_components_only() -> None:
    """An absolute error among the shared ones is a programming error."""
    with pytest.raises(AssertionError, match="alignment is absolute"):
        CompiledInterval([Component("alignment", "g", 0, 1)])


@given(st.integers(0, 10**12), st.integers(0, 2_500_000))
def test_alignment_is_rounded_up(energy_uj: int, mg: int) -> None:
    """Law: the least whole microgram that is not less than the energy's carbon."""
    found = alignment_ug(energy_uj, mg)
    assert (found - 1) * 3_600_000_000 < energy_uj * mg <= found * 3_600_000_000


@pytest.mark.parametrize(
    ("method", "resolution", "sizes"),
    [
        (Method.MEASURED, "annual", [RAPL_PPM, TABLE_PPM]),
        (Method.MEASURED, "static", [RAPL_PPM, TABLE_PPM, STALENESS_PPM]),
        (Method.MEASURED, "mixed", [RAPL_PPM, TABLE_PPM, STALENESS_PPM]),
        (Method.MODELLED, "hourly", [MODEL_PPM, TABLE_PPM]),
        (Method.MIXED, "annual", [MODEL_PPM, TABLE_PPM]),
        (Method.REPORTED, "annual", [MODEL_PPM, TABLE_PPM]),
    ],
)
def test_default_magnitudes_follow_method_and_resolution(method: Method, resolution: str, sizes: list[int]) -> None:
    """Energy by its method, the table always, staleness where a figure is carried beyond its time."""
    components = default_components(method, CHAIN, resolution)
    assert [component.relative_ppm for component in components] == sizes
    assert len({component.group for component in components}) == len(sizes)


def test_groups_are_shared_by_region_and_table() -> None:
    """Two regions of one table are two errors, the meter's is one; a declared factor has its own."""
    other = IntensityChain(load_table("epa-egrid-subregion"), "egrid:SPSO")
    mine, theirs, declared = (
        {component.group for component in default_components(Method.MEASURED, provider, "static")}
        for provider in (CHAIN, other, StaticFactor("0.4", "bill"))
    )
    assert mine & theirs == mine & declared == {"rapl"}
