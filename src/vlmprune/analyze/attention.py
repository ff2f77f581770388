"""Attention maps of all encoder layers: received attention, and that of the CLS token (HiPrune, figures 3, 10, 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlmprune.analyze.look import HEAT, seen, spoken
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.reading import TOP, Reading, top_of
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.analyze.subject import Subject
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 2  # pictures that get figures of their own; the table has all of them
_ACROSS = 6  # panels side by side
KINDS = {"received": "attention received from all tokens", "cls": "attention of the CLS token"}


def attention(asked: Asked) -> Finding:
    """Where each layer looks, and how much of its attention goes to few tokens."""
    readings = asked.readings()
    figures, rows, maps = {}, list[list[object]](), list[list[object]]()
    for number, (picture, reading) in enumerate(zip(asked.pictures, readings, strict=True)):
        for kind in KINDS:
            values = getattr(reading, kind)
            if values is None:
                continue
            rows += [[picture.name, kind, layer, *_facts(values[layer])] for layer in range(reading.layers)]
            if number < SHOWN:
                maps += _maps(picture.name, kind, values, reading)
                figures[f"attention-{number + 1}-{kind}"] = _figure(picture, reading, values, KINDS[kind])
    head = ["picture", "kind", "layer", "peak_times_mean", "top_tenth_share", "effective_tokens"]
    sheets = {
        "attention": Sheet(head, rows),
        "attention-maps": Sheet(["picture", "kind", "layer", "row", "column", "times_mean"], maps),
    }
    return Finding("Attention maps of all layers", _text(readings, asked.subject), figures, sheets)


def _facts(values: np.ndarray) -> list[float]:
    """The highest value as a multiple of the mean, the share of the top tenth, and exp of the entropy."""
    shares = values / values.sum()
    some = shares[shares > 0]
    effective = math.exp(-float((some * np.log(some)).sum()))
    return [_round(values.max() / values.mean()), _round(shares[top_of(values)].sum()), _round(effective)]


def _round(value: float) -> float:
    return round(float(value), 4)


def _maps(name: str, kind: str, values: np.ndarray, reading: Reading) -> list[list[object]]:
    return [
        [name, kind, layer, *divmod(cell, reading.grid.cols), _round(value)]
        for layer, of_layer in enumerate(values / values.mean(1, keepdims=True))
        for cell, value in enumerate(of_layer)
    ]


def _figure(picture: Picture, reading: Reading, values: np.ndarray, what: str) -> Figure:
    from matplotlib.figure import Figure

    panels = reading.layers + 1
    across = min(_ACROSS, panels)
    down = math.ceil(panels / across)
    high = max(0.6, min(1.6, reading.grid.rows / reading.grid.cols))
    figure = Figure(figsize=(1.45 * across + 0.9, (1.35 * high + 0.38) * down + 0.4), layout="constrained")
    plots = figure.subplots(down, across, squeeze=False).flatten()
    plots[0].imshow(seen(picture.image, reading), aspect="auto")
    plots[0].set_title("picture", fontsize=8, color=INK)
    image = None
    for layer, of_layer in enumerate(values):
        panel = plots[layer + 1]
        shown = of_layer.reshape(reading.grid.rows, reading.grid.cols)
        low, top = float(shown.min()), float(shown.max())
        image = panel.imshow((shown - low) / (top - low or 1.0), cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        panel.set_title(f"layer {layer}: {top / shown.mean():.1f}×", fontsize=8, color=INK)
    for panel in plots[:panels]:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_box_aspect(high)
    for empty in plots[panels:]:
        empty.set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=list(plots), shrink=0.8, ticks=[0, 1], pad=0.02)
    bar.ax.set_yticklabels(["lowest", "highest"], fontsize=7, color=FAINT)
    bar.ax.tick_params(length=0)
    bar.set_label("attention in this layer", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)
    figure.suptitle(f"{picture.name}: {what}; ×: the highest token over the mean", fontsize=9, color=INK)
    return figure


def _text(readings: Sequence[Reading], subject: Subject) -> list[str]:
    shares = np.array([[_facts(of_layer)[1] for of_layer in reading.received] for reading in readings]).mean(0)
    sharp, flat = int(shares.argmax()), int(shares.argmin())
    said = [
        f"Each map shows how much attention every token gets in one layer, from the lowest value of the layer to its "
        f"highest. Over {_pictures(len(readings))}, the {100 * TOP:.0f} % of tokens with the highest attention get "
        f"between {100 * shares[flat]:.0f} % of all attention (layer {flat}) and {100 * shares[sharp]:.0f} % (layer "
        f"{sharp}); {100 * TOP:.0f} % would mean that all tokens get the same."
    ]
    if subject.used_layer is not None:
        said.append(f"The language model gets the output of layer {subject.used_layer}.")
    full = subject.full_layers
    if full is not None:
        windows = [layer for layer in range(readings[0].layers) if layer not in full]
        said.append(
            f"The attention of {spoken(windows)} stays within windows of the picture: there, a token is only compared "
            "with those of its own window."
        )
    return said


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"
