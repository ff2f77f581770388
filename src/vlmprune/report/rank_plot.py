"""The ranks of the methods at each budget with their intervals: what can be told apart, and what cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmprune.bench.table import Ranking, Table
from vlmprune.report.plots import FAINT, INK, LINE, Style
from vlmprune.report.tables import budget_words, rankings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def rank_figure(table: Table, style: dict[str, Style], found: Sequence[Ranking] | None = None) -> Figure:
    """One plot for each budget: a line per method, from the best mean rank down.

    Args:
        table: one model, with at least one budget of several methods.
        style: of each method (`report.plots.styles`).
        found: those of its rankings that get a plot; by default all.
    """
    from matplotlib.figure import Figure

    found = found or rankings(table)
    most = max(len(one.places) for one in found)
    figure = Figure(figsize=(3.6 * len(found) + 0.6, 0.3 * most + 1.1), layout="constrained")
    plots = figure.subplots(1, len(found), squeeze=False).flatten()
    for plot, one in zip(plots, found, strict=True):
        _draw(plot, one, most, style)
    return figure


def _draw(plot: Axes, ranking: Ranking, most: int, style: dict[str, Style]) -> None:
    names = []
    for height, (row, place) in enumerate(ranking.places):
        look = style[row.method]
        plot.hlines(height, place.low, place.high, color=look.color, linewidth=2.2, alpha=0.55)
        width = 1.4 if look.marker in "x+" else 0
        plot.plot(place.rank, height, marker=look.marker, color=look.color, markersize=5.5, markeredgewidth=width)
        names.append(f"{row.method}, best in {place.best:.0f} %")
    plot.set_yticks(range(len(names)), names)
    plot.set_ylim(most - 0.5, -0.6)
    plot.set_xlim(0.7, len(names) + 0.3)
    plot.set_xticks(range(1, len(names) + 1, -(-len(names) // 8)))
    plot.set_xlabel(f"rank by {ranking.measure}", color=FAINT)
    plot.set_title(f"keep {budget_words(ranking.asked)}", loc="left", fontsize=10, color=INK)
    plot.grid(axis="x", color=LINE, linewidth=0.6)
    plot.set_axisbelow(True)
    plot.tick_params(axis="x", colors=FAINT, labelsize=8, length=0)
    plot.tick_params(axis="y", colors=INK, labelsize=8, length=0)
    for side in plot.spines.values():
        side.set_visible(False)
