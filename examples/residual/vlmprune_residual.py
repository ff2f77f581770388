"""Residual: the tokens that the image's main directions do not explain."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmprune.author import AtLeast, Features, ImageView, ModelInfo, Need, Scorer


@dataclass
class Residual(Scorer):
    """Background repeats itself, so a few directions span it, and what lies outside of them is kept.

    Formula: X [n, D] projected features with rows of length 1, V [rank, D] the first right singular vectors of X;
    score [n] = |x_i - V^T V x_i|. The top `keep` stay.

    Args:
        rank: number of directions that count as background.
    """

    name: ClassVar[str] = "residual"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that the image's main directions do not explain"

    rank: Annotated[int, AtLeast(1)] = 4

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def score(self, view: ImageView) -> Tensor:
        unit = normalize(view["features"], dim=1)
        main = torch.linalg.svd(unit, full_matrices=False).Vh[: self.rank]
        return (unit - unit @ main.T @ main).norm(dim=1)
