"""Evenly spread tokens: the baseline that knows where a token is, and nothing of what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import ImageView, Method, ModelInfo
from vlmprune.methods.vision.pool import Pool, middles, shape


@dataclass
class Uniform(Method):
    """Every so many tokens, along the rows and along the columns.

    Paper: none; `random` without its luck.

    Formula: the R x C tokens of a frame or tile are cut into `keep` rectangles as `pool` cuts them: round(sqrt(keep R /
    C)) strips of rows, the budget spread evenly over the strips, a strip's columns over its tokens. The token in the
    middle of each rectangle stays. 24 x 24 with keep 64 gives every third token of every third row.
    Time O(keep), memory O(keep).

    Defaults: each frame or tile by itself; slots without a patch go first. Where an earlier stage left holes, every so
    many of the tokens in their order. Positions as for `random`: renumbered on LLaVA, elsewhere kept.
    """

    name: ClassVar[str] = "uniform"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens spread evenly over the picture, whatever they show"

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """An image_newline has no place in the picture."""
        return False

    def select(self, view: ImageView) -> Tensor:
        rows, cols = shape(view)
        return torch.tensor(middles(rows, cols, Pool().strips(rows, cols, view.keep)), device=view.slots.device)
