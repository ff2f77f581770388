"""SCOPE: the tokens that cover the image's other tokens best, weighted by the attention of the CLS token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    ClsAttention, ImageView, Method, ModelInfo, Need, NotNegative, TowerFeatures, ascending,
)  # fmt: skip
from vlmprune.methods.coverage import most_covering
from vlmprune.methods.diversity import first_alike, unit_rows


@dataclass
class Scope(Method):
    """Saliency and coverage together: each pick adds most to what the kept tokens are similar to, times its attention.

    Paper: SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs (NeurIPS 2025, arXiv
    2510.24214).

    Formula: each tile or frame by itself. X [n, C] rows of the tower, u_i = x_i / |x_i|, S = U U^T [n, n]; a [n] =
    attention of the CLS token, summed over heads, w = a^alpha. c [n] = 0: how well each token is covered. Until `keep`
    are picked: gain_j = sum over all i of max(0, S_ij - c_i), pick argmax of gain_j w_j, then c_i = max(c_i, S_ij) for
    the pick j. Ties go to the lower index. Time O(n^2 C + n^2) and at most O(n^2 keep), memory n^2 numbers.

    Defaults: alpha 1. 64 tokens on LLaVA-1.5, 160 on LLaVA-NeXT (32 per tile), with positions renumbered. Ours: without
    a CLS token (SigLIP, Qwen) a is the attention received from all tokens. If the projector merges patches (Qwen,
    pixel shuffle), X are the projected tokens.

    Args:
        alpha: exponent of the attention; 0 leaves coverage alone.
        combined: "multi" for gain_j w_j, or "add" for gain_j + w_j.

    Differences from the authors' code:
        - It computes in float32; theirs in the model's precision, in which the first gains, sums of hundreds, tie.
        - A zero vector is similar to nothing; theirs yields NaN and then keeps the first tokens.
        - Gains only fall, so only those that can still be the highest are computed again. The picks are the same.
        - On LLaVA-NeXT tiles cut by padding get budgets in proportion to what is left of them, and the total is exact.
          Theirs keeps the padding, and divides the budget by the tiles, rounded down.
        - The authors have no code for other families and for videos.
    """

    name: ClassVar[str] = "scope"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that cover the others best, weighted by what the CLS token attends to"

    alpha: Annotated[float, NotNegative] = 1.0
    combined: Literal["multi", "add"] = "multi"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures(), "attention": ClsAttention(heads="sum")}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def select(self, view: ImageView) -> Tensor:
        return ascending(self.picks(view))

    def picks(self, view: ImageView) -> Tensor:
        """Token indices in the order in which they are picked, [keep]."""
        unit = unit_rows(view["rows"].rows.double()).float()
        attention = torch.nan_to_num(view["attention"].float()).clamp(min=0)
        weights = torch.nan_to_num(attention**self.alpha)

        def weigh(gain: Tensor, tokens: Tensor) -> Tensor:
            return gain * weights[tokens] if self.combined == "multi" else gain + weights[tokens]

        return most_covering((unit @ unit.T)[first_alike(unit)], view.keep, weigh)
