"""OTPrune: the subset whose similarities span the largest volume, each channel on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import Features, ImageView, Method, ModelInfo, Need, Positive, ascending
from vlmprune.methods.diversity import first_alike


@dataclass
class OTPrune(Method):
    """The subset that stands for all tokens: each pick adds most to the volume that the picks' similarities span.

    Paper: OTPrune: Distribution-Aligned Visual Token Pruning via Optimal Transport (CVPR 2026, arXiv 2602.20205).

    Formula: F [n, D] projected features; X = F with each channel (column) divided by its length over the n tokens.
    G = X X^T, L = I + gamma G G^T [n, n]. Greedy maximum of log det of L on the picks: d = diag(L); pick argmax d; with
    c the row of L at the pick, less what the earlier picks explain, divided by sqrt(d of the pick), d = d - c^2. Ties
    go to the lower index. The paper derives this from optimal transport between kept and all tokens; no transport plan
    is computed. Time O(n D min(n, D) + n keep (min(n, D) + keep)), memory O(n (min(n, D) + keep) + min(n, D)^2).

    Defaults: gamma 0.01; 0.098 of the tokens on LLaVA-1.5, with positions renumbered. All tokens of an image or video
    compete, on LLaVA-NeXT with its newline slots. It needs projected features only, so it is the same on any family.

    Args:
        gamma: weight of similarity against I; with a small one, all tokens are worth the same.
        scale_free: multiply gamma by (n / D)^2. The lengths of X shrink with n, so that an equal gamma means less on a
            larger image; with this it means the same.

    Differences from the authors' code:
        - The LLM reads the kept tokens in order of position. Theirs passes them in the order of a Python set, which
          shuffles large sets, and LLaVA numbers them in that order.
        - A channel that is zero for all tokens adds nothing; theirs yields NaN and then keeps the first tokens.
        - G G^T is not formed: a pick needs one row of it. I is left out of the numbers, so that a small gamma G G^T is
          not lost in rounding, and rows of earlier picks are float64; theirs have the model's precision.
        - At least one token is kept; theirs fails where the share rounds to none.
    """

    name: ClassVar[str] = "otprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the tokens whose similarities span the largest volume: greedy MAP of a DPP"

    gamma: Annotated[float, Positive] = 0.01
    scale_free: bool = False

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def select(self, view: ImageView) -> Tensor:
        return ascending(self.picks(view))

    def picks(self, view: ImageView) -> Tensor:
        """Token indices in the order in which they are picked, [keep]."""
        left, right = self.factors(torch.nan_to_num(view["features"].double()))
        # sums row by row, which equal tokens round alike; a matrix product does not promise that
        gain = (left * right).sum(1).double()  # d - 1; an argmax does not ask for the 1
        explained, picks = gain.new_zeros(view.n, view.keep), []
        for step in range(view.keep):
            pick = gain.argmax(keepdim=True)
            picks.append(pick)
            earlier = explained[:, :step]
            row = (left * right[pick]).sum(1).double() - (earlier * earlier[pick]).sum(1)
            explained[:, step] = row.index_add(0, pick, torch.ones_like(row[:1])) / (1 + gain[pick].clamp(min=0)).sqrt()
            gain = (gain - explained[:, step].square()).index_fill(0, pick, float("-inf"))
        return torch.cat(picks)

    def factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices [n, min(n, D)] whose product, the second transposed, is gamma G G^T; float32.

        Args:
            features: [n, D] float64, finite.
        """
        n, width = features.shape
        lengths = features.norm(dim=0).clamp(min=torch.finfo(features.dtype).tiny)
        scaled = (features / lengths).float()
        gamma = self.gamma * ((n / width) ** 2 if self.scale_free else 1.0)
        if n <= width:
            right = (scaled @ scaled.T)[first_alike(scaled)]
            return gamma * right, right
        return gamma * (scaled @ (scaled.T @ scaled))[first_alike(scaled)], scaled
