"""The first figure of the page: mean accuracy against cost as an SVG, with names at the points and the front drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import Row, Table
from vlmprune.report.marks import mark
from vlmprune.report.plots import Style, line_of
from vlmprune.report.tables import interval, number

ENTERING, OPERATIONS = "visual tokens entering a layer, mean", "operations, percent of the unpruned model's"
_LETTER, _BOLD, _HEIGHT = 6.7, 7.3, 13.0  # pixels of a name: width of a letter, of a bold one, height
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 16.0, 24.0, 44.0
_MARK = 5.0  # pixels from the middle of a mark to its edge


@dataclass(frozen=True)
class Point:
    """A row on the plot.

    Attributes:
        cost: on the axis across.
        mean: accuracy, percent, with its interval.
    """

    row: Row
    name: str
    cost: float
    mean: Estimate


@dataclass(frozen=True)
class Frame:
    """From costs (on a log scale) and percent to pixels."""

    width: float
    height: float
    costs: tuple[float, float]
    means: tuple[float, float]

    def x(self, cost: float) -> float:
        low, high = self.costs
        return _LEFT + (self.width - _LEFT - _RIGHT) * math.log(cost / low) / math.log(high / low)

    def y(self, mean: float) -> float:
        low, high = self.means
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * (mean - low) / (high - low)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def points_of(table: Table, means: Mapping[int, Estimate], axis: str) -> list[Point]:
    """The rows that have a mean and a cost; none unless all of those with a mean have a cost.

    Args:
        means: by id of the row (`report.verdict.Means`).
        axis: ENTERING or OPERATIONS.
    """
    found = [(row, _cost(table, row, axis)) for row in table.rows if id(row) in means]
    if any(cost is None or cost <= 0 for _, cost in found):
        return []
    return [
        Point(row, "vanilla" if row.is_vanilla else line_of(row), cost, means[id(row)]) for row, cost in found if cost
    ]


def _cost(table: Table, row: Row, axis: str) -> float | None:
    if axis == ENTERING:
        return row.tokens_entering
    whole = table.vanilla
    if whole is None or whole.flops is None or row.flops is None or not whole.flops.total or row.flops.total is None:
        return None
    return 100.0 * row.flops.total / whole.flops.total


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at the same cost or less, the cheapest first."""
    chosen: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.mean.value)):
        if not chosen or point.mean.value > chosen[-1].mean.value:
            chosen.append(point)
    return chosen


def scatter(points: Sequence[Point], axis: str, style: Mapping[str, Style], size: tuple[float, float]) -> str:
    """The plot as SVG.

    Every point has its name and figures as a title. Names are written where there is room, at the points of the front
    before others, and of these at the most accurate first.

    Args:
        points: at least one.
        axis: words below the axis.
        style: by line (`report.plots.styles`).
        size: (width, height), pixels.
    """
    frame = _frame(points, size)
    best = front(points)
    lines = list(style)
    parts = [*_axes(frame, axis), _front_line(frame, best)]
    for point in points:
        look = style.get(point.name)
        drawn = '<circle r="4.5" class="whole"/>' if look is None else mark(look)
        line = "" if look is None else f' data-line="{lines.index(point.name)}"'
        at = f"translate({frame.x(point.cost):.1f} {frame.y(point.mean.value):.1f})"
        parts.append(f'<g class="point" transform="{at}"{line}><title>{_title(point, axis)}</title>{drawn}</g>')
    for point, (x, y), kind in _labels(frame, points, best):
        line = "" if point.name not in style else f' data-line="{lines.index(point.name)}"'
        parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{line}>{escape(point.name)}</text>')
    said = f"mean accuracy in percent against {axis}; the table below has every figure"
    box = f"0 0 {size[0]:g} {size[1]:g}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'


def _title(point: Point, axis: str) -> str:
    return (
        f"{escape(point.row.recipe)}: {number(point.mean.value)} % {interval(point.mean)}; {number(point.cost)} {axis}"
    )


