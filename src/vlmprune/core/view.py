"""What a method is shown, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Rows and columns of an image's tokens, raster order; `frames` > 1 for video (frame after frame)."""

    rows: int
    cols: int
    frames: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.cols * self.frames


class TowerRows(NamedTuple):
    """One row per token, and the CLS token's row where the tower has one."""

    rows: Tensor
    cls: Tensor | None


class Tokens(NamedTuple):
    """Decoder-side rows of an image's tokens and of the text tokens that follow it."""

    visual: Tensor
    text: Tensor


@dataclass(frozen=True)
class ModelInfo:
    """What a method may know of a model when it declares its needs and defaults."""

    family: str
    encoder_layers: int
    decoder_layers: int
    has_cls: bool


@dataclass
class ImageView:
    """One image (or video) of one sample, as a method sees it.

    Attributes:
        keep: tokens to keep, 1 <= keep < n.
        slots: [n] slot numbers of the tokens still present, counted from the image's first slot; -1 for a merged
            token that has no slot of its own.
        grid: the image's slot grid, or None where slots do not form one. Token i sits at raster cell `slots[i]`.
        info: the model.
        signals: what the method declared in `needs`, by name (see core.signals for shapes).
        seed: derived from the run's seed and the prompt, so that a result does not depend on batch or device.
    """

    keep: int
    slots: Tensor
    grid: Grid | None
    info: ModelInfo
    signals: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def n(self) -> int:
        return int(self.slots.shape[0])

    def __getitem__(self, name: str) -> Any:
        return self.signals[name]

    def generator(self) -> torch.Generator:
        """A CPU generator, fresh at every call: the same numbers on every device and in every batch."""
        return torch.Generator().manual_seed(self.seed)


@dataclass
class Merged:
    """New tokens in the order the LLM shall read them.

    Attributes:
        features: [m, C].
        anchors: [m] index (0..n-1) of the token that lends each one its position and slot; -1 for a token that has
            none (VisionZip's CLS), which takes the position of the image's first slot.
        space: "tower" when `features` are rows the projector reads (it is applied by the runtime), "llm" when they
            are ready for the LLM.
    """

    features: Tensor
    anchors: Tensor
    space: str = "llm"


Selection = Tensor | Merged
