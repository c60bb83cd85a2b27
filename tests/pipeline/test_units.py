"""Units as pure projections of integers (S0-17, S0-52, S0-54)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline import units

COUNTS = st.integers(min_value=0, max_value=2**52)
"""Up to 1.25 MWh in one figure, or 4500 kg, or 52 days: beyond it a float is coarser than the count."""


def test_the_constant_is_the_contracts() -> None:
    """1 kWh is 3 600 000 J, as a float, everywhere (S0-17)."""
    assert units.JOULES_PER_KWH == 3_600_000.0
    assert type(units.JOULES_PER_KWH) is float
    assert Fraction(units.UJ_PER_KWH, units.UJ_PER_J) == units.JOULES_PER_KWH


@pytest.mark.parametrize(("joules", "kwh"), [(0.0, 0.0), (3_600_000.0, 1.0), (1_800_000.0, 0.5), (36.0, 0.00001)])
def test_joules_as_kwh(joules: float, kwh: float) -> None:
    """energy_kwh = energy_joules / 3 600 000 (S0-52)."""
    assert units.joules_to_kwh(joules) == kwh


@given(COUNTS)
def test_joules_round_trip(energy_uj: int) -> None:
    """Every count of microjoules up to 1.25 MWh comes back from joules as it was (C-03)."""
    assert units.j_to_uj(units.uj_to_j(energy_uj)) == energy_uj


@given(COUNTS)
def test_projections_agree_with_exact_fractions(count: int) -> None:
    """Each unit is the exact quotient, rounded once to a float (S0-54)."""
    assert units.uj_to_j(count) == float(Fraction(count, 10**6))
    assert units.uj_to_wh(count) == float(Fraction(count, 3_600_000_000))
    assert units.uj_to_kwh(count) == float(Fraction(count, 3_600_000_000_000))
    assert units.ug_to_g(count) == float(Fraction(count, 10**6))
    assert units.ug_to_kg(count) == float(Fraction(count, 10**9))
    assert units.ns_to_s(count) == float(Fraction(count, 10**9))
    assert units.mg_to_g(count) == float(Fraction(count, 1000))


@given(COUNTS)
def test_counts_come_back_from_every_unit(count: int) -> None:
    """Nothing is lost in the unit a count is shown in (C-02, C-43)."""
    assert round(Fraction(units.uj_to_kwh(count)) * units.UJ_PER_KWH) == count
    assert round(Fraction(units.ug_to_g(count)) * units.UG_PER_G) == count
    assert round(Fraction(units.ug_to_kg(count)) * units.UG_PER_KG) == count
    assert round(Fraction(units.ns_to_s(count)) * units.NS_PER_S) == count
    assert round(Fraction(units.mg_to_g(count)) * units.MG_PER_G) == count


@given(st.floats(min_value=0, max_value=1e15))
def test_joules_are_rounded_once_halves_to_even(energy_j: float) -> None:
    """A float's own value is rounded, not a product that was rounded before."""
    assert units.j_to_uj(energy_j) == round(Fraction(energy_j) * 10**6)


@pytest.mark.parametrize(("energy_j", "energy_uj"), [(0.5**7, 7812), (3 * 0.5**7, 23438), (1e-7, 0)])
def test_halves_of_a_microjoule_go_to_even(energy_j: float, energy_uj: int) -> None:
    """1/128 J is 7812.5 uJ and becomes 7812; 3/128 J is 23437.5 uJ and becomes 23438."""
    assert units.j_to_uj(energy_j) == energy_uj
