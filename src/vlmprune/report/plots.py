"""Accuracy against visual tokens, a small plot for each ability, one figure per model.

Matplotlib is imported when a figure is drawn, on its file backends only. Colour-blind readers can tell the colours
apart (Okabe and Ito's palette without its yellow), every method has a marker of its own, and the baselines are grey.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmprune.bench.table import Cell, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, LINE = "#1d2127", "#646b76", "#d5dae1"
MANY = 12  # methods; with more, their intervals would be a thicket, and the tables have them
_WIDTH, _LEGEND_LINE = 3.35, 0.22  # inches: of one plot, of one line of the legend
_ABREAST = 8  # methods that get their full place side by side; more of them share it
# The first is the default: at the same number of it, methods that cut inside the model and before it cost the same.
AXES = {"entering": "visual tokens entering a layer, mean", "kept": "visual tokens kept"}
_BASELINES = {"random": ("#6f7782", "x"), "random@": ("#6f7782", "+"), "downsample": (INK, "s")}
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = ("o", "^", "D", "v", "P", "h", "<", ">", "p", "*", "d")  # no common divisor with the colours: 66 pairs
_DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Style:
    """How a method is drawn wherever it appears."""

    color: str
    marker: str
    dash: str


def styles(lines: Iterable[str]) -> dict[str, Style]:
    """A style for each line, by its place in the list; baselines have fixed ones."""
    chosen: dict[str, Style] = {}
    others = 0
    for line in dict.fromkeys(lines):
        key = "random@" if line.startswith("random@") else line
        if key in _BASELINES and " (" not in line:
            chosen[line] = Style(*_BASELINES[key], "--" if key == "random" else ":")
            continue
        dash = _DASHES[others // len(_COLORS) % len(_DASHES)]
        chosen[line] = Style(_COLORS[others % len(_COLORS)], _MARKERS[others % len(_MARKERS)], dash)
        others += 1
    return chosen


def lines_of(tables: Iterable[Table]) -> list[str]:
    """What has a line of its own, in table order: every method but vanilla, and what its budget counts."""
    return list(dict.fromkeys(line_of(row) for table in tables for row in table.rows if not row.is_vanilla))


def line_of(row: Row) -> str:
    """The line that a row is a point of."""
    return f"{row.method} ({row.budget})" if row.budget else row.method


def accuracy_figure(
    table: Table, axis: str, style: dict[str, Style], legend: bool = True, tasks: Sequence[str] | None = None
) -> Figure:
    """The primary metric of each task against tokens.

    Args:
        table: one model.
        axis: "kept" for the tokens after the last cut, "entering" for the mean that enters a layer.
        style: of each line (`lines_of`, `styles`).
        legend: whether the figure has one; the page has its own.
        tasks: those that get a plot; by default all.
    """
    from matplotlib.figure import Figure

    tasks = tasks or table.tasks
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    across, lines = _legend_size(lines_of([table]), _WIDTH * columns) if legend else (0, 0)
    figure = Figure(figsize=(_WIDTH * columns, 2.75 * rows + 0.35 + _LEGEND_LINE * lines), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for number, task in enumerate(tasks):
        _draw_task(plots[number], table, task, axis, style)
        if number % columns == 0:
            plots[number].set_ylabel("percent", color=FAINT)
        if number + columns >= len(tasks):
            plots[number].set_xlabel(AXES[axis], color=FAINT)
            plots[number].tick_params(labelbottom=True)
    for empty in plots[len(tasks) :]:
        empty.set_visible(False)
    if legend:
        _add_legend(figure, plots, across)
    return figure


def _legend_size(names: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and lines of a legend that fits into a figure `width` inches wide, whatever its plots are."""
    names = ["vanilla", "chance", *names]
    across = max(1, int(width / (0.6 + 0.085 * max(map(len, names)))))
    return across, math.ceil(len(names) / across)


