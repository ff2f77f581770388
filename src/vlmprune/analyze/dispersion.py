"""How far the tokens with high attention lie apart, layer by layer (HiPrune, figure 4), and the phases that follow.

The curve is the mean Euclidean distance, in tokens of the grid, between all pairs of the top 10 % of a layer. The
phases shallow, middle and deep are the three runs of layers whose means fit the curve best (least squares over all
pairs of borders, exactly). The suggested object layer is the last one of the middle phase, as HiPrune's layer 9 is of
CLIP's layers 5 to 9.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import vlmprune
from vlmprune.analyze.look import DARK, band, interval, layer_ticks, legend, plain, spoken
from vlmprune.analyze.reading import Reading
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.core.view import Grid, ModelInfo
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("shallow", "middle", "deep")
_DRAWS = 1000


class Partition(NamedTuple):
    """The layers at which the middle and the deep phase begin, and the share of the curve's variance it explains."""

    middle: int
    deep: int
    explained: float

    @property
    def object_layer(self) -> int:
        return self.deep - 1


def pairwise_distance(cells: np.ndarray, grid: Grid) -> float:
    """Mean distance of all pairs of these cells, in cells."""
    places = np.stack(np.divmod(cells, grid.cols), 1).astype(float)
    first, second = np.triu_indices(len(places), 1)
    return float(np.sqrt(((places[first] - places[second]) ** 2).sum(1)).mean())


def dispersion_of(reading: Reading) -> np.ndarray:
    """[layers] over the mean distance of all pairs of tokens, so that 1 is what tokens drawn at random have."""
    whole = pairwise_distance(np.arange(reading.grid.size), reading.grid)
    return np.array([pairwise_distance(reading.top(k), reading.grid) / whole for k in range(reading.layers)])


def partition(curve: np.ndarray) -> Partition | None:
    """The three phases of a curve [layers]; None for fewer than three layers."""
    if len(curve) < len(PHASES):
        return None
    borders, errors = _errors(curve[None])
    best = int(errors[0].argmin())
    whole = float(((curve - curve.mean()) ** 2).sum())
    middle, deep = borders[best].tolist()
    return Partition(middle, deep, 1.0 - float(errors[0, best]) / whole if whole else 0.0)


def _errors(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of borders [pairs, 2], and the squared error of each curve [curves, layers] about its three means."""
    layers = curves.shape[1]
    borders = np.array(list(combinations(range(1, layers), 2)))
    total = np.pad(curves.cumsum(1), ((0, 0), (1, 0)))
    square = np.pad((curves**2).cumsum(1), ((0, 0), (1, 0)))
    edges = np.column_stack([np.zeros(len(borders), int), borders, np.full(len(borders), layers)])
    sums, squares = np.diff(total[:, edges], axis=2), np.diff(square[:, edges], axis=2)
    return borders, (squares - sums**2 / np.diff(edges, axis=1)).sum(2)


def stability(curves: np.ndarray, found: Partition, seed: int = 0) -> float:
    """The share of bootstrap samples of the pictures [pictures, layers] that suggest the same object layer."""
    drawn = np.random.default_rng(seed).integers(len(curves), size=(_DRAWS, len(curves)))
    borders, errors = _errors(curves[drawn].mean(1))
    return float((borders[errors.argmin(1), 1] - 1 == found.object_layer).mean())


def dispersion(asked: Asked) -> Finding:
    """The curve, the phases that it implies, and an object layer for HiPrune."""
    readings = asked.readings()
    curves = np.stack([dispersion_of(reading) for reading in readings])
    means = [interval(column, asked.seed) for column in curves.T]
    found = partition(curves.mean(0))
    phase = [_phase(layer, found) for layer in range(len(means))]
    head = ["layer", "phase", "distance", "low", "high"]
    rows = [[layer, phase[layer], *(round(value, 4) for value in mean)] for layer, mean in enumerate(means)]
    sheets = {"dispersion": Sheet(head, rows)}
    figures = {"dispersion": _figure(means, found)}
    return Finding("Dispersion of high attention", _text(asked, readings, curves, found), figures, sheets)


def _phase(layer: int, found: Partition | None) -> str:
    if found is None:
        return ""
    return PHASES[(layer >= found.middle) + (layer >= found.deep)]


def _figure(means: list[tuple[float, float, float]], found: Partition | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=FAINT, linewidth=1, linestyle=(0, (1, 3)), label="tokens at random")
    layers = range(len(means))
    band(axes, layers, means, color=DARK, marker="o", markersize=4, linewidth=1.4, label="top 10 % of a layer")
    if found is not None:
        borders = [-0.5, found.middle - 0.5, found.deep - 0.5, len(means) - 0.5]
        for border in borders[1:-1]:
            axes.axvline(border, color=INK, linewidth=0.8)
        for name, left, right in zip(PHASES, borders, borders[1:], strict=False):
            axes.text((left + right) / 2, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                      color=INK)  # fmt: skip
        at = found.object_layer
        axes.plot([at], [means[at][0]], "o", markersize=10, markerfacecolor="none", color=INK, label="object layer")
    plain(axes, "encoder layer, from 0", "mean distance of pairs, over random")
    layer_ticks(axes, len(means))
    legend(axes)
    return figure


def _text(asked: Asked, readings: list[Reading], curves: np.ndarray, found: Partition | None) -> list[str]:
    mean = curves.mean(0)
    said = [
        f"The tokens with the highest attention lie closest together in layer {int(mean.argmin())} "
        f"({mean.min():.2f} of the distance of random tokens) and farthest apart in layer {int(mean.argmax())} "
        f"({mean.max():.2f})."
    ]
    full = asked.subject.full_layers
    if found is None:
        return [*said, f"An encoder of {len(mean)} layers has no three phases."]
    runs = np.split(np.arange(len(mean)), [found.middle, found.deep])
    named = ", ".join(f"{name} {spoken(run.tolist())}" for name, run in zip(PHASES, runs, strict=True))
    said.append(
        f"The phases that fit the curve best are {named}; they explain {100 * found.explained:.0f} % of its variance."
        + (" That is little: the curve of this encoder has no clear phases." if found.explained < 0.5 else "")
    )
    usual, suggested = _usual(readings[0], full), _readable(found.object_layer, full)
    said.append(
        f"The suggested object layer is {suggested}, the last of the middle phase"
        + (f" or the nearest whose attention spans the picture (layer {found.object_layer} stays in windows)"
           if suggested != found.object_layer else "")
        + (" (HiPrune's own default here, too)" if usual == suggested else f" (HiPrune's own default here is {usual})")
        + (f"; {100 * stability(curves, found, asked.seed):.0f} % of bootstrap samples of the {len(readings)} pictures "
           "suggest the same border" if len(readings) > 1 else "")
        + f". To use it: --method 'hiprune(object_layer={suggested})'."
    )  # fmt: skip
    return said


def _usual(reading: Reading, full: tuple[int, ...] | None) -> int:
    """The object layer that HiPrune takes by itself."""
    info = ModelInfo("", reading.layers, reading.layers, reading.cls is not None)
    [layer] = vlmprune.METHODS["hiprune"]().needs(info)["object"].layers  # type: ignore[attr-defined]
    return layer.index(reading.layers, full)


def _readable(layer: int, full: tuple[int, ...] | None) -> int:
    return layer if not full else min(full, key=lambda one: (abs(one - layer), one))
