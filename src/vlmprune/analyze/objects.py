"""Whether high attention lies on objects: its IoU with object masks in each layer (HiPrune, table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vlmprune.analyze.look import DARK, band, interval, layer_ticks, legend, plain, seen
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.reading import TOP, Reading
from vlmprune.analyze.study import Asked, Finding, Sheet
from vlmprune.core.errors import Option, UserError
from vlmprune.core.view import Grid
from vlmprune.report.plots import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = 64  # random choices of as many tokens


def iou(cells: np.ndarray, grid: Grid, mask: np.ndarray) -> float:
    """Intersection over union of the area of these cells with a mask [height, width] that the grid covers."""
    high = np.arange(mask.shape[0]) * grid.rows // mask.shape[0]
    wide = np.arange(mask.shape[1]) * grid.cols // mask.shape[1]
    chosen = np.zeros(grid.size, bool)
    chosen[cells] = True
    area = chosen.reshape(grid.rows, grid.cols)[high][:, wide]
    return float((area & mask).sum() / max(1, (area | mask).sum()))


def seen_mask(picture: Picture, reading: Reading) -> np.ndarray:
    """The part of the mask that the encoder saw; padding beyond the picture is no object."""
    assert picture.mask is not None
    return np.asarray(seen(Image.fromarray(picture.mask), reading), bool)


def objects(asked: Asked) -> Finding:
    """The IoU of the top 10 % tokens of each layer with the objects, beside that of random tokens."""
    if any(picture.mask is None for picture in asked.pictures):
        raise UserError(
            "This study needs to know where objects are: leave out ", Option("photos", True), " and ",
            Option("images"), " for generated scenes, or add ", Option("coco", "instances_val2017.json"), ".",
        )  # fmt: skip
    pairs = list(zip(asked.pictures, asked.readings(), strict=True))
    masks = [seen_mask(picture, reading) for picture, reading in pairs]
    shown = [(reading, mask) for (_, reading), mask in zip(pairs, masks, strict=True) if mask.any()]
    if not shown:
        raise UserError("No object is in the part of the pictures that the encoder sees: give other pictures.")
    found = np.array(
        [[iou(reading.top(k), reading.grid, mask) for k in range(reading.layers)] for reading, mask in shown]
    )
    chance = np.array([_random(reading, mask, (asked.seed, k)) for k, (reading, mask) in enumerate(shown)])
    means = [interval(column, asked.seed) for column in found.T]
    middle = middle_layer(len(means))
    base = means[middle][0]
    rows = [
        [layer, *(round(value, 4) for value in mean), _ratio(mean[0], base), round(float(chance.mean()), 4)]
        for layer, mean in enumerate(means)
    ]
    sheet = Sheet(["layer", "iou", "low", "high", "times_middle_layer", "iou_of_random_tokens"], rows)
    text = _text(found, chance, middle, asked.seed)
    return Finding(
        "High attention and objects", text, {"objects": _figure(means, float(chance.mean()))}, {"objects": sheet}
    )


def middle_layer(layers: int) -> int:
    """HiPrune's layer L/2, which counts from 1, counted from 0."""
    return max(0, layers // 2 - 1)


def _random(reading: Reading, mask: np.ndarray, seed: tuple[int, int]) -> float:
    draw, count = np.random.default_rng(seed), len(reading.top(0))
    every = (draw.permutation(reading.grid.size)[:count] for _ in range(_DRAWS))
    return float(np.mean([iou(cells, reading.grid, mask) for cells in every]))


def _ratio(value: float, base: float) -> object:
    return round(value / base, 3) if base else ""


def _figure(means: list[tuple[float, float, float]], chance: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * chance, color=FAINT, linewidth=1, linestyle=(0, (1, 3)), label="tokens at random")
    percent = [(100 * mean, 100 * low, 100 * high) for mean, low, high in means]
    band(axes, range(len(means)), percent, color=DARK, marker="o", markersize=4, linewidth=1.4,
         label="top 10 % of a layer")  # fmt: skip
    axes.axvline(middle_layer(len(means)), color=INK, linewidth=0.8, linestyle="--", label="layer L/2")
    plain(axes, "encoder layer, from 0", "IoU with objects, percent")
    axes.set_ylim(bottom=0)
    layer_ticks(axes, len(means))
    legend(axes)
    return figure


def _text(found: np.ndarray, chance: np.ndarray, middle: int, seed: int) -> list[str]:
    mean, base = found.mean(0), float(found[:, middle].mean())
    best, last = int(mean.argmax()), len(mean) - 1
    table = ", ".join(
        f"{name} {mean[layer] / base:.2f}×" if base else f"{name} {100 * mean[layer]:.1f} %"
        for name, layer in (("layer 1", 0), ("L/2", middle), ("L", last))
    )
    said = [
        f"The top {100 * TOP:.0f} % tokens overlap the objects of {len(found)} picture{'s' * (len(found) != 1)} most "
        f"in layer {best} (IoU {100 * mean[best]:.1f} %); tokens drawn at random have {100 * chance.mean():.1f} %. As "
        f"in HiPrune's table 1, whose layers count from 1, relative to layer L/2: {table}."
    ]
    if len(found) < 2:
        return said
    if interval(found[:, best] - chance, seed)[1] <= 0:
        said.append("Even in that layer the overlap cannot be told from that of random tokens.")
    for layer, name in ((0, "first"), (last, "last")):
        if layer != middle:
            gain, low, high = interval(found[:, middle] - found[:, layer], seed)
            verdict = "more than" if low > 0 else "less than" if high < 0 else "neither more nor less than"
            said.append(
                f"Layer L/2 overlaps objects {verdict} the {name} layer (difference {100 * gain:+.1f} points, 95 % "
                f"interval {100 * low:+.1f} to {100 * high:+.1f})."
            )
    return said
