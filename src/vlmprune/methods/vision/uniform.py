"""Evenly spread tokens: a baseline that goes by the place of a token and not by what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import ImageView, Method, ModelInfo
from vlmprune.methods.vision.pool import Pool, middles, shape


@dataclass
class Uniform(Method):
    """Keeps tokens at regular distances along the rows and columns.

    Paper: none; it is `random` without the chance.

    Formula: the R x C tokens of a frame or tile are cut into `keep` rectangles as `pool` cuts them: round(sqrt(keep R /
    C)) strips of rows, among which the budget is spread evenly, and in each strip as many groups of columns as it has
    tokens. The token in the middle of each rectangle stays. 24 x 24 with keep 64 gives every third token of every third
    row. Time O(keep), memory O(keep).

    Defaults: each frame or tile by itself; slots without a patch are dropped first. If an earlier stage left holes in
    the grid, tokens at regular distances in their order stay. Positions: renumbered on LLaVA, kept elsewhere.
    """

    name: ClassVar[str] = "uniform"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens spread evenly over the picture, whatever they show"

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: an image_newline has no place in the picture."""
        return False

    def select(self, view: ImageView) -> Tensor:
        rows, cols = shape(view)
        return torch.tensor(middles(rows, cols, Pool().strips(rows, cols, view.keep)), device=view.slots.device)
