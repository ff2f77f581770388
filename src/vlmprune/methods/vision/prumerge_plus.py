"""LLaVA-PruMerge+: PruMerge that keeps tokens sampled evenly over the image as well as outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import ImageView, Share, UserError, top_k
from vlmprune.methods.vision.prumerge import PruMerge

AUTHORS_TOKENS = 576  # written into the authors' code for the samples


@dataclass
class PruMergePlus(PruMerge):
    """PruMerge that also samples the image evenly, so that no part of it is missed.

    Paper: LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models (ICCV 2025, arXiv 2403.15388).

    Formula: a [n] and the merging as in PruMerge. Of the m = keep - 1 kept tokens the top ceil(m * attended) of a come
    first, then m' samples: of the f tokens left, the ones at f (2 i + 1) / 2 m', i = 0 ... m' - 1.
    `adaptive`: the o outliers of a, then every (int(n / o) // 3)-th token, starting at the first, that is not an
    outlier: about 3 samples per outlier.

    Defaults: it takes a budget, half of it by attention, as the authors' fixed ratio does. Their default is adaptive,
    about 144 of 576. Otherwise as PruMerge.

    Args:
        attended: share of the kept tokens that are chosen by attention, 0 to 1; with `adaptive` it is about 0.25.
        adaptive: keep as many tokens as there are outliers and samples for them; then it takes no budget.
        compat: "official" samples a fixed grid, even tokens that are already kept. Such a token comes twice and counts
            as similar to itself, and as many of the first tokens are added to none. What the authors' code cannot do
            is refused.

    Differences from the authors' code:
        - With a budget every sample is a new token. Their fixed ratio works only if int(n / top) divides n evenly.
        - Any number of tokens will do; theirs writes the samples for 576, and needs 33 for the merging.
        - There is at least one outlier (theirs divides by zero), and images are taken one at a time.
    """

    name: ClassVar[str] = "prumerge+"
    summary: ClassVar[str] = "PruMerge that keeps tokens sampled evenly over the image as well"

    attended: Annotated[float, Share] = 0.5

    def kept(self, view: ImageView) -> Tensor:
        if self.compat == "official" and view.n != AUTHORS_TOKENS:
            raise UserError(f"{self.name}: the authors' code takes {AUTHORS_TOKENS} tokens, not {view.n}.")
        if self.adaptive:
            return self._outliers_and_samples(view)
        if self.compat == "official":
            return self._fixed_ratio(view)
        count = math.ceil((view.keep - 1) * self.attended)
        order, samples = top_k(view["attention"], view.n), view.keep - 1 - count
        free = torch.sort(order[count:]).values
        places = (2 * torch.arange(samples, device=free.device) + 1) * len(free) // max(1, 2 * samples)
        return torch.cat([order[:count], free[places]])

    def _outliers_and_samples(self, view: ImageView) -> Tensor:
        count = self.outliers(view["attention"].float())
        if count == 0:
            raise UserError(f"{self.name}: the authors' code fails on an image without outliers.")
        top = top_k(view["attention"], count)
        stride = max(1, int(int(1 / (count / view.n)) / 3))
        grid = torch.arange(0, view.n - 1, stride, device=top.device)
        return torch.cat([top, grid[~torch.isin(grid, top)]])[: view.n - 1]

    def _fixed_ratio(self, view: ImageView) -> Tensor:
        count = (view.keep - 1) // 2
        step = int(1 / (count / view.n)) if count else view.n
        grid = torch.arange(int(step / 2), view.n - 1, step, device=view.slots.device)
        if len(grid) != count:
            raise UserError(f"{self.name}: the authors' code fails: {len(grid)} samples for {count} outliers.")
        return torch.cat([top_k(view["attention"], count), grid])
