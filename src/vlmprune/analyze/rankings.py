"""How the order of tokens by attention changes from layer to layer (HiPrune, figure 2a): t-SNE and rank correlations.

A layer is a point: the ranks of all tokens of all pictures by the attention that they receive in it. t-SNE lays the
points in a plane so that near ones stay near; distances between far ones mean nothing. The rank correlations are
Spearman's, and exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlmprune.analyze.look import HEAT, plain
from vlmprune.analyze.reading import Reading
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.core.errors import UserError
from vlmprune.core.extras import load_package
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST = 4  # layers, below which a plane shows nothing


def ranks_of(reading: Reading) -> np.ndarray:
    """[layers, n] the rank of each token by received attention, from 0 to 1; of equal tokens the first is lower."""
    order = np.argsort(reading.received, axis=1, kind="stable")
    return np.argsort(order, axis=1) / (reading.grid.size - 1)


def rankings(asked: Asked) -> Finding:
    """The plane, the correlations, and whether layers are most like their neighbours."""
    manifold = load_package("sklearn.manifold", "The study of rankings")
    readings = asked.readings()
    layers = readings[0].layers
    if layers < _FEWEST:
        raise UserError(f"An encoder of {layers} layers is too shallow to follow its rankings: give a deeper one.")
    ranks = [ranks_of(reading) for reading in readings]
    correlation = np.mean([np.corrcoef(of_picture) for of_picture in ranks], axis=0)
    # scikit-learn wants fewer neighbours than points; the usual 30 are for hundreds of them
    near = min(30.0, (layers - 1) / 3)
    points = manifold.TSNE(n_components=2, perplexity=near, random_state=asked.seed, init="pca").fit_transform(
        np.concatenate(ranks, axis=1)
    )
    head = ["layer", "x", "y", *(f"correlation_with_{layer}" for layer in range(layers))]
    rows = [
        [layer, *(round(float(value), 4) for value in (*points[layer], *correlation[layer]))] for layer in range(layers)
    ]
    return Finding(
        "Rankings of tokens across layers",
        _text(correlation),
        {"rankings": _figure(points, correlation)},
        {"rankings": Sheet(head, rows)},
    )


def nearest(correlation: np.ndarray) -> np.ndarray:
    """For each layer the other layer that ranks the tokens most like it."""
    others = correlation.copy()
    np.fill_diagonal(others, -np.inf)
    return others.argmax(1)


def _figure(points: np.ndarray, correlation: np.ndarray) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    plane, grid = figure.subplots(1, 2)
    layers = len(points)
    plane.plot(*points.T, color=FAINT, linewidth=0.8, zorder=1)
    plane.scatter(*points.T, c=range(layers), cmap=HEAT, s=42, zorder=2, edgecolors=INK, linewidths=0.5)
    for layer, (x, y) in enumerate(points):
        plane.annotate(str(layer), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8, color=INK)
    plain(plane, "t-SNE, first axis (no unit)", "t-SNE, second axis (no unit)")
    plane.margins(0.12)
    image = grid.imshow(correlation, cmap=HEAT, vmin=min(0.0, float(correlation.min())), vmax=1, origin="lower")
    plain(grid, "encoder layer, from 0", "encoder layer, from 0")
    grid.grid(False)
    step = max(1, -(-layers // 12))
    grid.set_xticks(range(0, layers, step))
    grid.set_yticks(range(0, layers, step))
    bar = figure.colorbar(image, ax=grid, shrink=0.85)
    bar.set_label("rank correlation", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0)
    bar.outline.set_visible(False)
    return figure


def _text(correlation: np.ndarray) -> list[str]:
    layers = len(correlation)
    beside = int((np.abs(nearest(correlation) - np.arange(layers)) == 1).sum())
    next_ = np.diag(correlation, 1)
    weakest = int(next_.argmin())
    return [
        f"{beside} of {layers} layers rank the tokens most like a layer next to them. Neighbouring layers have a mean "
        f"rank correlation of {next_.mean():.2f}, the first and the last layer {correlation[0, -1]:.2f}. The order "
        f"changes most between layers {weakest} and {weakest + 1} ({next_[weakest]:.2f})."
    ]