def _add_legend(figure: Figure, plots: Iterable[Axes], across: int) -> None:
    handles = {label: handle for plot in plots for handle, label in zip(*plot.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=across,
        frameon=False,
        labelcolor=INK,
    )


def _draw_task(plot: Axes, table: Table, task: str, axis: str, style: dict[str, Style]) -> None:
    cells = [(row, row.cells[task]) for row in table.rows if task in row.cells]
    vanilla = [cell for row, cell in cells if row.is_vanilla]
    pruned = [(row, cell) for row, cell in cells if not row.is_vanilla]
    for cell in vanilla:
        plot.axhspan(cell.value.low, cell.value.high, color=INK, alpha=0.07, linewidth=0)
        plot.axhline(cell.value.value, color=INK, linewidth=1.1, label="vanilla")
    chance = cells[0][1].result.chance
    plot.axhline(chance, color=FAINT, linewidth=0.9, linestyle=(0, (1, 3)), label="chance")
    lines = list(dict.fromkeys(line_of(row) for row, _ in pruned))
    spread = 0.012 * max((_tokens(row, axis) for row, _ in pruned), default=1.0)
    spread *= min(1.0, (_ABREAST - 1) / max(1, len(lines) - 1))
    for place, line in enumerate(lines):
        points = sorted(
            ((row, cell) for row, cell in pruned if line_of(row) == line), key=lambda p: _tokens(p[0], axis)
        )
        placed = [(_tokens(row, axis), cell) for row, cell in points]
        # The page finds a method's marks by this name, to hide them.
        mark = f"line-{list(style).index(line)}-{table.tasks.index(task)}"
        if len(lines) <= MANY:
            # Methods with the same budget would hide each other's intervals; these stand side by side instead.
            aside = spread * (place - (len(lines) - 1) / 2)
            _draw_intervals(plot, [(tokens + aside, cell) for tokens, cell in placed], style[line], f"{mark}-intervals")
        _draw_line(plot, line, placed, style[line], mark)
    name = table.dimensions.get(task, task)
    plot.set_title(name[:1].upper() + name[1:], loc="left", fontsize=10, color=INK, pad=16)
    about = f"{task}, {cells[0][1].result.metric}, n = {cells[0][1].n}"
    plot.text(0, 1.015, about, transform=plot.transAxes, fontsize=7.5, color=FAINT, va="bottom")
    plot.set_ylim(-3, 105)
    plot.set_xlim(0, 1.1 * max((_tokens(row, axis) for row, _ in pruned or cells), default=1.0))
    quiet(plot)


def quiet(plot: Axes) -> None:
    """Nothing that is not data, but for a faint grid."""
    plot.grid(color=LINE, linewidth=0.6)
    plot.set_axisbelow(True)
    plot.tick_params(colors=FAINT, labelsize=8, length=0)
    for side in plot.spines.values():
        side.set_visible(False)


def _tokens(row: Row, axis: str) -> float:
    return row.tokens_kept if axis == "kept" else row.tokens_entering


def _draw_intervals(plot: Axes, points: Sequence[tuple[float, Cell]], style: Style, mark: str) -> None:
    x = [tokens for tokens, _ in points]
    low = [cell.value.low for _, cell in points]
    high = [cell.value.high for _, cell in points]
    plot.vlines(x, low, high, color=style.color, linewidth=0.9, alpha=0.4, gid=mark)


def _draw_line(plot: Axes, name: str, points: Sequence[tuple[float, Cell]], style: Style, mark: str) -> None:
    plot.plot(
        [tokens for tokens, _ in points],
        [cell.value.value for _, cell in points],
        color=style.color,
        linestyle=style.dash,
        marker=style.marker,
        linewidth=1.3,
        markersize=4.5,
        markeredgewidth=1.2 if style.marker in "x+" else 0,
        label=name,
        gid=mark,
    )


def png(figure: Figure) -> bytes:
    """A figure for documents. Save a figure once: a second save lays it out a little differently."""
    return _save(figure, "png", {"Software": None}, dpi=160)


def svg(figure: Figure) -> str:
    """A file of its own: letters as outlines, so that it looks the same everywhere."""
    return _save(figure, "svg", {"Date": None, "Creator": None}, fonttype="path").decode()


def inline_svg(figure: Figure, name: str) -> str:
    """A figure for the page: letters as text, ink and lines in the page's own colours, ids that no other figure has.

    Args:
        name: unique among the page's figures, of letters, digits and hyphens.
    """
    text = _save(figure, "svg", {"Date": None, "Creator": None}, fonttype="none").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.S)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r'\bid="line-(\d+)-[^"]*"', r'data-line="\1"', text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for color, variable in ((INK, "var(--ink)"), (FAINT, "var(--faint)"), (LINE, "var(--line)")):
        text = text.replace(color, variable)
    return re.sub(r"font:[^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)


def _save(figure: Figure, kind: str, metadata: dict[str, Any], fonttype: str = "path", dpi: int = 100) -> bytes:
    import matplotlib

    out = io.BytesIO()
    # A fixed salt makes the ids in an SVG the same on every run.
    with matplotlib.rc_context({"svg.hashsalt": "vlmprune", "svg.fonttype": fonttype, "font.family": "DejaVu Sans"}):
        figure.savefig(out, format=kind, metadata=metadata, dpi=dpi, transparent=fonttype == "none")
    return out.getvalue()
