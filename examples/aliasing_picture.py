"""Draws what `aliasing_demo.py` saw. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from aliasing_demo import Counted, Seen

TRUTH, AGENT, PALE, SCRAPER, MASKED, SPAN = "#333333", "#0b7a75", "#8fc7c3", "#c4611a", "#b3261e", "#e8eef7"


def draw(seen: Seen, path: Path) -> None:
    """Write the picture: power, energy so far, and what each burst got."""
    figure = Figure(figsize=(11, 10), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("One counter, read at 10 Hz, every 15 s, and through a 32-bit mask", fontsize=14)
    power, energy, each = figure.subplots(3, 1, height_ratios=(1.1, 1.2, 1))
    _power(power, seen)
    _energy(energy, seen)
    _bursts(each, seen)
    figure.savefig(path, format="png")


def _power(axes: Axes, seen: Seen) -> None:
    axes.set_title("Power: the bursts (shaded) are spans of a job", loc="left", fontsize=11)
    for counted, colour, label in (
        (seen.agent, AGENT, "agent, at 10 Hz"),
        (seen.scraper, SCRAPER, "scraper, mean from scrape to scrape"),
    ):
        seconds, joules = _columns(counted)
        steps = range(1, len(seconds))
        watts = [(joules[at] - joules[at - 1]) / (seconds[at] - seconds[at - 1]) for at in steps]
        axes.step(seconds, [*watts[:1], *watts], where="pre", color=colour, label=label, linewidth=1.6)
    axes.set_ylabel("power in W")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    _finish(axes, seen, columns=2)


def _energy(axes: Axes, seen: Seen) -> None:
    axes.set_title("Energy so far: the mask loses 4 295 J at a time, the scraper nothing", loc="left", fontsize=11)
    seconds, joules = _columns(seen.agent)
    axes.plot(seconds, joules, color=AGENT, label="agent, at 10 Hz", linewidth=2.4)
    for counted, colour, marker, label in (
        (seen.scraper, SCRAPER, "o", "scraper, range of the counter"),
        (seen.masked, MASKED, "s", "scraper, 32 bits of microjoules"),
    ):
        seconds, joules = _columns(counted)
        axes.plot(seconds, joules, color=colour, marker=marker, linestyle="--", linewidth=1.2, label=label)
    axes.annotate(
        f"{_columns(seen.agent)[1][-1] - joules[-1]:,.0f} J lost".replace(",", " "),
        (seconds[-1], joules[-1]),
        xytext=(-12, -24),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MASKED,
    )
    axes.set_ylabel("energy in J")
    axes.set_ylim(bottom=0)
    _finish(axes, seen, columns=1)


def _bursts(axes: Axes, seen: Seen) -> None:
    truth = "truth" if seen.simulated else "agent"
    axes.set_title(f"What each burst is given, in per cent of the {truth}", loc="left", fontsize=11)
    places = range(len(seen.bursts))
    bars = ((seen.agent, AGENT, "at 10 Hz"), (seen.ticks, PALE, "each second"), (seen.scraper, SCRAPER, "scraper"))
    for number, (counted, colour, label) in enumerate(bars):
        shares = [100 * counted.between(*burst) / seen.truth_uj(*burst) for burst in seen.bursts]
        shown = axes.bar([place + 0.27 * (number - 1) for place in places], shares, 0.25, color=colour, label=label)
        axes.bar_label(shown, fmt="%.0f", label_type="center", fontsize=8, color="white" if colour != PALE else TRUTH)
    axes.axhline(100, color=TRUTH, linewidth=1, linestyle=":")
    labels = [f"{(burst.end_ms - burst.start_ms) / 1e3:.2f} s" for burst in seen.bursts]
    axes.set_xticks(list(places), labels)
    axes.set_xlabel("length of the burst")
    axes.set_ylabel("given, in %")
    axes.set_ylim(0, 130)
    axes.legend(loc="upper left", ncols=3, fontsize=9)
    _tidy(axes)


def _columns(counted: Counted) -> tuple[list[float], list[float]]:
    """Seconds and joules."""
    return [ms / 1e3 for ms, _ in counted.points], [uj / 1e6 for _, uj in counted.points]


def _finish(axes: Axes, seen: Seen, columns: int) -> None:
    for burst in seen.bursts:
        axes.axvspan(burst.start_ms / 1e3, burst.end_ms / 1e3, color=SPAN, zorder=0)
    axes.set_xlabel("time in s")
    axes.set_xlim(0, seen.duration_ms / 1e3)
    axes.legend(loc="upper left", ncols=columns, fontsize=9)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