def _frame(points: Sequence[Point], size: tuple[float, float]) -> Frame:
    costs, values = [point.cost for point in points], [point.mean.value for point in points]
    low, high = min(values), max(values)
    room = max(2.0, 0.08 * (high - low))
    return Frame(*size, (min(costs) / 1.15, max(costs) * 1.15), (max(0.0, low - room), min(101.0, high + room)))


def _axes(frame: Frame, axis: str) -> Iterator[str]:
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    for value in _steps(*frame.means):
        y = frame.y(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for cost in _log_ticks(*frame.costs, most=int(frame.width / 70)):
        x = frame.x(cost)
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{cost:g}</text>'
    yield '<text class="axis" x="0" y="12">mean accuracy, percent</text>'
    yield f'<text class="axis" x="{right}" y="{frame.height - 8:.1f}" text-anchor="end">{escape(axis)} (log)</text>'


def _steps(low: float, high: float) -> list[float]:
    """Round values between two, four to nine of them."""
    step = next((s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 8), 25)
    return [float(k * step) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Round values on a log scale: as many kinds of them as have room."""
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [round(d * 10.0**power, 6) for power in powers for d in digits if low <= d * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found


def _front_line(frame: Frame, best: Sequence[Point]) -> str:
    """Steps: between two points of the front, the cheaper one is what can be had."""
    x, y = frame.x(best[0].cost), frame.y(best[0].mean.value)
    path = f"M{x:.1f} {y:.1f}"
    for point in best[1:]:
        path += f"H{frame.x(point.cost):.1f}V{frame.y(point.mean.value):.1f}"
    return f'<path class="front" d="{path}"/>'


def _labels(
    frame: Frame, points: Sequence[Point], best: Sequence[Point]
) -> Iterator[tuple[Point, tuple[float, float], str]]:
    """Names with their places (left end of the baseline) and classes."""
    marks = [_around(frame.x(one.cost), frame.y(one.mean.value)) for one in points]
    taken: list[Box] = []
    others = sorted((one for one in points if one not in best), key=lambda one: -one.mean.value)
    for point in (*reversed(best), *others):
        x, y = frame.x(point.cost), frame.y(point.mean.value)
        own = _around(x, y)
        boxes = list(_places(x, y, (_BOLD if point in best else _LETTER) * len(point.name)))
        if point in best:  # beside a point of the front, its line passes
            boxes = [boxes[k] for k in (1, 4, 5, 3, 6, 7, 0, 2)]
            boxes += [_lower(box, rows * _HEIGHT) for rows in (-1, 1, -2) for box in boxes]
        inside = [box for box in boxes if box[0] >= _LEFT and box[2] <= frame.width and box[1] >= 0]
        in_way = [other for other in marks if other != own]
        free = [box for box in inside if not _hits(box, taken)]
        clear = next((box for box in free if not _hits(box, in_way)), None)
        if clear is None and point in best and free:  # a name of the front may stand on a mark, but not on a name
            clear = free[0]
        if clear is not None:
            taken.append(clear)
            yield point, (clear[0], clear[3] - 3), "name best" if point in best else "name"


def _around(x: float, y: float) -> Box:
    return x - _MARK, y - _MARK, x + _MARK, y + _MARK


def _places(x: float, y: float, width: float) -> Iterator[Box]:
    """Where a name may stand beside its point, the preferred place first."""
    half, gap = _HEIGHT / 2, _MARK + 2
    above, below, level = y - gap - _HEIGHT, y + gap, y - half
    for left, top in (
        (x + gap, level),
        (x - width / 2, above),
        (x - gap - width, level),
        (x - width / 2, below),
        (x + gap, above + half),
        (x - gap - width, above + half),
        (x + gap, below - half),
        (x - gap - width, below - half),
    ):
        yield left, top, left + width, top + _HEIGHT


def _lower(box: Box, by: float) -> Box:
    return box[0], box[1] + by, box[2], box[3] + by


def _hits(box: Box, others: Sequence[Box]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)
