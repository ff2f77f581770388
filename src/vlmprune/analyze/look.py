"""How figures look: quiet axes, one grey ink, and colours that a grey print keeps apart by lightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlmprune.analyze.reading import Reading
from vlmprune.report.plots import INK, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARK, MIDDLE, LIGHT = "#0b4f6c", "#d55e00", "#8fb8cc"  # dark, middle and light in grey
HEAT = "cividis"  # lightness grows with the value, also for colour-blind readers
_DRAWS = 2000


def plain(axes: Axes, across: str, up: str) -> None:
    """Names of the axes, and nothing that is not data."""
    axes.set_xlabel(across, color=INK, fontsize=9)
    axes.set_ylabel(up, color=INK, fontsize=9)
    quiet(axes)


def layer_ticks(axes: Axes, layers: int) -> None:
    """Numbers of layers, at most about a dozen of them."""
    step = max(1, -(-layers // 12))
    axes.set_xticks(range(0, layers, step))
    axes.set_xlim(-0.5, layers - 0.5)


def legend(axes: Axes) -> None:
    """Below the plot, where no data is."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=8, labelcolor=INK
    )  # fmt: skip


def seen(image: Image.Image, reading: Reading) -> Image.Image:
    """The part of a picture that the encoder saw."""
    left, top, right, bottom = (round(edge) for edge in reading.window)
    return image.crop((left, top, right, bottom))  # what a processor pads beyond a picture is black


def interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval over pictures; of one picture there is no interval (NaN)."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return float(found.mean()), float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(found), size=(_DRAWS, len(found)))
    low, high = np.percentile(found[drawn].mean(1), [2.5, 97.5])
    return float(found.mean()), float(low), float(high)


def band(axes: Axes, across: Sequence[float], found: Sequence[tuple[float, float, float]], **style: Any) -> None:
    """A line of means with the band of their intervals."""
    mean, low, high = np.array(found).T
    axes.plot(across, mean, **style)
    if np.isfinite(low).all():
        axes.fill_between(across, low, high, color=style.get("color"), alpha=0.18, linewidth=0)


def spoken(layers: Sequence[int]) -> str:
    """Layers in words: "layer 3", "layers 2 to 4", "layers 1 and 5"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
