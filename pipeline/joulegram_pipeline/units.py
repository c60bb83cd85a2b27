"""Every unit joulegram writes, as a pure projection of integer microjoules, micrograms and nanoseconds.

Invariants:
    * energy is counted in integer microjoules (uJ), carbon in integer micrograms (ug), time in integer nanoseconds;
    * every other unit is derived from those at the rim and never computed with;
    * a missing quantity is None before it comes here, never 0.
"""

from __future__ import annotations

UJ_PER_J = 1_000_000
UJ_PER_KWH = 3_600_000_000_000
UG_PER_G = 1_000_000
UG_PER_KG = 1_000_000_000
NS_PER_S = 1_000_000_000
MG_PER_G = 1_000

JOULES_PER_KWH = 3_600_000.0
"""Joules in one kilowatt-hour, the constant of the run roll-up (S0-17)."""


def joules_to_kwh(joules: float) -> float:
    """Joules as kilowatt-hours: ``joules / 3_600_000`` (S0-17, S0-52)."""
    return joules / JOULES_PER_KWH


def uj_to_j(energy_uj: int) -> float:
    """Microjoules as joules."""
    return energy_uj / UJ_PER_J


def j_to_uj(energy_j: float) -> int:
    """Joules as microjoules, to the nearest microjoule, halves to even."""
    # By hand, as a Fraction would bring the decimal module into the agent's memory.
    above, below = energy_j.as_integer_ratio()
    whole, rest = divmod(above * UJ_PER_J, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


def uj_to_wh(energy_uj: int) -> float:
    """Microjoules as watt-hours."""
    return energy_uj / (UJ_PER_KWH // 1000)


def uj_to_kwh(energy_uj: int) -> float:
    """Microjoules as kilowatt-hours."""
    return energy_uj / UJ_PER_KWH


def ug_to_g(carbon_ug: int) -> float:
    """Micrograms as grams."""
    return carbon_ug / UG_PER_G


def ug_to_kg(carbon_ug: int) -> float:
    """Micrograms as kilograms."""
    return carbon_ug / UG_PER_KG


def ns_to_s(duration_ns: int) -> float:
    """Nanoseconds as seconds."""
    return duration_ns / NS_PER_S


def mg_to_g(intensity_mg_per_kwh: int) -> float:
    """mg/kWh, the integer a table is compiled to, as g/kWh."""
    return intensity_mg_per_kwh / MG_PER_G
